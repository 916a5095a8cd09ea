"""The bytes of one request as they come in: counted, limited, digested, cut off when idle.

Both wings read bodies through `IncomingBody` and nothing else, so that every promise about
incoming bytes is kept in one place. It holds no more than the piece at hand.
"""

import asyncio
import select
import socket
from abc import ABC, abstractmethod
from collections.abc import Sequence
from types import TracebackType
from typing import Final

from aiohttp import HttpVersion11, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http import StreamWriter

from immich_bridge.digests import ExpectedDigest
from immich_bridge.errors import (
    BadRequest,
    BridgeError,
    ClientGone,
    PayloadTooLarge,
    RequestTimeout,
    Unavailable,
)
from immich_bridge.splice import SourceEnded, move

_WATCH_INTERVAL: Final = 1.0
"""Seconds between two looks at a body: is its sender silent, or gone?"""

_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"

# States of a TCP connection whose peer has closed or reset it (Linux, include/net/tcp_states.h).
_TCP_CLOSE: Final = 7
_TCP_CLOSE_WAIT: Final = 8


class BodySkipper(ABC):
    """A connection that can go on behind a body that its parser has not seen the end of."""

    __slots__ = ()

    @abstractmethod
    def skip_body(self) -> None:
        """Take what comes next for the beginning of a request."""


