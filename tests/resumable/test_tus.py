"""tus 1.0: by hand on the wire, and by its own clients, tuspy and tus-js-client."""

import asyncio
import base64
import hashlib
import json
import os
import random
from pathlib import Path
from typing import Final

import pytest
from tusclient.client import TusClient
from tusclient.exceptions import TusCommunicationError, TusUploadFailed

from front import StartBridge
from immich_bridge.errors import BadRequest, BridgeError
from immich_bridge.resumable import tus
from immich_bridge.serve import Server
from immich_standin import StandIn
from node_tools import missing_reason, node_binary
from raw_upload import assert_nothing_stored, eventually, jpeg
from resumable.cutting_proxy import CuttingProxy
from wire import PATIENCE, Message, Peer, connect, request

COLLECTION: Final = "/uploads/"
VERSION: Final = ("Tus-Resumable", "1.0.0")
KEY: Final = ("x-api-key", StandIn.api_key)
OCTETS: Final = ("Content-Type", "application/offset+octet-stream")
SCRIPT: Final = Path(__file__).parent.parent / "node" / "tus_upload.js"
PHOTO: Final = jpeg(3_000_000, 7)


def metadata(**values: str) -> tuple[str, str]:
    pairs = (f"{name} {base64.b64encode(v.encode()).decode()}" for name, v in values.items())
    return "Upload-Metadata", ",".join(pairs)


NAMED: Final = metadata(
    filename="Straße 1.jpg", deviceAssetId="A/L0/001", fileCreatedAt="2026-05-04T10:20:30Z"
)


async def ask(
    peer: Peer, method: str, target: str, *headers: tuple[str, str], body: bytes = b""
) -> Message:
    """A request and its answer."""
    framing = ("Content-Length", str(len(body)))
    await peer.send(request(method, target, framing, *headers, body=body))
    return await peer.read_answer(method)


async def create(peer: Peer, length: int, *headers: tuple[str, str]) -> str:
    """Create an upload; its URL."""
    size = ("Upload-Length", str(length))
    answer = await ask(peer, "POST", COLLECTION, VERSION, KEY, NAMED, size, *headers)
    assert answer.status == 201, answer
    assert answer.header("Tus-Resumable") == "1.0.0"
    location = answer.header("Location")
    assert location is not None
    return location


def at(offset: int) -> tuple[str, str]:
    return "Upload-Offset", str(offset)


def only_file(immich: StandIn) -> bytes:
    """The content of the one file that Immich has."""
    (asset,) = immich.assets
    assert immich.files() == [asset.path]
    return asset.path.read_bytes()


class TestHeads:
    def test_metadata(self) -> None:
        parsed = tus.parse_metadata("filename c8O8w58uanBn,empty,  type aW1hZ2UvanBlZw== ")
        assert parsed == {"filename": "süß.jpg", "empty": "", "type": "image/jpeg"}

    @pytest.mark.parametrize(
        "text", ["a a*==", "a gIA=", "a YQ==,a Yg==", "a YQ", "a " + "Y" * 20000]
    )
    def test_metadata_that_is_none(self, text: str) -> None:
        with pytest.raises(BadRequest):
            tus.parse_metadata(text)

    @pytest.mark.parametrize("text", ["", "-1", "+1", "1.0", "0x10", "1" * 16, "²", "1 2"])
    def test_numbers_that_are_none(self, text: str) -> None:
        with pytest.raises(BadRequest):
            tus.parse_number("Upload-Length", text)

    @pytest.mark.parametrize("text", ["sha1", "sha1 !", "crc32 AAAA", "sha1 AAAA", ""])
    def test_checksums_that_are_none(self, text: str) -> None:
        with pytest.raises(BridgeError):
            tus.parse_checksum(text)


