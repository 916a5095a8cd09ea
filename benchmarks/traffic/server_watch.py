"""The server of a soak over time: its memory and its descriptors."""

import asyncio
import time
from dataclasses import asdict, dataclass
from statistics import linear_regression
from typing import Any, Final

from process_stats import ProcessStats
from traffic.tally import pause

_MIB: Final = 1024**2
_SETTLE_SECONDS: Final = 15.0
"""Connections to Immich and of clients that nobody uses are closed within this."""
_OPENED_LATE: Final = 2
"""Descriptors of the server's own that it opens only when they are needed, such as SQLite's of
its log. What leaks, leaks with every so many requests, and soon is more."""


@dataclass(frozen=True)
class Look:
    """The server at one moment: seconds since the start, CPU in cores since the look before."""

    seconds: float
    rss_mib: float
    descriptors: int
    cpu: float


class ServerWatch:
    """Looks at the processes of a server once a second; `gone` once there are none."""

    def __init__(self, stats: ProcessStats) -> None:
        self._stats = stats
        self._started = time.monotonic()
        self._cpu = (0.0, stats.cpu_seconds())
        self.gone = False
        self.looks = [Look(0.0, stats.rss() / _MIB, stats.descriptors(), 0.0)]

    @property
    def start(self) -> Look:
        """Before the first request."""
        return self.looks[0]

    @property
    def last(self) -> Look:
        """The latest look."""
        return self.looks[-1]

    async def run(self, stop: asyncio.Event) -> None:
        """Look until `stop`."""
        while not stop.is_set() and not self.gone:
            await pause(stop, 1.0)
            self._look()

    async def settle(self) -> bool:
        """Whether the server is there, and closes all descriptors of the soak before long."""
        deadline = time.monotonic() + _SETTLE_SECONDS
        most = self.start.descriptors + _OPENED_LATE
        never = asyncio.Event()
        self._look()
        while not self.gone and self.last.descriptors > most and time.monotonic() < deadline:
            await pause(never, 0.5)
            self._look()
        return not self.gone and self.last.descriptors <= most

    @property
    def growth_mib_per_minute(self) -> float:
        """How fast the memory grew over the second half, when all is warm."""
        half = self.looks[len(self.looks) // 2 :]
        if len(half) < 3:
            return 0.0
        times, sizes = [look.seconds for look in half], [look.rss_mib for look in half]
        return linear_regression(times, sizes).slope * 60

    def summary(self) -> str:
        """The trend in a line or two."""
        most = max(look.rss_mib for look in self.looks)
        descriptors = max(look.descriptors for look in self.looks)
        return (
            f"Server memory: {self.start.rss_mib:.0f} MiB at the start, {most:.0f} at most, "
            f"{self.last.rss_mib:.0f} at the end; over the second half "
            f"{self.growth_mib_per_minute:+.2f} MiB a minute\n"
            f"Server descriptors: {self.start.descriptors} at the start, {descriptors} at most, "
            f"{self.last.descriptors} at the end"
        )

    def as_json(self) -> dict[str, Any]:
        """All looks."""
        return {
            "growth_mib_per_minute": self.growth_mib_per_minute,
            "looks": [asdict(look) for look in self.looks],
        }

    def _look(self) -> None:
        try:
            seconds, cpu = time.monotonic() - self._started, self._stats.cpu_seconds()
            rss, descriptors = self._stats.rss() / _MIB, self._stats.descriptors()
        except OSError:
            self.gone = True
            return
        before, cpu_before = self._cpu
        self._cpu = (seconds, cpu)
        self.looks.append(Look(seconds, rss, descriptors, (cpu - cpu_before) / (seconds - before)))
