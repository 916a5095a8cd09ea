"""Answers: their heads in Immich's order of headers, and how they go onto the wire."""

from __future__ import annotations

import gzip
import hashlib
import re
from base64 import b64encode
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aiohttp import web
from multidict import CIMultiDict

from .body import PIECE, ConnectionGone, wait_unless_gone
from .release import Refusal, dump

if TYPE_CHECKING:
    from .exchange import Exchange

JSON_TYPE = "application/json; charset=utf-8"

# The `compression` middleware of Express leaves bodies under 1 KiB alone.
MIN_GZIP = 1024


@dataclass(frozen=True)
class FileSlice:
    path: Path
    start: int
    length: int

    def pieces(self) -> AsyncIterator[bytes]:
        return _file_pieces(self)


@dataclass
class Answer:
    """Status, the headers that are the answer's own, in their order, and the body."""

    status: int
    headers: list[tuple[str, str]] = field(default_factory=list)
    body: bytes | FileSlice = b""
    chunked: bool = False
    express: bool = True
    """Whether it passes Express, which adds X-Powered-By; socket.io answers by itself."""
    correlated: bool = True
    """Whether it carries the correlation header, as everything under /api does."""

    @property
    def length(self) -> int:
        return self.body.length if isinstance(self.body, FileSlice) else len(self.body)


def json_answer(value: Any, status: int = 200, *, vary: bool = True, **options: Any) -> Answer:
    """JSON with the strong ETag that Express computes from the body."""
    body = dump(value)
    headers = [("Content-Type", JSON_TYPE), ("Content-Length", str(len(body)))]
    headers.append(("ETag", etag(body)))
    if vary:
        headers.append(("Vary", "Accept-Encoding"))
    return Answer(status, headers, body, **options)


def refusal_answer(exchange: Exchange, refusal: Refusal) -> Answer:
    release = exchange.release
    value = release.error(refusal, exchange.correlation_id)
    answer = json_answer(
        value,
        refusal.status,
        vary=refusal.correlated,
        correlated=release.correlates(refusal),
    )
    if refusal.cache_control is not None:
        answer.headers.insert(0, ("Cache-Control", refusal.cache_control))
    return answer


def etag(body: bytes) -> str:
    digest = b64encode(hashlib.sha1(body, usedforsecurity=False).digest())
    return f'"{len(body):x}-{digest[:27].decode()}"'


def etag_matches(if_none_match: str, tag: str) -> bool:
    """RFC 9110, 13.1.2: a weak comparison with each tag of the list."""
    plain = tag.removeprefix("W/")
    tags = re.findall(r'\*|(?:W/)?"[^"]*"', if_none_match)
    return any(given == "*" or given.removeprefix("W/") == plain for given in tags)


def finish_head(exchange: Exchange, response: web.StreamResponse) -> None:
    """Put the head into Node's order, without aiohttp's Server header."""
    headers = response.headers
    headers.popall("Server", None)
    date = headers.popall("Date", None)
    framing = headers.popall("Transfer-Encoding", None)
    connection = headers.popall("Connection", None)
    if response.status == 101:
        websocket = headers.popall("Sec-WebSocket-Accept")
        headers.popall("Upgrade", None)
        headers.popall("Content-Type", None)
        headers["Upgrade"] = "websocket"
        headers["Connection"] = "Upgrade"
        headers["Sec-WebSocket-Accept"] = websocket[0]
        headers["Access-Control-Allow-Origin"] = "*"
        return
    if response.status == 304:
        headers.popall("Content-Type", None)
        headers.popall("Content-Length", None)
    if date:
        headers["Date"] = date[0]
    if response.keep_alive:
        headers["Connection"] = "keep-alive"
        headers["Keep-Alive"] = "timeout=5"
    else:
        headers["Connection"] = connection[0] if connection else "close"
    if framing:
        headers["Transfer-Encoding"] = framing[0]


async def send(exchange: Exchange, answer: Answer) -> web.StreamResponse:
    """Send the answer, unless a misbehaviour keeps it back; raises ConnectionGone."""
    behaviour, connection = exchange.behaviour, exchange.connection
    if behaviour.hold_answer:
        await wait_unless_gone(behaviour.released, connection)
    if behaviour.never_answer:
        await wait_unless_gone(behaviour.released, connection)
        connection.vanish(behaviour.vanish_with)
        raise ConnectionGone
    if behaviour.lose_answer:
        connection.vanish(behaviour.vanish_with)
        raise ConnectionGone
    _negotiate(exchange.request, answer)
    cut = behaviour.cut_answer_after
    if cut is not None and behaviour.cut_chunked and not answer.chunked:
        _in_chunks(answer)
    response = web.StreamResponse(status=answer.status, headers=_head(exchange, answer))
    if answer.chunked:
        response.enable_chunked_encoding()
    await response.prepare(exchange.request)
    exchange.seen.status = answer.status
    sent = 0
    if exchange.request.method != "HEAD" and answer.status != 304:
        async for piece in _pieces(answer):
            if cut is not None and sent + len(piece) > cut:
                if piece := piece[: cut - sent]:
                    await response.write(piece)
                connection.vanish("fin")
                raise ConnectionGone
            await response.write(piece)
            sent += len(piece)
    await response.write_eof()
    return response


def _head(exchange: Exchange, answer: Answer) -> CIMultiDict[str]:
    head: CIMultiDict[str] = CIMultiDict()
    if answer.express:
        head["X-Powered-By"] = "Express"
        if answer.correlated:
            head[exchange.release.correlation_header] = exchange.correlation_id
    for name, value in answer.headers:
        head.add(name, value)
    return head


def _negotiate(request: web.Request, answer: Answer) -> None:
    """304 and gzip for JSON, as Express does them; media answers see to themselves."""
    headers = dict(answer.headers)
    if headers.get("Content-Type") != JSON_TYPE or isinstance(answer.body, FileSlice):
        return
    tag = headers.get("ETag", "")
    asked = request.headers.get("If-None-Match")
    conditional = answer.status == 200 and request.method in ("GET", "HEAD")
    if conditional and asked is not None and etag_matches(asked, tag):
        answer.status, answer.body = 304, b""
        answer.headers = [("ETag", tag)]
        return
    accepted = request.headers.get("Accept-Encoding", "")
    if len(answer.body) >= MIN_GZIP and "Vary" in headers and "gzip" in accepted:
        answer.body = gzip.compress(answer.body)
        answer.headers.append(("Content-Encoding", "gzip"))
        _in_chunks(answer)


def _in_chunks(answer: Answer) -> None:
    answer.headers = [pair for pair in answer.headers if pair[0] != "Content-Length"]
    answer.chunked = True


async def _pieces(answer: Answer) -> AsyncIterator[bytes]:
    if isinstance(answer.body, FileSlice):
        async for piece in answer.body.pieces():
            yield piece
    elif answer.body:
        yield answer.body


async def _file_pieces(part: FileSlice) -> AsyncIterator[bytes]:
    with part.path.open("rb") as file:
        file.seek(part.start)
        left = part.length
        while left and (piece := file.read(min(PIECE, left))):
            left -= len(piece)
            yield piece
