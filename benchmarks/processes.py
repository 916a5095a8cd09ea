"""Servers of a benchmark: each a process group of its own, started, watched and ended here."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final
from urllib.error import HTTPError
from urllib.request import urlopen

START_SECONDS: Final = 20.0
STOP_SECONDS: Final = 5.0
_POLL_SECONDS: Final = 0.05
# Leaves asyncio's own event loop to the bridge although uvloop is installed.
_WITHOUT_UVLOOP: Final = (
    "import sys; sys.modules['uvloop'] = None; from immich_bridge.cli import main; sys.exit(main())"
)
# What the bridge's settings are must not depend on who runs the benchmark.
_PASSED_ON: Final = ("PATH", "HOME", "LANG", "PYTHONPATH")


class NotStarted(Exception):
    """A server did not get as far as answering; the message names it."""


def clean_environment(settings: Mapping[str, str]) -> dict[str, str]:
    """An environment with nothing in it but `settings` and what a program needs to run."""
    return {name: os.environ[name] for name in _PASSED_ON if name in os.environ} | dict(settings)


def bridge_command(event_loop: str) -> list[str]:
    """The bridge on `auto` (uvloop where it is installed) or `asyncio` as its event loop."""
    start = ["-m", "immich_bridge"] if event_loop == "auto" else ["-c", _WITHOUT_UVLOOP]
    return [sys.executable, *start]


def free_port() -> int:
    """A port on which nobody listens at the moment."""
    with socket.create_server(("127.0.0.1", 0)) as reserved:
        return int(reserved.getsockname()[1])


@contextmanager
def running_process(
    command: Sequence[str], *, environment: Mapping[str, str], folder: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """Run `command` in `folder` as a session of its own, its output on stderr."""
    process = subprocess.Popen(
        command,
        env=dict(environment),
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_SECONDS)
        # Also what the process itself has left behind; the session bears its id.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait_until_healthy(name: str, process: subprocess.Popen[bytes], port: int) -> None:
    """Wait for an answer to `GET /health`, whatever its status; raises `NotStarted`."""
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        try:
            with urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                return
        except HTTPError:
            return
        except OSError:
            time.sleep(_POLL_SECONDS)
    raise NotStarted(f"{name} did not start")
