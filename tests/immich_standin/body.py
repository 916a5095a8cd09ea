"""The request body, counted as it is read, and stopped where a misbehaviour says so."""

from __future__ import annotations

import asyncio
import warnings
from typing import TYPE_CHECKING, cast

from aiohttp import StreamReader, web

if TYPE_CHECKING:
    from .behaviour import Behaviour
    from .connection import Connection
    from .journal import Journal

PIECE = 256 * 1024

# Immich gives its JSON parser 10 MB; above it answers 500, not 413.
MAX_JSON = 10 * 1000 * 1000


class ConnectionGone(Exception):
    """The connection ended: there is nobody left to answer."""


class Body:
    """What aiohttp's multipart reader takes for the request's StreamReader."""

    def __init__(
        self, request: web.Request, connection: Connection, behaviour: Behaviour, journal: Journal
    ) -> None:
        self._content = request.content
        self._connection = connection
        self._behaviour = behaviour
        self._journal = journal
        self._consumed = 0

    def as_stream(self) -> StreamReader:
        return cast(StreamReader, self)

    async def read(self, n: int = -1) -> bytes:
        return self._count(await self._content.read(await self._allowed(n)))

    async def readline(self, *, max_line_length: int | None = None) -> bytes:
        await self._allowed(PIECE)
        return self._count(await self._content.readline(max_line_length=max_line_length))

    async def read_any(self) -> bytes:
        """Whatever has arrived, up to one piece; empty at the end."""
        return self._count(await self._content.read(await self._allowed(PIECE)))

    async def drain(self) -> None:
        while await self.read_any():
            pass

    async def collect(self, limit: int) -> bytes | None:
        """The whole body, or None when it is larger than the limit, which is then left unread."""
        collected = bytearray()
        while piece := await self.read_any():
            collected += piece
            if len(collected) > limit:
                return None
        return bytes(collected)

    def unread_data(self, data: bytes) -> None:
        self._consumed -= len(data)
        with warnings.catch_warnings():
            # Deprecated for everybody but aiohttp's own multipart reader, which is who calls.
            warnings.simplefilter("ignore", DeprecationWarning)
            self._content.unread_data(data)

    def at_eof(self) -> bool:
        return self._content.at_eof()

    def _count(self, piece: bytes) -> bytes:
        self._consumed += len(piece)
        self._journal.changed()
        return piece

    async def _allowed(self, wanted: int) -> int:
        """How much may be read now; waits at a stall, and raises ConnectionGone to vanish."""
        allowed = wanted
        vanish_after, stall_after = self._behaviour.vanish_after, self._behaviour.stall_after
        if vanish_after is not None:
            if self._consumed >= vanish_after:
                self._connection.vanish(self._behaviour.vanish_with)
                raise ConnectionGone
            allowed = _smaller(allowed, vanish_after - self._consumed)
        if stall_after is not None and not self._behaviour.released.is_set():
            if self._consumed >= stall_after:
                await wait_unless_gone(self._behaviour.released, self._connection)
            else:
                allowed = _smaller(allowed, stall_after - self._consumed)
        return allowed


def _smaller(wanted: int, limit: int) -> int:
    return limit if wanted < 0 else min(wanted, limit)


async def wait_unless_gone(event: asyncio.Event, connection: Connection) -> None:
    """Wait for the event; raises ConnectionGone when the connection ends first."""
    waits = [
        asyncio.create_task(event.wait()),
        asyncio.create_task(connection.gone.wait()),
    ]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
    if connection.gone.is_set():
        raise ConnectionGone
