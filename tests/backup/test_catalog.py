"""`POST /photos/index`: numbers without gap or repeat, names for good, a batch whole or not."""

import asyncio
import json
import os
import random
import sqlite3
import sys
from collections.abc import Awaitable, Callable
from contextlib import closing
from datetime import date
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backup_uploads import DAY, FOLDER, StartServerProcess, index, numbers, on_disk
from backup_wing import Answer, Api, photo, rows
from immich_bridge.backup.accounts import User
from immich_bridge.backup.catalog import Catalog, NewPhoto
from immich_bridge.backup.database import Database
from immich_bridge.errors import InternalError
from immich_bridge.serve import Server
from wire import PATIENCE, connect, request

MakeUser = Callable[[str, str], Awaitable[User]]
Login = Callable[[Server, str, str], Awaitable[str]]

ALL = "SELECT * FROM photos_user_1 ORDER BY number"
INVALID = "Invalid request format"


def count(db_path: Path) -> int:
    return int(rows(db_path, "SELECT count(*) AS n FROM photos_user_1")[0]["n"])


async def test_the_example_of_the_api_document(api: Api, db_path: Path) -> None:
    second = photo("IMG_1235", creation_time="2025-12-10T10:05:00Z")
    answer = await api.index(DAY, [photo("IMG_1234"), second])
    assert (answer.status, answer.json) == (
        200,
        {
            "status": "success",
            "date": "2025-12-10",
            "assigned_files": [
                {"local_id": "IMG_1234", "filename": "IMG_0001.jpg", "uploaded_extensions": []},
                {"local_id": "IMG_1235", "filename": "IMG_0002.jpg", "uploaded_extensions": []},
            ],
        },
    )
    first_row, second_row = rows(db_path, ALL)
    assert first_row["created_at"] == first_row["updated_at"]
    assert {name: first_row[name] for name in first_row if not name.endswith("ted_at")} == {
        "local_id": "IMG_1234",
        "creation_time": "2025-12-10T10:00:00Z",
        "file_path": "storage/photo/1/2025/12/10/",
        "file_name": "IMG_0001",
        "file_type": "image/jpeg",
        "file_count": 0,
        "uploaded_extensions": "[]",
        "number": 1,
        "file_extension": "jpg",
    }
    assert first_row["deleted_at"] is None
    assert second_row["creation_time"] == "2025-12-10T10:05:00Z"


async def test_an_index_makes_no_file(api: Api, storage_dir: Path) -> None:
    await index(api, "a")
    assert on_disk(storage_dir) == {}


async def test_a_later_batch_goes_on_counting(api: Api) -> None:
    assert await index(api, "a", "b") == ["IMG_0001.jpg", "IMG_0002.jpg"]
    assert await index(api, "c") == ["IMG_0003.jpg"]


async def test_known_photos_keep_their_names_among_new_ones(api: Api, db_path: Path) -> None:
    await index(api, "a", "b")
    before = rows(db_path, ALL)
    assert await index(api, "c", "b", "d", "a") == [
        "IMG_0003.jpg",
        "IMG_0002.jpg",
        "IMG_0004.jpg",
        "IMG_0001.jpg",
    ]
    assert rows(db_path, ALL)[:2] == before


async def test_a_photo_twice_in_a_batch_is_one_photo(api: Api, db_path: Path) -> None:
    answer = await api.index(
        DAY, [photo("a"), photo("b"), photo("a", file_extension="png"), photo("c")]
    )
    assigned = answer.json["assigned_files"]
    assert [(file["local_id"], file["filename"]) for file in assigned] == [
        ("a", "IMG_0001.jpg"),
        ("b", "IMG_0002.jpg"),
        ("a", "IMG_0001.jpg"),
        ("c", "IMG_0003.jpg"),
    ]
    assert count(db_path) == 3


async def test_a_photo_keeps_its_name_when_it_comes_again_as_another(
    api: Api, db_path: Path
) -> None:
    await index(api, "a", "b")
    before = rows(db_path, ALL)
    again = photo(
        "b",
        file_extension="heic",
        file_type="image/heic",
        creation_time="2020-01-01T00:00:00Z",
    )
    answer = await api.index("2024-01-31", [again, photo("new")])
    assert [file["filename"] for file in answer.json["assigned_files"]] == [
        "IMG_0002.jpg",
        "IMG_0001.jpg",  # the first of its own day
    ]
    assert rows(db_path, "SELECT * FROM photos_user_1 WHERE local_id <> 'new'") == before
    # What the photo brought along counts for nothing on the other day either.
    assert await index(api, "c") == ["IMG_0003.jpg"]


