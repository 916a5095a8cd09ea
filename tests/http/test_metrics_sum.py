"""The metrics of several workers as one: what is summed, also of those that are gone."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest
from prometheus_client import Metric
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as openmetrics_families,
)

from crew import Crew, a_crew
from immich_bridge.http import metrics_sum
from immich_bridge.http.metrics_sum import Sum
from immich_standin import StandIn
from scrape import ON, get, scrape, scrape_at_rest
from wire import fetch

HEALTH = {"route": "/health", "method": "GET", "status": "200"}
REQUESTS = "immich_bridge_requests_total"


@pytest.fixture
async def crew(immich: StandIn) -> AsyncIterator[Crew]:
    async with a_crew(immich.url) as crew:
        yield crew


def metric(name: str, kind: str, *samples: tuple[str, str, float]) -> Metric:
    made = Metric(name, "What it is.", kind)
    for sample, label, value in samples:
        made.add_sample(sample, {"of": label}, value)
    return made


def told(total: Sum) -> dict[tuple[str, str], float]:
    return {
        (sample.name, sample.labels["of"]): sample.value
        for family in total.collect()
        for sample in family.samples
    }


class TestSum:
    def test_adds_what_can_be_added(self) -> None:
        total = Sum()
        for value in (1.0, 20.0):
            total.add(
                [
                    metric("a", "counter", ("a_total", "x", value)),
                    metric("b", "gauge", ("b", "x", value)),
                    metric("c", "histogram", ("c_bucket", "x", value), ("c_sum", "x", value)),
                    metric("d", "info", ("d_info", "x", 1)),
                    metric("process_max_fds", "gauge", ("process_max_fds", "x", value)),
                    metric(
                        "process_start_time_seconds",
                        "gauge",
                        ("process_start_time_seconds", "x", 30 - value),
                    ),
                ]
            )
        assert told(total) == {
            ("a_total", "x"): 21,
            ("b", "x"): 21,
            ("c_bucket", "x"): 21,
            ("c_sum", "x"): 21,
            ("d_info", "x"): 1,
            ("process_max_fds", "x"): 1,
            ("process_start_time_seconds", "x"): 10,
        }

    def test_keeps_what_only_one_has(self) -> None:
        total = Sum()
        total.add([metric("a", "counter", ("a_total", "x", 1))])
        total.add([metric("a", "counter", ("a_total", "y", 2)), metric("b", "gauge", ("b", "", 3))])
        assert told(total) == {("a_total", "x"): 1, ("a_total", "y"): 2, ("b", ""): 3}

    def test_of_one_that_is_gone_keeps_what_it_counted(self) -> None:
        total = Sum()
        gone = [metric("a", "counter", ("a_total", "x", 1)), metric("b", "gauge", ("b", "x", 2))]
        total.add(gone, cumulative_only=True)
        assert told(total) == {("a_total", "x"): 1}


class TestScrape:
    async def test_tells_of_all(self, crew: Crew) -> None:
        first, second = await crew.start(0, **ON), await crew.start(1, **ON)
        before = await scrape(first)
        for server in (first, second, second):
            await fetch(server.address, "GET", "/health")
        seen = await scrape_at_rest(first)
        assert seen.value("immich_bridge_workers") == 2
        assert seen.value(REQUESTS, **HEALTH) - before.value(REQUESTS, **HEALTH) == 3
        name = "immich_bridge_request_duration_seconds"
        assert seen.value(f"{name}_count", route="/health") == 3
        assert seen.value(f"{name}_bucket", route="/health", le="+Inf") == 3
        assert 0 < seen.value(f"{name}_sum", route="/health") < 3

    async def test_tells_it_in_both_formats_and_under_the_same_names(self, crew: Crew) -> None:
        server = await crew.start(0, **ON)
        await crew.start(1, **ON)
        accepted = ("Accept", "application/openmetrics-text;version=1.0.0,text/plain;q=0.5")
        told = (await get(server, accepted)).body.decode()
        # Its parser is strict: units, suffixes, order of buckets.
        families = {each.name: each.type for each in openmetrics_families(told)}  # type: ignore[no-untyped-call]
        assert families["immich_bridge_requests"] == "counter"
        assert families["immich_bridge_request_duration_seconds"] == "histogram"
        assert families["immich_bridge_build"] == "info"
        plain = {each.name: each.type for each in (await scrape(server)).families}
        assert plain["immich_bridge_build_info"] == "gauge"
        assert set(plain) - {"immich_bridge_build_info"} == set(families) - {"immich_bridge_build"}

    async def test_does_without_one_that_does_not_answer(
        self, crew: Crew, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(metrics_sum, "_PATIENCE_SECONDS", 0.2)
        server = await crew.start(0, **ON)
        asked: list[asyncio.StreamWriter] = []

        async def say_nothing(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            asked.append(writer)

        silent = await asyncio.start_unix_server(say_nothing, str(crew.folder / "1m"))
        async with silent:
            started = time.monotonic()
            seen = await scrape(server)
            assert time.monotonic() - started < 2
            for writer in asked:
                writer.close()
        assert len(asked) == 1
        assert seen.value("immich_bridge_workers") == 1
        assert (await scrape(server)).value("immich_bridge_workers") == 1

    async def test_does_without_one_that_says_nonsense(self, crew: Crew) -> None:
        server = await crew.start(0, **ON)

        async def ramble(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b'[1, [["half')
            writer.close()

        async with await asyncio.start_unix_server(ramble, str(crew.folder / "1m")):
            assert (await scrape(server)).value("immich_bridge_workers") == 1

    async def test_never_counts_backwards(self, immich: StandIn, crew: Crew) -> None:
        """Prometheus takes a number that fell for one that began anew, of all workers."""
        first = await crew.start(0, **ON)
        for lives in (1, 2, 3):
            async with AsyncExitStack() as stack:
                second = await Crew(stack, immich.url, crew.folder).start(1, **ON)
                await fetch(second.address, "GET", "/health")
                for _ in range(2):
                    seen = await scrape_at_rest(first)
                    assert seen.value(REQUESTS, **HEALTH) == lives
                    assert seen.value("immich_bridge_workers") == 2
                resident = seen.value("process_resident_memory_bytes")
            seen = await scrape_at_rest(first)
            assert seen.value(REQUESTS, **HEALTH) == lives
            assert seen.value("immich_bridge_workers") == 1
            assert seen.value("process_resident_memory_bytes") < resident * 0.7
