"""Raw uploads of the photo backup that go on where they were cut off, also after a restart."""

import asyncio
import json
import logging
from collections.abc import Mapping
from contextlib import suppress

from aiohttp import web

from immich_bridge.backup.held_file import HOLD_SECONDS, HeldFile, HeldRecord, held_files
from immich_bridge.backup.sessions import require_session
from immich_bridge.backup.storage import Storage
from immich_bridge.backup.tokens import Session, Tokens
from immich_bridge.backup.uploads import Uploads
from immich_bridge.body import IncomingBody
from immich_bridge.digests import parse_digest_fields
from immich_bridge.errors import BadRequest, BridgeError, NotFound, Unavailable
from immich_bridge.logs import log_event
from immich_bridge.resumable.resource import Resumable
from immich_bridge.resumable.upload import Finished, Upload

_logger = logging.getLogger("immich_bridge.backup")


class HeldUpload:
    """A `resumable.upload.Destination`: the bytes go to a file of their own, then to their place.

    `file` is there already if the upload began before the last restart.
    """

    def __init__(
        self, storage: Storage, uploads: Uploads, record: HeldRecord, file: HeldFile | None = None
    ) -> None:
        self._storage = storage
        self._uploads = uploads
        self._record = record
        self._file = file
        self._body: IncomingBody | None = None
        self._at_rest = asyncio.Event()
        self._at_rest.set()
        self._finishing: asyncio.Task[Finished] | None = None

    @property
    def offset(self) -> int:
        """How many bytes would survive a power cut."""
        return self._file.size if self._file else 0

    @property
    def lost(self) -> bool:
        """Whether the file is no longer what it was."""
        return self._file is not None and self._file.lost

    async def begin(self, name: str) -> None:
        """Make the file; raises `InsufficientStorage` or `InternalError`."""
        self._file = HeldFile(self._storage, name, self._record)
        await self._file.create()

    async def take(self, body: IncomingBody) -> bool:
        """Write a body, and sync what came of it also when it is cut off."""
        assert self._file is not None  # noqa: S101 - it has begun
        self._body = body
        self._at_rest.clear()
        try:
            await self._file.append(body)
        finally:
            self._body = None
            self._at_rest.set()
        return True

    async def give_up(self, reason: BridgeError) -> None:
        """Have `take` raise `reason`, after what has come is durable."""
        if self._body is not None:
            self._body.give_up(reason)
        await self._at_rest.wait()

    async def finish(self) -> Finished:
        """Check the bytes and put them into their place, as those of any raw upload.

        Raises what that raises. After `InsufficientStorage` it can be tried again.
        """
        if self._finishing is None:
            self._finishing = asyncio.create_task(self._finish())
            self._finishing.add_done_callback(self._finished)
        return await asyncio.shield(self._finishing)

    async def suspend(self) -> None:
        """The server stops: what has come is found by its next start."""
        await self.give_up(Unavailable("this server is stopping"))
        if self._finishing is not None:
            await asyncio.wait({self._finishing})

    async def discard(self) -> None:
        """Remove the file."""
        await self.suspend()
        if self._file is not None:
            await self._file.remove()

    async def _finish(self) -> Finished:
        assert self._file is not None  # noqa: S101 - it has begun
        record = self._record
        # Not before now: a photo may have been indexed anew meanwhile, or be gone.
        destination = await self._uploads.destination(
            record.user_id, record.local_id, record.file_type
        )
        size = self._file.size
        if size == 0:
            raise BadRequest("the file is empty")
        await self._file.check(parse_digest_fields((name, value) for name, value in record.digests))
        pending = await self._file.pending(self._storage.path(destination.path).parent)
        await self._uploads.complete(pending, destination, "raw")
        await self._file.remove()
        text = json.dumps(destination.stored(size))
        return Finished(200, text.encode(), [("Content-Type", "application/json; charset=utf-8")])

    def _finished(self, finishing: asyncio.Task[Finished]) -> None:
        if finishing.cancelled() or finishing.exception() is not None:
            self._finishing = None


class HeldUploads:
    """Begins such uploads, and finds again those that were there before a restart."""

    def __init__(
        self, storage: Storage, uploads: Uploads, tokens: Tokens, resumable: Resumable
    ) -> None:
        self._storage = storage
        self._uploads = uploads
        self._tokens = tokens
        self._resumable = resumable

    async def options(self, request: web.Request) -> web.Response:
        """`OPTIONS /photos/upload/stream`: whether uploads can be resumed."""
        return self._resumable.options(request)

    async def begin(
        self, request: web.Request, session: Session, fields: Mapping[str, str]
    ) -> web.StreamResponse | None:
        """Take the first request of an upload, and answer it; None: it is one like any other."""
        owner = _owner(session.user_id)
        creation = self._resumable.wanted(request, owner)
        if creation is None:
            return None
        # What a digest of content covers is this request; all of the file, if it is all of it.
        names = {"repr-digest", "x-immich-checksum"} | (
            {"content-digest"} if creation.complete else set()
        )
        digests = [(n, value) for n, value in request.headers.items() if n.lower() in names]
        parse_digest_fields(digests)  # what cannot be read is refused now
        record = HeldRecord(
            session.user_id, fields["local_id"], fields["file_type"], creation.length, digests
        )
        upload = self._upload(HeldUpload(self._storage, self._uploads, record), record)
        return await self._resumable.begin(request, creation, upload, owner)

    async def restore(self) -> None:
        """Take up what former lives have left.

        Not while another process uses the folder: the uploads may be its own.
        """
        if not self._storage.alone:
            return

        def find() -> list[tuple[HeldFile, float]]:
            files, rest = held_files(self._storage)
            for path in rest:
                with suppress(OSError):
                    path.unlink(missing_ok=True)
            return [(file, file.idle) for file in files]

        try:
            found = await self._storage.disk.run(self._storage.photos, find)
        except BridgeError as exc:
            # No reason not to start: they are there the next time.
            log_event(_logger, logging.ERROR, "finding uploads failed", reason=exc.message)
            return
        for file, idle in found:
            held = HeldUpload(self._storage, self._uploads, file.record, file)
            upload = self._upload(held, file.record)
            owner = _owner(file.record.user_id)
            self._resumable.uploads.add(upload, owner, file.name, idle=idle)
        if found:
            log_event(_logger, logging.INFO, "found unfinished uploads", uploads=len(found))

    def _upload(self, held: HeldUpload, record: HeldRecord) -> Upload:
        async def authorize(request: web.Request) -> None:
            session = await require_session(request, self._tokens)
            if session.user_id != record.user_id:
                raise NotFound("there is no such upload, or no longer")

        return Upload(held, record.length, authorize, hold=HOLD_SECONDS, background=False)


def _owner(user_id: int) -> str:
    return f"user {user_id}"