class TestOnTheWire:
    async def test_what_is_offered(self, immich: StandIn, start_bridge: StartBridge) -> None:
        bridge = await start_bridge(immich.url, MAX_STREAM_SIZE="1MB")
        async with connect(bridge.address) as peer:
            told = await ask(peer, "OPTIONS", COLLECTION)
            assert told.status == 204
            assert told.header("Tus-Version") == "1.0.0"
            assert told.header("Tus-Max-Size") == "1048576"
            extensions = set((told.header("Tus-Extension") or "").split(","))
            assert extensions >= {"creation", "termination", "expiration", "checksum"}
            size = ("Upload-Length", "1048577")
            refused = await ask(peer, "POST", COLLECTION, VERSION, KEY, NAMED, size)
            assert (refused.status, refused.header("Tus-Resumable")) == (413, "1.0.0")

    async def test_an_upload_in_pieces(self, immich: StandIn, bridge: Server) -> None:
        async with connect(bridge.address) as peer:
            url = await create(peer, len(PHOTO))
            for start, end in ((0, 1), (1, 1_500_000), (1_500_000, len(PHOTO))):
                told = await ask(peer, "HEAD", url, VERSION, KEY)
                assert (told.status, told.header("Upload-Offset")) == (200, str(start))
                assert told.header("Upload-Length") == str(len(PHOTO))
                assert told.header("Cache-Control") == "no-store"
                assert told.header("Upload-Expires")
                done = await ask(
                    peer, "PATCH", url, VERSION, KEY, OCTETS, at(start), body=PHOTO[start:end]
                )
                assert (done.status, done.header("Upload-Offset")) == (204, str(end)), done
            assert done.header("X-Immich-Status") == "created"
            told = await ask(peer, "HEAD", url, VERSION, KEY)
            assert told.header("Upload-Offset") == str(len(PHOTO))
        assert only_file(immich) == PHOTO
        (asset,) = immich.assets
        assert done.header("X-Immich-Asset-Id") == asset.id
        assert asset.original_file_name == "Straße 1.jpg"
        assert asset.fields["deviceAssetId"] == "A/L0/001"
        assert asset.fields["fileCreatedAt"] == "2026-05-04T10:20:30Z"

    async def test_creation_with_upload(self, immich: StandIn, bridge: Server) -> None:
        size = ("Upload-Length", str(len(PHOTO)))
        async with connect(bridge.address) as peer:
            done = await ask(
                peer, "POST", COLLECTION, VERSION, KEY, NAMED, size, OCTETS, body=PHOTO
            )
            assert (done.status, done.header("Upload-Offset")) == (201, str(len(PHOTO)))
        assert only_file(immich) == PHOTO

    async def test_what_metadata_leaves_out_may_stand_in_headers(
        self, immich: StandIn, bridge: Server
    ) -> None:
        size = ("Upload-Length", str(len(PHOTO)))
        device = ("X-Device-Asset-Id", "B/L0/001"), ("X-Filename", "another.png")
        async with connect(bridge.address) as peer:
            target = f"{COLLECTION}?isFavorite=true"
            done = await ask(
                peer, "POST", target, VERSION, KEY, NAMED, size, OCTETS, *device, body=PHOTO
            )
            assert done.status == 201, done
        (asset,) = immich.assets
        assert asset.original_file_name == "Straße 1.jpg"
        assert asset.fields["deviceAssetId"] == "A/L0/001"
        assert asset.is_favorite

    async def test_where_it_is_wrong(self, immich: StandIn, bridge: Server) -> None:
        async with connect(bridge.address) as peer:
            url = await create(peer, 1000)
            piece = PHOTO[:10]
            other = ("x-api-key", "another")
            for expected, method, target, headers in (
                (412, "POST", COLLECTION, (("Tus-Resumable", "0.2.2"), KEY)),
                (400, "POST", COLLECTION, (VERSION, KEY)),
                (400, "POST", COLLECTION, (VERSION, KEY, ("Upload-Length", "0"))),
                (401, "POST", COLLECTION, (VERSION, ("Upload-Length", "9"))),
                (405, "PUT", COLLECTION, (VERSION, KEY)),
                (415, "PATCH", url, (VERSION, KEY, at(0))),
                (400, "PATCH", url, (VERSION, KEY, OCTETS)),
                (400, "PATCH", url, (VERSION, KEY, OCTETS, at(0), ("Upload-Checksum", "x y"))),
                (404, "PATCH", url, (VERSION, other, OCTETS, at(0))),
                (404, "HEAD", url, (VERSION, other)),
                (404, "DELETE", url, (VERSION, other)),
                (404, "HEAD", f"{COLLECTION}nothing", (VERSION, KEY)),
                (405, "PUT", url, (VERSION, KEY)),
            ):
                async with connect(bridge.address) as asking:
                    body = piece if method == "PATCH" else b""
                    told = await ask(asking, method, target, *headers, body=body)
                assert told.status == expected, (method, target, headers, told)
            async with connect(bridge.address) as asking:
                told = await ask(asking, "PATCH", url, VERSION, KEY, OCTETS, at(5), body=piece)
                assert (told.status, told.header("Upload-Offset")) == (409, "0")
            async with connect(bridge.address) as asking:
                told = await ask(
                    asking, "PATCH", url, VERSION, KEY, OCTETS, at(0), body=bytes(1001)
                )
                assert told.status == 400  # more than was announced
        assert_nothing_stored(immich)

    async def test_checksums(self, immich: StandIn, bridge: Server) -> None:
        def sum_of(piece: bytes) -> tuple[str, str]:
            digest = base64.b64encode(hashlib.sha256(piece).digest()).decode()
            return "Upload-Checksum", f"sha256 {digest}"

        async with connect(bridge.address) as peer:
            url = await create(peer, len(PHOTO))
            first, second = PHOTO[:2_000_000], PHOTO[2_000_000:]
            good = await ask(
                peer, "PATCH", url, VERSION, KEY, OCTETS, at(0), sum_of(first), body=first
            )
            assert good.status == 204
            patch = (VERSION, KEY, OCTETS, at(len(first)))
            bad = await ask(peer, "PATCH", url, *patch, sum_of(first), body=second)
            assert (bad.status, bad.header("Tus-Resumable")) == (460, "1.0.0")
        # Immich had the bytes, so that nothing is left to go on with.
        async with connect(bridge.address) as peer:
            assert (await ask(peer, "HEAD", url, VERSION, KEY)).status == 404
        await eventually(lambda: not immich.files())
        assert_nothing_stored(immich)

    async def test_termination(self, immich: StandIn, bridge: Server) -> None:
        async with connect(bridge.address) as peer:
            url = await create(peer, len(PHOTO))
            await ask(peer, "PATCH", url, VERSION, KEY, OCTETS, at(0), body=PHOTO[:1_000_000])
            override = ("X-HTTP-Method-Override", "DELETE")
            assert (await ask(peer, "POST", url, VERSION, KEY, override)).status == 204
            assert (await ask(peer, "HEAD", url, VERSION, KEY)).status == 404
        await eventually(lambda: not immich.files())
        assert_nothing_stored(immich)

    async def test_what_immich_refuses(self, immich: StandIn, bridge: Server) -> None:
        wrong = ("x-api-key", "wrong")
        photo = PHOTO[:20_000]
        size = ("Upload-Length", str(len(photo)))
        async with connect(bridge.address) as peer:
            answer = await ask(peer, "POST", COLLECTION, VERSION, wrong, NAMED, size)
            url = answer.header("Location") or ""
            refused = await ask(peer, "PATCH", url, VERSION, wrong, OCTETS, at(0), body=photo)
        assert refused.status == 401
        assert refused.header("X-Bridge-Error") == "immich_401"
        assert json.loads(refused.body)["message"]
        assert_nothing_stored(immich)

    async def test_without_resumable_uploads_the_route_is_immichs(
        self, immich: StandIn, start_bridge: StartBridge
    ) -> None:
        bridge = await start_bridge(immich.url, RESUMABLE="off")
        async with connect(bridge.address) as peer:
            size = ("Upload-Length", "9")
            answer = await ask(peer, "POST", COLLECTION, VERSION, KEY, NAMED, size)
        assert answer.status == 404
        assert answer.header("X-Bridge-Error") is None


