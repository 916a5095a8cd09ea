"""Reading an upload form part by part, as it comes, without a copy of what is in it.

aiohttp's own reader looks at each byte several times and hands it on in pieces of its own;
here the pieces of the body pass through as they are, cut only where a delimiter is.
"""

import re
from functools import lru_cache
from typing import Final

from aiohttp.helpers import parse_mimetype
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.http_parser import HeadersParser
from multidict import CIMultiDictProxy

from immich_bridge.body import IncomingBody
from immich_bridge.errors import BadRequest

MAX_FIELD_BYTES: Final = 64 * 1024
_MAX_BOUNDARY: Final = 70  # RFC 2046 5.1.1
_MAX_HEAD_BYTES: Final = 16 * 1024
_MAX_HEADERS: Final = 64
_MAX_PARTS: Final = 100
_BOUNDARY_GOES_ON: Final = "a line begins with its boundary, and goes on"
# RFC 7578 4.2, with the tokens and quoted strings of RFC 9110 5.6.
_WORD: Final = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_PARAMETER: Final = rf'[ \t]*;[ \t]*({_WORD})=({_WORD}|"(?:[^"\\]|\\.)*")'
_DISPOSITION: Final = re.compile(rf"form-data((?:{_PARAMETER})*)", re.IGNORECASE)
_PARAMETERS: Final = re.compile(_PARAMETER)
# RFC 8187 3.2.1, in the two charsets that everybody knows.
_EXTENDED: Final = re.compile(
    r"(?:utf-8|iso-8859-1)'[^']*'(?:[!#$&+.^_`|~0-9A-Za-z-]|%[0-9A-Fa-f]{2})+", re.IGNORECASE
)


class FormReader:
    """The parts of the `multipart/form-data` body of a request, in their order (RFC 7578).

    Raises `BadRequest` for what is no form. A line of content that begins with the
    delimiter (RFC 2046 5.1.1) is refused as well: to take it for the end of the part would
    cut a photo short.
    """

    def __init__(self, headers: CIMultiDictProxy[str], body: IncomingBody) -> None:
        content_type = parse_mimetype(headers.get("Content-Type", ""))
        if (content_type.type, content_type.subtype) != ("multipart", "form-data"):
            raise BadRequest("Invalid request format")
        boundary = content_type.parameters.get("boundary", "").encode(errors="surrogateescape")
        if not 0 < len(boundary) <= _MAX_BOUNDARY:
            raise _malformed(f"its boundary does not have 1 to {_MAX_BOUNDARY} characters")
        self._body = body
        self._delimiter = b"\r\n--" + boundary
        # As if a line had ended before the body: the first delimiter may begin it.
        self._unread = b"\r\n"
        # What precedes the first delimiter is skipped as the rest of a part would be.
        self._in_part = True
        self._at_start = False
        self._parts = 0

    async def next(self) -> "FormPart | None":
        """The next part; None once the form, and the body around it, is whole."""
        while await self.read():
            pass
        self._parts += 1
        if self._parts > _MAX_PARTS + 1:  # the end of the form counts, too
            raise _malformed(f"it has more than {_MAX_PARTS} parts")
        mark = await self._take(2)
        if mark == b"--":
            await self._finish()
            return None
        self._unread = mark + self._unread
        padding, head = await self._take_head()
        if padding.strip(b" \t"):
            raise _malformed(_BOUNDARY_GOES_ON)
        self._in_part = self._at_start = True
        return FormPart(self, _part_name(head))

    async def read(self) -> bytes:
        """The next piece of the part at hand, `b""` at its end."""
        if self._at_start:
            self._at_start = False
            await self._refuse_delimiter_at_start()
        while self._in_part:
            piece, delimiter, rest = self._unread.partition(self._delimiter)
            if delimiter:
                self._unread = rest
                self._in_part = False
                return piece
            held = self._beginning_of_delimiter()
            if held < len(piece):
                self._unread = piece[len(piece) - held :]
                return piece[: len(piece) - held]
            await self._receive()
        return b""

    async def _refuse_delimiter_at_start(self) -> None:
        """Refuse what readers disagree on: an empty part, or one that begins with the delimiter.

        The line end before such a delimiter is that of the blank line behind the headers.
        """
        line = self._delimiter.removeprefix(b"\r\n")
        while len(self._unread) < len(line) and line.startswith(self._unread):
            await self._receive()
        if self._unread.startswith(line):
            raise _malformed("a part has no line between its headers and its delimiter")

    def _beginning_of_delimiter(self) -> int:
        """How many bytes at the end of `_unread` may be the beginning of a delimiter."""
        unread, delimiter = self._unread, self._delimiter
        at = unread.find(b"\r", max(0, len(unread) - len(delimiter) + 1))
        while at >= 0 and not delimiter.startswith(unread[at:]):
            at = unread.find(b"\r", at + 1)
        return len(unread) - at if at >= 0 else 0

    async def _take_head(self) -> tuple[bytes, bytes]:
        """What follows a delimiter: the rest of its line, and the headers of the part."""
        while (end := self._unread.find(b"\r\n\r\n")) < 0:
            if len(self._unread) > _MAX_HEAD_BYTES:
                raise _malformed("the headers of a part are too long")
            await self._receive()
        head, self._unread = self._unread[:end], self._unread[end + 4 :]
        if len(head) > _MAX_HEAD_BYTES:
            raise _malformed("the headers of a part are too long")
        padding, _, headers = head.partition(b"\r\n")
        return padding, headers

    async def _finish(self) -> None:
        """Read what follows the closing delimiter, so that length and digests are checked."""
        line = self._unread
        while b"\r\n" not in line and (piece := await self._body.read()):
            line += piece
            if len(line) > _MAX_HEAD_BYTES + len(piece):
                break
        if line.partition(b"\r\n")[0].strip(b" \t\r"):
            raise _malformed(_BOUNDARY_GOES_ON)
        while await self._body.read():
            pass

    async def _take(self, size: int) -> bytes:
        while len(self._unread) < size:
            await self._receive()
        taken, self._unread = self._unread[:size], self._unread[size:]
        return taken

    async def _receive(self) -> None:
        piece = await self._body.read()
        if not piece:
            raise _malformed("it ends without its closing boundary")
        self._unread = self._unread + piece if self._unread else piece


