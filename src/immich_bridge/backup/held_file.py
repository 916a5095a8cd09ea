"""What has come of an upload that goes on where it was cut off: on disk, beyond a restart.

Each upload has two files in a folder of their own: the part file, in whose name stands how many
of its bytes are durable, and a record of what they are. Bytes are synced first and counted in
the name then. So after a power cut, which may leave anything behind the last sync, the name
tells how far the file can be believed, and the rest is cut off.
"""

import asyncio
import hashlib
import json
import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Final

from immich_bridge.backup.disk import to_its_end
from immich_bridge.backup.pending_file import ByteSource, PendingFile
from immich_bridge.backup.storage import Storage
from immich_bridge.digests import ExpectedDigest
from immich_bridge.errors import BridgeError, NotFound

HOLD_SECONDS: Final = 24 * 3600.0
"""For how long an upload is kept that nobody goes on with."""
_FOLDER: Final = ".held"
_FILE_MODE: Final = 0o640
_RECORD: Final = ".json"
_PART: Final = re.compile(r"([0-9a-f]{64})-([0-9]{1,18})\.part")
_GATHER: Final = 1024 * 1024
"""Bytes that go to the disk's thread at once."""
_SYNC_EVERY: Final = 8 * 1024 * 1024
"""Bytes after which those that came are made durable, though the upload goes on: as many at most
have to be sent again after a kill or a power cut."""
_READ: Final = 1024 * 1024


@dataclass(frozen=True)
class HeldRecord:
    """What an upload is of, and what was said of it when it began."""

    user_id: int
    local_id: str
    file_type: str
    length: int | None
    """Bytes of all of it, if that was said."""
    digests: Sequence[Sequence[str]]
    """The header fields, name and value, that promise checksums of all of it."""


