"""`POST /api/assets/background`: what an app sends, what Immich gets, what the app hears."""

import base64
import hashlib
import json
import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from front import Front, StartBridge, front_of_a_recorder
from immich_bridge.serve import Server
from immich_standin import Asset, StandIn
from raw_upload import (
    KEY,
    NAME,
    ROUTE,
    assert_error,
    both_releases,
    jpeg,
    result,
    upload,
    upload_head,
    upload_request,
)
from wire import Message, answer, connect, fetch

SAMPLES = Path(__file__).parents[1] / "samples"
PHOTO = jpeg(100_000)
CREATED = "2026-11-21T03:00:00.123+08:00"
MODIFIED = "2026-11-22T04:05:06Z"
ICLOUD_ID = "3F2A8C1E-5B7D-4E90-A1C6-9D8E7F605142:001:AfJk2mQx"
ASSET_ID = "c632331e-a17d-453a-8726-2ce184ad618c"
CREATED_ANSWER = answer(
    "201 Created",
    ("Content-Type", "application/json; charset=utf-8"),
    body=json.dumps({"id": ASSET_ID, "status": "created"}).encode(),
)
TOLD = {
    "X-Device-Asset-Id": ("deviceAssetId", "A1/L0/001"),
    "X-Device-Id": ("deviceId", "iPhone"),
    "X-File-Created-At": ("fileCreatedAt", CREATED),
    "X-File-Modified-At": ("fileModifiedAt", MODIFIED),
    "X-Is-Favorite": ("isFavorite", "1"),
    "X-Filename": ("filename", "IMG_0001.HEIC"),
    "X-Content-Type": ("contentType", "image/heic"),
    "X-iCloud-Id": ("iCloudId", ICLOUD_ID),
    "X-Latitude": ("latitude", "48.1371"),
    "X-Longitude": ("longitude", "11.5754"),
    "X-Visibility": ("visibility", "archive"),
    "X-Duration": ("duration", "10000"),
}
UNDERSTOOD = {
    "deviceAssetId": "A1/L0/001",
    "deviceId": "iPhone",
    "fileCreatedAt": CREATED,
    "fileModifiedAt": MODIFIED,
    "isFavorite": "true",
    "visibility": "archive",
    "duration": "10000",
}


@pytest.fixture
async def front(start_bridge: StartBridge) -> AsyncIterator[Front]:
    async with front_of_a_recorder(start_bridge) as front:
        front.reply = CREATED_ANSWER
        yield front


def the_asset(immich: StandIn) -> Asset:
    """The only one that Immich holds, with no other file beside it."""
    (asset,) = immich.assets
    assert immich.files() == [asset.path]
    return asset


def boundary_of(message: Message) -> bytes:
    found = re.fullmatch(
        r"multipart/form-data; boundary=([0-9a-zA-Z-]+)", message.header("Content-Type") or ""
    )
    assert found is not None
    return found[1].encode()


def parts_of(message: Message) -> list[tuple[str, bytes]]:
    """Disposition and content of each part of the form that reached Immich."""
    delimiter = b"\r\n--" + boundary_of(message)
    nothing, *parts, end = (b"\r\n" + message.body).split(delimiter)
    assert (nothing, end) == (b"", b"--\r\n")
    found = []
    for part in parts:
        head, _, content = part.partition(b"\r\n\r\n")
        (disposition,) = re.findall(rb"\r\nContent-Disposition: form-data; ([^\r]+)", head)
        found.append((disposition.decode(), content))
    return found


