"""A disk that fails at any call, for any request that writes: never a 200 for what may not last.

The server lives on. What was there stays, what failed leaves nothing, and the same request
succeeds as soon as the disk is well again.
"""

import asyncio
import subprocess
from collections import Counter, deque
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

import pytest

from backup_wing import Answer
from debian_tools import INSTALL_SECONDS
from mounts import filled, mounted
from torture.effort import Effort
from torture.kills_library import Library, StartProcess, new_libraries
from torture.kills_requests import (
    Batch,
    Login,
    MakeRequest,
    Refused,
    Request,
    kinds_of_requests,
)
from torture.strace_faults import REMOVALS, SYNCS, Call, calls_of, injected
from tracing import traced
from wire import PATIENCE

pytestmark = pytest.mark.timeout(INSTALL_SECONDS + 60)

ERRORS: Final = ("EIO", "ENOSPC", "EDQUOT")
WORKERS: Final = 2
STAYS_BROKEN: Final = (*SYNCS, "pwrite64", "rename", "mkdir")
"""Calls that are made for nothing but the disk: they may fail as long as one likes."""


@dataclass(frozen=True)
class Fault:
    """A call of a kind of request, and what it fails with."""

    kind: str
    call: Call
    error: str
    for_ever: bool


@dataclass
class DiskErrors:
    """What was done so far, for all workers."""

    kinds: dict[str, MakeRequest]
    by_route: Counter[str] = field(default_factory=Counter)
    by_call: Counter[str] = field(default_factory=Counter)
    answers: Counter[int] = field(default_factory=Counter)

    async def meet(self, library: Library, fault: Fault) -> None:
        """Send one request to a server whose disk fails in it, and once more when it is well."""
        await library.stay_small()
        request = self.kinds[fault.kind]()
        await request.prepare(library)
        before, logged, token = library.photos(), len(library.server.log), library.token
        output = library.folder / "strace"
        inject = injected(
            library.pid, output, fault.call, f"error={fault.error}", for_ever=fault.for_ever
        )
        async with inject as injection:
            answer = await answer_to(request, library)
        if not injection.failed:
            assert answer is None, answer  # it took another way through the threads
            await library.check()
            return
        if not all(call.concerns(library.folder) for call in injection.failed):
            # A thread that wakes another writes to no disk, and nothing survives if it cannot.
            await library.restart()
            return
        self.by_route[request.route] += 1
        self.by_call[fault.call.name] += 1
        self.answers[200 if answer is None else answer.status] += 1
        if answer is None:
            # Whatever is left to be removed does no harm to what is stored.
            assert all(may_fail_unseen(call) for call in injection.failed), fault
        else:
            failed = injection.failed[0]
            assert answer.error[:2] == expected(library, failed, fault.error), (fault, answer)
            assert str(library.folder) not in answer.error[2]
            assert library.photos() == before, fault
            assert library.token == token
            assert (await library.api.status()).status == 200, "the token has gone"
        self._check_leftovers(library, injection.failed)
        assert await library.findings() == [], fault
        await self._check_log(library, fault, logged)
        if any(call.name == "fdatasync" for call in injection.failed):
            # The commit that failed is whole in the log of the database: a crash brings it back.
            await library.restart()
        await request.finish(library)
        if any(call.name in REMOVALS for call in injection.failed):
            await library.restart()  # the next start removes what could not be
        await library.check()

    def _check_leftovers(self, library: Library, failed: Sequence[Call]) -> None:
        left = [path.name for path in library.storage.rglob(".upload-*")]
        if any(call.name in REMOVALS for call in failed):
            return
        # A commit that failed may yet be found in the log of the database after a crash.
        marks = [name for name in left if name.endswith(".placed")]
        in_database = any(call.concerns(library.database.parent) for call in failed)
        assert left == (marks if in_database else []), failed

    async def _check_log(self, library: Library, fault: Fault, logged: int) -> None:
        lines = library.server.log[logged:]
        assert not [line for line in lines if "Traceback" in line], lines
        errors = [line for line in lines if " ERROR " in line]
        assert len(errors) <= 1, errors
        assert all("cannot write" in line for line in errors), errors


def expected(library: Library, failed: Call, error: str) -> tuple[int, str]:
    """Status and code of the answer."""
    if failed.concerns(library.storage):
        full = error in ("ENOSPC", "EDQUOT")
    else:
        # SQLite knows no quota, and a sync that fails is to it a fault of the device.
        full = error == "ENOSPC" and failed.name not in SYNCS
    return (507, "insufficient_storage") if full else (500, "internal_error")


def may_fail_unseen(call: Call) -> bool:
    """Whether a 200 is right though `call` failed: the photo is stored already, row and all."""
    after = (".done", ".removed", "/.chunks/1/.upload-", "/.chunks/1>")
    return call.name in REMOVALS or any(part in call.text for part in after)


async def answer_to(request: Request, library: Library) -> Answer | None:
    """The answer if it is an error; None if all went well."""
    with suppress(ConnectionError, EOFError):  # to be explained by what the fault has hit
        try:
            await request.send(library)
        except Refused as refused:
            return refused.answer
    return None


def all_kinds() -> dict[str, MakeRequest]:
    """Every kind of request that writes, logins among them."""
    logins: dict[str, MakeRequest] = {"login": Login, "refresh": partial(Login, refresh=True)}
    return kinds_of_requests() | logins


