"""Work on a disk: in threads of its own, to its end, with errors that a client understands."""

import asyncio
import errno
import itertools
import logging
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Final, TypeVar
from weakref import WeakValueDictionary

from immich_bridge.backup.lane import Lane
from immich_bridge.errors import InsufficientStorage, InternalError

T = TypeVar("T")

_logger = logging.getLogger("immich_bridge.backup")

_FOLDER_MODE: Final = 0o750
_REMOVED: Final = ".removed"
"""Ending of the name of a folder that is being removed."""
_THREADS: Final = 32
"""Uploads that the disk works for at once; each waits in its thread for the disk to sync."""


class Disk:
    """What lies below `root`.

    Its work is done by threads of its own: a slow disk must not hold up what else needs one.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.executor = ThreadPoolExecutor(_THREADS, thread_name_prefix="disk")
        self._removals = Lane(self._remove_all)
        self._synced: set[Path] = set()
        self._folder_syncs: WeakValueDictionary[Path, _FolderSync] = WeakValueDictionary()
        self._folder_syncs_lock = threading.Lock()

    def close(self) -> None:
        """Let the threads end."""
        self.executor.shutdown()

    async def run(self, what: object, work: Callable[[], T]) -> T:
        """Run `work` in a thread to its end, also when the caller is cancelled meanwhile.

        An `OSError` becomes the error that the client gets; `what` names it in the log.
        """
        with translated(what):
            return await to_its_end(asyncio.get_running_loop().run_in_executor(self.executor, work))

    async def remove(self, *paths: Path) -> None:
        """Remove files, of which it does no harm that they stay: what fails is passed over.

        Those that come at the same time share a hop to a thread.
        """
        await self._removals.run(paths)

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
        # What lies above the root may be closed to us, and is seldom ours to make.
        with suppress(PermissionError) if self.root not in folder.parents else nullcontext():
            sync_folder(folder.parent)
        self._synced.add(folder)

    def remove_folder(self, folder: Path) -> None:
        """Remove `folder` with all that is in it, by its name at one stroke.

        A crash leaves all of it by that name or nothing: who finds some of its files there
        may take them for what they are not. Raises `OSError` when the name stays.
        """
        removed = folder.with_suffix(_REMOVED)
        shutil.rmtree(removed, ignore_errors=True)  # of a removal that did not come to its end
        with suppress(FileNotFoundError):
            folder.rename(removed)
            self._synced.discard(folder)
            sync_folder(folder.parent)
            shutil.rmtree(removed, ignore_errors=True)

    def sync_folder(self, folder: Path) -> None:
        """Make the entries of `folder` survive a power cut; callers at the same time share it."""
        with self._folder_syncs_lock:
            sync = self._folder_syncs.get(folder)
            if sync is None:
                sync = self._folder_syncs[folder] = _FolderSync(folder)
        sync.run()

    async def _remove_all(self, files: Sequence[Sequence[Path]]) -> Sequence[None]:
        def remove() -> None:
            for path in itertools.chain.from_iterable(files):
                with suppress(OSError):
                    path.unlink(missing_ok=True)

        await asyncio.get_running_loop().run_in_executor(self.executor, remove)
        return [None] * len(files)


class _FolderSync:
    """One wait for the disk for all who changed a folder before it began."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._tickets = itertools.count(1)
        self._synced = 0
        self._failed = 0
        self._error = OSError()

    def run(self) -> None:
        """Return once a sync that began after this call has ended.

        One that fails fails for all who share it: the kernel may tell of a failed write once
        and never again.
        """
        mine = next(self._tickets)
        with self._lock:
            if mine < self._failed:
                raise OSError(*self._error.args)
            if mine < self._synced:
                return
            ticket = next(self._tickets)  # all lower ones were drawn before this sync begins
            try:
                sync_folder(self._folder)
            except OSError as exc:
                self._failed, self._error = ticket, exc
                raise
            self._synced = ticket


async def to_its_end(work: asyncio.Future[T]) -> T:
    """The result of `work`, which goes on to its end also when the caller is cancelled."""
    cancelled: asyncio.CancelledError | None = None
    while not work.done():
        try:
            await asyncio.wait({work})
        except asyncio.CancelledError as exc:
            cancelled = exc
    if cancelled is not None:
        if not work.cancelled():
            work.exception()  # looked at, so that asyncio does not complain
        raise cancelled
    return work.result()


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


def make_folders(folder: Path) -> None:
    """Make `folder` and those above it that are missing, so that they survive a power cut.

    One that was there already may be of a process that was killed before its sync.
    """
    if not folder.is_dir():
        make_folders(folder.parent)
        with suppress(FileExistsError):
            folder.mkdir(mode=_FOLDER_MODE)
    # What lies above may be closed to us, and is seldom ours to make.
    with suppress(PermissionError):
        sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """Make the entries of `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