class IncomingBody:
    """The body of `request`, read piece by piece with back-pressure.

    `limit` is the most bytes that are taken (0: no limit), `idle_timeout` the seconds that
    the sender may be silent while we wait for it. `digests` are fed with every piece and
    compared before the end is reported. With `fast_path` the bytes may pass this process by.
    To be used as a context manager.
    """

    def __init__(
        self,
        request: web.Request,
        *,
        idle_timeout: float,
        limit: int = 0,
        digests: Sequence[ExpectedDigest] = (),
        fast_path: bool = False,
    ) -> None:
        self._request = request
        self.content = request.content
        self._fast_path = fast_path
        self._loop = asyncio.get_running_loop()
        self._idle_timeout = idle_timeout
        self._limit = limit
        self._digests = digests
        self._expects_continue = (
            request.version >= HttpVersion11
            and request.headers.get("Expect", "").lower() == "100-continue"
        )
        self._peeked: list[bytes] = []
        self._ended = False
        self._waiting_since: float | None = None
        self._watch: asyncio.TimerHandle | None = None
        self.length = request.content_length
        """Bytes announced by the sender; None when it did not say (chunked)."""
        self.received = 0
        """Bytes read so far."""
        if limit and self.length is not None and self.length > limit:
            raise self._too_large()

    def __enter__(self) -> "IncomingBody":
        self._schedule_watch()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._watch is not None:
            self._watch.cancel()

    async def read(self) -> bytes:
        """The next piece; `b""` once the body is whole and its digests are right.

        Raises `ClientGone`, `RequestTimeout`, `PayloadTooLarge`, `BadRequest` (broken
        chunked framing) and `ChecksumMismatch`. After any of these the body has no end:
        whoever passes it on must not complete what it feeds.
        """
        if self._peeked:
            return self._peeked.pop(0)
        return await self._receive()

    async def peek(self, size: int) -> bytes:
        """The first `size` bytes or more, fewer only if the body is shorter; kept for `read`."""
        while sum(map(len, self._peeked)) < size:
            piece = await self._receive()
            if not piece:
                break
            self._peeked.append(piece)
        return b"".join(self._peeked)

    def give_up(self, reason: BridgeError) -> None:
        """Raise `reason` in whoever reads, now or next."""
        self.content.set_exception(reason)

    async def move_to(self, writer: AbstractStreamWriter) -> None:
        """Move the rest to `writer` inside the kernel; what cannot be moved is left to `read`.

        Raises what `read` raises, and `ConnectionError` when the other side takes no more.
        """
        connection = self.connection
        if (
            not self._fast_path
            or self.length is None
            or self._digests
            or not isinstance(writer, StreamWriter)
            or writer.chunked  # what passes by has no framing
            or not isinstance(connection, BodySkipper)
        ):
            return
        try:
            await move(self, writer)
        except SourceEnded as exc:
            raise ClientGone("the client closed the connection in mid-body") from exc

    @property
    def connection(self) -> BaseProtocol | None:
        """The connection on which the body comes."""
        return self._request.protocol if self._request.transport is not None else None

    @property
    def unread(self) -> int:
        """How many bytes wait for `read`."""
        return self.content.total_bytes - self.received + sum(map(len, self._peeked))

    @property
    def remaining(self) -> int:
        """How many bytes of the body have not reached the parser yet."""
        return (self.length or 0) - self.content.total_bytes

    def past(self, size: int) -> None:
        """`size` more bytes have gone on, past the parser."""
        self.content.total_bytes += size
        self.received += size

    def passed(self) -> None:
        """All of it has gone past the parser."""
        connection = self.connection
        if isinstance(connection, BodySkipper):
            connection.skip_body()
        self.content.feed_eof()

    def waits(self, waiting: bool) -> None:
        """Begin or end to count the time for which the sender is silent."""
        self._waiting_since = self._loop.time() if waiting else None

    async def _receive(self) -> bytes:
        if self._ended:
            return b""
        await self._invite()
        self.waits(True)
        try:
            piece = await self.content.readany()
        except BridgeError:
            raise
        except asyncio.CancelledError as exc:
            if self.content.exception() is not exc:
                raise
            # Not we are cancelled: aiohttp ends the body so when the server shuts down.
            raise Unavailable("this server is stopping") from None
        except (OSError, RuntimeError) as exc:
            # What aiohttp raises once the connection is lost under a reader.
            raise ClientGone("the client closed the connection in mid-body") from exc
        except web.RequestPayloadError as exc:
            raise BadRequest(f"the body cannot be read: {exc}") from exc
        finally:
            self.waits(False)
        if piece:
            self.received += len(piece)
            if self._limit and self.received > self._limit:
                raise self._too_large()
            for digest in self._digests:
                digest.update(piece)
            return piece
        if self.length is not None and self.received != self.length:
            raise ClientGone(f"the body ended after {self.received} of {self.length} bytes")
        for digest in self._digests:
            digest.check()
        self._ended = True
        return b""

    def _too_large(self) -> PayloadTooLarge:
        return PayloadTooLarge(f"the body is larger than {self._limit} bytes")

    async def _invite(self) -> None:
        """Answer `Expect: 100-continue` (RFC 9110 10.1.1), only now that the body is wanted."""
        if not self._expects_continue:
            return
        self._expects_continue = False
        if self.content.total_bytes:
            return  # it came uninvited
        writer = self._request.writer
        await writer.write(_CONTINUE)
        # aiohttp holds an answer for begun once anything was written; this was not it.
        writer.output_size = 0

    def _schedule_watch(self) -> None:
        interval = min(_WATCH_INTERVAL, self._idle_timeout / 2)
        self._watch = self._loop.call_later(interval, self._look)

    def _look(self) -> None:
        if self._ended:
            return
        waiting_since = self._waiting_since
        if waiting_since is None:
            # Nobody reads: the other side is slow, and so the event loop has stopped to
            # watch this socket. Without a look, an upload whose client has gone would
            # hang until the other side moves.
            transport = self._request.transport
            if transport is not None and _peer_has_closed(transport):
                transport.abort()
                return
        elif self._loop.time() - waiting_since >= self._idle_timeout:
            self.give_up(RequestTimeout(f"no byte came for {self._idle_timeout:g} seconds"))
            return
        self._schedule_watch()


def _peer_has_closed(transport: asyncio.Transport) -> bool:
    """Whether the peer has closed its side (known only where TCP_INFO exists)."""
    if not hasattr(socket, "TCP_INFO"):
        return False
    sock = transport.get_extra_info("socket")
    if sock is not None and sock.family == socket.AF_UNIX:  # another worker, see `worker`
        hangup = select.poll()
        hangup.register(sock.fileno(), 0)  # that it has closed is always told
        return bool(hangup.poll(0))
    if sock is None or sock.family not in (socket.AF_INET, socket.AF_INET6):
        return False
    state = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
    return state in (_TCP_CLOSE, _TCP_CLOSE_WAIT)