@both_releases
class TestPhotos:
    @pytest.mark.parametrize("size", [1, 1000, 200_000, 5 << 20])
    @pytest.mark.parametrize("in_chunks", [False, True], ids=["announced", "chunked"])
    async def test_arrive_byte_for_byte(
        self, immich: StandIn, bridge: Server, size: int, in_chunks: bool
    ) -> None:
        photo = jpeg(size)
        told = await upload(bridge.address, photo, NAME, in_chunks=in_chunks)
        asset = the_asset(immich)
        assert asset.path.read_bytes() == photo
        assert asset.original_file_name == "IMG_0001.jpg"
        assert told.status == 201
        assert result(told) == {"id": asset.id, "status": "created", "duplicate": False}
        assert told.header("X-Immich-Asset-Id") == asset.id
        assert told.header("X-Immich-Status") == "created"
        assert told.header("X-Bridge-Error") is None
        assert told.header("X-Request-Id")
        (seen,) = immich.requests
        assert (seen.method, seen.target) == ("POST", "/api/assets")
        if in_chunks:
            assert seen.header("Transfer-Encoding") == "chunked"
            assert seen.header("Content-Length") is None
        else:
            assert seen.header("Content-Length") == str(seen.body_received)
            assert seen.header("Transfer-Encoding") is None

    @pytest.mark.parametrize("in_chunks", [False, True], ids=["announced", "chunked"])
    async def test_of_no_byte_are_refused(
        self, immich: StandIn, bridge: Server, in_chunks: bool
    ) -> None:
        told = await upload(bridge.address, b"", NAME, in_chunks=in_chunks)
        assert "empty" in assert_error(told, 400, "bad_request")
        assert immich.requests == []

    async def test_without_any_framing_are_empty(self, immich: StandIn, bridge: Server) -> None:
        told = await fetch(bridge.address, "POST", ROUTE, KEY, NAME)
        assert_error(told, 400, "bad_request")
        assert immich.requests == []

    async def test_that_immich_has_are_duplicates(self, immich: StandIn, bridge: Server) -> None:
        first = await upload(bridge.address, PHOTO, NAME)
        again = await upload(bridge.address, PHOTO, ("X-Filename", "copy.jpg"))
        asset = the_asset(immich)
        assert asset.original_file_name == "IMG_0001.jpg"
        assert (first.status, again.status) == (201, 200)
        assert result(again) == {"status": "duplicate", "id": asset.id, "duplicate": True}
        assert again.header("X-Immich-Asset-Id") == asset.id
        assert again.header("X-Immich-Status") == "duplicate"
        assert again.header("X-Bridge-Error") is None

    async def test_follow_each_other_on_one_connection(
        self, immich: StandIn, bridge: Server
    ) -> None:
        photos = {f"{number}.jpg": jpeg(50_000, number) for number in range(6)}
        async with connect(bridge.address) as peer:
            for number, (name, photo) in enumerate(photos.items()):
                filename = ("X-Filename", name)
                in_chunks = number % 2 == 1
                await peer.send(upload_request(photo, KEY, filename, in_chunks=in_chunks))
                assert (await peer.read_answer()).status == 201
        stored = {each.original_file_name: each.path.read_bytes() for each in immich.assets}
        assert stored == photos

    async def test_of_an_iphone_with_their_video(self, immich: StandIn, bridge: Server) -> None:
        video = (SAMPLES / "IMG_0001.MOV").read_bytes()
        photo = (SAMPLES / "IMG_0001.HEIC").read_bytes()
        told = await upload(
            bridge.address, video, ("X-Filename", "IMG_0001.MOV"), ("X-Visibility", "hidden")
        )
        video_id = told.header("X-Immich-Asset-Id")
        assert video_id is not None
        told = await upload(
            bridge.address,
            photo,
            ("X-Filename", "IMG_0001.HEIC"),
            ("X-Live-Photo-Video-Id", video_id.upper()),
        )
        assert told.status == 201
        moving, still = immich.assets
        assert (moving.type, moving.visibility) == ("VIDEO", "hidden")
        assert (still.type, still.live_photo_video_id) == ("IMAGE", moving.id)
        assert (moving.path.read_bytes(), still.path.read_bytes()) == (video, photo)


