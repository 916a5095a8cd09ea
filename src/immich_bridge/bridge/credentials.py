"""What a request proves its sender by: passed on to Immich, and never kept but as a digest."""

import hashlib
from collections.abc import Mapping
from typing import Final

from aiohttp import web

from immich_bridge.errors import Unauthorized

_HEADERS: Final = (
    "x-api-key",
    "Authorization",
    "x-immich-user-token",
    "x-immich-session-token",
    "x-immich-share-key",
    "x-immich-share-slug",
)
_COOKIE: Final = "immich_access_token"
_PARAMETERS: Final = frozenset({"apiKey", "key", "slug"})


def require_credentials(request: web.Request, parameters: Mapping[str, str]) -> None:
    """Raise `Unauthorized` unless there are any, right or wrong.

    Immich would refuse too, but only after a connection was made and bytes were sent.
    """
    if (
        any(value for name in _HEADERS for value in request.headers.getall(name, ()))
        or _access_tokens(request)
        or any(parameters.get(name) for name in _PARAMETERS)
    ):
        return
    raise Unauthorized("no credentials for Immich: send x-api-key or another that Immich takes")


def credential_query(request: web.Request) -> str:
    """The part of the query that Immich authenticates by, as it came, with its `?`."""
    query = request.raw_path.partition("?")[2].partition("#")[0]
    kept = [pair for pair in query.split("&") if pair.partition("=")[0] in _PARAMETERS]
    return "?" + "&".join(kept) if kept else ""


def credentials_digest(request: web.Request) -> str:
    """The same for two requests with the same credentials, and for no others."""
    given = [", ".join(request.headers.getall(name, ())) for name in _HEADERS]
    given += [", ".join(_access_tokens(request)), credential_query(request)]
    text = "\0".join(given).encode("utf-8", "surrogateescape")
    return hashlib.sha256(text).hexdigest()


def _access_tokens(request: web.Request) -> list[str]:
    """What cookies prove the sender by; a front that speaks HTTP/2 may send many lines of them."""
    lines = request.headers.getall("Cookie", ())
    pairs = (pair.partition("=") for line in lines for pair in line.split(";"))
    return [value.strip() for name, _, value in pairs if name.strip() == _COOKIE and value.strip()]
