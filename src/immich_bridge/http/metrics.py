"""What the server counts, and how Prometheus reads it.

What is counted is kept as plain numbers where it arises, all on the event loop: adding one
to a number costs a tenth of what a lock and a look-up of labels do. They get their names and
labels when a scrape reads them. The values of every label are known beforehand, whatever
clients send.
"""

import sys
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from http import HTTPStatus
from itertools import accumulate
from typing import Final, NamedTuple

from prometheus_client import CollectorRegistry, Info, Metric, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from immich_bridge import __version__
from immich_bridge.errors import (
    BadGateway,
    BadRequest,
    ChecksumMismatch,
    ClientGone,
    GatewayTimeout,
    InternalError,
    PayloadTooLarge,
    RequestTimeout,
    Unauthorized,
    Unavailable,
    UnsupportedMediaType,
)

OTHER: Final = "other"
"""The label of what has none of its own."""
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_STATUSES: Final = {*map(int, HTTPStatus), ClientGone.status}

_DURATION_BUCKETS: Final = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0),
)
"""Seconds: from a thumbnail out of memory to a long video over a phone's uplink."""

UPLOAD_OUTCOMES: Final = {
    BadRequest.code: "bad_request",
    Unauthorized.code: "unauthorized",
    UnsupportedMediaType.code: "unsupported_media_type",
    PayloadTooLarge.code: "too_large",
    ChecksumMismatch.code: "checksum_mismatch",
    ClientGone.code: "client_gone",
    RequestTimeout.code: "client_timeout",
    BadGateway.code: "upstream_gone",
    Unavailable.code: "upstream_unavailable",
    GatewayTimeout.code: "upstream_timeout",
    InternalError.code: "internal_error",
}
"""Code of the error that ended a background upload -> its outcome."""
CREATED: Final = "created"
DUPLICATE: Final = "duplicate"
REFUSED: Final = "refused"
"""Immich's own answer is an error."""

Labels = Sequence[str]
Reading = Iterable[tuple[Labels, float]]
"""Values of the labels -> value of the metric."""


