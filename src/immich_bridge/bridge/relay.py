"""Immich's answers on their way to the client: heads as they came, bodies as they come."""

import logging
from collections.abc import Iterable
from typing import Final

from aiohttp import (
    ClientConnectionResetError,
    ClientError,
    HttpVersion10,
    HttpVersion11,
    StreamReader,
    web,
)
from aiohttp.abc import AbstractStreamWriter
from aiohttp.client_proto import ResponseHandler
from aiohttp.http import StreamWriter

from immich_bridge.bridge.exchange import Answer
from immich_bridge.bridge.headers import RawHeaders, end_to_end, first_value, render_head, without
from immich_bridge.errors import BadGateway
from immich_bridge.http.lifecycle import LIFECYCLE, may_keep_alive
from immich_bridge.http.middleware import REQUEST_ID_HEADER
from immich_bridge.http.record import RECORD
from immich_bridge.splice import SourceEnded, move

_logger = logging.getLogger("immich_bridge.bridge")

_OURS: Final = frozenset({REQUEST_ID_HEADER.lower().encode()})
_BODILESS: Final = frozenset({204, 304})
_WORTH_A_CONNECTION: Final = 8 * 1024 * 1024
"""Bytes of an answer; the connection on which it came is not used again after a splice."""


class RelayedResponse(web.StreamResponse):
    """An answer whose head is written by us, without what aiohttp would add to it.

    `chunked` says that the length of the body is not known beforehand.
    """

    def __init__(
        self, status: int, reason: str, headers: RawHeaders, *, chunked: bool, has_body: bool
    ) -> None:
        super().__init__(status=status, reason=reason)
        self._raw_headers = headers
        self._unknown_length = chunked
        self._has_body = has_body

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        """Buffer the head; it goes out with the first piece of the body."""
        if self._eof_sent or self._payload_writer is not None:
            return self._payload_writer
        self._req = request
        writer = self._payload_writer = request.writer
        keep_alive = may_keep_alive(request, request.app[LIFECYCLE])  # type: ignore[attr-defined]
        framing: list[tuple[bytes, bytes]] = []
        if self._unknown_length and self._has_body:
            if request.version >= HttpVersion11:
                writer.enable_chunking()
                framing.append((b"Transfer-Encoding", b"chunked"))
            else:
                keep_alive = False  # the end of the connection is the end of the body
        if self.status == 101:
            pass  # the connection is a tunnel from here on
        elif not keep_alive:
            framing.append((b"Connection", b"close"))
        elif request.version == HttpVersion10:
            framing.append((b"Connection", b"keep-alive"))
        self._keep_alive = keep_alive
        request[RECORD].sent_status = self.status
        line = f"HTTP/1.1 {self.status} {self.reason}".encode("utf-8", "surrogateescape")
        assert isinstance(writer, StreamWriter)  # noqa: S101 - narrows the type
        writer._headers_buf = render_head(line, [*self._raw_headers, *framing])
        writer._headers_written = False
        return writer

    async def flush_head(self) -> None:
        """Send the head now, without waiting for the first piece of the body."""
        if self._payload_writer is not None:
            self._payload_writer.send_headers()


async def relay(
    request: web.Request,
    upstream: Answer,
    *,
    extra_headers: Iterable[tuple[bytes, bytes]] = (),
    fast_path: bool = False,
) -> RelayedResponse:
    """Pass `upstream` on to the client of `request`: status, head and body, as they come.

    With `fast_path` the bytes of a large body may pass this process by.

    An answer that breaks off at Immich breaks off at the client too: a proper end would
    pass it off as whole.
    """
    record = request[RECORD]
    record.upstream = upstream
    if upstream.status == 101:
        # To the client everything behind it would be the answer to its next request.
        raise BadGateway("Immich switched protocols, which nobody asked for")
    headers = [
        *without(end_to_end(upstream.raw_headers), _OURS),
        *extra_headers,
        (REQUEST_ID_HEADER.encode(), record.request_id.encode()),
    ]
    has_body = request.method != "HEAD" and upstream.status not in _BODILESS
    if upstream.status == 204:
        headers = without(headers, frozenset({b"content-length"}))  # RFC 9110 8.6
    response = RelayedResponse(
        upstream.status,
        upstream.reason or "",
        headers,
        chunked=first_value(headers, b"content-length") is None,
        has_body=has_body,
    )
    await response.prepare(request)
    if not has_body:
        return response
    content = upstream.content
    try:
        if fast_path and await _move(request, upstream):
            return response
        piece = content.read_nowait()
        if not piece and not content.at_eof():
            await response.flush_head()
            piece = await content.readany()
        while piece:
            await response.write(piece)
            piece = await content.readany()
    except ClientConnectionResetError:
        raise  # of a write: it is the client that has gone
    except (ClientError, SourceEnded) as exc:
        record.error = BadGateway.code
        record.outcome = "Immich broke off its answer"
        _logger.warning("Immich broke off its answer: %s: %s", type(exc).__name__, exc)
        if request.transport is not None:
            request.transport.abort()
    return response


async def _move(request: web.Request, upstream: Answer) -> bool:
    """Move the body to the client inside the kernel; whether all of it has gone that way."""
    connection, length = upstream.connection, upstream.content_length
    writer = request.writer
    if length is None or connection is None or connection.protocol is None:
        return False
    if upstream.content.is_eof() or not isinstance(writer, StreamWriter):
        return False
    body = _AnswerBody(upstream.content, connection.protocol, length)
    # Each packet at once: Immich closes a connection some seconds after it has written its answer,
    # so nothing of it is left waiting.
    return await move(body, writer, least=_WORTH_A_CONNECTION, wake_at=1) > 0


class _AnswerBody:
    """The body of an answer of Immich's, as `splice.Body`."""

    def __init__(self, content: StreamReader, connection: ResponseHandler, length: int) -> None:
        self.content = content
        self.connection = connection
        self._length = length
        self._read = 0

    @property
    def unread(self) -> int:
        return self.content.total_bytes - self._read

    @property
    def remaining(self) -> int:
        return self._length - self.content.total_bytes

    async def read(self) -> bytes:
        piece = await self.content.readany()
        self._read += len(piece)
        self.waits(False)  # to read may have let the connection go on, and count its silence
        return piece

    def past(self, size: int) -> None:
        self.content.total_bytes += size
        self._read += size

    def passed(self) -> None:
        """The connection is not used again."""

    def waits(self, waiting: bool) -> None:
        # The timer of Immich's silence is set anew by bytes that the protocol sees.
        if waiting:
            self.connection._reschedule_timeout()
        else:
            self.connection._drop_timeout()
