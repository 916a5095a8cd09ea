"""What was measured of the photo backup, which limits hold, and the table of it all."""

from dataclasses import asdict, dataclass, field
from statistics import median, quantiles
from typing import Any, Final

RSS_GROWTH_LIMIT_MIB: Final = 24.0


@dataclass(frozen=True)
class Plan:
    """How much is measured: each kind of work in `only`, or all."""

    size_mib: int = 1024
    rounds: int = 3
    uploads: int = 2000
    parallel: tuple[int, ...] = (1, 16)
    photos: int = 1000
    batches: int = 100
    logins: int = 100
    only: tuple[str, ...] = ()
    event_loop: str = "auto"


@dataclass
class Small:
    """Requests of one kind: `ms` of each, speed and CPU by round."""

    per_second: list[float] = field(default_factory=list)
    cpu_us: list[float] = field(default_factory=list)
    ms: list[float] = field(default_factory=list)


@dataclass
class Results:
    """All figures, in the order of the rounds; those of small requests by name."""

    plan: Plan
    disk_mb_per_second: list[float] = field(default_factory=list)
    mb_per_second: dict[str, list[float]] = field(default_factory=dict)
    cpu_seconds_per_gib: dict[str, list[float]] = field(default_factory=dict)
    rss_growth_mib: dict[str, list[float]] = field(default_factory=dict)
    small: dict[str, Small] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    @property
    def missed_limits(self) -> list[str]:
        """The limits that the worst round missed."""
        return [
            f"{way} to disk: RSS growth {max(growth):.1f} MiB > {RSS_GROWTH_LIMIT_MIB:g} MiB"
            for way, growth in self.rss_growth_mib.items()
            if max(growth) > RSS_GROWTH_LIMIT_MIB
        ]

    def table(self) -> str:
        """The figures as a Markdown table: median (least-most), or p50 and p99."""
        lines = ["| Work | Speed | Server CPU | RSS growth MiB |", "|---" * 4 + "|"]
        lines += [
            f"| {way}, {self.plan.size_mib} MiB | {_cell(speed, 0)} MB/s "
            f"| {_cell(self.cpu_seconds_per_gib[way], 2)} s/GiB "
            f"| {_cell(self.rss_growth_mib[way], 1)} |"
            for way, speed in self.mb_per_second.items()
        ]
        if self.disk_mb_per_second:
            disk = _cell(self.disk_mb_per_second, 0)
            lines.append(f"| the same to disk without a server | {disk} MB/s | | |")
        lines += [
            f"| {name} | {_cell(small.per_second, 0)} a second; {_percentiles(small.ms)} ms "
            f"| {_cell(small.cpu_us, 0)} us each | |"
            for name, small in self.small.items()
        ]
        return "\n".join(lines)

    def as_json(self) -> dict[str, Any]:
        """All figures, and the limits."""
        return {
            "rss_growth_limit_mib": RSS_GROWTH_LIMIT_MIB,
            "missed_limits": self.missed_limits,
            **asdict(self),
        }


def _cell(values: list[float], digits: int) -> str:
    middle, least, most = (f"{x:.{digits}f}" for x in (median(values), min(values), max(values)))
    return f"{middle} ({least}-{most})"


def _percentiles(values: list[float]) -> str:
    p99 = quantiles(values, n=100)[98] if len(values) > 1 else values[0]
    return f"p50 {median(values):.1f}, p99 {p99:.1f}"
