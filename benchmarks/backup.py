"""Measure the photo backup: large and small uploads to disk with fsync, and indexing.

Client and server are processes on this machine (Linux). Rounds of writing the same bytes
to the same disk without a server alternate with large uploads. Exit code 1: an answer or a
byte is wrong, or an upload took more memory than its limit (24 MiB). No speed fails.
"""

import argparse
import json
import platform
import random
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from datetime import date, timedelta
from pathlib import Path
from statistics import median, quantiles
from typing import Any, Final

from backup_server import BackupServer, Client, Failed, LargeFile, running_backup_server

RSS_GROWTH_LIMIT_MIB: Final = 24.0

_MIB: Final = 1024**2
_GIB: Final = 1024**3
_SMALL: Final = 100_000
_FIRST_DAY: Final = date(2000, 1, 1)


@dataclass
class Results:
    """All figures, in the order of the rounds."""

    disk_mb_per_second: list[float] = field(default_factory=list)
    mb_per_second: dict[str, list[float]] = field(default_factory=dict)
    cpu_seconds_per_gib: dict[str, list[float]] = field(default_factory=dict)
    rss_growth_mib: dict[str, list[float]] = field(default_factory=dict)
    small_per_second: list[float] = field(default_factory=list)
    small_cpu_us: list[float] = field(default_factory=list)
    small_ms: list[float] = field(default_factory=list)
    index_ms: list[float] = field(default_factory=list)
    index_cpu_ms: float = 0.0
    faults: list[str] = field(default_factory=list)

    @property
    def missed_limits(self) -> list[str]:
        """The limits that the worst round missed."""
        return [
            f"{way}: RSS growth {max(growth):.1f} MiB > {RSS_GROWTH_LIMIT_MIB:g} MiB"
            for way, growth in self.rss_growth_mib.items()
            if max(growth) > RSS_GROWTH_LIMIT_MIB
        ]


