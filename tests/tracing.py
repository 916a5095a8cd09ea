"""A process under strace: what it asked the kernel for."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from debian_tools import program
from wire import PATIENCE


@asynccontextmanager
async def traced(pid: int, output: Path, *options: str) -> AsyncIterator[None]:
    """Have strace write to `output` what the process does while the context lasts."""
    strace = await asyncio.create_subprocess_exec(
        *(str(program("strace", "strace")), "-f", "-o", str(output), "-p", str(pid), *options),
        stderr=asyncio.subprocess.PIPE,
    )
    assert strace.stderr is not None
    try:
        first = await asyncio.wait_for(strace.stderr.readline(), PATIENCE)
        if b"attached" not in first:
            pytest.skip(f"strace cannot attach here: {first.decode().strip()}")
        yield
    finally:
        if strace.returncode is None:
            strace.terminate()  # it lets go of what it traces
        await strace.communicate()


def counts(output: Path) -> dict[str, int]:
    """How often each system call was made, out of the file of `traced(..., "-c")`."""
    # % time, seconds, usecs/call, calls, errors (may be empty), syscall
    row = re.compile(r" *[\d.]+ +[\d.]+ +\d+ +(\d+) +(?:\d+ +)?([a-z]\w+)")
    found = (row.fullmatch(line.rstrip()) for line in output.read_text().splitlines())
    return {line[2]: int(line[1]) for line in found if line and line[2] != "total"}
