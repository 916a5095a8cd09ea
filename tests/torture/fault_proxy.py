"""A TCP proxy that does to a connection what networks do, at the byte that it is told.

A connection meets a fault when the head of a request on it names one (`X-Request-Id`); from
there the bytes count. All other connections pass as they are.
"""

import asyncio
import re
import socket
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final, Literal
from urllib.parse import urlsplit

from front import let_time_pass
from wire import Peer

Way = Literal["cut", "reset", "stall", "trickle"]
Direction = Literal["up", "down"]
"""To the server, or back from it."""

_PIECE: Final = 256 * 1024
_NAME: Final = re.compile(rb"\r\nX-Request-Id: ([^\r]+)\r\n", re.IGNORECASE)
_LONGEST_HEAD: Final = 4096
_DRIPS: Final = 20
"""Single bytes of a trickle; then everything flows again."""
_DRIP_SECONDS: Final = 0.005
_LOOK_SECONDS: Final = 0.01
# States of a TCP connection whose peer has closed it (Linux, include/net/tcp_states.h):
# TIME_WAIT, CLOSE, CLOSE_WAIT, LAST_ACK, CLOSING.
_CLOSED_BY_PEER: Final = frozenset({6, 7, 8, 9, 11})


@dataclass
class Fault:
    """What happens to one request, once `at` bytes have passed in `direction`.

    Both ends see a cut as an orderly close (FIN), a reset as RST. In a stall nothing passes
    in that direction, and nothing is read, until it is `over`. A trickle ends by itself, and
    the request goes on.
    """

    way: Way
    direction: Direction
    at: int
    passed: dict[Direction, int] = field(default_factory=lambda: {"up": 0, "down": 0})
    """Bytes that have passed each way."""
    happened: asyncio.Event = field(default_factory=asyncio.Event)
    happened_at: float = 0.0
    """In the time of the event loop."""
    over: asyncio.Event = field(default_factory=asyncio.Event)
    met: int = 0
    """How many requests bore the name; of these the first meets the fault."""


class FaultProxy:
    """A proxy in front of the server at `target`."""

    def __init__(self, target: str) -> None:
        parts = urlsplit(target)
        self._target = parts.hostname, parts.port
        self.faults: dict[str, Fault] = {}
        """By the name that the request bears."""
        self._passages: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self._listener.sockets[0].getsockname()[1]}"

    async def __aenter__(self) -> "FaultProxy":
        self._listener = await asyncio.start_server(
            self._accept, "127.0.0.1", 0, limit=_PIECE, backlog=1024
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        self._listener.close()
        for passage in self._passages:
            passage.cancel()
        await asyncio.gather(*self._passages, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # asyncio's own task for this call may not be cancelled without a complaint.
        passage = asyncio.create_task(self._pass(Peer(reader, writer)))
        self._passages.add(passage)
        passage.add_done_callback(self._passages.discard)

    async def _pass(self, client: Peer) -> None:
        try:
            server = Peer(*await asyncio.open_connection(*self._target, limit=_PIECE))
        except OSError:
            client.reset()
            return
        try:
            await _Passage(self.faults, client, server).run()
        finally:
            for peer in (client, server):
                peer.writer.transport.abort()


class _Passage:
    """One connection through the proxy."""

    def __init__(self, faults: dict[str, Fault], client: Peer, server: Peer) -> None:
        self._faults = faults
        self._ends = (client, server)
        self._fault: Fault | None = None
        self._dropping = False

    async def run(self) -> None:
        """Pass bytes both ways until both ends have closed."""
        client, server = self._ends
        up = asyncio.create_task(self._pump("up", client, server))
        down = asyncio.create_task(self._pump("down", server, client))
        try:
            await asyncio.gather(up, down)
        except ConnectionError:  # a reset, of theirs or of ours, is one for both ends
            self._reset()
        finally:
            for pump in (up, down):
                pump.cancel()
            await asyncio.gather(up, down, return_exceptions=True)

    async def _pump(self, direction: Direction, source: Peer, sink: Peer) -> None:
        while piece := await source.reader.read(_PIECE):
            if direction == "up":
                self._meet(piece)
            fault = self._fault
            if self._dropping:
                continue
            if fault is None or fault.happened.is_set() or fault.direction != direction:
                await self._forward(direction, sink, piece)
                continue
            before = piece[: fault.at - fault.passed[direction]]
            await self._forward(direction, sink, before)
            if fault.passed[direction] < fault.at:
                continue
            fault.happened_at = asyncio.get_running_loop().time()
            fault.happened.set()
            await self._happen(fault, source, sink, piece[len(before) :])
        with suppress(OSError):
            sink.writer.write_eof()

    def _meet(self, piece: bytes) -> None:
        """Look whether a request begins here that has a fault to meet."""
        named = _NAME.search(piece[:_LONGEST_HEAD])
        if named is None:
            return
        # A fault that came too late for the request before must not strike this one.
        self._fault = self._faults.get(named[1].decode("latin-1"))
        if self._fault is not None:
            self._fault.met += 1
            if self._fault.met > 1:
                self._fault = None

    async def _forward(self, direction: Direction, sink: Peer, piece: bytes) -> None:
        sink.writer.write(piece)
        await sink.writer.drain()
        if self._fault is not None:
            self._fault.passed[direction] += len(piece)

    async def _happen(self, fault: Fault, source: Peer, sink: Peer, rest: bytes) -> None:
        if fault.way == "reset":
            self._reset()
        elif fault.way == "cut":
            # Whatever comes from now on is read and lost, or unread bytes would make it an RST.
            self._dropping = True
            for peer in self._ends:
                peer.writer.write_eof()
        elif fault.way == "stall":
            while not (fault.over.is_set() or _closed_by_peer(source) or _closed_by_peer(sink)):
                await let_time_pass(_LOOK_SECONDS)
            await self._forward(fault.direction, sink, rest)
        else:
            for n in range(min(_DRIPS, len(rest))):
                await self._forward(fault.direction, sink, rest[n : n + 1])
                await let_time_pass(_DRIP_SECONDS)
            await self._forward(fault.direction, sink, rest[_DRIPS:])

    def _reset(self) -> None:
        for peer in self._ends:
            with suppress(OSError):  # closed already
                peer.reset()


def _closed_by_peer(peer: Peer) -> bool:
    sock: socket.socket = peer.writer.get_extra_info("socket")
    try:
        state = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
    except OSError:
        return True
    return state in _CLOSED_BY_PEER