@both_releases
class TestMetadata:
    @pytest.mark.parametrize("way", ["headers", "query", "header before query"])
    async def test_comes_in_headers_or_in_the_query(
        self, immich: StandIn, bridge: Server, way: str
    ) -> None:
        headers = [(header, value) for header, (_, value) in TOLD.items()]
        query = "&".join(f"{name}={value}" for name, value in TOLD.values())
        if way == "headers":
            told = await upload(bridge.address, PHOTO, *headers)
        elif way == "query":
            told = await upload(bridge.address, PHOTO, query=query)
        else:
            wrong = "&".join(f"{name}=wrong" for name, _ in TOLD.values())
            told = await upload(bridge.address, PHOTO, *headers, query=wrong)
        assert told.status == 201
        asset = the_asset(immich)
        fields = dict(asset.fields)
        assert json.loads(fields.pop("metadata")) == asset.metadata
        assert fields == UNDERSTOOD
        assert asset.original_file_name == "IMG_0001.HEIC"
        assert asset.is_favorite
        assert asset.visibility == "archive"
        assert asset.file_created_at == datetime.fromisoformat(CREATED)
        assert asset.file_modified_at == datetime.fromisoformat(MODIFIED)
        assert asset.metadata == [
            {
                "key": "mobile-app",
                "value": {
                    "iCloudId": ICLOUD_ID,
                    "createdAt": CREATED,
                    "latitude": "48.1371",
                    "longitude": "11.5754",
                },
            }
        ]

    @pytest.mark.parametrize("header", [h for h in TOLD if h != "X-Content-Type"])
    async def test_an_empty_header_counts_as_missing(
        self, immich: StandIn, bridge: Server, header: str
    ) -> None:
        name, value = TOLD[header]
        query = "&".join(f"{name}={value}" for name, value in TOLD.values())
        told = await upload(bridge.address, PHOTO, (header, ""), query=query)
        assert told.status == 201
        asset = the_asset(immich)
        fields = asset.fields | asset.metadata[0]["value"] | {"filename": asset.original_file_name}
        assert fields[name] == ("true" if header == "X-Is-Favorite" else value)

    async def test_has_defaults(self, immich: StandIn, bridge: Server) -> None:
        before = datetime.now(UTC) - timedelta(milliseconds=1)
        empty = [(header, "") for header in TOLD]
        query = "&".join(f"{name}=" for name, _ in TOLD.values())
        told = await upload(bridge.address, PHOTO, *empty, query=query)
        assert told.status == 201
        asset = the_asset(immich)
        now = asset.fields["fileCreatedAt"]
        assert before <= asset.file_created_at <= datetime.now(UTC)
        digits = re.sub(r"\D", "", now)
        assert asset.original_file_name == f"IMG_{digits[:8]}_{digits[8:14]}.jpg"
        assert asset.fields == {
            "deviceAssetId": f"{asset.original_file_name}-{now}",
            "deviceId": "ios-immich-uploader",
            "fileCreatedAt": now,
            "fileModifiedAt": now,
            "isFavorite": "false",
        }
        assert asset.metadata == []

    @pytest.mark.parametrize(
        ("header", "stored"),
        [
            ("照片 é 📷.jpg".encode(), "照片 é 📷.jpg"),
            ("Grüße.jpg".encode("latin-1"), "Grüße.jpg"),
            (b"\xff\xfe.jpg", "ÿþ.jpg"),
            (b'a"b%22c+d%20e.jpg', 'a"b%22c+d%20e.jpg'),
            (b"=?UTF-8?B?eA==?=.jpg", "=?UTF-8?B?eA==?=.jpg"),
        ],
    )
    async def test_in_a_header_is_utf8_or_latin_1(
        self, immich: StandIn, bridge: Server, header: bytes, stored: str
    ) -> None:
        name = ("X-Filename", header.decode("utf-8", "surrogateescape"))
        device = ("X-Device-Id", name[1])
        assert (await upload(bridge.address, PHOTO, name, device)).status == 201
        asset = the_asset(immich)
        assert asset.original_file_name == stored
        assert asset.fields["deviceId"] == stored

    @pytest.mark.parametrize(
        ("query", "stored"),
        [
            ("filename=%E7%85%A7%E7%89%87%20%C3%A9.jpg", "照片 é.jpg"),
            ("filename=a+b.jpg", "a b.jpg"),
            ("filename=a%2Bb%26c%3Dd%22.jpg", 'a+b&c=d".jpg'),
            ("filename=a=b.jpg", "a=b.jpg"),
            ("filename=%252E.jpg", "%2E.jpg"),
            ("a&filename=first.jpg&filename=second.jpg&&b=", "first.jpg"),
        ],
    )
    async def test_in_the_query_is_percent_decoded_once(
        self, immich: StandIn, bridge: Server, query: str, stored: str
    ) -> None:
        assert (await upload(bridge.address, PHOTO, query=query)).status == 201
        assert the_asset(immich).original_file_name == stored

    @pytest.mark.parametrize(
        ("sent", "instant"),
        [
            ("2026-11-21T03:00:00", "2026-11-21T03:00:00Z"),
            ("2026-11-21 03:00:00", "2026-11-21T03:00:00Z"),
            ("2026-11-21T03:00:00+0800", "2026-11-20T19:00:00Z"),
            ("2026-11-21t03:00:00.5z", "2026-11-21T03:00:00.5Z"),
        ],
    )
    async def test_dates_are_made_strict(
        self, immich: StandIn, bridge: Server, sent: str, instant: str
    ) -> None:
        header = ("X-File-Created-At", sent)
        assert (await upload(bridge.address, PHOTO, header, NAME)).status == 201
        assert the_asset(immich).file_created_at == datetime.fromisoformat(instant)

    async def test_a_plus_in_the_query_may_be_raw(self, immich: StandIn, bridge: Server) -> None:
        query = "fileCreatedAt=2026-11-21T03:00:00+08:00"
        assert (await upload(bridge.address, PHOTO, query=query)).status == 201
        assert the_asset(immich).fields["fileCreatedAt"] == "2026-11-21T03:00:00+08:00"


