"""Disk and database compared both ways, and mended without losing a byte."""

import errno
import json
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Final

from immich_bridge.backup.catalog import Photo, photo_of, photos_table, record_file, set_uploaded
from immich_bridge.backup.database import Database
from immich_bridge.backup.held_file import expired_files, held_files
from immich_bridge.backup.naming import normal_extension
from immich_bridge.backup.placed_mark import PlacedMark
from immich_bridge.backup.storage import Storage

Progress = Callable[[str, int, int | None], None]
"""Told of long work: its name, how much is done, and of how much if that is known."""

FILE_MISSING: Final = "row without its file"
WRONG_SIZE: Final = "wrong size"
UNKNOWN_FILE: Final = "file without its row"
LEFT_OVER: Final = "left-over temporary file"

_UNDER_WAY_SECONDS: Final = 3600
"""A temporary file that was written to since may be of an upload under way."""


@dataclass(frozen=True)
class Finding:
    """One thing that is not as it should be."""

    kind: str
    path: Path
    detail: str
    remedy: str | None
    """What a repair does, or did; None when only a person can tell what is right."""


@dataclass(frozen=True)
class StoredFile:
    """A file that the database says is there; `size` in bytes."""

    user_id: int
    photo: Photo
    extension: str
    size: int | None

    @property
    def logical(self) -> str:
        """The file as the API names it."""
        return f"{self.photo.folder}{self.photo.stem}.{self.extension}"


class Integrity:
    """Compares `storage` with `database`. May work while the server runs."""

    def __init__(self, database: Database, storage: Storage) -> None:
        self._database = database
        self._storage = storage

    async def check(self, *, repair: bool, progress: Progress) -> list[Finding]:
        """Every discrepancy; with `repair`, those that have a remedy are mended.

        What is removed are temporary files, nothing else. A photo whose file is missing or
        of the wrong size is marked as not uploaded, so that its client sends it again; what
        lies there stays until then. Raises `OSError` when the folder cannot be read.
        """
        stored = await self.stored_files()
        if not self._storage.photos.is_dir():
            if stored:
                # A disk that is not mounted; to mend this would have all photos sent again.
                raise FileNotFoundError(
                    errno.ENOENT, "there is no such folder", str(self._storage.photos)
                )
            return []
        findings = []
        for number, file in enumerate(stored, 1):
            progress("rows", number, len(stored))
            if (finding := await self._check_row(file, repair)) is not None:
                findings.append(finding)
        known = {self._storage.path(file.logical) for file in stored}
        photos = await self._database.read(_photos_by_stem)
        for number, path in enumerate(self._files(), 1):
            progress("files", number, None)
            if path in known:
                continue
            # One that is gone by now was of an upload that has ended.
            with suppress(FileNotFoundError):
                if (finding := await self._check_file(path, photos, repair)) is not None:
                    findings.append(finding)
        for path in expired_files(self._storage):
            with suppress(FileNotFoundError):
                findings.append(_check_temporary(path, repair))
        return findings

    def unfinished(self) -> list[int]:
        """How many bytes have come of each upload that may go on."""
        return [file.size for file in held_files(self._storage)[0]]

    async def settle(self, marks: Sequence[PlacedMark]) -> None:
        """Have rows say what lies on disk, where an upload ended between file and row.

        Each mark goes with what it stood for. Raises `BridgeError` when disk or database do
        not take it.
        """
        photos = await self._database.read(_photos_by_stem) if marks else {}
        for mark in marks:
            stem, _, extension = self._storage.logical(mark.photo).rpartition(".")
            if stem in photos:
                user_id, photo = photos[stem]
                await self._storage.sync_folder(mark.photo.parent)
                await self._database.write(
                    partial(_settle, user_id, photo.local_id, extension, mark.photo)
                )
            await self._storage.disk.remove(*mark.files)

    async def fix_times(
        self, user_id: int | None, *, dry_run: bool, progress: Progress
    ) -> list[Path]:
        """Set the time of each file to the creation time of its photo; the files that differed."""
        stored = await self.stored_files(user_id)
        changed = []
        for number, file in enumerate(stored, 1):
            progress("files", number, len(stored))
            path = self._storage.path(file.logical)
            taken = datetime.fromisoformat(file.photo.creation_time).timestamp()
            if not path.is_file() or abs(path.stat().st_mtime - taken) < 1:
                continue
            if not dry_run:
                with suppress(OSError, OverflowError):
                    os.utime(path, (taken, taken))
                if abs(path.stat().st_mtime - taken) >= 1:
                    continue  # a date that the file system cannot hold
            changed.append(path)
        return changed

    async def stored_files(self, user_id: int | None = None) -> list[StoredFile]:
        """Every file that should be on disk, of one user or of all."""
        return await self._database.read(lambda db: _stored_files(db, user_id))

    async def _check_row(self, file: StoredFile, repair: bool) -> Finding | None:
        path = self._storage.path(file.logical)
        if _fault(path, file.size) is None:
            return None

        def examine(db: sqlite3.Connection) -> Finding | None:
            # Again, and with the row held: a running server may have replaced the file.
            record = _record(db, file.user_id, file.photo.local_id, file.extension)
            kind = _fault(path, record.size) if record.uploaded else None
            if kind is None:
                return None
            if repair:
                photo = (file.user_id, file.photo.local_id, file.extension)
                set_uploaded(db, *photo, uploaded=False)
            detail = f"photo {file.photo.local_id!r} of user {file.user_id}"
            if kind == WRONG_SIZE:
                detail += f": {_size(path)} bytes, stored were {record.size}"
            return Finding(
                kind, path, detail, "marked as not uploaded: its client will send it again"
            )

        return await (self._database.write if repair else self._database.read)(examine)

    async def _check_file(
        self, path: Path, photos: dict[str, tuple[int, Photo]], repair: bool
    ) -> Finding | None:
        if self._storage.is_temporary(path):
            return _check_temporary(path, repair)
        stem, _, extension = self._storage.logical(path).rpartition(".")
        if stem not in photos or normal_extension(extension) != extension:
            return Finding(UNKNOWN_FILE, path, "no photo of that name was ever indexed", None)
        user_id, photo = photos[stem]

        def examine(db: sqlite3.Connection) -> Finding | None:
            record = _record(db, user_id, photo.local_id, extension)
            if record.uploaded:
                return None  # since the rows were read
            detail = f"photo {photo.local_id!r} of user {user_id}"
            size = _size(path)
            if record.size not in (None, size):
                detail += ", not what was stored: its client will send it again"
                return Finding(UNKNOWN_FILE, path, detail, None)
            if repair:
                record_file(db, user_id, photo.local_id, extension, size)
                set_uploaded(db, user_id, photo.local_id, extension, uploaded=True)
            return Finding(UNKNOWN_FILE, path, detail, "entered into the photo's row")

        return await (self._database.write if repair else self._database.read)(examine)

    def _files(self) -> Iterator[Path]:
        for folder, folders, names in os.walk(self._storage.photos, onerror=_raise):
            # What has come of unfinished uploads lies in hidden folders, and is no photo yet.
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            paths = (Path(folder) / name for name in sorted(names))
            yield from (path for path in paths if not self._storage.is_mark(path))


