"""The recorded requests as bytes.

That the rebuilt body has the recorded Content-Length, to the byte, is what makes it credible.
"""

from __future__ import annotations

import hashlib
import re
from base64 import b64encode
from dataclasses import dataclass

from immich_standin import StandIn

from .bodies import DART, WHOLE, Known, Recording, body
from .forms import BOUNDARY, JPEG
from .wire import Headers, chunks, head

KEYS = {
    "d.wrong-key": "nope",
    "x.early-401": "nope",
    "d.readonly-key": StandIn.readonly_api_key,
    "x.same-content-other-user": StandIn.other_api_key,
    "x.checksum-header-of-other-users-asset": StandIn.other_api_key,
}
# Of these the recording does not hold the whole head.
BARE = (
    "l.chunked-closing-boundary-sent-final-chunk-withheld",
    "l.content-length-1000-larger-than-multipart",
    "l.partial-file-lifetime-fin",
    "l.partial-file-lifetime-rst",
    "r.ws-connect-apikey",
    "r.ws-connect-cookie",
    "r.ws-connect-noauth",
    "s.asset-json-gzip",
    "x.chunk-ext-and-trailers",
    "x.early-401-then-client-idle",
    "x.four-concurrent-identical",
)
CHUNK_SIZES = {"h.chunked-2MB-1000-byte-chunks": 1000, "h.chunked-7-byte-chunks": 7}
# The Content-Length of these is wrong on purpose, or their body is not known to the byte.
OTHER_LENGTH = (
    "c.bulk-upload-check",
    "h.chunked-and-content-length",
    "h.content-length-too-long-by-10-then-halfclose",
    "h.content-length-too-short-by-2",
    "l.content-length-1000-larger-than-multipart",
)


LENGTHS = {
    "l.content-length-1000-larger-than-multipart": len(WHOLE) + 1000,
    # Recorded with fields that the summary does not tell.
    "x.dart-http-shape": len(DART),
}


@dataclass
class Request:
    name: str
    method: str
    target: str
    headers: Headers
    body: bytes

    @property
    def head(self) -> bytes:
        return head(self.method, self.target, self.headers)

    @property
    def chunked(self) -> bool:
        return ("Transfer-Encoding", "chunked") in self.headers

    @property
    def unfinished(self) -> bytes:
        """The body as it goes over the wire, but for the last chunk."""
        if not self.chunked:
            return self.body
        extension = b";ext=1" if self.name == "x.chunk-ext-and-trailers" else b""
        return chunks(self.body, CHUNK_SIZES.get(self.name, 65536), extension)

    @property
    def framed(self) -> bytes:
        """The body as it goes over the wire."""
        if not self.chunked:
            return self.body
        trailer = b"X-T: 1\r\n" if self.name == "x.chunk-ext-and-trailers" else b""
        return self.unfinished + b"0\r\n" + trailer + b"\r\n"


def rebuild(recording: Recording, known: Known) -> Request:
    name, recorded = recording["name"], recording["request"]
    content = body(recording, known)
    target = recorded["path"].replace("<redacted>", StandIn.api_key)
    target = target.replace("<key>", StandIn.api_key)
    if known:
        target = re.sub(r"(?<=/assets/)[0-9a-f]{8}-[0-9a-f-]{27}", [*known.values()][-1], target)
    headers = [(key, _header(name, key, value)) for key, value in recorded["headers"]]
    if name in BARE:
        headers += _missing(name, headers, content)
    return Request(name, recorded["method"], target, headers, content)


def _header(name: str, key: str, value: str) -> str:
    lower = key.lower()
    if lower == "x-api-key":
        return next((key for start, key in KEYS.items() if name.startswith(start)), "standin-key")
    if lower == "authorization":
        return f"Bearer {StandIn.access_token}"
    if lower == "cookie":
        return f"immich_access_token={StandIn.access_token}"
    if lower == "x-immich-checksum" and name not in (
        "c.checksum-unknown-hash",
        "c.checksum-garbage",
    ):
        sha1 = hashlib.sha1(JPEG)
        if len(value) != 40:
            return b64encode(sha1.digest()).decode()
        return sha1.hexdigest().upper() if value.isupper() else sha1.hexdigest()
    if repeated := re.fullmatch(r"(.)\1\1\*(\d+)", value):
        return repeated[1] * int(repeated[2])
    if name in LENGTHS and lower == "content-length":
        return str(LENGTHS[name])
    return value


def _missing(name: str, headers: Headers, content: bytes) -> Headers:
    if name.startswith("r."):
        upgrade = [
            ("Upgrade", "websocket"),
            ("Connection", "Upgrade"),
            ("Sec-WebSocket-Version", "13"),
            ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ]
        credentials = {
            "r.ws-connect-apikey": [("x-api-key", StandIn.api_key)],
            "r.ws-connect-cookie": [("Cookie", f"immich_access_token={StandIn.access_token}")],
        }
        return upgrade + credentials.get(name, [])
    added = [("x-api-key", _header(name, "x-api-key", ""))]
    if not content:
        return added
    added += [
        ("Content-Type", f"multipart/form-data; boundary={BOUNDARY.decode()}"),
    ]
    if not any(key in ("Content-Length", "Transfer-Encoding") for key, _ in headers):
        added.append(("Content-Length", str(len(content))))
    return added
