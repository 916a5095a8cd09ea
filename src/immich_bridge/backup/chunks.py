"""Photos that come in chunks: kept until all are there, then joined into one file.

The chunks of a photo lie as files in a folder of their own, so that they outlive a restart
and can come in any order and at the same time. Each bears the digest of its bytes in its name:
a chunk that comes again with other bytes is of another version of the photo, and chunks of two
versions must never be joined.
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO, Final

from immich_bridge.backup.pending_file import PendingFile
from immich_bridge.backup.storage import Storage
from immich_bridge.backup.uploads import Destination, Uploads
from immich_bridge.errors import BridgeError, PayloadTooLarge

MAX_CHUNKS: Final = 10_000
_ABANDONED_SECONDS: Final = 24 * 3600
_COPY_BUFFER: Final = 1024 * 1024
_DONE: Final = ".done"
"""Ending of the note that remains of a joined set, for clients whose last answer was lost."""


@dataclass(frozen=True)
class ChunkSet:
    """The chunks of one file: how many there are, and the client's own name for the upload.

    `upload_id` may be empty; with one, chunks that an abandoned upload has left are never
    taken for chunks of this one.
    """

    destination: Destination
    total: int
    upload_id: str = ""

    @property
    def folder(self) -> Path:
        """Where they lie, below the folder of all chunks."""
        # Ids are free text: as a digest they can name a folder.
        photo = self.destination.photo.local_id
        name = "\0".join((photo, self.destination.extension, str(self.total), self.upload_id))
        digest = hashlib.sha256(name.encode()).hexdigest()
        return Path(str(self.destination.user_id)) / digest


@dataclass(frozen=True)
class _Chunk:
    path: Path
    digest: str
    size: int


class Chunks:
    """The chunks of all photos under way.

    They lie beside the photos, since a folder cannot be renamed from one file system to
    another, and `STORAGE_DIR/photo` may be one of its own.
    """

    def __init__(self, storage: Storage, uploads: Uploads, *, max_total: int) -> None:
        self._root = storage.photos / ".chunks"
        self._storage = storage
        self._uploads = uploads
        self._max_total = max_total

    async def add(
        self, pending: PendingFile, chunks: ChunkSet, number: int
    ) -> tuple[list[int], int | None]:
        """Keep chunk `number`; join them all when it was the last one missing.

        Gives the numbers that are there, and the size of the photo once it is stored.
        Raises `PayloadTooLarge` when the chunks together are larger than allowed.
        """
        return await self._uploads.to_its_end(self._add(pending, chunks, number))

    async def _add(
        self, pending: PendingFile, chunks: ChunkSet, number: int
    ) -> tuple[list[int], int | None]:
        folder = self._root / chunks.folder
        async with pending, self._uploads.lock(str(folder)):
            digest = await pending.digest()
            size = await self._storage.disk.run(
                folder, lambda: self._size_if_done(chunks, number, digest)
            )
            if size is not None and await self._uploads.is_recorded(chunks.destination):
                return list(range(chunks.total)), size
            there = await self._storage.disk.run(
                folder, lambda: self._matching(folder, number, digest)
            )
            if number in there:
                await self._storage.disk.run(folder, partial(os.utime, folder))  # a sign of life
            else:
                together = sum(chunk.size for chunk in there.values()) + pending.size
                if self._max_total and together > self._max_total:
                    raise PayloadTooLarge(f"the photo is larger than {self._max_total} bytes")
                path = folder / f"{number}-{digest}"
                await pending.place(path)
                there[number] = _Chunk(path, digest, pending.size)
            if len(there) < chunks.total:
                return sorted(there), None
            return sorted(there), await self._join(chunks, there)

    async def _join(self, chunks: ChunkSet, there: Mapping[int, _Chunk]) -> int:
        """Make one file of all chunks, and leave a note of it in their place; its size."""
        folder = self._root / chunks.folder
        joined = self._storage.pending(self._storage.path(chunks.destination.path).parent)
        place = self._storage.path(chunks.destination.path)
        async with joined:
            await joined.fill(partial(_copy_in_order, there))
            written = await self._storage.disk.run(joined.path, lambda: _identity(joined.path))
            await self._uploads.complete(joined, chunks.destination, "chunk")
        # The photo is stored for good: what fails now is in the log, no reason to say it is not.
        with suppress(BridgeError):
            placed = await self._storage.disk.run(place, lambda: _identity(place))
            # Another upload may have taken its place already; then there is nothing to note.
            if written and placed and written["inode"] == placed["inode"]:
                digests = {n: chunk.digest for n, chunk in there.items()}
                note = json.dumps({"size": joined.size, "digests": digests, "file": placed})
                pending = self._storage.pending(folder.parent)
                async with pending:
                    await pending.fill(lambda file: file.write(note.encode()))
                    await pending.place(folder.with_suffix(_DONE))
            await self._storage.disk.run(folder, partial(self._storage.disk.remove_folder, folder))
        return joined.size

    async def sweep(self) -> int:
        """Remove the chunks of uploads that nobody has gone on with for a day; how many."""
        paths = await self._storage.disk.run(self._root, lambda: list(self._root.glob("*/*")))
        swept = 0
        for path in paths:
            async with self._uploads.lock(str(path.with_suffix(""))):
                swept += await self._storage.disk.run(path, partial(self._remove_if_old, path))
        return swept

    def _size_if_done(self, chunks: ChunkSet, number: int, digest: str) -> int | None:
        """The size of the photo if this chunk of it was joined already, else None.

        Only while the photo is there as it was joined: one that was lost or replaced has to
        be stored again.
        """
        path = (self._root / chunks.folder).with_suffix(_DONE)
        try:
            note = json.loads(path.read_bytes())
        except FileNotFoundError:
            return None
        file = _identity(self._storage.path(chunks.destination.path))
        if note["digests"].get(str(number)) == digest and note["file"] == file:
            return int(note["size"])
        path.unlink()  # a new version of the photo begins
        return None

    def _matching(self, folder: Path, number: int, digest: str) -> dict[int, _Chunk]:
        """The chunks that are there, by number; none if they are of another version of it."""
        chunks = {}
        # Every chunk looks at all that came before it: pathlib would take five times as long.
        with suppress(FileNotFoundError), os.scandir(folder) as files:
            for file in files:
                name, _, written = file.name.partition("-")
                if name.isdigit():
                    chunks[int(name)] = _Chunk(Path(file.path), written, file.stat().st_size)
        if number in chunks and chunks[number].digest != digest:
            self._storage.disk.remove_folder(folder)
            return {}
        return chunks

    def _remove_if_old(self, path: Path) -> bool:
        with suppress(FileNotFoundError):
            if path.stat().st_mtime < time.time() - _ABANDONED_SECONDS:
                if path.is_dir():
                    self._storage.disk.remove_folder(path)
                else:
                    path.unlink()
                return True
        return False


def _identity(path: Path) -> dict[str, int] | None:
    """What tells a file from any that takes its place or changes it; None if there is none."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return {"inode": status.st_ino, "changed": status.st_ctime_ns, "size": status.st_size}


def _copy_in_order(chunks: Mapping[int, _Chunk], joined: BinaryIO) -> None:
    for number in sorted(chunks):
        with chunks[number].path.open("rb") as chunk:
            shutil.copyfileobj(chunk, joined, _COPY_BUFFER)
