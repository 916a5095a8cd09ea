"""Disk and database compared both ways, and what a repair does about it."""

import json
import os
import shutil
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from backup_wing import Api, photo, rows
from immich_bridge.backup.accounts import Accounts
from immich_bridge.backup.database import Database
from immich_bridge.backup.integrity import (
    FILE_MISSING,
    LEFT_OVER,
    UNKNOWN_FILE,
    WRONG_SIZE,
    Finding,
    Integrity,
)
from immich_bridge.backup.storage import Storage

DAY = "2025-12-10"
TAKEN = datetime(2025, 12, 10, 10, tzinfo=UTC).timestamp()
SENT_AGAIN = "marked as not uploaded: its client will send it again"


class Reports:
    """The progress that was reported: name, done, total."""

    def __init__(self) -> None:
        self.all: list[tuple[str, int, int | None]] = []

    def __call__(self, name: str, done: int, total: int | None) -> None:
        self.all.append((name, done, total))


@pytest.fixture
def day(storage_dir: Path) -> Path:
    """The folder of user 1's photos of `DAY`."""
    return storage_dir / "photo" / "1" / "2025" / "12" / "10"


@pytest.fixture
def integrity(database: Database, storage_dir: Path) -> Integrity:
    """What compares, beside a running server."""
    return Integrity(database, Storage(storage_dir))


@pytest.fixture
async def stored(api: Api) -> Api:
    """Three photos: `a` as jpg and heic, `b` as jpg, `c` indexed alone."""
    await api.index(DAY, [photo("a"), photo("b"), photo("c")])
    for local_id, file_type in ("a", "jpg"), ("a", "heic"), ("b", "jpg"):
        content = f"{local_id} as {file_type}".encode()
        answer = await api.upload_stream(content, local_id=local_id, file_type=file_type)
        assert answer.status == 200
    return api


def snapshot(db_path: Path, folder: Path) -> tuple[Any, ...]:
    """All rows, and all files with their bytes and times."""
    tables = rows(db_path, "SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return (
        [rows(db_path, f"SELECT * FROM {table['name']}") for table in tables],
        [(path, path.read_bytes(), path.stat().st_mtime_ns) for path in files],
    )


async def check(integrity: Integrity, *, repair: bool = False) -> list[Finding]:
    return await integrity.check(repair=repair, progress=Reports())


def uploaded(db_path: Path, local_id: str) -> tuple[list[str], int]:
    """Extensions and their number, as the photo's row has them."""
    [row] = rows(db_path, "SELECT * FROM photos_user_1 WHERE local_id = ?", local_id)
    return json.loads(row["uploaded_extensions"]), row["file_count"]


async def told(api: Api, local_id: str) -> list[str]:
    """Extensions as a client is told them."""
    answer = await api.index(DAY, [photo(local_id)])
    return list(answer.json["assigned_files"][0]["uploaded_extensions"])


