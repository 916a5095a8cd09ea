"""Measure large background uploads through the bridge: speed, CPU, memory, first byte.

Client, bridge and upstream are processes on this machine (Linux). Rounds without the
bridge alternate with rounds through it. Exit code 1: a byte is wrong, or a limit is missed
(peak RSS growth 24 MiB in the worst round, first byte 50 ms in the median). No speed fails.
"""

import argparse
import json
import platform
import queue
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from measurement import (
    FIRST_BYTE_LIMIT_MS,
    GIB,
    LOADS_HELP,
    MIB,
    RSS_GROWTH_LIMIT_MIB,
    Load,
    Measurement,
    parse_loads,
    table,
)
from sender import Photo, Sent, UploadFailed
from servers import Bridge, Upstream, running_bridge, running_upstream

_HARD_LIMIT_SECONDS: Final = 60.0
"""How long after the time limit an upload under way is cut off."""


class Benchmark:
    """Runs loads; `deadline` (seconds of the monotonic clock) starts no further round."""

    def __init__(self, photo: Photo, event_loop: str, *, verify: bool, deadline: float) -> None:
        self._photo = photo
        self._event_loop = event_loop
        self._verify = verify
        self._deadline = deadline

    def measure(self, load: Load, rounds: int) -> Measurement:
        """All rounds of `load`, through a bridge that has served nothing before."""
        result = Measurement(load)
        with (
            running_upstream(verify=self._verify) as upstream,
            running_bridge(upstream, self._event_loop) as bridge,
        ):
            result.idle_rss_mib = bridge.idle_rss / MIB
            for number in range(1, rounds + 1):
                if time.monotonic() > self._deadline:
                    _progress(f"{load.name}: time is up after {number - 1} rounds")
                    if number == 1:
                        result.faults.append("time was up before the first round")
                    break
                try:
                    self._round(upstream, bridge, load, result)
                except (UploadFailed, queue.Empty) as exc:
                    result.faults.append(str(exc) or "the upstream saw no upload")
                    # Mostly what came there is the reason of what the client was told.
                    result.faults += upstream.faults()
                if result.faults:
                    _progress(f"{load.name} round {number}: {result.faults}")
                    break
                _progress(
                    f"{load.name} round {number}/{rounds}: {result.mb_per_second[-1]:.0f} MB/s, "
                    f"direct {result.direct_mb_per_second[-1]:.0f} MB/s, "
                    f"{result.cpu_seconds_per_gib[-1]:.2f} CPU-s/GiB, "
                    f"RSS +{result.rss_growth_mib[-1]:.1f} MiB"
                )
        return result

    def _round(self, upstream: Upstream, bridge: Bridge, load: Load, result: Measurement) -> None:
        form, raw = self._photo.upload_form, self._photo.upload_raw
        direct = self._upload(upstream, load, result, upstream.port, form)
        bridge.stats.reset_peak_rss()
        cpu_before = bridge.stats.cpu_seconds()
        bridged = self._upload(upstream, load, result, bridge.port, raw)
        cpu = bridge.stats.cpu_seconds() - cpu_before
        result.mb_per_second.append(bridged.speed)
        result.direct_mb_per_second.append(direct.speed)
        result.of_direct.append(bridged.speed / direct.speed)
        result.cpu_seconds_per_gib.append(cpu / (load.total / GIB))
        result.rss_growth_mib.append((bridge.stats.peak_rss() - bridge.idle_rss) / MIB)
        if bridged.first_byte_ms is not None:
            result.first_byte_ms.append(bridged.first_byte_ms)

    def _upload(
        self,
        upstream: Upstream,
        load: Load,
        result: Measurement,
        port: int,
        upload: Callable[[int, int], Sent],
    ) -> "_Passage":
        with ThreadPoolExecutor(load.parallel) as pool:
            uploads = [pool.submit(upload, port, load.size) for _ in range(load.parallel)]
            sent = [each.result() for each in uploads]
        receipts = [upstream.receipt() for _ in sent]
        expected = self._photo.sha256(load.size) if self._verify else ""
        for receipt in receipts:
            if receipt.fault:
                result.faults.append(receipt.fault)
            elif receipt.file_bytes != load.size:
                result.faults.append(f"{receipt.file_bytes} bytes came instead of {load.size}")
            elif receipt.file_sha256 != expected:
                result.faults.append("the SHA-256 of the file is wrong")
        begin = min(each.first_byte for each in sent)
        end = max(each.first_byte + each.seconds for each in sent)
        # Which receipt belongs to which of several uploads cannot be told.
        delay = receipts[0].first_byte - begin if load.parallel == 1 else None
        return _Passage(
            speed=load.total / 1e6 / (end - begin),
            first_byte_ms=None if delay is None else delay * 1000,
        )


@dataclass(frozen=True)
class _Passage:
    """One load on one way: MB/s, and how long the upstream waited for the first byte."""

    speed: float
    first_byte_ms: float | None


def main() -> int:
    """Run the benchmark; returns the exit code."""
    options = _options()
    if sys.platform != "linux":
        print("this benchmark needs Linux (/proc, sendfile between files and sockets)")
        return 2
    deadline = time.monotonic() + options.time_limit
    photo = Photo(deadline + _HARD_LIMIT_SECONDS)
    benchmark = Benchmark(photo, options.event_loop, verify=options.verify, deadline=deadline)
    results = [benchmark.measure(load, options.rounds) for load in options.sizes]
    photo.close()
    if options.verify:
        print("The SHA-256 of every file was compared; the speeds below are those of digesting.")
    print(table(results))
    faults = [
        f"{each.load.name}: {fault}" for each in results for fault in dict.fromkeys(each.faults)
    ]
    missed = [f"{each.load.name}: {limit}" for each in results for limit in each.missed_limits]
    print(
        f"Limits of a single upload: RSS growth {RSS_GROWTH_LIMIT_MIB:g} MiB (worst round), "
        f"first byte {FIRST_BYTE_LIMIT_MS:g} ms (median): "
        + ("MISSED: " + "; ".join(missed) if missed else "met" if not faults else "not judged")
    )
    print("Uploads: " + ("FAILED: " + "; ".join(faults) if faults else "every byte as announced"))
    if options.json:
        report = {
            "python": platform.python_version(),
            "event_loop": options.event_loop,
            "verify": options.verify,
            "rss_growth_limit_mib": RSS_GROWTH_LIMIT_MIB,
            "first_byte_limit_ms": FIRST_BYTE_LIMIT_MS,
            "missed_limits": missed,
            "results": [asdict(each) for each in results],
        }
        options.json.write_text(json.dumps(report, indent=2) + "\n")
    return 1 if faults or missed else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--sizes", type=parse_loads, default="1GiB,2GiB", help=f"{LOADS_HELP} (1GiB,2GiB)"
    )
    parser.add_argument("--rounds", type=_positive, default=3, help="rounds of each size (3)")
    parser.add_argument(
        "--event-loop",
        choices=("auto", "asyncio"),
        default="auto",
        help="auto: uvloop where it is installed, as the bridge itself chooses (auto)",
    )
    parser.add_argument(
        "--verify",
        action="store_true",
        help="also compare the SHA-256 of what arrived; the speed means nothing then",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to FILE")
    parser.add_argument(
        "--time-limit",
        type=float,
        default=600.0,
        metavar="SECONDS",
        help="start no further round after this long (600)",
    )
    return parser.parse_args()


def _positive(text: str) -> int:
    if not text.isdecimal() or not (number := int(text)):
        raise argparse.ArgumentTypeError(f"{text!r}; wanted: 1 or more")
    return number


def _progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
