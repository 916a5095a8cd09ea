"""JSON bodies of requests."""

import asyncio
import json
from typing import Any, Final

from aiohttp import web

from immich_bridge.body import IncomingBody
from immich_bridge.errors import BadRequest

INVALID_FORMAT = "Invalid request format"
_WORTH_A_THREAD: Final = 64 * 1024
"""Bytes; to parse more would keep all others waiting."""


async def read_json_object(
    request: web.Request, *, limit: int, idle_timeout: float
) -> dict[str, Any]:
    """The JSON object in the body of `request`, of `limit` bytes at most.

    Raises `BadRequest` for anything else, also for text that is no Unicode: a lone
    surrogate can be written in JSON, but neither stored nor answered.
    """
    with IncomingBody(request, idle_timeout=idle_timeout, limit=limit) as body:
        text = bytearray()
        while piece := await body.read():
            text += piece
    try:
        large = len(text) > _WORTH_A_THREAD
        value = await asyncio.to_thread(_parse, text) if large else _parse(text)
    except (ValueError, RecursionError):
        raise BadRequest(INVALID_FORMAT) from None
    if not isinstance(value, dict):
        raise BadRequest(INVALID_FORMAT)
    return value


def _parse(text: bytearray) -> object:
    value = json.loads(text.decode())  # RFC 8259 8.1: UTF-8 and nothing else
    if b"\\u" in text:
        json.dumps(value, ensure_ascii=False).encode()
    return value
