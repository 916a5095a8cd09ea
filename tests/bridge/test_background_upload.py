"""What an app sends, what Immich gets, and what the app sees, line by line."""

import base64
import hashlib
import json
import re
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta

import pytest

from bridge.background import KEY, NAMED, ROUTE, photo, upload, upload_request
from front import front_of_a_recorder
from immich_bridge.serve import Server
from immich_standin import Asset, StandIn
from wire import Message, answer, chunked, connect, fetch, request

StartBridge = Callable[..., Awaitable[Server]]
both_versions = pytest.mark.parametrize("immich", [3, 2], ids=["v3", "v2"], indirect=True)
ICLOUD_ID = "ABCD/001/xyz=="
CREATED = (
    "201 Created",
    b'{"id":"00000000-0000-4000-8000-000000000000","status":"created"}',
)


async def stored(
    immich: StandIn, bridge: Server, *headers: tuple[str, str], query: str = ""
) -> Asset:
    """The asset that one upload with these headers becomes."""
    told = await upload(bridge.address, *headers, body=photo(), query=query)
    assert told.status == 201, told
    (asset,) = immich.assets
    assert asset.path.read_bytes() == photo()
    return asset


@both_versions
class TestSuccess:
    async def test_a_photo_arrives_byte_for_byte(self, immich: StandIn, bridge: Server) -> None:
        told = await upload(bridge.address, NAMED, body=photo(3_000_000))
        (asset,) = immich.assets
        assert asset.path.read_bytes() == photo(3_000_000)
        assert told.status == 201
        assert json.loads(told.body) == {"id": asset.id, "status": "created", "duplicate": False}
        assert told.header("X-Immich-Asset-Id") == asset.id
        assert told.header("X-Immich-Status") == "created"
        assert told.header("X-Bridge-Error") is None
        assert told.header("X-Request-Id")
        assert told.header("Content-Type") == "application/json; charset=utf-8"
        assert told.header("ETag") is None  # it was that of another body

    async def test_a_second_time_it_is_a_duplicate(self, immich: StandIn, bridge: Server) -> None:
        first = json.loads((await upload(bridge.address, NAMED, body=photo())).body)
        told = await upload(bridge.address, NAMED, body=photo())
        assert told.status == 200
        assert json.loads(told.body) == {
            "id": first["id"],
            "status": "duplicate",
            "duplicate": True,
        }
        assert told.header("X-Immich-Status") == "duplicate"
        assert told.header("X-Immich-Asset-Id") == first["id"]

    async def test_all_metadata(self, immich: StandIn, bridge: Server) -> None:
        video = await upload(
            bridge.address,
            ("X-Filename", "IMG_0001.MOV"),
            ("X-Visibility", "hidden"),
            ("X-Duration", "2500"),
            body=b"\0\0\0\x14ftypqt  " + bytes(100),
        )
        video_id = video.header("X-Immich-Asset-Id") or ""
        told = await upload(
            bridge.address,
            ("X-Device-Asset-Id", "device-asset-1"),
            ("X-Device-Id", "phone-1"),
            ("X-File-Created-At", "2026-11-21T03:00:00.123+08:00"),
            ("X-File-Modified-At", "2026-11-21T04:00:00"),
            ("X-Is-Favorite", "YES"),
            ("X-Filename", '照片 "é" 100%.HEIC'),
            ("X-Content-Type", "image/heic"),
            ("X-iCloud-Id", ICLOUD_ID),
            ("X-Latitude", "52.5200"),
            ("X-Longitude", "-13.405"),
            ("X-Live-Photo-Video-Id", video_id.upper()),
            ("X-Visibility", "archive"),
            body=photo(),
        )
        assert told.status == 201, told
        asset = immich.assets[-1]
        assert asset.original_file_name == '照片 "é" 100%.HEIC'
        assert asset.fields == {
            "deviceAssetId": "device-asset-1",
            "deviceId": "phone-1",
            "fileCreatedAt": "2026-11-21T03:00:00.123+08:00",
            "fileModifiedAt": "2026-11-21T04:00:00Z",
            "isFavorite": "true",
            "visibility": "archive",
            "livePhotoVideoId": video_id,
            "metadata": asset.fields["metadata"],
        }
        assert json.loads(asset.fields["metadata"]) == [
            {
                "key": "mobile-app",
                "value": {
                    "iCloudId": ICLOUD_ID,
                    "createdAt": "2026-11-21T03:00:00.123+08:00",
                    "latitude": "52.5200",
                    "longitude": "-13.405",
                },
            }
        ]

    async def test_nothing_but_the_bytes(self, immich: StandIn, bridge: Server) -> None:
        asset = await stored(immich, bridge)
        assert re.fullmatch(r"IMG_\d{8}_\d{6}\.jpg", asset.original_file_name)
        assert asset.fields["deviceId"] == "ios-immich-uploader"
        assert asset.fields["deviceAssetId"]
        assert asset.fields["isFavorite"] == "false"
        assert asset.fields.keys() == {
            "deviceAssetId",
            "deviceId",
            "fileCreatedAt",
            "fileModifiedAt",
            "isFavorite",
        }
        for name in ("fileCreatedAt", "fileModifiedAt"):
            age = datetime.now(UTC) - datetime.fromisoformat(asset.fields[name])
            assert timedelta() <= age < timedelta(minutes=1)

    async def test_chunked(self, immich: StandIn, bridge: Server) -> None:
        body = chunked(photo()[:7], photo()[7:60_000], photo()[60_000:])
        chunk = ("Transfer-Encoding", "chunked")
        assert (await upload(bridge.address, NAMED, chunk, body=body)).status == 201
        assert immich.assets[0].path.read_bytes() == photo()
        seen = immich.requests[0]
        assert (seen.header("Transfer-Encoding"), seen.header("Content-Length")) == (
            "chunked",
            None,
        )