def put(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def contents_of(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in folder.rglob("*") if path.is_file()]


def aged(path: Path, seconds: float) -> Path:
    moment = time.time() - seconds
    os.utime(path, (moment, moment))
    return path


async def test_what_is_in_order_is_left_alone(
    stored: Api, integrity: Integrity, db_path: Path, storage_dir: Path
) -> None:
    before = snapshot(db_path, storage_dir)
    reports = Reports()
    assert await integrity.check(repair=True, progress=reports) == []
    assert snapshot(db_path, storage_dir) == before
    rows_seen = [("rows", n, 3) for n in (1, 2, 3)]
    assert reports.all == rows_seen + [("files", n, None) for n in (1, 2, 3)]


async def test_nothing_is_in_order_too(database: Database, storage_dir: Path) -> None:
    assert await check(Integrity(database, Storage(storage_dir)), repair=True) == []


async def test_a_missing_file_is_sent_again(
    stored: Api, integrity: Integrity, db_path: Path, storage_dir: Path, day: Path
) -> None:
    path = day / "IMG_0001.heic"
    path.unlink()
    expected = [Finding(FILE_MISSING, path, "photo 'a' of user 1", SENT_AGAIN)]
    before = snapshot(db_path, storage_dir)
    assert await check(integrity) == expected
    assert snapshot(db_path, storage_dir) == before
    assert await check(integrity, repair=True) == expected
    assert uploaded(db_path, "a") == (["jpg"], 1)
    assert await told(stored, "a") == ["jpg"]
    assert await check(integrity) == []
    answer = await stored.upload_stream(b"once more", local_id="a", file_type="heic")
    assert answer.status == 200
    assert uploaded(db_path, "a") == (["jpg", "heic"], 2)
    assert await check(integrity) == []


async def test_a_file_that_came_back_is_taken_for_what_it_was(
    stored: Api, integrity: Integrity, db_path: Path, day: Path, tmp_path: Path
) -> None:
    path = day / "IMG_0001.heic"
    elsewhere = path.rename(tmp_path / "elsewhere")
    await check(integrity, repair=True)
    elsewhere.rename(path)
    remedy = "entered into the photo's row"
    expected = [Finding(UNKNOWN_FILE, path, "photo 'a' of user 1", remedy)]
    assert await check(integrity) == expected
    assert await check(integrity, repair=True) == expected
    assert uploaded(db_path, "a") == (["jpg", "heic"], 2)
    assert await check(integrity) == []


@pytest.mark.parametrize("content", [b"", b"a as jp", b"a as jpg and more"])
async def test_a_file_of_another_size_stays_until_it_is_sent_again(
    stored: Api, integrity: Integrity, db_path: Path, day: Path, content: bytes
) -> None:
    path = day / "IMG_0001.jpg"
    path.write_bytes(content)
    detail = f"photo 'a' of user 1: {len(content)} bytes, stored were 8"
    expected = [Finding(WRONG_SIZE, path, detail, SENT_AGAIN)]
    assert await check(integrity) == expected
    assert await check(integrity, repair=True) == expected
    assert path.read_bytes() == content
    assert await told(stored, "a") == ["heic"]
    # Until then it is there without a row, and nobody but its client can say what is right.
    detail = "photo 'a' of user 1, not what was stored: its client will send it again"
    waiting = [Finding(UNKNOWN_FILE, path, detail, None)]
    assert await check(integrity, repair=True) == waiting
    assert path.read_bytes() == content
    assert await told(stored, "a") == ["heic"]
    answer = await stored.upload_stream(b"a once more", local_id="a", file_type="jpg")
    assert answer.status == 200
    assert await check(integrity) == []


async def test_a_file_of_an_indexed_photo_is_entered(
    stored: Api, integrity: Integrity, db_path: Path, storage_dir: Path, day: Path
) -> None:
    # As a crash between the rename and the row leaves it, or an operator's own copy.
    path = day / "IMG_0003.jpg"
    path.write_bytes(b"c as jpg")
    remedy = "entered into the photo's row"
    expected = [Finding(UNKNOWN_FILE, path, "photo 'c' of user 1", remedy)]
    before = snapshot(db_path, storage_dir)
    assert await check(integrity) == expected
    assert snapshot(db_path, storage_dir) == before
    assert await check(integrity, repair=True) == expected
    assert uploaded(db_path, "c") == (["jpg"], 1)
    [file] = rows(db_path, "SELECT * FROM files WHERE local_id = 'c'")
    assert (file["user_id"], file["extension"], file["size"]) == (1, "jpg", 8)
    assert await told(stored, "c") == ["jpg"]
    assert await check(integrity) == []
    # Its size is known from now on.
    path.write_bytes(b"c as jp")
    assert [finding.kind for finding in await check(integrity)] == [WRONG_SIZE]


UNKNOWN = [
    "1/2025/12/10/IMG_0004.jpg",
    "1/2025/12/10/IMG_0001",
    "1/2025/12/10/IMG_0001.JPG",
    "1/2025/12/10/IMG_0001.j p",
    "1/2025/12/10/IMG_0001.tar.gz",
    "1/2025/12/10/IMG_1.jpg",
    "1/2025/12/10/.DS_Store",
    "1/2025/12/10/deeper/IMG_0001.jpg",
    "1/2025/12/10/na\u00efve \u5c0f\u660e.jpg",
    os.fsdecode(b"1/2025/12/10/latin-\xe9.jpg"),
    "1/2025/12/10/two\nlines.jpg",
    "1/2025/12/11/IMG_0001.jpg",
    "1/2025/12/IMG_0001.jpg",
    "2/2025/12/10/IMG_0001.jpg",
    "notes.txt",
]


async def test_a_file_of_no_photo_is_left_to_people(
    stored: Api,
    integrity: Integrity,
    db_path: Path,
    storage_dir: Path,
    subtests: pytest.Subtests,
) -> None:
    folder = storage_dir / "photo"
    for name in UNKNOWN:
        with subtests.test(name=ascii(name)):
            path = put(folder / name, b"somebody's")
            before = snapshot(db_path, storage_dir)
            detail = "no photo of that name was ever indexed"
            assert await check(integrity, repair=True) == [
                Finding(UNKNOWN_FILE, path, detail, None)
            ]
            assert snapshot(db_path, storage_dir) == before
            path.unlink()


async def test_what_is_no_photo_yet_is_not_looked_at(
    stored: Api, integrity: Integrity, storage_dir: Path
) -> None:
    fields = {"local_id": "c", "file_type": "jpg", "chunk_number": "0", "total_chunks": "2"}
    assert (await stored.upload_chunk(fields, b"half of c")).status == 200
    put(storage_dir / "README", b"somebody's")
    assert b"half of c" in contents_of(storage_dir)
    assert await check(integrity, repair=True) == []
    assert b"half of c" in contents_of(storage_dir)


async def test_a_temporary_file_is_removed_once_it_is_old(
    stored: Api, integrity: Integrity, db_path: Path, storage_dir: Path, day: Path
) -> None:
    old = day / ".upload-0123456789abcdef.part"
    older = storage_dir / "photo" / ".upload-fedcba9876543210.part"
    young = day / ".upload-00000000000000ff.part"
    for path, seconds in (old, 3601), (older, 86400), (young, 3500):
        path.write_bytes(b"half a photo")
        aged(path, seconds)
    wait = "less than an hour old, an upload may be under way"
    expected = [
        Finding(LEFT_OVER, older, "of an interrupted upload", "removed"),
        Finding(LEFT_OVER, young, wait, None),
        Finding(LEFT_OVER, old, "of an interrupted upload", "removed"),
    ]
    before = snapshot(db_path, storage_dir)
    assert await check(integrity) == expected
    assert snapshot(db_path, storage_dir) == before
    assert await check(integrity, repair=True) == expected
    assert [old.exists(), older.exists(), young.exists()] == [False, False, True]
    assert await check(integrity) == [expected[1]]


async def test_everything_at_once_is_found_in_one_go(
    stored: Api, integrity: Integrity, db_path: Path, day: Path
) -> None:
    (day / "IMG_0001.jpg").unlink()
    (day / "IMG_0001.heic").write_bytes(b"damaged")
    (day / "IMG_0003.jpg").write_bytes(b"c as jpg")
    (day / "IMG_0009.jpg").write_bytes(b"nobody's")
    left_over = day / ".upload-0123456789abcdef.part"
    left_over.write_bytes(b"half")
    aged(left_over, 7200)
    found = await check(integrity, repair=True)
    assert [(finding.kind, finding.path.name) for finding in found] == [
        (FILE_MISSING, "IMG_0001.jpg"),
        (WRONG_SIZE, "IMG_0001.heic"),
        (LEFT_OVER, ".upload-0123456789abcdef.part"),
        (UNKNOWN_FILE, "IMG_0003.jpg"),
        (UNKNOWN_FILE, "IMG_0009.jpg"),
    ]
    assert [uploaded(db_path, local_id)[0] for local_id in "abc"] == [[], ["jpg"], ["jpg"]]
    kept = ["IMG_0001.heic", "IMG_0002.jpg", "IMG_0003.jpg", "IMG_0009.jpg"]
    assert names_in(day) == kept
    assert [finding.remedy for finding in await check(integrity)] == [None, None]


class Meanwhile(Reports):
    """Does something while a check is at its nth file or row."""

    def __init__(self, name: str, done: int, *paths: Path) -> None:
        super().__init__()
        self._at = (name, done)
        self._paths = paths

    def __call__(self, name: str, done: int, total: int | None) -> None:
        super().__call__(name, done, total)
        if (name, done) == self._at:
            for path in self._paths:
                path.unlink()


async def test_an_upload_that_ends_while_it_is_looked_at_is_no_finding(
    stored: Api, integrity: Integrity, day: Path
) -> None:
    # Read with the rest of its folder, and renamed to its place before it was looked at.
    temporary = day / ".upload-0123456789abcdef.part"
    temporary.write_bytes(b"all of it")
    indexed = day / "IMG_0003.jpg"
    indexed.write_bytes(b"c as jpg")
    progress = Meanwhile("files", 1, temporary, indexed)
    assert await integrity.check(repair=True, progress=progress) == []
    assert [name for name, *_ in progress.all].count("files") == 5


async def test_a_photo_that_is_replaced_meanwhile_is_no_finding(
    stored: Api, integrity: Integrity, db_path: Path, day: Path
) -> None:
    # The rows are read first; by the time it is b's turn, both are of another size.
    def replace(name: str, done: int, total: int | None) -> None:
        if (name, done) == ("rows", 1):
            (day / "IMG_0002.jpg").write_bytes(b"another size")
            rows(db_path, "UPDATE files SET size = 12 WHERE local_id = 'b'")

    assert await integrity.check(repair=True, progress=replace) == []
    assert uploaded(db_path, "b") == (["jpg"], 1)


async def test_a_photo_that_is_stored_meanwhile_is_no_finding(
    stored: Api, integrity: Integrity, db_path: Path, day: Path
) -> None:
    def store(name: str, done: int, total: int | None) -> None:
        if (name, done) == ("files", 1):
            rows(
                db_path,
                "UPDATE photos_user_1 SET uploaded_extensions = '[\"jpg\"]', file_count = 1"
                " WHERE local_id = 'c'",
            )

    (day / "IMG_0003.jpg").write_bytes(b"c as jpg")
    assert await integrity.check(repair=True, progress=store) == []


async def test_the_photos_of_a_deleted_user_are_looked_after_too(
    stored: Api, integrity: Integrity, accounts: Accounts, day: Path
) -> None:
    await accounts.delete("admin")
    assert await check(integrity) == []
    (day / "IMG_0001.jpg").unlink()
    assert [finding.kind for finding in await check(integrity, repair=True)] == [FILE_MISSING]
    assert await check(integrity) == []


async def test_a_table_that_only_looks_like_one_of_photos_is_passed_over(
    stored: Api, integrity: Integrity, db_path: Path
) -> None:
    rows(db_path, "CREATE TABLE photos_user_1_copy AS SELECT * FROM photos_user_1")
    rows(db_path, "CREATE TABLE photos_user_0x2 (a)")
    assert await check(integrity, repair=True) == []


async def test_a_storage_that_is_not_there_is_no_reason_to_have_all_photos_sent_again(
    stored: Api, integrity: Integrity, db_path: Path, storage_dir: Path, tmp_path: Path
) -> None:
    before = snapshot(db_path, storage_dir)
    # As when its disk is not mounted: the mount point is there, and empty.
    (storage_dir / "photo").rename(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match="photo"):
        await check(integrity, repair=True)
    (tmp_path / "elsewhere").rename(storage_dir / "photo")
    assert snapshot(db_path, storage_dir) == before
    assert await check(integrity) == []


async def test_a_file_where_a_folder_should_be_is_told_as_what_is_missing(
    stored: Api, integrity: Integrity, day: Path
) -> None:
    shutil.rmtree(day)
    put(day, b"no folder")
    found = await check(integrity)
    assert [finding.kind for finding in found] == [FILE_MISSING] * 3 + [UNKNOWN_FILE]
    assert found[-1].path == day


async def fix(
    integrity: Integrity, user_id: int | None = None, *, dry_run: bool = False
) -> Sequence[Path]:
    return await integrity.fix_times(user_id, dry_run=dry_run, progress=Reports())


async def test_times_become_those_of_creation(
    stored: Api, integrity: Integrity, db_path: Path, storage_dir: Path, day: Path
) -> None:
    assert await fix(integrity) == [], "they were set when the files were stored"
    changed = [day / "IMG_0001.heic", day / "IMG_0002.jpg"]
    for path in changed:
        aged(path, 0)
    nobodys = day / "IMG_0009.jpg"
    nobodys.write_bytes(b"nobody's")
    aged(nobodys, 10_000)
    before = snapshot(db_path, storage_dir)
    assert await fix(integrity, dry_run=True) == changed
    assert snapshot(db_path, storage_dir) == before
    reports = Reports()
    assert await integrity.fix_times(None, dry_run=False, progress=reports) == changed
    assert reports.all == [("files", n, 3) for n in (1, 2, 3)]
    for name in "IMG_0001.jpg", "IMG_0001.heic", "IMG_0002.jpg":
        assert (day / name).stat().st_mtime == TAKEN
    assert nobodys.stat().st_mtime != TAKEN
    assert await fix(integrity) == []


async def test_times_of_one_user(
    stored: Api, integrity: Integrity, accounts: Accounts, storage_dir: Path, day: Path
) -> None:
    bert = await accounts.create("bert", "another password")
    answer = await Api(stored.url).login("bert", "another password")
    berts = Api(stored.url, answer.json["token"])
    await berts.index(DAY, [photo("a")])
    await berts.upload_stream(b"bert's", local_id="a", file_type="jpg")
    theirs = storage_dir / "photo" / str(bert.id) / "2025" / "12" / "10" / "IMG_0001.jpg"
    for path in theirs, day / "IMG_0001.jpg":
        aged(path, 0)
    assert await fix(integrity, bert.id, dry_run=True) == [theirs]
    assert await fix(integrity, bert.id) == [theirs]
    assert await fix(integrity) == [day / "IMG_0001.jpg"]


async def test_times_leave_what_is_missing_alone(
    stored: Api, integrity: Integrity, day: Path
) -> None:
    (day / "IMG_0001.jpg").unlink()
    aged(day / "IMG_0001.heic", 0)
    assert await fix(integrity) == [day / "IMG_0001.heic"]
    assert not (day / "IMG_0001.jpg").exists()


@pytest.mark.parametrize("moment", ["0001-01-01T00:00:00Z", "9999-12-31T23:59:59.999999Z"])
async def test_a_time_that_no_file_can_have_stops_nothing(
    api: Api, integrity: Integrity, day: Path, moment: str
) -> None:
    await api.index(DAY, [photo("a", creation_time=moment), photo("b")])
    for local_id in "ab":
        await api.upload_stream(b"x", local_id=local_id, file_type="jpg")
    aged(day / "IMG_0002.jpg", 0)
    assert (day / "IMG_0002.jpg") in await fix(integrity)
    assert (day / "IMG_0002.jpg").stat().st_mtime == TAKEN
