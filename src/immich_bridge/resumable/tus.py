"""tus 1.0.0 (tus.io), the older protocol of resumable uploads: heads in, decisions out."""

import base64
import binascii
from collections.abc import Mapping
from email.utils import formatdate
from typing import Final

from immich_bridge.digests import ExpectedDigest
from immich_bridge.errors import BadRequest

VERSION: Final = "1.0.0"
CONTENT_TYPE: Final = "application/offset+octet-stream"
VERSION_HEADER: Final = "Tus-Resumable"

_EXTENSIONS: Final = "creation,creation-with-upload,termination,expiration,checksum"
_CHECKSUM_ALGORITHMS: Final = ("sha1", "sha256", "sha512", "md5")
_MAX_METADATA: Final = 16 * 1024


def offer(max_size: int) -> Mapping[str, str]:
    """What a server says of itself; `max_size` bytes, 0: any number."""
    headers = {
        VERSION_HEADER: VERSION,
        "Tus-Version": VERSION,
        "Tus-Extension": _EXTENSIONS,
        "Tus-Checksum-Algorithm": ",".join(_CHECKSUM_ALGORITHMS),
    }
    return {**headers, "Tus-Max-Size": str(max_size)} if max_size else headers


def state_headers(offset: int, length: int | None, expires: float) -> Mapping[str, str]:
    """What an answer tells of an upload; `expires` in unix seconds."""
    headers = {
        VERSION_HEADER: VERSION,
        "Upload-Offset": str(offset),
        "Upload-Expires": formatdate(expires, usegmt=True),
        "Cache-Control": "no-store",
    }
    return headers if length is None else {**headers, "Upload-Length": str(length)}


def parse_number(name: str, text: str | None) -> int:
    """`Upload-Length` or `Upload-Offset`; raises `BadRequest`."""
    text = (text or "").strip()
    if not (text.isascii() and text.isdigit() and len(text) <= 15):
        raise BadRequest(f"{name} has to be a number")
    return int(text)


def parse_metadata(text: str) -> Mapping[str, str]:
    """`Upload-Metadata`: names, each with a value in base64 of UTF-8, or with none.

    Raises `BadRequest`.
    """
    if len(text) > _MAX_METADATA:
        raise BadRequest(f"Upload-Metadata is longer than {_MAX_METADATA} bytes")
    metadata: dict[str, str] = {}
    for pair in filter(None, map(str.strip, text.split(","))):
        name, _, encoded = pair.partition(" ")
        if name in metadata:
            raise BadRequest("Upload-Metadata holds a name twice")
        try:
            metadata[name] = base64.b64decode(encoded.strip(), validate=True).decode()
        except (binascii.Error, ValueError):
            raise BadRequest("Upload-Metadata is not base64 of UTF-8") from None
    return metadata


def parse_checksum(text: str) -> ExpectedDigest:
    """`Upload-Checksum`, of the bytes of one request; raises `BadRequest`."""
    algorithm, _, encoded = text.strip().partition(" ")
    if algorithm not in _CHECKSUM_ALGORITHMS:
        raise BadRequest(f"Upload-Checksum takes {', '.join(_CHECKSUM_ALGORITHMS)}")
    try:
        expected = base64.b64decode(encoded.strip(), validate=True)
    except binascii.Error:
        raise BadRequest("Upload-Checksum holds no valid base64") from None
    return ExpectedDigest("Upload-Checksum", algorithm, expected)
