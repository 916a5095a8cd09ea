"""The stand-in against what real servers were recorded to answer.

Every exchange recorded from Immich v3.1.0 and v2.7.5 is sent to a fresh stand-in as bytes, and
the answer compared: the head line by line, the body, what it came before, what became of the
connection and of the file.
"""

from __future__ import annotations

import ast
import asyncio
import json
import re
from pathlib import Path
from typing import Any

import pytest

from immich_standin import Behaviour, StandIn

from .bodies import Known, Recording
from .compare import compare, compare_asset, compare_orphans, masked
from .rebuild import OTHER_LENGTH, Request, rebuild
from .wire import Response, Wire, connect, head

HERE = Path(__file__).parent
VERSIONS = (2, 3)
RECORDINGS: dict[int, dict[str, Recording]] = {
    version: {
        recording["name"]: recording
        for recording in json.loads((HERE / f"recordings-v{version}.json").read_text())
    }
    for version in VERSIONS
}

NOT_DRIVEN = {
    **{
        f"q.{name}": "a measurement of speed"
        for name in (
            "1GiB-content-length",
            "1GiB-content-length-2nd",
            "1GiB-chunked-4K",
            "1GiB-chunked-64K",
            "1GiB-chunked-1M",
            "200-small-sequential",
        )
    },
    **{
        f"l.full-body-then-{how}-before-response-{size}": "a race on the real server"
        for how in ("fin", "rst")
        for size in ("0", "3000000")
    },
    "s.upload-stall-90s": "takes 90 s; the stand-in has no timeout on a body either",
    "u.immich-cli": "a whole session of another client, of which only the heads were kept",
    "h.content-length-cuts-final-boundary-dashes": (
        "Node gives up a request when garbage follows it; aiohttp answers the request first"
    ),
    "s.PUT-original": "v2's deprecated replacement of a file is not played",
}

# The requests that must have been answered before.
AFTER = {
    "b.": "a.normal",
    "c.": "a.normal",
    "n.live-photo": "n.live-video",
    "n.live-photo-of-timeline-video": "n.live-video-timeline",
    "n.livePhotoVideoId-is-image": "n.plain-for-live",
    "s.original": "s.upload-for-media",
    "s.thumbnail": "s.upload-for-media",
    "s.preview": "s.upload-for-media",
    "s.fullsize": "s.upload-for-media",
    "s.size": "s.upload-for-media",
    "s.asset-json": "s.upload-for-media",
    "s.metadata": "s.upload-for-media",
    "s.video-playback-on-image": "s.upload-for-media",
    "s.video-playback-range": "s.video",
    "x.re-upload-after-500": "x.metadata-two-same-key-aftermath",
    "x.trash-2": "x.trash-1-upload",
    "x.trash-3": "x.trash-1-upload",
    "x.trash-4": "x.trash-1-upload",
    "x.same-content-other-user": "x.same-content-user1",
    "x.checksum-header-of-other-users-asset": "x.same-content-user1",
}
WITHOUT = ("c.checksum-unknown-hash", "c.checksum-garbage")
# The If-None-Match of these is the ETag of an answer before.
TAG_OF = {"s.thumbnail-if-none-match": "s.thumbnail", "s.asset-json-etag": "s.asset-json"}
WITHHELD = (
    "l.chunked-closing-boundary-sent-final-chunk-withheld",
    "l.content-length-1000-larger-than-multipart",
)
KEPT_ALIVE = "kept alive (next request on it answered)"
SHORT_IDLE = 0.1


def cases(wanted: str = "") -> list[Any]:
    return [
        pytest.param(version, name, id=f"v{version}-{name}")
        for version in VERSIONS
        for name in RECORDINGS[version]
        if name not in NOT_DRIVEN and kind(name) == wanted
    ]


def kind(name: str) -> str:
    if name.startswith("r.ws-"):
        return "websocket"
    if name in WITHHELD or "halfclose" in name or name.startswith(("l.abort", "l.partial")):
        return "abort"
    return "concurrent" if name == "x.four-concurrent-identical" else ""


