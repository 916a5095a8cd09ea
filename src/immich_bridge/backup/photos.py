"""`/photos/*`: index a day's photos, and take their files in three ways."""

import asyncio
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from aiohttp import web

from immich_bridge.backup.catalog import Catalog, NewPhoto, Photo
from immich_bridge.backup.chunks import MAX_CHUNKS, Chunks, ChunkSet
from immich_bridge.backup.form_reader import FormPart, FormReader
from immich_bridge.backup.held_upload import HeldUploads
from immich_bridge.backup.naming import normal_extension, parse_date
from immich_bridge.backup.pending_file import PendingFile
from immich_bridge.backup.sessions import require_session
from immich_bridge.backup.tokens import Session, Tokens
from immich_bridge.backup.uploads import Destination, Uploads
from immich_bridge.body import IncomingBody
from immich_bridge.config import Config
from immich_bridge.digests import parse_digest_fields
from immich_bridge.errors import BadRequest, NotImplementedHere, UnsupportedMediaType
from immich_bridge.http.json_body import INVALID_FORMAT, ListParser, read_json_with_list
from immich_bridge.http.query import query_parameters
from immich_bridge.http.rate_limit import RateLimit
from immich_bridge.resumable.protocol import is_partial

MAX_PHOTOS: Final = 20_000
MAX_LOCAL_ID: Final = 512
_PHOTO_FIELDS: Final = {
    "local_id": MAX_LOCAL_ID,
    "creation_time": 64,
    "file_extension": 16,
    "file_type": 255,
}
"""Field of an indexed photo -> most characters."""
_FIELDS: Final = frozenset({"local_id", "file_type", "chunk_number", "total_chunks", "upload_id"})
_LONGEST_ESCAPE: Final = 12
"""Bytes of one character in JSON: two escapes of six each (RFC 8259 7)."""
_MAX_INDEX_BODY: Final = MAX_PHOTOS * (MAX_LOCAL_ID * _LONGEST_ESCAPE + 1024)
"""Every photo with the longest id, however it is written, and 1 KiB of other fields."""
_ANSWERED_AT_ONCE: Final = 500
"""Photos; what json does in one call keeps all other threads waiting."""
_FORM_OVERHEAD: Final = 1024 * 1024
"""What a form may hold beside its file; the file has a limit of its own."""


class Photos:
    """The handlers of the four routes."""

    def __init__(
        self,
        config: Config,
        tokens: Tokens,
        catalog: Catalog,
        uploads: Uploads,
        chunks: Chunks,
        upload_limit: RateLimit,
        held: HeldUploads | None,
    ) -> None:
        self._config = config
        self._tokens = tokens
        self._catalog = catalog
        self._uploads = uploads
        self._chunks = chunks
        self._upload_limit = upload_limit
        self._held = held

    async def index(self, request: web.Request) -> web.Response:
        """`POST /photos/index`."""
        session = await require_session(request, self._tokens)
        batch = await read_json_with_list(
            request,
            ListParser("photos", most=MAX_PHOTOS, keep=_photo_fields),
            limit=_MAX_INDEX_BODY,
            idle_timeout=self._config.body_idle_timeout,
        )
        text, photos = batch.get("date"), batch.get("photos")
        if not isinstance(text, str) or not isinstance(photos, list):
            raise BadRequest(INVALID_FORMAT)
        if (day := parse_date(text)) is None:
            raise BadRequest("Invalid date format, expected YYYY-MM-DD")
        # In a thread: of twenty thousand photos it would keep all others waiting.
        new = await asyncio.to_thread(_new_photos, photos)
        # A database that is new, or older than the photos on disk, does not know all of them.
        above = await self._uploads.highest_number(session.user_id, day)
        assigned = await self._catalog.index(session.user_id, day, new, above=above)
        answer = await asyncio.to_thread(_index_answer, text, assigned)
        # aiohttp sends a file piece by piece.
        return web.Response(body=answer, content_type="application/json", charset="utf-8")

    async def upload_form(self, request: web.Request) -> web.Response:
        """`POST /photos/upload`: a form with `local_id`, `file_type` and `file`."""
        session = await self._begin_upload(request)
        form = await self._read_form(request, session, "file")
        await self._uploads.complete(form.file, form.destination, "form")
        return web.json_response(form.destination.stored(form.file.size))

    async def upload_stream(self, request: web.Request) -> web.StreamResponse:
        """`POST /photos/upload/stream?local_id=&file_type=`: the body is the file."""
        session = await self._begin_upload(request)
        fields = query_parameters(request)
        destination = await self._destination(session, fields)
        if self._held is not None:
            if (answer := await self._held.begin(request, session, fields)) is not None:
                return answer
        elif is_partial(request.raw_headers):
            raise NotImplementedHere("this upload would be a part, and can't be resumed here")
        with self._body(request, limit=self._config.max_stream_size) as body:
            pending = await self._uploads.receive(body, destination, limit=0)
        await self._uploads.complete(pending, destination, "raw")
        return web.json_response(destination.stored(pending.size))

    async def upload_chunk(self, request: web.Request) -> web.Response:
        """`POST /photos/upload/chunk`: a form with one chunk of a file."""
        session = await self._begin_upload(request)
        form = await self._read_form(request, session, "chunk_data", digest=True)
        try:
            total = _whole_number(form.fields, "total_chunks", 1, MAX_CHUNKS)
            number = _whole_number(form.fields, "chunk_number", 0, total - 1)
        except BaseException:
            await form.file.discard()
            raise
        chunks = ChunkSet(form.destination, total, form.fields.get("upload_id", ""))
        received, size = await self._chunks.add(form.file, chunks, number)
        if size is None:
            answer = {"status": "success", "message": "Chunk uploaded"}
            answer |= {"local_id": form.destination.photo.local_id}
        else:
            answer = form.destination.stored(size)
        return web.json_response({**answer, "complete": size is not None, "received": received})

    async def _begin_upload(self, request: web.Request) -> Session:
        session = await require_session(request, self._tokens)
        await self._upload_limit.hit(request, str(session.user_id))
        if request.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise UnsupportedMediaType("the body must be sent without Content-Encoding")
        return session

    def _body(self, request: web.Request, *, limit: int) -> IncomingBody:
        return IncomingBody(
            request,
            idle_timeout=self._config.body_idle_timeout,
            limit=limit,
            digests=parse_digest_fields(request.headers.items()),
        )

    async def _read_form(
        self, request: web.Request, session: Session, file_field: str, *, digest: bool = False
    ) -> "_UploadForm":
        """The whole form; its file belongs to the caller. With `digest` the file has one."""
        limit = self._config.max_upload_size
        fields: dict[str, str] = {}
        file: PendingFile | None = None
        destination: Destination | None = None
        try:
            with self._body(request, limit=limit + _FORM_OVERHEAD) as body:
                form = FormReader(request.headers, body)
                while (part := await form.next()) is not None:
                    if part.name != file_field:
                        await _read_field(part, fields)
                        continue
                    if file is not None:
                        raise BadRequest(f"there is more than one {file_field}")
                    # With its fields in front, an upload that goes nowhere is refused now.
                    if {"local_id", "file_type"} <= fields.keys():
                        destination = await self._destination(session, fields)
                    file = await self._uploads.receive(
                        part, destination, limit=limit, digest=digest
                    )
            if destination is None:
                destination = await self._destination(session, fields)
            if file is None:
                raise BadRequest(f"{file_field} is required")
        except BaseException:
            if file is not None:
                await file.discard()
            raise
        return _UploadForm(fields, file, destination)

    async def _destination(self, session: Session, fields: Mapping[str, str]) -> Destination:
        return await self._uploads.destination(
            session.user_id, fields.get("local_id", ""), fields.get("file_type", "")
        )


