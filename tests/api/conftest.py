"""A server with both wings, as a process, for tools that speak to it from outside."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Final

import pytest

from api.live import Live, Run
from backup_wing import PASSWORD, USERNAME, StartBackupProcess, settings_in
from immich_bridge.backup.accounts import Accounts
from immich_bridge.backup.database import Database
from immich_standin import StandIn
from node_tools import missing_reason

SAMPLE: Final = Path(__file__).parents[1] / "samples" / "IMG_0002.JPG"


@pytest.fixture
async def live(
    immich: StandIn, start_process: StartBackupProcess, tmp_path: Path
) -> AsyncIterator[Live]:
    """A server with the user of the API document, in front of a stand-in Immich."""
    settings = settings_in(tmp_path)
    database = Database(Path(settings["DB_PATH"]))
    await database.open()
    accounts = Accounts(database)
    await accounts.create(USERNAME, PASSWORD)
    accounts.close()
    await database.close()
    server = await start_process(**{**settings, "IMMICH_SERVER_URL": immich.url})
    yield Live(server.url, immich, Path(settings["STORAGE_DIR"]), server.log)
    # An answer may be as documented and still hide a fault.
    assert not [line for line in server.log if "Traceback" in line or " ERROR " in line]


@pytest.fixture
def variables(live: Live) -> Mapping[str, str]:
    """What a client of `live` has to know, under the names that the examples use."""
    return {
        "BASE_URL": live.url,
        "USERNAME": USERNAME,
        "PASSWORD": PASSWORD,
        "IMMICH_API_KEY": StandIn.api_key,
    }


@pytest.fixture
def photo(tmp_path: Path) -> bytes:
    """The photo that the examples send: `photo.jpg` in the folder in which `run` runs."""
    content = SAMPLE.read_bytes()
    (tmp_path / "photo.jpg").write_bytes(content)
    return content


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run a program in the test's folder: its exit status and all that it wrote."""
    # The examples call python3, of which a machine may have only that of this environment.
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))

    async def run(*command: str | Path, seconds: float, **variables: str) -> tuple[int | None, str]:
        process = await asyncio.create_subprocess_exec(
            *command,
            cwd=tmp_path,
            env={"PATH": path, "HOME": str(tmp_path), **variables},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        try:
            written, _ = await asyncio.wait_for(process.communicate(), seconds)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        return process.returncode, written.decode()

    return run


@pytest.fixture
def node_packages() -> None:
    """Skips a test that needs packages from npm where they cannot be had, or fails it in CI."""
    reason = missing_reason()
    if reason is None:
        return
    if os.environ.get("CI"):
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)
