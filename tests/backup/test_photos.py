"""`POST /photos/upload`, `/stream` and `/chunk`: what is on disk, in the rows, in the answer."""

import asyncio
import base64
import hashlib
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from urllib.parse import urlencode

import pytest

from backup_uploads import (
    DAY,
    FOLDER,
    FORMS,
    ROUTES,
    Route,
    answer_to,
    index,
    on_disk,
    pattern,
    upload,
    upload_request,
)
from backup_wing import Answer, Api, Header, photo, rows
from immich_bridge.serve import Server
from wire import chunked, connect

StartBackup = Callable[..., Awaitable[Server]]

JPG = f"{FOLDER}/IMG_0001.jpg"
ROW = "SELECT * FROM photos_user_1 WHERE local_id = ?"
FILES = "SELECT user_id, local_id, extension, size FROM files ORDER BY local_id, extension"


def recorded(db_path: Path, local_id: str = "IMG_1234") -> tuple[int, list[str], dict[str, int]]:
    """What the database says of a photo: files, extensions, and the size of each."""
    (row,) = rows(db_path, ROW, local_id)
    sizes = {
        file["extension"]: file["size"]
        for file in rows(db_path, FILES)
        if (file["user_id"], file["local_id"]) == (1, local_id)
    }
    return row["file_count"], json.loads(row["uploaded_extensions"]), sizes


def digest(body: bytes, algorithm: str = "sha-256") -> str:
    value = hashlib.new(algorithm.replace("-", ""), body).digest()
    return f"{algorithm}=:{base64.b64encode(value).decode()}:"


