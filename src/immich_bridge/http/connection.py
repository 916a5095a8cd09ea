"""One connection of a client: aiohttp's protocol, with our answers to malformed requests."""

import asyncio
import logging
import re
from contextlib import suppress
from typing import Final
from uuid import uuid4

from aiohttp import HttpVersion11, web
from aiohttp.http import HttpRequestParser
from aiohttp.http_exceptions import HttpProcessingError, InvalidURLError

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
_MAX_HEADERS: Final = 1024
# Also bounds how long a half-sent head may take.
_KEEPALIVE_SECONDS: Final = 75.0


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
        self._metrics = metrics
        self._bufsize = read_bufsize  # aiohttp keeps it too, but not in every release

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        # Broken framing in mid-body: aiohttp queues the error behind the request under way,
        # which would go on to wait for a body that can no longer come.
        request = self._current_request
        if self._messages and request is not None and not request.content.is_eof():
            error = getattr(self._messages[-1][0], "exc", None)
            if error is not None:
                request.content.set_exception(BadRequest(_reason(error)))

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


def check_framing(request: web.BaseRequest) -> None:
    """Raise unless the length of the body means the same to us and to whoever comes next.

    The parser takes any list of transfer codings that ends in `chunked`, and undoes that
    one alone: the rest would be passed on as if it were the content (RFC 9112 6.1).
    """
    if request.method == "CONNECT":
        raise NotImplementedHere("CONNECT asks for a tunnel, and none is offered here")
    codings = ",".join(request.headers.getall("Transfer-Encoding", ())).strip().lower()
    if codings and (codings != "chunked" or request.version < HttpVersion11):
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
