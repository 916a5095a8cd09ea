"""It stays well for long: mixed traffic, and nothing grows, stays open or holds up the others.

The traffic is that of `make soak`, from a process of its own, as the Immich is another.
"""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Final

import pytest
import soak
from process_stats import ProcessStats
from soak import Host, own_host

from backup_uploads import DAY
from backup_wing import Api, photo
from immich_bridge.backup.photos import MAX_PHOTOS
from raw_upload import eventually
from torture.effort import Effort

PROMISE: Final = "12 soak"
BUSIEST_MS: Final = 50.0
"""Milliseconds of processor time for which the event loop may keep everybody waiting."""
_BUSIEST_OF_MANY_MS: Final = 100.0
"""The same where many wait at once: one turn of the event loop serves all of them."""
LEVEL_MIB: Final = 16.0
"""By which the memory of the last third may lie above that of the second."""
_SMALL_SECONDS: Final = 3.0
_LONGEST_END: Final = 180.0
"""Seconds that the traffic may take to come to its end, after its time."""
_PATIENCE: Final = 30.0
_WATCHED: Final = (sys.executable, str(Path(__file__).with_name("blocking_watch.py")))


@dataclass(frozen=True)
class Seen:
    """What the watch inside the server saw, up to one moment: see `blocking_watch.py`."""

    tasks: int
    busiest_turn_ms: float
    longest_turn_ms: float
    blocking_calls: list[str]


class Watched:
    """A watched server of both wings with everything in `folder`."""

    def __init__(self, host: Host, folder: Path) -> None:
        self.host = host
        self.folder = folder
        self.stats = ProcessStats(host.pid)
        self._report = folder / "report.json"

    async def begin(self) -> Seen:
        """Begin to watch."""
        os.kill(self.host.pid, signal.SIGUSR1)
        await eventually(self._report.exists)
        return self.seen()

    def seen(self) -> Seen:
        """What was seen so far."""
        return Seen(**json.loads(self._report.read_text()))

    def temporary_files(self) -> list[Path]:
        """What uploads have not cleaned up."""
        return [path for path in (self.folder / "storage").rglob("*.part") if path.is_file()]


@pytest.fixture
async def watched(tmp_path: Path) -> AsyncIterator[Watched]:
    report = str(tmp_path / "report.json")
    with own_host(backup=True, folder=tmp_path, command=[*_WATCHED, report]) as host:
        yield Watched(host, tmp_path)
        os.kill(host.pid, signal.SIGUSR2)


async def test_mixed_traffic(effort: Effort, watched: Watched, tmp_path: Path) -> None:
    seconds = effort.soak_seconds if effort.full else _SMALL_SECONDS
    start, descriptors = await watched.begin(), watched.stats.descriptors()
    traffic = await run_traffic(effort, watched.host, seconds, tmp_path / "traffic.json")
    kinds = traffic["kinds"]
    assert traffic["messages"] == []
    assert all(kind["failed"] == 0 < kind["done"] for kind in kinds.values())
    # SQLite opens its log when it is needed.
    await eventually(lambda: watched.stats.descriptors() <= descriptors + 2, _PATIENCE)
    await eventually(lambda: watched.seen().tasks <= start.tasks, _PATIENCE)
    end = watched.seen()
    assert end.blocking_calls == []
    assert end.busiest_turn_ms <= _BUSIEST_OF_MANY_MS
    assert watched.temporary_files() == []
    level, before = memory_levels([look["rss_mib"] for look in traffic["server"]["looks"]])
    if effort.full:
        assert level - before <= LEVEL_MIB
    requests = sum(kind["done"] for kind in kinds.values())
    effort.figure(
        PROMISE,
        f"{requests} requests of {len(kinds)} kinds in {seconds:.0f} s, 0 failed; descriptors "
        f"{descriptors} before, {watched.stats.descriptors()} after; tasks {start.tasks} before, "
        f"{end.tasks} after; 0 temporary files; memory {level:.1f} MiB in the last third, "
        f"{before:.1f} in the second; 0 blocking calls, busiest turn of the event "
        f"loop {end.busiest_turn_ms:.0f} ms of processor time, {end.longest_turn_ms:.0f} ms by the "
        "clock",
    )


async def test_the_largest_index_holds_up_nobody(effort: Effort, watched: Watched) -> None:
    username, password = watched.host.username, watched.host.password
    api = Api(watched.host.url)
    api.token = str((await api.login(username, password)).json["token"])
    await watched.begin()
    photos = [photo(f"{number:05}/L0/001") for number in range(MAX_PHOTOS)]
    assert (await api.index(DAY, photos)).status == 200
    await asyncio.sleep(0.5)  # until there is a new report
    seen = watched.seen()
    effort.figure(
        PROMISE, f"{MAX_PHOTOS} photos in one index: busiest turn {seen.busiest_turn_ms:.0f} ms"
    )
    assert seen.blocking_calls == []
    assert seen.busiest_turn_ms <= BUSIEST_MS


async def run_traffic(effort: Effort, host: Host, seconds: float, report: Path) -> dict[str, Any]:
    """Soak `host` in a process of its own; what came of it."""
    small = ("--phones", "2", "--browsers", "1", "--sockets", "5", "--backup-phones", "1")
    arguments = [
        *("--target", host.url, "--api-key", host.key, "--server-pid", str(host.pid)),
        *("--backup-user", host.username, "--duration", f"{seconds:g}s"),
        *("--seed", str(effort.seed), "--json", str(report)),
        *(("--backup-phones", "2") if effort.full else small),
    ]
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        soak.__file__,
        *arguments,
        env={**os.environ, soak.PASSWORD_VARIABLE: host.password},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        output, _ = await asyncio.wait_for(process.communicate(), seconds + _LONGEST_END)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, output.decode()
    return _loaded(report)


def _loaded(report: Path) -> dict[str, Any]:
    traffic: dict[str, Any] = json.loads(report.read_text())
    return traffic


def memory_levels(sizes: list[float]) -> tuple[float, float]:
    """The means of the last third and of the second one."""
    third = max(1, len(sizes) // 3)
    return fmean(sizes[-third:]), fmean(sizes[-2 * third : -third] or sizes)