def cut_points(seed: object) -> list[int]:
    """Bytes that connections may carry: heads of some hundred bytes, and pieces of the photo."""
    chance = random.Random(f"{seed}")
    return [chance.choice((100, 700, 150_000, 900_000)) + chance.randrange(200) for _ in range(6)]


@pytest.mark.parametrize("seed", range(3))
async def test_tuspy(seed: int, immich: StandIn, bridge: Server, tmp_path: Path) -> None:
    photo = tmp_path / "IMG_0001.jpg"
    photo.write_bytes(PHOTO)
    async with CuttingProxy(bridge.address, cut_points(seed)) as proxy:

        def send() -> None:
            client = TusClient(proxy.url + COLLECTION, headers=dict([KEY]))
            names = {"filename": "IMG_0001.jpg"}
            uploader = None
            with photo.open("rb") as file:
                for _ in range(20):
                    url = uploader.url if uploader else None
                    try:
                        uploader = client.uploader(
                            file_stream=file, chunk_size=1_000_000, metadata=names, url=url
                        )
                        uploader.upload()
                    except (TusCommunicationError, TusUploadFailed, OSError):
                        continue
                    else:
                        return
            raise AssertionError("the upload never came to its end")

        await asyncio.wait_for(asyncio.to_thread(send), PATIENCE)
        assert proxy.cuts >= 3
    assert only_file(immich) == PHOTO


@pytest.mark.parametrize("seed", range(3))
async def test_tus_js_client(seed: int, immich: StandIn, bridge: Server, tmp_path: Path) -> None:
    if (reason := missing_reason()) is not None:
        pytest.skip(reason)
    photo = tmp_path / "IMG_0001.jpg"
    photo.write_bytes(PHOTO)
    async with CuttingProxy(bridge.address, cut_points(f"js {seed}")) as proxy:
        process = await asyncio.create_subprocess_exec(
            *(str(node_binary()), str(SCRIPT), proxy.url + COLLECTION, str(photo), KEY[1]),
            env={"PATH": os.environ["PATH"]},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        output, errors = await asyncio.wait_for(process.communicate(), 2 * PATIENCE)
        assert process.returncode == 0, errors.decode()
        assert proxy.cuts >= 3
        assert json.loads(output)["url"].startswith(proxy.url + COLLECTION)
    assert only_file(immich) == PHOTO
