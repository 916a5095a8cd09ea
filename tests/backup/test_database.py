"""The SQLite file: what can be opened, and what transactions promise to each other."""

import asyncio
import multiprocessing
import random
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from backup_wing import Api, StartBackup, StartBackupProcess, photo, rows, settings_in
from immich_bridge.backup.accounts import Accounts
from immich_bridge.backup.database import Database, DatabaseError, utc_now
from immich_bridge.errors import InternalError, StartError
from wire import PATIENCE

TABLES = ["files", "schema_version", "tokens", "users"]
INSERT = (
    "INSERT INTO users (username, password_hash, created_at, updated_at) VALUES (?, '', '', '')"
)
THEIRS = INSERT.replace("?", "'theirs'")


def insert(username: str) -> Callable[[sqlite3.Connection], int]:
    return lambda db: db.execute(INSERT, (username,)).rowcount


def usernames(db_path: Path) -> list[str]:
    return [row["username"] for row in rows(db_path, "SELECT username FROM users ORDER BY id")]


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def put(path: Path, content: bytes) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)


def tables(db_path: Path) -> list[str]:
    found = rows(db_path, "SELECT name FROM sqlite_master WHERE type = 'table'")
    return sorted(row["name"] for row in found if not row["name"].startswith("sqlite_"))


def schema(db_path: Path) -> list[dict[str, Any]]:
    return rows(db_path, "SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY name")


@asynccontextmanager
async def opened(path: Path) -> AsyncIterator[Database]:
    database = Database(path)
    await database.open()
    try:
        yield database
    finally:
        await database.close()


async def refusal(path: Path) -> str:
    """Why the file cannot be opened; no connection is left of the attempt."""
    database = Database(path)
    try:
        await database.open()
    except DatabaseError as exc:
        reason = str(exc)
    else:
        await database.close()
        pytest.fail(f"{path} was opened")
    for thread in threading.enumerate():
        if "_connection_worker_thread" in thread.name:  # aiosqlite's, one a connection
            await asyncio.to_thread(thread.join, PATIENCE)
            assert not thread.is_alive()
    return reason


# Not a fork: SQLite's own tables of who holds which lock must not be inherited.
WRITE = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=10)
connection.execute("BEGIN IMMEDIATE")
for statement in sys.argv[2:]:
    connection.execute(statement)
