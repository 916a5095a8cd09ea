"""Header fields on their way through: which pass, and which stay behind.

Fields are pairs of bytes in the order in which they came. Nothing is decoded on the way:
what a field holds is between the client and Immich.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Final

RawHeaders = Sequence[tuple[bytes, bytes]]

# RFC 9110 7.6.1, with those that concern one connection by their own definition.
HOP_BY_HOP: Final = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
# `Connection` may name any field, but not make us lose what frames or routes the message.
_NEVER_HOP_BY_HOP: Final = frozenset({b"content-length", b"host"})


def end_to_end(headers: RawHeaders) -> list[tuple[bytes, bytes]]:
    """The fields that a proxy passes on."""
    named = {
        option.strip().lower()
        for name, value in headers
        if name.lower() == b"connection"
        for option in value.split(b",")
    }
    left_behind = HOP_BY_HOP | (named - _NEVER_HOP_BY_HOP)
    return [field for field in headers if field[0].lower() not in left_behind]


def without(
    headers: Iterable[tuple[bytes, bytes]], names: frozenset[bytes]
) -> list[tuple[bytes, bytes]]:
    """The fields whose lower-cased name is not in `names`."""
    return [field for field in headers if field[0].lower() not in names]


def first_value(headers: RawHeaders, name: bytes) -> bytes | None:
    """The value of the first field of that (lower-cased) name."""
    return next((value for field, value in headers if field.lower() == name), None)


def request_target(raw_path: str) -> bytes:
    """The request target as it came, in origin form.

    The absolute form, meant for proxies that go anywhere, loses its scheme and host: this
    one goes to Immich alone (RFC 9112 3.2.2).
    """
    target = raw_path.encode("utf-8", "surrogateescape")
    absolute = re.match(rb"[A-Za-z][A-Za-z0-9+.-]*://[^/?#]*", target)
    if absolute is None:
        return target
    rest = target[absolute.end() :]
    return rest if rest.startswith(b"/") else b"/" + rest


def render_head(first_line: bytes, headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """The head of a message, ready for the wire."""
    return b"".join((first_line, b"\r\n", *(b"%b: %b\r\n" % field for field in headers), b"\r\n"))