@both_releases
class TestKinds:
    HEIC = (SAMPLES / "IMG_0001.HEIC").read_bytes()
    MOV = (SAMPLES / "IMG_0001.MOV").read_bytes()

    @pytest.mark.parametrize(
        ("name", "content_type", "body", "stored", "kind"),
        [
            ("IMG.HEIC", "", PHOTO, "IMG.HEIC", "IMAGE"),
            ("IMG.mov", "", PHOTO, "IMG.mov", "VIDEO"),
            ("IMG", "image/heic", PHOTO, "IMG.heic", "IMAGE"),
            ("note.txt", "video/mp4", PHOTO, "note.txt.mp4", "VIDEO"),
            ("IMG", "", HEIC, "IMG.heic", "IMAGE"),
            ("IMG", "", MOV, "IMG.mov", "VIDEO"),
            ("IMG", "application/octet-stream", MOV, "IMG.mov", "VIDEO"),
            (".jpg", "", PHOTO, ".jpg.jpg", "IMAGE"),
            ("3D.mpo", "", PHOTO, "3D.mpo.jpg", "IMAGE"),
            ("DCIM/100APPLE/IMG.jpg", "", PHOTO, "IMG.jpg", "IMAGE"),
            ("", "video/quicktime", PHOTO, "VID_20261121_030000.mov", "VIDEO"),
            ("", "", HEIC, "IMG_20261121_030000.heic", "IMAGE"),
            ("", "", MOV, "VID_20261121_030000.mov", "VIDEO"),
            ("", "", b"GIF89a", "IMG_20261121_030000.gif", "IMAGE"),
        ],
    )
    @pytest.mark.parametrize("in_chunks", [False, True], ids=["announced", "chunked"])
    async def test_are_told_by_name_else_by_type_else_by_bytes(
        self,
        immich: StandIn,
        bridge: Server,
        name: str,
        content_type: str,
        body: bytes,
        stored: str,
        kind: str,
        in_chunks: bool,
    ) -> None:
        told = await upload(
            bridge.address,
            body,
            ("X-Filename", name),
            ("X-Content-Type", content_type),
            ("X-File-Created-At", CREATED),
            in_chunks=in_chunks,
        )
        assert told.status == 201
        asset = the_asset(immich)
        assert (asset.original_file_name, asset.type) == (stored, kind)
        assert asset.path.suffix == Path(stored).suffix
        assert asset.path.read_bytes() == body

    async def test_are_told_by_bytes_that_come_one_by_one(
        self, immich: StandIn, bridge: Server
    ) -> None:
        async with connect(bridge.address) as peer:
            head, body = upload_request(b"", KEY, in_chunks=True)[: -len("0\r\n\r\n")], self.MOV
            await peer.send(head, *(b"1\r\n%c\r\n" % byte for byte in body[:600]))
            await peer.send(b"%x\r\n%b\r\n0\r\n\r\n" % (len(body) - 600, body[600:]))
            assert (await peer.read_answer()).status == 201
        asset = the_asset(immich)
        assert (asset.type, asset.path.read_bytes()) == ("VIDEO", body)


class TestCredentials:
    KINDS = (
        (("x-api-key", StandIn.api_key), ""),
        (("Authorization", f"Bearer {StandIn.access_token}"), ""),
        (("x-immich-user-token", StandIn.access_token), ""),
        (("x-immich-session-token", StandIn.access_token), ""),
        (("x-immich-share-key", "standin-share"), ""),
        (("x-immich-share-slug", "standin-share"), ""),
        (("Cookie", f"a=b; immich_access_token={StandIn.access_token}; c=d"), ""),
        (None, f"apiKey={StandIn.api_key}"),
        (None, "apiKey=standin%2Dkey"),
        (None, "key=standin-share"),
        (None, "slug=standin%2dshare"),
    )

    @both_releases
    @pytest.mark.parametrize(("header", "query"), KINDS)
    async def test_of_each_kind_open_immich(
        self, immich: StandIn, bridge: Server, header: tuple[str, str] | None, query: str
    ) -> None:
        headers = [header] if header else []
        told = await upload(bridge.address, PHOTO, NAME, *headers, query=query, key="")
        assert told.status == 201
        assert the_asset(immich).path.read_bytes() == PHOTO

    @pytest.mark.parametrize(("header", "query"), KINDS)
    async def test_are_passed_on_as_they_came(
        self, front: Front, header: tuple[str, str] | None, query: str
    ) -> None:
        headers = [header] if header else []
        more = f"filename=a.jpg&{query}&deviceId=d"
        await upload(front.url, PHOTO, *headers, query=more, key="")
        (seen,) = front.seen
        assert seen.target.decode() == (f"/api/assets?{query}" if query else "/api/assets")
        if header is not None:
            assert seen.header(header[0]) == header[1]

    async def test_of_several_kinds_are_all_passed_on(self, front: Front) -> None:
        told = await upload(
            front.url,
            PHOTO,
            ("AUTHORIZATION", "Basic b3V0ZXI6d2FsbA=="),
            ("cookie", "immich_access_token=t"),
            query="key=a%20b&filename=a.jpg&apiKey=k&slug=s",
        )
        assert told.status == 201
        (seen,) = front.seen
        assert seen.target == b"/api/assets?key=a%20b&apiKey=k&slug=s"
        assert seen.header("Authorization") == "Basic b3V0ZXI6d2FsbA=="
        assert seen.header("Cookie") == "immich_access_token=t"
        assert seen.header("x-api-key") == StandIn.api_key

    async def test_in_a_later_line_are_seen(self, front: Front) -> None:
        lines = [("Cookie", "a=b"), ("Cookie", "immich_access_token=t")]
        assert (await upload(front.url, PHOTO, NAME, *lines, key="")).status == 201
        assert front.seen[0].all("Cookie") == ["a=b", "immich_access_token=t"]

    @pytest.mark.parametrize(
        ("headers", "query"),
        [
            ([], ""),
            ([("x-api-key", ""), ("Authorization", ""), ("Cookie", "immich_access_token=")], ""),
            ([("Cookie", "session=1; xmmich_access_token=t")], ""),
            ([("X-Key", "k")], "apikey=k&Key=k&filename=key"),
            ([], "apiKey=&key=&slug="),
        ],
    )
    @pytest.mark.parametrize("expecting", [False, True])
    async def test_are_missed_before_immich_is(
        self, front: Front, headers: list[tuple[str, str]], query: str, expecting: bool
    ) -> None:
        expect = [("Expect", "100-continue")] if expecting else []
        told = await upload(front.url, PHOTO, NAME, *headers, *expect, query=query, key="")
        assert_error(told, 401, "unauthorized")
        assert told.header("WWW-Authenticate") == "Bearer"
        assert told.interim == []
        assert front.upstream.connections == 0