async def faults_of(kind: str, make: MakeRequest, library: Library) -> list[Fault]:
    """Every way in which the disk can fail one such request."""
    request = make()
    await request.prepare(library)
    calls = await calls_of(library.pid, library.folder / "strace", request.send(library))
    # Only folders of our own: what else is written goes to no disk.
    ours = [
        call
        for call in calls
        if call.concerns(library.storage) or call.concerns(library.database.parent)
    ]
    writing = [call for call in ours if call.name != "openat" or call.creates]
    return [
        Fault(kind, call, error, for_ever)
        for call in writing
        for error in ERRORS
        for for_ever in (False, True)
        if not for_ever or (call.name in STAYS_BROKEN and error != "EDQUOT")
    ]


async def test_no_error_of_the_disk_is_answered_with_200(
    effort: Effort, start_process: StartProcess, tmp_path: Path
) -> None:
    libraries = await new_libraries(tmp_path, effort.amount(1, WORKERS), start_process)
    done = DiskErrors(all_kinds())
    chance = effort.chance("disk errors")
    # Of the many pages of a long batch one is like the other; it meets a full disk below.
    names = [name for name in done.kinds if name != "index, long"]
    faults = [
        fault
        for name in chance.sample(names, effort.amount(6, len(names)))
        for fault in await faults_of(name, done.kinds[name], libraries[0])
    ]
    left = deque(chance.sample(faults, effort.amount(24, len(faults))))

    async def work(library: Library) -> None:
        while left:
            await done.meet(library, left.popleft())
            effort.progress("disk errors", len(faults) - len(left), len(faults))
        await library.check_by_command()

    await asyncio.gather(*map(work, libraries))
    met = done.by_route.total()
    assert met > 0
    effort.figure("3 disk errors", f"{met} faults; by route: {told(done.by_route)}")
    effort.figure("3 disk errors", f"by call: {told(done.by_call)}")
    effort.figure("3 disk errors", f"answers: {told(done.answers)}; 0 left anything behind")


def told(counts: Counter[str] | Counter[int]) -> str:
    """Counts in words."""
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 24 MiB, for photos and database alike."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted("-t", "tmpfs", "-o", "size=24m", "tmpfs", str(disk))
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


@asynccontextmanager
async def full(disk: Path) -> AsyncIterator[None]:
    """No room is left on `disk` while the context lasts."""
    filler = filled(disk)
    try:
        yield
    finally:
        filler.unlink()


async def test_a_disk_that_is_really_full(
    effort: Effort, start_process: StartProcess, small_disk: Path
) -> None:
    (library,) = await new_libraries(small_disk, 1, start_process)
    answers: Counter[int] = Counter()
    kinds = all_kinds() | {"index, long": partial(Batch, size=2000)}
    names = effort.chance("full disk").sample(list(kinds), effort.amount(8, len(kinds)))
    for name in names:
        request = kinds[name]()
        await request.prepare(library)
        before = library.photos()
        async with full(small_disk):
            answer = await answer_to(request, library)
        assert answer is not None, request
        assert answer.error[:2] == (507, "insufficient_storage"), answer
        answers[answer.status] += 1
        assert library.photos() == before
        assert await library.findings() == []
        await request.finish(library)
        await library.check()
    assert not [line for line in library.server.log if "Traceback" in line]
    effort.figure("3 disk errors", f"a full tmpfs, kinds of requests: {told(answers)}")


async def test_a_start_on_a_full_disk_leaves_for_later_what_it_cannot_settle(
    start_process: StartProcess, small_disk: Path
) -> None:
    (library,) = await new_libraries(small_disk, 1, start_process)
    make = all_kinds()["raw, replaced"]
    commit = await first_call(library, make, "pwrite64")
    upload = make()
    await upload.prepare(library)
    async with injected(library.pid, library.folder / "strace", commit, "signal=KILL"):
        assert await answer_to(upload, library) is None
    await asyncio.wait_for(library.server.process.wait(), PATIENCE)
    async with full(small_disk):
        await library.start()
        assert any("settling uploads failed" in line for line in library.server.log)
        assert await library.findings() != []
    await library.restart()
    assert any("settled interrupted uploads files=1" in line for line in library.server.log)


async def test_a_file_system_that_knows_no_second_names(
    start_process: StartProcess, tmp_path: Path
) -> None:
    (library,) = await new_libraries(tmp_path, 1, start_process)
    output = library.folder / "strace"
    for kind in ("form, new", "form, replaced"):
        for error in ("EPERM", "EOPNOTSUPP", "EMLINK"):
            upload = all_kinds()[kind]()
            await upload.prepare(library)
            inject = f"inject=link:error={error}"
            async with traced(library.pid, output, "-e", "trace=link", "-e", inject):
                assert await answer_to(upload, library) is None
            assert "(INJECTED)" in output.read_text()
            await library.check()


async def first_call(library: Library, make: MakeRequest, name: str) -> Call:
    """The first call of that name in one such request."""
    request = make()
    await request.prepare(library)
    output = library.folder / "strace"
    return next(
        call
        for call in await calls_of(library.pid, output, request.send(library))
        if call.name == name
    )
