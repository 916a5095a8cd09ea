"""What the tests share: a bridge on a real port, in front of a stand-in Immich on another."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from api.answers import documented_answers  # noqa: F401 - judges every answer of every test
from immich_bridge.config import Config
from immich_bridge.serve import Server, running_server
from immich_standin import StandIn
from wire import PATIENCE

TEST_SETTINGS = {"LISTEN_ADDR": "127.0.0.1:0", "BACKUP_ENABLED": "false"}


class BridgeProcess:
    """The bridge as a process of its own, as an operator runs it."""

    def __init__(self, process: asyncio.subprocess.Process, url: str, log: list[str]) -> None:
        self.process = process
        self.url = url
        self.log = log
        """Lines of standard error so far."""


StartBridge = Callable[..., Awaitable[Server]]
StartProcess = Callable[..., Awaitable[BridgeProcess]]


@pytest.fixture(params=[3], ids=["v3"])
async def immich(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[StandIn]:
    """A stand-in Immich in this process."""
    async with StandIn(version=request.param, data_dir=tmp_path / "immich") as standin:
        yield standin


@pytest.fixture
async def start_bridge() -> AsyncIterator[StartBridge]:
    """Start bridges in this process: `await start_bridge(immich_url, SETTING="value", ...)`."""
    async with AsyncExitStack() as stack:

        async def start(immich_url: str, **settings: str) -> Server:
            values = {**TEST_SETTINGS, "IMMICH_SERVER_URL": immich_url, **settings}
            return await stack.enter_async_context(running_server(Config.from_mapping(values)))

        yield start


@pytest.fixture
async def bridge(immich: StandIn, start_bridge: StartBridge) -> Server:
    """A bridge with default settings in front of `immich`."""
    return await start_bridge(immich.url)


@pytest.fixture
async def start_process(tmp_path: Path) -> AsyncIterator[StartProcess]:
    """Start bridges as processes: `await start_process(SETTING="value", ...)`."""
    processes: list[asyncio.subprocess.Process] = []
    readers: list[asyncio.Task[None]] = []

    async def start(**settings: str) -> BridgeProcess:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "immich_bridge",
            cwd=tmp_path,
            env={"PATH": os.environ["PATH"], **TEST_SETTINGS, **settings},
            stderr=asyncio.subprocess.PIPE,
        )
        processes.append(process)
        log: list[str] = []
        url: asyncio.Future[str] = asyncio.get_running_loop().create_future()

        async def follow() -> None:
            assert process.stderr is not None
            async for line in process.stderr:
                log.append(line.decode().rstrip())
                if " listening " in log[-1] and not url.done():
                    url.set_result(log[-1].partition(" url=")[2].split()[0])
            if not url.done():
                url.set_exception(AssertionError(f"the bridge did not start: {log}"))

        readers.append(asyncio.create_task(follow()))
        return BridgeProcess(process, await asyncio.wait_for(url, PATIENCE), log)

    yield start
    for process in processes:
        if process.returncode is None:
            process.kill()
        await process.wait()
    await asyncio.gather(*readers)