@dataclass(frozen=True)
class _UploadForm:
    fields: Mapping[str, str]
    file: PendingFile
    destination: Destination


async def _read_field(part: FormPart, fields: dict[str, str]) -> None:
    """Take a text field that is ours; others are read past."""
    if part.name not in _FIELDS:
        while await part.read():
            pass
    elif part.name in fields:
        raise BadRequest(f"there is more than one {part.name}")
    else:
        fields[part.name] = await part.text()


def _whole_number(fields: Mapping[str, str], name: str, low: int, high: int) -> int:
    text = fields.get(name, "").strip()
    if not text:
        raise BadRequest(f"{name} is required")
    if not re.fullmatch(r"[0-9]{1,9}", text) or not low <= int(text) <= high:
        raise BadRequest(f"{name} is not a whole number from {low} to {high}")
    return int(text)


def _new_photos(photos: Sequence[object]) -> list[NewPhoto]:
    """The entries of an index call, checked; raises `BadRequest`."""
    return [_new_photo(number, photo) for number, photo in enumerate(photos)]


def _index_answer(day: str, assigned: Sequence[Photo]) -> io.BytesIO:
    """The answer to an index call, as JSON."""
    answer = io.BytesIO()
    start = json.dumps({"status": "success", "date": day, "assigned_files": []})
    answer.write(start.removesuffix("]}").encode())
    for first in range(0, len(assigned), _ANSWERED_AT_ONCE):
        files = [
            {
                "local_id": photo.local_id,
                "filename": photo.filename,
                "uploaded_extensions": photo.uploaded_extensions,
            }
            for photo in assigned[first : first + _ANSWERED_AT_ONCE]
        ]
        answer.write(b", " if first else b"")
        answer.write(json.dumps(files)[1:-1].encode())
    answer.write(b"]}")
    answer.seek(0)
    return answer


def _photo_fields(photo: object) -> dict[str, str] | None:
    """What is looked at of an entry of an index call; None if it is no object."""
    if not isinstance(photo, dict):
        return None
    return {name: photo[name] for name in _PHOTO_FIELDS if isinstance(photo.get(name), str)}


def _new_photo(number: int, photo: object) -> NewPhoto:
    """One entry of an index call, checked; raises `BadRequest` that says which and why."""

    def invalid(reason: str) -> BadRequest:
        return BadRequest(f"{INVALID_FORMAT}: photos[{number}].{reason}")

    if not isinstance(photo, dict):
        raise BadRequest(f"{INVALID_FORMAT}: photos[{number}] is not an object")
    values = []
    for name, longest in _PHOTO_FIELDS.items():
        value = photo.get(name)
        if not isinstance(value, str) or not value:
            raise invalid(f"{name} is required")
        if len(value) > longest or "\0" in value:
            raise invalid(f"{name} is longer than {longest} characters, or holds a NUL")
        values.append(value)
    local_id, creation_time, file_extension, file_type = values
    created = _utc(creation_time)
    if created is None:
        raise invalid("creation_time is not an ISO 8601 date and time")
    extension = normal_extension(file_extension)
    if extension is None:
        raise invalid("file_extension is not 1 to 10 letters and digits")
    return NewPhoto(local_id, created, extension, file_type)


def _utc(text: str) -> str | None:
    """An ISO 8601 time in UTC, as the database writes it; without an offset it is UTC."""
    try:
        moment = datetime.fromisoformat(text)
        moment = moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        return None
    return moment.isoformat().replace("+00:00", "Z")
