"""Measure the bridge beside other proxies: the same work, the same machine, the same minutes.

Load driver, proxies and upstream are processes on this machine (Linux). In each round every
target has its turn, in an order drawn anew. Exit code 1: through the bridge an answer or a byte
is wrong, or a limit is missed (RSS growth 24 MiB in the worst round of a single large upload,
first byte 50 ms in the median). No speed fails.
"""

import argparse
import random
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from block import Block
from compiler import compiled
from discarding_upstream import DiscardingUpstream, running_upstream
from figures import Figures, Sample
from load_driver import LoadDriver, LoadFailed
from machine import describe, memory_available
from programs import Missing, program
from report import Report
from targets import DIRECT, MODES, Kind, Mode, Peers, RunningTarget, Target, bridges, parse_mode
from targets import running_targets as running
from works import Work, full_works, quick_works, tiny_works

import backup

_WARM_UP_SECONDS: Final = 0.1
_QUICK_MODES: Final = 3
"""The last mode differs least from the others, and minutes are few."""
_RESULTS: Final = Path(__file__).parent / "results"


class Comparison:
    """Sends works through targets; what is wrong on the way ends up in the report."""

    def __init__(
        self,
        driver: LoadDriver,
        upstream: DiscardingUpstream,
        report: Report,
        seconds: float,
    ) -> None:
        self._driver = driver
        self._upstream = upstream
        self._report = report
        self._seconds = seconds

    def measure(self, work: Work, folder: Path) -> None:
        """All rounds of one work, through targets that have served nothing before."""
        figures = Figures(work)
        self._report.figures.append(figures)
        able = []
        for target in self._report.targets:
            if why := _unable(target, work):
                figures.notes[target.name] = why
            else:
                able.append(target)
        with running(able, self._upstream.port, folder) as (targets, failed):
            for name, why in failed.items():
                self._fail(figures, _named(able, name), why)
            ready = [each for each in targets if self._warm_up(each, figures)]
            for number in range(1, self._report.rounds + 1):
                for each in random.sample(ready, len(ready)):
                    name = each.target.name
                    try:
                        figures.samples.setdefault(name, []).append(self._sample(each, work))
                    except LoadFailed as exc:
                        self._fail(figures, each.target, str(exc))
                        ready.remove(each)
                        # Rounds are compared with each other: half a row is none.
                        del figures.samples[name]
                _progress(f"{work.name}: round {number} of {self._report.rounds}")

    def _warm_up(self, target: RunningTarget, figures: Figures) -> bool:
        """Some requests that do not count, so that connections and code are warm."""
        if figures.work.once:
            return True
        try:
            self._drive(target, figures.work, _WARM_UP_SECONDS)
        except LoadFailed as exc:
            self._fail(figures, target.target, str(exc))
            return False
        return True

    def _sample(self, target: RunningTarget, work: Work) -> Sample:
        if target.stats is None:
            return self._drive(target, work, self._seconds)
        target.stats.reset_peak_rss()
        cpu = target.stats.cpu_seconds()
        sample = self._drive(target, work, self._seconds)
        return Sample(
            sample.seconds,
            sample.requests,
            sample.p50_us,
            sample.p99_us,
            cpu_seconds=target.stats.cpu_seconds() - cpu,
            peak_rss=target.stats.peak_rss(),
            idle_rss=target.idle_rss,
            first_byte_ms=sample.first_byte_ms,
        )

    def _drive(self, target: RunningTarget, work: Work, seconds: float) -> Sample:
        """One run of the driver; raises `LoadFailed` also for what only the upstream can see."""
        self._upstream.receipts()
        drive = self._driver.drive(
            target.port,
            work.request,
            connections=work.connections,
            requests=work.requests,
            seconds=seconds,
        )
        receipts = self._upstream.receipts()
        expected = drive.requests * work.request.file_bytes
        if receipts.faults:
            raise LoadFailed(f"the upstream got {receipts.faults} faults: {receipts.fault}")
        if receipts.file_bytes != expected:
            raise LoadFailed(f"{receipts.file_bytes} bytes arrived instead of {expected}")
        return Sample(
            drive.seconds,
            drive.requests,
            drive.p50_us,
            drive.p99_us,
            first_byte_ms=(receipts.first_byte - drive.begun) * 1000 if receipts.uploads else None,
        )

    def _fail(self, figures: Figures, target: Target, why: str) -> None:
        """What goes wrong in the bridge or without a proxy is a fault; of others it is told."""
        figures.notes[target.name] = f"FAILED: {why}"
        _progress(f"{figures.work.name}, {target.name}: {why}")
        if target.kind in (Kind.BRIDGE, Kind.DIRECT):
            self._report.faults.append(f"{figures.work.name}, {target.name}: {why}")


