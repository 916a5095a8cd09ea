"""tus as requests see it: the same uploads, under `/uploads/`, for browsers and other phones."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from aiohttp import web
from aiohttp.typedefs import Handler

from immich_bridge.config import Config
from immich_bridge.digests import ExpectedDigest
from immich_bridge.errors import (
    BadRequest,
    BridgeError,
    ChecksumMismatch,
    MethodNotAllowed,
    PayloadTooLarge,
    PreconditionFailed,
    Unavailable,
    UnsupportedMediaType,
)
from immich_bridge.http.routing import add_route
from immich_bridge.resumable import tus
from immich_bridge.resumable.problems import ChunkMismatch, MismatchingOffset
from immich_bridge.resumable.resource import ROUTE, Resumable
from immich_bridge.resumable.upload import Finished, Upload
from immich_bridge.resumable.uploads import PATH

Begin = Callable[[web.Request, Mapping[str, str], int], tuple[Upload, str, str]]
"""Makes an upload of so many bytes out of a request and its metadata; with it, whose it is, and
the query that its URL needs. Raises what is wrong with them."""


class TusResource:
    """Answers `POST /uploads/`, and the requests on an upload that speak tus."""

    def __init__(self, config: Config, resumable: Resumable, begin: Begin) -> None:
        self._config = config
        self._resumable = resumable
        self._begin = begin

    def add_routes(self, app: web.Application, in_front: Callable[[Handler], Handler]) -> None:
        """Route what is ours; `in_front` gets requests on an upload first."""
        add_route(app, "*", f"{PATH}/", self.handle_collection)
        add_route(app, "*", ROUTE, in_front(self.handle))

    async def handle_collection(self, request: web.Request) -> web.StreamResponse:
        """Answer any method where uploads are made."""
        with _answers_in_tus():
            return await self._handle_collection(request)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer any method on an upload, for clients that speak tus, and pass the others on."""
        if tus.VERSION_HEADER not in request.headers:
            return await self._resumable.handle(request)
        with _answers_in_tus():
            return await self._handle(request)

    async def _handle_collection(self, request: web.Request) -> web.StreamResponse:
        if request.method == "OPTIONS":
            return web.Response(status=204, headers=tus.offer(self._config.max_stream_size))
        if request.method != "POST":
            raise MethodNotAllowed(request.method, "POST, OPTIONS")
        _require_version(request)
        length = tus.parse_number("Upload-Length", request.headers.get("Upload-Length"))
        if length == 0:
            raise BadRequest("the file is empty")
        self._require_size(length)
        brings_bytes = request.body_exists and request.content_length != 0
        if brings_bytes:
            _require_type(request)
        metadata = tus.parse_metadata(request.headers.get("Upload-Metadata", ""))
        upload, owner, query = self._begin(request, metadata, length)
        try:
            upload.check(0, length, request.content_length)
            if not self._resumable.uploads.has_room(owner):
                raise Unavailable("too many uploads are unfinished")
        except BridgeError:
            await upload.discard()  # nobody has heard of it
            raise
        name = self._resumable.uploads.add(upload, owner)
        self._resumable.uploads.happened("created", name)
        finished = None
        if brings_bytes:
            finished = await self._take(request, name, upload)
        response = self._answer(201, upload, finished)
        if response.status == 201:
            response.headers["Location"] = f"{PATH}/{name}{query}"
        return response

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        _require_version(request)
        # For clients that cannot send these methods (tus 1.0, "Headers").
        method = request.headers.get("X-HTTP-Method-Override", request.method).upper()
        uploads, name = self._resumable.uploads, request.match_info["name"]
        upload = uploads.find(name)
        await upload.authorize(request)
        with uploads.sender(name):
            match method:
                case "HEAD":
                    await upload.rest()
                    return self._answer(200, upload, None)
                case "PATCH":
                    return await self._append(request, name, upload)
                case "DELETE":
                    await upload.rest()
                    await uploads.remove(name, "cancelled")
                    return web.Response(status=204, headers={tus.VERSION_HEADER: tus.VERSION})
        raise MethodNotAllowed(method, "HEAD, PATCH, DELETE")

    async def _append(self, request: web.Request, name: str, upload: Upload) -> web.StreamResponse:
        _require_type(request)
        offset = tus.parse_number("Upload-Offset", request.headers.get("Upload-Offset"))
        digests = [
            tus.parse_checksum(text) for text in request.headers.getall("Upload-Checksum", ())
        ]
        await upload.rest()
        try:
            upload.check(offset, None, request.content_length)
        except MismatchingOffset as exc:
            exc.headers.update(self._state(upload))
            raise
        self._resumable.uploads.happened("resumed", name)
        return self._answer(204, upload, await self._take(request, name, upload, digests))

    async def _take(
        self,
        request: web.Request,
        name: str,
        upload: Upload,
        digests: Sequence[ExpectedDigest] = (),
    ) -> Finished | None:
        """Take what a request brings. Its last byte, not its sender, says that all is here."""
        try:
            return await self._resumable.take(request, name, upload, last=None, digests=digests)
        except ChecksumMismatch as exc:
            # Immich has the bytes, and none can be taken back: the upload begins anew.
            if digests:
                raise ChunkMismatch(exc.message) from exc
            raise

    def _answer(self, status: int, upload: Upload, finished: Finished | None) -> web.Response:
        state = self._state(upload)
        if finished is None:
            return web.Response(status=status, headers=state)
        if finished.status >= 400:
            return finished.response(state)
        # tus has no body here; what Immich says of the photo stands in the headers as well.
        headers = [field for field in finished.headers if field[0].lower() != "content-type"]
        return Finished(status, b"", headers).response(state)

    def _state(self, upload: Upload) -> Mapping[str, str]:
        expires = time.time() + self._resumable.uploads.hold
        return tus.state_headers(upload.offset, upload.length, expires)

    def _require_size(self, length: int) -> None:
        limit = self._config.max_stream_size
        if limit and length > limit:
            raise PayloadTooLarge(f"the upload is larger than {limit} bytes")


@contextmanager
def _answers_in_tus() -> Iterator[None]:
    """Have errors say what protocol they are of, as all answers have to."""
    try:
        yield
    except BridgeError as exc:
        exc.headers[tus.VERSION_HEADER] = tus.VERSION
        raise


def _require_version(request: web.Request) -> None:
    if request.headers.get(tus.VERSION_HEADER) != tus.VERSION:
        raise PreconditionFailed(
            f"{tus.VERSION_HEADER} has to be {tus.VERSION}", headers={"Tus-Version": tus.VERSION}
        )


def _require_type(request: web.Request) -> None:
    if request.content_type.lower() != tus.CONTENT_TYPE:
        raise UnsupportedMediaType(f"the body has to be {tus.CONTENT_TYPE}")