async def test_what_was_uploaded_is_told(api: Api) -> None:
    await index(api, "a", "b")
    for file_type in ("image/heic", "image/jpeg"):
        answer = await api.upload_stream(b"x", local_id="a", file_type=file_type)
        assert answer.status == 200, answer
    told = (await api.index(DAY, [photo("a"), photo("b")])).json["assigned_files"]
    assert [file["uploaded_extensions"] for file in told] == [["heic", "jpg"], []]


async def test_each_day_counts_from_one(api: Api) -> None:
    for day in ("2025-12-09", "2025-12-10", "2024-02-29"):
        answer = await api.index(day, [photo(f"{day}/{n}") for n in range(2)])
        names = [file["filename"] for file in answer.json["assigned_files"]]
        assert names == ["IMG_0001.jpg", "IMG_0002.jpg"]


async def test_each_user_has_photos_of_their_own(
    api: Api, backup: Server, make_user: MakeUser, login: Login, db_path: Path
) -> None:
    await index(api, "a", "b")
    other = await make_user("other", "SecurePassword456")
    others = Api(backup.address, await login(backup, "other", "SecurePassword456"))
    assert await index(others, "b", "x") == ["IMG_0001.jpg", "IMG_0002.jpg"]
    assert await index(api, "a", "c") == ["IMG_0001.jpg", "IMG_0003.jpg"]
    theirs = rows(db_path, f"SELECT * FROM photos_user_{other.id} ORDER BY number")
    assert [row["local_id"] for row in theirs] == ["b", "x"]
    assert {row["file_path"] for row in theirs} == {f"storage/photo/{other.id}/2025/12/10/"}


async def test_a_photo_of_another_user_is_not_found(
    api: Api, backup: Server, make_user: MakeUser, login: Login, storage_dir: Path
) -> None:
    await index(api, "mine")
    await make_user("other", "SecurePassword456")
    others = Api(backup.address, await login(backup, "other", "SecurePassword456"))
    answer = await others.upload_stream(b"x", local_id="mine", file_type="jpg")
    assert answer.error == (500, "internal_error", "photo not found")
    assert on_disk(storage_dir) == {}


async def test_a_number_is_not_given_again_while_a_later_one_is_in_use(
    api: Api, db_path: Path
) -> None:
    # Nothing here removes rows, but an operator may; the name of a lost photo is no other's.
    await index(api, "a", "b", "c")
    rows(db_path, "DELETE FROM photos_user_1 WHERE local_id = 'a'")
    assert await index(api, "d", "a") == ["IMG_0004.jpg", "IMG_0005.jpg"]


async def test_past_9999_there_are_five_digits(api: Api) -> None:
    names = await index(api, *(f"p{n}" for n in range(9998)))
    assert names[-1] == "IMG_9998.jpg"
    assert await index(api, "a", "b", "c") == ["IMG_9999.jpg", "IMG_10000.jpg", "IMG_10001.jpg"]
    # By name IMG_10000 stands before IMG_9999; the count goes by number.
    assert await index(api, "d") == ["IMG_10002.jpg"]


async def test_twenty_thousand_photos_in_one_call(api: Api, db_path: Path) -> None:
    names = await index(api, *(f"p{n}" for n in range(20_000)))
    assert numbers(names) == list(range(1, 20_001))
    assert [row["local_id"] for row in rows(db_path, ALL)] == [f"p{n}" for n in range(20_000)]
    # More ids than SQLite binds to a query are looked up as well as inserted.
    assert await index(api, *(f"p{n}" for n in range(20_000))) == names


@pytest.mark.parametrize("character", ["日", "𐌰"], ids=["six bytes", "twelve bytes"])
async def test_twenty_thousand_photos_with_the_longest_ids(
    character: str, api: Api, db_path: Path
) -> None:
    local_ids = [f"{n:05}".ljust(512, character) for n in range(20_000)]
    body = json.dumps({"date": DAY, "photos": [photo(local_id) for local_id in local_ids]})
    assert len(body) > 16 * 1024 * 1024
    for _ in range(2):
        answer = await api.post_json("/photos/index", body.encode())
        assert answer.status == 200, answer
        assigned = answer.json["assigned_files"]
        assert [file["local_id"] for file in assigned] == local_ids
        assert numbers(file["filename"] for file in assigned) == [*range(1, 20_001)]
    assert count(db_path) == 20_000


