"""Files on disk: whole and for good, or not there at all.

The order of a safe write: a temporary file in the folder of its destination, so that the
rename stays within one file system; the bytes; the times; fsync of the file; rename; fsync
of the folder. A crash at any point leaves the old file or the new one, and at worst a
temporary file, which the next start sweeps away.

Nothing outside this module and `chunks.py` knows a path.
"""

import asyncio
import errno
import fcntl
import logging
import os
import secrets
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from io import BufferedWriter
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Final, Protocol, TypeVar

from aiofiles.threadpool import wrap

from immich_bridge.errors import BadRequest, InsufficientStorage, InternalError, PayloadTooLarge

T = TypeVar("T")

_logger = logging.getLogger("immich_bridge.backup")

_LOGICAL_ROOT: Final = "storage/"
"""What paths begin with in the API and the database, wherever the folder really lies."""

_TEMPORARY: Final = ".upload-{}.part"
_FOLDER_MODE: Final = 0o750
_FILE_MODE: Final = 0o640
_PROBE_BYTES: Final = 4096
_THREADS: Final = 32
"""Uploads that the disk works for at once; each waits in its thread for the disk to sync."""
_GATHER: Final = 1024 * 1024
"""Bytes that go to the disk's thread at once: a hop costs as much as writing 64 KiB."""


class ByteSource(Protocol):
    """Something that gives bytes piece by piece, and `b""` once they are whole."""

    async def read(self) -> bytes:
        """The next piece. Raises when the end can no longer be reached."""


