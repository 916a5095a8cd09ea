"""A way to the server on which the first connections do not come far."""

import asyncio
from collections.abc import Iterable
from contextlib import suppress
from urllib.parse import urlsplit

from wire import Peer

_PIECE = 64 * 1024


class CuttingProxy:
    """Passes connections on; each resets after the next of `budgets` bytes, later ones never."""

    def __init__(self, target: str, budgets: Iterable[int]) -> None:
        parts = urlsplit(target)
        self._target = parts.hostname, parts.port
        self._budgets = list(budgets)
        self._passages: set[asyncio.Task[None]] = set()
        self.cuts = 0

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self._listener.sockets[0].getsockname()[1]}"

    async def __aenter__(self) -> "CuttingProxy":
        self._listener = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._listener.close()
        for passage in self._passages:
            passage.cancel()
        await asyncio.gather(*self._passages, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        passage = asyncio.create_task(self._pass(Peer(reader, writer)))
        self._passages.add(passage)
        passage.add_done_callback(self._passages.discard)

    async def _pass(self, client: Peer) -> None:
        budget = self._budgets.pop(0) if self._budgets else None
        server = Peer(*await asyncio.open_connection(*self._target))
        up = asyncio.create_task(_pump(client, server, budget))
        down = asyncio.create_task(_pump(server, client, None))
        try:
            cut = await up
            if cut:
                self.cuts += 1
                for peer in (client, server):
                    peer.reset()
            else:
                await down
        finally:
            for pump in (up, down):
                pump.cancel()
            await asyncio.gather(up, down, return_exceptions=True)
            for peer in (client, server):
                peer.writer.transport.abort()


async def _pump(source: Peer, sink: Peer, budget: int | None) -> bool:
    """Pass bytes on; whether that ended because `budget` bytes were through."""
    with suppress(ConnectionError):
        while piece := await source.reader.read(_PIECE):
            if budget is not None:
                piece = piece[:budget]
                budget -= len(piece)
            sink.writer.write(piece)
            await sink.writer.drain()
            if budget == 0:
                return True
        sink.writer.write_eof()
    return False
