"""Whether a conversation went as its bytes allow: its answers, what Node saw, what was logged."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from typing import Final
from urllib.parse import unquote_to_bytes

from immich_bridge.bridge.background_upload import ROUTE
from torture.node_upstream import Seen
from torture.request_corpus import GOOD_HEADS, Conversation
from torture.request_reading import End, Meant, Reading

_UPLOAD_ROUTE: Final = ROUTE.encode()
_OURS: Final = frozenset(
    {b"host", b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host"}
    | {b"content-length", b"transfer-encoding", b"content-type"}
)
"""What the bridge may say to Immich in its own words."""
_HANDSHAKE: Final = frozenset({b"connection", b"upgrade"})
_HOP_BY_HOP: Final = _HANDSHAKE | {b"keep-alive", b"proxy-connection", b"te", b"trailer"}


@dataclass(frozen=True)
class Answer:
    """An answer that a client got."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def seen(self) -> int | None:
        """Which request Node answered so; None: the bridge itself did."""
        serial = self.headers.get("x-seen")
        return None if serial is None else int(serial)

    @property
    def closes(self) -> bool:
        """Whether it is the last on its connection."""
        return self.headers.get("connection") == "close" or self.status == 101


def answers_in(raw: bytes, methods: Sequence[str]) -> Iterator[Answer]:
    """The whole answers in `raw` to requests of `methods`, past any 1xx but 101."""
    expected = iter(methods)
    while b"\r\n\r\n" in raw:
        head, _, rest = raw.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        status = int(first.split(" ")[1])
        if 100 <= status < 200 and status != 101:
            raw = rest
            continue
        headers = {n.lower(): v for n, _, v in (line.partition(": ") for line in lines)}
        method = next(expected, None)
        if method == "HEAD" or status in (101, 204, 304):
            size = 0
        elif "transfer-encoding" in headers:
            # Node's own refusals alone come without a length, and they have no body.
            size = len(b"0\r\n\r\n")
        else:
            size = int(headers["content-length"])
        if method is None and headers.get("connection") == "close":
            size = min(size, len(rest))  # also what was refused may have been a HEAD
        if len(rest) < size:
            return
        yield Answer(status, headers, rest[:size])
        raw = b"" if status == 101 else rest[size:]  # behind a 101 is no HTTP


class Ending(Enum):
    """How a connection ended."""

    CLOSED = "by the bridge"
    LEFT = "by the client, once it had its answers"
    CUT_OFF = "by the client, without waiting for answers"
    HUNG = "not at all"


@dataclass(frozen=True)
class Outcome:
    """What came of a conversation at its client."""

    conversation: Conversation
    raw: bytes
    """What the client got."""
    ending: Ending

    @cached_property
    def answers(self) -> list[Answer]:
        """The answers in it."""
        return list(
            answers_in(self.raw, [one.method for one in self.conversation.reading.requests])
        )


def faults_of(outcome: Outcome, seen: Sequence[Seen], lines: Sequence[str]) -> Iterator[str]:
    """What of this should not be; `seen` and `lines` (of the log) are of this client alone."""
    reading = outcome.conversation.reading
    answers = outcome.answers
    if outcome.ending is Ending.HUNG:
        yield "neither answered nor closed"
    yield from _faults_of_answers(outcome, reading, answers)
    yield from _faults_of_seen(reading, answers, seen)
    if outcome.ending is Ending.CUT_OFF:
        least, most = 0, len(reading.requests) + 1
    else:
        least, most = len(answers), len(answers) + (outcome.ending is Ending.LEFT)
    if not least <= len(lines) <= most:
        yield f"{len(lines)} lines in the log for {len(answers)} answers"


def _faults_of_answers(
    outcome: Outcome, reading: Reading, answers: Sequence[Answer]
) -> Iterator[str]:
    requests = reading.requests
    for number, answer in enumerate(answers):
        request = requests[number] if number < len(requests) else None
        if answer.status >= 500 and not _may_fail(answer, outcome.conversation.sent):
            yield f"answered {answer.status}: {answer.body!r}"
        # Of a route of its own the bridge may answer the head, and close.
        early = reading.begun is not None and answer.seen is None and answer.closes
        if request is None and not early and not 400 <= answer.status < 502:
            yield f"answered {answer.status} to what is no whole request"
        if request is not None and request.head in GOOD_HEADS and answer.status != 200:
            # What is refused may take along what came before it in one packet.
            behind = requests[number + 1 :]
            odd = reading.more or any(r.head not in GOOD_HEADS for r in behind)
            if not (answer.status == 400 and answer.closes and odd):
                yield f"a good request was answered {answer.status}"
        if answer.closes and number + 1 < len(answers):
            yield "answered after an answer that said it was the last"
    if len(answers) > len(requests) + (reading.end is not End.CLOSES):
        yield f"{len(answers)} answers to {len(requests)} requests"
    closed = bool(answers) and answers[-1].closes
    if outcome.ending is Ending.CLOSED and len(answers) < len(requests) and not closed:
        yield f"{len(answers)} answers to {len(requests)} requests, and none said it was the last"


def _may_fail(answer: Answer, sent: bytes) -> bool:
    if answer.status == 501:
        return b"CONNECT" in sent or b"OPTIONS" in sent
    # What clients of the photo backup's API expect.
    return answer.status == 500 and b'"photo not found"' in answer.body


def _faults_of_seen(
    reading: Reading, answers: Sequence[Answer], seen: Sequence[Seen]
) -> Iterator[str]:
    by_serial = {one.serial: one for one in seen}
    # Node may answer also the head of one whose body is yet to break: an expectation it refuses.
    possible = [*reading.requests, *([reading.begun] if reading.begun else [])]
    for number, answer in enumerate(answers):
        if answer.seen is None:
            continue
        one = by_serial.get(answer.seen)
        if one is None or number >= len(possible):
            yield f"an answer to another client's request: {answer}"
        elif not _is_meant(one, possible[number]):
            yield f"{possible[number]} was answered with what Node said to {one}"
    in_order = iter(possible)
    for one in sorted(seen, key=lambda one: one.serial):
        meant = next((meant for meant in in_order if _is_meant(one, meant)), None)
        if meant is None or (one.complete and meant is reading.begun):
            yield f"Node saw what nobody meant: {one}"
        else:
            yield from _faults_of_fields(one, meant)


def _is_meant(seen: Seen, meant: Meant) -> bool:
    if seen.complete and seen.digest != meant.digest:
        return False
    if (seen.method, seen.target) == (meant.method, meant.target):
        return True
    path = unquote_to_bytes(meant.target.partition(b"?")[0].partition(b"#")[0])
    is_upload = path == _UPLOAD_ROUTE and meant.method == "POST"
    return is_upload and seen.method == "POST" and seen.target == b"/api/assets"


def _faults_of_fields(seen: Seen, meant: Meant) -> Iterator[str]:
    handshake = [value.lower() for value in meant.values(b"upgrade")[:1]] == [b"websocket"]
    ours = _OURS | _HANDSHAKE if handshake else _OURS
    for name, value in seen.headers:
        if name.lower() not in ours and name.lower() in _HOP_BY_HOP:
            yield f"Node was sent {name!r}, which concerns one connection"
        elif name.lower() not in ours and (name, value) not in meant.fields:
            yield f"Node was sent {name!r}: {value!r}, which the client did not send"
