"""Immich's upload form around a file that is still on its way."""

from collections.abc import Sequence
from functools import cache
from typing import Final, Protocol

from aiohttp import BytesPayload, MultipartWriter, Payload, hdrs
from aiohttp.abc import AbstractStreamWriter

_CRLF: Final = b"\r\n"


class ByteSource(Protocol):
    """Something that gives bytes piece by piece, and `b""` once they are whole."""

    async def read(self) -> bytes:
        """The next piece. Raises when the end can no longer be reached."""

    async def move_to(self, writer: AbstractStreamWriter) -> None:
        """Move what can be moved without being read; `read` goes on behind it."""


class StreamedBody(Payload):
    """The bytes of `source` as the body of a request; `length` as far as it is known."""

    _autoclose = True

    def __init__(self, source: ByteSource, length: int | None, content_type: str) -> None:
        super().__init__(source, content_type=content_type)
        self.source = source
        self._size = length

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        """Not possible: the bytes are not here yet."""
        raise TypeError("a streamed body cannot be held as text")

    async def write(self, writer: AbstractStreamWriter) -> None:
        """Write the bytes as they come; the writer's back-pressure sets the pace."""
        await self.write_behind(b"", writer)

    async def write_behind(self, prefix: bytes, writer: AbstractStreamWriter) -> None:
        """Write `prefix` together with the first piece, then the others."""
        while await self._write_piece(writer, prefix):
            await self.source.move_to(writer)
            prefix = b""

    async def _write_piece(self, writer: AbstractStreamWriter, prefix: bytes) -> bool:
        """Write the next piece, which nothing holds while the one behind it is waited for."""
        piece = prefix + await self.source.read()
        if piece:
            await writer.write(piece)
        return bool(piece)


class AssetForm(MultipartWriter):
    """`multipart/form-data` with text fields first and the file `assetData` last.

    `size` is exact when the length of the file is known, so that the form need not be sent
    chunked. The closing boundary is written only after the source has reported its end;
    until then the form is no form, and Immich makes no asset of it.
    """

    def __init__(
        self,
        fields: Sequence[tuple[str, str]],
        *,
        filename: str,
        content_type: str,
        body: ByteSource,
        length: int | None,
        boundary: str | None = None,
    ) -> None:
        super().__init__("form-data", boundary=boundary)
        self._file = StreamedBody(body, length, content_type)
        # Immich's parser takes the name as raw UTF-8 and does not undo percent-encoding.
        self._file.set_content_disposition(
            "form-data", quote_fields=False, name="assetData", filename=filename
        )
        self.append_payload(self._file)
        delimiter = b"--" + self._boundary
        before = bytearray()
        for name, value in fields:
            before += delimiter + _CRLF + _field_headers(name) + value.encode() + _CRLF
        self._before = bytes(before + delimiter + _CRLF + self._file._binary_headers)
        self._behind = _CRLF + delimiter + b"--" + _CRLF

    @property
    def size(self) -> int | None:
        """Bytes of the whole form; None when the length of the file is not known."""
        length = self._file.size
        return None if length is None else len(self._before) + length + len(self._behind)

    async def write(self, writer: AbstractStreamWriter, close_boundary: bool = True) -> None:
        """Write the form; all that precedes the file goes out with the file's first piece.

        The writer of aiohttp makes some 16 small pieces of a form like this, each a system
        call of its own.
        """
        await self._file.write_behind(self._before, writer)
        if close_boundary:
            await writer.write(self._behind)


@cache  # there are a dozen names
def _field_headers(name: str) -> bytes:
    """The headers of a text field as aiohttp renders them, up to its value."""
    part = BytesPayload(b"")
    # Browsers and Immich's own clients send text fields without a type.
    del part.headers[hdrs.CONTENT_TYPE]
    part.set_content_disposition("form-data", name=name)
    return part._binary_headers
