"""The query string of a request, read as strictly as a body would be."""

from urllib.parse import parse_qsl

from aiohttp import web

from immich_bridge.errors import BadRequest


def query_parameters(request: web.Request) -> dict[str, str]:
    """The query parameters; the first of a name counts.

    Raises `BadRequest` for what is not percent-encoded UTF-8. aiohttp would read replacement
    characters in its place, and so one id for many.
    """
    query = request.raw_path.partition("?")[2].partition("#")[0]
    try:
        pairs = parse_qsl(query, keep_blank_values=True, errors="strict")
    except ValueError:
        raise BadRequest("the query string is not percent-encoded UTF-8") from None
    return dict(reversed(pairs))
