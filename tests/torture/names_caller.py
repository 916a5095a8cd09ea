"""A client that asks one thing after another on one connection: thousands of requests take time."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from types import TracebackType
from typing import Self, TypeVar

from backup_wing import Answer
from wire import PATIENCE, Peer

T = TypeVar("T")


class Caller:
    """Keeps its connection to host and port of `url`, and makes a new one where it was closed."""

    def __init__(self, url: str) -> None:
        host, _, port = url.removeprefix("http://").rpartition(":")
        self._address = host, int(port)
        self._peer: Peer | None = None

    async def ask(self, *message: bytes) -> Answer:
        """The answer to a POST or GET."""
        if self._peer is None:
            opened = await asyncio.wait_for(asyncio.open_connection(*self._address), PATIENCE)
            self._peer = Peer(*opened)
        await self._peer.send(b"".join(message))
        answer = Answer(await self._peer.read_answer())
        if (answer.header("Connection") or "").lower() == "close":
            await self.close()
        return answer

    async def close(self) -> None:
        """Close the connection."""
        if self._peer is not None:
            await self._peer.close()
            self._peer = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()


async def shared_out(
    url: str, work: Iterable[T], do: Callable[[Caller, T], Awaitable[None]], *, callers: int = 4
) -> None:
    """Have each piece of `work` done by one of some callers at once."""
    left = iter(work)

    async def call() -> None:
        async with Caller(url) as caller:
            for piece in left:
                await do(caller, piece)

    async with asyncio.TaskGroup() as group:
        for _ in range(callers):
            group.create_task(call())
