"""The ways to change a valid request into one that is wrong, odd or dangerous."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Final

from torture.request_oddities import (
    CHUNK_ENDS,
    CHUNK_SIZES,
    CODING_NAMES,
    CODINGS,
    CRLF,
    FIELDS,
    HOSTS,
    LAST_CHUNKS,
    LENGTHS,
    LINES,
    METHODS,
    ODD_BYTES,
    SMUGGLED,
    TARGETS,
    VERSIONS,
)


@dataclass
class Draft:
    """A request that is being written."""

    method: bytes
    target: bytes
    version: bytes = b"HTTP/1.1"
    fields: list[bytes] = field(default_factory=lambda: [b"Host: bridge"])
    body: bytes = b""
    """As it stands on the wire, chunk by chunk for a chunked one."""
    line: bytes | None = None
    """In place of method, target and version."""
    blank_line: bytes = CRLF

    def render(self) -> bytes:
        """The bytes."""
        line = self.line if self.line is not None else self._line()
        return CRLF.join([line, *self.fields]) + CRLF + self.blank_line + self.body

    def _line(self) -> bytes:
        return b" ".join((self.method, self.target, self.version))

    def replace_field(self, name: bytes, *fields: bytes) -> None:
        """Put other lines in the place of a field, or behind the others where there is none."""
        prefix = name.lower() + b":"
        at = [i for i, text in enumerate(self.fields) if text.lower().startswith(prefix)]
        where = at[0] if at else len(self.fields)
        kept = [text for i, text in enumerate(self.fields) if i not in at]
        self.fields = [*kept[:where], *fields, *kept[where:]]


Mutation = Callable[[Draft, Random], None]


def _filled(template: bytes, number: int) -> bytes:
    """`template` with `number` in the place of each `%d`, `%x` or `%X`."""
    filled = template.replace(b"%d", b"%d" % number).replace(b"%x", b"%x" % number)
    return filled.replace(b"%X", b"%X" % number)


def length(draft: Draft, chance: Random) -> None:
    """Another `Content-Length`, of a body that may hold a request."""
    _smuggle_in_body(draft, chance)
    text = _filled(chance.choice(LENGTHS), len(draft.body))
    draft.replace_field(b"content-length", text)


def coding(draft: Draft, chance: Random) -> None:
    """Another `Transfer-Encoding`, with or without a `Content-Length` beside it."""
    text = chance.choice(CODING_NAMES) + chance.choice(CODINGS)
    _smuggle_in_body(draft, chance)
    if chance.random() < 0.6:
        draft.body = chunks(draft.body, chance)
    if chance.random() < 0.5:
        beside = b"Content-Length: %d" % chance.choice((len(draft.body), 0, 4, len(draft.body) - 1))
        both = [text, beside]
        chance.shuffle(both)
        draft.replace_field(b"content-length", *both)
    else:
        draft.replace_field(b"content-length")
        draft.replace_field(b"transfer-encoding", text)
    if chance.random() < 0.1:
        draft.version = b"HTTP/1.0"


def chunk_framing(draft: Draft, chance: Random) -> None:
    """A chunk with another size, extension or end, or another last chunk."""
    data = chance.choice((b"hello", SMUGGLED, b"a" * 300, b"0\r\n\r\n" + SMUGGLED))
    size, end, last = b"%x", CRLF, b"0\r\n\r\n"
    match chance.randrange(3):
        case 0:
            size = chance.choice(CHUNK_SIZES)
        case 1:
            end = chance.choice(CHUNK_ENDS)
        case _:
            last = chance.choice(LAST_CHUNKS)
    draft.method = chance.choice((b"POST", b"PUT")) if draft.method != b"POST" else b"POST"
    draft.replace_field(b"content-length")
    draft.replace_field(b"transfer-encoding", b"Transfer-Encoding: chunked")
    draft.body = b"4\r\ngood\r\n" if chance.random() < 0.5 else b""
    draft.body += _filled(size, len(data)) + CRLF + data + end + last


def fields(draft: Draft, chance: Random) -> None:
    """Fields more, somewhere among the others."""
    for _ in range(chance.choice((1, 1, 2))):
        draft.fields.insert(chance.randint(0, len(draft.fields)), chance.choice(FIELDS))


def host(draft: Draft, chance: Random) -> None:
    """Another `Host`, or none."""
    draft.replace_field(b"host", *([chance.choice(HOSTS)] if chance.random() < 0.9 else []))


def request_line(draft: Draft, chance: Random) -> None:
    """Another form of the first line; HTTP/0.9 and the preface of HTTP/2 among them."""
    parts = draft.method, draft.target, draft.version
    draft.line = chance.choice(LINES) % parts
    if chance.random() < 0.1:
        draft.line = chance.choice((b"PRI * HTTP/2.0\r\n\r\nSM\r\n", b"%b %b" % parts[:2], b""))


def version(draft: Draft, chance: Random) -> None:
    """Another version."""
    draft.version = chance.choice(VERSIONS)


def method(draft: Draft, chance: Random) -> None:
    """Another method."""
    draft.method = chance.choice(METHODS)


def target(draft: Draft, chance: Random) -> None:
    """Another target."""
    draft.target = chance.choice(TARGETS)


def line_ends(draft: Draft, chance: Random) -> None:
    """Line ends that are none, in the head or behind it."""
    if chance.random() < 0.5:
        draft.blank_line = chance.choice(
            (b"\n", b"\r", b"", b"\r\r\n", b"\n\r\n", b" \r\n", b"\x00\r\n")
        )
    else:
        end = chance.choice((b"\n", b"\r", b"\r\r\n", b"\n\r"))
        draft.fields = [end.join(draft.fields)]


def odd_bytes(draft: Draft, chance: Random) -> None:
    """Odd bytes anywhere in the head."""
    for _ in range(chance.choice((1, 1, 1, 3))):
        odd = chance.choice(ODD_BYTES)
        at = chance.randrange(len(draft.fields) + 1)
        if at == len(draft.fields):
            draft.target = _insert(draft.target, odd, chance)
        else:
            draft.fields[at] = _insert(draft.fields[at], odd, chance)


MUTATIONS: Final[Sequence[Mutation]] = (
    length, length, coding, coding, chunk_framing, chunk_framing, chunk_framing, fields, fields,
    host, request_line, version, method, target, target, line_ends, odd_bytes, odd_bytes,
)  # fmt: skip
"""Each as often as it shall be tried."""


def scramble(raw: bytes, chance: Random) -> bytes:
    """Bytes flipped, lost, doubled or put in, anywhere in a request."""
    for _ in range(chance.choice((1, 1, 2, 5))):
        at = chance.randrange(len(raw) + 1)
        to = min(len(raw), at + chance.choice((1, 1, 2, 8, 40)))
        match chance.randrange(5):
            case 0:
                raw = raw[:at] + raw[to:]
            case 1:
                raw = raw[:to] + raw[at:to] + raw[to:]
            case 2 if at < len(raw):
                raw = raw[:at] + bytes([raw[at] ^ 1 << chance.randrange(8)]) + raw[at + 1 :]
            case _:
                raw = _insert(raw, chance.choice(ODD_BYTES), chance)
    return raw


def chunks(body: bytes, chance: Random) -> bytes:
    """`body` in chunked framing, in one or two chunks."""
    cut = chance.randint(0, len(body))
    pieces = [piece for piece in (body[:cut], body[cut:]) if piece]
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


def _smuggle_in_body(draft: Draft, chance: Random) -> None:
    if chance.random() < 0.6:
        draft.body = chance.choice((SMUGGLED, b"0\r\n\r\n" + SMUGGLED, b"hello" + SMUGGLED))


def _insert(text: bytes, piece: bytes, chance: Random) -> bytes:
    at = chance.randint(0, len(text))
    return text[:at] + piece + text[at:]