class TestChecksums:
    SHA1 = hashlib.sha1(PHOTO, usedforsecurity=False)
    SHA256 = base64.b64encode(hashlib.sha256(PHOTO).digest()).decode()
    SHA512 = base64.b64encode(hashlib.sha512(PHOTO).digest()).decode()

    @both_releases
    @pytest.mark.parametrize(
        "headers",
        [
            [("x-immich-checksum", SHA1.hexdigest())],
            [("X-Immich-Checksum", SHA1.hexdigest().upper())],
            [("x-immich-checksum", base64.b64encode(SHA1.digest()).decode())],
            [("Repr-Digest", f"sha-256=:{SHA256}:")],
            [("Repr-Digest", f"sha-512=:{SHA512}:")],
            [("Content-Digest", f"sha-512=:{SHA512}:, sha-256=:{SHA256}:")],
            [("Content-Digest", f"md5=:AAAA:, sha-256=:{SHA256}:")],
            [
                ("x-immich-checksum", SHA1.hexdigest()),
                ("Repr-Digest", f"sha-256=:{SHA256}:"),
                ("Content-Digest", f"sha-512=:{SHA512}:"),
            ],
            [("x-immich-checksum", "unreadable")],
            [("Repr-Digest", "md5=:AAAA:")],
        ],
    )
    @pytest.mark.parametrize("in_chunks", [False, True], ids=["announced", "chunked"])
    async def test_that_are_right_or_unreadable_let_the_photo_pass(
        self, immich: StandIn, bridge: Server, headers: list[tuple[str, str]], in_chunks: bool
    ) -> None:
        told = await upload(bridge.address, PHOTO, NAME, *headers, in_chunks=in_chunks)
        assert told.status == 201
        assert the_asset(immich).path.read_bytes() == PHOTO

    @pytest.mark.parametrize("value", [SHA1.hexdigest(), SHA1.hexdigest().upper(), "unreadable"])
    async def test_of_immich_are_passed_on_and_digests_of_the_body_are_not(
        self, front: Front, value: str
    ) -> None:
        digest = ("Content-Digest", f"sha-256=:{self.SHA256}:")
        representation = ("Repr-Digest", f"sha-256=:{self.SHA256}:")
        checksum = ("x-immich-checksum", value)
        await upload(front.url, PHOTO, NAME, checksum, digest, representation)
        (seen,) = front.seen
        assert seen.header("x-immich-checksum") == value
        # They are not those of the form.
        assert seen.header("Content-Digest") is None
        assert seen.header("Repr-Digest") is None

    @both_releases
    async def test_that_immich_knows_are_answered_at_once(
        self, immich: StandIn, bridge: Server
    ) -> None:
        await upload(bridge.address, PHOTO, NAME)
        checksum = ("x-immich-checksum", self.SHA1.hexdigest())
        async with connect(bridge.address) as peer:
            await peer.send(upload_head(len(PHOTO), checksum) + PHOTO[:5000])
            told = await peer.read_answer()
        assert (told.status, told.header("X-Immich-Status")) == (200, "duplicate")
        assert told.header("X-Immich-Asset-Id") == the_asset(immich).id


