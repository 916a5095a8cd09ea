"""`POST /photos/upload/chunk`: photos that come in pieces, in any order, over days and restarts."""

import asyncio
import hashlib
import itertools
import os
import random
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import pytest

from backup_uploads import (
    DAY,
    FOLDER,
    MemoryGrowth,
    Route,
    StartServerProcess,
    index,
    on_disk,
    pattern,
    upload,
)
from backup_wing import Answer, Api, multipart, photo, rows
from held_uploads import PiecewiseUpload
from immich_bridge.backup.accounts import User
from immich_bridge.serve import Server
from log_capture import written_log
from raw_upload import eventually
from wire import PATIENCE

StartBackup = Callable[..., Awaitable[Server]]
MakeUser = Callable[[str, str], Awaitable[User]]
Login = Callable[[Server, str, str], Awaitable[str]]

JPG = f"{FOLDER}/IMG_0001.jpg"
MIB = 1024 * 1024


async def send(
    api: Api,
    number: int | str,
    total: int | str,
    data: bytes,
    *,
    local_id: str = "IMG_1234",
    file_type: str = "image/jpeg",
) -> Answer:
    fields = {
        "local_id": local_id,
        "file_type": file_type,
        "chunk_number": str(number),
        "total_chunks": str(total),
    }
    return await api.upload_chunk(fields, data)


