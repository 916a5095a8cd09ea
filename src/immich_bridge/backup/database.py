"""The SQLite file: its connections, its schema, and transactions in one thread hop.

One connection writes, another reads. In WAL mode a reader is not held up by a writer, and
the command line may work on the file while the server runs. Under load the hops are shared:
what came while a connection was busy goes to it together.
"""

import asyncio
import os
import sqlite3
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Any, Final, TypeVar

import aiosqlite

from immich_bridge.backup.disk import make_folders
from immich_bridge.backup.lane import Failed, Lane
from immich_bridge.errors import InsufficientStorage, InternalError

T = TypeVar("T")
Work = Callable[[sqlite3.Connection], T]
"""Statements that belong together."""

_BUSY_TIMEOUT_MS: Final = 15_000
"""How long a writer waits for another process (the command line) to finish its transaction."""
_BUSY_PAUSE: Final = 0.01
"""Seconds between two attempts where SQLite does not wait by itself."""

_MIGRATIONS: Final = ("001_initial.sql",)
"""The steps of the schema: step n leads to version n. A step that has landed never changes."""


class DatabaseError(Exception):
    """The database file cannot be used; the message says why."""


def read_sql(name: str) -> str:
    """The text of a file of `sql/`."""
    return (resources.files(__package__) / "sql" / name).read_text()


