"""What came of the requests of a soak, by kind: how many, how long, what went wrong."""

import asyncio
import math
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import aiohttp

_STEP: Final = math.log(1.02)
"""Latencies are counted in classes 2 % wide: exact enough, and of bounded size for days."""
_MAX_MESSAGES: Final = 50


class Wrong(Exception):
    """An answer that is not the right one; the message says in what."""


class Latencies:
    """Any number of latencies, of which only how many fell into each class is kept."""

    def __init__(self) -> None:
        self._classes: Counter[int] = Counter()
        self.longest = 0.0

    def add(self, seconds: float) -> None:
        """Count one."""
        self._classes[math.ceil(math.log(max(seconds, 1e-6)) / _STEP)] += 1
        self.longest = max(self.longest, seconds)

    def percentile(self, percent: float) -> float:
        """Seconds within which so many percent of all lay (2 % too many at most); 0 if none."""
        wanted = math.ceil(self._classes.total() * percent / 100)
        for number in sorted(self._classes):
            wanted -= self._classes[number]
            if wanted <= 0:
                return min(math.exp(number * _STEP), self.longest)
        return 0.0


@dataclass
class Kind:
    """The requests of one kind."""

    latencies: Latencies = field(default_factory=Latencies)
    done: int = 0
    failed: int = 0
    under_way: int = 0
    bytes: int = 0


class Tally:
    """Counts for all clients of a soak. `messages` are the first things that went wrong."""

    def __init__(self) -> None:
        self.kinds: dict[str, Kind] = {}
        self.messages: list[str] = []
        self._started = time.monotonic()
        self._ended: float | None = None

    @property
    def elapsed(self) -> float:
        """Seconds from the start of the soak until now, or its end."""
        return (self._ended or time.monotonic()) - self._started

    def end(self) -> None:
        """Nothing more is to come."""
        self._ended = time.monotonic()

    @property
    def failed(self) -> int:
        """How many requests were not answered as they should be."""
        return sum(kind.failed for kind in self.kinds.values())

    @property
    def done(self) -> int:
        """How many were."""
        return sum(kind.done for kind in self.kinds.values())

    @contextmanager
    def request(self, name: str, size: int = 0) -> Iterator[None]:
        """Time and count one request that moves `size` bytes; an error in here is counted too.

        It ends here: what comes after the context has to look whether there is an answer.
        """
        kind = self.kinds.setdefault(name, Kind())
        kind.under_way += 1
        started = time.monotonic()
        try:
            yield
        except (Wrong, aiohttp.ClientError, TimeoutError, OSError, ValueError) as exc:
            kind.failed += 1
            if len(self.messages) < _MAX_MESSAGES:
                self.messages.append(f"{self.elapsed:.1f} s, {name}: {type(exc).__name__}: {exc}")
        else:
            kind.done += 1
            kind.bytes += size
            kind.latencies.add(time.monotonic() - started)
        finally:
            kind.under_way -= 1

    def as_json(self) -> dict[str, Any]:
        """All figures."""
        return {
            "seconds": self.elapsed,
            "kinds": {
                name: {
                    "done": kind.done,
                    "failed": kind.failed,
                    "bytes": kind.bytes,
                    "longest_ms": kind.latencies.longest * 1000,
                    **{f"p{p:g}_ms": kind.latencies.percentile(p) * 1000 for p in (50, 95, 99)},
                }
                for name, kind in self.kinds.items()
            },
            "messages": self.messages,
        }


async def pause(stop: asyncio.Event, seconds: float) -> None:
    """Wait, but not beyond the end of the soak."""
    try:
        async with asyncio.timeout(seconds):
            await stop.wait()
    except TimeoutError:
        pass
