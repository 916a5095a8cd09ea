"""A recording: the lives of a server from its first start, with all that phones sent to it."""

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from backup_wing import PASSWORD, USERNAME, Api, settings_in
from torture.power_log import read_calls
from torture.power_phones import Household, Step
from torture.power_replay import Replay
from torture.power_server import FAST, SLOW_SYNCS, command, server, server_killed, traced

_CREATE_USER: Final = ("user", "create", "--username", USERNAME, "--password", PASSWORD)
_SYNCS_OF_A_START: Final = 4
"""So often each of two threads syncs at a first start."""


@dataclass(frozen=True)
class Layout:
    """Where the settings put things, and what is the first to make them."""

    apart: bool
    """Each in a folder of its own, some of which have to be made; else as by default."""
    server_first: bool
    """Whether a server starts before the command that makes an account."""
    killed: bool = False
    """Whether there was a server before that, which was killed while it made them."""

    def settings(self, disk: Path) -> dict[str, str]:
        """Settings of a server that has everything on `disk`."""
        settings = {**settings_in(disk), "LISTEN_ADDR": "127.0.0.1:0"}
        if self.apart:
            settings["DB_PATH"] = str(disk / "state" / "database" / "app.db")
            settings["JWT_SECRET_PATH"] = str(disk / "secrets" / "jwt" / "jwt_secret.key")
            settings["STORAGE_DIR"] = str(disk / "photos" / "storage")
        return settings


@dataclass(frozen=True)
class Recording:
    """The history of a disk, and of what was answered meanwhile."""

    layout: Layout
    household: Household
    replay: Replay
    token: str
    user_made: int
    """The line at which `user create` was done."""

    def answered(self, step: Step) -> int:
        """The line at which the 200 of `step` began to be sent."""
        return self.replay.answered[step.id]

    def cuts(self, chance: random.Random, after_answers: int, elsewhere: int) -> list[int]:
        """Lines at which to cut the power, each sort as many times or as often as there are."""
        answers = [*self.replay.answered.values(), self.user_made]
        return [
            *chance.sample(answers, min(after_answers, len(answers))),
            *chance.choices(sorted(self.replay.lines), k=elsewhere),
        ]


async def record(
    folder: Path, layout: Layout, household: Household, chance: random.Random
) -> Recording:
    """Let `household` use a server that starts on an empty disk, and read what was logged."""
    disk = folder / "disk"
    disk.mkdir()
    replay = _Growing(Replay(disk), folder)
    settings = layout.settings(disk)
    if layout.killed:
        # The first is of the thread that makes the key, the other of that of the database.
        sync = chance.choice(("fsync", "fdatasync"))
        number = chance.randint(1, _SYNCS_OF_A_START)
        await server_killed(sync, number, settings, before=replay.traced())
        replay.grow()
    if layout.server_first:
        async with server(settings, before=(*replay.traced(), FAST)):
            pass
        replay.grow()
    await command(settings, *_CREATE_USER, before=(*replay.traced(), FAST))
    replay.grow()
    user_made = replay.line
    api = Api("")
    for part in range(2):
        async with server(settings, before=(*replay.traced(), FAST, SLOW_SYNCS)) as api.url:
            await household.run(api, part, 2)
        replay.grow()
    assert api.token is not None
    return Recording(layout, household, replay.replay, api.token, user_made)


class _Growing:
    """A replay that grows by one process after the other."""

    def __init__(self, replay: Replay, folder: Path) -> None:
        self.replay = replay
        self.line = 0
        self._log = folder / "strace.log"

    def traced(self) -> tuple[str, ...]:
        return traced(self._log)

    def grow(self) -> None:
        """Take in the log that was just written."""
        calls = read_calls(self._log, self.line)
        self.replay.process(calls)
        self.line = calls[-1].ended + 1
        self._log.unlink()
