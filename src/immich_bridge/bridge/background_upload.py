"""`POST /api/assets/background`: the raw bytes of a photo in, Immich's upload form out."""

import hmac
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final, Protocol

from aiohttp import web

from immich_bridge.body import IncomingBody
from immich_bridge.bridge.asset import HEADER_OF, PARAMETERS, Asset, metadata_value
from immich_bridge.bridge.credentials import (
    credential_query,
    credentials_digest,
    require_credentials,
)
from immich_bridge.bridge.exchange import Answer
from immich_bridge.bridge.form import AssetForm, ByteSource
from immich_bridge.bridge.forwarded import forwarded_by_us
from immich_bridge.bridge.headers import end_to_end, without
from immich_bridge.bridge.immich_upload import ImmichUpload
from immich_bridge.bridge.relay import RelayedResponse, relay
from immich_bridge.bridge.upstream import Upstream
from immich_bridge.config import Config
from immich_bridge.digests import parse_digest_fields
from immich_bridge.errors import (
    BadGateway,
    BadRequest,
    MethodNotAllowed,
    NotFound,
    NotImplementedHere,
    UnsupportedMediaType,
)
from immich_bridge.http.error_answer import BRIDGE_ERROR_HEADER
from immich_bridge.http.metrics import CREATED, DUPLICATE, REFUSED
from immich_bridge.http.middleware import REQUEST_ID_HEADER
from immich_bridge.http.query import query_parameters
from immich_bridge.http.record import RECORD
from immich_bridge.media_types import SNIFF_BYTES
from immich_bridge.resumable.joined_body import JoinedBody
from immich_bridge.resumable.protocol import is_partial, may_be_resumable
from immich_bridge.resumable.resource import Resumable
from immich_bridge.resumable.upload import Finished, Upload

ROUTE: Final = "/api/assets/background"
_IMMICH_ROUTE: Final = b"/api/assets"

# What describes the raw request says nothing true of the form; the rest passes, since
# a front of Immich's may want headers of its own.
_NOT_FOR_THE_FORM: Final = frozenset(
    {name.lower().encode() for name in PARAMETERS}
    | {
        b"accept-encoding",  # the answer has to be read here
        b"content-digest",
        b"content-disposition",
        b"content-encoding",
        b"content-language",
        b"content-length",
        b"content-location",
        b"content-md5",
        b"content-range",
        b"content-type",
        b"digest",
        b"expect",
        b"if-match",
        b"if-modified-since",
        b"if-none-match",
        b"if-range",
        b"if-unmodified-since",
        b"range",
        b"repr-digest",
        b"tus-resumable",
        b"upload-checksum",
        b"upload-complete",
        b"upload-draft-interop-version",
        b"upload-incomplete",
        b"upload-length",
        b"upload-metadata",
        b"upload-offset",
    }
)
_FRAMING: Final = frozenset({b"content-length", REQUEST_ID_HEADER.lower().encode()})
_NOT_OF_THE_ANSWER: Final = _FRAMING | {b"content-encoding", b"content-type", b"etag"}
_MAX_ANSWER: Final = 1024 * 1024
"""Bytes of an answer of Immich's that is read as JSON; a real one has about 70."""


class FileSource(ByteSource, Protocol):
    """The bytes of a file, whose first ones can be looked at beforehand."""

    async def peek(self, size: int) -> bytes:
        """The first `size` bytes or more, fewer only if there are no more."""


