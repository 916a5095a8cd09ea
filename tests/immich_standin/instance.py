"""The state of one running stand-in, shared by its rooms."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from .assets import Library
from .behaviour import Behaviour
from .journal import Journal
from .release import Release

if TYPE_CHECKING:
    from .connection import Connection

# Immich advertises `Keep-Alive: timeout=5` and closes after 6 s: Node adds a second of grace.
IDLE_TIMEOUT = 6.0


class Instance:
    def __init__(self, release: Release, data_dir: Path, idle_timeout: float) -> None:
        self.release = release
        self.idle_timeout = idle_timeout
        self.library = Library(data_dir / "upload")
        self.journal = Journal()
        self.connections: set[Connection] = set()
        self._behaviour = Behaviour()

    @property
    def behaviour(self) -> Behaviour:
        return self._behaviour

    @behaviour.setter
    def behaviour(self, behaviour: Behaviour) -> None:
        # Whoever waits for the old one's release would otherwise wait for ever.
        self._behaviour.release()
        self._behaviour = behaviour

    def behaviour_for(self, method: str, target: str) -> Behaviour:
        """The misbehaviour this request meets, or an innocent one."""
        if self._behaviour.take(method, target):
            return self._behaviour
        return Behaviour()
