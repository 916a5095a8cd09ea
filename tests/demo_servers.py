"""The servers of the demo: each a process of its own that is waited for, watched and ended."""

import asyncio
import os
import re
import socket
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import aiohttp

from immich_bridge.settings import SETTINGS

START_SECONDS = 30.0
"""A cold Python on a slow machine needs some seconds to import everything."""
STOP_SECONDS = 10.0
POLL_SECONDS = 0.05
TAIL_LINES = 8
"""How much of a dead server's output is shown: the end of a traceback, with its cause."""


class DemoError(Exception):
    """Why the demo cannot go on; the first line of the message says it all."""


class ServerProcess:
    """A running server; `url` is where it said that it listens."""

    def __init__(self, name: str, process: asyncio.subprocess.Process) -> None:
        self.name = name
        self.process = process
        self.url = ""
        self.on_line: Callable[[str], None] | None = None
        """Gets each line of output from now on."""
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)

    async def follow(self, announcement: re.Pattern[str], announced: asyncio.Event) -> None:
        """Read the output to its end; set `announced` at the URL, or when none will come."""
        assert self.process.stdout is not None
        async for raw in self.process.stdout:
            line = raw.decode("utf-8", "replace").rstrip()
            self._tail.append(line)
            found = announcement.search(line)
            if found and not self.url:
                self.url = found[1]
                announced.set()
            if self.on_line is not None:
                self.on_line(line)
        announced.set()

    async def died(self) -> DemoError:
        """Wait for the end of the process; returns the error that tells of it."""
        code = await self.process.wait()
        how = f"by signal {-code}" if code < 0 else f"with exit code {code}"
        return self.error(f"the {self.name} ended {how}")

    async def healthy(self, session: aiohttp.ClientSession, path: str) -> None:
        """Poll until the server answers 200; raises `DemoError` when it ends or takes too long."""
        dying = asyncio.create_task(self.died())
        try:
            async with asyncio.timeout(START_SECONDS):
                while not dying.done():
                    with suppress(aiohttp.ClientError):
                        async with session.get(self.url + path) as answer:
                            if answer.status == 200:
                                return
                    await asyncio.sleep(POLL_SECONDS)
        except TimeoutError:
            raise self.error(
                f"the {self.name} at {self.url} is not healthy after {START_SECONDS:g} s"
            ) from None
        finally:
            dying.cancel()
        raise dying.result()

    async def stop(self) -> None:
        """SIGTERM, and SIGKILL when that takes too long or nobody wants to wait."""
        with suppress(ProcessLookupError):
            self.process.terminate()
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await self.process.wait()
        except (TimeoutError, asyncio.CancelledError) as exc:
            with suppress(ProcessLookupError):
                self.process.kill()
            await self.process.wait()
            if isinstance(exc, asyncio.CancelledError):
                raise

    def error(self, message: str) -> DemoError:
        """An error that shows the last lines of output too."""
        lines = "".join(f"\n  | {line}" for line in self._tail)
        return DemoError(f"{message}; its last lines:{lines}" if lines else message)


@asynccontextmanager
async def running_server(
    name: str,
    command: Sequence[str],
    *,
    announcement: re.Pattern[str],
    folder: Path,
    environment: Mapping[str, str],
) -> AsyncIterator[ServerProcess]:
    """Start a server in `folder`, wait for the line with its URL, and end it afterwards.

    `announcement` finds that line; its first group is the URL. Raises `DemoError`.
    """
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=folder,
        env=dict(environment),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        # The terminal sends Ctrl-C to the whole process group: the servers are ended here,
        # in order, and not at the same time by it.
        start_new_session=True,
    )
    server = ServerProcess(name, process)
    announced = asyncio.Event()
    following = asyncio.create_task(server.follow(announcement, announced))
    try:
        try:
            async with asyncio.timeout(START_SECONDS):
                await announced.wait()
        except TimeoutError:
            raise server.error(f"the {name} has not started after {START_SECONDS:g} s") from None
        if not server.url:
            raise await server.died()
        yield server
    finally:
        try:
            await server.stop()
        finally:
            await following


def clean_environment() -> dict[str, str]:
    """The environment without settings of the bridge: the demo shows its defaults."""
    names = {setting.name for setting in SETTINGS}
    return {name: value for name, value in os.environ.items() if name not in names}


def choose_port(asked: int | None, default: int) -> int:
    """The port asked for, else the default one, or 0 (any) when that is taken."""
    if asked is not None:
        return asked
    return default if _is_free(default) else 0


def _is_free(port: int) -> bool:
    # Where one may listen beside another on a narrower address, binding alone tells nothing.
    for host in ("127.0.0.1", "::1"):
        with suppress(OSError), socket.create_connection((host, port), timeout=1):
            return False
    dual_stack = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if dual_stack else socket.AF_INET
    try:
        socket.create_server(("", port), family=family, dualstack_ipv6=dual_stack).close()
    except OSError:
        return False
    return True
