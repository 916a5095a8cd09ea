"""How an error looks on the wire: `{"error": code, "message": text}`."""

import json
from typing import Final

from aiohttp import web

from immich_bridge.errors import BridgeError

BRIDGE_ERROR_HEADER: Final = "X-Bridge-Error"
"""Names the error in a header, since iOS shows an app only the headers of an answer to a
background upload. Answers of Immich's that we pass on never bear our codes."""


def error_answer(error: BridgeError) -> web.Response:
    """The answer for `error`."""
    return web.Response(
        status=error.status,
        body=json.dumps({"error": error.code, "message": error.message}).encode(),
        headers={BRIDGE_ERROR_HEADER: error.code, **error.headers},
        content_type="application/json",
    )
