"""Where photos lie: the folder `STORAGE_DIR`, and what its files are called outside.

Nothing but this module, `chunks.py` and `held_file.py` knows a path.
"""

import fcntl
import os
import secrets
from pathlib import Path
from typing import Final

from immich_bridge.backup.disk import Disk
from immich_bridge.backup.naming import file_number
from immich_bridge.backup.pending_file import ByteSource, PendingFile
from immich_bridge.backup.placed_mark import PlacedMark
from immich_bridge.errors import BadRequest

_LOGICAL_ROOT: Final = "storage/"
"""What paths begin with in the API and the database, wherever the folder really lies."""

_TEMPORARY: Final = ".upload-{}.part"
_BEGUN: Final = ".upload-*"
"""Temporary files, and the marks of photos without a row yet."""
_PROBE_BYTES: Final = 4096


class Storage:
    """The folder of all photos, `STORAGE_DIR`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.photos = root / "photo"
        self.disk = Disk(root)
        self.marks: list[PlacedMark] = []
        """What `prepare` found of a former life: photos that may not be as their rows say."""
        self.alone = False
        """Whether `prepare` found no other process at work here."""
        self._lock: int | None = None

    def prepare(self) -> int:
        """Make the folder, and sweep the temporary files of a former life; how many there were.

        Nothing is swept while another process uses the folder: the files may be its own.
        Raises `OSError` when the folder cannot be made or read.
        """
        self.disk.make_folder(self.photos)
        self._lock = os.open(self.photos, os.O_RDONLY | os.O_DIRECTORY)
        swept = 0
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pass
        else:
            self.alone = True
            for path in self.root.rglob(_BEGUN):
                if mark := PlacedMark.at(path):
                    self.marks.append(mark)
                elif self.is_temporary(path):
                    path.unlink(missing_ok=True)
                    swept += 1
        fcntl.flock(self._lock, fcntl.LOCK_SH)
        return swept

    def close(self) -> None:
        """Let the threads end, and another process sweep."""
        self.disk.close()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def path(self, logical: str) -> Path:
        """Where a path of the API and the database really lies."""
        return self.root / logical.removeprefix(_LOGICAL_ROOT)

    def logical(self, path: Path) -> str:
        """What the API and the database call a file of this storage."""
        return _LOGICAL_ROOT + path.relative_to(self.root).as_posix()

    def is_temporary(self, path: Path) -> bool:
        """Whether a file is one that is written before it has its place."""
        return path.match(_TEMPORARY.format("*"))

    def is_mark(self, path: Path) -> bool:
        """Whether a file is no photo but the mark of one."""
        return PlacedMark.at(path) is not None

    async def sync_folder(self, folder: Path) -> None:
        """Make the entries of `folder` survive a power cut; raises `InternalError` if it fails."""
        await self.disk.run(folder, lambda: self.disk.sync_folder(folder))

    async def check(self) -> None:
        """Return if a file can be written; raise if not."""
        probe = self.pending(self.photos).path

        def write() -> None:
            try:
                with probe.open("xb") as file:
                    file.write(bytes(_PROBE_BYTES))
                    file.flush()
                    os.fsync(file.fileno())
            finally:
                probe.unlink(missing_ok=True)

        await self.disk.run(probe, write)

    async def highest_number(self, folder: str) -> int:
        """The highest number of a photo in a logical folder; 0 if there is none."""
        path = self.path(folder)

        def look() -> int:
            try:
                with os.scandir(path) as files:
                    return max((file_number(file.name) for file in files), default=0)
            except FileNotFoundError:
                return 0

        return await self.disk.run(path, look)

    async def receive(
        self, source: ByteSource, folder: str | None = None, *, limit: int = 0, digest: bool = False
    ) -> PendingFile:
        """All bytes of `source`, to be placed later.

        `folder` is the logical folder where they will be placed, None if that is not known
        yet. Raises `PayloadTooLarge` above `limit` bytes (0: no limit), `BadRequest` for
        none, `InsufficientStorage`, `InternalError`, and whatever `source` raises; nothing is
        left then.
        """
        pending = self.pending(self.path(folder) if folder else self.photos, digest=digest)
        try:
            await pending.receive(source, limit)
            if pending.size == 0:
                raise BadRequest("the file is empty")
        except BaseException:
            await pending.discard()
            raise
        return pending

    def pending(self, directory: Path, *, digest: bool = False) -> PendingFile:
        """A file to be, whose temporary file lies in `directory`."""
        path = directory / _TEMPORARY.format(secrets.token_hex(8))
        return PendingFile(self.disk, path, digest=digest)
