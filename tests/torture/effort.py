"""How hard a test of a promise tries, and what it found: small with the tests, full on demand."""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, TypeVar

_Amount = TypeVar("_Amount", int, float)

_SECONDS_BETWEEN_LINES: Final = 5.0


@dataclass
class Effort:
    """The amounts of one run, its chance, and its words for whoever watches it."""

    full: bool
    seed: int
    soak_seconds: float
    say: Callable[[str], None]
    """Writes a line to the terminal, past pytest's capture."""
    figures: dict[str, list[str]] = field(default_factory=dict)
    """Promise (`1 kills`) -> what was measured of it."""
    _said_at: float = field(default_factory=time.monotonic)

    def amount(self, small: _Amount, full: _Amount) -> _Amount:
        """How many: `small` with the tests, `full` when asked for."""
        return full if self.full else small

    def chance(self, *salt: object) -> random.Random:
        """Randomness that is the same for the same seed and `salt`."""
        return random.Random(f"{self.seed} {salt}")

    def progress(self, what: str, done: int, total: int) -> None:
        """Say how far long work has come, every few seconds of a full run."""
        if self.full and time.monotonic() - self._said_at >= _SECONDS_BETWEEN_LINES:
            self._said_at = time.monotonic()
            self.say(f"{what}: {done} of {total}")

    def figure(self, promise: str, measured: str) -> None:
        """Keep a figure for the table at the end; `promise` as in docs/reliability.md."""
        self.figures.setdefault(promise, []).append(measured)