class Storage:
    """The folder of all photos, `STORAGE_DIR`.

    Its work is done by threads of its own: a slow disk must not hold up what else needs one.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.photos = root / "photo"
        self.executor = ThreadPoolExecutor(_THREADS, thread_name_prefix="storage")
        self._synced: set[Path] = set()
        self._lock: int | None = None

    def prepare(self) -> int:
        """Make the folder, and sweep the temporary files of a former life; how many there were.

        Nothing is swept while another process uses the folder: the files may be its own.
        Raises `OSError` when the folder cannot be made or read.
        """
        self.make_folder(self.photos)
        self._lock = os.open(self.photos, os.O_RDONLY | os.O_DIRECTORY)
        swept = 0
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pass
        else:
            for path in self.temporary_files():
                path.unlink(missing_ok=True)
                swept += 1
        fcntl.flock(self._lock, fcntl.LOCK_SH)
        return swept

    def close(self) -> None:
        """Let the threads end, and another process sweep."""
        self.executor.shutdown()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

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
        probe = self.pending(self.photos)
        async with probe:
            await probe.fill(lambda file: file.write(bytes(_PROBE_BYTES)))

    async def receive(
        self,
        source: ByteSource,
        folder: str | None = None,
        *,
        modified: float | None = None,
        limit: int = 0,
    ) -> "PendingFile":
        """Write the bytes of `source` to a temporary file, to be placed later.

        `folder` is the logical folder where it will be placed and `modified` (unix seconds)
        its time, None if that is not known yet. Raises `PayloadTooLarge` above `limit` bytes
        (0: no limit), `BadRequest` for none, `InsufficientStorage`, `InternalError`, and
        whatever `source` raises; nothing is left then.
        """
        pending = self.pending(self.path(folder) if folder else self.photos)
        try:
            await pending.receive(source, modified, limit)
            if pending.size == 0:
                raise BadRequest("the file is empty")
        except BaseException:
            await pending.discard()
            raise
        return pending

    def pending(self, directory: Path) -> "PendingFile":
        """A temporary file to be, in `directory`."""
        return PendingFile(self, directory / _TEMPORARY.format(secrets.token_hex(8)))

    async def run(self, what: object, work: Callable[[], T]) -> T:
        """Run `work` in a thread to its end, also when the caller is cancelled meanwhile.

        An `OSError` becomes the error that the client gets; `what` names it in the log.
        """
        task = asyncio.get_running_loop().run_in_executor(self.executor, work)
        cancelled: asyncio.CancelledError | None = None
        while not task.done():
            try:
                await asyncio.wait({task})
            except asyncio.CancelledError as exc:
                cancelled = exc
        if cancelled is not None:
            task.exception()  # looked at, so that asyncio does not complain
            raise cancelled
        with translated(what):
            return task.result()

    def make_folder(self, folder: Path) -> None:
        """Make `folder` so that it survives a power cut.

        A folder that was there already may be one whose maker was killed, or has not come
        to its sync yet: so each entry is synced once a process.
        """
        exists = folder.is_dir()
        if exists and folder in self._synced:
            return
        if not exists:
            self.make_folder(folder.parent)
            with suppress(FileExistsError):
                folder.mkdir(mode=_FOLDER_MODE)
        # What lies above STORAGE_DIR may be closed to us, and is seldom ours to make.
        with suppress(PermissionError) if self.root not in folder.parents else nullcontext():
            sync_folder(folder.parent)
        self._synced.add(folder)


class PendingFile:
    """Bytes that are on disk but not yet in their place.

    An async context manager: what has not been placed when the context ends is removed.
    """

    def __init__(self, storage: Storage, path: Path) -> None:
        self.path = path
        self.size = 0
        self._storage = storage
        self._file: BufferedWriter | None = None
        self._modified: float | None = None
        self._placed = False

    async def receive(self, source: ByteSource, modified: float | None, limit: int) -> None:
        """Write all that `source` gives, gathered, and sync it."""
        gathered: list[bytes] = []
        waiting = 0
        while piece := await source.read():
            self.size += len(piece)
            if limit and self.size > limit:
                raise PayloadTooLarge(f"the file is larger than {limit} bytes")
            gathered.append(piece)
            waiting += len(piece)
            if waiting >= _GATHER:
                if self._file is None:
                    await self._storage.run(self.path, self._open)
                await self._write(b"".join(gathered))
                gathered.clear()
                waiting = 0

        def settle() -> None:
            # Synced and closed by the descriptor that wrote: some file systems tell of a
            # failed write to that one alone, and only then.
            with self._file or self._open() as file:
                file.write(b"".join(gathered))
                file.flush()
                _set_time(file.fileno(), modified)
                os.fsync(file.fileno())

        # A photo of less than a gather is written, synced and closed in this one hop.
        await self._storage.run(self.path, settle)
        self._modified = modified

    async def fill(self, work: Callable[[BinaryIO], object], modified: float | None = None) -> None:
        """Write with `work`, in a thread, and sync it."""

        def write() -> None:
            with self._open() as file:
                work(file)
                self.size = file.tell()
                file.flush()
                _set_time(file.fileno(), modified)
                os.fsync(file.fileno())

        await self._storage.run(self.path, write)
        self._modified = modified

    async def discard(self) -> None:
        """Remove the file."""

        def remove() -> None:
            if self._file is not None:
                # To close flushes, and may fail as any write: there is an error already.
                with suppress(OSError):
                    self._file.close()
            self.path.unlink(missing_ok=True)

        await self._storage.run(self.path, remove)

    async def place(self, logical: str, modified: float) -> None:
        """Put the file at `logical` for good, in place of what is there.

        `modified` (unix seconds) becomes its time. Returns when it would survive a power
        cut; raises `InsufficientStorage` or `InternalError`.
        """
        await self.move(self._storage.path(logical), modified)

    async def move(self, destination: Path, modified: float | None = None) -> None:
        """`place` for a path of the caller's own making."""

        def move() -> None:
            self._storage.make_folder(destination.parent)
            if modified != self._modified:
                descriptor = os.open(self.path, os.O_RDONLY)
                try:
                    _set_time(descriptor, modified)
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)
            self.path.replace(destination)
            sync_folder(destination.parent)

        await self._storage.run(destination, move)
        self._placed = True

    def _open(self) -> BufferedWriter:
        """Make the file, and the folder around it."""
        self._storage.make_folder(self.path.parent)
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _FILE_MODE)
        self._file = os.fdopen(descriptor, "wb")
        return self._file

    async def _write(self, data: bytes) -> None:
        file = wrap(self._file, executor=self._storage.executor)
        with translated(self.path):
            await file.write(data)

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


def _set_time(descriptor: int, modified: float | None) -> None:
    if modified is not None:
        # A date that the file system cannot hold is no reason to lose a photo.
        with suppress(OSError, OverflowError):
            os.utime(descriptor, (modified, modified))
