"""Immich's own command line client uploads through the bridge."""

import asyncio
import contextlib
import os
import socket
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import aiohttp
import pytest

from immich_standin import SeenRequest, StandIn
from node_tools import INSTALL_SECONDS, immich_cli_command, missing_reason

# The first test may have to wait for npm.
pytestmark = pytest.mark.timeout(INSTALL_SECONDS + 60)

# Node takes half a second to start, an upload of a few files about as long.
CLI_SECONDS = 60

STARTUP_SECONDS = 20
SHUTDOWN_SECONDS = 10
POLL_SECONDS = 0.05

ALBUM = "Holiday é 照"

PHOTOS = {
    "IMG_0001.jpg": b"\xff\xd8\xff\xe0" + bytes(range(256)) * 40,
    "照片 é.HEIC": b"\0\0\0\x18ftypheic" + b"\r\n--" * 5_000,
    "50% off; a=b.png": b"\x89PNG\r\n\x1a\n" + b"\0" * 9_000,
    'quo"te.webp': b"RIFF\0\0\0\0WEBP",
    "2026/11/clip.mov": b"\0\0\0\x14ftypqt  " + bytes(range(255, -1, -1)) * 4_000,
    "2026/one byte.jpg": b"\xff",
}
SIDECAR = b"<x:xmpmeta xmlns:x='adobe:ns:meta/'/>\r\n"

# To the millisecond, as far as the client's dates go.
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
TAKEN = datetime(2024, 2, 29, 23, 59, 58, 765_000, tzinfo=UTC)


@pytest.fixture
def cli() -> list[str]:
    reason = missing_reason()
    if reason is not None:
        pytest.skip(reason)
    return immich_cli_command()


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    extra = {"IMG_0001.xmp": SIDECAR, "2026/not a photo.txt": b"text"}
    for name, content in (PHOTOS | extra).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        # In whole milliseconds: a float second would come out as a millisecond less.
        nanoseconds = (TAKEN - EPOCH) // timedelta(milliseconds=1) * 1_000_000
        os.utime(path, ns=(nanoseconds, nanoseconds))
    return folder


@pytest.fixture
async def immich(tmp_path: Path) -> AsyncIterator[StandIn]:
    async with StandIn(version=3, data_dir=tmp_path / "immich") as running:
        yield running


async def run(command: list[str], home: Path) -> str:
    """Run the client to its end, and give what it printed."""
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        # The surrounding shell's IMMICH_* could point it at a real server.
        env={"HOME": str(home), "PATH": os.environ["PATH"]},
    )
    try:
        async with asyncio.timeout(CLI_SECONDS):
            output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    text = output.decode()
    assert process.returncode == 0, text
    return text


@contextlib.asynccontextmanager
async def bridge_to(immich_url: str) -> AsyncIterator[str]:
    """Run the bridge as its users do, as a process of its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "immich_bridge",
        env=os.environ
        | {
            "LISTEN_ADDR": address,
            "IMMICH_SERVER_URL": immich_url,
            "BACKUP_ENABLED": "false",
        },
    )
    try:
        async with asyncio.timeout(STARTUP_SECONDS), aiohttp.ClientSession() as session:
            while not await is_healthy(session, f"http://{address}/health"):
                assert process.returncode is None, "the bridge ended at its start"
                await asyncio.sleep(POLL_SECONDS)
        yield f"http://{address}"
    finally:
        await end(process)


async def end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is not None:
        return
    process.terminate()
    try:
        async with asyncio.timeout(SHUTDOWN_SECONDS):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()
        raise


async def is_healthy(session: aiohttp.ClientSession, url: str) -> bool:
    try:
        async with session.get(url) as response:
            return response.status == 200
    except aiohttp.ClientConnectionError:
        return False


async def upload_twice(cli: list[str], url: str, immich: StandIn, photos: Path, home: Path) -> None:
    """Log in at `url`, upload all photos, upload them again, and look at what Immich holds."""
    settings = home / "settings"
    client = [*cli, "--config-directory", str(settings)]
    upload = [*client, "upload", "--recursive", "--no-progress", "--concurrency", "3"]
    upload += ["--album-name", ALBUM, str(photos)]

    assert "Logged in as" in await run([*client, "login", url, immich.api_key], home)
    # All that follows goes where the client logged in.
    assert url in (settings / "auth.yml").read_text()
    first = await run(upload, home)
    stored = {asset.original_file_name: asset.path.read_bytes() for asset in immich.assets}
    second = await run(upload, home)

    assert f"Successfully uploaded {len(PHOTOS)} new assets" in first
    # Without its folders; and a quote comes as %22, the HTML way, which Immich does not undo.
    assert stored == {
        Path(name).name.replace('"', "%22"): content for name, content in PHOTOS.items()
    }
    assert {asset.file_created_at for asset in immich.assets} == {TAKEN}
    assert {asset.fields["fileSize"] for asset in immich.assets} == {
        str(len(content)) for content in PHOTOS.values()
    }
    sidecars = {
        asset.original_file_name: asset.sidecar_path.read_bytes()
        for asset in immich.assets
        if asset.sidecar_path is not None
    }
    assert sidecars == {"IMG_0001.jpg": SIDECAR}
    # Nothing beside them: no orphan of a retry, which would hide behind the right asset.
    assert len(immich.files()) == len(PHOTOS) + len(sidecars)

    assert f"Found 0 new files and {len(PHOTOS)} duplicates" in second
    assert len(immich.assets) == len(PHOTOS)
    assert len(uploads_seen(immich)) == len(PHOTOS)
    assert [album.name for album in immich.albums] == [ALBUM]
    assert sorted(immich.albums[0].asset_ids) == sorted(asset.id for asset in immich.assets)


def uploads_seen(immich: StandIn) -> list[SeenRequest]:
    return [
        request
        for request in immich.requests
        if (request.method, request.target) == ("POST", "/api/assets")
    ]


async def test_harness_the_client_uploads_without_a_bridge(
    cli: list[str], immich: StandIn, photos: Path, tmp_path: Path
) -> None:
    # What fails here is no fault of the bridge.
    await upload_twice(cli, immich.url, immich, photos, tmp_path)


async def test_the_client_uploads_through_the_bridge(
    cli: list[str], immich: StandIn, photos: Path, tmp_path: Path
) -> None:
    async with bridge_to(immich.url) as bridge_url:
        await upload_twice(cli, bridge_url, immich, photos, tmp_path)

    for upload in uploads_seen(immich):
        assert upload.header("X-Forwarded-Host") == bridge_url.removeprefix("http://")
        # Framed as it came: the client announces its length, so the bridge does.
        assert upload.header("Content-Length") is not None
        assert upload.header("Transfer-Encoding") is None