def _unable(target: Target, work: Work) -> str | None:
    """Why a target cannot do a work."""
    if work.checksum and target.kind in (Kind.PEER, Kind.BASELINE):
        return "digests nothing"
    needed = target.copies * work.bytes * work.connections
    if needed and needed > memory_available():
        return f"needs some {needed >> 30} GiB of memory"
    return None


def _named(targets: Sequence[Target], name: str) -> Target:
    return next(target for target in targets if target.name == name)


def main() -> int:
    """Run the comparison; returns the exit code."""
    options = _options()
    if sys.platform != "linux":
        print("this benchmark needs Linux (/proc, sendfile between files and sockets)")
        return 2
    try:
        report = _compare(options)
    except Missing as exc:
        print(f"this benchmark needs a C compiler: {exc}")
        return 2
    if options.results:
        report.write(options.results, options.name)
    print(report.markdown())
    return 1 if report.faults or report.missed_limits else 0


def _compare(options: argparse.Namespace) -> Report:
    modes = [*MODES[: options.modes], *options.mode]
    peers = None if options.alone or options.verify else Peers()
    targets = [Target(DIRECT, Kind.DIRECT), *(peers.targets if peers else []), *bridges(modes)]
    programs = {**(peers.programs if peers else {}), "cc": program("cc", "gcc", "libc6-dev")}
    report = Report(
        describe(programs),
        targets,
        options.rounds,
        missing=dict(peers.missing) if peers else {},
        note="Every byte was compared: the speeds mean nothing." if options.verify else "",
    )
    with tempfile.TemporaryDirectory(prefix="benchmark-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        block = Block()
        driver = LoadDriver(compiled("driver", folder), block)
        executable = compiled("upstream", folder)
        with running_upstream(executable, block, verify=options.verify) as upstream:
            comparison = Comparison(driver, upstream, report, options.seconds)
            for number, work in enumerate(options.works(block.sha1)):
                if options.only in work.name:
                    work_folder = folder / f"work{number}"
                    work_folder.mkdir()
                    work_folder.chmod(0o755)
                    comparison.measure(work, work_folder)
        block.close()
    if options.backup:
        results = backup.measured(options.backup)
        report.backup = results.table()
        report.backup_figures = results.as_json()
        report.faults += results.faults + results.missed_limits
    return report


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    extent = parser.add_mutually_exclusive_group()
    extent.add_argument("--full", action="store_true", help="all works, longer rounds")
    extent.add_argument(
        "--tiny", action="store_true", help="one small work of each kind: does the benchmark work?"
    )
    parser.add_argument("--rounds", type=_positive, help="rounds of each work (3; full: 5)")
    parser.add_argument("--seconds", type=float, help="length of a round of small requests")
    parser.add_argument("--only", default="", metavar="TEXT", help="only works with TEXT in name")
    parser.add_argument("--alone", action="store_true", help="only the bridge and the direct way")
    parser.add_argument(
        "--mode",
        type=_mode,
        action="append",
        default=[],
        metavar="asyncio,NAME=VALUE",
        help="measure the bridge with these settings too; may be given several times",
    )
    parser.add_argument(
        "--verify",
        action="store_true",
        help="the upstream compares every byte; the speeds mean nothing then",
    )
    parser.add_argument("--no-backup", action="store_true", help="leave the photo backup out")
    parser.add_argument(
        "--results",
        type=Path,
        metavar="FOLDER",
        help="for tables, JSON and charts (results/ beside this file, if all is measured)",
    )
    options = parser.parse_args()
    options.name = "full" if options.full else "tiny" if options.tiny else "quick"
    options.rounds = options.rounds or (5 if options.full else 1 if options.tiny else 3)
    options.seconds = options.seconds or (2.0 if options.full else 0.1 if options.tiny else 0.4)
    options.works = full_works if options.full else tiny_works if options.tiny else quick_works
    options.modes = len(MODES) if options.full else 1 if options.tiny else _QUICK_MODES
    partial = options.tiny or options.only or options.alone or options.verify
    if not options.results and not partial:
        options.results = _RESULTS
    options.backup = None
    if not options.no_backup and not partial:
        options.backup = backup.FULL if options.full else backup.QUICK
    return options


def _positive(text: str) -> int:
    if not text.isdecimal() or not (number := int(text)):
        raise argparse.ArgumentTypeError(f"{text!r}; wanted: 1 or more")
    return number


def _mode(text: str) -> Mode:
    try:
        return parse_mode(text)
    except ValueError as exc:
        raise argparse.ArgumentTypeError(str(exc)) from None


def _progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
