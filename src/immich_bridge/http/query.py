"""The query string of a request, read as strictly as a body would be."""

from collections.abc import Mapping
from urllib.parse import parse_qsl, unquote_plus

from aiohttp import web

from immich_bridge.errors import BadRequest


def query_parameters(
    request: web.Request, headers: Mapping[str, str] | None = None
) -> dict[str, str]:
    """The query parameters; the first of a name counts.

    Raises `BadRequest` for what is not percent-encoded UTF-8. It names the parameter, and the
    header that says the same if `headers` knows one. aiohttp would read replacement characters
    in its place, and so one id for many.
    """
    query = request.raw_path.partition("?")[2].partition("#")[0]
    pairs: list[tuple[str, str]] = []
    for pair in query.split("&"):
        try:
            pairs += parse_qsl(pair, keep_blank_values=True, errors="strict")
        except ValueError:
            name = unquote_plus(pair.partition("=")[0], errors="backslashreplace")
            raise BadRequest(f"{_named(name, headers)} is not percent-encoded UTF-8") from None
    return dict(reversed(pairs))


def _named(name: str, headers: Mapping[str, str] | None) -> str:
    header = headers.get(name) if headers else None
    if header is None:
        return f"{name} in the query string"
    return f"{header} ({name} in the query string)"