async def test_a_body_that_is_too_large(api: Api, db_path: Path) -> None:
    limit = 20_000 * (512 * 12 + 1024)
    head = request(
        "POST",
        "/photos/index",
        ("Authorization", f"Bearer {api.token}"),
        ("Content-Length", str(limit + 1)),
    )
    async with connect(api.url) as peer:
        peer.writer.write(head)
        answer = Answer(await peer.read_answer("POST"))
    assert answer.error[:2] == (413, "payload_too_large")
    assert count(db_path) == 0


async def test_one_photo_more_is_refused_and_nothing_stored(api: Api, db_path: Path) -> None:
    answer = await api.index(DAY, [photo(f"p{n}") for n in range(20_001)])
    assert answer.error[:2] == (400, "bad_request")
    assert "20000" in answer.error[2]
    assert count(db_path) == 0


async def test_a_batch_of_nothing(api: Api) -> None:
    answer = await api.index(DAY, [])
    assert (answer.status, answer.json["assigned_files"]) == (200, [])


class TestManyClients:
    async def test_twenty_at_once_on_one_day(self, api: Api, db_path: Path) -> None:
        batches = [[f"client {c}, photo {n}" for n in range(1 + 7 * c % 40)] for c in range(20)]
        names = await asyncio.gather(*(index(api, *batch) for batch in batches))
        total = sum(map(len, batches))
        assert sorted(numbers(name for batch in names for name in batch)) == [*range(1, total + 1)]
        stored = {row["local_id"]: row["number"] for row in rows(db_path, ALL)}
        for batch, given_names in zip(batches, names, strict=True):
            assert [stored[local_id] for local_id in batch] == numbers(given_names)

    async def test_twenty_at_once_with_the_same_photos(self, api: Api, db_path: Path) -> None:
        chance = random.Random(20)
        batches = [chance.sample([f"p{n}" for n in range(60)], 45) for _ in range(20)]
        names = await asyncio.gather(*(index(api, *batch) for batch in batches))
        told: dict[str, set[str]] = {}
        for batch, given_names in zip(batches, names, strict=True):
            for local_id, name in zip(batch, given_names, strict=True):
                told.setdefault(local_id, set()).add(name)
        assert {len(each) for each in told.values()} == {1}
        stored = rows(db_path, ALL)
        assert [row["number"] for row in stored] == [*range(1, len(told) + 1)]
        assert {row["local_id"]: {f"{row['file_name']}.jpg"} for row in stored} == told

    async def test_two_servers_and_the_command_line_on_one_database(
        self,
        start_backup_process: StartServerProcess,
        backup_settings: dict[str, str],
        user: User,
        db_path: Path,
    ) -> None:
        async def command_line(n: int) -> None:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "immich_bridge",
                *("user", "create", "--username", f"user{n}", "--password", "SecurePassword456"),
                env={"PATH": os.environ["PATH"], **backup_settings},
                stdout=asyncio.subprocess.PIPE,
            )
            output, _ = await asyncio.wait_for(process.communicate(), PATIENCE)
            assert (process.returncode, output.split()[:3]) == (
                0,
                [b"created", b"user", b"user%d" % n],
            )

        servers = await asyncio.gather(start_backup_process(), start_backup_process())
        login = await Api(servers[0].url).login("admin", "SecurePassword123")
        # The token of one server counts at the other.
        apis = [Api(server.url, login.json["token"]) for server in servers]

        async def client(c: int) -> list[str]:
            names = []
            for n in range(8):
                names += await index(apis[c % 2], *(f"{c}/{n}/{k}" for k in range(3)), "shared")
            return names

        making_users = asyncio.gather(*map(command_line, (1, 2)))
        names = await asyncio.gather(*(client(c) for c in range(8)))
        await making_users
        stored = rows(db_path, ALL)
        assert [row["number"] for row in stored] == list(range(1, 8 * 8 * 3 + 2))
        shared = {name for each in names for name in each[3::4]}
        assert len(shared) == 1
        own = [name for each in names for name in each if name not in shared]
        assert sorted([*own, *shared]) == [f"{row['file_name']}.jpg" for row in stored]
        assert len(rows(db_path, "SELECT * FROM users")) == 3
        assert len(rows(db_path, "SELECT name FROM sqlite_master WHERE name GLOB 'photos*'")) == 3