class Benchmark:
    """Runs the measurements against one server."""

    def __init__(self, server: BackupServer, folder: Path, results: Results) -> None:
        self._server = server
        self._folder = folder
        self._results = results
        self._days = 0

    def large(self, way: str, file: LargeFile, rounds: int) -> None:
        """Upload a large file as a `form` or `raw`, each time over the one before."""
        stats, results = self._server.stats, self._results
        day = self._index(1, "large")
        stored = self._server.photos / f"{day:%Y/%m/%d}" / "IMG_0001.mov"
        for number in range(1, rounds + 1):
            seconds = file.write_and_sync(self._folder / "direct")
            (self._folder / "direct").unlink()
            disk = file.size / 1e6 / seconds
            with self._server.client() as client:
                upload = client.upload_large_form if way == "form" else client.upload_large_raw
                stats.reset_peak_rss()
                cpu, started = stats.cpu_seconds(), time.monotonic()
                upload(f"large{self._days}-0", file)
                seconds = time.monotonic() - started
                cpu = stats.cpu_seconds() - cpu
            growth = (stats.peak_rss() - self._server.idle_rss) / _MIB
            if not file.equals(stored):
                results.faults.append(f"{way}: {stored} is not what was sent")
            results.disk_mb_per_second.append(disk)
            results.mb_per_second.setdefault(way, []).append(file.size / 1e6 / seconds)
            results.cpu_seconds_per_gib.setdefault(way, []).append(cpu / (file.size / _GIB))
            results.rss_growth_mib.setdefault(way, []).append(growth)
            _progress(
                f"{way} {number}/{rounds}: {file.size / 1e6 / seconds:.0f} MB/s, disk alone "
                f"{disk:.0f} MB/s, {cpu / (file.size / _GIB):.2f} CPU-s/GiB, RSS +{growth:.1f} MiB"
            )
        stored.unlink()

    def small(self, parallel: int, uploads: int, rounds: int) -> None:
        """Upload `uploads` photos of 100 KB in forms, `parallel` at once."""
        stats, results = self._server.stats, self._results
        content = random.Random(2).randbytes(_SMALL)
        for number in range(1, rounds + 1):
            day = self._index(uploads, "small")
            with ExitStack() as stack, ThreadPoolExecutor(parallel) as pool:
                clients = [stack.enter_context(self._server.client()) for _ in range(parallel)]
                turns = iter(range(uploads))
                prefix = f"small{self._days}"
                cpu, started = stats.cpu_seconds(), time.monotonic()
                work = [pool.submit(_upload_all, c, prefix, turns, content) for c in clients]
                seconds = [each for done in work for each in done.result()]
                elapsed = time.monotonic() - started
                cpu = stats.cpu_seconds() - cpu
            files = list((self._server.photos / f"{day:%Y/%m/%d}").iterdir())
            if len(files) != uploads or any(file.read_bytes() != content for file in files):
                results.faults.append("small uploads: what lies on disk is not what was sent")
            results.small_per_second.append(uploads / elapsed)
            results.small_cpu_us.append(cpu / uploads * 1e6)
            results.small_ms += [each * 1000 for each in seconds]
            _progress(
                f"100 KB x{parallel} {number}/{rounds}: {uploads / elapsed:.0f} a second, "
                f"{cpu / uploads * 1e6:.0f} us CPU each"
            )

    def index(self, photos: int, batches: int) -> None:
        """Index `batches` times `photos` new photos, each time on a new day."""
        stats, results = self._server.stats, self._results
        cpu = stats.cpu_seconds()
        for _ in range(batches):
            _, seconds = self._timed_index(photos, "index")
            results.index_ms.append(seconds * 1000)
        results.index_cpu_ms = (stats.cpu_seconds() - cpu) / batches * 1000
        _progress(f"index of {photos}: {median(results.index_ms):.1f} ms (median of {batches})")

    def _index(self, count: int, prefix: str) -> date:
        """Index `count` new photos on a day that nobody had before; the day."""
        return self._timed_index(count, prefix)[0]

    def _timed_index(self, count: int, prefix: str) -> tuple[date, float]:
        """`_index`, and the seconds from the first byte sent until the answer is read."""
        self._days += 1
        day = _FIRST_DAY + timedelta(self._days)
        photos = [
            {
                "local_id": f"{prefix}{self._days}-{number}",
                "creation_time": f"{day}T10:00:00Z",
                "file_extension": "mov",
                "file_type": "video/quicktime",
            }
            for number in range(count)
        ]
        body = json.dumps({"date": day.isoformat(), "photos": photos}).encode()
        with self._server.client() as client:
            started = time.monotonic()
            answer = client.post("/photos/index", body)
            seconds = time.monotonic() - started
        if answer["assigned_files"][-1]["filename"] != f"IMG_{count:04}.mov":
            self._results.faults.append(f"index: {answer['assigned_files'][-1]}")
        return day, seconds


def _upload_all(client: Client, prefix: str, turns: Any, content: bytes) -> list[float]:
    seconds = []
    for number in turns:
        started = time.monotonic()
        client.upload_form(f"{prefix}-{number}", content)
        seconds.append(time.monotonic() - started)
    return seconds


def table(results: Results, size_mib: int, parallel: int, photos: int) -> str:
    """The figures as a Markdown table: median (least-most), or p50 / p99."""
    lines = ["| Work | Speed | Server CPU | RSS growth MiB |", "|---" * 4 + "|"]
    lines += [
        f"| {way}, {size_mib} MiB | {_cell(speed, 0)} MB/s "
        f"| {_cell(results.cpu_seconds_per_gib[way], 2)} s/GiB "
        f"| {_cell(results.rss_growth_mib[way], 1)} |"
        for way, speed in results.mb_per_second.items()
    ]
    if results.disk_mb_per_second:
        disk = _cell(results.disk_mb_per_second, 0)
        lines.append(f"| the same to disk without a server | {disk} MB/s | | |")
    if results.small_per_second:
        lines.append(
            f"| form, 100 KB, {parallel} at once | {_cell(results.small_per_second, 0)} a second; "
            f"{_percentiles(results.small_ms)} ms | {_cell(results.small_cpu_us, 0)} us each | |"
        )
    if results.index_ms:
        lines.append(
            f"| index of {photos} new photos | {_percentiles(results.index_ms)} ms "
            f"| {results.index_cpu_ms:.1f} ms each | |"
        )
    return "\n".join(lines)