class Distribution:
    """How often a value fell between which bounds: what a histogram is made of."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float] = _DURATION_BUCKETS) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count one value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def buckets(self) -> list[tuple[str, float]]:
        """Upper bound -> how many values lie below it or at it."""
        names = [*map(floatToGoString, self.bounds), "+Inf"]
        return list(zip(names, map(float, accumulate(self.counts)), strict=True))


class Traffic:
    """What went over one route."""

    __slots__ = ("answers", "bytes_in", "bytes_out", "errors", "first_byte", "seconds")

    def __init__(self) -> None:
        self.answers: dict[tuple[str, int], int] = {}
        """By method and status; `OTHER` and 0 stand for those that are not known."""
        self.errors: dict[str, int] = defaultdict(int)
        self.seconds = Distribution()
        self.first_byte = Distribution()
        self.bytes_in = 0
        self.bytes_out = 0

    def answered(self, method: str, status: int) -> None:
        """Count one answer."""
        try:
            self.answers[method, status] += 1
        except KeyError:  # the first one, or not known
            known = (method if method in _METHODS else OTHER, status if status in _STATUSES else 0)
            self.answers[known] = self.answers.get(known, 0) + 1


class Running(NamedTuple):
    """A request under way, as far as it has come."""

    route: str
    bytes_in: int
    bytes_out: int


class Metrics:
    """The numbers of one server, in a registry of their own."""

    def __init__(self, event_loop: str) -> None:
        self.registry = CollectorRegistry()
        self.traffic: dict[str, Traffic] = defaultdict(Traffic)
        """By route."""
        self.uploads = dict.fromkeys([CREATED, DUPLICATE, REFUSED, *UPLOAD_OUTCOMES.values()], 0)
        """Background uploads by outcome."""
        self.running: Callable[[], Iterable[Running]] = lambda: ()
        """Reads the requests under way."""
        self.before_scrape: list[Callable[[], Awaitable[None]]] = []
        """Awaited before each scrape, for what cannot be read in passing."""
        self.registry.register(_TrafficCollector(self))
        ProcessCollector(registry=self.registry)
        build = Info("immich_bridge_build", "What is running.", registry=self.registry)
        python = ".".join(map(str, sys.version_info[:3]))
        build.info({"version": __version__, "python": python, "event_loop": event_loop})
        self.counter(
            "immich_bridge_background_uploads",
            "Background uploads that have ended, by outcome; refused: Immich answered an error.",
            lambda: (((outcome,), count) for outcome, count in self.uploads.items()),
            labels=["outcome"],
        )

    def counter(
        self,
        name: str,
        documentation: str,
        read: Callable[[], Reading],
        labels: Labels = (),
    ) -> None:
        """Expose what `read` gives as a counter; `_total` is added to its name."""
        family = CounterMetricFamily
        self.registry.register(_Reader(lambda: family(name, documentation, labels=labels), read))

    def gauge(
        self,
        name: str,
        documentation: str,
        read: Callable[[], Reading],
        labels: Labels = (),
    ) -> None:
        """Expose what `read` gives as a gauge."""
        family = GaugeMetricFamily
        self.registry.register(_Reader(lambda: family(name, documentation, labels=labels), read))


class _Reader(Collector):
    """One metric, made anew for each scrape out of what `read` gives then."""

    def __init__(
        self,
        family: Callable[[], CounterMetricFamily | GaugeMetricFamily],
        read: Callable[[], Reading],
    ) -> None:
        self._family = family
        self._read = read

    def collect(self) -> Iterator[Metric]:
        family = self._family()
        for labels, value in self._read():
            family.add_metric(labels, value)
        yield family


class _TrafficCollector(Collector):
    """The metrics of all routes, with the bytes of requests that are still under way.

    A long upload would else show up in one scrape, as if it had all come at its end.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        requests = CounterMetricFamily(
            "immich_bridge_requests",
            "Requests that have ended; 499: the client left before the answer.",
            labels=["route", "method", "status"],
        )
        errors = CounterMetricFamily(
            "immich_bridge_errors",
            "Requests that failed here or on the way to Immich, by code; not those it refused.",
            labels=["route", "error"],
        )
        in_flight = GaugeMetricFamily(
            "immich_bridge_requests_in_flight",
            "Requests under way, WebSockets among them.",
            labels=["route"],
        )
        seconds = HistogramMetricFamily(
            "immich_bridge_request_duration_seconds",
            "From the head of a request to the end of its answer.",
            labels=["route"],
        )
        first_byte = HistogramMetricFamily(
            "immich_bridge_upstream_first_byte_seconds",
            "From the end of a request sent to Immich to the head of its answer.",
            labels=["route"],
        )
        received = CounterMetricFamily(
            "immich_bridge_received_bytes", "Bytes of bodies from clients.", labels=["route"]
        )
        sent = CounterMetricFamily(
            "immich_bridge_sent_bytes", "Bytes of answers to clients.", labels=["route"]
        )
        traffic = self._metrics.traffic
        under_way: dict[str, list[Running]] = defaultdict(list)
        for running in self._metrics.running():
            under_way[running.route].append(running)
        for route in sorted(traffic.keys() | under_way.keys()):
            ended, now = traffic[route], under_way[route]
            for (method, status), count in ended.answers.items():
                requests.add_metric([route, method, str(status) if status else OTHER], count)
            for error, count in ended.errors.items():
                errors.add_metric([route, error], count)
            in_flight.add_metric([route], len(now))
            received.add_metric([route], ended.bytes_in + sum(each.bytes_in for each in now))
            sent.add_metric([route], ended.bytes_out + sum(each.bytes_out for each in now))
            seconds.add_metric([route], ended.seconds.buckets(), ended.seconds.total)
            if any(ended.first_byte.counts):
                buckets = ended.first_byte.buckets()
                first_byte.add_metric([route], buckets, ended.first_byte.total)
        yield from (requests, errors, in_flight, seconds, first_byte, received, sent)