@pytest.fixture
async def immich(version: int, name: str, tmp_path: Path) -> Any:
    idle = SHORT_IDLE if "idle" in name else 6.0
    async with StandIn(version=version, data_dir=tmp_path, idle_timeout=idle) as immich:
        if name.startswith("p."):
            immich.behaviour = Behaviour(quota_bytes=1_000_000)
        yield immich


@pytest.fixture
async def request_of(version: int, name: str, immich: StandIn) -> Request:
    """The request of the recording, with what must have happened before it done."""
    known: Known = {}
    await _prepare(version, name, immich, known)
    request = rebuild(RECORDINGS[version][name], known)
    if name in TAG_OF:
        earlier = rebuild(RECORDINGS[version][TAG_OF[name]], known)
        async with connect(immich) as wire:
            await wire.send(earlier.head)
            tag = (await wire.response()).header("ETag")
        assert tag is not None
        request.headers = [(k, tag if k == "If-None-Match" else v) for k, v in request.headers]
    return request


async def _prepare(version: int, name: str, immich: StandIn, known: Known) -> None:
    starts = [start for start in AFTER if name.startswith(start) and name not in WITHOUT]
    if not starts:
        return
    earlier = AFTER[max(starts, key=len)]
    request = rebuild(RECORDINGS[version][earlier], known)
    async with connect(immich) as wire:
        await wire.send(request.head + request.framed)
        answer = (await wire.response()).json
        known[earlier] = answer.get("id", "")
        if name.startswith(("x.trash-2", "x.trash-3", "x.trash-4")):
            gone = {"ids": [known[earlier]], "force": name.startswith("x.trash-4")}
            body = json.dumps(gone).encode()
            headers = [("x-api-key", StandIn.api_key), ("Content-Length", str(len(body)))]
            await wire.send(head("DELETE", "/api/assets", headers) + body)
            assert (await wire.response()).status == 204


@pytest.mark.parametrize("version", VERSIONS)
def test_every_recording_is_driven_or_listed(version: int) -> None:
    names = RECORDINGS[version].keys()
    driven = {name for name in names if name not in NOT_DRIVEN}
    assert driven | NOT_DRIVEN.keys() == names
    assert len(driven) > 300


@pytest.mark.parametrize(("version", "name"), cases())
async def test_recording(version: int, name: str, immich: StandIn, request_of: Request) -> None:
    recording, request = RECORDINGS[version][name], request_of
    length = dict(request.headers).get("Content-Length")
    if length is not None and name not in OTHER_LENGTH:
        assert len(request.body) == int(length), "the request is not the recorded one"
    async with connect(immich) as wire:
        await wire.send(request.head)
        response = await _exchange(recording, request, immich, wire)
        expected = recording["response"]
        assert [100] * len(expected.get("interim", ())) == response.interim
        compare(recording, response)
        compare_asset(recording, response, immich)
        await _compare_connection(recording, wire)
    compare_orphans(recording, immich)


async def _exchange(
    recording: Recording, request: Request, immich: StandIn, wire: Wire
) -> Response:
    """Send the body as it was sent, and check what the answer was waiting for."""
    observed = recording["observed"]
    if request.name == "x.early-401-then-client-idle":
        await wire.send(request.framed[:1000])
        return await wire.response()
    paused = observed.get("paused_after_body_bytes")
    if paused is None:
        await wire.send(request.framed)
        return await wire.response(request.method)
    await wire.send(request.framed[:paused])
    if not observed["response_before_rest_of_body"]:
        seen = await immich.wait_for_request(lambda seen: seen.body_received == paused)
        assert seen.status is None
        await wire.send(request.framed[paused:])
        return await wire.response()
    response = await wire.response()
    if observed["connection_after_rest_sent"] == KEPT_ALIVE:
        await wire.send(request.framed[paused:])
    return response