@pytest.mark.parametrize("route", ROUTES)
class TestStored:
    async def test_bytes_row_and_answer(
        self, route: Route, api: Api, storage_dir: Path, db_path: Path
    ) -> None:
        content = pattern(1_234_567)
        await index(api, "other", "IMG_1234")
        (before,) = rows(db_path, ROW, "IMG_1234")
        answer = await upload(api, route, content)
        expected: dict[str, object] = {
            "status": "success",
            "message": "File uploaded",
            "local_id": "IMG_1234",
            "filename": "IMG_0002.jpg",
            "file_path": "storage/photo/1/2025/12/10/IMG_0002.jpg",
            "size": 1_234_567,
        }
        if route == "chunk":
            expected |= {"complete": True, "received": [0]}
        assert (answer.status, answer.json) == (200, expected)
        assert on_disk(storage_dir) == {f"{FOLDER}/IMG_0002.jpg": content}
        assert recorded(db_path) == (1, ["jpg"], {"jpg": 1_234_567})
        (after,) = rows(db_path, ROW, "IMG_1234")
        unchanged = set(before) - {"file_count", "uploaded_extensions", "updated_at"}
        assert {name: after[name] for name in unchanged} == {n: before[n] for n in unchanged}
        assert after["updated_at"] >= before["updated_at"]
        assert recorded(db_path, "other") == (0, [], {})

    async def test_sizes_around_every_buffer(
        self, route: Route, api: Api, storage_dir: Path, db_path: Path
    ) -> None:
        await index(api, "IMG_1234")
        for size in (1, 65_536, 262_144, 1_048_575, 1_048_576, 1_048_577):
            content = pattern(size, size)
            answer = await upload(api, route, content)
            assert (answer.status, answer.json["size"]) == (200, size)
            assert on_disk(storage_dir) == {JPG: content}
            assert recorded(db_path)[2] == {"jpg": size}

    async def test_a_body_of_unknown_length(
        self, route: Route, api: Api, storage_dir: Path, db_path: Path
    ) -> None:
        await index(api, "IMG_1234")
        content = pattern(600_000)
        head, body = upload_request(route, api.token, content, ("Transfer-Encoding", "chunked"))
        answer = await answer_to(api.url, head, chunked(body[:7], body[7:300_000], body[300_000:]))
        assert (answer.status, answer.json["size"]) == (200, 600_000)
        assert on_disk(storage_dir) == {JPG: content}

    async def test_the_latest_wins(
        self, route: Route, api: Api, storage_dir: Path, db_path: Path
    ) -> None:
        await index(api, "IMG_1234")
        for size in (500_000, 3, 2_000_000):
            content = pattern(size, size)
            answer = await upload(api, route, content)
            assert (answer.status, answer.json["size"]) == (200, size)
            assert on_disk(storage_dir) == {JPG: content}
            assert recorded(db_path) == (1, ["jpg"], {"jpg": size})

    async def test_formats_lie_side_by_side(
        self, route: Route, api: Api, storage_dir: Path, db_path: Path
    ) -> None:
        await index(api, "IMG_1234", file_extension="heic", file_type="image/heic")
        expected = {}
        for number, (file_type, extension) in enumerate(
            {"image/heic": "heic", "image/jpeg": "jpg", "dng": "dng", "video/quicktime": "mov"}
            .items()
        ):  # fmt: skip
            content = pattern(1000 + number)
            answer = await upload(api, route, content, file_type=file_type)
            assert (answer.status, answer.json["filename"]) == (200, f"IMG_0001.{extension}")
            assert answer.json["file_path"] == f"storage/{FOLDER}/IMG_0001.{extension}"
            expected[f"{FOLDER}/IMG_0001.{extension}"] = content
            assert on_disk(storage_dir) == expected
        assert recorded(db_path) == (
            4,
            ["heic", "jpg", "dng", "mov"],
            {"heic": 1000, "jpg": 1001, "dng": 1002, "mov": 1003},
        )
        # Sent again it is counted once, and keeps its turn.
        await upload(api, route, b"again", file_type="jpg")
        assert recorded(db_path)[:2] == (4, ["heic", "jpg", "dng", "mov"])
        told = (await api.index(DAY, [photo("IMG_1234")])).json["assigned_files"]
        assert told[0]["uploaded_extensions"] == ["heic", "jpg", "dng", "mov"]

    @pytest.mark.parametrize("indexed", ["jpg", "jpeg"])
    async def test_jpg_and_jpeg_are_one_file(
        self, route: Route, indexed: str, api: Api, storage_dir: Path, db_path: Path
    ) -> None:
        await index(api, "IMG_1234", file_extension=indexed)
        for file_type in ("jpg", "jpeg", "JPEG", ".jpg", "image/jpeg", "image/jpg", "IMAGE/JPEG"):
            content = file_type.encode()
            answer = await upload(api, route, content, file_type=file_type)
            assert (answer.status, answer.json["filename"]) == (200, f"IMG_0001.{indexed}")
            assert on_disk(storage_dir) == {f"{FOLDER}/IMG_0001.{indexed}": content}
        assert recorded(db_path)[:2] == (1, [indexed])

    async def test_what_cannot_be_uploaded(
        self, route: Route, api: Api, storage_dir: Path, db_path: Path
    ) -> None:
        await index(api, "IMG_1234")
        for local_id, file_type, error in (
            ("", "image/jpeg", (400, "bad_request", "local_id is required")),
            ("IMG_1234", "", (400, "bad_request", "file_type is required")),
            ("IMG_1235", "image/jpeg", (500, "internal_error", "photo not found")),
            ("img_1234", "image/jpeg", (500, "internal_error", "photo not found")),
            ("IMG_1234\0", "image/jpeg", (500, "internal_error", "photo not found")),
            *(
                ("IMG_1234", unknown, (400, "bad_request", f"file_type is unknown: {unknown!r}"))
                for unknown in (
                    *("image/unknown", "application/pdf", "text/html", "/", "../../x", "a b", "."),
                    *("abcdefghijk", "jpg/../../../x", "jpg\\..\\x", "jpé", "jp\0g"),
                )
            ),
        ):
            answer = await upload(api, route, b"x" * 300, local_id=local_id, file_type=file_type)
            assert answer.error == error
            assert on_disk(storage_dir) == {}
        assert recorded(db_path) == (0, [], {})

    async def test_an_empty_file_is_refused_and_the_old_one_stays(
        self, route: Route, api: Api, storage_dir: Path, db_path: Path
    ) -> None:
        await index(api, "IMG_1234")
        answer = await upload(api, route, b"")
        assert answer.error == (400, "bad_request", "the file is empty")
        assert on_disk(storage_dir) == {}
        await upload(api, route, b"old")
        assert (await upload(api, route, b"")).status == 400
        assert on_disk(storage_dir) == {JPG: b"old"}
        assert recorded(db_path) == (1, ["jpg"], {"jpg": 3})

    async def test_a_photo_that_is_encoded_is_refused(
        self, route: Route, api: Api, storage_dir: Path
    ) -> None:
        # Stored as it came it would be no photo, and nobody would notice.
        await index(api, "IMG_1234")
        answer = await upload(api, route, b"photo", ("Content-Encoding", "gzip"))
        assert answer.error[:2] == (415, "unsupported_media_type")
        assert on_disk(storage_dir) == {}
        answer = await upload(api, route, b"photo", ("Content-Encoding", "identity"))
        assert answer.status == 200

    async def test_one_connection_for_many_photos(
        self, route: Route, api: Api, storage_dir: Path
    ) -> None:
        await index(api, *"abcdef")
        expected = {}
        async with connect(api.url) as peer:
            for number, local_id in enumerate("abcdef", 1):
                content = pattern(100_000 + number, number)
                await peer.send(*upload_request(route, api.token, content, local_id=local_id))
                answer = Answer(await peer.read_answer("POST"))
                assert (answer.status, answer.json["local_id"]) == (200, local_id)
                expected[f"{FOLDER}/IMG_{number:04}.jpg"] = content
        assert on_disk(storage_dir) == expected