class FormPart:
    """One field or file of a form; `read` gives its bytes piece by piece."""

    def __init__(self, form: FormReader, name: str) -> None:
        self._form = form
        self.name = name

    async def read(self) -> bytes:
        """The next piece, `b""` at the end of the part."""
        return await self._form.read()

    async def text(self) -> str:
        """The whole of a text field."""
        value = bytearray()
        while piece := await self.read():
            value += piece
            if len(value) > MAX_FIELD_BYTES:
                raise BadRequest(f"{self.name} is longer than {MAX_FIELD_BYTES} bytes")
        try:
            return value.decode()
        except UnicodeDecodeError:
            raise BadRequest(f"{self.name} is not UTF-8 text") from None


@lru_cache(maxsize=64)  # clients send the same few heads again and again
def _part_name(head: bytes) -> str:
    """The name of a part with these headers; raises `BadRequest` if it has none."""
    lines = head.split(b"\r\n")
    if len(lines) > _MAX_HEADERS:
        raise _malformed("a part has too many headers")
    try:
        headers, _ = HeadersParser().parse_headers([*lines, b""])
    except HttpProcessingError as exc:
        raise _malformed(exc.message.partition("\n")[0][:100]) from exc
    if headers.get("Content-Type", "").lower().startswith("multipart/"):
        raise _malformed("a part is a form of its own")
    dispositions = headers.getall("Content-Disposition", ())
    if len(dispositions) > 1:
        raise _malformed("a part has more than one Content-Disposition")
    name = _disposition(dispositions[0]).get("name") if dispositions else None
    if not name:
        raise BadRequest("Invalid request format: a part of the form has no name")
    return name


def _disposition(text: str) -> dict[str, str]:
    """The parameters of a `Content-Disposition`.

    Nothing in it is mended: each reader would do so in another way, and read another name.
    """
    match = _DISPOSITION.fullmatch(text)
    if match is None:
        raise _malformed("the Content-Disposition of a part is not one of a form")
    parameters: dict[str, str] = {}
    for name, value in _PARAMETERS.findall(match[1]):
        name = name.lower()
        if name in parameters or name.startswith("name*"):  # RFC 7578 4.2 has no name*
            raise _malformed("a part has more than one name")
        if name.endswith("*") and not _EXTENDED.fullmatch(value):
            raise _malformed(f"a part has a {name[:20]} that cannot be read")
        quoted = value.startswith('"')
        parameters[name] = re.sub(r'\\(["\\])', r"\1", value[1:-1]) if quoted else value
    return parameters


def _malformed(reason: str) -> BadRequest:
    return BadRequest(f"Invalid request format: the form cannot be read ({reason})")
