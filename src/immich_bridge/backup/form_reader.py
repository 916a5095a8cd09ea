"""Reading an upload form part by part, with aiohttp's multipart reader over `IncomingBody`."""

from functools import lru_cache
from typing import Final, cast

from aiohttp import (
    BodyPartReader,
    MultipartReader,
    StreamReader,
    content_disposition_filename,
    parse_content_disposition,
)
from aiohttp.helpers import reify
from aiohttp.http_exceptions import HttpProcessingError
from multidict import CIMultiDictProxy

from immich_bridge.body import IncomingBody
from immich_bridge.errors import BadRequest

_FORM: Final = "multipart/form-data"
_PIECE: Final = 1024 * 1024
"""Bytes asked of the form at once: aiohttp's own 8 KiB cost ten times the CPU."""
MAX_FIELD_BYTES: Final = 64 * 1024
_MAX_LINE: Final = 16 * 1024


class FormReader:
    """The parts of the `multipart/form-data` body of a request, in their order.

    Raises `BadRequest` for what is no form.
    """

    def __init__(self, headers: CIMultiDictProxy[str], body: IncomingBody) -> None:
        if headers.get("Content-Type", "").partition(";")[0].strip().lower() != _FORM:
            raise BadRequest("Invalid request format")
        self._stream = _FormStream(body)
        try:
            self._reader = _Reader(headers, cast(StreamReader, self._stream))
        except ValueError as exc:
            raise _malformed(exc) from exc

    async def next(self) -> "FormPart | None":
        """The next part; None once the form, and the body around it, is whole."""
        try:
            part = await self._reader.next()
        except (ValueError, RuntimeError, AssertionError, HttpProcessingError) as exc:
            # An assertion of aiohttp's fails on a form that begins with a `_charset_` field.
            raise _malformed(exc) from exc
        if part is None:
            await self._stream.drain()
            return None
        if not isinstance(part, BodyPartReader) or not part.name:
            raise BadRequest("Invalid request format: a part of the form has no name")
        return FormPart(part)


class FormPart:
    """One field or file of a form; `read` gives its bytes piece by piece."""

    def __init__(self, part: BodyPartReader) -> None:
        self._part = part
        self.name = part.name or ""

    async def read(self) -> bytes:
        """The next piece, `b""` at the end of the part."""
        while not self._part.at_eof():
            try:
                piece = await self._part.read_chunk(_PIECE)
            except (ValueError, HttpProcessingError) as exc:
                raise _malformed(exc) from exc
            if piece:
                return piece
        return b""

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


@lru_cache(maxsize=64)
def _field_name(disposition: str) -> str | None:
    """The name in a `Content-Disposition`: clients send the same few again and again."""
    _, parameters = parse_content_disposition(disposition)
    return content_disposition_filename(parameters, "name")


class _Part(BodyPartReader):
    @reify
    def name(self) -> str | None:
        return _field_name(self.headers.get("Content-Disposition", ""))


class _Reader(MultipartReader):
    part_reader_cls = _Part


def _malformed(exc: Exception) -> BadRequest:
    reason = str(exc).partition("\n")[0][:100]
    return BadRequest(f"Invalid request format: the form cannot be read ({reason})")


class _FormStream:
    """`IncomingBody` with the methods that aiohttp's multipart reader calls on a stream."""

    def __init__(self, body: IncomingBody) -> None:
        self._body = body
        self._buffer = bytearray()
        self._ended = False

    async def read(self, size: int) -> bytes:
        """Up to `size` bytes, `b""` at the end."""
        if not self._buffer:
            await self._fill()
        piece = bytes(self._buffer[:size])
        del self._buffer[:size]
        return piece

    async def readline(self, *, max_line_length: int | None = None) -> bytes:
        """A line with its end, or what is left of the body."""
        limit = max_line_length or _MAX_LINE
        while (end := self._buffer.find(b"\n")) < 0 and not self._ended:
            if len(self._buffer) > limit:
                break
            await self._fill()
        size = end + 1 if end >= 0 else len(self._buffer)
        if size > limit:
            raise ValueError("a line is too long")
        line = bytes(self._buffer[:size])
        del self._buffer[:size]
        return line

    def unread_data(self, data: bytes) -> None:
        """Put `data` back."""
        self._buffer[:0] = data

    def at_eof(self) -> bool:
        """Whether nothing is left."""
        return self._ended and not self._buffer

    async def drain(self) -> None:
        """Read the body to its end, so that its length and digests are checked."""
        while not self._ended:
            self._buffer.clear()
            await self._fill()

    async def _fill(self) -> None:
        if not self._ended:
            piece = await self._body.read()
            self._ended = not piece
            self._buffer += piece