class TestAuthorization:
    @pytest.mark.parametrize("route", ROUTES)
    async def test_a_stranger_is_refused_before_the_body_is_wanted(
        self, route: Route, backup: Server, storage_dir: Path
    ) -> None:
        for token, message in (
            (None, "Authorization header is required"),
            ("", "Invalid authorization header format"),
            ("no.such.token", "Token not found"),
        ):
            expect = ("Expect", "100-continue")
            head, _ = upload_request(route, token, pattern(1_000_000), expect)
            async with connect(backup.address) as peer:
                await peer.send(head)
                answer = Answer(await peer.read_answer("POST"))
            assert answer.error == (401, "unauthorized", message)
            assert answer.message.interim == []
        assert on_disk(storage_dir) == {}

    @pytest.mark.parametrize("route", ROUTES)
    async def test_a_user_is_invited_to_send_the_body(
        self, route: Route, api: Api, storage_dir: Path
    ) -> None:
        await index(api, "IMG_1234")
        content = pattern(1_000_000)
        head, body = upload_request(route, api.token, content, ("Expect", "100-continue"))
        async with connect(api.url) as peer:
            await peer.send(head)
            assert (await peer.read_head()).first_line == b"HTTP/1.1 100 Continue"
            await peer.send(body)
            answer = Answer(await peer.read_answer("POST"))
        assert (answer.status, answer.message.interim) == (200, [])
        assert on_disk(storage_dir) == {JPG: content}

    async def test_a_raw_upload_that_goes_nowhere_is_refused_before_its_body(
        self, api: Api, storage_dir: Path
    ) -> None:
        head, _ = upload_request("raw", api.token, b"x" * 1000, ("Expect", "100-continue"))
        answer = await answer_to(api.url, head)
        assert answer.error == (500, "internal_error", "photo not found")
        assert answer.message.interim == []

    @pytest.mark.parametrize("route", ROUTES)
    async def test_a_body_that_is_announced_as_too_large_is_not_wanted(
        self, route: Route, start_backup: StartBackup, api: Api, storage_dir: Path
    ) -> None:
        small = await start_backup(MAX_UPLOAD_SIZE="1000", MAX_STREAM_SIZE="1000")
        await index(api, "IMG_1234")
        head, _ = upload_request(route, api.token, pattern(2_000_000), ("Expect", "100-continue"))
        answer = await answer_to(small.address, head)
        assert answer.error[:2] == (413, "payload_too_large")
        assert answer.message.interim == []
        assert on_disk(storage_dir) == {}


