"""What stands around a bridge whose connections are cut: Immich, and a fault proxy on each side."""

import asyncio
import random
import re
from base64 import b64decode
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final, Protocol

from front import let_time_pass
from immich_standin import Behaviour, StandIn
from immich_standin.journal import SeenRequest
from raw_upload import KEY, eventually
from scrape import ON, Scrape, in_flight
from torture.cuts_requests import PUT_PATH, READS, Ask, Stored, ask_immich, photo
from torture.fault_proxy import FaultProxy
from wire import PATIENCE, fetch

_IDLE_SECONDS: Final = 0.3
"""After which the Immich of the tests closes a connection that it has kept."""
RELEASED_SECONDS: Final = 5.0
"""Long enough for a busy machine; the figure tells how long it took."""
_CONNECTIONS: Final = (
    "immich_bridge_client_connections_open",
    "immich_bridge_upstream_connections_open",
)
_LINE: Final = re.compile(r" INFO request .* request_id=(\S+)")
_EXPECTED_LINES: Final = re.compile(
    r" INFO (request|listening|stopping|stopped|swept) | WARNING Immich broke off its answer: "
)


class BridgeProcess(Protocol):
    """A bridge as a process of its own."""

    process: asyncio.subprocess.Process
    url: str
    log: list[str]


StartProcess = Callable[..., Awaitable[BridgeProcess]]
"""What the fixture `start_process` is."""


class Log:
    """The log of a bridge, by request."""

    def __init__(self, lines: Callable[[], list[str]]) -> None:
        self._lines = lines
        self._read = 0
        self._by_request: defaultdict[str, list[str]] = defaultdict(list)

    def of(self, name: str) -> list[str]:
        """The lines of a request: none before it has ended, and then one."""
        self._read_on()
        return self._by_request.get(name, [])

    @property
    def unexpected(self) -> list[str]:
        """Lines that are neither of a request nor of the start, and requests with several."""
        self._read_on()
        repeated = [line for lines in self._by_request.values() for line in lines[1:]]
        return repeated + [line for line in self._lines() if not _EXPECTED_LINES.search(line)]

    def _read_on(self) -> None:
        new = self._lines()[self._read :]
        self._read += len(new)
        for line in new:
            if found := _LINE.search(line):
                self._by_request[found[1]].append(line)


@dataclass
class Bench:
    """A bridge, with a fault proxy between its clients and it, and one before its Immich.

    `stored` is what there is to read at Immich.
    """

    url: str
    """The bridge's own address."""
    metrics_url: str
    pid: int
    before: FaultProxy
    behind: FaultProxy
    immich: StandIn
    stored: Mapping[str, Stored]
    log: Log
    most_pipes: int = field(default=0, init=False)
    """Seen open by `look_at_pipes`; there are some while the kernel moves bytes."""

    async def settle(self) -> Counter[str]:
        """Wait until nothing is under way and nobody connected; the open descriptors."""
        under_way = await self._under_way()
        deadline = asyncio.get_running_loop().time() + PATIENCE
        while under_way:
            assert asyncio.get_running_loop().time() < deadline, under_way
            await let_time_pass(0.05)
            under_way = await self._under_way()
        await eventually(lambda: self.immich.open_connections == 0)
        # The scrape's own connection is among them for a moment.
        previous: Counter[str] = Counter()
        async with asyncio.timeout(PATIENCE):
            while (now := descriptors(self.pid)) != previous:
                previous = now
                await let_time_pass(0.1)
        return now

    def look_at_pipes(self) -> None:
        """Count the pipes that are open now."""
        self.most_pipes = max(self.most_pipes, descriptors(self.pid)["pipe"])

    async def ended(self, ask: Ask) -> None:
        """Wait until the bridge is done with the request."""
        await eventually(lambda: bool(self.log.of(ask.name)), RELEASED_SECONDS)

    async def released(self, ask: Ask) -> float:
        """Wait until Immich is done with the request; when that was, in the loop's time."""
        for seen in self._requests_of(ask):
            done = partial(_is_done_with, seen)
            await self.immich.wait_for_request(done, RELEASED_SECONDS)
        return asyncio.get_running_loop().time()

    def arrived(self, ask: Ask) -> bool:
        """Whether Immich has the content of the request; fails if it has another, or it twice.

        What there was is forgotten: the next request finds an empty journal and disk.
        """
        mine = [each for each in self.immich.assets if each.original_file_name == ask.filename]
        for asset in mine:
            assert b64decode(asset.checksum) == ask.sha1, f"{asset.size} bytes of {ask}"
            asset.path.unlink()
            self.immich.assets.remove(asset)
        seen = self._requests_of(ask)
        if ask.kind not in READS:
            assert len(seen) <= 1, f"{ask} was sent {len(seen)} times"
        puts = [each for each in seen if each.target.startswith(PUT_PATH) and each.completed]
        for put in puts:
            assert put.body_received == len(ask.content), ask
        for each in seen:
            if each.finished:
                self.immich.requests.remove(each)
        assert len(mine) <= 1
        return bool(mine or puts)

    async def _under_way(self) -> dict[str, float]:
        """Requests by their routes, and connections by whose they are; none that there are 0 of."""
        told = await fetch(self.metrics_url, "GET", "/metrics")
        seen = Scrape(told.body.decode())
        connections = {name: seen.value(name) for name in _CONNECTIONS}
        return in_flight(seen) | {name: count for name, count in connections.items() if count}

    def _requests_of(self, ask: Ask) -> list[SeenRequest]:
        requests = self.immich.requests
        return [each for each in requests if each.header("X-Request-Id") == ask.name]


