"""The program under strace: the server, and the command that makes an account."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import pytest
from processes import clean_environment

from debian_tools import program
from torture.power_log import OPTIONS
from wire import PATIENCE

FAST: Final = "--seccomp-bpf"
"""For strace: stop at the calls of interest only. It cannot send signals then."""
SLOW_SYNCS: Final = "--inject=fsync:delay_exit=5000"
"""For strace, in microseconds: long enough for others to come meanwhile."""


def traced(log: Path) -> tuple[str, ...]:
    """What to put before a command so that its calls are written to `log`."""
    return str(program("strace", "strace")), *OPTIONS, f"--output={log}"


@asynccontextmanager
async def process(
    settings: Mapping[str, str], *arguments: str, before: tuple[str, ...] = ()
) -> AsyncIterator[asyncio.subprocess.Process]:
    """The program in a session of its own, its log on a pipe; killed if it outlives the context."""
    running = await asyncio.create_subprocess_exec(
        *(*before, sys.executable, "-m", "immich_bridge", *arguments),
        env=clean_environment(settings),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    try:
        yield running
    finally:
        if running.returncode is None:
            os.killpg(running.pid, signal.SIGKILL)
        await running.communicate()


async def command(
    settings: Mapping[str, str], *arguments: str, before: tuple[str, ...] = ()
) -> None:
    """Run a command of the program, which has to succeed."""
    async with process(settings, *arguments, before=before) as running:
        _, errors = await asyncio.wait_for(running.communicate(), PATIENCE)
        _skip_where_tracing_is_forbidden(errors.decode())
        assert running.returncode == 0, errors


@asynccontextmanager
async def server(
    settings: Mapping[str, str], *, before: tuple[str, ...] = ()
) -> AsyncIterator[str]:
    """A server and its URL; leaving the context stops it as an operator does."""
    async with process(settings, before=before) as running:
        assert running.stderr is not None
        log = ""
        while " listening " not in log:
            line = await asyncio.wait_for(running.stderr.readline(), PATIENCE)
            _skip_where_tracing_is_forbidden(log)
            assert line, f"the server did not start: {log}"
            log += line.decode()
        yield log.partition(" url=")[2].split()[0]
        # strace, which is of this session too, waits for the server to end.
        os.killpg(running.pid, signal.SIGTERM)
        await asyncio.wait_for(running.communicate(), PATIENCE)
        assert running.returncode == 0


async def server_killed(
    call: str, number: int, settings: Mapping[str, str], *, before: tuple[str, ...]
) -> None:
    """Start a server of which a thread is killed as it makes a call for the `number`th time."""
    kill = f"--inject={call}:signal=SIGKILL:when={number}"
    async with process(settings, before=(*before, kill)) as running:
        _, errors = await asyncio.wait_for(running.communicate(), PATIENCE)
        _skip_where_tracing_is_forbidden(errors.decode())
        assert running.returncode == -signal.SIGKILL, errors


def _skip_where_tracing_is_forbidden(errors: str) -> None:
    if "PTRACE_TRACEME" in errors:
        pytest.skip(f"!!! NOT TESTED: strace may not trace here: {errors.strip()}")
