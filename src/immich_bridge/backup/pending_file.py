"""A file that is being received: in memory, then in a temporary file, then in its place.

The order of a safe write: a temporary file in the folder of its destination, so that the
rename stays within one file system; the bytes; the times; fsync of the file; rename, or a second
name; fsync of the folder. A crash at any point leaves the old file or the new one, and at worst a
temporary file, which the next start sweeps away.
"""

import asyncio
import errno
import hashlib
import os
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from io import BufferedWriter
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Final, Protocol

from aiofiles.threadpool import wrap

from immich_bridge.backup.disk import Disk, to_its_end, translated
from immich_bridge.backup.placed_mark import PlacedMark
from immich_bridge.errors import PayloadTooLarge

_FILE_MODE: Final = 0o640
_NO_LINK: Final = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})
_GATHER: Final = 1024 * 1024
"""Bytes that go to the disk's thread at once: a hop costs as much as writing 64 KiB."""


class ByteSource(Protocol):
    """Something that gives bytes piece by piece, and `b""` once they are whole."""

    async def read(self) -> bytes:
        """The next piece. Raises when the end can no longer be reached."""


class PendingFile:
    """Bytes that are not yet in their place. With `digest` their SHA-256 is taken on the way.

    An async context manager: what has not been placed when the context ends is removed.
    """

    def __init__(self, disk: Disk, path: Path, *, digest: bool = False) -> None:
        self.path = path
        """The temporary file, once there is one."""
        self.size = 0
        self._disk = disk
        self._sha256 = hashlib.sha256() if digest else None
        self._gathered: list[bytes] = []
        self._file: BufferedWriter | None = None
        self._writing: asyncio.Future[None] | None = None
        self._placed = False

    async def receive(self, source: ByteSource, limit: int) -> None:
        """Take all that `source` gives; raises `PayloadTooLarge` above `limit` bytes (0: none).

        Up to a gather of it stays in memory: a small photo is made, written, synced and
        renamed in one hop to a thread, by `place`.
        """
        waiting = 0
        while piece := await source.read():
            self.size += len(piece)
            if limit and self.size > limit:
                raise PayloadTooLarge(f"the file is larger than {limit} bytes")
            self._gathered.append(piece)
            waiting += len(piece)
            if waiting >= _GATHER:
                await self._write_behind()
                waiting = 0

    async def link(self, path: Path) -> None:
        """Begin as a second name of the file at `path`, whose bytes are all synced.

        Where the file system has no second names, it loses the one that it has.
        """

        def link() -> None:
            self._disk.make_folder(self.path.parent)
            try:
                os.link(path, self.path)
            except OSError as exc:
                if exc.errno not in _NO_LINK:
                    raise
                path.replace(self.path)
            self._file = self.path.open("ab")
            self.size = self._file.tell()

        await self._disk.run(self.path, link)

    async def fill(self, work: Callable[[BinaryIO], object]) -> None:
        """Write with `work`, in a thread."""

        def write() -> None:
            file = self._opened()
            work(file)
            self.size = file.tell()

        await self._disk.run(self.path, write)

    async def digest(self) -> str:
        """The SHA-256 of all bytes, in hexadecimal digits."""
        assert self._sha256 is not None  # noqa: S101 - asked for when the file was made
        await self._written()
        sha256 = self._sha256.copy()
        for piece in self._gathered:
            sha256.update(piece)
        return sha256.hexdigest()

    async def place(
        self, destination: Path, modified: float | None = None, mark: PlacedMark | None = None
    ) -> None:
        """Put the file at `destination` for good, in place of what is there.

        `modified` (unix seconds) becomes its time; `mark` stays, for the caller to remove.
        Returns when it would survive a power cut; raises `InsufficientStorage` or
        `InternalError`.
        """
        await self._written()

        def settle() -> None:
            if self._file is None:
                self.path = destination.with_name(self.path.name)
            # Synced and closed by the descriptor that wrote: some file systems tell of a
            # failed write to that one alone, and only then.
            with self._opened() as file:
                file.write(b"".join(self._gathered))
                file.flush()
                _set_time(file.fileno(), modified)
                os.fsync(file.fileno())
            self._disk.make_folder(destination.parent)
            if mark is None:
                self.path.replace(destination)
            else:
                if self.path.parent != destination.parent:
                    self.path = self.path.rename(destination.with_name(self.path.name))
                mark.place(self.path)
            try:
                self._disk.sync_folder(destination.parent)
            except OSError:
                # What may not last is not to be seen either.
                if mark is not None:
                    mark.undo(keep=False)
                else:
                    with suppress(OSError):
                        destination.unlink()
                raise

        await self._disk.run(destination, settle)
        self._placed = True

    async def discard(self) -> None:
        """Remove the file, also when the caller is cancelled meanwhile."""
        await to_its_end(asyncio.ensure_future(self._remove()))

    async def _remove(self) -> None:
        self._gathered.clear()
        with suppress(Exception):  # there is an error already, or nobody asks any more
            await self._written()
        if self._file is None:
            return
        file = self._file

        def remove() -> None:
            # Both may fail as any write. There is an error already, and what stays is swept
            # at the next start.
            with suppress(OSError):
                file.close()
            with suppress(OSError):
                self.path.unlink(missing_ok=True)

        await self._disk.run(self.path, remove)

    def _opened(self) -> BufferedWriter:
        """The temporary file, made at first use, and the folder around it."""
        if self._file is None:
            self._disk.make_folder(self.path.parent)
            descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _FILE_MODE)
            self._file = os.fdopen(descriptor, "wb")
        return self._file

    async def _write_behind(self) -> None:
        """Have the gathered bytes written, while the next ones are received."""
        await self._written()
        data = b"".join(self._gathered)
        self._gathered.clear()
        file = await self._disk.run(self.path, self._opened) if self._file is None else self._file
        self._writing = asyncio.ensure_future(self._write(file, data))

    async def _write(self, file: BufferedWriter, data: bytes) -> None:
        await wrap(file, executor=self._disk.executor).write(data)
        if self._sha256 is not None:
            await self._disk.run(self.path, partial(self._sha256.update, data))

    async def _written(self) -> None:
        """Wait for what `_write_behind` has begun."""
        if self._writing is not None:
            writing, self._writing = self._writing, None
            with translated(self.path):
                await to_its_end(writing)

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


def _set_time(descriptor: int, modified: float | None) -> None:
    if modified is not None:
        # A date that the file system cannot hold is no reason to lose a photo.
        with suppress(OSError, OverflowError):
            os.utime(descriptor, (modified, modified))
