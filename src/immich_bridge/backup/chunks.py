"""Photos that come in chunks: kept until all are there, then joined into one file.

The chunks of a photo lie as files in a folder of their own, so that they outlive a restart
and can come in any order and at the same time. Each bears the digest of its bytes in its name:
a chunk that comes again with other bytes is of another version of the photo, and chunks of two
versions must never be joined. It also bears in its name which photo it is to replace: once
another one lies there, stored whole or from other chunks, it is worth nothing any more.
"""

import hashlib
import json
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from immich_bridge.backup.chunk_files import (
    ChunkFile,
    are_joined_at,
    are_outdated,
    chunk_name,
    chunks_in,
    copy_in_order,
    photo_at,
)
from immich_bridge.backup.pending_file import PendingFile
from immich_bridge.backup.storage import Storage
from immich_bridge.backup.uploads import Destination, Uploads
from immich_bridge.errors import BridgeError, PayloadTooLarge

MAX_CHUNKS: Final = 10_000
_ABANDONED_SECONDS: Final = 24 * 3600
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
        self._begun: dict[str, set[Path]] = {}
        """The folders known to hold chunks, by the path of the file that they are for."""
        uploads.when_stored(self._remove_outdated)

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
            self._begun.setdefault(chunks.destination.path, set()).add(folder)
            there, replaces = await self._storage.disk.run(
                folder, lambda: self._matching(chunks, number, digest)
            )
            if number in there:
                await self._storage.disk.run(folder, partial(os.utime, folder))  # a sign of life
            else:
                together = sum(chunk.size for chunk in there.values()) + pending.size
                if self._max_total and together > self._max_total:
                    # They can never be joined. The answer is the same if they cannot be removed.
                    with suppress(BridgeError):
                        await self._remove(chunks)
                    raise PayloadTooLarge(f"the photo is larger than {self._max_total} bytes")
                path = folder / chunk_name(number, digest, replaces)
                await pending.place(path)
                there[number] = ChunkFile(path, digest, pending.size, replaces)
            if len(there) < chunks.total:
                return sorted(there), None
            return sorted(there), await self._join(chunks, there)

    async def _join(self, chunks: ChunkSet, there: Mapping[int, ChunkFile]) -> int:
        """Make one file of all chunks, and leave a note of it in their place; its size."""
        folder = self._root / chunks.folder
        joined = self._storage.pending(self._storage.path(chunks.destination.path).parent)
        place = self._storage.path(chunks.destination.path)
        async with joined:
            await joined.fill(partial(copy_in_order, there))
            written = await self._storage.disk.run(joined.path, lambda: _identity(joined.path))
            self._forget(chunks.destination, folder)  # it is removed below
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
            await self._remove(chunks)
        return joined.size

    async def _remove(self, chunks: ChunkSet) -> None:
        """Remove all that is there of it; who calls this holds its lock."""
        folder = self._root / chunks.folder
        await self._storage.disk.run(folder, partial(self._storage.disk.remove_folder, folder))
        self._forget(chunks.destination, folder)

    def _forget(self, destination: Destination, folder: Path) -> None:
        folders = self._begun.get(destination.path, set())
        folders.discard(folder)
        if not folders:
            self._begun.pop(destination.path, None)

    def _remove_outdated(self, destination: Destination) -> None:
        """Have the chunks removed that came before the photo that was stored just now.

        The upload does not wait for it: a chunk under way holds the lock of its set. Those
        that stay, after a crash say, are told by their names when the next one comes.
        """
        for folder in self._begun.get(destination.path, ()):
            self._uploads.begin(self._remove_if_outdated(destination, folder))

    async def _remove_if_outdated(self, destination: Destination, folder: Path) -> None:
        place = self._storage.path(destination.path)

        def remove() -> bool:
            there = chunks_in(folder)
            if there and not are_outdated(there, photo_at(place)):
                return False
            self._storage.disk.remove_folder(folder)
            return True

        async with self._uploads.lock(str(folder)):
            if await self._storage.disk.run(folder, remove):
                self._forget(destination, folder)

    async def sweep(self) -> int:
        """Remove the chunks of uploads that nobody has gone on with for a day; how many."""
        known = {folder for folders in self._begun.values() for folder in folders}
        paths = await self._storage.disk.run(self._root, lambda: list(self._root.glob("*/*")))
        swept = set()
        for path in paths:
            async with self._uploads.lock(str(path.with_suffix(""))):
                if await self._storage.disk.run(path, partial(self._remove_if_old, path)):
                    swept.add(path)
        gone = known.difference(paths) | swept
        begun = ((file, folders - gone) for file, folders in self._begun.items())
        self._begun = {file: folders for file, folders in begun if folders}
        return len(swept)

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

    def _matching(
        self, chunks: ChunkSet, number: int, digest: str
    ) -> tuple[dict[int, ChunkFile], str]:
        """The chunks that are there, by number; none if they are of another version of it.

        And which photo a chunk that comes now is to replace.
        """
        folder = self._root / chunks.folder
        place = self._storage.path(chunks.destination.path)
        there, replaces = chunks_in(folder), photo_at(place)
        same = number not in there or there[number].digest == digest
        if same and are_outdated(there, replaces):
            # All of them, and the photo as they make it: they were joined, but no note of it was
            # left before a kill. They are joined again, to the same end.
            complete = number in there and len(there) == chunks.total
            same = complete and are_joined_at(there, place)
        if not same:
            self._storage.disk.remove_folder(folder)
            return {}, replaces
        return there, replaces

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