class TestAllOrNothing:
    async def test_one_bad_photo_refuses_the_batch(self, api: Api, db_path: Path) -> None:
        batch = [photo("a"), photo("b"), photo("c", file_extension="../x"), photo("d")]
        answer = await api.index(DAY, batch)
        assert answer.error[:2] == (400, "bad_request")
        assert "photos[2].file_extension" in answer.error[2]
        assert count(db_path) == 0
        assert await index(api, "d") == ["IMG_0001.jpg"]

    async def test_a_failure_of_the_database_undoes_the_batch(
        self, api: Api, db_path: Path
    ) -> None:
        rows(
            db_path,
            "CREATE TRIGGER refuse BEFORE INSERT ON photos_user_1 WHEN new.local_id = 'c'"
            " BEGIN SELECT raise(ABORT, 'not this one'); END",
        )
        answer = await api.index(DAY, [photo("a"), photo("b"), photo("c"), photo("d")])
        assert answer.error[:2] == (500, "internal_error")
        # The words of the API document.
        assert answer.error[2].startswith("failed to create photo record: ")
        assert count(db_path) == 0
        # The connection is not left in the transaction that failed, and no number is lost.
        assert await index(api, "d", "e") == ["IMG_0001.jpg", "IMG_0002.jpg"]

    async def test_a_value_that_the_table_refuses_undoes_the_batch(
        self, database: Database, user: User, db_path: Path
    ) -> None:
        catalog = Catalog(database)
        good = NewPhoto("a", "2025-12-10T10:00:00Z", "jpg", "image/jpeg")
        bad = NewPhoto("b", cast(str, None), "jpg", "image/jpeg")
        with pytest.raises(InternalError, match="NOT NULL"):
            await catalog.index(user.id, date(2025, 12, 10), [good, bad])
        assert count(db_path) == 0
        indexed = await catalog.index(user.id, date(2025, 12, 10), [good])
        assert [known.filename for known in indexed] == ["IMG_0001.jpg"]

    async def test_nobody_sees_half_a_batch(self, api: Api, db_path: Path) -> None:
        seen: set[int] = set()
        batch = asyncio.create_task(index(api, *(f"p{n}" for n in range(5000))))

        def look() -> None:
            with closing(sqlite3.connect(db_path)) as connection:
                while not batch.done():
                    found = connection.execute("SELECT count(*) FROM photos_user_1").fetchone()
                    seen.add(found[0])

        await asyncio.to_thread(look)
        await batch
        assert seen <= {0, 5000}


LOCAL_IDS = [
    "B84E8479-475C-4727-A4A4-B77AA9980897/L0/001",  # PHAsset.localIdentifier of iOS
    "../../../etc/passwd",
    "..",
    ".",
    "/etc/passwd",
    "//",
    "C:\\Users\\photo.jpg",
    "a/../b",
    "~/photo",
    " ",
    " leading and trailing ",
    "line\r\nbreaks\n",
    "tab\tand \x01 control \x7f characters",
    "quotes \" and ' and `",
    "'; DROP TABLE photos_user_1; --",
    "{table} %s ? :local_id",
    "%2e%2e%2f",
    "+&=?#;",
    "--a-boundary-that-no-photo-holds",
    "🙂👩‍👩‍👧‍👦",
    "日本語",
    "e\u0301",  # not the same as the next
    "\u00e9",
    "IMG",
    "img",
    "\u202egpj.exe",
    "\ufeffbom",
    "null",
    "0",
    "x" * 512,
    "🙂" * 512,
]


async def test_local_ids_of_any_text_never_become_part_of_a_path(
    api: Api, storage_dir: Path, db_path: Path
) -> None:
    answer = await api.index(DAY, [photo(local_id) for local_id in LOCAL_IDS])
    assert [file["local_id"] for file in answer.json["assigned_files"]] == LOCAL_IDS
    expected = {}
    for number, local_id in enumerate(LOCAL_IDS, 1):
        content = f"photo {number}".encode()
        if number % 2:
            sent = await api.upload_stream(content, local_id=local_id, file_type="jpg")
        else:
            sent = await api.upload_form({"local_id": local_id, "file_type": "jpg"}, content)
        assert (sent.status, sent.json["local_id"]) == (200, local_id)
        assert sent.json["filename"] == f"IMG_{number:04}.jpg"
        expected[f"{FOLDER}/IMG_{number:04}.jpg"] = content
    assert on_disk(storage_dir) == expected
    assert [row["local_id"] for row in rows(db_path, ALL)] == LOCAL_IDS


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    text=st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=512)
)
async def test_any_text_is_a_local_id(text: str, api: Api) -> None:
    answer = await api.index(DAY, [photo(text)])
    assert (answer.status, answer.json["assigned_files"][0]["local_id"]) == (200, text)
    sent = await api.upload_stream(b"x", local_id=text, file_type="jpg")
    assert (sent.status, sent.json["local_id"]) == (200, text)


