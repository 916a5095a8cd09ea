"""One connection of a client: aiohttp's protocol, with our answers to malformed requests."""

import asyncio
import logging
import re
from contextlib import suppress
from itertools import islice
from typing import Any, Final
from uuid import uuid4

from aiohttp import HttpVersion10, HttpVersion11, StreamReader, web
from aiohttp.http import HttpRequestParser
from aiohttp.http_exceptions import BadHttpMessage, HttpProcessingError, InvalidURLError
from aiohttp.streams import EMPTY_PAYLOAD
from aiohttp.web_protocol import _ErrInfo
from yarl import URL

from immich_bridge.body import BodySkipper
from immich_bridge.errors import BadRequest, BridgeError, NotImplementedHere
from immich_bridge.http.client_address import peer_address
from immich_bridge.http.error_answer import error_answer
from immich_bridge.http.metrics import OTHER, Metrics
from immich_bridge.logs import log_event

_logger = logging.getLogger("immich_bridge.access")

_ROUTE: Final = "malformed"
"""The route of what cannot be parsed, to the log and the metrics."""

LINGER_SECONDS: Final = 2.0
LINGER_BYTES: Final = 256 * 1024

# Heads of 32 KiB pass: web clients of Immich carry long cookies and queries.
_MAX_HEAD: Final = 32 * 1024
_MAX_HEAD_IN_ALL: Final = 64 * 1024
_MAX_HEADERS: Final = 1024
# Also bounds how long a half-sent head may take.
_KEEPALIVE_SECONDS: Final = 75.0
_BLANK_LINE: Final = b"\r\n\r\n"


class Connection(web.RequestHandler, BodySkipper):
    """Answers what cannot be parsed with our JSON and one log line.

    aiohttp's own way is a text answer and a traceback.
    """

    def __init__(
        self,
        manager: web.Server,
        *,
        loop: asyncio.AbstractEventLoop,
        read_bufsize: int,
        metrics: Metrics | None = None,
        internal: bool = False,
    ) -> None:
        super().__init__(
            manager,
            loop=loop,
            read_bufsize=read_bufsize,
            max_line_size=_MAX_HEAD,
            max_field_size=_MAX_HEAD,
            max_headers=_MAX_HEADERS,
            keepalive_timeout=_KEEPALIVE_SECONDS,
            # Bodies pass as they came; what a digest covers are the bytes on the wire.
            auto_decompress=False,
            # `linger` below does it, with a bound on the bytes.
            lingering_time=0.0,
            access_log=None,  # type: ignore[arg-type]  # None turns it off
        )
        self._make_request = manager.request_factory
        self._request_factory = self._request_with_a_path
        self._metrics = metrics
        self.internal = internal
        """Whether another worker of this server is at the other end, not a client."""
        self._bufsize = read_bufsize  # aiohttp keeps it too, but not in every release
        self._chunks: StreamReader | None = None  # the last body, while it comes in chunks
        self._last_bytes = b""
        self._body: StreamReader = EMPTY_PAYLOAD  # the last one
        self._parsed = (0, 0)  # heads, and bytes of the last body
        self._unparsed = 0  # bytes that came since then
        self._refused = False  # for a head that does not end; megabytes of it may be on the way
        self.misread = False
        """Whether the parser may take what comes next for something else than it is."""

    def data_received(self, data: bytes) -> None:
        if self._refused or self._force_close or self._close:
            return  # aiohttp takes nothing any more, also of a body that is still coming
        known = len(self._messages)
        super().data_received(data)
        self._bound_head(len(data))
        end, self._last_bytes = self._last_bytes, (self._last_bytes + data[-4:])[-4:]
        messages = [*islice(self._messages, known, None)]
        if messages or self._chunks is not None:
            self._mistrust(messages, end[-3:], data)
        # Broken framing in mid-body: aiohttp queues the error behind the request under way,
        # or about to be, which would go on to wait for a body that can no longer come.
        error = getattr(self._messages[-1][0], "exc", None) if self._messages else None
        if error is not None:
            bodies = [body for _, body in self._messages]
            if self._current_request is not None:
                bodies.append(self._current_request.content)
            for body in bodies:
                if not body.is_eof():
                    # Later: who was just woken by the end of a chunk goes to sleep once more,
                    # whatever has happened to the body meanwhile.
                    self._loop.call_soon(body.set_exception, BadRequest(_reason(error)))

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Send the end of an answer; and look at what was kept behind a refused upgrade."""
        kept = self._upgraded
        finished = await super().finish_response(request, resp, start_time)
        if kept:
            self._mistrust([*self._messages])
        return finished

    def _request_with_a_path(self, message: Any, *details: Any) -> web.BaseRequest:
        """The request of `message`, where a host alone means its root (RFC 9110 4.2.3)."""
        url = message.url
        if url.absolute and not url.relative().path:
            root = URL.build(path="/", query_string=url.raw_query_string, encoded=True)
            message = message._replace(url=url.join(root))
        return self._make_request(message, *details)

    def _bound_head(self, size: int) -> None:
        """Refuse a head that does not end, and trailers: the parser keeps them until they do.

        It bounds each field and their number, which is 32 MiB for a head in all.
        """
        if self._payload_parser is not None or self._upgraded:
            return  # a tunnel
        if self._messages:
            # Kept, since aiohttp knows of no request for a moment once it has taken it from here.
            self._body = self._messages[-1][1]
        parsed = (self._request_count, self._body.total_bytes)
        if parsed != self._parsed:
            self._parsed, self._unparsed = parsed, 0
            return
        self._unparsed += size
        if self._unparsed > _MAX_HEAD_IN_ALL:
            self._refused = True
            error = BadHttpMessage("Request head is too large")
            self._messages.append((_ErrInfo(error.code, error, error.message), EMPTY_PAYLOAD))
            if self._waiter is not None and not self._waiter.done():
                self._waiter.set_result(None)

    def _mistrust(self, messages: list[tuple[Any, StreamReader]], *received: bytes) -> None:
        """See to it that nothing is served that aiohttp's parser, in C, has read wrong.

        It makes the last trailer field of a chunked body a field of the next request. So that
        one gets a parser of its own; unless it came together with the trailers, where only
        the end of the connection helps. So it does where bytes came behind an upgrade to
        what is no WebSocket, for these are lost. `messages` were made of `received`.
        """
        for message, body in messages:
            if self._chunks is not None:
                self.misread = True
            self._chunks = body if getattr(message, "chunked", False) else None
            if getattr(message, "upgrade", False):
                # Only if the first blank line of all is the end of it, nothing came behind.
                is_all = b"".join(received).find(_BLANK_LINE) == sum(map(len, received)) - 4
                is_websocket = message.headers.get("Upgrade", "").lower() == "websocket"
                self.misread |= not is_all and not is_websocket
        if self._chunks is not None and self._chunks.is_eof():
            if self._last_bytes == _BLANK_LINE:
                self.skip_body()
            else:
                self.misread = True  # there is more behind it
            self._chunks = None

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """The answer to a request that is not HTTP; the connection is closed after it."""
        if isinstance(exc, ConnectionError):
            raise exc  # the client has gone, and `start` ends the connection
        if status != BadRequest.status:
            raise ConnectionResetError("no answer is possible") from exc
        request._version = HttpVersion11  # nothing was parsed; aiohttp answers as HTTP/1.0
        reason = _reason(exc)
        response = error_answer(BadRequest(reason))
        request_id = response.headers["X-Request-Id"] = uuid4().hex
        response.headers["Server"] = "immich-bridge"
        response.force_close()
        log_event(
            _logger,
            logging.INFO,
            "malformed request",
            client=peer_address(request),
            route=_ROUTE,
            status=response.status,
            reason=reason,
            request_id=request_id,
        )
        if self._metrics is not None:
            traffic = self._metrics.traffic[_ROUTE]
            traffic.answered(OTHER, response.status)
            traffic.errors[BadRequest.code] += 1
        return response

    def skip_body(self) -> None:
        """Take what comes next for the beginning of a request: the body passed the parser by."""
        self._parser = HttpRequestParser(
            self,
            self._loop,
            self._bufsize,
            max_line_size=_MAX_HEAD,
            max_field_size=_MAX_HEAD,
            max_headers=_MAX_HEADERS,
            payload_exception=web.RequestPayloadError,
            auto_decompress=False,
            max_msg_queue_size=self._max_msg_queue_size,
        )

    @property
    def idle(self) -> bool:
        """Whether the connection waits for its next request."""
        return self._waiter is not None and not self._messages


def _reason(error: BaseException | None) -> str:
    """What the parser found wrong, without the client's bytes, which may hold a key."""
    if isinstance(error, InvalidURLError):
        return "Malformed request target"
    text = error.message if isinstance(error, HttpProcessingError) else ""
    return re.split(r"[:\n]", text, maxsplit=1)[0].strip() or "Malformed request"


