"""Resumable Uploads for HTTP (draft-ietf-httpbis-resumable-upload): heads in, decisions out.

Clients name the iteration of the draft that they speak in `Upload-Draft-Interop-Version`:
iOS 17 says 3, iOS 18.0 says 5, later ones 6, and iOS 26 says 8. What differs between them stands in
one table.
"""

import re
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from immich_bridge.errors import BadRequest, UnsupportedMediaType
from immich_bridge.resumable.problems import InconsistentLength

PARTIAL_UPLOAD: Final = "application/partial-upload"
MAX_INTEGER: Final = 999_999_999_999_999
"""The largest integer of a structured field (RFC 9651 3.3.1)."""

_VERSION_HEADER: Final = "Upload-Draft-Interop-Version"
# Items (RFC 9651); their parameters mean nothing here.
_INTEGER: Final = re.compile(rb"([0-9]{1,15}) *(?:;.*)?")
_BOOLEAN: Final = re.compile(rb"\?([01]) *(?:;.*)?")
# Repeated, or in a list, they are no item; but whoever wrote them does not mean a whole upload.
_SAYS_PARTIAL: Final = {
    b"upload-complete": re.compile(rb"(?:^|,)[ \t]*\?0"),
    b"upload-incomplete": re.compile(rb"(?:^|,)[ \t]*\?1"),
}

Headers = Sequence[tuple[bytes, bytes]]


@dataclass(frozen=True)
class Dialect:
    """One iteration of the draft."""

    version: int
    says_incomplete: bool = False
    """Speaks of `Upload-Incomplete`, the opposite of `Upload-Complete`."""
    types_appends: bool = True
    """What is appended has a media type of its own."""
    knows_limits: bool = True
    """Has `Upload-Limit`."""

    def completeness(self, complete: bool) -> tuple[str, str]:
        """The header field that says whether an upload is complete."""
        if self.says_incomplete:
            return "Upload-Incomplete", "?0" if complete else "?1"
        return "Upload-Complete", "?1" if complete else "?0"

    def is_complete(self, headers: Headers) -> bool | None:
        """Whether a request completes its upload; None if it does not say."""
        name = "Upload-Incomplete" if self.says_incomplete else "Upload-Complete"
        match = _BOOLEAN.fullmatch(_only_value(headers, name))
        return None if match is None else (match[1] == b"1") != self.says_incomplete


_DIALECTS: Final = {
    dialect.version: dialect
    for dialect in (
        Dialect(3, says_incomplete=True, types_appends=False, knows_limits=False),  # draft 01
        Dialect(4, types_appends=False, knows_limits=False),  # draft 02
        Dialect(5, types_appends=False, knows_limits=False),  # draft 03
        Dialect(6),  # drafts 04 and 05
        Dialect(7),  # drafts 06 to 08
        Dialect(8),  # drafts 09 and later
    )
}


@dataclass(frozen=True)
class Creation:
    """A request that begins an upload."""

    dialect: Dialect
    complete: bool
    """Whether this request brings all of it."""
    length: int | None
    """Bytes of the whole upload, if they are known."""


@dataclass(frozen=True)
class Append:
    """A request that goes on with an upload."""

    offset: int
    complete: bool
    length: int | None


@dataclass(frozen=True)
class Limits:
    """What an upload may be."""

    max_size: int
    """Bytes; 0: any number."""
    max_age: int | None = None
    """Seconds for which the upload will be kept; None before there is one."""

    def header(self) -> str:
        """The value of `Upload-Limit`."""
        members = [f"max-size={self.max_size or MAX_INTEGER}", "min-size=0"]
        if self.max_age is not None:
            members.append(f"max-age={self.max_age}")
        return ", ".join(members)


def dialect_of(headers: Headers) -> Dialect | None:
    """The iteration of the draft that a client speaks, if we do."""
    version = _integer(headers, _VERSION_HEADER)
    return None if version is None else _DIALECTS.get(version)


def may_be_resumable(names: Container[str]) -> bool:
    """Whether a request with fields of these names may be more than an ordinary upload."""
    return "Upload-Complete" in names or "Upload-Incomplete" in names


def is_partial(headers: Headers) -> bool:
    """Whether a request says, in any dialect, that more of its upload is to come."""
    return any(
        _SAYS_PARTIAL[name.lower()].search(value)
        for name, value in headers
        if name.lower() in _SAYS_PARTIAL
    )


def parse_creation(headers: Headers, content_length: int | None) -> Creation | None:
    """What a request asks for that begins an upload; None: nothing that is known here.

    Raises `InconsistentLength`.
    """
    dialect = dialect_of(headers)
    complete = dialect.is_complete(headers) if dialect else None
    if dialect is None or complete is None:
        return None
    return Creation(dialect, complete, _length(headers, content_length, complete, offset=0))


def parse_append(dialect: Dialect, headers: Headers, content_length: int | None) -> Append:
    """What a request asks for that goes on with an upload.

    Raises `BadRequest`, `InconsistentLength` and `UnsupportedMediaType`.
    """
    if dialect.types_appends:
        media_type = _only_value(headers, "Content-Type").partition(b";")[0].strip().lower()
        if media_type != PARTIAL_UPLOAD.encode():
            raise UnsupportedMediaType(f"what is appended has to be {PARTIAL_UPLOAD}")
    offset = _integer(headers, "Upload-Offset")
    complete = dialect.is_complete(headers)
    if offset is None or complete is None:
        name, _ = dialect.completeness(True)
        raise BadRequest(f"Upload-Offset (a number) and {name} (?0 or ?1) are required")
    return Append(offset, complete, _length(headers, content_length, complete, offset))


def interim_answer(dialect: Dialect, location: str, limits: Limits) -> bytes:
    """`104 Upload Resumption Supported`, as it goes out before the answer proper."""
    lines = [
        "HTTP/1.1 104 Upload Resumption Supported",
        f"{_VERSION_HEADER}: {dialect.version}",
        f"Location: {location}",
    ]
    if dialect.knows_limits:
        lines.append(f"Upload-Limit: {limits.header()}")
    return "\r\n".join([*lines, "", ""]).encode()


def state_headers(
    dialect: Dialect, *, offset: int, complete: bool, length: int | None, limits: Limits
) -> Mapping[str, str]:
    """What an answer tells of the state of an upload."""
    name, value = dialect.completeness(complete)
    headers = {
        _VERSION_HEADER: str(dialect.version),
        "Upload-Offset": str(offset),
        name: value,
        "Cache-Control": "no-store",
    }
    if dialect.knows_limits:
        headers["Upload-Limit"] = limits.header()
        if length is not None:
            headers["Upload-Length"] = str(length)
    return headers


def _length(
    headers: Headers, content_length: int | None, complete: bool, offset: int
) -> int | None:
    """The length of the whole upload as a request gives it, in either or both of two ways."""
    said = _integer(headers, "Upload-Length")
    counted = offset + content_length if complete and content_length is not None else None
    if said is not None and counted is not None and said != counted:
        raise InconsistentLength(f"Upload-Length is {said}, but {counted} bytes would be sent")
    return counted if said is None else said


def _integer(headers: Headers, name: str) -> int | None:
    match = _INTEGER.fullmatch(_only_value(headers, name))
    return None if match is None else int(match[1])


def _only_value(headers: Headers, name: str) -> bytes:
    """The value of a field; one that is there twice is no item, and counts as absent."""
    wanted = name.lower().encode()
    values = [value for field, value in headers if field.lower() == wanted]
    return values[0].strip() if len(values) == 1 else b""