@pytest.mark.parametrize(
    "local_id", ["x" * 513, "🙂" * 513, "\0", "a\0b", "\ud800", "a\udfff", "\udc00\ud800"]
)
async def test_a_local_id_that_cannot_be_kept_is_refused(
    local_id: str, api: Api, db_path: Path
) -> None:
    answer = await api.index(DAY, [photo("good"), photo(local_id)])
    assert answer.error[:2] == (400, "bad_request")
    assert count(db_path) == 0


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-32-le"])
async def test_a_lone_surrogate_is_refused_however_it_is_written(
    encoding: str, api: Api, db_path: Path
) -> None:
    text = json.dumps({"date": DAY, "photos": [photo("a\ud800b")]}, ensure_ascii=False)
    answer = await api.post_json("/photos/index", text.encode(encoding, "surrogatepass"))
    assert answer.error == (400, "bad_request", INVALID)
    assert count(db_path) == 0


@pytest.mark.parametrize("field", ["local_id", "creation_time", "file_extension", "file_type"])
async def test_a_field_that_is_missing_or_no_text(field: str, api: Api, db_path: Path) -> None:
    without = photo("bad")
    del without[field]
    values: list[object] = [None, "", 1, 1.5, True, [], ["x"], {}, {"a": "b"}]
    for bad in (without, *({**photo("bad"), field: value} for value in values)):
        answer = await api.index(DAY, [photo("good"), bad])
        assert answer.error == (400, "bad_request", f"{INVALID}: photos[1].{field} is required")
    assert count(db_path) == 0


@pytest.mark.parametrize(
    ("field", "longest"), [("local_id", 512), ("creation_time", 64), ("file_type", 255)]
)
async def test_a_field_that_is_too_long(field: str, longest: int, api: Api, db_path: Path) -> None:
    filler = {
        "local_id": "x" * longest,
        # Python reads no more than six digits of a fraction and skips the rest.
        "creation_time": "2025-12-10T10:00:00.".ljust(longest - 1, "1") + "Z",
        "file_type": "image/jpeg;".ljust(longest, "x"),
    }[field]
    assert len(filler) == longest
    too_long = filler.replace("x", "xx", 1).replace(".1", ".11", 1)
    answer = await api.index(DAY, [photo("good"), {**photo("bad"), field: too_long}])
    assert answer.error[:2] == (400, "bad_request")
    assert f"photos[1].{field} is longer than {longest} characters" in answer.error[2]
    assert count(db_path) == 0
    answer = await api.index(DAY, [{**photo("good"), field: filler}])
    assert answer.status == 200, answer


async def test_an_extension_that_is_none(api: Api, db_path: Path) -> None:
    for extension in (
        *("..", "../x", "j/pg", "jp\\g", "jpg\n", "a b", "jpé", "tar.gz", "\0"),
        *("abcdefghijk", "x" * 17),
    ):
        answer = await api.index(DAY, [photo("bad", file_extension=extension)])
        assert answer.error[:2] == (400, "bad_request"), extension
        assert "photos[0].file_extension" in answer.error[2]
    assert count(db_path) == 0


async def test_an_extension_is_kept_in_lower_case(api: Api) -> None:
    for number, (extension, kept) in enumerate(
        [("JPG", "jpg"), (".Heic", "heic"), ("x", "x"), ("a1b2c3d4e5", "a1b2c3d4e5")], 1
    ):
        names = await index(api, extension, file_extension=extension)
        assert names == [f"IMG_{number:04}.{kept}"]


async def test_an_entry_that_is_no_object(api: Api, db_path: Path) -> None:
    entries: list[Any] = [None, 1, "a", [], ["local_id"], True]
    for entry in entries:
        answer = await api.index(DAY, [photo("good"), entry])
        assert answer.error == (400, "bad_request", f"{INVALID}: photos[1] is not an object")
    assert count(db_path) == 0