class HeldFile:
    """The bytes that have come of one upload, named `name`.

    `size` counts those that are durable, which between two calls are all of them.
    """

    def __init__(self, storage: Storage, name: str, record: HeldRecord, size: int = 0) -> None:
        self.name = name
        self.record = record
        self.size = size
        self.lost = False
        """Whether the file was found to be no longer what it has to be."""
        self._storage = storage
        self._folder = _folder(storage)
        # Not the name itself, by which the upload can be reached: paths get into logs.
        self._digest = hashlib.sha256(name.encode()).hexdigest()
        self._gathered: list[bytes] = []
        self._waiting = 0
        self._writing: asyncio.Future[None] | None = None
        self._descriptor: int | None = None
        self._end = size
        self._failed = False

    @property
    def path(self) -> Path:
        """The part file."""
        return self._folder / f"{self._digest}-{self.size}.part"

    @property
    def record_path(self) -> Path:
        """The record."""
        return self._folder / f"{self._digest}{_RECORD}"

    @property
    def idle(self) -> float:
        """Seconds since the last byte came; to be asked in a thread."""
        # When a file gets its place it gets the time of the photo too: hence the later of two.
        return time.time() - max(p.stat().st_mtime for p in (self.path, self.record_path))

    async def create(self) -> None:
        """Make both files. When this returns they survive a power cut."""
        await self._storage.disk.run(self.path, self._make_part)
        text = json.dumps({"name": self.name, **asdict(self.record)})
        async with self._storage.pending(self._folder) as pending:
            await pending.fill(lambda file: file.write(text.encode()))
            await pending.place(self.record_path)  # and syncs the folder that both are in

    async def append(self, source: ByteSource) -> None:
        """Add all that `source` gives; of one that fails what came until then.

        When this returns or raises, `size` does not move any more. Raises what `source` raises,
        `InsufficientStorage`, `InternalError`, and `NotFound` for a file that is lost.
        """
        try:
            while piece := await source.read():
                self._gathered.append(piece)
                self._waiting += len(piece)
                if self._waiting >= _GATHER:
                    await self._write_behind()
        except BaseException:
            with suppress(BridgeError):  # there is an error already
                await to_its_end(asyncio.ensure_future(self._settle()))
            raise
        await to_its_end(asyncio.ensure_future(self._settle()))

    async def check(self, digests: Sequence[ExpectedDigest]) -> None:
        """Raise `ChecksumMismatch` unless the bytes are those that were promised."""

        def read() -> None:
            with os.fdopen(self._opened(), "rb") as file:
                while block := file.read(_READ):
                    for digest in digests:
                        digest.update(block)

        if digests:
            await self._storage.disk.run(self.path, read)
        for digest in digests:
            digest.check()

    async def pending(self, folder: Path) -> PendingFile:
        """All bytes, to be placed in `folder`; until `remove` they are kept here as well."""
        await self._storage.disk.run(self.path, lambda: os.close(self._opened()))
        pending = self._storage.pending(folder)
        await pending.link(self.path)
        return pending

    async def remove(self) -> None:
        """Remove both files, as far as that can be done; the next start sees to the rest."""

        def remove() -> None:
            # The record first: a part without one is nobody's.
            for path in (self.record_path, self.path):
                with suppress(OSError):
                    path.unlink(missing_ok=True)

        await self._storage.disk.run(self.path, remove)

    async def _write_behind(self) -> None:
        """Have the gathered bytes written, while the next ones are received."""
        await self._written()
        work = partial(self._write, self._take_gathered())
        self._writing = asyncio.ensure_future(self._storage.disk.run(self.path, work))

    async def _written(self) -> None:
        if self._writing is not None:
            writing, self._writing = self._writing, None
            await to_its_end(writing)

    async def _settle(self) -> None:
        """Make durable what has come, and close the file."""
        try:
            await self._written()
            work = partial(self._write, self._take_gathered())
            await self._storage.disk.run(self.path, work)
        finally:
            self._gathered.clear()
            await self._storage.disk.run(self.path, self._close)

    def _take_gathered(self) -> bytes:
        data = b"".join(self._gathered)
        self._gathered.clear()
        self._waiting = 0
        return data

    def _make_part(self) -> None:
        self._storage.disk.make_folder(self._folder)
        os.close(os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _FILE_MODE))

    def _opened(self) -> int:
        """A descriptor of the part file, of which nothing is left but what is durable.

        Raises `NotFound` when less is there, or when it has another name: then it is a photo in
        its place, which must not change.
        """
        try:
            descriptor = os.open(self.path, os.O_RDWR)
        except FileNotFoundError:
            self.lost = True
            raise NotFound("the upload is no longer there") from None
        try:
            if not _is_whole(os.fstat(descriptor), self.size):
                self.lost = True
                raise NotFound("the upload is no longer what it was")
            os.ftruncate(descriptor, self.size)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def _write(self, data: bytes) -> None:
        if self._failed or not data:
            return  # behind a gap nothing is of use
        try:
            if self._descriptor is None:
                self._end = self.size
                self._descriptor = self._opened()
            rest = memoryview(data)
            while rest:
                written = os.pwrite(self._descriptor, rest, self._end)
                self._end += written
                rest = rest[written:]
            if self._end - self.size >= _SYNC_EVERY:
                self._sync(self._descriptor)
        except BaseException:
            self._failed = True
            raise

    def _sync(self, descriptor: int) -> None:
        """Make durable what was written, then say so in the name."""
        before, size, self._end = self.path, self._end, self.size
        # A sync that fails tells of lost bytes once, and never again: until all has
        # succeeded, what is behind `size` counts for nothing.
        os.fsync(descriptor)
        after = before.rename(self._folder / f"{self._digest}-{size}.part")
        try:
            self._storage.disk.sync_folder(self._folder)
        except OSError:
            after.rename(before)
            raise
        self.size = self._end = size

    def _close(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        self._failed = False
        if descriptor is None:
            return
        try:
            if self._end > self.size:
                self._sync(descriptor)
        finally:
            os.close(descriptor)


def held_files(storage: Storage) -> tuple[list[HeldFile], list[Path]]:
    """The unfinished uploads of `storage`, and files there that are of none. Blocks."""
    found: list[HeldFile] = []
    records, parts = _listed(_folder(storage))
    rest = {*records.values(), *(path for path, _ in parts.values())}
    for digest in records.keys() & parts.keys():
        path, size = parts[digest]
        with suppress(OSError, ValueError, TypeError, KeyError, AttributeError):
            fields = json.loads(records[digest].read_bytes())
            file = HeldFile(storage, fields.pop("name"), HeldRecord(**fields), size)
            if file.path == path and _is_whole(path.stat(), size):
                found.append(file)
                rest -= {path, file.record_path}
    return found, sorted(rest)


def expired_files(storage: Storage) -> Iterator[Path]:
    """The files with which nobody will go on: of no upload, or of one that is too old. Blocks."""
    files, rest = held_files(storage)
    # Looked at twice: a running server may have renamed one of them just then.
    yield from sorted({*rest} & {*held_files(storage)[1]})
    for file in files:
        with suppress(FileNotFoundError):
            if file.idle > HOLD_SECONDS:
                yield from (file.record_path, file.path)


def _folder(storage: Storage) -> Path:
    # Beside the photos, since no file gets a second name on another file system; and no file in
    # it is called as the temporary ones are that each start sweeps away.
    return storage.photos / _FOLDER


def _listed(folder: Path) -> tuple[dict[str, Path], dict[str, tuple[Path, int]]]:
    """Records, and part files with their sizes, by the digest in their names."""
    records, parts = {}, {}
    with suppress(FileNotFoundError):
        for path in folder.iterdir():
            if path.suffix == _RECORD:
                records[path.stem] = path
            elif match := _PART.fullmatch(path.name):
                parts[match[1]] = (path, int(match[2]))
    return records, parts


def _is_whole(status: os.stat_result, size: int) -> bool:
    """Whether a part file has all of its durable bytes, and is not a photo in its place as well."""
    return status.st_size >= size and status.st_nlink == 1