def is_internal(request: web.BaseRequest) -> bool:
    """Whether another worker has passed `request` on: the socket it came over says so."""
    connection = request.protocol
    return isinstance(connection, Connection) and connection.internal


def check_framing(request: web.BaseRequest) -> None:
    """Raise unless the length of the body means the same to us and to whoever comes next.

    The parser takes any list of transfer codings that ends in `chunked`, and undoes that
    one alone: the rest would be passed on as if it were the content (RFC 9112 6.1). It takes
    HTTP/0.9 and HTTP/2.0 too, in whose messages it reads what HTTP/1.1 would mean.
    """
    if request._version not in (HttpVersion10, HttpVersion11):
        request._version = HttpVersion11  # aiohttp would answer in the version of the request
        raise BadRequest("The version may only be HTTP/1.0 or HTTP/1.1")
    if request.method == "CONNECT":
        raise NotImplementedHere("CONNECT asks for a tunnel, and none is offered here")
    codings = [value.lower() for value in request.headers.getall("Transfer-Encoding", ())]
    understood = codings == ["chunked"] and request._message.chunked
    if codings and (not understood or request.version < HttpVersion11):
        raise BadRequest("Transfer-Encoding may only be chunked, and only in HTTP/1.1")


async def linger(request: web.BaseRequest) -> None:
    """Let the client read an answer that came before the end of its body, then let go.

    Closing at once would reset the connection, and the reset may overtake the answer
    (RFC 9112 9.6). So a small rest of the body is read; of a larger one no more than what
    the buffers take, while our side is already closed, until the client closes its own.
    """
    transport = request.transport
    content = request.content
    if transport is None:
        return
    with suppress(TimeoutError, ConnectionError, web.RequestPayloadError, BridgeError):
        async with asyncio.timeout(LINGER_SECONDS):
            discarded = 0
            while not content.is_eof() and discarded < LINGER_BYTES:
                discarded += len(await content.readany())
            if not content.is_eof() and transport.can_write_eof():
                transport.write_eof()
                await asyncio.get_running_loop().create_future()  # until the client has gone
