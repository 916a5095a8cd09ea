"""Moving bytes from one connection to another inside the kernel (Linux, plain TCP).

The bytes of a photo need not pass through this process: `splice(2)` moves them from a socket
into a pipe and on into the other socket by reference. One function does it: `move` moves the
rest of a body as far as that is possible, and leaves the remainder to whoever reads it.
"""

import asyncio
import fcntl
import os
import socket
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import Final, Protocol

from aiohttp import StreamReader
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http import StreamWriter

WORTH_IT: Final = 1024 * 1024
"""Bytes; below this the pipe and the waits cost more than copying."""

_LARGEST_PIPE: Final = 1024 * 1024
_SMALLEST_PIPE: Final = 64 * 1024
"""What a pipe has without being asked."""
_ALL_PIPES: Final = 48 * 1024 * 1024
"""What the pipes may hold together. With more than 64 MiB in the pipes of one user, Linux
makes new ones of two pages."""
_TURN_BYTES: Final = 4 * 1024 * 1024
"""Bytes that are moved before others get their turn on the event loop."""

_WAKE_BYTES: Final = 512 * 1024
"""So many bytes of a fast sender come before we are woken: woken for each packet, a large upload
took a quarter more CPU and a quarter of its speed (two processors, shared with both ends)."""
_WAKE_SECONDS: Final = 0.1
"""Of a slow sender what has come by then is moved on."""

_POSSIBLE: Final = hasattr(os, "splice")
# 0 on systems that have no splice, where it is never used.
_FLAGS: Final = getattr(os, "SPLICE_F_MOVE", 0) | getattr(os, "SPLICE_F_NONBLOCK", 0)


class SourceEnded(Exception):
    """The sender closed its connection, or lost it, before all bytes had come."""


class Body(Protocol):
    """A body on its way in, as far as it concerns whoever moves it on."""

    content: StreamReader
    """Where its bytes come out that went through the parser."""

    @property
    def connection(self) -> BaseProtocol | None:
        """The connection on which it comes."""

    @property
    def unread(self) -> int:
        """How many of its bytes wait for `read`."""

    @property
    def remaining(self) -> int:
        """How many of its bytes have not reached the parser yet."""

    async def read(self) -> bytes:
        """The next piece of it."""

    def past(self, size: int) -> None:
        """`size` more bytes of it have gone to the other side, past the parser."""

    def passed(self) -> None:
        """All of it has gone to the other side."""

    def waits(self, waiting: bool) -> None:
        """Nothing comes from its sender, or again something."""


def share_pipes(processes: int) -> None:
    """Leave room for the pipes of other processes of this user, `processes` in all."""
    _Pipe.most_allotted = _ALL_PIPES // processes


async def move(
    body: Body, writer: StreamWriter, *, least: int = WORTH_IT, wake_at: int = _WAKE_BYTES
) -> int:
    """Move what is left of `body` to where `writer` writes; how many bytes passed the parser by.

    None do where a condition is missing: a system that can splice, TCP without TLS on both
    sides, `least` bytes that are still to come. While bytes come fast they are moved `wake_at`
    at a time. Raises what `body.read` raises, `SourceEnded`, and `ConnectionError` when the
    other side takes no more.
    """
    connection, source, sink = body.connection, None, writer.transport
    if connection is not None:
        source = connection.transport
    if connection is None or source is None or sink is None or body.remaining < least:
        return 0
    if not (_POSSIBLE and _is_plain_tcp(source) and _is_plain_tcp(sink)):
        return 0
    moved = 0

    def count(size: int) -> None:
        nonlocal moved
        moved += size
        body.past(size)
        writer.output_size += size

    body.waits(False)
    try:
        await _hand_on_what_is_parsed(body, connection, source, writer)
        if body.remaining:
            body.waits(False)  # to read what was parsed may have begun to count again
            splicing = asyncio.create_task(
                _flush_and_splice(source, writer, sink, body, count, wake_at)
            )
            failing = asyncio.create_task(_failure(body.content))
            try:
                await asyncio.wait({splicing, failing}, return_when=asyncio.FIRST_COMPLETED)
                if not splicing.done():
                    await body.read()  # raises what happened
                splicing.result()
            finally:
                splicing.cancel()
                failing.cancel()
                await asyncio.gather(splicing, failing, return_exceptions=True)
    finally:
        if not source.is_closing():
            source.resume_reading()
    return moved


async def _hand_on_what_is_parsed(
    body: Body, connection: BaseProtocol, source: asyncio.Transport, writer: StreamWriter
) -> None:
    """Stop to read from `source`, and write what was read before."""
    source.pause_reading()
    while body.unread or connection._reading_paused:
        piece = await body.read()
        # The parser lets the connection read again once its buffer is empty.
        if not source.is_closing():
            source.pause_reading()
        # Not waiting until it is gone, during which nothing else would be noticed.
        await writer.write(piece, drain=False)


async def _failure(content: StreamReader) -> None:
    """Return when a body is said to have failed: its sender silent, this server stopping."""
    if content.exception() is None:
        await content.wait_eof()


async def _flush_and_splice(
    source: asyncio.Transport,
    writer: StreamWriter,
    sink: asyncio.Transport,
    body: Body,
    moved: Callable[[int], None],
    wake_at: int,
) -> None:
    await _flush(writer, sink)
    await _splice(source, sink, body, moved, wake_at)


