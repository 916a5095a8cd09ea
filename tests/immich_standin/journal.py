"""What the stand-in saw: every request, and every upload whose client vanished."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from aiohttp import web


class SeenRequest:
    """One request as it came over the wire."""

    def __init__(self, request: web.Request) -> None:
        self.method = request.method
        self.target = request.raw_path
        """The request target exactly as on the request line."""
        self.raw_headers: list[tuple[bytes, bytes]] = list(request.raw_headers)
        self.peer_port: int | None = None
        self.status: int | None = None
        """The status it was answered with, None as long as it was not."""
        self.finished = False
        """Whether the stand-in is done with it, however it ended."""
        self._content = request.content
        peer = request.transport.get_extra_info("peername") if request.transport else None
        if peer is not None:
            self.peer_port = peer[1]

    @property
    def body_received(self) -> int:
        """How many bytes of the body (without chunk framing) have arrived so far."""
        return self._content.total_bytes

    @property
    def completed(self) -> bool:
        """Whether the whole body has arrived."""
        return self._content.is_eof()

    def header(self, name: str) -> str | None:
        """The first header of that name, decoded as Latin-1."""
        wanted = name.lower().encode()
        for key, value in self.raw_headers:
            if key.lower() == wanted:
                return value.decode("latin-1")
        return None

    def __repr__(self) -> str:
        return f"<{self.method} {self.target} body={self.body_received} status={self.status}>"


class Journal:
    """The requests in their order, and a way to wait for one."""

    def __init__(self) -> None:
        self.requests: list[SeenRequest] = []
        self._aborted: asyncio.Queue[SeenRequest] = asyncio.Queue()
        self._changed = asyncio.Event()

    def begin(self, request: web.Request) -> SeenRequest:
        seen = SeenRequest(request)
        self.requests.append(seen)
        self.changed()
        return seen

    def changed(self) -> None:
        """Wake whoever waits, to look at the requests again."""
        self._changed.set()
        self._changed = asyncio.Event()

    def aborted(self, seen: SeenRequest) -> None:
        self._aborted.put_nowait(seen)

    async def wait_for(
        self, predicate: Callable[[SeenRequest], bool], timeout: float
    ) -> SeenRequest:
        """The first request of which the predicate holds; raises TimeoutError."""
        async with asyncio.timeout(timeout):
            while True:
                for seen in self.requests:
                    if predicate(seen):
                        return seen
                await self._changed.wait()

    async def wait_for_abort(self, timeout: float) -> SeenRequest:
        """The next upload that its client abandoned; raises TimeoutError."""
        async with asyncio.timeout(timeout):
            return await self._aborted.get()

    def clear(self) -> None:
        self.requests.clear()
        self._aborted = asyncio.Queue()