class TestWhereMetadataComesFrom:
    async def test_query_parameters(self, immich: StandIn, bridge: Server) -> None:
        asset = await stored(
            immich,
            bridge,
            query="?deviceAssetId=a%2Fb&deviceId=p%20q&filename=%E7%85%A7+1%2B1.heic"
            "&fileCreatedAt=2026-11-21T03:00:00+08:00&isFavorite=1&visibility=locked"
            "&iCloudId=x&latitude=1&contentType=image/heic",
        )
        assert asset.original_file_name == "照 1+1.heic"
        assert asset.fields["deviceAssetId"] == "a/b"
        assert asset.fields["deviceId"] == "p q"
        assert asset.fields["fileCreatedAt"] == "2026-11-21T03:00:00+08:00"
        assert asset.fields["isFavorite"] == "true"
        assert asset.fields["visibility"] == "locked"
        assert json.loads(asset.fields["metadata"])[0]["value"] == {
            "iCloudId": "x",
            "createdAt": "2026-11-21T03:00:00+08:00",
            "latitude": "1",
        }

    async def test_a_header_goes_before_the_query(self, immich: StandIn, bridge: Server) -> None:
        asset = await stored(immich, bridge, ("X-Filename", "a.jpg"), query="?filename=b.jpg")
        assert asset.original_file_name == "a.jpg"

    async def test_an_empty_value_is_missing(self, immich: StandIn, bridge: Server) -> None:
        asset = await stored(
            immich,
            bridge,
            ("X-Filename", ""),
            ("X-Device-Id", ""),
            ("X-Duration", ""),
            query="?filename=b.jpg&deviceId=&visibility=",
        )
        assert asset.original_file_name == "b.jpg"
        assert asset.fields["deviceId"] == "ios-immich-uploader"
        assert "duration" not in asset.fields
        assert "visibility" not in asset.fields

    async def test_a_header_that_is_no_utf8_is_latin1(
        self, immich: StandIn, bridge: Server
    ) -> None:
        asset = await stored(immich, bridge, ("X-Filename", "\udce9t\udce9.jpg"))
        assert asset.original_file_name == "été.jpg"