class TestForms:
    @pytest.mark.parametrize("in_chunks", [False, True], ids=["announced", "chunked"])
    async def test_hold_the_text_fields_first_and_the_file_last(
        self, front: Front, in_chunks: bool
    ) -> None:
        headers = [(header, value) for header, (_, value) in TOLD.items()]
        told = await upload(front.url, PHOTO, *headers, in_chunks=in_chunks)
        assert told.status == 201
        (seen,) = front.seen
        *fields, metadata, file = parts_of(seen)
        assert fields == [(f'name="{name}"', value.encode()) for name, value in UNDERSTOOD.items()]
        assert metadata[0] == 'name="metadata"'
        assert file == ('name="assetData"; filename="IMG_0001.HEIC"', PHOTO)
        assert b"\r\nContent-Type: image/heic\r\n" in seen.body
        length, coding = seen.header("Content-Length"), seen.header("Transfer-Encoding")
        assert (length, coding) == ((None, "chunked") if in_chunks else (str(len(seen.body)), None))

    @pytest.mark.parametrize(
        "name", ["照片 é.HEIC", 'say "cheese".jpg', "50%.jpg", "a;b.jpg", "x" * 300 + ".jpg"]
    )
    async def test_name_the_file_in_raw_utf8(self, front: Front, name: str) -> None:
        await upload(front.url, PHOTO, ("X-Filename", name))
        quoted = name.replace('"', '\\"')
        assert parts_of(front.seen[0])[-1] == (f'name="assetData"; filename="{quoted}"', PHOTO)
        assert front.seen[0].header("Content-Length") == str(len(front.seen[0].body))

    async def test_take_along_what_is_not_ours(self, front: Front) -> None:
        headers = [
            ("User-Agent", "Photos/1.0"),
            ("Cookie", "a=b"),
            ("X-Outer-Wall", "1"),
            ("x-outer-wall", "2"),
            ("X-Request-Id", "mine"),
            ("Accept", "application/json"),
        ]
        left_behind = [
            ("Connection", "keep-alive, X-Hop"),
            ("X-Hop", "1"),
            ("Content-Type", "image/jpeg"),
            ("Content-Encoding", "identity"),
            ("Content-Disposition", 'attachment; filename="x"'),
            ("Content-MD5", "AAAA"),
            ("Content-Range", "bytes 0-1/2"),
            ("If-None-Match", "*"),
            ("Range", "bytes=0-"),
            ("Accept-Encoding", "gzip"),
            ("Expect", "100-continue"),
            *((header, value) for header, (_, value) in TOLD.items()),
        ]
        mixed = [*headers[:3], *left_behind, *headers[3:]]
        assert (await upload(front.url, PHOTO, *mixed)).status == 201
        (seen,) = front.seen
        assert seen.first_line == b"POST /api/assets HTTP/1.1"
        assert seen.headers == [
            (b"Host", front.host),
            (b"x-api-key", StandIn.api_key.encode()),
            *((name.encode(), value.encode()) for name, value in headers),
            *front.forwarded(),
            (b"Content-Type", b"multipart/form-data; boundary=" + boundary_of(seen)),
            (b"Content-Length", b"%d" % len(seen.body)),
        ]

    async def test_go_below_the_prefix_of_immich(self, start_bridge: StartBridge) -> None:
        async with front_of_a_recorder(start_bridge, "/photos") as front:
            front.reply = CREATED_ANSWER
            assert (await upload(front.url, PHOTO, NAME, query="key=k")).status == 201
            assert front.seen[0].target == b"/photos/api/assets?key=k"

    async def test_of_each_client_hold_nothing_of_another(self, front: Front) -> None:
        front.reply = answer(
            "201 Created",
            ("Set-Cookie", "immich_access_token=first; Path=/"),
            body=json.dumps({"id": ASSET_ID, "status": "created"}).encode(),
        )
        first = await upload(front.url, PHOTO, NAME, ("Cookie", "a=first"), key="first")
        assert first.header("Set-Cookie") == "immich_access_token=first; Path=/"
        await upload(front.url, PHOTO, ("X-Filename", "b.jpg"), key="second")
        assert front.seen[0].header("Cookie") == "a=first"
        assert front.seen[1].header("Cookie") is None
        assert b"first" not in b"".join(value for _, value in front.seen[1].headers)
        assert front.seen[1].header("x-api-key") == "second"


