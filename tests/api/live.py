"""What the fixtures of this folder give."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from immich_standin import StandIn


@dataclass(frozen=True)
class Live:
    """A running server, and what lies behind it."""

    url: str
    immich: StandIn
    storage: Path
    log: list[str]


class Run(Protocol):
    """What the fixture `run` gives."""

    async def __call__(
        self, *command: str | Path, seconds: float, **variables: str
    ) -> tuple[int | None, str]: ...
