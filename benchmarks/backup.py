"""Measure the photo backup: large and small uploads to disk with fsync, indexing, logins.

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
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import date, timedelta
from pathlib import Path
from typing import Final

from backup_results import RSS_GROWTH_LIMIT_MIB, Plan, Results, Small
from backup_server import BackupServer, Client, Failed, LargeFile, running_backup_server
from processes import NotStarted

WORKS: Final = ("form", "raw", "small", "index", "login")
QUICK: Final = Plan(size_mib=512, uploads=400, batches=20, logins=40)
FULL: Final = Plan(rounds=5)

_MIB: Final = 1024**2
_GIB: Final = 1024**3
_SMALL: Final = 100_000
_FIRST_DAY: Final = date(2000, 1, 1)
_LOGINS_AT_ONCE: Final = 4

Request = Callable[[Client, int], object]
"""Sends one of many requests; the number is its own."""


class Benchmark:
    """Runs the measurements against one server."""

    def __init__(self, server: BackupServer, folder: Path, results: Results) -> None:
        self._server = server
        self._folder = folder
        self._results = results
        self._plan = results.plan
        self._days = 0

    def form(self) -> None:
        """Upload a large file as a form, each time over the one before."""
        self._large("form", Client.upload_large_form)

    def raw(self) -> None:
        """Upload a large file as a raw body, each time over the one before."""
        self._large("raw", Client.upload_large_raw)

    def small(self) -> None:
        """Upload photos of 100 KB in forms, one after another and many at once."""
        content = random.Random(2).randbytes(_SMALL)
        for parallel in self._plan.parallel:
            for _ in range(self._plan.rounds):
                day = self._index(self._plan.uploads, "small")
                prefix = f"small{self._days}"

                def upload(client: Client, number: int, prefix: str = prefix) -> None:
                    client.upload_form(f"{prefix}-{number}", content)

                name = f"form, 100 KB, {parallel} at once"
                self._many(name, upload, parallel, self._plan.uploads)
                files = list((self._server.photos / f"{day:%Y/%m/%d}").iterdir())
                whole = (file.read_bytes() == content for file in files)
                if len(files) != self._plan.uploads or not all(whole):
                    self._results.faults.append("small uploads: the disk has not what was sent")

    def index(self) -> None:
        """Index new photos, each time on a new day."""

        def index(client: Client, _: int) -> None:
            self._index(self._plan.photos, "index", client)

        self._many(f"index of {self._plan.photos} new photos", index, 1, self._plan.batches)

    def login(self) -> None:
        """Log in again and again, each time with the password."""

        def login(client: Client, _: int) -> None:
            client.log_in()

        for parallel in (1, _LOGINS_AT_ONCE):
            self._many(f"login, {parallel} at once", login, parallel, self._plan.logins)

    def _large(self, way: str, upload: Callable[[Client, str, LargeFile], object]) -> None:
        stats, results = self._server.stats, self._results
        file = LargeFile(self._plan.size_mib * _MIB)
        day = self._index(1, "large")
        stored = self._server.photos / f"{day:%Y/%m/%d}" / "IMG_0001.mov"
        for number in range(1, self._plan.rounds + 1):
            seconds = file.write_and_sync(self._folder / "direct")
            (self._folder / "direct").unlink()
            disk = file.size / 1e6 / seconds
            with self._server.client() as client:
                stats.reset_peak_rss()
                cpu, started = stats.cpu_seconds(), time.monotonic()
                upload(client, f"large{self._days}-0", file)
                seconds = time.monotonic() - started
                cpu = stats.cpu_seconds() - cpu
            growth = (stats.peak_rss() - self._server.idle_rss) / _MIB
            if not file.equals(stored):
                results.faults.append(f"{way}: {stored} is not what was sent")
            results.disk_mb_per_second.append(disk)
            results.mb_per_second.setdefault(way, []).append(file.size / 1e6 / seconds)
            results.cpu_seconds_per_gib.setdefault(way, []).append(cpu / (file.size / _GIB))
            results.rss_growth_mib.setdefault(way, []).append(growth)
            _progress(f"{way} to disk: round {number} of {self._plan.rounds}")
        stored.unlink()
        file.close()

    def _many(self, name: str, request: Request, parallel: int, count: int) -> None:
        """Send `count` requests, `parallel` at once; one more round of the figures `name`."""
        stats = self._server.stats
        small = self._results.small.setdefault(name, Small())
        with ExitStack() as stack, ThreadPoolExecutor(parallel) as pool:
            clients = [stack.enter_context(self._server.client()) for _ in range(parallel)]
            turns = iter(range(count))
            cpu, started = stats.cpu_seconds(), time.monotonic()
            work = [pool.submit(_send_all, client, turns, request) for client in clients]
            small.ms += [seconds * 1000 for done in work for seconds in done.result()]
            elapsed = time.monotonic() - started
            cpu = stats.cpu_seconds() - cpu
        small.per_second.append(count / elapsed)
        small.cpu_us.append(cpu / count * 1e6)
        _progress(f"{name}: {count} sent")

    def _index(self, count: int, prefix: str, client: Client | None = None) -> date:
        """Index `count` new photos on a day that nobody had before; the day."""
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
        with ExitStack() as stack:
            client = client or stack.enter_context(self._server.client())
            answer = client.post("/photos/index", body)
        if answer["assigned_files"][-1]["filename"] != f"IMG_{count:04}.mov":
            self._results.faults.append(f"index: {answer['assigned_files'][-1]}")
        return day


def measured(plan: Plan, parent: Path | None = None) -> Results:
    """Run the plan in a folder of `parent` (the system's temporary folder)."""
    results = Results(plan)
    with tempfile.TemporaryDirectory(dir=parent, prefix="backup-benchmark-") as name:
        try:
            for work in plan.only or WORKS:
                # Each kind of work gets a server that has done no other.
                folder = Path(name) / work
                folder.mkdir()
                with running_backup_server(folder, plan.event_loop) as server:
                    getattr(Benchmark(server, folder, results), work)()
        except (Failed, NotStarted, OSError) as exc:
            results.faults.append(f"{type(exc).__name__}: {exc}")
    return results


def _send_all(client: Client, turns: Iterator[int], request: Request) -> list[float]:
    seconds = []
    for number in turns:
        started = time.monotonic()
        request(client, number)
        seconds.append(time.monotonic() - started)
    return seconds


def main() -> int:
    """Run the benchmark; returns the exit code."""
    options = _options()
    if sys.platform != "linux":
        print("this benchmark needs Linux (/proc, sendfile between files and sockets)")
        return 2
    plan = Plan(
        options.size_mib,
        options.rounds,
        options.uploads,
        tuple(options.parallel or Plan.parallel),
        options.photos,
        options.batches,
        options.logins,
        tuple(options.only or ()),
        options.event_loop,
    )
    results = measured(plan, options.folder)
    faults, missed = results.faults, results.missed_limits
    print(results.table())
    print(f"RSS growth limit {RSS_GROWTH_LIMIT_MIB:g} MiB: {'; '.join(missed) or 'met'}")
    print(f"Answers and bytes: {'WRONG: ' + '; '.join(faults) if faults else 'all right'}")
    if options.json:
        report = {"python": platform.python_version(), **results.as_json()}
        options.json.write_text(json.dumps(report, indent=2) + "\n")
    return 1 if faults or missed else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )

    def number(name: str, default: int, meaning: str) -> None:
        parser.add_argument(name, type=int, default=default, help=f"{meaning} ({default})")

    number("--size-mib", Plan.size_mib, "size of the large upload in MiB")
    number("--rounds", Plan.rounds, "rounds of the large uploads, and of the small ones")
    number("--uploads", Plan.uploads, "small uploads in a round")
    number("--photos", Plan.photos, "photos in an index call")
    number("--batches", Plan.batches, "index calls")
    number("--logins", Plan.logins, "logins in a round")
    parser.add_argument(
        "--parallel",
        type=int,
        action="append",
        help="small uploads at once; may be given several times (1, 16)",
    )
    parser.add_argument(
        "--only",
        action="append",
        choices=WORKS,
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
