"""What the bytes of a client may mean: a strict reading of RFC 9112, apart from any parser in use.

Where the RFC leaves a choice between refusing and understanding, the reading goes on as whoever
understands would, since an answer may always be a refusal.
"""

import re
from dataclasses import dataclass, replace
from enum import Enum
from hashlib import sha256
from typing import Final

_TOKEN: Final = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
# Words may be parted by more than one space (RFC 9112 3). RTSP, in all that counts here the
# same protocol, is taken by its name by the parsers of Node's family, ours among them.
_REQUEST_LINE: Final = re.compile(rb"(%b) +([!-~\x80-\xff]+) +(?:HTTP|RTSP)/1\.([01])" % _TOKEN)
_FIELD: Final = re.compile(
    rb"(%b):[ \t]*((?:[!-~\x80-\xff](?:[\t -~\x80-\xff]*[!-~\x80-\xff])?)?)[ \t]*" % _TOKEN
)
_CHUNK: Final = re.compile(rb"([0-9A-Fa-f]+)([ \t]*(?:;[\t -~\x80-\xff]*)?)\r\n")
_ORIGIN_FORM: Final = re.compile(rb"/.*")
_ABSOLUTE_FORM: Final = re.compile(rb"[A-Za-z][A-Za-z0-9+.-]*://[^/?#]+(.*)")


class End(Enum):
    """Why a reading goes no further."""

    WAITS = "the bytes may go on"
    CLOSES = "a request is the last of its connection"
    MALFORMED = "the next bytes are no request"


@dataclass(frozen=True)
class Meant:
    """A request that the bytes mean."""

    head: bytes
    method: str
    target: bytes
    """In origin form, or `*`."""
    fields: tuple[tuple[bytes, bytes], ...]
    body: bytes = b""

    @property
    def digest(self) -> str:
        """SHA-256 of the body, in hexadecimal digits."""
        return sha256(self.body).hexdigest()

    def values(self, name: bytes) -> list[bytes]:
        """Every value of a field, by its lower-cased name."""
        return [value for field, value in self.fields if field.lower() == name]


@dataclass(frozen=True)
class Reading:
    """Everything that some bytes mean."""

    requests: tuple[Meant, ...]
    """Those that are whole."""
    begun: Meant | None
    """One whose head is in order but whose body is not, or not all there."""
    end: End
    more: bool
    """Whether there is anything behind those that are whole."""


class _Malformed(Exception):
    """No request, and nobody can say where one would begin."""


class _Incomplete(Exception):
    """Not there yet."""


def read_requests(data: bytes) -> Reading:
    """Read everything that a client sent on one connection."""
    requests: list[Meant] = []
    begun: Meant | None = None
    try:
        # RFC 9112 2.2: empty lines before a request are passed over.
        while data := data.lstrip(b"\r\n"):
            head, closes, rest = _read_head(data)
            length = _framing(head)
            begun = head
            body, data = _read_chunks(rest) if length is None else _read_bytes(rest, length)
            requests.append(replace(head, body=body))
            begun = None
            if closes:
                return Reading(tuple(requests), None, End.CLOSES, more=bool(data))
    except _Malformed:
        return Reading(tuple(requests), begun, End.MALFORMED, more=True)
    except _Incomplete:
        pass
    return Reading(tuple(requests), begun, End.WAITS, more=bool(data))


def _read_head(data: bytes) -> tuple[Meant, bool, bytes]:
    """The next request without its body, whether it is the last, and what follows its head."""
    head, blank_line, rest = data.partition(b"\r\n\r\n")
    if not blank_line:
        raise _Incomplete
    first, *lines = head.split(b"\r\n")
    if (line := _REQUEST_LINE.fullmatch(first)) is None:
        raise _Malformed
    matches = [_FIELD.fullmatch(line) for line in lines]
    if None in matches:
        raise _Malformed
    fields = tuple((match[1], match[2]) for match in matches if match is not None)
    method, minor = line[1].decode(), int(line[3])
    meant = Meant(head + blank_line, method, _target(method, line[2]), fields)
    hosts = len(meant.values(b"host"))
    if hosts > 1 or hosts < minor:  # HTTP/1.0 knows no Host
        raise _Malformed
    options = b",".join(meant.values(b"connection")).lower().replace(b" ", b"").split(b",")
    closes = b"close" in options or (minor == 0 and b"keep-alive" not in options)
    if minor == 0 and meant.values(b"transfer-encoding"):
        raise _Malformed
    return meant, closes, rest


def _target(method: str, target: bytes) -> bytes:
    """The request target in origin form (RFC 9112 3.2)."""
    if _ORIGIN_FORM.fullmatch(target) or (method == "OPTIONS" and target == b"*"):
        return target
    if (absolute := _ABSOLUTE_FORM.fullmatch(target)) is None:
        raise _Malformed  # also the authority form: there is no tunnel to ask for
    path: bytes = absolute[1]
    return path if path.startswith(b"/") else b"/" + path


def _framing(head: Meant) -> int | None:
    """How long the body is; None: it comes in chunks (RFC 9112 6.3)."""
    lengths, codings = head.values(b"content-length"), head.values(b"transfer-encoding")
    if codings:
        if lengths or len(codings) > 1 or codings[0].lower() != b"chunked":
            raise _Malformed
        return None
    if len(lengths) > 1 or re.fullmatch(rb"[0-9]+", lengths[0] if lengths else b"0") is None:
        raise _Malformed
    return int(lengths[0]) if lengths else 0


def _read_bytes(rest: bytes, length: int) -> tuple[bytes, bytes]:
    """A body of that length, and what follows it."""
    if len(rest) < length:
        raise _Incomplete
    return rest[:length], rest[length:]


def _read_chunks(rest: bytes) -> tuple[bytes, bytes]:
    """A chunked body without its framing, and what follows it (RFC 9112 7.1)."""
    body = bytearray()
    while True:
        if (chunk := _CHUNK.match(rest)) is None:
            raise _Malformed if b"\r\n" in rest else _Incomplete
        size, rest = int(chunk[1], 16), rest[chunk.end() :]
        if size == 0:
            return bytes(body), _behind_trailers(rest)
        if rest[size : size + 2] != b"\r\n"[: max(0, len(rest) - size)]:
            raise _Malformed
        if len(rest) < size + 2:
            raise _Incomplete
        body += rest[:size]
        rest = rest[size + 2 :]


def _behind_trailers(rest: bytes) -> bytes:
    while True:
        line, line_end, behind = rest.partition(b"\r\n")
        if not line_end:
            raise _Incomplete
        if not line:
            return behind
        if _FIELD.fullmatch(line) is None:
            raise _Malformed
        rest = behind
