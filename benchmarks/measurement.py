"""What is uploaded, what was measured of it, which limits hold, and the table of it all."""

import argparse
import re
from dataclasses import dataclass, field
from statistics import median
from typing import Final

RSS_GROWTH_LIMIT_MIB: Final = 24.0
FIRST_BYTE_LIMIT_MS: Final = 50.0

MIB: Final = 1024**2
GIB: Final = 1024**3
_UNITS: Final = {"MiB": MIB, "GiB": GIB}
_SMALLEST: Final = MIB
LOADS_HELP: Final = "sizes such as 100MiB or 2GiB; 50x100MiB: fifty of them at once"


@dataclass(frozen=True)
class Load:
    """`parallel` uploads of `size` bytes at once."""

    name: str
    size: int
    parallel: int = 1

    @property
    def total(self) -> int:
        """Bytes of all uploads together."""
        return self.size * self.parallel


@dataclass
class Measurement:
    """The figures of the rounds of one load, in their order."""

    load: Load
    idle_rss_mib: float = 0.0
    mb_per_second: list[float] = field(default_factory=list)
    direct_mb_per_second: list[float] = field(default_factory=list)
    of_direct: list[float] = field(default_factory=list)
    cpu_seconds_per_gib: list[float] = field(default_factory=list)
    rss_growth_mib: list[float] = field(default_factory=list)
    first_byte_ms: list[float] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    @property
    def missed_limits(self) -> list[str]:
        """The limits of a single upload that were missed.

        Memory is judged by the worst round: nothing but the bridge can make it grow. The
        first byte is judged by the median, since in any one round another process may have
        held the processor.
        """
        if self.load.parallel > 1:
            return []
        missed = []
        if (growth := max(self.rss_growth_mib, default=0.0)) > RSS_GROWTH_LIMIT_MIB:
            missed.append(f"RSS growth {growth:.1f} MiB > {RSS_GROWTH_LIMIT_MIB:g} MiB")
        first_byte = median(self.first_byte_ms or [0.0])
        if first_byte > FIRST_BYTE_LIMIT_MS:
            missed.append(f"first byte {first_byte:.1f} ms > {FIRST_BYTE_LIMIT_MS:g} ms")
        return missed


def table(results: list[Measurement]) -> str:
    """The figures as a Markdown table: median (least-most)."""
    header = (
        "| Upload | MB/s | direct MB/s | of direct | bridge CPU-s/GiB "
        "| idle RSS MiB | RSS growth MiB | first byte ms |"
    )
    lines = [header, "|---" * 8 + "|"]
    for result in results:
        cells = (
            _cell(result.mb_per_second, 0),
            _cell(result.direct_mb_per_second, 0),
            _cell(result.of_direct, 2),
            _cell(result.cpu_seconds_per_gib, 2),
            f"{result.idle_rss_mib:.0f}",
            _cell(result.rss_growth_mib, 1),
            _cell(result.first_byte_ms, 1),
        )
        lines.append(f"| {result.load.name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(values: list[float], digits: int) -> str:
    if not values:
        return "-"
    middle, least, most = (f"{x:.{digits}f}" for x in (median(values), min(values), max(values)))
    return f"{middle} ({least}-{most})"


def parse_loads(text: str) -> list[Load]:
    """Read `1GiB,50x100MiB`; raises `argparse.ArgumentTypeError`."""
    loads = []
    for name in text.split(","):
        found = re.fullmatch(r"(?:(\d{1,3})x)?(\d{1,6})(MiB|GiB)", name.strip())
        load = found and Load(name.strip(), int(found[2]) * _UNITS[found[3]], int(found[1] or 1))
        if not load or load.size < _SMALLEST or load.parallel < 1:
            raise argparse.ArgumentTypeError(f"{name!r}; wanted: {LOADS_HELP}")
        loads.append(load)
    return loads
