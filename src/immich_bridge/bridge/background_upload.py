"""`POST /api/assets/background`: the raw bytes of a photo in, Immich's upload form out."""

import json
from collections.abc import Callable
from typing import Any, Final
from urllib.parse import parse_qsl

from aiohttp import web

from immich_bridge.body import IncomingBody
from immich_bridge.bridge.asset import PARAMETERS, Asset
from immich_bridge.bridge.exchange import Answer
from immich_bridge.bridge.form import AssetForm
from immich_bridge.bridge.forwarded import forwarded_by_us
from immich_bridge.bridge.headers import RawHeaders, end_to_end, without
from immich_bridge.bridge.relay import RelayedResponse, relay
from immich_bridge.bridge.upstream import Upstream
from immich_bridge.config import Config
from immich_bridge.digests import parse_digest_fields
from immich_bridge.errors import (
    BadGateway,
    BadRequest,
    MethodNotAllowed,
    NotImplementedHere,
    Unauthorized,
    UnsupportedMediaType,
)
from immich_bridge.http.error_answer import BRIDGE_ERROR_HEADER
from immich_bridge.http.metrics import CREATED, DUPLICATE, REFUSED
from immich_bridge.http.middleware import REQUEST_ID_HEADER
from immich_bridge.http.record import RECORD
from immich_bridge.media_types import SNIFF_BYTES

ROUTE: Final = "/api/assets/background"
_IMMICH_ROUTE: Final = b"/api/assets"

_CREDENTIAL_HEADERS: Final = (
    "x-api-key",
    "Authorization",
    "x-immich-user-token",
    "x-immich-session-token",
    "x-immich-share-key",
    "x-immich-share-slug",
)
_CREDENTIAL_COOKIE: Final = "immich_access_token"
_CREDENTIAL_PARAMETERS: Final = frozenset({"apiKey", "key", "slug"})

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
    }
)
_NOT_OF_THE_ANSWER: Final = frozenset(
    {
        b"content-encoding",
        b"content-length",
        b"content-type",
        b"etag",
        REQUEST_ID_HEADER.lower().encode(),
    }
)
_MAX_ANSWER: Final = 1024 * 1024
"""Bytes of an answer of Immich's that is read as JSON; a real one has about 70."""


