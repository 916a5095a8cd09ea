"""Which photos a user has: raw SQL over one table a user.

Every public method is one transaction and one hop to the database's thread.
"""

import json
import sqlite3
from collections.abc import Iterable, Sequence
from datetime import date
from typing import Final, NamedTuple

from immich_bridge.backup.database import Database, read_sql, utc_now
from immich_bridge.backup.naming import day_folder, file_stem
from immich_bridge.errors import InternalError

_INSERT: Final = """
    INSERT INTO {table} (local_id, creation_time, file_path, file_name, file_type,
                         created_at, updated_at, number, file_extension)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
"""
_NEXT_NUMBER: Final = "SELECT max(coalesce(max(number), 0), ?) + 1 FROM {table} WHERE file_path = ?"
_RECORD_FILE: Final = """
    INSERT INTO files (user_id, local_id, extension, size, stored_at)
    VALUES (?, ?, ?, ?, ?)
    ON CONFLICT DO UPDATE SET size = excluded.size, stored_at = excluded.stored_at
"""
_SET_UPLOADED: Final = """
    UPDATE {table} SET uploaded_extensions = ?, file_count = ?, updated_at = ? WHERE local_id = ?
"""

_IDS_AT_ONCE: Final = 500
"""As many as json writes in a few milliseconds, in which no other thread runs."""


def photos_table(user_id: int) -> str:
    """The name of a user's table: the one thing that is ever put into the text of a query."""
    return f"photos_user_{user_id:d}"


def create_photos_table(db: sqlite3.Connection, user_id: int) -> None:
    """Make the table of a new user, in the transaction that makes the user."""
    db.execute(read_sql("photos_table.sql").format(table=photos_table(user_id)))


class NewPhoto(NamedTuple):
    """A photo as a client announces it; the fields have been checked."""

    local_id: str
    creation_time: str
    extension: str
    file_type: str


class Photo(NamedTuple):
    """A photo as the catalog knows it. `folder` is as in the API, with a final slash."""

    local_id: str
    creation_time: str
    folder: str
    stem: str
    file_type: str
    extension: str
    uploaded_extensions: tuple[str, ...]

    @property
    def filename(self) -> str:
        """The name that it was given when it was indexed."""
        return f"{self.stem}.{self.extension}"


class Catalog:
    """The photos of all users."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def index(
        self, user_id: int, day: date, photos: Sequence[NewPhoto], *, above: int = 0
    ) -> list[Photo]:
        """Give every photo its name on `day`, the known ones the name they have.

        One transaction: either all are indexed or none. Numbers run on without gap or
        repeat, however many clients index at once. They begin above `above`: numbers up to
        that are taken, whether we know by whom or not.
        """
        table = photos_table(user_id)
        folder = day_folder(user_id, day)
        insert = _INSERT.format(table=table)
        next_number = _NEXT_NUMBER.format(table=table)

        def work(db: sqlite3.Connection) -> list[Photo]:
            known = _find_all(db, table, {photo.local_id for photo in photos})
            number = db.execute(next_number, (above, folder)).fetchone()[0]
            now = utc_now()
            rows: list[tuple[object, ...]] = []
            for new in photos:
                if new.local_id in known:
                    continue
                local_id, created, extension, file_type = new
                stem = file_stem(number)
                rows.append(
                    (local_id, created, folder, stem, file_type, now, now, number, extension)
                )
                number += 1
                known[local_id] = Photo(
                    local_id, created, folder, stem, file_type, extension, uploaded_extensions=()
                )
            db.executemany(insert, rows)
            return [known[photo.local_id] for photo in photos]

        try:
            return await self._database.write(work)
        except InternalError as exc:
            raise InternalError(f"failed to create photo record: {exc.message}") from exc

    async def find(self, user_id: int, local_id: str) -> Photo | None:
        """The photo of that id, or None."""
        table = photos_table(user_id)
        return await self._database.read(lambda db: _find_all(db, table, {local_id}).get(local_id))

    async def record_upload(self, user_id: int, local_id: str, extension: str, size: int) -> None:
        """Note that the file lies on disk, whole and for good."""

        def work(db: sqlite3.Connection) -> None:
            record_file(db, user_id, local_id, extension, size)
            set_uploaded(db, user_id, local_id, extension, uploaded=True)

        await self._database.write(work)


def record_file(
    db: sqlite3.Connection, user_id: int, local_id: str, extension: str, size: int
) -> None:
    """Note the size of a stored file, in the transaction that marks it as uploaded."""
    db.execute(_RECORD_FILE, (user_id, local_id, extension, size, utc_now()))


def set_uploaded(
    db: sqlite3.Connection, user_id: int, local_id: str, extension: str, *, uploaded: bool
) -> None:
    """Mark one extension of a photo as uploaded or not."""
    table = photos_table(user_id)
    photo = _find_all(db, table, {local_id})[local_id]
    extensions = [known for known in photo.uploaded_extensions if known != extension or uploaded]
    if uploaded and extension not in extensions:
        extensions.append(extension)
    db.execute(
        _SET_UPLOADED.format(table=table),
        (_json_list(extensions), len(extensions), utc_now(), local_id),
    )


def _json_list(values: list[str]) -> str:
    """As the API document writes it, without spaces."""
    return json.dumps(values, separators=(",", ":"))


def _find_all(db: sqlite3.Connection, table: str, local_ids: Iterable[str]) -> dict[str, Photo]:
    """The photos of those ids that exist, by id."""
    query = f"SELECT * FROM {table} WHERE local_id IN (SELECT value FROM json_each(?))"  # noqa: S608
    ids = list(local_ids)
    known: dict[str, Photo] = {}
    for first in range(0, len(ids), _IDS_AT_ONCE):
        # One bound parameter for any number of ids: SQLite limits how many there may be.
        rows = db.execute(query, (json.dumps(ids[first : first + _IDS_AT_ONCE]),))
        known.update((row["local_id"], photo_of(row)) for row in rows)
    return known


def photo_of(row: sqlite3.Row) -> Photo:
    """The photo of a row of a photos table."""
    return Photo(
        row["local_id"],
        row["creation_time"],
        row["file_path"],
        row["file_name"],
        row["file_type"],
        row["file_extension"],
        tuple(json.loads(row["uploaded_extensions"])),
    )