async def _flush(writer: StreamWriter, sink: asyncio.Transport) -> None:
    """Return when the kernel has all that was written."""
    writer.send_headers()
    if sink.is_closing():
        raise ConnectionResetError("the connection was lost")
    low, high = sink.get_write_buffer_limits()
    sink.set_write_buffer_limits(0)
    try:
        # aiohttp has one future for all who wait: cancelled, it would cancel the next of them.
        await asyncio.shield(asyncio.create_task(writer.drain()))
    finally:
        if not sink.is_closing():  # uvloop's transports take no call then
            sink.set_write_buffer_limits(high, low)


async def _splice(
    source: asyncio.Transport,
    sink: asyncio.Transport,
    body: Body,
    moved: Callable[[int], None],
    wake_at: int,
) -> None:
    count, waits = body.remaining, body.waits
    with ExitStack() as stack:
        try:
            reader = stack.enter_context(_Duplicate(source))
            writer = stack.enter_context(_Duplicate(sink))
            pipe = stack.enter_context(_Pipe())
        except OSError:
            return  # out of descriptors; the bytes can still be copied
        in_this_turn = 0
        while count:
            size = pipe.fill(reader.descriptor, count)
            if size is None:
                waits(True)
                await reader.readable(min(count, wake_at))
                waits(False)
                in_this_turn = 0
                continue
            count -= size
            in_this_turn += size
            while size:
                # What is counted has arrived: bytes that are lost with the pipe have not.
                drained = pipe.drain(writer.descriptor, size)
                moved(drained)
                size -= drained
                if size:
                    await writer.writable()
                    in_this_turn = 0
            if count and in_this_turn >= _TURN_BYTES:
                await asyncio.sleep(0)
                in_this_turn = 0
        # In the same step as the last byte: the answer to it may be here in the next one.
        body.passed()


def _is_plain_tcp(transport: asyncio.Transport) -> bool:
    if transport.is_closing() or transport.get_extra_info("ssl_object"):
        return False
    sock = transport.get_extra_info("socket")
    return (
        sock is not None
        and sock.type == socket.SOCK_STREAM
        and sock.family in (socket.AF_INET, socket.AF_INET6)
    )


class _Duplicate:
    """The socket of a transport under a second descriptor, which the event loop lets us watch."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._least = 1

    def __enter__(self) -> "_Duplicate":
        self._socket = socket.socket(
            fileno=os.dup(self._transport.get_extra_info("socket").fileno())
        )
        self.descriptor = self._socket.fileno()
        return self

    def __exit__(self, *_: object) -> None:
        self._wake_at(1)  # whoever reads next wants every byte
        self._socket.close()

    async def readable(self, least: int) -> None:
        """Return when there are `least` bytes, or fewer after a while, or their end."""
        self._wake_at(least)
        timer = self._loop.call_later(_WAKE_SECONDS, self._wake_at, 1)
        try:
            await self._ready(self._loop.add_reader, self._loop.remove_reader)
        finally:
            timer.cancel()

    async def writable(self) -> None:
        """Return when there is room for bytes."""
        await self._ready(self._loop.add_writer, self._loop.remove_writer)

    def _wake_at(self, least: int) -> None:
        if least != self._least:
            self._least = least
            with suppress(OSError):  # of a connection that is lost, which is told otherwise
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, least)

    async def _ready(self, watch: Callable[..., None], forget: Callable[[int], object]) -> None:
        ready: asyncio.Future[None] = self._loop.create_future()

        def on_ready() -> None:
            if not ready.done():
                ready.set_result(None)

        watch(self.descriptor, on_ready)
        try:
            await ready
        finally:
            forget(self.descriptor)


class _Pipe:
    """A pipe inside the kernel; it is empty before `fill`."""

    most_allotted = _ALL_PIPES
    _allotted = 0
    """Bytes that all pipes may hold."""

    def __enter__(self) -> "_Pipe":
        self._out, self._in = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._size = _SMALLEST_PIPE
        wanted = min(_LARGEST_PIPE, (_Pipe.most_allotted - _Pipe._allotted) // 16)
        if wanted > _SMALLEST_PIPE:
            with suppress(OSError):  # not more than this system allows
                self._size = fcntl.fcntl(self._in, fcntl.F_SETPIPE_SZ, wanted)
        _Pipe._allotted += self._size
        return self

    def __exit__(self, *_: object) -> None:
        _Pipe._allotted -= self._size
        os.close(self._in)
        os.close(self._out)

    def fill(self, source: int, count: int) -> int | None:
        """Take up to `count` bytes out of a socket; how many, None if there are none yet."""
        try:
            size: int = os.splice(source, self._in, min(count, self._size), flags=_FLAGS)
        except BlockingIOError:
            return None
        except OSError as exc:
            raise SourceEnded(exc.strerror) from exc
        if size == 0:
            raise SourceEnded("the connection was closed")
        return size

    def drain(self, sink: int, count: int) -> int:
        """Put up to `count` bytes into a socket; how many it took."""
        try:
            size: int = os.splice(self._out, sink, count, flags=_FLAGS)
        except BlockingIOError:
            return 0
        except OSError as exc:
            raise ConnectionResetError(exc.errno, exc.strerror) from exc
        return size
