"""What every request gets: an id, an answer even when something fails, and one record."""

import logging
from typing import Final
from uuid import uuid4

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from immich_bridge.config import Config
from immich_bridge.errors import BridgeError, ClientGone, InternalError, MethodNotAllowed, NotFound
from immich_bridge.http.connection import check_framing, is_internal, linger
from immich_bridge.http.error_answer import error_answer
from immich_bridge.http.lifecycle import LIFECYCLE, may_keep_alive
from immich_bridge.http.metrics import Metrics
from immich_bridge.http.rate_limit import RATE_LIMIT_HEADERS
from immich_bridge.http.record import RECORD, Record, finish, is_sane_id
from immich_bridge.http.routing import route_label
from immich_bridge.logs import loggable_path

REQUEST_ID_HEADER: Final = "X-Request-Id"
PEER_HEADER: Final = "X-Immich-Bridge-Peer"
"""In which a worker tells another one who is at the other end of its connection. From anybody
else it means nothing."""

_error_logger = logging.getLogger("immich_bridge.errors")


def request_middleware(config: Config, metrics: Metrics | None) -> Middleware:
    """The one middleware: everything that is the same for every route."""

    @web.middleware
    async def answer_request(request: web.Request, handler: Handler) -> web.StreamResponse:
        record = request[RECORD] = Record(route_label(request), _request_id(request))
        if is_internal(request):
            request._cache["remote"] = request.headers.get(PEER_HEADER, "")
        lifecycle = request.app[LIFECYCLE]
        with lifecycle.request(request):
            answered: web.StreamResponse | None = None
            try:
                response = await _answer(request, handler)
                if not response.prepared:
                    response.headers[REQUEST_ID_HEADER] = record.request_id
                    response.headers["Server"] = "immich-bridge"
                    response.headers.update(request.get(RATE_LIMIT_HEADERS, {}))
                    if not may_keep_alive(request, lifecycle):
                        response.force_close()
                await response.prepare(request)
                await response.write_eof()
                answered = response
            finally:
                finish(request, answered, config, metrics)
        if not request.content.is_eof():
            await linger(request)
        return response

    return answer_request


async def _answer(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        check_framing(request)
    except BridgeError as exc:
        response = _refuse(request, exc)
        response.force_close()  # where the next request begins is not certain
        return response
    try:
        return await handler(request)
    except ClientGone as exc:
        raise ConnectionResetError(exc.message) from exc
    except BridgeError as exc:
        return _refuse(request, exc)
    except web.HTTPMethodNotAllowed as exc:
        return _refuse(request, MethodNotAllowed(exc.method, exc.headers["Allow"]))
    except web.HTTPNotFound:
        return _refuse(request, NotFound("there is nothing here"))
    except ConnectionError:
        raise
    except Exception:
        _error_logger.exception(
            "unexpected error in %s %s (request %s)",
            request.method,
            loggable_path(request.raw_path),
            request[RECORD].request_id,
        )
        return _refuse(request, InternalError("an unexpected error occurred"))


def _refuse(request: web.Request, error: BridgeError) -> web.Response:
    record = request[RECORD]
    record.error = error.code
    record.outcome = error.message
    return error_answer(error)


def _request_id(request: web.Request) -> str:
    given = request.headers.get(REQUEST_ID_HEADER, "")
    return given if is_sane_id(given) else uuid4().hex