class TestAnswers:
    @pytest.mark.parametrize(
        ("status", "said", "duplicate"),
        [
            ("201 Created", {"id": ASSET_ID, "status": "created"}, False),
            ("200 OK", {"status": "duplicate", "id": ASSET_ID}, True),
            ("200 OK", {"id": ASSET_ID, "status": "replaced", "x": ["é", None]}, False),
        ],
    )
    async def test_say_whether_it_is_a_duplicate(
        self, front: Front, status: str, said: dict[str, object], duplicate: bool
    ) -> None:
        front.reply = answer(
            status,
            ("X-Correlation-ID", "abc"),
            ("Content-Type", "application/json; charset=utf-8"),
            ("ETag", '"of what it was before"'),
            ("Set-Cookie", "a=1"),
            ("Set-Cookie", "b=2"),
            ("Keep-Alive", "timeout=5"),
            body=json.dumps(said).encode(),
        )
        told = await upload(front.url, PHOTO, NAME, ("X-Request-Id", "mine"))
        body = json.dumps({**said, "duplicate": duplicate}, ensure_ascii=False).encode()
        assert told.first_line == f"HTTP/1.1 {status}".encode()
        assert told.body == body
        assert told.headers == [
            (b"X-Correlation-ID", b"abc"),
            (b"Set-Cookie", b"a=1"),
            (b"Set-Cookie", b"b=2"),
            (b"Content-Type", b"application/json; charset=utf-8"),
            (b"X-Immich-Asset-Id", ASSET_ID.encode()),
            (b"X-Immich-Status", b"duplicate" if duplicate else b"created"),
            (b"Content-Length", b"%d" % len(body)),
            (b"X-Request-Id", b"mine"),
        ]

    async def test_in_chunks_are_read_too(self, front: Front) -> None:
        text = json.dumps({"id": ASSET_ID, "status": "created"}).encode()
        front.reply = (
            b"HTTP/1.1 201 Created\r\nTransfer-Encoding: chunked\r\n\r\n"
            b"%x\r\n%b\r\n0\r\n\r\n" % (len(text), text)
        )
        told = await upload(front.url, PHOTO, NAME)
        assert json.loads(told.body) == {"id": ASSET_ID, "status": "created", "duplicate": False}

    @pytest.mark.parametrize("status", [300, 301, 302, 303, 304, 307, 308])
    async def test_are_never_redirects(self, front: Front, status: int) -> None:
        front.reply = answer(f"{status} Elsewhere", ("Location", "https://elsewhere.example/"))
        told = await upload(front.url, PHOTO, NAME)
        assert str(status) in assert_error(told, 502, "bad_gateway")
        assert told.header("Location") is None
        assert len(front.seen) == 1

    @pytest.mark.parametrize(
        ("status", "body"),
        [
            (200, b""),
            (200, b"{}"),
            (201, b"<!doctype html><title>Welcome to the hotel's network</title>"),
            (201, b'["id"]'),
            (200, b'"id"'),
            (201, b'{"id":""}'),
            (201, b'{"id":5,"status":"created"}'),
            (201, b'{"id":null,"status":"created"}'),
            (201, b'{"id":"a\\r\\nX-Evil: 1","status":"created"}'),
            (201, '{"id":"é","status":"created"}'.encode()),
            (201, b'{"id":"' + b"x" * 200 + b'"}'),
            (201, b'{"id":"' + ASSET_ID.encode()),
            (201, b"\xff\xfe{"),
            (201, b" " * (2 << 20) + b'{"id":"x","status":"created"}'),
            (202, b'{"id":"x","status":"created"}'),
            (206, b'{"id":"x","status":"created"}'),
        ],
        ids=range(16),
    )
    async def test_that_confirm_nothing_are_no_success(
        self, front: Front, status: int, body: bytes
    ) -> None:
        front.reply = answer(f"{status} Well", ("Content-Type", "application/json"), body=body)
        told = await upload(front.url, PHOTO, NAME)
        assert_error(told, 502, "bad_gateway")
        assert told.header("X-Evil") is None

    async def test_of_204_confirm_nothing_either(self, front: Front) -> None:
        front.reply = b"HTTP/1.1 204 No Content\r\n\r\n"
        assert_error(await upload(front.url, PHOTO, NAME), 502, "bad_gateway")

    @pytest.mark.parametrize("given", ["", "a b", "é", "x" * 129, 'a"b'])
    async def test_bear_an_id_of_ours_when_the_client_has_none_that_is_sane(
        self, front: Front, given: str
    ) -> None:
        good = await upload(front.url, PHOTO, NAME, ("X-Request-Id", given))
        bad = await upload(front.url, PHOTO, NAME, ("X-Request-Id", given), key="")
        ids = [good.header("X-Request-Id") or "", bad.header("X-Request-Id") or ""]
        assert all(re.fullmatch(r"[0-9a-f]{32}", each) for each in ids)
        assert ids[0] != ids[1]

    async def test_bear_the_clients_id_when_it_is_sane(self, front: Front) -> None:
        for key in (StandIn.api_key, ""):
            told = await upload(front.url, PHOTO, NAME, ("X-Request-Id", "a-1:b/C_~"), key=key)
            assert told.header("X-Request-Id") == "a-1:b/C_~"


