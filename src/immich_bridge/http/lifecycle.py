"""The life of the process as requests see it: running, then draining, then gone."""

import asyncio
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from aiohttp import HttpVersion11, web

from immich_bridge.http.connection import Connection


class Lifecycle:
    """Knows the requests under way and says when no more should come."""

    def __init__(self) -> None:
        self.draining = False
        """Whether the process has been asked to stop: answers close their connections."""
        self._under_way: dict[int, web.Request] = {}  # requests have no hash
        self._idle = asyncio.Event()
        self._idle.set()
        self._on_drain: list[Callable[[], None]] = []

    @property
    def under_way(self) -> Iterable[web.Request]:
        """The requests that have begun and not ended."""
        return self._under_way.values()

    @contextmanager
    def request(self, request: web.Request) -> Iterator[None]:
        """Hold `request` for under way as long as the context lasts."""
        self._under_way[id(request)] = request
        self._idle.clear()
        try:
            yield
        finally:
            del self._under_way[id(request)]
            if not self._under_way:
                self._idle.set()

    def on_drain(self, callback: Callable[[], None]) -> None:
        """Have `callback` called once when draining begins."""
        self._on_drain.append(callback)

    async def drain(self, grace: float) -> int:
        """Let the requests under way finish for `grace` seconds; how many did not."""
        self.draining = True
        for callback in self._on_drain:
            callback()
        try:
            async with asyncio.timeout(grace):
                await self._idle.wait()
        except TimeoutError:
            pass
        return len(self._under_way)


LIFECYCLE: web.AppKey[Lifecycle] = web.AppKey("lifecycle", Lifecycle)


def may_keep_alive(request: web.BaseRequest, lifecycle: Lifecycle) -> bool:
    """Whether the connection may serve another request after this one's answer.

    Not while draining, and not when the answer comes before the end of the request's
    body: the rest would have to be read only to be thrown away. Nor where what comes next
    cannot be known for what it is.
    """
    connection = request.protocol
    if isinstance(connection, Connection) and connection.misread:
        return False
    if request.version < HttpVersion11 and not _asks_to_go_on(request):
        return False
    return request.keep_alive and request.content.is_eof() and not lifecycle.draining


def _asks_to_go_on(request: web.BaseRequest) -> bool:
    """Whether an HTTP/1.0 client says so (RFC 9112 9.3); the parser believes `Proxy-Connection`."""
    values = request.headers.getall("Connection", ())
    return any(option.strip().lower() == "keep-alive" for option in ",".join(values).split(","))
