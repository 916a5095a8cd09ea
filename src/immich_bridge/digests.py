"""Checksums that a client may send along, and the check of the bytes against them.

Two ways to say it are understood: `x-immich-checksum` (SHA-1, as Immich's own clients
write it) and `Repr-Digest` / `Content-Digest` (RFC 9530, sha-256 and sha-512), which are
dictionaries of structured fields (RFC 9651).
"""

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Iterable
from contextlib import suppress
from typing import Final, cast

from http_sf import DictionaryType, StructuredFieldError, parse

from immich_bridge.errors import BadRequest, ChecksumMismatch

SHA1_HEX_LENGTH: Final = 40
_RFC9530_ALGORITHMS: Final = {"sha-256": "sha256", "sha-512": "sha512"}
_SPACE_BEFORE_PARAMETER: Final = re.compile(r"[ \t]+;")


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
    """Read `Repr-Digest` or `Content-Digest` (RFC 9530 section 2 and 3), all its lines in one.

    Algorithms that we do not know are ignored, as the RFC asks; a known one that cannot
    be read raises `BadRequest`, since its sender relies on the check.
    """
    digests = []
    for name, member in _members(header, value).items():
        if (algorithm := _RFC9530_ALGORITHMS.get(name)) is None:
            continue
        expected = member[0] if isinstance(member, tuple) else member
        if not isinstance(expected, bytes):
            raise BadRequest(f"{header} is not of the form {name}=:base64:")
        digests.append(ExpectedDigest(header, algorithm, expected))
    return digests


def parse_digest_fields(fields: Iterable[tuple[str, str]]) -> list[ExpectedDigest]:
    """Every checksum that the header fields `(name, value)` of a request promise."""
    lines: dict[str, list[str]] = {}
    for name, value in fields:
        lines.setdefault(name.lower(), []).append(value)
    checksums = map(parse_immich_checksum, lines.get("x-immich-checksum", ()))
    digests = [digest for digest in checksums if digest is not None]
    for header in ("Repr-Digest", "Content-Digest"):
        # Lines of one name are one dictionary (RFC 9651 section 4.2), empty ones no part of it.
        value = ", ".join(filter(None, lines.get(header.lower(), ())))
        digests += parse_digest_field(header, value)
    return digests


def _members(header: str, value: str) -> DictionaryType:
    """The members of a dictionary; of one that is malformed those that are not.

    RFC 9651 would have the whole field ignored then, and with it a digest whose sender relies
    on the check. So a malformed member is ignored for itself, or refused if it is a digest.
    """
    with suppress(StructuredFieldError):
        return _dictionary(value)
    members: DictionaryType = {}
    for member in value.split(","):
        try:
            members |= _dictionary(member)
        except StructuredFieldError:
            name = member.partition("=")[0].strip().lower()
            if name in _RFC9530_ALGORITHMS:
                raise BadRequest(f"{header} is not of the form {name}=:base64:") from None
    return members


def _dictionary(value: str) -> DictionaryType:
    # Some write a space before a parameter, as in other fields; here it stands behind ";" only.
    text = _SPACE_BEFORE_PARAMETER.sub(";", value.strip())
    parsed = parse(text.encode("utf-8", "surrogatepass"), tltype="dictionary")
    return cast(DictionaryType, parsed)