class TestKindOfFile:
    @pytest.mark.parametrize(
        ("headers", "body", "name", "content_type"),
        [
            ([("X-Filename", "a.PNG")], photo(), "a.PNG", "image/png"),
            ([("X-Filename", "a")], photo(), "a.jpg", "image/jpeg"),
            ([("X-Filename", "a.xyz")], photo(), "a.xyz.jpg", "image/jpeg"),
            ([("X-Filename", ".jpg")], photo(), ".jpg.jpg", "image/jpeg"),
            ([("X-Filename", "dir/../a.mov")], photo(), "a.mov", "video/quicktime"),
            ([("X-Filename", "C:\\dir\\a.mp4")], photo(), "a.mp4", "video/mp4"),
            (
                [("X-Filename", "a"), ("X-Content-Type", "image/heic")],
                photo(),
                "a.heic",
                "image/heic",
            ),
            (
                [("X-Filename", "a"), ("X-Content-Type", "application/octet-stream")],
                photo(),
                "a.jpg",
                "application/octet-stream",
            ),
            (
                [("X-Filename", "a")],
                b"\0\0\0\x20ftypmp42" + bytes(600),
                "a.mp4",
                "video/mp4",
            ),
            ([("X-Filename", "a")], b"\0\0\0\x20ftypqt  " + bytes(9), "a.mov", "video/quicktime"),
            ([("X-Filename", "a")], b"\x89PNG\r\n\x1a\n", "a.png", "image/png"),
        ],
    )
    async def test_by_name_then_type_then_bytes(
        self,
        start_bridge: StartBridge,
        headers: list[tuple[str, str]],
        body: bytes,
        name: str,
        content_type: str,
    ) -> None:
        async with front_of_a_recorder(start_bridge) as front:
            front.reply = answer(CREATED[0], body=CREATED[1])
            assert (await upload(front.url, *headers, body=body)).status == 201
        (seen,) = front.seen
        part = seen.body.split(b'name="assetData"')[1].partition(b"\r\n\r\n")
        assert f'filename="{name}"'.encode() in part[0]
        assert f"Content-Type: {content_type}".encode() in seen.body
        assert part[2].startswith(body)

    async def test_a_first_piece_that_is_too_small_to_tell(
        self, immich: StandIn, bridge: Server
    ) -> None:
        body = b"\0\0\0\x20ftypheic" + bytes(2000)
        async with connect(bridge.address) as peer:
            head = upload_request(KEY, length=len(body))
            await peer.send(head, *(body[at : at + 1] for at in range(20)), body[20:])
            assert (await peer.read_answer()).status == 201
        assert immich.assets[0].original_file_name.endswith(".heic")
        assert immich.assets[0].path.read_bytes() == body


class TestForm:
    async def test_fields_first_file_last_and_the_length_exact(
        self, start_bridge: StartBridge
    ) -> None:
        async with front_of_a_recorder(start_bridge) as front:
            front.reply = answer(CREATED[0], body=CREATED[1])
            await upload(
                front.url,
                NAMED,
                ("X-iCloud-Id", "é"),
                ("X-Duration", "1"),
                ("X-Visibility", "hidden"),
                body=photo(),
            )
        (seen,) = front.seen
        names = re.findall(rb'form-data; name="(\w+)"', seen.body)
        assert names == [
            b"deviceAssetId",
            b"deviceId",
            b"fileCreatedAt",
            b"fileModifiedAt",
            b"isFavorite",
            b"visibility",
            b"duration",
            b"metadata",
            b"assetData",
        ]
        assert seen.first_line == b"POST /api/assets HTTP/1.1"
        # Read by its length alone, and nothing is missing at the end of it.
        boundary = (seen.header("Content-Type") or "").partition("boundary=")[2].encode()
        assert seen.body.endswith(photo() + b"\r\n--" + boundary + b"--\r\n")

    async def test_only_what_concerns_the_form_goes_on(self, start_bridge: StartBridge) -> None:
        async with front_of_a_recorder(start_bridge, "/photos") as front:
            front.reply = answer(CREATED[0], body=CREATED[1])
            await upload(
                front.url,
                NAMED,
                ("User-Agent", "app/1"),
                ("Content-Type", "application/octet-stream"),
                ("Accept-Encoding", "gzip"),
                ("Repr-Digest", "md5=:AAAA:"),
                ("X-Device-Id", "d"),
                ("Connection", "keep-alive, X-Hop"),
                ("X-Hop", "1"),
                ("X-Correlation-ID", "abc"),
                body=photo(),
            )
        (seen,) = front.seen
        assert seen.target == b"/photos/api/assets"
        names = [name.decode().lower() for name, _ in seen.headers]
        assert names == [
            "host",
            "x-api-key",
            "user-agent",
            "x-correlation-id",
            "content-type",
            "content-length",
            "x-forwarded-for",
            "x-forwarded-proto",
            "x-forwarded-host",
        ]


