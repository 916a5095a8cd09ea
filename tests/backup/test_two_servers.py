"""A second server on the same folder, by mistake or for a moment, harms nothing of the first."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from backup_uploads import index, pattern
from backup_wing import Api
from immich_bridge.errors import StartError
from immich_bridge.serve import Server
from wire import PATIENCE, connect, request

StartBackup = Callable[..., Awaitable[Server]]
TARGET = "/photos/upload/stream?local_id=IMG_1234&file_type=jpg"


def temporary_files(storage_dir: Path) -> list[Path]:
    """What uploads under way have written so far."""
    return [*storage_dir.rglob(".upload-*")]


@pytest.mark.parametrize("port", ["that of the first", "another"])
async def test_what_is_under_way_at_the_first_is_not_swept(
    port: str, api: Api, backup: Server, start_backup: StartBackup, storage_dir: Path
) -> None:
    await index(api, "IMG_1234")
    content = pattern(3_000_000)
    async with connect(backup.address) as peer:
        head = request(
            "POST",
            TARGET,
            ("Authorization", f"Bearer {api.token}"),
            ("Content-Length", str(len(content))),
        )
        await peer.send(head, content[:2_000_000])
        async with asyncio.timeout(PATIENCE):
            while not temporary_files(storage_dir):  # noqa: ASYNC110 - the disk tells nobody
                await asyncio.sleep(0)
        if port == "another":
            await start_backup()
        else:
            with pytest.raises(StartError, match="cannot listen"):
                await start_backup(LISTEN_ADDR=backup.address.removeprefix("http://"))
        await peer.send(content[2_000_000:])
        assert (await peer.read_answer()).status == 200
    assert (storage_dir / "photo/1/2025/12/10/IMG_0001.jpg").read_bytes() == content