class TestQuery:
    async def test_a_raw_upload_takes_its_query_as_it_is_written(
        self, api: Api, storage_dir: Path
    ) -> None:
        await index(api, "a b/ü+&=%2F")
        for target in (
            "/photos/upload/stream?local_id=a+b/%C3%BC%2B%26%3D%252F&file_type=image/jpeg",
            "/photos/upload/stream?file_type=image%2Fjpeg&local_id=a%20b%2f%c3%bc%2b%26%3d%252F",
            "/photos/upload/stream?x=y&"
            + urlencode({"local_id": "a b/ü+&=%2F", "file_type": "jpg"}),
        ):
            answer = await api.call("POST", target, body=target.encode())
            assert (answer.status, answer.json["local_id"]) == (200, "a b/ü+&=%2F")
            assert on_disk(storage_dir) == {JPG: target.encode()}

    async def test_a_raw_upload_needs_its_query(self, api: Api, storage_dir: Path) -> None:
        for query, message in {
            "": "local_id is required",
            "?file_type=jpg": "local_id is required",
            "?local_id=IMG_1234": "file_type is required",
        }.items():
            answer = await api.call("POST", f"/photos/upload/stream{query}", body=b"photo")
            assert answer.error == (400, "bad_request", message)

    async def test_a_query_that_is_no_unicode_is_no_photo(self, api: Api) -> None:
        for local_id in ("%FF", "%ED%A0%80", "%C3"):
            target = f"/photos/upload/stream?local_id={local_id}&file_type=jpg"
            answer = await api.call("POST", target, body=b"photo")
            message = "local_id in the query string is not percent-encoded UTF-8"
            assert answer.error == (400, "bad_request", message)


class TestDigests:
    async def test_a_right_digest_of_a_raw_body(self, api: Api, storage_dir: Path) -> None:
        await index(api, "IMG_1234")
        sha1 = hashlib.sha1(b"", usedforsecurity=False)
        for number, header in enumerate(("Repr-Digest", "Content-Digest", "x-immich-checksum")):
            content = pattern(1_500_000, number)
            values = [digest(content), digest(content, "sha-512"), f"md5=:x:, {digest(content)}"]
            if header == "x-immich-checksum":
                sha1 = hashlib.sha1(content, usedforsecurity=False)
                values = [sha1.hexdigest(), base64.b64encode(sha1.digest()).decode()]
            for value in values:
                answer = await upload(api, "raw", content, (header, value))
                assert answer.status == 200, (header, value, answer)
                assert on_disk(storage_dir) == {JPG: content}

    @pytest.mark.parametrize("route", FORMS)
    async def test_a_right_digest_of_a_form_covers_all_of_it(
        self, route: Route, api: Api, storage_dir: Path
    ) -> None:
        await index(api, "IMG_1234")
        content = pattern(1_500_000)
        _, body = upload_request(route, api.token, content)
        for header in ("Repr-Digest", "Content-Digest"):
            answer = await upload(api, route, content, (header, digest(body)))
            assert answer.status == 200, answer
            assert on_disk(storage_dir) == {JPG: content}

    @pytest.mark.parametrize("route", FORMS)
    async def test_what_stands_behind_a_form_is_digested_with_it(
        self, route: Route, api: Api, storage_dir: Path
    ) -> None:
        await index(api, "IMG_1234")
        for number, epilogue in enumerate((b"one line", b"\r\na\r\nb\r\n", pattern(4_000_000))):
            content = pattern(1000, number)
            _, form = upload_request(route, api.token, content)
            for digested, status in (
                (form, 422),
                (form + epilogue[:-1], 422),
                (form + epilogue, 200),
            ):
                length = ("Content-Length", str(len(form + epilogue)))
                promise = ("Content-Digest", digest(digested))
                head, _ = upload_request(route, api.token, content, promise)
                head = head.replace(b"Content-Length: %d" % len(form), ": ".join(length).encode())
                answer = await answer_to(api.url, head, form, epilogue)
                assert answer.status == status, answer
                stored = on_disk(storage_dir).get(JPG)
                assert (stored == content) is (status == 200)

    @pytest.mark.parametrize("route", ROUTES)
    async def test_a_wrong_digest_leaves_the_old_photo(
        self, route: Route, api: Api, storage_dir: Path, db_path: Path
    ) -> None:
        content = pattern(1_500_000)
        _, body = upload_request(route, api.token, content)
        sha1 = hashlib.sha1(body[:-1], usedforsecurity=False).hexdigest()
        wrong: list[Header] = [
            ("Repr-Digest", digest(body[:-1])),
            ("Content-Digest", digest(body + b"x", "sha-512")),
            ("Content-Digest", f"{digest(body)}, {digest(b'', 'sha-512')}"),
            ("x-immich-checksum", sha1),
        ]
        if route != "raw":
            wrong.append(("Content-Digest", digest(content)))  # of the file, not of the form
        await index(api, "IMG_1234")
        for before in ({}, {JPG: b"old"}):
            if before:
                assert (await upload(api, route, b"old")).status == 200
            for header in wrong:
                answer = await upload(api, route, content, header)
                assert answer.error[:2] == (422, "checksum_mismatch"), header
                assert header[0] in answer.error[2]
                assert on_disk(storage_dir) == before
        assert recorded(db_path) == (1, ["jpg"], {"jpg": 3})

    @pytest.mark.parametrize("route", ROUTES)
    async def test_a_digest_that_cannot_be_read(
        self, route: Route, api: Api, storage_dir: Path
    ) -> None:
        await index(api, "IMG_1234")
        for value in ("sha-256=abc", "sha-256=:abc:", "sha-256=:!!!!:", "sha-512=:YWJj:"):
            answer = await upload(api, route, b"photo", ("Content-Digest", value))
            assert answer.error[:2] == (400, "bad_request"), value
            assert on_disk(storage_dir) == {}
        # What nobody can verify is no promise.
        answer = await upload(api, route, b"photo", ("Content-Digest", "crc32c=:AAAA:"))
        assert answer.status == 200