async def send_whole(api: Api, route: str, photo: bytes) -> Answer:
    """Store a photo by one of all the ways there are."""
    if route == "resumable":
        piecewise = PiecewiseUpload(api, photo)
        await piecewise.cut_off(sent=len(photo) // 2)
        return await piecewise.finish()
    if route == "other chunks":
        await send(api, 0, 3, photo[:1])
        await send(api, 1, 3, photo[1:2])
        return await send(api, 2, 3, photo[2:])
    return await upload(api, "form" if route == "form" else "raw", photo)


def split(content: bytes, total: int) -> list[bytes]:
    """`content` in pieces of different lengths."""
    chance = random.Random(total)
    borders = [0, *sorted(chance.sample(range(1, len(content)), total - 1)), len(content)]
    return [content[a:b] for a, b in itertools.pairwise(borders)]


CHUNKS = "photo/.chunks/"


def photos(storage_dir: Path) -> dict[str, bytes]:
    """What lies among the photos, chunks left out."""
    files = on_disk(storage_dir)
    return {name: files[name] for name in files if not name.startswith(CHUNKS)}


def keep_folders(storage_dir: Path) -> None:
    """Have no folder of chunks removed: what it would be called meanwhile is taken by a file."""
    for folder in (storage_dir / CHUNKS).glob("*/*"):
        folder.with_suffix(".removed").touch()


def kept(storage_dir: Path) -> list[bytes]:
    """The chunks that wait for others."""
    files = on_disk(storage_dir)
    names = [name for name in files if name.startswith(CHUNKS) and not name.endswith(".removed")]
    return sorted(files[name] for name in names)


async def until_kept(storage_dir: Path, *chunks: bytes) -> None:
    """Return once no other chunks wait: nobody waits for those to go that are worth nothing."""

    def are_kept() -> bool:
        with suppress(FileNotFoundError):  # it goes as we look
            going = any((storage_dir / CHUNKS).glob("*/*.removed"))
            return kept(storage_dir) == [*chunks] and not going
        return False

    await eventually(are_kept)


async def test_the_last_chunk_completes_the_photo(
    api: Api, storage_dir: Path, db_path: Path
) -> None:
    await index(api, "IMG_1234")
    content = pattern(1_000_000)
    chunks = split(content, 3)
    for number in (0, 1):
        answer = await send(api, number, 3, chunks[number])
        assert (answer.status, answer.json) == (
            200,
            {
                "status": "success",
                "message": "Chunk uploaded",
                "local_id": "IMG_1234",
                "complete": False,
                "received": [*range(number + 1)],
            },
        )
        assert photos(storage_dir) == {}
        assert rows(db_path, "SELECT * FROM files") == []
    answer = await send(api, 2, 3, chunks[2])
    assert (answer.status, answer.json) == (
        200,
        {
            "status": "success",
            "message": "File uploaded",
            "local_id": "IMG_1234",
            "filename": "IMG_0001.jpg",
            "file_path": f"storage/{JPG}",
            "size": 1_000_000,
            "complete": True,
            "received": [0, 1, 2],
        },
    )
    assert on_disk(storage_dir) == {JPG: content}
    (row,) = rows(db_path, "SELECT * FROM photos_user_1")
    assert (row["file_count"], row["uploaded_extensions"]) == (1, '["jpg"]')
    assert [file["size"] for file in rows(db_path, "SELECT * FROM files")] == [1_000_000]
    assert (storage_dir / JPG).stat().st_mtime == 1765360800  # 2025-12-10T10:00:00Z


@pytest.mark.parametrize("seed", range(3))
async def test_chunks_come_in_any_order(seed: int, api: Api, storage_dir: Path) -> None:
    await index(api, "IMG_1234")
    content = pattern(400_000, seed)
    chunks = [*enumerate(split(content, 12))]
    random.Random(seed).shuffle(chunks)
    seen: list[int] = []
    for number, data in chunks:
        seen.append(number)
        answer = await send(api, number, 12, data)
        # Told as numbers, not in the order of their names: 10 behind 9.
        assert answer.json["received"] == sorted(seen)
        assert answer.json["complete"] is (len(seen) == 12)
    assert on_disk(storage_dir) == {JPG: content}


async def test_chunks_come_at_once(api: Api, storage_dir: Path, db_path: Path) -> None:
    await index(api, "IMG_1234")
    content = pattern(3_000_000)
    chunks = split(content, 40)
    answers = await asyncio.gather(*(send(api, n, 40, data) for n, data in enumerate(chunks)))
    assert [answer.status for answer in answers] == [200] * 40
    # Exactly one was the last, and no two saw the same state.
    assert sorted(len(answer.json["received"]) for answer in answers) == [*range(1, 41)]
    assert [answer.json["complete"] for answer in answers].count(True) == 1
    assert on_disk(storage_dir) == {JPG: content}
    assert [file["size"] for file in rows(db_path, "SELECT * FROM files")] == [3_000_000]


async def test_a_chunk_that_comes_again_counts_once_and_the_latest_counts(
    api: Api, storage_dir: Path
) -> None:
    await index(api, "IMG_1234")
    for data in (b"torn", b"right ", b"right "):
        answer = await send(api, 0, 3, data)
        assert (answer.json["complete"], answer.json["received"]) == (False, [0])
    await send(api, 2, 3, b"end")
    assert kept(storage_dir) == [b"end", b"right "]
    answer = await send(api, 1, 3, b"to the ")
    assert (answer.json["complete"], answer.json["size"]) == (True, 16)
    assert on_disk(storage_dir) == {JPG: b"right to the end"}


async def test_a_chunk_after_the_end_begins_anew_and_harms_nothing(
    api: Api, storage_dir: Path
) -> None:
    await index(api, "IMG_1234")
    await send(api, 0, 2, b"one ")
    await send(api, 1, 2, b"photo")
    answer = await send(api, 1, 2, b"PHOTO")
    assert (answer.json["complete"], answer.json["received"]) == (False, [1])
    assert photos(storage_dir) == {JPG: b"one photo"}
    answer = await send(api, 0, 2, b"ONE ")
    assert answer.json["complete"] is True
    assert on_disk(storage_dir) == {JPG: b"ONE PHOTO"}


async def test_a_photo_with_a_gap_is_never_complete(api: Api, storage_dir: Path) -> None:
    await index(api, "IMG_1234")
    await upload(api, "form", b"the old photo")
    for number in (0, 1, 2, 4, 5, 5, 0):
        answer = await send(api, number, 6, b"x" * 10)
        assert answer.json["complete"] is False
    assert answer.json["received"] == [0, 1, 2, 4, 5]
    assert photos(storage_dir) == {JPG: b"the old photo"}


async def test_a_photo_of_another_number_of_chunks_is_another_try(
    api: Api, storage_dir: Path
) -> None:
    await index(api, "IMG_1234")
    for number in (0, 1):
        await send(api, number, 3, b"of three ")
    # A client that cuts the photo anew gets none of the old chunks into it.
    answer = await send(api, 0, 2, b"of ")
    assert (answer.json["complete"], answer.json["received"]) == (False, [0])
    answer = await send(api, 1, 2, b"two")
    assert answer.json["complete"] is True
    await until_kept(storage_dir)
    assert on_disk(storage_dir) == {JPG: b"of two"}
    # What came of the first try is worth nothing any more.
    answer = await send(api, 2, 3, b"of three")
    assert (answer.json["complete"], answer.json["received"]) == (False, [2])
    for number in (0, 1):
        answer = await send(api, number, 3, b"of three ")
    assert answer.json["complete"] is True
    assert on_disk(storage_dir) == {JPG: b"of three of three of three"}


async def test_photos_formats_and_users_are_kept_apart(
    api: Api, backup: Server, make_user: MakeUser, login: Login, storage_dir: Path
) -> None:
    other = await make_user("other", "SecurePassword456")
    others = Api(backup.address, await login(backup, "other", "SecurePassword456"))
    await index(api, "a", "../a")
    await index(others, "a", "../a")
    expected = {
        f"photo/{user}/2025/12/10/IMG_{number:04}.{extension}": f"{user} {local_id} {extension}"
        for user in (1, other.id)
        for number, local_id in enumerate(("a", "../a"), 1)
        for extension in ("jpg", "heic")
    }
    for number in (0, 1):
        for content in expected.values():
            user, local_id, extension = content.split()
            data = content[:3] if number == 0 else content[3:]
            client = api if user == "1" else others
            answer = await send(
                client, number, 2, data.encode(), local_id=local_id, file_type=extension
            )
            assert answer.json["complete"] is (number == 1)
    assert on_disk(storage_dir) == {name: text.encode() for name, text in expected.items()}


async def test_jpg_and_jpeg_chunks_are_of_one_photo(api: Api, storage_dir: Path) -> None:
    await index(api, "IMG_1234")
    await send(api, 0, 2, b"one ", file_type="jpeg")
    answer = await send(api, 1, 2, b"photo", file_type="image/jpeg")
    assert answer.json["complete"] is True
    assert on_disk(storage_dir) == {JPG: b"one photo"}


async def test_the_old_photo_stays_until_the_new_one_is_complete(
    api: Api, storage_dir: Path, db_path: Path
) -> None:
    await index(api, "IMG_1234")
    await upload(api, "raw", b"old")
    chunks = split(pattern(100_000), 4)
    for number in (3, 2, 1):
        await send(api, number, 4, chunks[number])
        assert photos(storage_dir) == {JPG: b"old"}
    await send(api, 0, 4, chunks[0])
    assert on_disk(storage_dir) == {JPG: pattern(100_000)}
    assert [file["size"] for file in rows(db_path, "SELECT * FROM files")] == [100_000]


async def test_the_fields_may_stand_behind_the_chunk(api: Api, storage_dir: Path) -> None:
    await index(api, "IMG_1234")
    for number in ("1", " 0 "):
        content_type, body = multipart(
            ("chunk_data", f"chunk {number.strip()},".encode(), "blob"),
            ("total_chunks", "2", None),
            ("chunk_number", number, None),
            ("file_type", "jpg", None),
            ("local_id", "IMG_1234", None),
        )
        answer = await api.call("POST", "/photos/upload/chunk", content_type, body=body)
        assert answer.status == 200, answer
    assert on_disk(storage_dir) == {JPG: b"chunk 0,chunk 1,"}


async def test_numbers_that_are_none(api: Api, storage_dir: Path) -> None:
    await index(api, "IMG_1234")
    for number, total, message in (
        ("", "2", "chunk_number is required"),
        ("0", "", "total_chunks is required"),
        ("2", "2", "chunk_number is not a whole number from 0 to 1"),
        ("-1", "2", "chunk_number is not a whole number from 0 to 1"),
        ("1.0", "2", "chunk_number is not a whole number from 0 to 1"),
        ("one", "2", "chunk_number is not a whole number from 0 to 1"),
        ("１", "2", "chunk_number is not a whole number from 0 to 1"),
        ("../0", "2", "chunk_number is not a whole number from 0 to 1"),
        ("0x1", "2", "chunk_number is not a whole number from 0 to 1"),
        ("9" * 5000, "2", "chunk_number is not a whole number from 0 to 1"),
        ("0", "0", "total_chunks is not a whole number from 1 to 10000"),
        ("0", "10001", "total_chunks is not a whole number from 1 to 10000"),
        ("0", "-5", "total_chunks is not a whole number from 1 to 10000"),
        ("0", "٣", "total_chunks is not a whole number from 1 to 10000"),
    ):
        answer = await send(api, number, total, b"chunk")
        assert answer.error == (400, "bad_request", message)
        assert on_disk(storage_dir) == {}
    for field in ("chunk_number", "total_chunks", "chunk_data"):
        fields = {"local_id": "IMG_1234", "file_type": "jpg"}
        fields |= {"chunk_number": "0", "total_chunks": "1"}
        fields.pop(field, "")
        answer = await api.upload_chunk(fields, None if field == "chunk_data" else b"chunk")
        assert answer.error == (400, "bad_request", f"{field} is required")
        assert on_disk(storage_dir) == {}


async def test_the_most_chunks_that_a_photo_has(api: Api, storage_dir: Path) -> None:
    await index(api, "IMG_1234")
    answer = await send(api, 9999, 10_000, b"last")
    assert (answer.status, answer.json["received"]) == (200, [9999])
    # With zeros in front it is the same number, and no other file.
    answer = await send(api, "0009999", 10_000, b"LAST")
    assert (answer.status, answer.json["received"]) == (200, [9999])
    assert kept(storage_dir) == [b"LAST"]


async def test_a_thousand_chunks(api: Api, storage_dir: Path) -> None:
    await index(api, "IMG_1234")
    content = pattern(1_000_000)
    chunks = [*enumerate(split(content, 1000))]
    random.Random(1000).shuffle(chunks)
    turns = iter(chunks)
    complete: list[bool] = []

    async def client() -> None:
        for number, data in turns:
            answer = await send(api, number, 1000, data)
            complete.append(answer.json["complete"])

    await asyncio.gather(*(client() for _ in range(8)))
    assert (len(complete), complete.count(True)) == (1000, 1)
    assert on_disk(storage_dir) == {JPG: content}


class TestLimits:
    async def test_the_chunks_together_have_the_limit_of_a_raw_body(
        self, start_backup: StartBackup, api: Api, storage_dir: Path
    ) -> None:
        server = await start_backup(MAX_STREAM_SIZE="250000", MAX_UPLOAD_SIZE="100000")
        limited = Api(server.address, api.token)
        await index(api, "exactly", "more", "chunk")
        for local_id, sizes in (("exactly", (100_000, 100_000, 50_000)),
                                ("more", (100_000, 100_000, 50_001))):  # fmt: skip
            for number, size in enumerate(sizes):
                answer = await send(limited, number, 3, pattern(size), local_id=local_id)
                if number < 2:
                    assert answer.status == 200, answer
        assert answer.error == (413, "payload_too_large", "the photo is larger than 250000 bytes")
        assert photos(storage_dir) == {JPG: pattern(100_000) * 2 + pattern(50_000)}
        # The photo can never be stored, so none of its chunks is kept.
        assert kept(storage_dir) == []
        for number, size in enumerate((100_000, 100_000, 50_000)):
            answer = await send(limited, number, 3, pattern(size), local_id="more")
            assert answer.json["received"] == [*range(number + 1)]
        assert (answer.status, answer.json["size"]) == (200, 250_000)
        answer = await send(limited, 0, 3, pattern(100_001), local_id="chunk")
        assert answer.error[:2] == (413, "payload_too_large")
        assert sorted(on_disk(storage_dir)) == [JPG, f"{FOLDER}/IMG_0002.jpg"]

    async def test_a_chunk_that_is_too_large_leaves_other_photos_theirs(
        self, start_backup: StartBackup, api: Api, storage_dir: Path
    ) -> None:
        server = await start_backup(MAX_STREAM_SIZE="1500")
        limited = Api(server.address, api.token)
        await index(api, "IMG_1234", "other")
        await send(limited, 0, 2, b"other", local_id="other")
        await send(limited, 0, 2, b"heic", file_type="heic")
        await send(limited, 0, 3, b"of three")
        await send(limited, 0, 2, pattern(1000))
        assert (await send(limited, 1, 2, pattern(1000))).status == 413
        assert kept(storage_dir) == [b"heic", b"of three", b"other"]

    async def test_chunks_that_come_at_once_and_are_too_large_together(
        self, start_backup: StartBackup, api: Api, storage_dir: Path
    ) -> None:
        server = await start_backup(MAX_STREAM_SIZE="10000")
        limited = Api(server.address, api.token)
        await index(api, "IMG_1234")
        answers = await asyncio.gather(*(send(limited, n, 30, pattern(1000, n)) for n in range(30)))
        statuses = [answer.status for answer in answers]
        assert set(statuses) == {200, 413}
        # Whoever comes after a chunk that was refused begins anew, and never with what was removed.
        assert all(len(a.json["received"]) <= 10 for a in answers if a.status == 200)
        assert photos(storage_dir) == {}
        assert len(kept(storage_dir)) < 10
        missing = {*range(30)}
        while missing:
            answer = await send(limited, min(missing), 30, pattern(300, min(missing)))
            # What came behind the first that was refused may still be too much beside it.
            there = answer.json["received"] if answer.status == 200 else []
            missing = {*range(30)}.difference(there)
        assert answer.json["complete"] is True
        content = b"".join(pattern(300, number) for number in range(30))
        assert on_disk(storage_dir) == {JPG: content}

    async def test_chunks_that_are_too_large_and_cannot_be_removed(
        self, start_backup: StartBackup, api: Api, storage_dir: Path
    ) -> None:
        server = await start_backup(MAX_STREAM_SIZE="1500")
        limited = Api(server.address, api.token)
        await index(api, "IMG_1234")
        await send(limited, 0, 2, pattern(1000))
        keep_folders(storage_dir)
        answer = await send(limited, 1, 2, pattern(1000))
        assert answer.error[:2] == (413, "payload_too_large")
        assert kept(storage_dir) == [pattern(1000)]

    async def test_a_chunk_that_replaces_another_is_counted_once(
        self, start_backup: StartBackup, api: Api, storage_dir: Path
    ) -> None:
        server = await start_backup(MAX_STREAM_SIZE="1500")
        limited = Api(server.address, api.token)
        await index(api, "IMG_1234")
        for number, size in ((0, 1200), (0, 1200), (0, 1200), (1, 300)):
            answer = await send(limited, number, 2, pattern(size, number))
            assert answer.status == 200, answer
        assert on_disk(storage_dir) == {JPG: pattern(1200, 0) + pattern(300, 1)}


class TestOverTime:
    async def test_an_upload_goes_on_after_a_restart(
        self,
        start_backup_process: StartServerProcess,
        user: User,
        storage_dir: Path,
        db_path: Path,
    ) -> None:
        content = pattern(500_000)
        chunks = split(content, 6)
        token: str | None = None
        for life, numbers in enumerate(((4, 0), (1,), (5, 2), (3,))):
            server = await start_backup_process()
            api = Api(server.url, token)
            if token is None:
                token = api.token = (await api.login("admin", "SecurePassword123")).json["token"]
                await index(api, "IMG_1234")
            for number in numbers:
                answer = await send(api, number, 6, chunks[number])
                assert answer.status == 200, answer
            if life % 2:
                server.process.terminate()
            else:
                server.process.kill()
            await asyncio.wait_for(server.process.wait(), PATIENCE)
        # The answers tell a client that forgot where it was what is there.
        assert (answer.json["complete"], answer.json["received"]) == (True, [0, 1, 2, 3, 4, 5])
        assert on_disk(storage_dir) == {JPG: content}
        assert [file["size"] for file in rows(db_path, "SELECT * FROM files")] == [500_000]

    async def test_what_nobody_went_on_with_for_a_day_is_removed(
        self, start_backup: StartBackup, api: Api, storage_dir: Path
    ) -> None:
        await api.index(DAY, [photo(name) for name in ("old", "recent", "stored")])
        await upload(api, "form", b"stored", local_id="stored")
        for local_id in ("old", "recent"):
            for number in (0, 1):
                await send(api, number, 3, local_id.encode(), local_id=local_id)
        day = 24 * 3600
        for folder in (storage_dir / "photo" / ".chunks").glob("*/*"):
            is_old = next(folder.glob("0-*")).read_bytes() == b"old"
            # The files are as old as can be: what counts is when something was added.
            for file in folder.iterdir():
                os.utime(file, (0, 0))
            then = time.time() - (day + 60 if is_old else day - 60)
            os.utime(folder, (then, then))
        with written_log() as log:
            await start_backup()
            line = await log.wait_for("chunk_folders")
        assert "chunk_folders=1" in line
        assert kept(storage_dir) == [b"recent", b"recent"]
        assert photos(storage_dir) == {f"{FOLDER}/IMG_0003.jpg": b"stored"}
        answer = await send(api, 2, 3, b"again", local_id="old")
        assert (answer.status, answer.json["received"]) == (200, [2])

    async def test_a_chunk_keeps_the_others_alive(
        self, start_backup: StartBackup, api: Api, storage_dir: Path
    ) -> None:
        await index(api, "a", "b")
        for local_id in ("a", "b"):
            await send(api, 0, 3, b"first", local_id=local_id)
        for folder in (storage_dir / "photo" / ".chunks").glob("*/*"):
            os.utime(folder, (0, 0))
        await send(api, 0, 3, b"again", local_id="a")  # a repeat is a sign of life too
        with written_log() as log:
            await start_backup()
            await log.wait_for("chunk_folders=1")
        assert kept(storage_dir) == [b"again"]


async def test_joining_takes_no_memory(
    start_backup_process: StartServerProcess, user: User, storage_dir: Path
) -> None:
    server = await start_backup_process()
    api = Api(server.url)
    api.token = (await api.login("admin", "SecurePassword123")).json["token"]
    await index(api, "IMG_1234")
    memory = MemoryGrowth(server.process.pid)
    chunks = [random.Random(number).randbytes(40 * MIB) for number in range(6)]
    for number, chunk in enumerate(chunks):
        answer = await send(api, number, 6, chunk)
        assert answer.status == 200, answer
    assert (answer.json["complete"], answer.json["size"]) == (True, 240 * MIB)
    assert memory.peak < 24 * MIB, f"{memory.peak / MIB:.1f} MiB"
    with (storage_dir / JPG).open("rb") as stored:
        assert all(stored.read(len(chunk)) == chunk for chunk in chunks)
        assert stored.read() == b""


class TestVersions:
    """Chunks of two versions of a photo are never joined."""

    async def test_a_lost_answer_can_be_asked_for_again(self, api: Api, storage_dir: Path) -> None:
        await index(api, "IMG_1234")
        await send(api, 0, 2, b"one ")
        first = await send(api, 1, 2, b"photo")
        for number, data in ((1, b"photo"), (0, b"one ")):
            again = await send(api, number, 2, data)
            assert again.json == first.json
        assert kept(storage_dir) == []
        assert on_disk(storage_dir) == {JPG: b"one photo"}

    async def test_an_answer_can_be_asked_for_while_it_is_awaited(
        self, api: Api, storage_dir: Path
    ) -> None:
        # As a client does that has waited for long enough: the photo is being joined.
        await index(api, "IMG_1234")
        await send(api, 0, 2, b"one ")
        answers = await asyncio.gather(*(send(api, 1, 2, b"photo") for _ in range(5)))
        assert [(a.json["complete"], a.json["size"]) for a in answers] == [(True, 9)] * 5
        assert on_disk(storage_dir) == {JPG: b"one photo"}

    async def test_another_version_after_the_end(self, api: Api, storage_dir: Path) -> None:
        await index(api, "IMG_1234")
        for number, data in enumerate((b"v1-0", b"v1-1")):
            await send(api, number, 2, data)
        await send(api, 1, 2, b"v1-1")  # its answer was lost
        answer = await send(api, 0, 2, b"V2-0")
        assert (answer.json["complete"], answer.json["received"]) == (False, [0])
        assert (await send(api, 1, 2, b"V2-1")).json["complete"] is True
        assert on_disk(storage_dir) == {JPG: b"V2-0V2-1"}

    async def test_another_version_of_a_chunk_ends_what_was_begun(
        self, api: Api, storage_dir: Path
    ) -> None:
        await index(api, "IMG_1234")
        for number in (0, 1):
            await send(api, number, 3, b"v1")
        answer = await send(api, 1, 3, b"V2")
        assert (answer.json["complete"], answer.json["received"]) == (False, [1])
        assert kept(storage_dir) == [b"V2"]

    async def test_an_upload_of_its_own_name_takes_none_of_another(
        self, api: Api, storage_dir: Path
    ) -> None:
        await index(api, "IMG_1234")
        await send(api, 1, 2, b"v1-1")  # abandoned
        fields = {"local_id": "IMG_1234", "file_type": "jpg", "total_chunks": "2"}
        for number, data in enumerate((b"V2-0", b"V2-1")):
            answer = await api.upload_chunk(
                fields | {"chunk_number": str(number), "upload_id": "second"}, data
            )
            assert answer.json["complete"] is (number == 1)
        await until_kept(storage_dir)
        assert on_disk(storage_dir) == {JPG: b"V2-0V2-1"}

    async def test_a_version_that_shares_a_chunk_with_the_last(
        self, api: Api, storage_dir: Path
    ) -> None:
        await index(api, "IMG_1234")
        for number, data in enumerate((b"same", b"v1-1")):
            await send(api, number, 2, data)
        # Without an `upload_id` this looks like an answer that was lost. What the next one says
        # is missing then completes the new version.
        await send(api, 0, 2, b"same")
        answer = await send(api, 1, 2, b"V2-1")
        assert (answer.json["complete"], answer.json["received"]) == (False, [1])
        answer = await send(api, 0, 2, b"same")
        assert answer.json["complete"] is True
        assert on_disk(storage_dir) == {JPG: b"sameV2-1"}


class TestSentAgain:
    """Chunks that were joined once, of a photo that is no longer there as they made it."""

    async def stored(self, api: Api) -> None:
        await index(api, "IMG_1234")
        await self.again(api)

    async def again(self, api: Api) -> None:
        for number, data in enumerate((b"one ", b"photo")):
            answer = await send(api, number, 2, data)
            assert answer.status == 200, answer
        assert answer.json["complete"] is True

    async def test_a_photo_that_was_lost(self, api: Api, storage_dir: Path) -> None:
        await self.stored(api)
        (storage_dir / JPG).unlink()
        await self.again(api)
        assert on_disk(storage_dir) == {JPG: b"one photo"}

    async def test_a_photo_that_was_damaged(self, api: Api, storage_dir: Path) -> None:
        await self.stored(api)
        (storage_dir / JPG).write_bytes(b"one ph\0\0\0")
        await self.again(api)
        assert on_disk(storage_dir) == {JPG: b"one photo"}

    @pytest.mark.parametrize("route", ["form", "raw"])
    async def test_a_photo_that_was_replaced(
        self, route: Route, api: Api, storage_dir: Path
    ) -> None:
        await self.stored(api)
        await upload(api, route, b"another")
        await self.again(api)
        assert on_disk(storage_dir) == {JPG: b"one photo"}

    async def test_a_photo_that_counts_as_not_uploaded(
        self, api: Api, storage_dir: Path, db_path: Path
    ) -> None:
        # As after a repair, or with a database from a backup.
        await self.stored(api)
        rows(db_path, "UPDATE photos_user_1 SET uploaded_extensions = '[]', file_count = 0")
        await self.again(api)
        assert on_disk(storage_dir) == {JPG: b"one photo"}
        (row,) = rows(db_path, "SELECT * FROM photos_user_1")
        assert (row["file_count"], row["uploaded_extensions"]) == (1, '["jpg"]')


class TestOutdated:
    """Chunks that were there before a photo was stored whole are never joined over it."""

    @pytest.mark.parametrize("before", [None, b"an older photo"])
    @pytest.mark.parametrize("route", ["form", "raw", "resumable", "other chunks"])
    async def test_they_go_when_the_photo_is_stored(
        self, route: str, before: bytes | None, api: Api, storage_dir: Path
    ) -> None:
        await index(api, "IMG_1234")
        if before is not None:
            await upload(api, "raw", before)
        await send(api, 0, 2, b"old0")
        await send(api, 4, 5, b"older")
        assert (await send_whole(api, route, b"new whole")).status == 200
        await until_kept(storage_dir)
        answer = await send(api, 1, 2, b"old1")
        assert (answer.json["complete"], answer.json["received"]) == (False, [1])
        assert photos(storage_dir) == {JPG: b"new whole"}
        # The old photo is stored by whoever sends all of it.
        assert (await send(api, 0, 2, b"old0")).json["complete"] is True
        assert on_disk(storage_dir) == {JPG: b"old0old1"}

    @pytest.mark.parametrize("before", [None, b"an older photo"])
    async def test_they_are_known_by_a_server_that_has_not_seen_them(
        self, before: bytes | None, start_backup: StartBackup, api: Api, storage_dir: Path
    ) -> None:
        # As after a crash, or a restart.
        await index(api, "IMG_1234")
        if before is not None:
            await upload(api, "raw", before)
        await send(api, 0, 2, b"old0")
        other = Api((await start_backup()).address, api.token)
        assert (await upload(other, "raw", b"new whole")).status == 200
        assert kept(storage_dir) == [b"old0"]
        for client, number in ((other, 1), (api, 1), (other, 1)):
            answer = await send(client, number, 2, b"old1")
            assert (answer.json["complete"], answer.json["received"]) == (False, [1])
        assert photos(storage_dir) == {JPG: b"new whole"}

    async def test_they_are_known_when_they_cannot_be_removed(
        self, api: Api, storage_dir: Path
    ) -> None:
        await index(api, "IMG_1234")
        await send(api, 0, 2, b"old0")
        keep_folders(storage_dir)
        with written_log() as log:
            assert (await upload(api, "raw", b"new whole")).status == 200
            await log.wait_for("cannot write")
        assert (await send(api, 1, 2, b"old1")).status == 500
        for file in (storage_dir / CHUNKS).rglob("*.removed"):
            file.unlink()
        assert (await send(api, 1, 2, b"old1")).json["received"] == [1]
        assert photos(storage_dir) == {JPG: b"new whole"}

    async def test_those_of_other_files_stay(self, api: Api, storage_dir: Path) -> None:
        await index(api, "IMG_1234", "other")
        await send(api, 0, 2, b"one ", file_type="heic")
        await send(api, 0, 2, b"one ", local_id="other")
        await send(api, 0, 2, b"old0")
        assert (await upload(api, "raw", b"new whole")).status == 200
        await until_kept(storage_dir, b"one ", b"one ")
        assert (await send(api, 1, 2, b"photo", file_type="heic")).json["complete"] is True
        assert (await send(api, 1, 2, b"photo", local_id="other")).json["complete"] is True
        expected = dict.fromkeys(("IMG_0001.heic", "IMG_0002.jpg"), b"one photo")
        expected["IMG_0001.jpg"] = b"new whole"
        assert on_disk(storage_dir) == {f"{FOLDER}/{name}": expected[name] for name in expected}

    async def test_those_that_came_after_it_stay(self, api: Api, storage_dir: Path) -> None:
        await index(api, "IMG_1234")
        await upload(api, "form", b"whole")
        await send(api, 0, 2, b"new ")
        os.utime(storage_dir / JPG, (0, 0))  # as `storage fix-times` does
        assert (await send(api, 1, 2, b"photo")).json["complete"] is True
        assert on_disk(storage_dir) == {JPG: b"new photo"}

    @pytest.mark.parametrize("before", [None, b"an older photo"])
    async def test_an_upload_that_fails_leaves_them(
        self, before: bytes | None, api: Api, storage_dir: Path, db_path: Path
    ) -> None:
        await index(api, "IMG_1234")
        if before is not None:
            await upload(api, "raw", before)
        await send(api, 0, 2, b"one ")
        mismatch = ("x-immich-checksum", "0" * 40)
        assert (await upload(api, "raw", b"whole", mismatch)).status == 422
        rows(
            db_path,
            "CREATE TRIGGER refuse BEFORE UPDATE ON photos_user_1"
            " BEGIN SELECT raise(ABORT, 'not this one'); END",
        )
        assert (await upload(api, "raw", b"whole")).status == 500
        rows(db_path, "DROP TRIGGER refuse")
        assert (await send(api, 1, 2, b"photo")).json["complete"] is True
        assert photos(storage_dir)[JPG] == b"one photo"

    async def test_a_whole_photo_beside_chunks_of_it(self, api: Api, storage_dir: Path) -> None:
        local_ids = [f"photo {number}" for number in range(10)]
        await index(api, *local_ids)
        await asyncio.gather(
            *(send(api, 0, 3, b"one ", local_id=local_id) for local_id in local_ids)
        )
        answers = await asyncio.gather(
            *(
                sending
                for local_id in local_ids
                for sending in (
                    send(api, 1, 3, b"photo", local_id=local_id),
                    upload(api, "raw", b"whole", local_id=local_id),
                    send(api, 2, 3, b"!", local_id=local_id),
                )
            )
        )
        assert {answer.status for answer in answers} == {200}
        stored = {(storage_dir / f"{FOLDER}/IMG_{n:04}.jpg").read_bytes() for n in range(1, 11)}
        assert stored <= {b"whole", b"one photo!"}

    @pytest.mark.parametrize("place", [b"one photo", b"new whole", b"old photo"])
    async def test_chunks_that_a_kill_left_after_they_were_joined(
        self, place: bytes, start_backup: StartBackup, api: Api, storage_dir: Path
    ) -> None:
        await index(api, "IMG_1234")
        await upload(api, "raw", b"the photo before")
        await send(api, 0, 2, b"one ")
        (folder,) = (storage_dir / CHUNKS).glob("*/*")
        first = next(folder.iterdir()).name
        photo_before = first.split("-", 2)[2]
        await send(api, 1, 2, b"photo")
        folder.with_suffix(".done").unlink()
        if place != b"one photo":
            await upload(api, "raw", place)
        folder.mkdir()
        (folder / first).write_bytes(b"one ")
        last = f"1-{hashlib.sha256(b'photo').hexdigest()}-{photo_before}"
        (folder / last).write_bytes(b"photo")
        # The client has no answer, and asks for it.
        answer = await send(api, 1, 2, b"photo")
        assert answer.json["complete"] is (place == b"one photo")
        assert photos(storage_dir) == {JPG: place}
