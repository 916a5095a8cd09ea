"""Files on disk: whole and for good, or not there at all.

The order of a safe write: a temporary file in the folder of its destination, so that the
rename stays within one file system; the bytes; the times; fsync of the file; rename; fsync
of the folder. A crash at any point leaves the old file or the new one, and at worst a
temporary file, which the next start sweeps away.

Nothing outside this module and `chunks.py` knows a path.
"""

import asyncio
import errno
import logging
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Protocol

import aiofiles

from immich_bridge.errors import BadRequest, InsufficientStorage, InternalError, PayloadTooLarge

_logger = logging.getLogger("immich_bridge.backup")

_LOGICAL_ROOT: Final = "storage/"
"""What paths begin with in the API and the database, wherever the folder really lies."""

_TEMPORARY: Final = ".upload-{}.part"
_FOLDER_MODE: Final = 0o750
_FILE_MODE: Final = 0o640
_GATHER: Final = 1024 * 1024
"""Bytes that go to the disk's thread at once: a hop costs as much as writing 64 KiB."""


class ByteSource(Protocol):
    """Something that gives bytes piece by piece, and `b""` once they are whole."""

    async def read(self) -> bytes:
        """The next piece. Raises when the end can no longer be reached."""


class Storage:
    """The folder of all photos, `STORAGE_DIR`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._photos = root / "photo"

    def prepare(self) -> int:
        """Make the folder and sweep the temporary files of a former life; how many there were.

        Raises `OSError` when the folder cannot be made or read.
        """
        self._photos.mkdir(mode=_FOLDER_MODE, parents=True, exist_ok=True)
        swept = 0
        for path in self.temporary_files():
            path.unlink(missing_ok=True)
            swept += 1
        return swept

    def temporary_files(self) -> Iterator[Path]:
        """What interrupted uploads have left, or running ones use."""
        return self.root.rglob(_TEMPORARY.format("*"))

    def path(self, logical: str) -> Path:
        """Where a path of the API and the database really lies."""
        return self.root / logical.removeprefix(_LOGICAL_ROOT)

    def logical(self, path: Path) -> str:
        """What the API and the database call a file of this storage."""
        return _LOGICAL_ROOT + path.relative_to(self.root).as_posix()

    def is_temporary(self, path: Path) -> bool:
        """Whether a file is one that this module writes before it has its place."""
        return path.match(_TEMPORARY.format("*"))

    async def check(self) -> None:
        """Return if a file can be written; raise if not."""

        def probe() -> None:
            temporary = self._photos / _TEMPORARY.format(secrets.token_hex(8))
            os.close(_create(temporary))
            temporary.unlink()

        with translated("the storage folder"):
            await asyncio.to_thread(probe)

    async def receive(
        self, source: ByteSource, folder: str | None = None, *, limit: int = 0
    ) -> "PendingFile":
        """Write the bytes of `source` to a temporary file, to be placed later.

        `folder` is the logical folder where it will be placed, None if that is not known
        yet. Raises `PayloadTooLarge` above `limit` bytes (0: no limit), `BadRequest` for
        none, `InsufficientStorage`, `InternalError`, and whatever `source` raises; nothing
        is left then.
        """
        pending = self.pending(self.path(folder) if folder else self._photos)
        try:
            await pending.create()
            pending.size = await _copy(source, pending.path, limit)
            if pending.size == 0:
                raise BadRequest("the file is empty")
        except BaseException:
            await pending.discard()
            raise
        return pending

    def pending(self, directory: Path) -> "PendingFile":
        """A temporary file to be, in `directory`."""
        return PendingFile(self, directory / _TEMPORARY.format(secrets.token_hex(8)))

    def make_folder(self, folder: Path) -> None:
        """Make `folder` so that it survives a power cut: each new entry is synced."""
        if folder.is_dir():
            return
        self.make_folder(folder.parent)
        with suppress(FileExistsError):
            folder.mkdir(mode=_FOLDER_MODE)
        sync_folder(folder.parent)


class PendingFile:
    """Bytes that are on disk but not yet in their place.

    An async context manager: what has not been placed when the context ends is removed.
    """

    def __init__(self, storage: Storage, path: Path) -> None:
        self.path = path
        self.size = 0
        self._storage = storage
        self._placed = False

    async def create(self) -> None:
        """Make the file, and the folder around it."""

        def create() -> None:
            self._storage.make_folder(self.path.parent)
            os.close(_create(self.path))

        with translated(self.path):
            await finish(create)

    async def discard(self) -> None:
        """Remove the file."""
        with translated(self.path):
            await finish(lambda: self.path.unlink(missing_ok=True))

    async def place(self, logical: str, modified: float) -> None:
        """Put the file at `logical` for good, in place of what is there.

        `modified` (unix seconds) becomes its time. Returns when it would survive a power
        cut; raises `InsufficientStorage` or `InternalError`.
        """
        await self.move(self._storage.path(logical), modified)

    async def move(self, destination: Path, modified: float | None = None) -> None:
        """`place` for a path of the caller's own making."""

        def settle() -> None:
            self._storage.make_folder(destination.parent)
            descriptor = os.open(self.path, os.O_RDONLY)
            try:
                if modified is not None:
                    # A date that the file system cannot hold is no reason to lose a photo.
                    with suppress(OSError, OverflowError):
                        os.utime(descriptor, (modified, modified))
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            self.path.replace(destination)
            sync_folder(destination.parent)

        with translated(destination):
            await finish(settle)
        self._placed = True

    async def __aenter__(self) -> "PendingFile":
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if not self._placed:
            await self.discard()


async def finish(work: Callable[[], None]) -> None:
    """Run `work` in a thread to its end, also when the caller is cancelled meanwhile."""
    task = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        if not task.cancelled():
            task.exception()  # looked at, so that asyncio does not complain
        raise


@contextmanager
def translated(what: object) -> Iterator[None]:
    """Turn an `OSError` into the error that its client gets; the log names the path."""
    try:
        yield
    except OSError as exc:
        _logger.error("cannot write %s: %s", what, exc)
        if exc.errno in (errno.ENOSPC, errno.EDQUOT):
            raise InsufficientStorage("the storage is full") from exc
        raise InternalError(f"the file cannot be stored: {exc.strerror}") from exc


def sync_folder(folder: Path) -> None:
    """Make the entries of `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _create(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _FILE_MODE)


async def _copy(source: ByteSource, path: Path, limit: int) -> int:
    """Write all that `source` gives to `path`, gathered; how many bytes there were."""
    size = 0
    gathered: list[bytes] = []
    waiting = 0
    with translated(path):
        file = await aiofiles.open(path, "wb")
    try:
        while piece := await source.read():
            size += len(piece)
            if limit and size > limit:
                raise PayloadTooLarge(f"the file is larger than {limit} bytes")
            gathered.append(piece)
            waiting += len(piece)
            if waiting >= _GATHER:
                with translated(path):
                    await file.write(b"".join(gathered))
                gathered.clear()
                waiting = 0
        with translated(path):
            await file.write(b"".join(gathered))
            await file.flush()
    finally:
        # Closing flushes, and can fail as any write; by then there is an error already.
        with suppress(OSError):
            await asyncio.shield(file.close())
    return size
