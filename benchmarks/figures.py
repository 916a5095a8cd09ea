"""What was measured of one work, and the ratios that make figures of one machine comparable."""

from dataclasses import dataclass, field
from statistics import median
from typing import Final

from targets import DIRECT
from works import GIB, MIB, Work

RSS_GROWTH_LIMIT_MIB: Final = 24.0
FIRST_BYTE_LIMIT_MS: Final = 50.0


@dataclass(frozen=True)
class Sample:
    """One round of a work through one target; without a process it has no CPU and no memory."""

    seconds: float
    requests: int
    p50_us: float
    p99_us: float
    cpu_seconds: float | None = None
    peak_rss: int | None = None
    idle_rss: int | None = None
    first_byte_ms: float | None = None


@dataclass
class Figures:
    """The rounds of one work by target, in their order; a round has one sample of each."""

    work: Work
    samples: dict[str, list[Sample]] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    """Why a target has no figures, or not all."""

    @property
    def speed_unit(self) -> str:
        """What `speed` counts."""
        return "MB/s" if self.work.large else "requests/s"

    @property
    def cpu_unit(self) -> str:
        """What `cpu` counts."""
        return "CPU s/GiB" if self.work.large else "CPU us/request"

    def speed(self, target: str) -> list[float]:
        """MB (10^6 bytes) or requests a second, of each round."""
        unit = self.work.bytes / 1e6 if self.work.large else 1.0
        return [each.requests * unit / each.seconds for each in self.samples.get(target, [])]

    def ratio(self, target: str, base: str) -> list[float]:
        """Speed through that of `base` in the same round: steadier than either alone."""
        pairs = zip(self.speed(target), self.speed(base), strict=False)
        return [speed / other for speed, other in pairs]

    def cpu(self, target: str) -> list[float]:
        """Processor time of the proxy alone: seconds a GiB, or microseconds a request."""
        large = self.work.large
        return [
            each.cpu_seconds / (each.requests * self.work.bytes / GIB)
            if large
            else each.cpu_seconds / each.requests * 1e6
            for each in self.samples.get(target, [])
            if each.cpu_seconds is not None
        ]

    def peak_rss_mib(self, target: str) -> list[float]:
        """Memory of the proxy at its fullest."""
        samples = self.samples.get(target, [])
        return [each.peak_rss / MIB for each in samples if each.peak_rss is not None]

    def added_ms(self, target: str, percentile: str) -> list[float]:
        """How much longer a request takes than without a proxy: `p50` or `p99`."""
        name = f"{percentile}_us"
        pairs = zip(self.samples.get(target, []), self.samples.get(DIRECT, []), strict=False)
        return [(getattr(each, name) - getattr(direct, name)) / 1000 for each, direct in pairs]

    def missed_limits(self, target: str) -> list[str]:
        """The limits of a single large upload that were missed.

        Memory is judged by the worst round: nothing but the proxy can make it grow. The first
        byte is judged by the median, since in any one round another process may have held the
        processor.
        """
        samples = self.samples.get(target, [])
        if not self.work.limited or not samples:
            return []
        missed = []
        growth = max(((s.peak_rss or 0) - (s.idle_rss or 0)) / MIB for s in samples)
        if growth > RSS_GROWTH_LIMIT_MIB:
            missed.append(f"RSS growth {growth:.1f} MiB > {RSS_GROWTH_LIMIT_MIB:g} MiB")
        first_byte = median(each.first_byte_ms or 0.0 for each in samples)
        if first_byte > FIRST_BYTE_LIMIT_MS:
            missed.append(f"first byte after {first_byte:.1f} ms > {FIRST_BYTE_LIMIT_MS:g} ms")
        return missed
