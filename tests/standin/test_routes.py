"""What the recordings do not show: the routes around an upload, and the journal."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from immich_standin import StandIn

from .forms import BOUNDARY, END, FIELDS, JPEG, MOV, fields, file_part, jpeg_part, named
from .wire import Wire, connect, head

AUTH = {"x-api-key": StandIn.api_key}
MULTIPART = {**AUTH, "Content-Type": f"multipart/form-data; boundary={BOUNDARY.decode()}"}


@pytest.fixture(params=[2, 3])
async def immich(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[StandIn]:
    async with StandIn(version=request.param, data_dir=tmp_path) as immich:
        yield immich


@pytest.fixture
async def client(immich: StandIn) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(immich.url) as client:
        yield client


async def upload(client: aiohttp.ClientSession, form: bytes) -> str:
    async with client.post("/api/assets", data=form, headers=MULTIPART) as response:
        assert response.status in (200, 201), await response.text()
        made: str = (await response.json())["id"]
        return made


async def test_original_and_its_ranges(client: aiohttp.ClientSession) -> None:
    made = await upload(client, fields(FIELDS) + jpeg_part() + END)
    for asked, wanted in {
        "": JPEG,
        "bytes=0-99": JPEG[:100],
        "bytes=9000-99999": JPEG[9000:],
        "bytes=-10": JPEG[-10:],
        "bytes=5-4": None,
    }.items():
        headers = AUTH | ({"Range": asked} if asked else {})
        async with client.get(f"/api/assets/{made}/original", headers=headers) as response:
            got = await response.read() if response.status < 300 else None
            assert got == wanted


async def test_filename_field_before_a_sidecar_refuses_it(client: aiohttp.ClientSession) -> None:
    sidecar = file_part(named("IMG_0001.jpg.xmp", "sidecarData"), None, b"<x/>")
    form = fields(FIELDS | {"filename": "a.jpg"}) + jpeg_part() + sidecar + END
    async with client.post("/api/assets", data=form, headers=MULTIPART) as response:
        assert response.status == 400
        assert (await response.json())["message"] == "Unsupported file type a.jpg"


async def test_live_photo_hides_its_video(client: aiohttp.ClientSession, immich: StandIn) -> None:
    video = await upload(client, fields(FIELDS) + file_part(named("a.mov"), None, MOV) + END)
    photo = await upload(client, fields(FIELDS | {"livePhotoVideoId": video}) + jpeg_part() + END)
    assert [(asset.id, asset.visibility) for asset in immich.assets] == [
        (video, "hidden"),
        (photo, "timeline"),
    ]
    assert immich.assets[1].live_photo_video_id == video


async def test_what_the_cli_asks(client: aiohttp.ClientSession, immich: StandIn) -> None:
    made = await upload(client, fields(FIELDS) + jpeg_part() + END)
    for path in ("users/me", "api-keys/me", "server/about", "assets/statistics", "albums"):
        async with client.get(f"/api/{path}", headers=AUTH) as response:
            assert response.status == 200, path
    async with client.post("/api/albums", json={"albumName": "A"}, headers=AUTH) as response:
        assert response.status == 201
        album = await response.json()
    path = f"/api/albums/{album['id']}/assets"
    for wanted in ({"id": made, "success": True}, {"id": made, "success": False}):
        async with client.put(path, json={"ids": [made]}, headers=AUTH) as response:
            (result,) = await response.json()
            assert wanted.items() <= result.items()
    assert immich.albums[0].asset_ids == [made]


async def test_login_sets_the_three_cookies(client: aiohttp.ClientSession) -> None:
    credentials = {"email": "admin@example.com", "password": "standin-password"}
    async with client.post("/api/auth/login", json=credentials) as response:
        assert response.status == 201
        cookies = response.headers.getall("Set-Cookie")
    assert [cookie.split("=")[0] for cookie in cookies] == [
        "immich_access_token",
        "immich_auth_type",
        "immich_is_authenticated",
    ]
    async with client.post("/api/auth/login", json=credentials | {"password": "x"}) as response:
        assert response.status == 401


@pytest.mark.parametrize(
    "headers",
    [
        {"x-immich-user-token": StandIn.access_token},
        {"x-immich-session-token": StandIn.access_token},
        {"Authorization": f"Bearer {StandIn.access_token}"},
        {"x-immich-share-key": "standin-share"},
    ],
)
async def test_other_credentials(client: aiohttp.ClientSession, headers: dict[str, str]) -> None:
    async with client.get("/api/users/me", headers=headers) as response:
        assert response.status == 200


async def test_websocket_echoes(client: aiohttp.ClientSession) -> None:
    path = "/api/socket.io/?EIO=4&transport=websocket"
    async with client.ws_connect(path, protocols=("chat",), autoping=False) as socket:
        assert socket.protocol == "chat"
        assert (await socket.receive_str()).startswith('0{"sid"')
        await socket.send_str('42["hello"]')
        assert await socket.receive_str() == '42["hello"]'
        await socket.send_bytes(b"\0\xff")
        assert await socket.receive_bytes() == b"\0\xff"
        await socket.ping(b"?")
        assert (await socket.receive()).type is aiohttp.WSMsgType.PONG


async def test_journal_keeps_the_request_as_it_came(immich: StandIn) -> None:
    target = "/a%2Fb/../c?x=%20+&y"
    async with connect(immich) as wire:
        raw = head("GET", target, [("X-Twice", "1"), ("x-tWICE", "2")])
        await wire.send(raw)
        await wire.response()
    (seen,) = immich.requests
    assert (seen.method, seen.target, seen.status) == ("GET", target, 200)
    assert seen.raw_headers == [(b"Host", b"immich.test"), (b"X-Twice", b"1"), (b"x-tWICE", b"2")]


async def test_runs_as_a_process(tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "immich_standin",
        *("--port", "0", "--version", "2", "--data", str(tmp_path), "--idle-timeout", "1"),
        cwd=Path(__file__).parent.parent,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(20):
            line = (await process.stdout.readline()).decode()
            start, _, url = line.strip().rpartition(" ")
            assert start == "stand-in Immich v2.7.5 listening on"
            port = int(url.rpartition(":")[2])
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            wire = Wire(reader, writer)
            await wire.send(head("GET", "/api/server/version", []))
            assert (await wire.response()).json["major"] == 2
            process.send_signal(signal.SIGTERM)
            assert await process.wait() == 0
            await wire.closed()
            writer.close()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