async def test_a_body_that_is_no_batch(api: Api) -> None:
    bodies: list[object] = [
        {},
        {"date": DAY},
        {"photos": []},
        {"date": None, "photos": []},
        {"date": 20251210, "photos": []},
        {"date": [DAY], "photos": []},
        {"date": DAY, "photos": None},
        {"date": DAY, "photos": {}},
        {"date": DAY, "photos": "IMG_1234"},
        [],
        None,
        "text",
        b"",
        b"{",
        b'{"date": "2025-12-10", "photos": [}',
        b"\xff\xfe",
        b"[" * 100_000,
    ]
    for body in bodies:
        answer = await api.post_json("/photos/index", body)
        assert answer.error == (400, "bad_request", INVALID), body


async def test_a_date_that_does_not_exist(api: Api, db_path: Path) -> None:
    for day in (
        *("", "2025-02-29", "2025-13-01", "2025-00-01", "2025-1-1", "20251210", "10.12.2025"),
        *("2025-12-10T00:00:00Z", "2025-12-10\n", "../../../x", "2025-12-\u0661\u0660"),
    ):
        answer = await api.index(day, [photo("a")])
        message = "Invalid date format, expected YYYY-MM-DD"
        assert answer.error == (400, "bad_request", message), day
    assert count(db_path) == 0


CREATION_TIMES = {
    "2025-12-10T10:00:00Z": "2025-12-10T10:00:00Z",
    "2025-12-10T10:00:00": "2025-12-10T10:00:00Z",
    "2025-12-10T10:00:00+00:00": "2025-12-10T10:00:00Z",
    "2025-12-10T18:00:00+08:00": "2025-12-10T10:00:00Z",
    "2025-12-09T22:30:00-11:30": "2025-12-10T10:00:00Z",
    "2025-12-10T10:00:00.123Z": "2025-12-10T10:00:00.123000Z",
    "2025-12-10T10:00:00.123456Z": "2025-12-10T10:00:00.123456Z",
    "2025-12-10T10:00:00.123456789Z": "2025-12-10T10:00:00.123456Z",
    "2025-12-10 10:00:00": "2025-12-10T10:00:00Z",
    "2025-12-10T10:00Z": "2025-12-10T10:00:00Z",
    "20251210T100000Z": "2025-12-10T10:00:00Z",
    "2025-12-10": "2025-12-10T00:00:00Z",
    "1969-12-31T23:59:59Z": "1969-12-31T23:59:59Z",
    "0001-01-01T00:00:00Z": "0001-01-01T00:00:00Z",
    "9999-12-31T23:59:59Z": "9999-12-31T23:59:59Z",
}


async def test_creation_times_are_kept_in_utc(api: Api, db_path: Path, storage_dir: Path) -> None:
    for time in CREATION_TIMES:
        await index(api, time, creation_time=time)
    stored = {row["local_id"]: row["creation_time"] for row in rows(db_path, ALL)}
    assert stored == CREATION_TIMES
    # Also one that no file system can hold as a time is no reason to refuse the photo.
    for time in CREATION_TIMES:
        answer = await api.upload_stream(time.encode(), local_id=time, file_type="jpg")
        assert answer.status == 200, time
    assert sorted(on_disk(storage_dir).values()) == sorted(map(str.encode, CREATION_TIMES))


async def test_a_creation_time_that_is_none(api: Api, db_path: Path) -> None:
    for time in (
        "yesterday",
        "2025-02-29T00:00:00Z",
        "2025-12-10T25:00:00Z",
        "2025-12-10T10:60:00Z",
        "2025-12-10T10:00:00+25:00",
        "1765360800",
        "Wed, 10 Dec 2025 10:00:00 GMT",
        "10:00:00",
        "2025-12-10T10:00:00Z ",
        # In UTC these lie before the first year and after the last.
        "0001-01-01T00:00:00+01:00",
        "9999-12-31T23:59:59-01:00",
    ):
        answer = await api.index(DAY, [photo("a", creation_time=time)])
        message = f"{INVALID}: photos[0].creation_time is not an ISO 8601 date and time"
        assert answer.error == (400, "bad_request", message), time
    assert count(db_path) == 0


async def test_an_index_needs_a_token(backup: Server, db_path: Path) -> None:
    answer = await Api(backup.address).index(DAY, [photo()])
    assert answer.error == (401, "unauthorized", "Authorization header is required")
    answer = await Api(backup.address, "no.such.token").index(DAY, [photo()])
    assert answer.error == (401, "unauthorized", "Token not found")
    assert count(db_path) == 0
