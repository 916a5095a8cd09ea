"""JSON bodies of requests: small ones at once, long lists element by element."""

import asyncio
import json
import re
from codecs import getincrementaldecoder
from collections.abc import Callable, Generator
from typing import Any, Final

from aiohttp import web

from immich_bridge.body import IncomingBody
from immich_bridge.errors import BadRequest

INVALID_FORMAT = "Invalid request format"
_GATHER: Final = 1024 * 1024
"""Bytes of a list that go to a thread at once."""
_LONGEST_VALUE: Final = 64 * 1024
"""Characters of one element of a list, or of what stands beside the list."""
_MOST_MEMBERS: Final = 64
"""Members of an object beside its list."""
_SPACE: Final = re.compile(r"[ \t\n\r]*")  # RFC 8259 2
_DECODER: Final = json.JSONDecoder()


async def read_json_object(
    request: web.Request, *, limit: int, idle_timeout: float
) -> dict[str, Any]:
    """The JSON object in the body of `request`, of `limit` bytes at most, which are few.

    Raises `BadRequest` for anything else, also for text that is no Unicode: a lone
    surrogate can be written in JSON, but neither stored nor answered.
    """
    with IncomingBody(request, idle_timeout=idle_timeout, limit=limit) as body:
        text = bytearray()
        while piece := await body.read():
            text += piece
    try:
        return _parse_object(text)
    except (ValueError, RecursionError):
        raise BadRequest(INVALID_FORMAT) from None


async def read_json_with_list(
    request: web.Request, parser: "ListParser", *, limit: int, idle_timeout: float
) -> dict[str, Any]:
    """The same for an object with a list that may be long: see `ListParser`.

    It is parsed in a thread while it comes, and in small steps: what is parsed at once has
    Python's lock to itself from beginning to end.
    """
    with IncomingBody(request, idle_timeout=idle_timeout, limit=limit) as body:
        gathered = bytearray()
        while piece := await body.read():
            gathered += piece
            if len(gathered) >= _GATHER:
                await _in_thread(parser.feed, gathered)
                gathered = bytearray()
    await _in_thread(parser.finish, gathered)
    return parser.members


class ListParser:
    """Parses a JSON object that comes in pieces, its list `name` element by element.

    Of each element is kept what `keep` makes of it, so that memory is that of what is kept,
    however many bytes come and whatever they hold. Raises `BadRequest` for more than `most`
    elements, `ValueError` or `RecursionError` for what is no such object.
    """

    def __init__(self, name: str, *, most: int, keep: Callable[[object], object]) -> None:
        self.members: dict[str, Any] = {}
        """What has come of the object so far."""
        self._name = name
        self._most = most
        self._keep = keep
        self._decode = getincrementaldecoder("utf-8")().decode  # RFC 8259 8.1
        self._text = ""
        self._at = 0
        self._begun = False
        self._last = False
        self._steps = self._parse()

    def feed(self, data: bytes | bytearray) -> None:
        """Parse as much as `data` makes possible."""
        self._begun = True
        self._text = self._text[self._at :] + self._decode(data)
        self._at = 0
        next(self._steps, None)

    def finish(self, data: bytes | bytearray) -> None:
        """Parse the last of it."""
        if self._begun:
            self._last = True
            self.feed(data)
            self._decode(b"", True)
        else:
            self._parse_whole(data)

    def _parse_whole(self, data: bytes | bytearray) -> None:
        """What is not large is parsed at once: that takes a fifth of the time."""
        self.members = _parse_object(data)
        elements = self.members.get(self._name)
        if isinstance(elements, list):
            if len(elements) > self._most:
                raise self._too_many()
            self.members[self._name] = [self._keep(element) for element in elements]

    def _parse(self) -> Generator[None, None, None]:
        """Pauses where more text is needed."""
        yield from self._object()
        yield from self._token()
        if self._at < len(self._text):
            raise ValueError("something stands behind the object")

    def _object(self) -> Generator[None, None, None]:
        yield from self._symbol("{")
        if (yield from self._closed("}")):
            return
        for _ in range(_MOST_MEMBERS):
            name = yield from self._value()
            if not isinstance(name, str):
                raise ValueError("a name is no string")
            yield from self._symbol(":")
            yield from self._token()
            if name == self._name and self._text.startswith("[", self._at):
                yield from self._list()
            else:
                self.members[name] = yield from self._value()
            if (yield from self._symbol(",}")) == "}":
                return
        raise ValueError("there are too many members")

    def _list(self) -> Generator[None, None, None]:
        elements: list[object] = []
        self.members[self._name] = elements
        yield from self._symbol("[")
        if (yield from self._closed("]")):
            return
        while len(elements) < self._most:
            element = yield from self._value()
            elements.append(self._keep(element))
            if (yield from self._symbol(",]")) == "]":
                return
        raise self._too_many()

    def _too_many(self) -> BadRequest:
        return BadRequest(f"too many {self._name}: at most {self._most} at once")

    def _value(self) -> Generator[None, None, Any]:
        yield from self._token()
        value, end = _DECODER.raw_decode(self._text, self._at)
        if end - self._at > _LONGEST_VALUE:
            raise ValueError("a value is too long")
        if self._text.find("\\u", self._at, end) >= 0:
            _check_unicode(value)
        self._at = end
        return value

    def _symbol(self, expected: str) -> Generator[None, None, str]:
        """The next character, which has to be one of those."""
        yield from self._token()
        found = self._text[self._at : self._at + 1]
        if not found or found not in expected:
            raise ValueError(f"none of {expected}")
        self._at += 1
        return found

    def _closed(self, symbol: str) -> Generator[None, None, bool]:
        """Whether the next character is that one, and then past it."""
        yield from self._token()
        if not self._text.startswith(symbol, self._at):
            return False
        self._at += 1
        return True

    def _token(self) -> Generator[None, None, None]:
        """Past white space, and on only with all of the next value at hand."""
        while True:
            space = _SPACE.match(self._text, self._at)
            self._at = space.end() if space else self._at
            if self._last or len(self._text) - self._at > _LONGEST_VALUE:
                return
            yield


async def _in_thread(parse: Callable[[bytearray], None], data: bytearray) -> None:
    try:
        await asyncio.to_thread(parse, data)
    except (ValueError, RecursionError):
        raise BadRequest(INVALID_FORMAT) from None


def _parse_object(data: bytes | bytearray) -> dict[str, Any]:
    value = json.loads(data.decode())  # RFC 8259 8.1: UTF-8 and nothing else
    if b"\\u" in data:
        _check_unicode(value)
    if not isinstance(value, dict):
        raise ValueError("it is no object")
    return value


def _check_unicode(value: object) -> None:
    json.dumps(value, ensure_ascii=False).encode()
