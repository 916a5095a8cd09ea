"""Photos that come in chunks: kept until all are there, then joined into one file.

The chunks of a photo lie as files in a folder of their own, so that they outlive a restart
and can come in any order and at the same time.
"""

import asyncio
import hashlib
import os
import shutil
import time
from pathlib import Path
from typing import Final

from immich_bridge.backup.storage import PendingFile, Storage, finish, translated
from immich_bridge.backup.uploads import Destination, Uploads
from immich_bridge.errors import PayloadTooLarge

MAX_CHUNKS: Final = 10_000
_ABANDONED_SECONDS: Final = 24 * 3600
_COPY_BUFFER: Final = 1024 * 1024


class Chunks:
    """The chunks of all photos under way, in `STORAGE_DIR/chunks`."""

    def __init__(self, storage: Storage, uploads: Uploads, *, max_total: int) -> None:
        self._root = storage.root / "chunks"
        self._storage = storage
        self._uploads = uploads
        self._max_total = max_total

    async def add(
        self, pending: PendingFile, destination: Destination, number: int, total: int
    ) -> tuple[list[int], int | None]:
        """Keep chunk `number` of `total`; join them when it was the last one missing.

        Gives the numbers that are there, and the size of the photo once it is stored.
        Raises `PayloadTooLarge` when the chunks together are larger than allowed.
        """
        folder = self._folder(destination, total)
        return await self._uploads.to_its_end(
            self._add(pending, destination, folder, number, total)
        )

    async def _add(
        self, pending: PendingFile, destination: Destination, folder: Path, number: int, total: int
    ) -> tuple[list[int], int | None]:
        async with pending, self._uploads.lock(str(folder)):
            sizes = await asyncio.to_thread(_sizes, folder)
            sizes[number] = pending.size
            if self._max_total and sum(sizes.values()) > self._max_total:
                raise PayloadTooLarge(f"the photo is larger than {self._max_total} bytes")
            await pending.move(folder / str(number))
            received = sorted(sizes)
            if len(received) < total:
                return received, None
            joined = self._storage.pending(self._storage.path(destination.path).parent)
            async with joined:
                await joined.create()
                with translated(joined.path):
                    await finish(lambda: _join(folder, total, joined.path))
                joined.size = sum(sizes.values())
                await self._uploads.complete(joined, destination)
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
            return received, joined.size

    def sweep(self) -> int:
        """Remove the chunks of uploads that nobody has gone on with for a day; how many."""
        oldest = time.time() - _ABANDONED_SECONDS
        swept = 0
        for folder in self._root.glob("*/*"):
            if folder.stat().st_mtime < oldest:
                shutil.rmtree(folder, ignore_errors=True)
                swept += 1
        return swept

    def _folder(self, destination: Destination, total: int) -> Path:
        # A local id is free text: as a digest it can name a folder.
        name = f"{destination.photo.local_id}\0{destination.extension}\0{total}"
        digest = hashlib.sha256(name.encode()).hexdigest()
        return self._root / str(destination.user_id) / digest


def _sizes(folder: Path) -> dict[int, int]:
    """Size of each chunk that is there, by its number."""
    try:
        # Every chunk looks at all that came before it: pathlib would take twice as long.
        with os.scandir(folder) as files:
            return {int(file.name): file.stat().st_size for file in files if file.name.isdigit()}
    except FileNotFoundError:
        return {}


def _join(folder: Path, total: int, destination: Path) -> None:
    with destination.open("wb") as joined:
        for number in range(total):
            with (folder / str(number)).open("rb") as chunk:
                shutil.copyfileobj(chunk, joined, _COPY_BUFFER)
