"""Waiting for something to happen in a folder: Linux tells (inotify(7)), nobody has to poll."""

import asyncio
import ctypes
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from wire import PATIENCE

_NONBLOCK: Final = os.O_NONBLOCK
_CREATED: Final = 0x100
_MOVED_HERE: Final = 0x80
_MODIFIED: Final = 0x2
_REMOVED: Final = 0x200


class FolderWatch:
    """What happens to the entries of one folder from now on."""

    def __init__(self) -> None:
        self.happened = asyncio.Event()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Return as soon as `condition` holds, looked at after each change."""
        async with asyncio.timeout(PATIENCE):
            while not condition():
                self.happened.clear()
                await self.happened.wait()


@contextmanager
def watched(folder: Path) -> Iterator[FolderWatch]:
    """Watch `folder`, which has to exist."""
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = libc.inotify_init1(_NONBLOCK)
    wanted = _CREATED | _MOVED_HERE | _MODIFIED | _REMOVED
    if descriptor < 0 or libc.inotify_add_watch(descriptor, os.fsencode(folder), wanted) < 0:
        raise OSError(ctypes.get_errno(), f"cannot watch {folder}")
    watch = FolderWatch()

    def read() -> None:
        os.read(descriptor, 65536)
        watch.happened.set()

    loop = asyncio.get_running_loop()
    loop.add_reader(descriptor, read)
    try:
        yield watch
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)
