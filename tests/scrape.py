"""The metrics of a server as Prometheus reads them."""

import asyncio
from collections.abc import Callable

from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from front import let_time_pass
from immich_bridge.serve import Server
from wire import PATIENCE, Message, fetch

ON = {"METRICS_ADDR": "127.0.0.1:0"}
"""The setting that turns metrics on."""

# What changes by the look at it, or with the speed of the machine.
_UNSTEADY = ("process_", "immich_bridge_client_connections", "immich_bridge_disk_")
_TIMES = ("_bucket", "_sum")


async def get(server: Server, *headers: tuple[str, str], path: str = "/metrics") -> Message:
    """A request to the listener of the metrics."""
    assert server.metrics_address is not None
    return await fetch(server.metrics_address.removesuffix("/metrics"), "GET", path, *headers)


class Scrape:
    """What one scrape has told."""

    def __init__(self, text: str) -> None:
        self.families: list[Metric] = list(text_string_to_metric_families(text))
        self.samples = {
            _written(sample.name, sample.labels): sample.value
            for family in self.families
            for sample in family.samples
        }

    def value(self, name: str, **labels: str) -> float:
        """One sample; 0 when it is not there."""
        return self.samples.get(_written(name, labels), 0)

    def changes(self, before: "Scrape") -> dict[str, float]:
        """By how much each sample has grown since `before`, those left out that vary anyway."""
        return {
            name: value - before.samples.get(name, 0)
            for name, value in self.samples.items()
            if value != before.samples.get(name, 0)
            and not name.startswith(_UNSTEADY)
            and not name.partition("{")[0].endswith(_TIMES)
        }


async def scrape(server: Server) -> Scrape:
    """One scrape."""
    told = await get(server)
    assert told.status == 200, told
    return Scrape(told.body.decode())


async def scrape_when(server: Server, condition: Callable[[Scrape], bool]) -> Scrape:
    """The first scrape that meets `condition`."""
    async with asyncio.timeout(PATIENCE):
        while not condition(seen := await scrape(server)):
            await let_time_pass(0.005)
        return seen


async def scrape_at_rest(server: Server) -> Scrape:
    """The first scrape after every request has ended."""
    return await scrape_when(server, lambda seen: not in_flight(seen))


def in_flight(seen: Scrape) -> dict[str, float]:
    """The routes that have requests under way, and how many."""
    (family,) = (f for f in seen.families if f.name == "immich_bridge_requests_in_flight")
    return {s.labels["route"]: s.value for s in family.samples if s.value}


def _written(name: str, labels: dict[str, str]) -> str:
    inside = ",".join(f'{label}="{value}"' for label, value in sorted(labels.items()))
    return f"{name}{{{inside}}}" if inside else name
