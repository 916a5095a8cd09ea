"""Immich's answers on their way to the client: heads as they came, bodies as they come."""

import logging
from collections.abc import Iterable
from typing import Final

from aiohttp import (
    ClientConnectionResetError,
    ClientError,
    ClientResponse,
    HttpVersion10,
    HttpVersion11,
    web,
)
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http import StreamWriter

from immich_bridge.bridge.headers import RawHeaders, end_to_end, first_value, render_head, without
from immich_bridge.errors import BadGateway
from immich_bridge.http.lifecycle import LIFECYCLE, may_keep_alive
from immich_bridge.http.middleware import OUTCOME, REQUEST_ID, REQUEST_ID_HEADER, SENT_STATUS

_logger = logging.getLogger("immich_bridge.bridge")

_OURS: Final = frozenset({REQUEST_ID_HEADER.lower().encode()})
_BODILESS: Final = frozenset({204, 304})


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
        if not keep_alive:
            framing.append((b"Connection", b"close"))
        elif request.version == HttpVersion10:
            framing.append((b"Connection", b"keep-alive"))
        self._keep_alive = keep_alive
        request[SENT_STATUS] = self.status
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
    upstream: ClientResponse,
    *,
    extra_headers: Iterable[tuple[bytes, bytes]] = (),
) -> RelayedResponse:
    """Pass `upstream` on to the client of `request`: status, head and body, as they come.

    An answer that breaks off at Immich breaks off at the client too: a proper end would
    pass it off as whole.
    """
    if upstream.status == 101:
        # To the client everything behind it would be the answer to its next request.
        raise BadGateway("Immich switched protocols, which nobody asked for")
    headers = [
        *without(end_to_end(upstream.raw_headers), _OURS),
        *extra_headers,
        (REQUEST_ID_HEADER.encode(), request[REQUEST_ID].encode()),
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
        piece = content.read_nowait()
        if not piece and not content.at_eof():
            await response.flush_head()
            piece = await content.readany()
        while piece:
            await response.write(piece)
            piece = await content.readany()
    except ClientConnectionResetError:
        raise  # of a write: it is the client that has gone
    except ClientError as exc:
        request[OUTCOME] = "Immich broke off its answer"
        _logger.warning("Immich broke off its answer: %s", type(exc).__name__)
        if request.transport is not None:
            request.transport.abort()
    return response
