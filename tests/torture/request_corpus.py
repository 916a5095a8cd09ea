"""Conversations of a hostile client: a changed request between good ones, on one connection."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from random import Random
from typing import Final

from torture.request_mutations import MUTATIONS, Draft, chunks, scramble
from torture.request_oddities import SMUGGLED
from torture.request_reading import Reading, read_requests

_BEFORE: Final = (
    b"GET /good/before HTTP/1.1\r\nHost: bridge\r\n\r\n",
    b"POST /good/before HTTP/1.1\r\nHost: bridge\r\nContent-Length: 5\r\n\r\nhello",
    b"PUT /good/before HTTP/1.1\r\nHost: bridge\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"5\r\nhello\r\n0\r\n\r\n",
)
_BEHIND: Final = (
    b"GET /good/behind HTTP/1.1\r\nHost: bridge\r\nConnection: close\r\n\r\n",
    b"POST /good/behind HTTP/1.1\r\nHost: bridge\r\nConnection: close\r\n"
    b"Content-Length: 3\r\n\r\nend",
)
GOOD_HEADS: Final = frozenset(
    raw.partition(b"\r\n\r\n")[0] + b"\r\n\r\n" for raw in _BEFORE + _BEHIND
)
"""Heads of requests that have to pass wherever they are understood."""

_CUT_OFF: Final = 0.08
"""Share of the conversations that end at any byte."""

Template = Callable[[Random], Draft]
"""Makes a valid request."""


@dataclass(frozen=True)
class Conversation:
    """What a client sends on one connection."""

    number: int
    pieces: tuple[bytes, ...]
    """As they are sent, one by one."""
    cut_off: bool
    """Whether the client leaves without waiting for an answer."""

    @cached_property
    def sent(self) -> bytes:
        """All of it."""
        return b"".join(self.pieces)

    @cached_property
    def reading(self) -> Reading:
        """What it may mean."""
        return read_requests(self.sent)

    @property
    def client(self) -> str:
        """An address for this client alone, out of the loopback network 127.0.0.0/8."""
        return f"127.{1 + (self.number >> 16)}.{self.number >> 8 & 255}.{self.number & 255}"


def conversation(number: int, chance: Random, templates: Sequence[Template]) -> Conversation:
    """Conversation `number` about a changed request of one of `templates`."""
    draft = chance.choice(templates)(chance)
    for _ in range(chance.choice((0, 1, 1, 1, 1, 1, 2, 2))):
        chance.choice(MUTATIONS)(draft, chance)
    raw = draft.render()
    if chance.random() < 0.15:
        raw = scramble(raw, chance)
    sent = chance.choice((b"", *_BEFORE)) + raw + chance.choice((b"", *_BEHIND, *_BEHIND))
    cut_off = chance.random() < _CUT_OFF
    if cut_off:
        sent = sent[: chance.randint(1, len(sent))]
    return Conversation(number, _pieces(sent, chance), cut_off)


def _pieces(sent: bytes, chance: Random) -> tuple[bytes, ...]:
    if chance.random() < 0.7:
        return (sent,)
    cuts = sorted(chance.randint(0, len(sent)) for _ in range(chance.choice((1, 2, 5))))
    edges = [0, *cuts, len(sent)]
    return tuple(sent[a:b] for a, b in pairwise(edges) if a < b)


def _with_body(draft: Draft, body: bytes, chance: Random) -> Draft:
    if chance.random() < 0.4:
        draft.fields.append(b"Transfer-Encoding: chunked")
        draft.body = chunks(body, chance)
    else:
        draft.fields.append(b"Content-Length: %d" % len(body))
        draft.body = body
    return draft


def _get(chance: Random) -> Draft:
    draft = Draft(chance.choice((b"GET", b"GET", b"HEAD", b"OPTIONS")), b"/api/a?b=c")
    draft.fields += [b"Accept: */*", b"Cookie: a=b; c=d", b"x-api-key: key"]
    return draft


def _post(chance: Random) -> Draft:
    method = chance.choice((b"POST", b"POST", b"PUT", b"DELETE"))
    draft = Draft(method, b"/api/a")
    draft.fields.append(b"Content-Type: application/json")
    return _with_body(draft, chance.choice((b'{"a": 1}', SMUGGLED, bytes(3000))), chance)


def _background(chance: Random) -> Draft:
    draft = Draft(b"POST", b"/api/assets/background")
    draft.fields += [b"x-api-key: key", b"X-Filename: a.jpg", b"X-Device-Asset-Id: 1"]
    return _with_body(draft, chance.choice((b"\xff\xd8\xff\xe1photo", SMUGGLED)), chance)


def _websocket(chance: Random) -> Draft:
    draft = Draft(b"GET", b"/api/socket.io/?transport=websocket")
    draft.fields += [b"Connection: Upgrade", b"Upgrade: websocket", b"Sec-WebSocket-Version: 13"]
    if chance.random() < 0.5:
        draft.fields.append(b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==")
    return draft


TO_IMMICH: Final[Sequence[Template]] = (_get, _get, _post, _post, _post, _background, _websocket)
"""Requests that Immich would get."""


def to_backup(token: str) -> Sequence[Template]:
    """Requests to the photo backup, by a user with `token` and a photo of the id `a`."""
    bearer = b"Authorization: Bearer " + token.encode()

    def status(_: Random) -> Draft:
        return Draft(b"GET", b"/status", fields=[b"Host: bridge", bearer])

    def session(chance: Random) -> Draft:
        # Neither can succeed: a login costs a password's hash, and a refresh ends the token.
        route, body = chance.choice(((b"/login", b'{"username": "admin"}'), (b"/refresh", b"{}")))
        draft = Draft(b"POST", route)
        draft.fields += [b"Content-Type: application/json", b"Authorization: Bearer none"]
        return _with_body(draft, body, chance)

    def raw_upload(chance: Random) -> Draft:
        draft = Draft(b"POST", b"/photos/upload/stream?local_id=a&file_type=jpg")
        draft.fields += [bearer]
        return _with_body(draft, chance.choice((b"\xff\xd8\xff\xe1photo", SMUGGLED)), chance)

    def form_upload(chance: Random) -> Draft:
        parts = [(b'name="local_id"', b"a"), (b'name="file_type"', b"jpg")]
        parts.append((b'name="file"; filename="a.jpg"', b"photo"))
        form = b"".join(
            b"--b\r\nContent-Disposition: form-data; %b\r\n\r\n%b\r\n" % part for part in parts
        )
        draft = Draft(b"POST", b"/photos/upload")
        draft.fields += [bearer, b"Content-Type: multipart/form-data; boundary=b"]
        return _with_body(draft, form + b"--b--\r\n", chance)

    return status, session, raw_upload, form_upload