def _cell(values: list[float], digits: int) -> str:
    middle, least, most = (f"{x:.{digits}f}" for x in (median(values), min(values), max(values)))
    return f"{middle} ({least}-{most})"


def _percentiles(values: list[float]) -> str:
    p99 = quantiles(values, n=100)[98] if len(values) > 1 else values[0]
    return f"p50 {median(values):.1f}, p99 {p99:.1f}"


def main() -> int:
    """Run the benchmark; returns the exit code."""
    options = _options()
    if sys.platform != "linux":
        print("this benchmark needs Linux (/proc, sendfile between files and sockets)")
        return 2
    results = Results()
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="backup-benchmark-") as name:
        folder = Path(name)
        try:
            _measure(folder, options, results)
        except (Failed, OSError) as exc:
            results.faults.append(f"{type(exc).__name__}: {exc}")
    print(table(results, options.size_mib, options.parallel, options.photos))
    faults, missed = results.faults, results.missed_limits
    print(f"RSS growth limit {RSS_GROWTH_LIMIT_MIB:g} MiB: {'; '.join(missed) or 'met'}")
    print(f"Answers and bytes: {'WRONG: ' + '; '.join(faults) if faults else 'all right'}")
    if options.json:
        report = {
            "python": platform.python_version(),
            "event_loop": options.event_loop,
            "rss_growth_limit_mib": RSS_GROWTH_LIMIT_MIB,
            "missed_limits": missed,
            **asdict(results),
        }
        options.json.write_text(json.dumps(report, indent=2) + "\n")
    return 1 if faults or missed else 0


def _measure(folder: Path, options: argparse.Namespace, results: Results) -> None:
    file = LargeFile(options.size_mib * _MIB)
    works: dict[str, Callable[[Benchmark], None]] = {
        "form": lambda benchmark: benchmark.large("form", file, options.rounds),
        "raw": lambda benchmark: benchmark.large("raw", file, options.rounds),
        "small": lambda benchmark: benchmark.small(
            options.parallel, options.uploads, options.rounds
        ),
        "index": lambda benchmark: benchmark.index(options.photos, options.batches),
    }
    for number, work in enumerate(options.only or works):
        # Each kind of work gets a server that has done no other.
        data = folder / str(number)
        data.mkdir()
        with running_backup_server(data, options.event_loop) as server:
            works[work](Benchmark(server, data, results))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )

    def number(name: str, default: int, meaning: str) -> None:
        parser.add_argument(name, type=int, default=default, help=f"{meaning} ({default})")

    number("--size-mib", 1024, "size of the large upload in MiB")
    number("--rounds", 3, "rounds of the large uploads, and of the small ones")
    number("--uploads", 2000, "small uploads in a round")
    number("--parallel", 16, "small uploads at once")
    number("--photos", 1000, "photos in an index call")
    number("--batches", 100, "index calls")
    parser.add_argument(
        "--only",
        action="append",
        choices=("form", "raw", "small", "index"),
        help="measure only this; may be given several times",
    )
    parser.add_argument(
        "--folder",
        type=Path,
        help="where to store: a disk with room for two large files (the system's temporary folder)",
    )
    parser.add_argument(
        "--event-loop",
        choices=("auto", "asyncio"),
        default="auto",
        help="auto: uvloop where it is installed, as the server itself chooses (auto)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to FILE")
    return parser.parse_args()


def _progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
