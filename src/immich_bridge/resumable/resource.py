"""Resumable uploads as requests see them: the first one of an upload, and those that go on."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Final

from aiohttp import HttpVersion11, web

from immich_bridge.body import IncomingBody
from immich_bridge.config import Config
from immich_bridge.digests import ExpectedDigest
from immich_bridge.errors import (
    BadGateway,
    BridgeError,
    ChecksumMismatch,
    ClientGone,
    GatewayTimeout,
    InsufficientStorage,
    MethodNotAllowed,
    NotImplementedHere,
    PayloadTooLarge,
    RequestTimeout,
    Unavailable,
)
from immich_bridge.http.metrics import Metrics
from immich_bridge.http.record import RECORD
from immich_bridge.http.routing import add_route
from immich_bridge.resumable.problems import InconsistentLength, MismatchingOffset, Superseded
from immich_bridge.resumable.protocol import (
    PARTIAL_UPLOAD,
    Creation,
    Dialect,
    Limits,
    dialect_of,
    interim_answer,
    is_partial,
    parse_append,
    parse_creation,
    state_headers,
)
from immich_bridge.resumable.upload import Finished, Upload
from immich_bridge.resumable.uploads import PATH, Uploads

ROUTE: Final = f"{PATH}/{{name}}"
_METHODS: Final = ("HEAD", "PATCH", "DELETE", "OPTIONS")

_FRONT_HEADERS: Final = ("Via", "Forwarded", "X-Forwarded-For", "X-Real-IP")
_PASSES_INTERIM_ANSWERS: Final = frozenset({"1.1 Caddy", "2.0 Caddy", "3.0 Caddy"})
"""The `Via` of the one front that names itself and is known to pass a 104.

