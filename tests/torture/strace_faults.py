"""A server under strace: the calls that a request makes, and a fault put into one of them.

strace counts calls thread by thread, so a call is named by its thread, its kind and its number.
Threads are told by their rank: a server makes the same ones in the same order at every start.
"""

import asyncio
import re
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import pytest

from debian_tools import program
from tracing import traced
from wire import PATIENCE

WRITES: Final = ("write", "writev", "pwrite64", "ftruncate")
SYNCS: Final = ("fsync", "fdatasync")
RENAMES: Final = ("rename", "renameat", "renameat2", "link", "linkat")
REMOVALS: Final = ("unlink", "unlinkat", "rmdir")
FOLDERS: Final = ("mkdir", "mkdirat")
OPENINGS: Final = ("openat",)
CALLS: Final = (*WRITES, *SYNCS, *RENAMES, *REMOVALS, *FOLDERS, *OPENINGS)
"""What changes a disk, or tells somebody that it was changed."""

_LINE: Final = re.compile(r"(\d+) +(\w+)\((.*)")
# With -y: descriptors with their files, and no content of what is written.
_OUTPUT: Final = ("-y", "-s", "0")


@dataclass(frozen=True)
class Call:
    """The `number`th call of its `name` in the thread of that `rank`, counted from 1."""

    rank: int
    name: str
    number: int
    text: str = field(compare=False, default="")
    """Its arguments and result, as strace shows them."""

    @property
    def creates(self) -> bool:
        """Whether a file is made that was not there."""
        return "O_CREAT" in self.text

    def concerns(self, folder: Path) -> bool:
        """Whether it is about something below `folder`."""
        return f"{folder}/" in self.text


@dataclass
class Injection:
    """What became of a fault."""

    failed: Sequence[Call] = ()
    """The calls that were made to fail, known once the context has ended."""


async def calls_of(pid: int, output: Path, work: Awaitable[object]) -> list[Call]:
    """The calls that the process makes while `work` is done, in their order."""
    ranks = {thread: rank for rank, thread in enumerate(_threads(pid))}
    async with traced(pid, output, *_OUTPUT, "-e", f"trace={','.join(CALLS)}"):
        await work
    calls = []
    made: Counter[tuple[int, str]] = Counter()
    for line in _lines(output):
        found = _LINE.match(line)
        if found is None:
            continue
        thread, name, text = int(found[1]), found[2], found[3]
        rank = ranks.setdefault(thread, len(ranks))
        made[rank, name] += 1
        calls.append(Call(rank, name, made[rank, name], text))
    return calls


@asynccontextmanager
async def injected(
    pid: int, output: Path, call: Call, effect: str, *, for_ever: bool = False
) -> AsyncIterator[Injection]:
    """While the context lasts `call` has `effect`, and all of its name after it if `for_ever`.

    The effect is one of strace's: `signal=KILL`, `error=EIO`.
    """
    when = f"{call.number}{'+' if for_ever else ''}"
    inject = f"inject={call.name}:{effect}:when={when}"
    threads = _threads(pid)
    injection = Injection()
    if call.rank >= len(threads):
        yield injection  # a thread that has nothing to do yet
        return
    strace = await asyncio.create_subprocess_exec(
        *(str(program("strace", "strace")), *_OUTPUT, "-o", str(output)),
        *("-p", str(threads[call.rank]), "-e", f"trace={call.name}", "-e", inject),
        stderr=asyncio.subprocess.PIPE,
    )
    assert strace.stderr is not None
    try:
        first = await asyncio.wait_for(strace.stderr.readline(), PATIENCE)
        if b"attached" not in first:
            pytest.skip(f"NOT TESTED: strace cannot attach here: {first.decode().strip()}")
        yield injection
    finally:
        if strace.returncode is None:
            strace.terminate()  # it lets go of what it traces
        await strace.communicate()
        lines = (line for line in _lines(output) if line.endswith("(INJECTED)"))
        injection.failed = [replace(call, text=line.partition("(")[2]) for line in lines]


def _lines(output: Path) -> list[str]:
    return output.read_text().splitlines()


def _threads(pid: int) -> list[int]:
    """The threads of a process in the order in which they were made."""
    return sorted(int(path.name) for path in Path(f"/proc/{pid}/task").iterdir())
