"""A server that is killed at any call that changes the disk: nothing torn, nothing lost.

Each kill is followed by a start, as a supervisor would do it, and by everything that has to be
true then; at the end the request that died is sent again.
"""

import asyncio
import random
import signal
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pytest

from debian_tools import INSTALL_SECONDS
from torture.effort import Effort
from torture.kills_library import Library, StartProcess, new_libraries
from torture.kills_requests import MakeRequest, Request, kinds_of_requests
from torture.strace_faults import REMOVALS, Call, calls_of, injected
from wire import PATIENCE

pytestmark = pytest.mark.timeout(INSTALL_SECONDS + 60)

WORKERS: Final = 3
"""Servers at a time, each with its folder: most of a kill is waiting for a start."""
ATTEMPTS: Final = 3
"""How often a call is aimed at until it is met."""
LIVES_A_COMMAND: Final = 25
"""Kills after which `storage check` is run as a command too."""


@dataclass
class Kills:
    """What was done so far, for all workers."""

    wanted: int
    effort: Effort
    by_route: Counter[str] = field(default_factory=Counter)
    survived: int = 0
    """Faults that were laid and not met."""

    @property
    def total(self) -> int:
        """How many servers were killed."""
        return self.by_route.total()

    async def kill(self, library: Library, requests: Sequence[Request], call: Call) -> bool:
        """Send `requests` at once to a server that dies at `call`; then everything is checked.

        False if it did not die: which thread does what is not the same every time.
        """
        await library.stay_small()
        for request in requests:
            await request.prepare(library)
        async with injected(library.pid, library.folder / "strace", call, "signal=KILL"):
            # Of a server that is gone: also half an answer, or none.
            outcomes = await asyncio.gather(
                *(request.send(library) for request in requests), return_exceptions=True
            )
        for outcome in outcomes:
            if outcome is not None and not isinstance(outcome, ConnectionError | EOFError):
                raise outcome
        if await library.is_up():
            assert outcomes == [None] * len(requests), outcomes
            self.survived += 1
            return False
        process = library.server.process
        assert await asyncio.wait_for(process.wait(), PATIENCE) == -signal.SIGKILL
        self.by_route["+".join(sorted({request.route for request in requests}))] += 1
        self.effort.progress("kills", self.total, self.wanted)
        await library.start()
        await library.check()
        if self.total % LIVES_A_COMMAND == 0:
            await library.check_by_command()
        for request in requests:
            await request.finish(library)
        return True

    async def aim(self, library: Library, make: MakeRequest, call: Call) -> bool:
        """Kill a server at `call` of one request, which may take some attempts; whether it was."""
        for _ in range(ATTEMPTS):
            if await self.kill(library, [make()], call):
                return True
        return False


async def test_no_kill_tears_or_loses_anything(
    effort: Effort, start_process: StartProcess, tmp_path: Path
) -> None:
    libraries = await new_libraries(tmp_path, WORKERS, start_process)
    kinds = kinds_of_requests()
    kills = Kills(effort.amount(8, 1000), effort)
    chance = effort.chance("kills")
    order = list(kinds)
    chance.shuffle(order)
    calls: dict[str, list[Call]] = {}
    # Every call of every kind of request, once; a short run takes what comes first.
    walk: deque[tuple[str, Call]] = deque()
    for name in order[: effort.amount(3, len(order))]:
        calls[name] = await calls_of_a(kinds[name], libraries[0])
        walk.extend((name, call) for call in calls[name])
    if not effort.full:
        walk = deque(chance.sample(walk, kills.wanted))
    places, reached = len(walk), 0

    async def work(library: Library) -> None:
        nonlocal reached
        while walk:
            name, call = walk.popleft()
            if await kills.aim(library, kinds[name], call):
                reached += 1
        while kills.total < kills.wanted:
            await kills.kill(library, *several(chance, kinds, calls))
        await library.check_by_command()

    await asyncio.gather(*map(work, libraries))
    routes = ", ".join(f"{route} {count}" for route, count in sorted(kills.by_route.items()))
    assert kills.total >= kills.wanted
    effort.figure(
        "1 kills",
        f"{kills.total} kills ({routes}), {reached} of them at {places} calls one by one; "
        f"{kills.survived} times the request was over before; 0 findings",
    )


async def test_chunks_of_two_versions_are_never_joined(
    effort: Effort, start_process: StartProcess, tmp_path: Path
) -> None:
    """A kill while chunks are removed must not leave some to the next version of the photo."""
    (library,) = await new_libraries(tmp_path, 1, start_process)
    make = kinds_of_requests()["chunk, new"]
    calls = await calls_of_a(make, library)
    removing = [call for call in calls if ".chunks" in call.text and call.name in REMOVALS]
    kills = Kills(len(removing), effort)
    assert any([await kills.aim(library, make, call) for call in removing])
    await library.check()


async def calls_of_a(make: MakeRequest, library: Library) -> list[Call]:
    """The calls that one such request makes, and that change something."""
    request = make()
    await request.prepare(library)
    calls = await calls_of(library.pid, library.folder / "strace", request.send(library))
    return [call for call in calls if call.name != "openat" or call.creates]


def several(
    chance: random.Random, kinds: dict[str, MakeRequest], calls: dict[str, list[Call]]
) -> tuple[list[Request], Call]:
    """Some requests that are sent at once, and any call of one of them."""
    names = chance.choices(list(calls), k=chance.choice((1, 2, 3)))
    call = chance.choice(calls[names[0]])
    # More requests, more calls of a kind: it may be any of theirs.
    number = call.number + chance.randrange(len(names))
    return [kinds[name]() for name in names], Call(call.rank, call.name, number)