class BackgroundUpload:
    """The handler of the route, for all its methods."""

    def __init__(self, config: Config, upstream: Upstream, resumable: Resumable | None) -> None:
        self._config = config
        self._upstream = upstream
        self._resumable = resumable

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer any method on the route."""
        if request.method == "OPTIONS":
            # A client asks so whether uploads can be resumed. Immich, which knows nothing of
            # this route, must not be asked in our place.
            if self._resumable is None:
                raise NotImplementedHere("resumable uploads are not offered")
            return self._resumable.options(request)
        if request.method != "POST":
            raise MethodNotAllowed(request.method, "POST")
        request[RECORD].upload = ""  # there is one now, and something will become of it
        parameters = query_parameters(request, HEADER_OF)
        require_credentials(request, parameters)
        if request.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise UnsupportedMediaType("the body must be the file itself, without Content-Encoding")
        asset = Asset.parse(_value_reader(request, parameters))
        if self._resumable is not None and may_be_resumable(request.headers):
            owner = credentials_digest(request)
            if (creation := self._resumable.wanted(request, owner)) is not None:
                upload = self._resumable_upload(
                    request, asset, creation.length, owner, whole=creation.complete
                )
                query = credential_query(request)
                return await self._resumable.begin(request, creation, upload, owner, query)
        elif is_partial(request.raw_headers):
            raise NotImplementedHere("this upload would be a part, and can't be resumed here")
        body = IncomingBody(
            request,
            idle_timeout=self._config.body_idle_timeout,
            limit=self._config.max_stream_size,
            digests=parse_digest_fields(request.headers.items()),
            fast_path=self._config.fast_path == "auto",
        )
        with body:
            async with self._sent(request, asset, body, body.length) as answer:
                return await _answer(request, answer)

    def begin(
        self, request: web.Request, metadata: Mapping[str, str], length: int
    ) -> tuple[Upload, str, str]:
        """An upload whose photo `metadata` describes: `resumable.tus_resource.Begin`."""
        parameters = query_parameters(request, HEADER_OF)
        require_credentials(request, parameters)
        read = _value_reader(request, parameters)
        asset = Asset.parse(lambda header: metadata_value(metadata, header) or read(header))
        owner = credentials_digest(request)
        upload = self._resumable_upload(request, asset, length, owner, whole=False)
        return upload, owner, credential_query(request)

    @asynccontextmanager
    async def _sent(
        self, request: web.Request, asset: Asset, body: FileSource, length: int | None
    ) -> AsyncIterator[Answer]:
        """Send the form around `body`; of `request` only its head is of interest."""
        target = _IMMICH_ROUTE + credential_query(request).encode("utf-8", "surrogateescape")
        headers = forwarded_by_us(
            request,
            without(end_to_end(request.raw_headers), _NOT_FOR_THE_FORM),
            host=self._upstream.host,
            trusted=self._config.trusted_proxies,
        )
        first = await body.peek(SNIFF_BYTES if asset.needs_sniffing else 1)
        if not first:
            raise BadRequest("the body is empty")
        filename, content_type = asset.file(first)
        del first  # up to some hundred kilobytes, and the upload may take hours
        form = AssetForm(
            asset.form_fields(filename),
            filename=filename,
            content_type=content_type,
            body=body,
            length=length,
        )
        headers.append((b"Content-Type", form.headers["Content-Type"].encode()))
        if form.size is not None:
            headers.append((b"Content-Length", b"%d" % form.size))
        async with self._upstream.request("POST", target, headers, form) as answer:
            yield answer

    def _resumable_upload(
        self,
        request: web.Request,
        asset: Asset,
        length: int | None,
        owner: str,
        *,
        whole: bool,
    ) -> Upload:
        """`whole`: the request brings all of the file, so that a digest of its content counts."""
        digests = parse_digest_fields(
            (name, value)
            for name, value in request.headers.items()
            if whole or name.lower() != "content-digest"
        )

        async def send(body: JoinedBody) -> Finished:
            async with self._sent(request, asset, body, length) as answer:
                return await _finished(answer)

        async def authorize(other: web.Request) -> None:
            if not hmac.compare_digest(credentials_digest(other), owner):
                raise NotFound("there is no such upload, or no longer")

        return Upload(ImmichUpload(send, digests), length, authorize)


async def _answer(request: web.Request, answer: Answer) -> web.StreamResponse:
    """Immich's answer, with what the app can only see in headers."""
    record = request[RECORD]
    record.upstream = answer
    if not _confirms(answer):
        record.upload = REFUSED
        return await relay(request, answer, extra_headers=[_failure(answer)])
    record.upload, headers, text = await _success(answer)
    response = RelayedResponse(
        answer.status,
        answer.reason or "",
        [
            *headers,
            (b"Content-Length", b"%d" % len(text)),
            (REQUEST_ID_HEADER.encode(), record.request_id.encode()),
        ],
        chunked=False,
        has_body=True,
    )
    await response.prepare(request)
    await response.write(text)
    return response


async def _finished(answer: Answer) -> Finished:
    """The same as a value, for clients that may come back for it."""
    if _confirms(answer):
        verdict, headers, text = await _success(answer)
    else:
        verdict, text = REFUSED, await _read(answer)
        headers = [*without(end_to_end(answer.raw_headers), _FRAMING), _failure(answer)]
    decoded = [
        (name.decode("latin-1"), value.decode("utf-8", "replace")) for name, value in headers
    ]
    return Finished(answer.status, text, decoded, verdict)


def _confirms(answer: Answer) -> bool:
    """Whether Immich took the photo; raises `BadGateway` for what answers no upload."""
    if 300 <= answer.status < 400:
        # iOS would follow it with a GET and take that answer for the upload's.
        raise BadGateway(f"Immich answered with a redirect ({answer.status})")
    if answer.status < 300 and answer.status not in (200, 201):
        raise BadGateway(f"Immich answered {answer.status}, which confirms no upload")
    return answer.status < 300


def _failure(answer: Answer) -> tuple[bytes, bytes]:
    return BRIDGE_ERROR_HEADER.encode(), b"immich_%d" % answer.status


async def _success(answer: Answer) -> tuple[str, list[tuple[bytes, bytes]], bytes]:
    """What became of a photo that Immich took, and the head and body that say so."""
    result = await _read_result(answer)
    duplicate = result.get("status") == DUPLICATE
    verdict = DUPLICATE if duplicate else CREATED
    headers = [
        *without(end_to_end(answer.raw_headers), _NOT_OF_THE_ANSWER),
        (b"Content-Type", b"application/json; charset=utf-8"),
        (b"X-Immich-Asset-Id", result["id"].encode()),
        (b"X-Immich-Status", verdict.encode()),
    ]
    text = json.dumps({**result, "duplicate": duplicate}, ensure_ascii=False).encode()
    return verdict, headers, text


async def _read_result(answer: Answer) -> dict[str, Any]:
    """The JSON of a success. What is not Immich's must not pass for a stored photo."""
    try:
        result = json.loads(await _read(answer))
    except ValueError:
        result = None
    if not isinstance(result, dict) or not _is_id(result.get("id")):
        raise BadGateway(f"Immich answered {answer.status} without the id of an asset")
    return result


async def _read(answer: Answer) -> bytes:
    text = bytearray()
    while len(text) <= _MAX_ANSWER and (piece := await answer.content.readany()):
        text += piece
    return bytes(text)


def _is_id(value: object) -> bool:
    return (
        isinstance(value, str) and value.isascii() and value.isprintable() and 0 < len(value) < 100
    )


def _value_reader(request: web.Request, parameters: dict[str, str]) -> Callable[[str], str | None]:
    """Reads a piece of metadata: from its header, else from its query parameter."""

    # Backwards, so that the first of a name counts.
    fields = {name.lower(): value for name, value in reversed(request.raw_headers)}

    def value_of(header: str) -> str | None:
        raw = fields.get(header.lower().encode())
        if raw:
            try:
                return raw.decode()
            except UnicodeDecodeError:
                return raw.decode("latin-1")
        return parameters.get(PARAMETERS[header]) or None

    return value_of