class TestMethods:
    @pytest.mark.parametrize(
        ("setting", "headers", "status"),
        [
            ("auto", [], 200),
            ("auto", [("X-Forwarded-For", "192.0.2.1")], 501),
            ("on", [("X-Forwarded-For", "192.0.2.1")], 200),
            ("off", [], 501),
        ],
    )
    async def test_options_tells_whether_uploads_can_be_resumed(
        self,
        start_bridge: StartBridge,
        setting: str,
        headers: list[tuple[str, str]],
        status: int,
    ) -> None:
        async with front_of_a_recorder(start_bridge, RESUMABLE=setting) as front:
            asked = [KEY, ("Access-Control-Request-Method", "POST"), *headers]
            told = await fetch(front.url, "OPTIONS", ROUTE, *asked)
            assert told.status == status
            assert (told.header("Upload-Limit") is not None) == (status == 200)
            if status == 501:
                assert_error(told, 501, "not_implemented")
            assert front.upstream.connections == 0

    @pytest.mark.parametrize("method", ["GET", "PUT", "PATCH", "DELETE"])
    async def test_of_other_kinds_are_not_allowed(self, front: Front, method: str) -> None:
        body = PHOTO if method in ("PUT", "PATCH") else b""
        told = await fetch(front.url, method, ROUTE, KEY, NAME, body=body)
        assert method in assert_error(told, 405, "method_not_allowed")
        assert told.header("Allow") == "POST"
        assert front.upstream.connections == 0

    async def test_head_is_not_allowed_and_hears_so_in_headers_alone(self, front: Front) -> None:
        async with connect(front.url) as peer:
            await peer.send(
                f"HEAD {ROUTE} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n".encode()
            )
            told = await peer.read_answer("HEAD")
            assert await peer.read_to_end() == b""
        assert (told.status, told.header("Allow")) == (405, "POST")
        assert told.header("X-Bridge-Error") == "method_not_allowed"
        assert front.upstream.connections == 0

    @pytest.mark.parametrize(
        "target", [ROUTE + "/", ROUTE + "/x", "/api/assets", "/API" + ROUTE[4:]]
    )
    async def test_elsewhere_are_immichs(self, front: Front, target: str) -> None:
        assert (await fetch(front.url, "OPTIONS", target, KEY)).status == 201
        assert front.seen[0].first_line == f"OPTIONS {target} HTTP/1.1".encode()


class TestExpectations:
    EXPECT = ("Expect", "100-continue")

    @both_releases
    async def test_are_met_once_the_head_is_accepted(self, immich: StandIn, bridge: Server) -> None:
        async with connect(bridge.address) as peer:
            await peer.send(upload_head(len(PHOTO), self.EXPECT))
            interim = await peer.read_head()
            assert interim.first_line == b"HTTP/1.1 100 Continue"
            assert interim.headers == []
            assert immich.requests == []
            await peer.send(PHOTO)
            told = await peer.read_answer()
        assert (told.status, told.interim) == (201, [])
        assert the_asset(immich).path.read_bytes() == PHOTO
        assert immich.requests[0].header("Expect") is None

    @both_releases
    async def test_need_not_be_waited_for(self, immich: StandIn, bridge: Server) -> None:
        told = await upload(bridge.address, PHOTO, NAME, ("expect", "100-Continue"))
        assert (told.status, told.interim) == (201, [])
        assert the_asset(immich).path.read_bytes() == PHOTO

    @pytest.mark.parametrize(
        ("bad", "status", "settings"),
        [
            (("X-Duration", "long"), 400, {}),
            (("Repr-Digest", "sha-256=what"), 400, {}),
            (("Content-Encoding", "gzip"), 415, {}),
            (("X-Small", "1"), 413, {"MAX_STREAM_SIZE": "99999B"}),
        ],
    )
    async def test_are_not_met_when_the_head_is_refused(
        self, start_bridge: StartBridge, bad: tuple[str, str], status: int, settings: dict[str, str]
    ) -> None:
        async with (
            front_of_a_recorder(start_bridge, **settings) as front,
            connect(front.url) as peer,
        ):
            await peer.send(upload_head(len(PHOTO), self.EXPECT, bad))
            told = await peer.read_answer()
            assert (told.status, told.interim) == (status, [])
            assert told.header("Connection") == "close"
            assert front.upstream.connections == 0