async def _compare_connection(recording: Recording, wire: Wire) -> None:
    observed = recording["observed"]
    after = observed.get("connection_after_response") or observed.get("connection_after_rest_sent")
    if after == KEPT_ALIVE:
        await wire.send(head("GET", "/api/server/ping", []))
        assert (await wire.response()).json == {"res": "pong"}
    if (after != KEPT_ALIVE and after is not None) or "idle" in recording["name"]:
        assert await wire.closed() == b""


@pytest.mark.parametrize(("version", "name"), cases("abort"))
async def test_abandoned_upload(
    version: int, name: str, immich: StandIn, request_of: Request
) -> None:
    recording, request = RECORDINGS[version][name], request_of
    sent, how = _abandoned(recording, request)
    async with connect(immich) as wire:
        await wire.send(request.head + sent)
        seen = await immich.wait_for_request(
            lambda seen: bool(immich.partial_files()) or seen.body_received >= len(request.body)
        )
        await _ping(immich)
        assert seen.status is None
        if how == "rst":
            wire.reset()
        elif how == "half":
            wire.half_close()
            compare(recording, await wire.response())
            assert await wire.closed() == b""
    assert await immich.wait_for_abort() is seen
    assert not seen.completed
    assert immich.assets == []
    assert immich.partial_files() == []
    assert immich.files() == []


async def _ping(immich: StandIn) -> None:
    """A round trip, in which the stand-in had its chance to answer what it should not."""
    async with connect(immich) as wire:
        await wire.send(head("GET", "/api/server/ping", []))
        assert (await wire.response()).status == 200


def _abandoned(recording: Recording, request: Request) -> tuple[bytes, str]:
    """What was sent of the body, and how the connection then ended."""
    if request.name in WITHHELD:
        return request.unfinished, "fin"
    if request.name.startswith("l.partial"):
        return request.framed[: len(request.framed) // 2], request.name.rpartition("-")[2]
    told = re.fullmatch(r"sent (\d+) of (\d+) .*, then (\w+)", recording["observed"]["abort"])
    assert told is not None
    assert len(request.unfinished) == int(told[2]), "the request is not the recorded one"
    return request.unfinished[: int(told[1])], told[3]


@pytest.mark.parametrize(("version", "name"), cases("concurrent"))
async def test_identical_uploads_at_once(
    version: int, name: str, immich: StandIn, request_of: Request
) -> None:
    async def send() -> tuple[int, Any]:
        async with connect(immich) as wire:
            await wire.send(request_of.head + request_of.framed)
            response = await wire.response()
            return response.status, response.json

    answers = await asyncio.gather(*(send() for _ in range(4)))
    recorded = RECORDINGS[version][name]["observed"]["answers"]
    assert sorted(map(masked, answers)) == sorted(map(masked, recorded))
    assert {answer["id"] for _, answer in answers} == {immich.assets[0].id}
    assert immich.files() == [immich.assets[0].path]


@pytest.mark.parametrize(("version", "name"), cases("websocket"))
async def test_websocket(version: int, name: str, immich: StandIn, request_of: Request) -> None:
    recording = RECORDINGS[version][name]
    async with connect(immich) as wire:
        await wire.send(request_of.head)
        if "response" not in recording and name.startswith("r.ws-upgrade"):
            assert await wire.closed() == b""
            return
        response = await wire.response()
        assert response.status == 101
        if "response" in recording:
            compare(recording, response)
        observed = recording["observed"]
        if "raw_after_connect_packet" in observed:
            # "40" in a text frame, masked with zeros.
            await wire.send(b"\x81\x82\0\0\0\x0040")
        raw = observed.get("raw_after_connect_packet") or observed["ws_bytes_after_101"]
        wanted = ast.literal_eval(raw)
        async with asyncio.timeout(5):
            got = await wire.reader.readexactly(len(wanted))
        assert _without_sids(got) == _without_sids(wanted)


def _without_sids(frames: bytes) -> bytes:
    return re.sub(rb'(?<="sid":")[^"]{20}', b"*", frames)