@asynccontextmanager
async def immich_with_something_to_read(
    folder: Path,
) -> AsyncIterator[tuple[StandIn, dict[str, Stored]]]:
    """An Immich that takes any PUT, and what can be read there.

    One answer is long enough for the kernel to move it, and one is of unknown length.
    """
    chance = random.Random(9)
    content = photo(chance, 9 * 1024 * 1024)
    text = chance.randbytes(300_000).hex().encode()
    album = b'{"albumName": "long", "description": "%b"}' % text
    json = ("Content-Type", "application/json")
    async with StandIn(data_dir=folder, idle_timeout=_IDLE_SECONDS) as immich:
        immich.behaviour = Behaviour(method="PUT", path=PUT_PATH, answer_status=200)
        made = await ask_immich("form", "download", content, {}).sent_to(immich.url)
        assert made.status == 201
        made = await fetch(immich.url, "POST", "/api/albums", KEY, json, body=album)
        assert made.status == 201
        listed = await fetch(immich.url, "GET", "/api/albums", KEY)
        immich.requests.clear()
        download = f"/api/assets/{immich.assets[0].id}/original"
        yield (
            immich,
            {
                "download": Stored(download, content),
                "listing": Stored("/api/albums", listed.body, gzipped=True),
            },
        )


@asynccontextmanager
async def bench_around_a_process(
    start_process: StartProcess, folder: Path, **settings: str
) -> AsyncIterator[Bench]:
    """A bridge as a process of its own, with a fault proxy on either side."""
    async with AsyncExitStack() as stack:
        immich, stored = await stack.enter_async_context(immich_with_something_to_read(folder))
        behind = await stack.enter_async_context(FaultProxy(immich.url))
        bridge = await start_process(IMMICH_SERVER_URL=behind.url, **ON, **settings)
        before = await stack.enter_async_context(FaultProxy(bridge.url))
        yield Bench(
            url=bridge.url,
            metrics_url=_address_of_metrics(bridge.log),
            pid=bridge.process.pid,
            before=before,
            behind=behind,
            immich=immich,
            stored=stored,
            log=Log(lambda: bridge.log),
        )


def _is_done_with(seen: SeenRequest, each: SeenRequest) -> bool:
    return each is seen and seen.finished


def descriptors(pid: int) -> Counter[str]:
    """The open descriptors of a process by kind: `socket`, `pipe`, a path."""
    found: Counter[str] = Counter()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = str(link.readlink())
        except FileNotFoundError:  # closed just now
            continue
        found[target.partition(":")[0]] += 1
    return found


def _address_of_metrics(log: list[str]) -> str:
    """Where a bridge that has started exposes its metrics."""
    (line,) = (line for line in log if " listening " in line)
    return line.partition(" metrics=")[2].split()[0].removesuffix("/metrics")