class BackgroundUpload:
    """The handler of the route, for all its methods."""

    def __init__(self, config: Config, upstream: Upstream) -> None:
        self._config = config
        self._upstream = upstream

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer any method on the route."""
        if request.method == "OPTIONS":
            # A client asks so whether uploads can be resumed. They cannot, and Immich,
            # which knows nothing of this route, must not be asked in our place.
            raise NotImplementedHere("resumable uploads are not offered")
        if request.method != "POST":
            raise MethodNotAllowed(request.method, "POST")
        request[RECORD].upload = ""  # there is one now, and something will become of it
        parameters = _parameters(request)
        _require_credentials(request, parameters)
        if request.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise UnsupportedMediaType("the body must be the file itself, without Content-Encoding")
        asset = Asset.parse(_value_reader(request, parameters))
        body = IncomingBody(
            request,
            idle_timeout=self._config.body_idle_timeout,
            limit=self._config.max_stream_size,
            digests=parse_digest_fields(request.headers.items()),
            fast_path=self._config.fast_path == "auto",
        )
        with body:
            return await self._upload(request, asset, body)

    async def _upload(
        self, request: web.Request, asset: Asset, body: IncomingBody
    ) -> web.StreamResponse:
        first = await body.peek(SNIFF_BYTES if asset.needs_sniffing else 1)
        if not first:
            raise BadRequest("the body is empty")
        filename, content_type = asset.file(first)
        form = AssetForm(
            asset.form_fields(filename),
            filename=filename,
            content_type=content_type,
            body=body,
            length=body.length,
        )
        target = _IMMICH_ROUTE + _credential_query(request)
        headers = self._headers(request, form)
        async with self._upstream.request("POST", target, headers, form) as answer:
            return await _answer(request, answer)

    def _headers(self, request: web.Request, form: AssetForm) -> RawHeaders:
        headers = without(end_to_end(request.raw_headers), _NOT_FOR_THE_FORM)
        headers.append((b"Content-Type", form.headers["Content-Type"].encode()))
        if form.size is not None:
            headers.append((b"Content-Length", b"%d" % form.size))
        return forwarded_by_us(
            request, headers, host=self._upstream.host, trusted=self._config.trusted_proxies
        )


async def _answer(request: web.Request, answer: Answer) -> web.StreamResponse:
    """Immich's answer, with what the app can only see in headers."""
    record = request[RECORD]
    record.upstream = answer
    if 300 <= answer.status < 400:
        # iOS would follow it with a GET and take that answer for the upload's.
        raise BadGateway(f"Immich answered with a redirect ({answer.status})")
    if answer.status not in (200, 201):
        if answer.status < 300:
            raise BadGateway(f"Immich answered {answer.status}, which confirms no upload")
        record.upload = REFUSED
        failure = (BRIDGE_ERROR_HEADER.encode(), b"immich_%d" % answer.status)
        return await relay(request, answer, extra_headers=[failure])
    result = await _read_result(answer)
    duplicate = result.get("status") == DUPLICATE
    verdict = record.upload = DUPLICATE if duplicate else CREATED
    text = json.dumps({**result, "duplicate": duplicate}, ensure_ascii=False).encode()
    response = RelayedResponse(
        answer.status,
        answer.reason or "",
        [
            *without(end_to_end(answer.raw_headers), _NOT_OF_THE_ANSWER),
            (b"Content-Type", b"application/json; charset=utf-8"),
            (b"Content-Length", b"%d" % len(text)),
            (b"X-Immich-Asset-Id", result["id"].encode()),
            (b"X-Immich-Status", verdict.encode()),
            (REQUEST_ID_HEADER.encode(), record.request_id.encode()),
        ],
        chunked=False,
        has_body=True,
    )
    await response.prepare(request)
    await response.write(text)
    return response


async def _read_result(answer: Answer) -> dict[str, Any]:
    """The JSON of a success. What is not Immich's must not pass for a stored photo."""
    text = bytearray()
    while len(text) <= _MAX_ANSWER and (piece := await answer.content.readany()):
        text += piece
    try:
        result = json.loads(text)
    except ValueError:
        result = None
    if not isinstance(result, dict) or not _is_id(result.get("id")):
        raise BadGateway(f"Immich answered {answer.status} without the id of an asset")
    return result


def _is_id(value: object) -> bool:
    return (
        isinstance(value, str) and value.isascii() and value.isprintable() and 0 < len(value) < 100
    )


def _parameters(request: web.Request) -> dict[str, str]:
    """The query parameters; the first of a name counts."""
    query = request.raw_path.partition("?")[2].partition("#")[0]
    try:
        pairs = parse_qsl(query, keep_blank_values=True, errors="strict")
    except ValueError:
        raise BadRequest("the query string is not percent-encoded UTF-8") from None
    return dict(reversed(pairs))


def _require_credentials(request: web.Request, parameters: dict[str, str]) -> None:
    """Immich would refuse too, but only after a connection was made and bytes were sent."""
    if (
        any(request.headers.get(name) for name in _CREDENTIAL_HEADERS)
        or request.cookies.get(_CREDENTIAL_COOKIE)
        or any(parameters.get(name) for name in _CREDENTIAL_PARAMETERS)
    ):
        return
    raise Unauthorized("no credentials for Immich: send x-api-key or another that Immich takes")


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


def _credential_query(request: web.Request) -> bytes:
    """The part of the query that Immich authenticates by, as it came."""
    query = request.raw_path.partition("?")[2].partition("#")[0]
    kept = [pair for pair in query.split("&") if pair.partition("=")[0] in _CREDENTIAL_PARAMETERS]
    return b"?" + "&".join(kept).encode("utf-8", "surrogateescape") if kept else b""
