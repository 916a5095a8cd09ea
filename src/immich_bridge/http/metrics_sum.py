"""The metrics of all workers as one: collected at each scrape, and summed.

Siblings tell their numbers on a socket that only they can reach: one JSON document to whoever
connects, and nothing is asked. Unlike a page for Prometheus it keeps the types of the metrics.
"""

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, closing, suppress
from typing import Any, Final

from prometheus_client import Metric
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from immich_bridge.errors import StartError
from immich_bridge.http.metrics import Metrics
from immich_bridge.worker import Worker

_PATIENCE_SECONDS: Final = 2.0
"""How long a scrape waits for siblings; Prometheus waits for ten seconds by default."""
_CUMULATIVE: Final = frozenset({"counter", "histogram"})
"""Types of metrics that only grow, and whose numbers count beyond the life of a process."""
_LEAST_COUNTS: Final = frozenset({"process_start_time_seconds", "process_max_fds"})
"""Metrics of which a sum says nothing."""


class Sum(Collector):
    """Metrics of several processes as if they were those of one."""

    def __init__(self) -> None:
        self._metrics: dict[str, Metric] = {}
        self._values: dict[str, dict[tuple[str, tuple[tuple[str, str], ...]], float]] = {}

    def add(self, metrics: Iterable[Metric], *, cumulative_only: bool = False) -> None:
        """Add what one process tells; of one that is gone only what is `cumulative_only`."""
        for metric in metrics:
            if cumulative_only and metric.type not in _CUMULATIVE:
                continue
            self._metrics.setdefault(metric.name, metric)
            values = self._values.setdefault(metric.name, {})
            for sample in metric.samples:
                key = (sample.name, tuple(sample.labels.items()))
                if key not in values:
                    values[key] = sample.value
                elif metric.name in _LEAST_COUNTS:
                    values[key] = min(values[key], sample.value)
                elif metric.type != "info":
                    values[key] += sample.value

    def collect(self) -> Iterator[Metric]:
        for name, metric in self._metrics.items():
            summed = Metric(name, metric.documentation, metric.type, metric.unit)
            for (sample, labels), value in self._values[name].items():
                summed.add_sample(sample, dict(labels), value)
            yield summed


class MetricsSum(Collector):
    """The metrics of this worker and its siblings.

    A sibling that does not answer is left out, and so are the gauges of one that is gone; but
    what it has counted stays in the sum. Otherwise Prometheus would take the sum for one that
    began anew, and count all that the others have done a second time.
    """

    def __init__(self, own: Metrics, worker: Worker) -> None:
        self._own = own
        self._worker = worker
        self._present: set[int] = set()
        self._last: dict[int, tuple[str, list[Metric]]] = {}
        """By number: the life of a worker that answered last, and what it said."""
        self._gone = Sum()

    async def refresh(self) -> None:
        """Ask all siblings."""
        siblings = self._worker.siblings
        answers = await asyncio.gather(*map(self._ask, siblings))
        self._present.clear()
        for number, answer in zip(siblings, answers, strict=True):
            if answer is None:
                continue
            self._present.add(number)
            before = self._last.get(number)
            if before is not None and before[0] != answer[0]:
                self._gone.add(before[1], cumulative_only=True)
            self._last[number] = answer

    def collect(self) -> Iterator[Metric]:
        total = Sum()
        total.add(self._own.registry.collect())
        for number, (_, metrics) in self._last.items():
            total.add(metrics, cumulative_only=number not in self._present)
        total.add(self._gone.collect())
        yield from total.collect()
        yield GaugeMetricFamily(
            "immich_bridge_workers",
            "Processes whose numbers are in these.",
            value=1 + len(self._present),
        )

    async def _ask(self, number: int) -> tuple[str, list[Metric]] | None:
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                reader, writer = await asyncio.open_unix_connection(
                    str(self._worker.metrics_socket(number))
                )
                with closing(writer):
                    return _parse(json.loads(await reader.read(-1)))
        except (OSError, TimeoutError, ValueError):
            return None


@asynccontextmanager
async def metrics_told(metrics: Metrics, worker: Worker) -> AsyncIterator[None]:
    """Tell siblings the numbers of this worker, as long as the context lasts.

    Raises `StartError`.
    """

    async def tell(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # One who has waited too long has closed it.
        with closing(writer), suppress(ConnectionError):
            for refresh in metrics.before_scrape:
                await refresh()
            writer.write(json.dumps(_written(life, metrics)).encode())
            await writer.drain()

    life = secrets.token_hex(8)
    path = worker.metrics_socket(worker.number)
    try:
        server = await asyncio.start_unix_server(tell, str(path))
    except OSError as exc:
        raise StartError(f"cannot listen on {path}: {exc.strerror or exc}") from exc
    try:
        yield
    finally:
        server.close()
        path.unlink(missing_ok=True)


def _written(life: str, metrics: Metrics) -> Any:
    families = [
        [
            *(metric.name, metric.documentation, metric.type, metric.unit),
            [[sample.name, sample.labels, sample.value] for sample in metric.samples],
        ]
        for metric in metrics.registry.collect()
    ]
    return [life, families]


def _parse(document: Any) -> tuple[str, list[Metric]]:
    life, families = document
    metrics = []
    for name, documentation, kind, unit, samples in families:
        metric = Metric(name, documentation, kind, unit)
        for sample, labels, value in samples:
            metric.add_sample(sample, labels, value)
        metrics.append(metric)
    return life, metrics
