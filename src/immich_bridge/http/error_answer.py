"""How an error looks on the wire: `{"error": code, "message": text}`."""

import json
from typing import Any, Final

from aiohttp import web

from immich_bridge.errors import BridgeError

BRIDGE_ERROR_HEADER: Final = "X-Bridge-Error"
"""Names the error in a header, since iOS shows an app only the headers of an answer to a
background upload. Answers of Immich's that we pass on never bear our codes."""


def error_answer(error: BridgeError) -> web.Response:
    """The answer for `error`, which is a problem of RFC 9457 too where it has a type."""
    content: dict[str, Any] = {"error": error.code, "message": error.message}
    if error.problem_type:
        problem = {"type": error.problem_type, "title": error.message, "status": error.status}
        content |= {**problem, **error.details}
    return web.Response(
        status=error.status,
        body=json.dumps(content).encode(),
        headers={BRIDGE_ERROR_HEADER: error.code, **error.headers},
        content_type="application/problem+json" if error.problem_type else "application/json",
    )