class TestCredentials:
    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("x-api-key", "secret"),
            ("Authorization", "Bearer secret"),
            ("x-immich-user-token", "secret"),
            ("x-immich-session-token", "secret"),
            ("Cookie", "a=b; immich_access_token=secret; c=d"),
        ],
    )
    async def test_in_a_header_go_on_as_they_came(
        self, start_bridge: StartBridge, name: str, value: str
    ) -> None:
        async with front_of_a_recorder(start_bridge) as front:
            front.reply = answer(CREATED[0], body=CREATED[1])
            told = await fetch(front.url, "POST", ROUTE, NAMED, (name, value), body=photo())
        assert told.status == 201
        assert front.seen[0].all(name) == [value]

    @pytest.mark.parametrize("query", ["?apiKey=s%2Fx", "?key=s+x", "?slug=s", "?key=a&slug=b"])
    async def test_in_the_query_go_on_as_they_came(
        self, start_bridge: StartBridge, query: str
    ) -> None:
        async with front_of_a_recorder(start_bridge) as front:
            front.reply = answer(CREATED[0], body=CREATED[1])
            target = f"{ROUTE}{query}&filename=a.jpg"
            assert (await fetch(front.url, "POST", target, body=photo())).status == 201
        assert front.seen[0].target == f"/api/assets{query}".encode()

    @pytest.mark.parametrize(
        "headers",
        [[], [("x-api-key", "")], [("Cookie", "immich_is_authenticated=true")]],
    )
    async def test_none(
        self, immich: StandIn, bridge: Server, headers: list[tuple[str, str]]
    ) -> None:
        told = await fetch(bridge.address, "POST", ROUTE, NAMED, *headers, body=photo())
        assert (told.status, told.header("X-Bridge-Error")) == (401, "unauthorized")
        assert json.loads(told.body)["error"] == "unauthorized"
        assert immich.requests == []


SHA1 = hashlib.sha1(photo())
SHA256 = base64.b64encode(hashlib.sha256(photo()).digest()).decode()
SHA512 = base64.b64encode(hashlib.sha512(photo()).digest()).decode()


class TestChecksums:
    @pytest.mark.parametrize(
        "checksum",
        [
            ("x-immich-checksum", SHA1.hexdigest()),
            ("x-immich-checksum", SHA1.hexdigest().upper()),
            ("x-immich-checksum", base64.b64encode(SHA1.digest()).decode()),
            ("Repr-Digest", f"sha-256=:{SHA256}:"),
            ("Content-Digest", f"sha-512=:{SHA512}:, sha-256=:{SHA256}:"),
            ("Repr-Digest", "md5=:AAAAAAAAAAAAAAAAAAAAAA==:"),
            ("x-immich-checksum", "garbage"),
        ],
    )
    async def test_right_or_unreadable(
        self, immich: StandIn, bridge: Server, checksum: tuple[str, str]
    ) -> None:
        await stored(immich, bridge, NAMED, checksum)
        passed_on = checksum[1] if checksum[0] == "x-immich-checksum" else None
        assert immich.requests[0].header("x-immich-checksum") == passed_on
        assert immich.requests[0].header(checksum[0]) == passed_on

    @pytest.mark.parametrize("value", ["sha-256=abc", "sha-256=:AAAA:", "sha-512=:not base64:"])
    async def test_a_digest_that_cannot_be_read(
        self, immich: StandIn, bridge: Server, value: str
    ) -> None:
        told = await upload(bridge.address, NAMED, ("Repr-Digest", value), body=photo())
        assert (told.status, told.header("X-Bridge-Error")) == (400, "bad_request")
        assert "Repr-Digest" in json.loads(told.body)["message"]
        assert immich.requests == []


class TestMethods:
    @pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH"])
    async def test_others(self, immich: StandIn, bridge: Server, method: str) -> None:
        told = await fetch(bridge.address, method, ROUTE, KEY)
        assert (told.status, told.header("Allow")) == (405, "POST")
        assert json.loads(told.body)["error"] == "method_not_allowed"
        assert immich.requests == []

    async def test_options(self, immich: StandIn, bridge: Server) -> None:
        told = await fetch(bridge.address, "OPTIONS", ROUTE, KEY)
        assert (told.status, told.header("X-Bridge-Error")) == (501, "not_implemented")
        assert immich.requests == []


class TestExpect:
    async def test_the_body_is_asked_for_once_the_head_was_accepted(
        self, immich: StandIn, bridge: Server
    ) -> None:
        async with connect(bridge.address) as peer:
            head = upload_request(KEY, NAMED, ("Expect", "100-continue"), length=100_000)
            await peer.send(head)
            interim: Message = await peer.read_head()
            assert interim.first_line == b"HTTP/1.1 100 Continue"
            await peer.send(photo())
            assert (await peer.read_answer()).status == 201
        assert immich.assets[0].path.read_bytes() == photo()
        assert immich.requests[0].header("Expect") is None

    async def test_compressed_bytes_are_no_photo(self, immich: StandIn, bridge: Server) -> None:
        head = request(
            "POST", ROUTE, KEY, NAMED, ("Content-Encoding", "gzip"), ("Content-Length", "9")
        )
        async with connect(bridge.address) as peer:
            await peer.send(head)
            assert (await peer.read_answer()).status == 415
        assert immich.requests == []
