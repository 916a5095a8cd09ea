"""The record of a request: one log line and one count, made of the same facts."""

import logging
import re
import time
from collections.abc import Iterator, Mapping
from typing import Final, Protocol

from aiohttp import web

from immich_bridge.config import Config
from immich_bridge.errors import ClientGone, InternalError
from immich_bridge.http.client_address import client_address
from immich_bridge.http.lifecycle import Lifecycle
from immich_bridge.http.metrics import UPLOAD_OUTCOMES, Metrics, Running
from immich_bridge.logs import log_event, loggable_path

_logger = logging.getLogger("immich_bridge.access")

# An id goes into log lines and headers as it is.
_SANE_ID: Final = re.compile(r"[A-Za-z0-9._:+/=@~-]{1,128}")
_CORRELATION_HEADERS: Final = ("X-Correlation-ID", "x-immich-cid")
"""In which Immich v3 and v2 say what they call a request in their own log."""
_UNLOGGED: Final = frozenset({("GET", "/health"), ("HEAD", "/health")})


class UpstreamAnswer(Protocol):
    """An answer of Immich's."""

    waited: float | None
    """Seconds from the end of the request to the head; None when it came before the end."""

    @property
    def headers(self) -> Mapping[str, str]:
        """The fields of its head."""


class Record:
    """What those who handle a request find out about it."""

    error: str | None = None
    """Code of the error that it met."""
    outcome: str | None = None
    """What became of it where its status alone does not tell: a word for the log."""
    upload: str | None = None
    """Outcome of a background upload; empty until it has one."""
    upstream: UpstreamAnswer | None = None
    """Immich's answer to it."""
    sent_status: int | None = None
    """Status of an answer whose head is on its way while the handler still runs."""
    told_elsewhere = False
    """Whether another worker has the request, and counts and logs it."""
    bytes_tunnelled: int | None = None
    """Bytes that came in after an upgrade, past the body of the request."""

    def __init__(self, route: str, request_id: str) -> None:
        self.route = route
        self.request_id = request_id
        self.started = time.monotonic()


RECORD: web.RequestKey[Record] = web.RequestKey("record", Record)


def is_sane_id(text: str) -> bool:
    """Whether an id that somebody else made is short and plain enough for a log line."""
    return _SANE_ID.fullmatch(text) is not None


def finish(
    request: web.Request,
    response: web.StreamResponse | None,
    config: Config,
    metrics: Metrics | None,
) -> None:
    """Count and log a request that has ended; None: without an answer that went out whole."""
    record = request[RECORD]
    if record.told_elsewhere:
        return
    seconds = time.monotonic() - record.started
    if response is not None:
        status = response.status
    elif record.sent_status == 101:
        status = 101  # which end closes a tunnel is up to them
    else:
        # Cancelled, or unable to write: in both cases the client has gone.
        status = record.sent_status or ClientGone.status
        record.error = record.error or ClientGone.code
        record.outcome = record.outcome or ClientGone.code
    if record.upload == "":
        record.upload = UPLOAD_OUTCOMES.get(record.error or "", InternalError.code)
    if metrics is not None:
        _count(request, record, status, seconds, metrics)
    if _logger.isEnabledFor(logging.INFO):
        _log(request, record, status, seconds, config)


def running(lifecycle: Lifecycle) -> Iterator[Running]:
    """The requests under way, but for those that another worker tells of."""
    for request in lifecycle.under_way:
        record = request[RECORD]
        if not record.told_elsewhere:
            yield Running(record.route, _bytes_in(request, record), request.writer.output_size)


def _bytes_in(request: web.Request, record: Record) -> int:
    tunnelled = record.bytes_tunnelled
    return request.content.total_bytes if tunnelled is None else tunnelled


def _count(
    request: web.Request, record: Record, status: int, seconds: float, metrics: Metrics
) -> None:
    traffic = metrics.traffic[record.route]
    traffic.answered(request.method, status)
    traffic.seconds.observe(seconds)
    traffic.bytes_in += _bytes_in(request, record)
    traffic.bytes_out += request.writer.output_size
    if record.upstream is not None and record.upstream.waited is not None:
        traffic.first_byte.observe(record.upstream.waited)
    if record.error is not None:
        traffic.errors[record.error] += 1
    if record.upload is not None:
        metrics.uploads[record.upload] += 1


def _log(request: web.Request, record: Record, status: int, seconds: float, config: Config) -> None:
    if (request.method, request.raw_path) in _UNLOGGED:
        return
    waited = record.upstream.waited if record.upstream else None
    log_event(
        _logger,
        logging.INFO,
        "request",
        client=client_address(request, config.trusted_proxies),
        route=record.route,
        method=request.method,
        path=loggable_path(request.raw_path),
        status=status,
        bytes_in=_bytes_in(request, record),
        bytes_out=request.writer.output_size,
        duration_ms=_milliseconds(seconds),
        upstream_ms=None if waited is None else _milliseconds(waited),
        request_id=record.request_id,
        correlation_id=_correlation_id(record.upstream.headers) if record.upstream else None,
        upload=record.upload,
        error=record.error,
        outcome=record.outcome,
    )


def _correlation_id(headers: Mapping[str, str]) -> str | None:
    given = (headers.get(name, "") for name in _CORRELATION_HEADERS)
    return next(filter(is_sane_id, given), None)


def _milliseconds(seconds: float) -> float:
    return round(seconds * 1000, 1)