def _raise(error: OSError) -> None:
    # os.walk would pass over a folder that it cannot read, as if it were in order.
    raise error


def _check_temporary(path: Path, repair: bool) -> Finding:
    if time.time() - path.stat().st_mtime < _UNDER_WAY_SECONDS:
        return Finding(LEFT_OVER, path, "less than an hour old, an upload may be under way", None)
    if repair:
        path.unlink(missing_ok=True)
    return Finding(LEFT_OVER, path, "of an interrupted upload", "removed")


def _size(path: Path) -> int:
    return path.stat().st_size


def _fault(path: Path, size: int | None) -> str | None:
    try:
        on_disk = path.stat().st_size
    except (FileNotFoundError, NotADirectoryError):
        return FILE_MISSING
    return WRONG_SIZE if size is not None and on_disk != size else None


def _tables(db: sqlite3.Connection) -> Sequence[int]:
    """The ids of the users that have a photos table, also of those whose account is gone."""
    names = db.execute("SELECT name FROM sqlite_master WHERE name GLOB 'photos_user_[0-9]*'")
    # Whatever else begins like that, such as somebody's copy, is not ours.
    ids = (row["name"].removeprefix("photos_user_") for row in names)
    return sorted(int(number) for number in ids if number.isdecimal())


def _settle(
    user_id: int, local_id: str, extension: str, path: Path, db: sqlite3.Connection
) -> None:
    there = path.is_file()
    if there:
        record_file(db, user_id, local_id, extension, _size(path))
    set_uploaded(db, user_id, local_id, extension, uploaded=there)


def _photos_by_stem(db: sqlite3.Connection) -> dict[str, tuple[int, Photo]]:
    """User and photo by the logical path without extension."""
    photos = {}
    for user_id in _tables(db):
        for row in db.execute(f"SELECT * FROM {photos_table(user_id)}"):  # noqa: S608
            photo = photo_of(row)
            photos[photo.folder + photo.stem] = (user_id, photo)
    return photos


def _stored_files(db: sqlite3.Connection, only: int | None) -> list[StoredFile]:
    sizes = {
        (row["user_id"], row["local_id"], row["extension"]): row["size"]
        for row in db.execute("SELECT * FROM files")
    }
    return [
        StoredFile(user_id, photo, extension, sizes.get((user_id, photo.local_id, extension)))
        for user_id, photo in _photos_by_stem(db).values()
        if only in (None, user_id)
        for extension in photo.uploaded_extensions
    ]


@dataclass(frozen=True)
class _Record:
    uploaded: bool
    size: int | None


def _record(db: sqlite3.Connection, user_id: int, local_id: str, extension: str) -> _Record:
    """What the database knows of one file at this moment."""
    photo = db.execute(
        f"SELECT uploaded_extensions FROM {photos_table(user_id)} WHERE local_id = ?",  # noqa: S608
        (local_id,),
    ).fetchone()
    file = db.execute(
        "SELECT size FROM files WHERE user_id = ? AND local_id = ? AND extension = ?",
        (user_id, local_id, extension),
    ).fetchone()
    uploaded = photo is not None and extension in json.loads(photo["uploaded_extensions"])
    return _Record(uploaded, file["size"] if file else None)
