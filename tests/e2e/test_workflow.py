"""The workflow of the API document, as a shell script with curl against a server process."""

import asyncio
import json
import os
import random
import shutil
import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from backup_wing import PASSWORD, StartBackupProcess, rows, settings_in
from wire import PATIENCE

SCRIPT = Path(__file__).with_name("workflow.sh")
# Larger than any buffer on the way.
PHOTO = random.Random(1).randbytes(3_000_001)

Run = Callable[..., Awaitable[tuple[int | None, list[str], str]]]

pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")


def photo_in(folder: Path, content: bytes) -> Path:
    """A file to upload, under a name that needs care in shells and forms."""
    path = folder / "holiday \u00e9 $1.jpg"
    path.write_bytes(content)
    return path


@pytest.fixture
async def run(start_process: StartBackupProcess, tmp_path: Path) -> Run:
    """Run the script against a server process with the user `admin`."""
    settings = settings_in(tmp_path)
    command = [sys.executable, "-m", "immich_bridge", "user", "create", "--username", "admin"]
    environment = {"PATH": os.environ["PATH"], **settings}
    made = await asyncio.create_subprocess_exec(
        *command, "--password", PASSWORD, env=environment, stdout=asyncio.subprocess.DEVNULL
    )
    assert await asyncio.wait_for(made.wait(), PATIENCE) == 0
    server = await start_process(**settings)

    async def run_script(photo: Path, **variables: str) -> tuple[int | None, list[str], str]:
        script = await asyncio.create_subprocess_exec(
            *("sh", SCRIPT, photo),
            env={
                "PATH": os.environ["PATH"],
                "PYTHON": sys.executable,
                "BASE_URL": server.url,
                "PASSWORD": PASSWORD,
                **variables,
            },
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await asyncio.wait_for(script.communicate(), PATIENCE)
        return script.returncode, out.decode().splitlines(), err.decode()

    return run_script


async def test_the_workflow_of_the_document(run: Run, tmp_path: Path) -> None:
    code, answers, steps = await run(photo_in(tmp_path, PHOTO))
    assert (code, len(answers)) == (0, 4), (answers, steps)
    assert steps.split("\n") == [
        "1. Login",
        "2. Index photos",
        "3. Upload file",
        "4. Verify",
        "",
    ]
    assert json.loads(answers[3]) == {"status": "online", "user_id": 1, "username": "admin"}
    stored = tmp_path / "storage" / "photo" / "1" / "2025" / "12" / "10" / "IMG_0001.jpg"
    assert stored.read_bytes() == PHOTO
    assert stored.stat().st_mtime == datetime(2025, 12, 10, 10, tzinfo=UTC).timestamp()
    # It is the one file of the whole storage, and its row knows of it.
    files = [path for path in (tmp_path / "storage").rglob("*") if path.is_file()]
    assert files == [stored]
    [row] = rows(tmp_path / "data" / "app.db", "SELECT * FROM photos_user_1")
    assert (row["file_path"], row["file_name"]) == ("storage/photo/1/2025/12/10/", "IMG_0001")
    assert (row["file_count"], json.loads(row["uploaded_extensions"])) == (1, ["jpg"])
    # A second photo of that day, then the first one again in a newer version.
    assert (await run(photo_in(tmp_path, PHOTO[::-1]), LOCAL_ID="IMG_1235"))[0] == 0
    assert (await run(photo_in(tmp_path, b"edited")))[0] == 0
    assert stored.read_bytes() == b"edited"
    assert stored.with_name("IMG_0002.jpg").read_bytes() == PHOTO[::-1]


async def test_the_script_fails_where_the_server_refuses(run: Run, tmp_path: Path) -> None:
    photo = photo_in(tmp_path, PHOTO)
    code, answers, steps = await run(photo, PASSWORD="wrong password")
    assert code != 0
    assert answers == []
    assert "401" in steps
    assert "2. Index photos" not in steps
    code, answers, steps = await run(photo, DATE="2025-13-10")
    assert code != 0
    assert len(answers) == 1
    assert "400" in steps
    assert not any(path.is_file() for path in (tmp_path / "storage").rglob("*"))