class TestLimits:
    LIMIT = 300_000

    @pytest.fixture
    async def limited(self, start_backup: StartBackup, api: Api) -> Api:
        """A server with low limits, and the photo indexed."""
        limit = str(self.LIMIT)
        server = await start_backup(MAX_UPLOAD_SIZE=limit, MAX_STREAM_SIZE=limit)
        await index(api, "IMG_1234")
        return Api(server.address, api.token)

    @pytest.mark.parametrize("framing", ["length", "chunked"])
    @pytest.mark.parametrize("route", ROUTES)
    async def test_the_limit_is_the_last_byte(
        self, route: Route, framing: str, limited: Api, storage_dir: Path, db_path: Path
    ) -> None:
        async def send(content: bytes) -> Answer:
            if framing == "length":
                return await answer_to(limited.url, *upload_request(route, limited.token, content))
            headers = ("Transfer-Encoding", "chunked")
            head, body = upload_request(route, limited.token, content, headers)
            return await answer_to(limited.url, head, chunked(body))

        exactly = pattern(self.LIMIT)
        answer = await send(exactly)
        assert (answer.status, answer.json["size"]) == (200, self.LIMIT)
        for size in (self.LIMIT + 1, self.LIMIT + 200_000):
            answer = await send(pattern(size, 1))
            assert answer.error[:2] == (413, "payload_too_large")
            assert str(self.LIMIT) in answer.error[2]
            assert on_disk(storage_dir) == {JPG: exactly}
        assert recorded(db_path) == (1, ["jpg"], {"jpg": self.LIMIT})

    async def test_a_form_may_hold_no_more_than_a_file_and_a_little(
        self, limited: Api, storage_dir: Path
    ) -> None:
        fields = {"local_id": "IMG_1234", "file_type": "jpg", "other": "x" * 900_000}
        answer = await limited.upload_form(fields, pattern(self.LIMIT))
        assert answer.status == 200, answer
        fields["other"] = "x" * 1_400_000
        before = on_disk(storage_dir)
        for file_first in (True, False):
            answer = await limited.upload_form(fields, b"new", file_first=file_first)
            assert answer.error[:2] == (413, "payload_too_large")
            assert on_disk(storage_dir) == before

    async def test_the_limits_of_forms_and_of_raw_bodies_are_two(
        self, start_backup: StartBackup, api: Api, storage_dir: Path
    ) -> None:
        await index(api, "IMG_1234")
        content = pattern(20_000)
        for settings, allowed in (
            ({"MAX_UPLOAD_SIZE": "10000"}, {"raw"}),
            ({"MAX_STREAM_SIZE": "10000"}, {"form"}),
        ):
            server = await start_backup(**settings)
            limited = Api(server.address, api.token)
            answers = {route: await upload(limited, route, content) for route in ROUTES}
            assert {route for route in ROUTES if answers[route].status == 200} == allowed
            assert {answer.status for answer in answers.values()} == {200, 413}

    async def test_the_default_limit_of_a_form_is_fifty_megabytes(
        self, api: Api, storage_dir: Path
    ) -> None:
        await index(api, "IMG_1234")
        content = pattern(8) * (50 * 1024 * 1024 // 8)
        answer = await upload(api, "form", content)
        assert (answer.status, answer.json["size"]) == (200, 52_428_800)
        request = upload_request("form", api.token, content + b"x")
        assert (await answer_to(api.url, *request)).error[:2] == (413, "payload_too_large")
        assert (storage_dir / JPG).stat().st_size == 52_428_800


async def test_a_file_that_the_database_does_not_know_is_never_replaced(
    api: Api, storage_dir: Path
) -> None:
    # As after a restore of a database that is older than the photos.
    old = {f"{FOLDER}/IMG_0007.jpg": b"old", f"{FOLDER}/IMG_0003.heic": b"older"}
    others = {f"{FOLDER}/notes.txt": b"x", f"{FOLDER}/IMG_9.jpg": b"x", f"{FOLDER}/IMG_0099": b"x"}
    for name, content in {**old, **others}.items():
        (storage_dir / name).parent.mkdir(parents=True, exist_ok=True)
        (storage_dir / name).write_bytes(content)
    assert await index(api, "a", "b") == ["IMG_0008.jpg", "IMG_0009.jpg"]
    assert await index(api, "b", "c") == ["IMG_0009.jpg", "IMG_0010.jpg"]
    assert (await upload(api, "raw", b"new", local_id="a")).status == 200
    assert on_disk(storage_dir) == {**old, **others, f"{FOLDER}/IMG_0008.jpg": b"new"}


class TestAtOnce:
    async def test_many_photos_of_many_clients(
        self, api: Api, storage_dir: Path, db_path: Path
    ) -> None:
        local_ids = [f"photo {number}" for number in range(60)]
        await index(api, *local_ids)
        contents = [pattern(1000 + 7919 * n, n) for n in range(60)]
        answers = await asyncio.gather(
            *(
                upload(api, ROUTES[n % 3], contents[n], local_id=local_id)
                for n, local_id in enumerate(local_ids)
            )
        )
        assert [answer.status for answer in answers] == [200] * 60
        expected = {f"{FOLDER}/IMG_{n:04}.jpg": content for n, content in enumerate(contents, 1)}
        assert on_disk(storage_dir) == expected
        assert [file["size"] for file in rows(db_path, FILES)] == [
            len(contents[int(name.split()[1])]) for name in sorted(local_ids)
        ]

    async def test_formats_of_one_photo_at_once_are_all_in_its_row(
        self, api: Api, storage_dir: Path, db_path: Path
    ) -> None:
        await index(api, "IMG_1234")
        types = ["jpg", "heic", "mov", "dng", "png", "tiff", "webp", "avif", "mp4", "xmp"]
        answers = await asyncio.gather(
            *(
                upload(api, ROUTES[n % 3], file_type.encode(), file_type=file_type)
                for n, file_type in enumerate(types)
            )
        )
        assert [answer.status for answer in answers] == [200] * len(types)
        assert on_disk(storage_dir) == {
            f"{FOLDER}/IMG_0001.{each}": each.encode() for each in types
        }
        file_count, extensions, sizes = recorded(db_path)
        assert (file_count, sorted(extensions)) == (len(types), sorted(types))
        assert sizes == {each: len(each) for each in types}

    async def test_the_same_photo_twice_at_once(
        self, api: Api, storage_dir: Path, db_path: Path
    ) -> None:
        await index(api, "IMG_1234")
        for number in range(50):
            contents = [pattern(50_000 + 1000 * number, 1), pattern(90_000 - 500 * number, 2)]
            routes = ROUTES[number % 3], ROUTES[number // 3 % 3]
            answers = await asyncio.gather(*map(upload, (api, api), routes, contents))
            sent = dict(zip(map(len, contents), contents, strict=True))
            if len(sent) == 1:
                continue
            assert {answer.status for answer in answers} == {200}
            (stored,) = on_disk(storage_dir).values()
            # One of them whole, and the row is of the same one.
            assert stored == sent.get(len(stored))
            assert recorded(db_path) == (1, ["jpg"], {"jpg": len(stored)})