def utc_now() -> str:
    """The time as the database writes it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class _Connection:
    """A connection and the way to it. `run_all` runs each work on the connection's thread."""

    def __init__(
        self,
        connection: aiosqlite.Connection,
        run_all: Callable[[sqlite3.Connection, Sequence[Work[Any]]], list[Any]],
    ) -> None:
        self._connection = connection
        self._run_all = run_all
        self._lane = Lane[Work[Any]](self._run_together)

    async def run(self, work: Work[T]) -> T:
        """The result of `work`. Once begun it ends also when the caller is cancelled."""
        try:
            result: T = await self._lane.run(work)
        except sqlite3.Error as exc:
            # Errors of the module itself, a closed connection say, have no code.
            if getattr(exc, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
                raise InsufficientStorage("the disk of the database is full") from exc
            raise InternalError(f"database error: {exc}") from exc
        return result

    async def close(self) -> None:
        """Close the connection after what waits for it."""
        await self._lane.drain()
        await self._connection.close()

    async def _run_together(self, works: Sequence[Work[Any]]) -> list[Any]:
        return await _run(self._connection, lambda connection: self._run_all(connection, works))


class Database:
    """The database of the backup wing, between `open` and `close`.

    `open` raises `DatabaseError` when the file is no database or of a newer schema.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._writer: _Connection
        self._reader: _Connection

    async def open(self) -> None:
        """Open the file, make it if need be, and bring its schema up to date."""
        try:
            await asyncio.to_thread(_make_file, self._path)
            writer = await _connect(self._path)
        except (OSError, sqlite3.Error) as exc:
            raise DatabaseError(f"{self._path} cannot be opened: {exc}") from exc
        try:
            await _run(writer, _prepare)
            reader = await _connect(self._path)
        except (OSError, sqlite3.Error) as exc:
            await writer.close()
            raise DatabaseError(f"{self._path} cannot be used: {exc}") from exc
        except BaseException:
            await writer.close()
            raise
        await _run(reader, _prepare_reader)
        self._writer = _Connection(writer, _write_all)
        self._reader = _Connection(reader, _read_all)

    async def close(self) -> None:
        """Close the file; what was committed stays."""
        await self._reader.close()
        await self._writer.close()

    async def write(self, work: Work[T]) -> T:
        """Run `work` as part of one transaction; when this returns it would survive a power cut.

        All of `work` counts or nothing. It runs on the writer's thread, must not keep the
        connection, and may run a second time: transactions that come at the same time share
        one, with its wait for the disk, and when one of them fails each gets its own.
        """
        return await self._writer.run(work)

    async def read(self, work: Work[T]) -> T:
        """Run `work`, which only reads, and gives no cursor away.

        A cursor that outlives `work` would keep its view of the database open: whoever
        reads next would not see what was written since.
        """
        return await self._reader.run(work)

    async def check(self) -> None:
        """Return if the database answers; raise if not."""
        await self.read(lambda db: db.execute("SELECT version FROM schema_version").fetchone())


def _write_all(connection: sqlite3.Connection, works: Sequence[Work[Any]]) -> list[Any]:
    try:
        # IMMEDIATE takes the write lock at once: a transaction that begins by reading
        # cannot get it later while another process writes.
        connection.execute("BEGIN IMMEDIATE")
    except Exception as exc:
        return [Failed(exc)] * len(works)  # none of them would fare better alone
    try:
        results = [work(connection) for work in works]
        connection.execute("COMMIT")
    except Exception as exc:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        if len(works) == 1:
            return [Failed(exc)]
        return [result for work in works for result in _write_all(connection, [work])]
    return results


def _read_all(connection: sqlite3.Connection, works: Sequence[Work[Any]]) -> list[Any]:
    results: list[Any] = []
    for work in works:
        try:
            results.append(work(connection))
        except Exception as exc:
            results.append(Failed(exc))
    return results


async def _connect(path: Path) -> aiosqlite.Connection:
    connection = aiosqlite.connect(path, isolation_level=None)
    try:
        return await connection
    except sqlite3.Error:
        # Its thread has a last word to say, and the event loop may be closed by then.
        await asyncio.to_thread(connection._thread.join)
        raise


async def _run(connection: aiosqlite.Connection, work: Work[T]) -> T:
    """Run `work` on the connection's thread, in one hop for all of its statements.

    aiosqlite's public methods hop to the thread and back for every statement.
    """
    result: T = await connection._execute(work, connection._conn)  # type: ignore[no-untyped-call]
    return result


def _make_file(path: Path) -> None:
    """An empty file, for its owner alone: it holds password hashes. SQLite keeps the mode."""
    make_folders(path.parent)
    # Not one that is there: to close it would drop the locks of this process on it, should
    # it have it open already (sqlite.org/howtocorrupt.html 2.2).
    if not path.exists():
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))


def _prepare_reader(connection: sqlite3.Connection) -> None:
    connection.row_factory = sqlite3.Row
    connection.execute(f"PRAGMA busy_timeout = {_BUSY_TIMEOUT_MS}")
    connection.execute("PRAGMA query_only = ON")


def _prepare(connection: sqlite3.Connection) -> None:
    connection.row_factory = sqlite3.Row
    connection.execute(f"PRAGMA busy_timeout = {_BUSY_TIMEOUT_MS}")
    _switch_to_wal(connection)
    # A commit survives a power cut: a photo that was answered with 200 keeps its row.
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("BEGIN IMMEDIATE")
    try:
        _migrate(connection)
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _switch_to_wal(connection: sqlite3.Connection) -> None:
    # Of two processes that do this to a new file at once SQLite refuses one, without the
    # wait that every other lock is given.
    deadline = time.monotonic() + _BUSY_TIMEOUT_MS / 1000
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as exc:
            # The lower byte is the error itself, the others say more of it.
            busy = exc.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY
            if not busy or time.monotonic() >= deadline:
                raise
            time.sleep(_BUSY_PAUSE)
        else:
            return


def _migrate(connection: sqlite3.Connection) -> None:
    connection.execute("CREATE TABLE IF NOT EXISTS schema_version (version INTEGER NOT NULL)")
    row = connection.execute("SELECT version FROM schema_version").fetchone()
    version = row["version"] if row else 0
    if version > len(_MIGRATIONS):
        raise DatabaseError(
            f"the database has schema version {version}, this program knows up to "
            f"{len(_MIGRATIONS)}: it was used by a newer release"
        )
    if version == len(_MIGRATIONS):
        return  # nothing is written, so that a full disk is no reason not to start
    for step in _MIGRATIONS[version:]:
        # Not executescript(), which would commit first.
        for statement in _statements(read_sql(step)):
            connection.execute(statement)
    connection.execute("DELETE FROM schema_version")
    connection.execute("INSERT INTO schema_version VALUES (?)", (len(_MIGRATIONS),))


def _statements(script: str) -> list[str]:
    statements, current = [], ""
    for line in script.splitlines(keepends=True):
        current += line
        if sqlite3.complete_statement(current):
            statements.append(current)
            current = ""
    return statements
