"""From received bytes to a stored photo: placed, recorded, and only then confirmed."""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from datetime import date, datetime
from functools import partial
from typing import Any, TypeVar
from weakref import WeakValueDictionary

from immich_bridge.backup.catalog import Catalog, Photo
from immich_bridge.backup.naming import day_folder, uploaded_extension
from immich_bridge.backup.pending_file import ByteSource, PendingFile
from immich_bridge.backup.placed_mark import PlacedMark
from immich_bridge.backup.storage import Storage
from immich_bridge.backup.stored import Stored, Way
from immich_bridge.errors import BadRequest, InternalError

T = TypeVar("T")


@dataclass(frozen=True)
class Destination:
    """Where an upload belongs."""

    user_id: int
    photo: Photo
    extension: str

    @property
    def filename(self) -> str:
        """Name of the file, with the extension of what is uploaded."""
        return f"{self.photo.stem}.{self.extension}"

    @property
    def path(self) -> str:
        """The file as the API names it."""
        return self.photo.folder + self.filename

    @property
    def modified(self) -> float:
        """The time of the file, unix seconds: that of the photo's creation."""
        return datetime.fromisoformat(self.photo.creation_time).timestamp()

    def stored(self, size: int) -> dict[str, Any]:
        """What a client is told once `size` bytes lie there for good."""
        return {
            "status": "success",
            "message": "File uploaded",
            "local_id": self.photo.local_id,
            "filename": self.filename,
            "file_path": self.path,
            "size": size,
        }


class Uploads:
    """Puts files into their places."""

    def __init__(self, catalog: Catalog, storage: Storage, stored: Stored) -> None:
        self._catalog = catalog
        self._storage = storage
        self._stored = stored
        self._told: list[Callable[[Destination], None]] = []
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._running: set[asyncio.Task[Any]] = set()

    async def highest_number(self, user_id: int, day: date) -> int:
        """The highest number that a file on disk has on that day, known to the catalog or not."""
        return await self._storage.highest_number(day_folder(user_id, day))

    async def destination(self, user_id: int, local_id: str, file_type: str) -> Destination:
        """Where the user's photo belongs; raises `BadRequest`, or `InternalError` for no photo."""
        if not local_id:
            raise BadRequest("local_id is required")
        if not file_type:
            raise BadRequest("file_type is required")
        photo = await self._catalog.find(user_id, local_id)
        if photo is None:
            # Clients of the API match this status and text.
            raise InternalError("photo not found")
        extension = uploaded_extension(
            file_type, photo.file_type, photo.extension, photo.uploaded_extensions
        )
        if extension is None:
            raise BadRequest(f"file_type is unknown: {file_type[:100]!r}")
        return Destination(user_id, photo, extension)

    async def receive(
        self,
        source: ByteSource,
        destination: Destination | None,
        *,
        limit: int,
        digest: bool = False,
    ) -> PendingFile:
        """The bytes of `source`, to be completed later; `destination` is None if not known yet."""
        folder = destination.photo.folder if destination else None
        return await self._storage.receive(source, folder, limit=limit, digest=digest)

    async def complete(self, pending: PendingFile, destination: Destination, way: Way) -> None:
        """Place the file and record it. When this returns, both survive a power cut.

        Once begun it ends also when the client has gone: the bytes are whole, and a file
        without its row would be neither here nor there.
        """
        await self.to_its_end(self._complete(pending, destination, way))

    async def is_recorded(self, destination: Destination) -> bool:
        """Whether the database holds the file for stored, at this moment."""
        photo = await self._catalog.find(destination.user_id, destination.photo.local_id)
        return photo is not None and destination.extension in photo.uploaded_extensions

    def when_stored(self, tell: Callable[[Destination], None]) -> None:
        """Have `tell` called for each file that is in its place for good."""
        self._told.append(tell)

    async def to_its_end(self, work: Coroutine[Any, Any, T]) -> T:
        """Run `work` in a task that the caller's cancellation does not stop."""
        return await asyncio.shield(self.begin(work))

    def begin(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run `work` in a task for which nobody has to wait."""
        task = asyncio.create_task(work)
        self._running.add(task)
        task.add_done_callback(self._ended)
        return task

    async def close(self) -> None:
        """Wait for what has begun, and what that begins."""
        while self._running:
            await asyncio.wait(self._running)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if not task.cancelled():
            task.exception()  # whoever waited has it; if the client has gone, nobody needs it

    def lock(self, name: str) -> asyncio.Lock:
        """The lock of that name, for as long as somebody holds or awaits it."""
        lock = self._locks.get(name)
        if lock is None:
            lock = self._locks[name] = asyncio.Lock()
        return lock

    async def _complete(self, pending: PendingFile, destination: Destination, way: Way) -> None:
        async with pending, self.lock(destination.path):
            # The lock keeps file and row together when two clients send the same photo.
            place = self._storage.path(destination.path)
            mark = PlacedMark(place)
            await pending.place(place, destination.modified, mark)
            try:
                await self._catalog.record_upload(
                    destination.user_id,
                    destination.photo.local_id,
                    destination.extension,
                    pending.size,
                )
            except Exception:
                await self._storage.disk.run(place, partial(mark.undo, keep=True))
                raise
            await self._storage.disk.remove(*mark.files)
            self._stored.add(way, pending.size)
            for tell in self._told:
                tell(destination)
