"""What every request gets: an id, an answer even when something fails, and one log line."""

import asyncio
import logging
import re
import time
from typing import Final
from uuid import uuid4

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from immich_bridge.config import Config
from immich_bridge.errors import BridgeError, ClientGone, InternalError, MethodNotAllowed, NotFound
from immich_bridge.http.client_address import client_address
from immich_bridge.http.connection import check_framing, linger
from immich_bridge.http.error_answer import error_answer
from immich_bridge.http.lifecycle import LIFECYCLE, may_keep_alive
from immich_bridge.http.rate_limit import RATE_LIMIT_HEADERS
from immich_bridge.logs import log_event, loggable_path

REQUEST_ID: web.RequestKey[str] = web.RequestKey("request_id", str)
REQUEST_ID_HEADER: Final = "X-Request-Id"
OUTCOME: web.RequestKey[str] = web.RequestKey("outcome", str)
"""What became of the request where its status alone does not tell: a word for the log."""

SENT_STATUS: web.RequestKey[int] = web.RequestKey("sent_status", int)
"""Status of an answer whose head is on its way while the handler still runs."""
BYTES_IN: web.RequestKey[int] = web.RequestKey("bytes_in", int)
"""Bytes that came in after an upgrade, past the body of the request."""

_access_logger = logging.getLogger("immich_bridge.access")
_error_logger = logging.getLogger("immich_bridge.errors")

# An id goes into log lines and headers as it is.
_SANE_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._:+/=@~-]{1,128}")
_UNLOGGED: Final = frozenset({("GET", "/health"), ("HEAD", "/health")})


def request_middleware(config: Config) -> Middleware:
    """The one middleware: everything that is the same for every route."""

    @web.middleware
    async def answer_request(request: web.Request, handler: Handler) -> web.StreamResponse:
        started = time.monotonic()
        lifecycle = request.app[LIFECYCLE]
        request[REQUEST_ID] = _request_id(request)
        with lifecycle.request():
            try:
                response = await _answer(request, handler)
                if not response.prepared:
                    response.headers[REQUEST_ID_HEADER] = request[REQUEST_ID]
                    response.headers["Server"] = "immich-bridge"
                    response.headers.update(request.get(RATE_LIMIT_HEADERS, {}))
                    if not may_keep_alive(request, lifecycle):
                        response.force_close()
                await response.prepare(request)
                await response.write_eof()
            except (ConnectionError, asyncio.CancelledError):
                # Cancelled, or unable to write: in both cases the client has gone.
                status = request.get(SENT_STATUS, ClientGone.status)
                _log_access(request, config, status, started, ClientGone.code)
                raise
            _log_access(request, config, response.status, started, request.get(OUTCOME))
        if not request.content.is_eof():
            await linger(request)
        return response

    return answer_request


async def _answer(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        check_framing(request)
    except BridgeError as exc:
        request[OUTCOME] = exc.message
        response = error_answer(exc)
        response.force_close()  # where the next request begins is not certain
        return response
    try:
        return await handler(request)
    except ClientGone as exc:
        raise ConnectionResetError(exc.message) from exc
    except BridgeError as exc:
        request[OUTCOME] = exc.message
        return error_answer(exc)
    except web.HTTPMethodNotAllowed as exc:
        return error_answer(MethodNotAllowed(exc.method, exc.headers["Allow"]))
    except web.HTTPNotFound:
        return error_answer(NotFound("there is nothing here"))
    except ConnectionError:
        raise
    except Exception:
        _error_logger.exception(
            "unexpected error in %s %s (request %s)",
            request.method,
            loggable_path(request.raw_path),
            request[REQUEST_ID],
        )
        return error_answer(InternalError("an unexpected error occurred"))


def _request_id(request: web.Request) -> str:
    given = request.headers.get(REQUEST_ID_HEADER, "")
    return given if _SANE_REQUEST_ID.fullmatch(given) else uuid4().hex


def _log_access(
    request: web.Request, config: Config, status: int, started: float, outcome: str | None
) -> None:
    if not _access_logger.isEnabledFor(logging.INFO):
        return
    if (request.method, request.raw_path) in _UNLOGGED:
        return
    log_event(
        _access_logger,
        logging.INFO,
        "request",
        client=client_address(request, config.trusted_proxies),
        method=request.method,
        path=loggable_path(request.raw_path),
        status=status,
        bytes_in=request.get(BYTES_IN, request.content.total_bytes),
        bytes_out=request.writer.output_size,
        duration_ms=round((time.monotonic() - started) * 1000, 1),
        request_id=request[REQUEST_ID],
        outcome=outcome,
    )