The number is that of the HTTP in which the client speaks to it.
"""

_TO_BE_RESUMED: Final = (ClientGone, RequestTimeout, Superseded, Unavailable)
"""What ends a request, but not its upload."""
_LOST_ON_THE_WAY: Final = (BadGateway, GatewayTimeout)


class Resumable:
    """Begins uploads for the wings, and answers `ROUTE`."""

    def __init__(self, config: Config, prefix: str = "") -> None:
        """`prefix` is what the names of uploads begin with."""
        self._config = config
        self.uploads = Uploads(config.resumable_hold, prefix)

    def add_routes(self, app: web.Application) -> None:
        """Route what is ours."""
        add_route(app, "*", ROUTE, self.handle)

    def expose(self, metrics: Metrics) -> None:
        """Let `metrics` tell of uploads."""
        self.uploads.expose(metrics)

    def options(self, request: web.Request) -> web.Response:
        """Say that uploads can be resumed, and what they may be; iOS asks once and remembers.

        Raises `NotImplementedHere` where the way to this client may not let a 104 pass.
        """
        if not self._offered(request):
            raise NotImplementedHere("resumable uploads are not offered")
        headers = {"Accept-Patch": PARTIAL_UPLOAD, "Upload-Limit": self._limits().header()}
        if dialect := dialect_of(request.raw_headers):
            headers["Upload-Draft-Interop-Version"] = str(dialect.version)
        return web.Response(headers=headers)

    def wanted(self, request: web.Request, owner: str) -> Creation | None:
        """What a request asks for that begins an upload; None: to be taken like any other.

        Raises `NotImplementedHere` for one that brings only a part, where that is not
        understood, and `Unavailable` where there is no room: the part is not the whole.
        """
        creation = parse_creation(request.raw_headers, request.content_length)
        if creation is not None and self._offered(request) and self.uploads.has_room(owner):
            return creation
        if creation is not None and self._offered(request) and not creation.complete:
            raise Unavailable("too many uploads are unfinished")
        if is_partial(request.raw_headers):
            raise NotImplementedHere("this upload would be a part, and can't be resumed here")
        return None

    async def begin(
        self, request: web.Request, creation: Creation, upload: Upload, owner: str, query: str = ""
    ) -> web.StreamResponse:
        """Take the first request of an upload; `query` is for its URL, `?` included."""
        name = self.uploads.add(upload, owner)
        try:
            self._check_size(upload.length, request.content_length)
            upload.check(0, upload.length, request.content_length)
            await upload.begin(name)
            self.uploads.happened("created", name)
            location = f"{PATH}/{name}{query}"
            offer = interim_answer(creation.dialect, location, self._limits(upload))
            await request.writer.write(offer)
        except BaseException:
            await self.uploads.remove(name, "failed")  # nobody has heard of it
            raise
        # aiohttp holds an answer for begun once anything was written; this was not it.
        request.writer.output_size = 0
        finished = await self.take(request, name, upload, last=creation.complete)
        if finished is None:
            headers = self._state(creation.dialect, upload)
            return web.Response(status=201, headers={**headers, "Location": location})
        return finished.response(self._state(creation.dialect, upload))

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer any method on `ROUTE`."""
        if request.method == "OPTIONS":
            return self.options(request)
        if request.method not in _METHODS:
            raise MethodNotAllowed(request.method, ", ".join(_METHODS))
        name = request.match_info["name"]
        upload = self.uploads.find(name)
        await upload.authorize(request)
        dialect = dialect_of(request.raw_headers) or Dialect(8)
        with self.uploads.sender(name):
            if request.method == "PATCH":
                return await self._append(request, dialect, name, upload)
            await upload.rest()
            if request.method == "HEAD":
                return web.Response(status=204, headers=self._state(dialect, upload))
            await self.uploads.remove(name, "cancelled")
            return web.Response(status=204)

    async def _append(
        self, request: web.Request, dialect: Dialect, name: str, upload: Upload
    ) -> web.StreamResponse:
        append = parse_append(dialect, request.raw_headers, request.content_length)
        await upload.rest()
        try:
            upload.check(append.offset, append.length, request.content_length)
        except MismatchingOffset as exc:
            exc.headers.update(self._state(dialect, upload))
            raise
        self._check_size(upload.length, append.offset + (request.content_length or 0))
        self.uploads.happened("resumed", name)
        finished = await self.take(request, name, upload, last=append.complete)
        state = self._state(dialect, upload)
        if finished is None:
            return web.Response(status=204, headers=state)
        return finished.response(state)

    async def take(
        self,
        request: web.Request,
        name: str,
        upload: Upload,
        *,
        last: bool | None,
        digests: Sequence[ExpectedDigest] = (),
    ) -> Finished | None:
        """Take what a request brings; what became of the upload, once that is known.

        `last` as for `Upload.append`, `digests` are those of this request's bytes.
        Until the upload has the body nothing is awaited. A request whose upload goes on gets
        no answer but the end of its connection: that is what makes a client resume.
        """
        record = request[RECORD]
        record.upload = None  # of a part nothing becomes
        with self.uploads.sender(name):
            try:
                with self._body(request, upload, digests) as body:
                    whole = await upload.append(body, last=last)
            except _TO_BE_RESUMED as exc:
                record.error, record.outcome = exc.code, exc.message
                raise ClientGone(exc.message) from exc
            except (InconsistentLength, PayloadTooLarge, ChecksumMismatch) as exc:
                await self.uploads.remove(name, "failed")
                if isinstance(exc, PayloadTooLarge) and upload.length is not None:
                    raise InconsistentLength(
                        f"the upload was to have {upload.length} bytes"
                    ) from exc
                raise
            if not whole:
                return None
            record.upload = "" if upload.background else None
            try:
                finished = await upload.finish(partial(self.uploads.completed, name))
            except InsufficientStorage:
                raise  # what has come is kept: it can be tried again
            except BridgeError as exc:
                await self.uploads.remove(name, "failed")
                if isinstance(exc, _LOST_ON_THE_WAY):
                    record.error, record.outcome = exc.code, exc.message
                    raise ClientGone(exc.message) from exc
                raise
        record.upload = finished.verdict
        return finished

    def _body(
        self, request: web.Request, upload: Upload, digests: Sequence[ExpectedDigest]
    ) -> IncomingBody:
        """The body of a request, of which nothing is taken that is more than the upload may be."""
        limit = 0
        if request.content_length is None:
            largest = upload.length if upload.length is not None else self._config.max_stream_size
            limit = max(0, largest - upload.offset) or (-1 if largest else 0)
        return IncomingBody(
            request,
            idle_timeout=self._config.body_idle_timeout,
            limit=limit,
            digests=digests,
            fast_path=self._config.fast_path == "auto",
        )

    def _offered(self, request: web.Request) -> bool:
        if request.version < HttpVersion11:
            return False  # it has no interim answers
        if self._config.resumable == "on":
            return True
        named = [request.headers[name] for name in _FRONT_HEADERS if name in request.headers]
        return not named or request.headers.get("Via") in _PASSES_INTERIM_ANSWERS

    def _limits(self, upload: Upload | None = None) -> Limits:
        age = math.floor(self.uploads.hold_of(upload)) if upload else None
        return Limits(self._config.max_stream_size, age)

    def _state(self, dialect: Dialect, upload: Upload) -> Mapping[str, str]:
        return state_headers(
            dialect,
            offset=upload.offset,
            complete=upload.complete,
            length=upload.length,
            limits=self._limits(upload),
        )

    def _check_size(self, length: int | None, least: int | None) -> None:
        limit = self._config.max_stream_size
        if limit and max(length or 0, least or 0) > limit:
            headers = {"Upload-Limit": self._limits().header()}
            raise PayloadTooLarge(f"the upload is larger than {limit} bytes", headers=headers)
