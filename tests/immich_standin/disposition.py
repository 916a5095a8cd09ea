"""A part's Content-Disposition, read as busboy 1.6 reads it.

busboy works on the header as Latin-1 text, is strict where browsers are lenient, and drops a
part whose header it cannot read. multer hands its names on as Latin-1, and Immich turns them
into UTF-8: a raw UTF-8 name comes out right, a ``filename*`` one comes out mangled.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]*")
_CHARSET = re.compile(r"[!#$%&+\-^_`{}~0-9A-Za-z]*")
_EXTENDED = re.compile(r"(?:[!#$&+\-.^_`|~0-9A-Za-z]|%[0-9A-Fa-f]{2})*")
_QUOTED = re.compile(r'"((?:\\[\t !-~\x80-\xff]|[\t !#-\[\]-~\x80-\xff])*)"')
_SPACE = re.compile(r"[ \t]*")
_UNESCAPE = re.compile(r'\\(["\\])')
_PERCENT = re.compile(r"%([0-9A-Fa-f]{2})")


@dataclass(frozen=True)
class Disposition:
    name: str | None
    filename: str | None
    """None also for an empty one, which busboy takes for no file name at all."""


def parse(header: bytes) -> Disposition | None:
    """The names in a ``form-data`` disposition; None for one that busboy skips."""
    text = header.decode("latin-1")
    kind = _matched(_TOKEN, text, 0)
    if kind.lower() != "form-data":
        return None
    params = _params(text, len(kind))
    if params is None:
        return None
    filename = params.get("filename*") or params.get("filename")
    name = params.get("name")
    return Disposition(
        as_utf8(name) if name else None,
        as_utf8(_basename(filename)) if filename else None,
    )


def as_utf8(name: str) -> str:
    """``Buffer.from(name, 'latin1').toString('utf8')``: keeps the low byte of each character."""
    return bytes(ord(char) & 0xFF for char in name).decode("utf-8", "replace")


def _params(text: str, at: int) -> dict[str, str] | None:
    params: dict[str, str] = {}
    while at < len(text):
        at += len(_matched(_SPACE, text, at))
        if at == len(text):
            break
        if text[at] != ";":
            return None
        at += 1
        at += len(_matched(_SPACE, text, at))
        name = _matched(_TOKEN, text, at)
        at += len(name)
        if text[at : at + 1] != "=":
            return None
        at += 1
        read = _extended(text, at) if name.endswith("*") else _plain(text, at)
        if read is None:
            return None
        value, at = read
        params.setdefault(name.lower(), value)
    return params


def _plain(text: str, at: int) -> tuple[str, int] | None:
    if text[at : at + 1] == '"':
        quoted = _QUOTED.match(text, at)
        if quoted is None:
            return None
        # Only an escaped quote or backslash loses its backslash: `a\b` stays as it is.
        return _UNESCAPE.sub(r"\1", quoted[1]), quoted.end()
    value = _matched(_TOKEN, text, at)
    return (value, at + len(value)) if value else None


def _extended(text: str, at: int) -> tuple[str, int] | None:
    charset = _matched(_CHARSET, text, at)
    at += len(charset)
    language_end = text.find("'", at + 1)
    if text[at : at + 1] != "'" or language_end < 0 or language_end + 1 == len(text):
        return None
    raw = _matched(_EXTENDED, text, language_end + 1)
    end = language_end + 1 + len(raw)
    if text[end : end + 1] == "%":
        return None
    value = _PERCENT.sub(lambda found: chr(int(found[1], 16)), raw)
    try:
        return value.encode("latin-1").decode(charset, "replace"), end
    except LookupError:
        return None


def _basename(path: str) -> str:
    base = re.split(r"[/\\]", path)[-1]
    return "" if base in (".", "..") else base


def _matched(pattern: re.Pattern[str], text: str, at: int) -> str:
    found = pattern.match(text, at)
    return found[0] if found else ""