print("begun", flush=True)
sys.stdin.readline()
connection.execute("COMMIT")
connection.close()
"""


@contextmanager
def another_process_writes(db_path: Path, *statements: str) -> Iterator[Callable[[], None]]:
    """A transaction of another process that has written and goes on; called, it commits."""
    process = subprocess.Popen(
        [sys.executable, "-c", WRITE, db_path, *(statements or [THEIRS])],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )

    def commit() -> None:
        process.communicate(b"\n", timeout=PATIENCE)
        assert process.returncode == 0

    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"begun\n"
        yield commit
    finally:
        if process.poll() is None:
            process.communicate(b"\n", timeout=PATIENCE)


async def test_a_file_is_made_with_its_folders_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "a" / "folder" / "app.db"
    async with opened(path) as database:
        await database.write(insert("anna"))
        assert tables(path) == TABLES
        assert rows(path, "SELECT * FROM schema_version") == [{"version": 1}]
        modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
        # Hashes of passwords lie in the log too.
        assert modes == {"app.db": 0o600, "app.db-shm": 0o600, "app.db-wal": 0o600}
    assert names_in(path.parent) == ["app.db"]


async def test_opening_it_again_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "app.db"
    async with opened(path) as database:
        await database.write(insert("anna"))
    path.chmod(0o640)
    before = schema(path)
    for _ in range(3):
        async with opened(path) as database:
            await database.check()
    assert schema(path) == before
    assert rows(path, "SELECT * FROM schema_version") == [{"version": 1}]
    assert usernames(path) == ["anna"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o640, "the operator's choice"


async def test_an_empty_file_becomes_a_database(tmp_path: Path) -> None:
    path = tmp_path / "app.db"
    path.touch()
    async with opened(path):
        assert tables(path) == TABLES


async def test_what_is_no_database_is_refused_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "app.db"
    for content in b"not a database, " * 100, random.Random(1).randbytes(5000):
        path.write_bytes(content)
        assert await refusal(path) == f"{path} cannot be used: file is not a database"
        assert path.read_bytes() == content
        assert names_in(tmp_path) == ["app.db"]


async def test_a_damaged_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "app.db"
    async with opened(path):
        pass
    content = path.read_bytes()
    path.write_bytes(content[:100] + bytes(len(content) - 100))
    assert (await refusal(path)).startswith(f"{path} cannot be used: ")


async def test_a_path_that_can_hold_no_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    for name in "folder", "file/app.db", "circle", "x" * 300:
        assert (await refusal(tmp_path / name)).startswith(f"{tmp_path / name} cannot be opened: ")


async def test_a_newer_schema_is_refused_untouched(tmp_path: Path) -> None:
    path = tmp_path / "app.db"
    async with opened(path) as database:
        await database.write(insert("anna"))
    rows(path, "UPDATE schema_version SET version = 2")
    rows(path, "ALTER TABLE users RENAME COLUMN password_hash TO of_the_future")
    before = schema(path)
    assert await refusal(path) == (
        "the database has schema version 2, this program knows up to 1: "
        "it was used by a newer release"
    )
    assert schema(path) == before
    assert rows(path, "SELECT * FROM schema_version") == [{"version": 2}]


async def test_a_server_with_a_database_that_cannot_be_used_does_not_start(
    start_backup: StartBackup, db_path: Path
) -> None:
    put(db_path, b"not a database, " * 100)
    with pytest.raises(StartError, match=r"^DB_PATH: .*app\.db cannot be used: file is not a"):
        await start_backup()
    put(db_path, b"")
    async with opened(db_path):
        pass
    rows(db_path, "UPDATE schema_version SET version = 7")
    with pytest.raises(StartError, match=r"^DB_PATH: the database has schema version 7"):
        await start_backup()


async def test_a_commit_survives_a_power_cut(database: Database) -> None:
    def pragma(name: str) -> Callable[[sqlite3.Connection], object]:
        return lambda db: db.execute(f"PRAGMA {name}").fetchone()[0]

    assert await database.write(pragma("journal_mode")) == "wal"
    assert await database.write(pragma("synchronous")) == 2  # FULL
    assert await database.write(pragma("foreign_keys")) == 1
    assert await database.read(pragma("journal_mode")) == "wal"
    assert await database.read(pragma("query_only")) == 1
    for reads_or_writes in database.read, database.write:
        assert await reads_or_writes(pragma("busy_timeout")) == 15_000


async def test_reading_cannot_write(database: Database, db_path: Path) -> None:
    with pytest.raises(InternalError, match="readonly"):
        await database.read(insert("anna"))
    assert usernames(db_path) == []


async def test_a_token_needs_its_user(database: Database, db_path: Path) -> None:
    with pytest.raises(InternalError, match="FOREIGN KEY"):
        await database.write(
            lambda db: db.execute("INSERT INTO tokens VALUES (x'00', 7, 0, '')").rowcount
        )
    assert rows(db_path, "SELECT * FROM tokens") == []


class Unwilling(Exception):
    """What a transaction may raise."""


async def test_a_transaction_is_all_or_nothing(database: Database, db_path: Path) -> None:
    def half(db: sqlite3.Connection) -> None:
        db.execute(INSERT, ("anna",))
        db.execute("CREATE TABLE more (a)")
        raise Unwilling

    with pytest.raises(Unwilling):
        await database.write(half)
    assert usernames(db_path) == []
    assert tables(db_path) == TABLES

    def broken(db: sqlite3.Connection) -> None:
        db.execute(INSERT, ("anna",))
        db.execute(INSERT, ("anna",))

    with pytest.raises(InternalError, match=r"database error: UNIQUE constraint"):
        await database.write(broken)
    assert usernames(db_path) == []
    # And the next one is none the worse for it.
    assert await database.write(insert("bert")) == 1
    assert usernames(db_path) == ["bert"]


async def test_a_transaction_gives_what_its_work_gives(database: Database) -> None:
    assert await database.write(lambda db: [1]) == [1]
    assert await database.read(lambda db: db.execute("SELECT 1 AS one").fetchone()["one"]) == 1


async def test_transactions_follow_one_another(database: Database, db_path: Path) -> None:
    def next_name(db: sqlite3.Connection) -> str:
        [number] = db.execute("SELECT count(*) FROM users").fetchone()
        db.execute(INSERT, (f"user {number}",))
        return f"user {number}"

    expected = [f"user {number}" for number in range(50)]
    assert await asyncio.gather(*(database.write(next_name) for _ in range(50))) == expected
    assert usernames(db_path) == expected


async def test_what_waits_for_the_writer_shares_one_transaction(
    database: Database, db_path: Path
) -> None:
    go_on = threading.Event()
    unfinished: list[list[str]] = []

    def insert_and_look(username: str) -> Callable[[sqlite3.Connection], None]:
        def work(db: sqlite3.Connection) -> None:
            db.execute(INSERT, (username,))
            unfinished.append(usernames(db_path))  # by another connection: what is committed

        return work

    first = asyncio.create_task(database.write(lambda _: go_on.wait(PATIENCE)))
    await asyncio.sleep(0)  # its turn has come, and the writer is busy
    others = [asyncio.create_task(database.write(insert_and_look(n))) for n in ("a", "b", "c")]
    cancelled = asyncio.create_task(database.write(insert("never")))
    await asyncio.sleep(0)
    cancelled.cancel()
    go_on.set()
    await asyncio.gather(first, *others)
    assert unfinished == [[], [], []]
    assert usernames(db_path) == ["a", "b", "c"]


async def test_a_transaction_that_fails_spoils_no_other(database: Database, db_path: Path) -> None:
    go_on = threading.Event()

    def unwilling(db: sqlite3.Connection) -> None:
        db.execute(INSERT, ("unwilling",))
        raise Unwilling

    first = asyncio.create_task(database.write(lambda _: go_on.wait(PATIENCE)))
    await asyncio.sleep(0)
    works = [insert("anna"), unwilling, insert("anna"), insert("bert")]
    tasks = [asyncio.create_task(database.write(work)) for work in works]
    await asyncio.sleep(0)
    go_on.set()
    anna, failed, again, bert = await asyncio.gather(*tasks, return_exceptions=True)
    await first
    assert (anna, bert) == (1, 1)
    assert isinstance(failed, Unwilling)
    assert isinstance(again, InternalError)
    assert usernames(db_path) == ["anna", "bert"]


async def test_a_lock_that_is_not_given_is_waited_for_once(
    database: Database, db_path: Path
) -> None:
    statements: list[str] = []

    def watch(db: sqlite3.Connection) -> None:
        db.execute("PRAGMA busy_timeout = 200")
        db.set_trace_callback(statements.append)

    await database.write(watch)
    with closing(sqlite3.connect(db_path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        tasks = [database.write(insert(f"user {number}")) for number in range(6)]
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        other.execute("ROLLBACK")
    assert [type(outcome) for outcome in outcomes] == [InternalError] * 6
    # Once for all of them, or once for the first and once for those that came meanwhile.
    assert statements.count("BEGIN IMMEDIATE") in (1, 2)
    assert await database.write(insert("anna")) == 1
    assert usernames(db_path) == ["anna"]


async def test_a_read_that_fails_spoils_no_other(database: Database) -> None:
    go_on = threading.Event()
    first = asyncio.create_task(database.read(lambda _: go_on.wait(PATIENCE)))
    await asyncio.sleep(0)
    queries = ["SELECT 1", "SELECT nothing", "SELECT 2"]

    def one(query: str) -> Callable[[sqlite3.Connection], int]:
        return lambda db: int(db.execute(query).fetchone()[0])

    tasks = [asyncio.create_task(database.read(one(query))) for query in queries]
    await asyncio.sleep(0)
    go_on.set()
    first_number, failed, second_number = await asyncio.gather(*tasks, return_exceptions=True)
    await first
    assert (first_number, second_number) == (1, 2)
    assert isinstance(failed, InternalError)


async def test_a_transaction_ends_also_when_its_caller_is_cancelled(
    database: Database, db_path: Path
) -> None:
    loop = asyncio.get_running_loop()
    begun, go_on = asyncio.Event(), threading.Event()

    def slow(db: sqlite3.Connection) -> None:
        db.execute(INSERT, ("anna",))
        loop.call_soon_threadsafe(begun.set)
        assert go_on.wait(PATIENCE)
        db.execute(INSERT, ("bert",))

    task = asyncio.create_task(database.write(slow))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert usernames(db_path) == []
    go_on.set()
    await database.write(insert("carla"))
    assert usernames(db_path) == ["anna", "bert", "carla"]


async def test_reading_is_not_held_up_by_writing(database: Database) -> None:
    loop = asyncio.get_running_loop()
    begun, go_on = asyncio.Event(), threading.Event()

    def slow(db: sqlite3.Connection) -> None:
        db.execute(INSERT, ("anna",))
        loop.call_soon_threadsafe(begun.set)
        assert go_on.wait(PATIENCE)

    def count(db: sqlite3.Connection) -> int:
        return int(db.execute("SELECT count(*) FROM users").fetchone()[0])

    task = asyncio.create_task(database.write(slow))
    await begun.wait()
    assert await database.read(count) == 0
    assert not task.done()
    go_on.set()
    await task
    assert await database.read(count) == 1


async def test_reading_is_not_held_up_by_a_transaction_of_another_process(
    api: Api, db_path: Path
) -> None:
    await api.index("2025-12-10", [photo()])
    with another_process_writes(db_path):
        # All of these only read.
        assert (await api.status()).status == 200
        assert (await Api(api.url).login("admin", "wrong password")).status == 401
        assert (await api.upload_stream(b"", local_id="none", file_type="jpg")).status == 500
        ready = await api.call("GET", "/ready")
        assert (ready.status, ready.json["checks"]["database"]) == (200, "ok")


async def test_a_writer_waits_for_another_process(database: Database, db_path: Path) -> None:
    with another_process_writes(db_path) as commit:
        writing = [asyncio.create_task(database.write(insert(f"ours {n}"))) for n in range(3)]
        # Long enough that SQLite has been refused its lock, and has begun to wait.
        done, _ = await asyncio.wait(writing, timeout=0.2)
        assert not done
        await asyncio.to_thread(commit)
        assert await asyncio.gather(*writing) == [1, 1, 1]
    assert usernames(db_path) == ["theirs", "ours 0", "ours 1", "ours 2"]


async def test_a_file_that_is_opened_twice_stays_locked(database: Database, db_path: Path) -> None:
    # POSIX: to close any descriptor of a file drops all locks of the process on it. Another
    # process would then take itself for the last one, and remove the log under this one.
    async with opened(db_path) as again:
        await again.write(insert("first"))
    with another_process_writes(db_path) as commit:
        await asyncio.to_thread(commit)
    assert names_in(db_path.parent) == ["app.db", "app.db-shm", "app.db-wal"]
    assert await database.write(insert("last")) == 1
    assert usernames(db_path) == ["first", "theirs", "last"]


async def test_a_transaction_that_begins_by_reading_waits_too(
    database: Database, db_path: Path
) -> None:
    def read_then_write(db: sqlite3.Connection) -> int:
        [count] = db.execute("SELECT count(*) FROM users").fetchone()
        db.execute(INSERT, (f"after {count}",))
        return int(count)

    with another_process_writes(db_path) as commit:
        writing = asyncio.create_task(database.write(read_then_write))
        await asyncio.wait({writing}, timeout=0.1)
        await asyncio.to_thread(commit)
        # It has seen what was committed while it waited.
        assert await writing == 1
    assert usernames(db_path) == ["theirs", "after 1"]


async def test_opening_a_file_that_has_no_wal_yet_waits_for_another_process(
    tmp_path: Path,
) -> None:
    # As when two processes make it at once: SQLite refuses this without its usual wait.
    path = tmp_path / "app.db"
    async with opened(path):
        pass
    assert rows(path, "PRAGMA journal_mode = DELETE") == [{"journal_mode": "delete"}]
    with another_process_writes(path) as commit:
        database = Database(path)
        opening = asyncio.create_task(database.open())
        done, _ = await asyncio.wait({opening}, timeout=0.2)
        assert not done
        await asyncio.to_thread(commit)
        await opening
    await database.close()
    assert rows(path, "PRAGMA journal_mode") == [{"journal_mode": "wal"}]
    assert usernames(path) == ["theirs"]


async def test_opening_waits_while_another_process_makes_the_tables(tmp_path: Path) -> None:
    path, theirs = tmp_path / "app.db", tmp_path / "theirs.db"
    async with opened(theirs):
        pass
    made = [row["sql"] for row in schema(theirs) if row["sql"] and "sqlite_" not in row["name"]]
    tables_first = sorted(made, key=lambda statement: "INDEX" in statement)
    assert rows(path, "PRAGMA journal_mode = WAL") == [{"journal_mode": "wal"}]
    version = "INSERT INTO schema_version VALUES (1)"
    with another_process_writes(path, *tables_first, version, THEIRS) as commit:
        database = Database(path)
        opening = asyncio.create_task(database.open())
        done, _ = await asyncio.wait({opening}, timeout=0.2)
        assert not done
        await asyncio.to_thread(commit)
        await opening
    await database.close()
    assert tables(path) == TABLES
    assert rows(path, "SELECT * FROM schema_version") == [{"version": 1}]
    assert usernames(path) == ["theirs"]


def _open_and_write(path: Path, barrier: Any, outcomes: Any, number: int) -> None:
    async def work() -> None:
        async with opened(path) as database:
            await database.write(insert(f"user {number}"))

    barrier.wait()
    try:
        asyncio.run(work())
    except BaseException as exc:
        outcomes.put(repr(exc))
    else:
        outcomes.put("ok")


def test_processes_that_open_a_new_file_at_once_make_one_database(tmp_path: Path) -> None:
    # Forked, so that all of them come to migrate it within a few milliseconds.
    context = multiprocessing.get_context("fork")
    for attempt in range(5):
        path = tmp_path / str(attempt) / "app.db"
        barrier, outcomes = context.Barrier(6), context.SimpleQueue()
        processes = [
            context.Process(target=_open_and_write, args=(path, barrier, outcomes, number))
            for number in range(6)
        ]
        for process in processes:
            process.start()
        assert [outcomes.get() for _ in processes] == ["ok"] * 6
        for process in processes:
            process.join()
        assert tables(path) == TABLES
        assert rows(path, "SELECT * FROM schema_version") == [{"version": 1}]
        assert sorted(usernames(path)) == [f"user {number}" for number in range(6)]


async def test_two_servers_may_start_on_one_new_file(
    start_backup_process: StartBackupProcess, tmp_path: Path
) -> None:
    servers = await asyncio.gather(*(start_backup_process() for _ in range(2)))
    async with opened(Path(settings_in(tmp_path)["DB_PATH"])) as database:
        accounts = Accounts(database)
        await accounts.create("anna", "a password")
        accounts.close()
    for server in servers:
        assert (await Api(server.url).login("anna", "a password")).status == 200
        assert not [line for line in server.log if "ERROR" in line]


def test_the_time_is_written_as_rfc_3339_in_utc() -> None:
    assert len(utc_now()) == len("2025-12-10T10:00:00Z")
    assert utc_now().endswith("Z")
