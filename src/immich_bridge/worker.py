"""Which of several processes on one port this is, and where the others can be reached."""

import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_NUMBERED: Final = re.compile(r"([0-9]{1,2})-")


@dataclass(frozen=True)
class Worker:
    """One of the `count` workers of a server, known by its number from 0 on."""

    number: int
    count: int
    folder: Path
    """Where the sockets lie by which workers reach each other; nobody else may look in."""

    @property
    def siblings(self) -> Sequence[int]:
        """The numbers of the others."""
        return [number for number in range(self.count) if number != self.number]

    @property
    def prefix(self) -> str:
        """What the names of this worker's uploads begin with."""
        return f"{self.number}-"

    def owner_of(self, name: str) -> int:
        """The number of the worker that has the upload of that name, if anybody has it."""
        numbered = _NUMBERED.match(name)
        owner = int(numbered[1]) if numbered else self.number
        return owner if owner < self.count else self.number

    def requests_socket(self, number: int) -> Path:
        """Where a worker takes requests that others pass on to it."""
        return self.folder / f"{number}"

    def metrics_socket(self, number: int) -> Path:
        """Where a worker tells its numbers."""
        return self.folder / f"{number}m"


@dataclass(frozen=True)
class Inheritance:
    """What a worker gets from its parent process."""

    worker: Worker
    listening: socket.socket
    metrics: socket.socket | None
    """To serve `METRICS_ADDR` on; None where another one does it, or nobody."""
