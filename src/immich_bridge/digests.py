"""Checksums that a client may send along, and the check of the bytes against them.

Two ways to say it are understood: `x-immich-checksum` (SHA-1, as Immich's own clients
write it) and `Repr-Digest` / `Content-Digest` (RFC 9530, sha-256 and sha-512).
"""

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Iterable
from typing import Final

from immich_bridge.errors import BadRequest, ChecksumMismatch

SHA1_HEX_LENGTH: Final = 40
_RFC9530_ALGORITHMS: Final = {"sha-256": "sha256", "sha-512": "sha512"}
# One member of an RFC 8941 dictionary whose value is a byte sequence: key=:base64:
_DIGEST_MEMBER: Final = re.compile(r"\s*([a-z*][a-z0-9_.*-]*)=:([A-Za-z0-9+/=]*):\s*(?:;[^,]*)?")


class ExpectedDigest:
    """One promised checksum: fed with the bytes as they pass, compared at their end."""

    def __init__(self, header: str, algorithm: str, expected: bytes) -> None:
        self.header = header
        self._expected = expected
        # SHA-1 is what Immich identifies assets by; it guards against damage, not attack.
        self._hash = hashlib.new(algorithm, usedforsecurity=False)
        if len(expected) != self._hash.digest_size:
            raise BadRequest(f"{header} has the wrong length for {algorithm}")
        self.update = self._hash.update

    def check(self) -> None:
        """Raise `ChecksumMismatch` unless the bytes fed so far are the promised ones."""
        if not hmac.compare_digest(self._hash.digest(), self._expected):
            raise ChecksumMismatch(f"the bytes received do not match {self.header}")


def parse_immich_checksum(value: str) -> ExpectedDigest | None:
    """Read `x-immich-checksum`: SHA-1 in hex or base64; None when it is neither.

    Immich treats an unreadable value as absent (it only looks for duplicates by it), so
    an unreadable one is no reason to refuse a photo.
    """
    value = value.strip()
    try:
        if len(value) == SHA1_HEX_LENGTH:
            expected = bytes.fromhex(value)
        else:
            expected = base64.b64decode(value, validate=True)
    except (ValueError, binascii.Error):
        return None
    if len(expected) != hashlib.sha1(usedforsecurity=False).digest_size:
        return None
    return ExpectedDigest("x-immich-checksum", "sha1", expected)


def parse_digest_field(header: str, value: str) -> list[ExpectedDigest]:
    """Read `Repr-Digest` or `Content-Digest` (RFC 9530 section 2 and 3).

    Algorithms that we do not know are ignored, as the RFC asks; a known one that cannot
    be read raises `BadRequest`, since its sender relies on the check.
    """
    digests = []
    for member in value.split(","):
        match = _DIGEST_MEMBER.fullmatch(member)
        name = match[1] if match else member.partition("=")[0].strip().lower()
        algorithm = _RFC9530_ALGORITHMS.get(name)
        if algorithm is None:
            continue
        if match is None:
            raise BadRequest(f"{header} is not of the form {name}=:base64:")
        try:
            expected = base64.b64decode(match[2], validate=True)
        except binascii.Error:
            raise BadRequest(f"{header} holds no valid base64 for {name}") from None
        digests.append(ExpectedDigest(header, algorithm, expected))
    return digests


def parse_digest_fields(fields: Iterable[tuple[str, str]]) -> list[ExpectedDigest]:
    """Every checksum that the header fields `(name, value)` of a request promise."""
    digests: list[ExpectedDigest] = []
    for name, value in fields:
        match name.lower():
            case "x-immich-checksum":
                if (digest := parse_immich_checksum(value)) is not None:
                    digests.append(digest)
            case "repr-digest":
                digests += parse_digest_field("Repr-Digest", value)
            case "content-digest":
                digests += parse_digest_field("Content-Digest", value)
    return digests
