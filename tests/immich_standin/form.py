"""Reading the upload form in the manner of multer 2 on busboy 1.6, piece by piece."""

from __future__ import annotations

import posixpath
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from aiohttp import BodyPartReader, MultipartReader, StreamReader, web
from aiohttp.helpers import parse_mimetype
from aiohttp.http_exceptions import HttpProcessingError
from multidict import CIMultiDict, CIMultiDictProxy

from . import disposition, mime
from .assets import IncomingFile, Library
from .body import PIECE, Body
from .release import Refusal, Release

# busboy's limits: a part's whole header, and the value of a text field.
MAX_PART_HEADER = 16 * 1024
MAX_FIELD = 1024 * 1024

# aiohttp reads two pieces ahead, so small ones keep a text field from taking the file's bytes,
# which a body that stalls or vanishes there must not have given yet.
FIELD_PIECE = 1024

FILE_FIELDS = ("assetData", "sidecarData")


class Part(BodyPartReader):
    """A part as busboy sees it: its disposition raw, its encoding ignored.

    aiohttp warns of every Content-Disposition it cannot read, and aligns what it hands out of a
    base64 part; both headers are kept from it.
    """

    def __init__(
        self, boundary: bytes, headers: CIMultiDictProxy[str], content: StreamReader, **options: Any
    ) -> None:
        kept = CIMultiDict(headers)
        self.empty = not kept
        disposition = kept.popone("Content-Disposition", "")
        self.disposition = disposition.encode("utf-8", "surrogateescape")
        kept.popall("Content-Transfer-Encoding", None)
        super().__init__(boundary, CIMultiDictProxy(kept), content, **options)

    async def pieces(self, size: int) -> AsyncIterator[bytes]:
        """The content; raises ValueError when the form ends before the part does."""
        # An empty piece is no end: at the end of the stream aiohttp hands one out first.
        while not self.at_eof():
            yield await self.read_chunk(size)


class Parts(MultipartReader):
    part_reader_cls = Part


@dataclass
class ReceivedFile:
    incoming: IncomingFile
    original_name: str


@dataclass
class Form:
    """The text fields (a repeated one becomes a list) and the files that came."""

    fields: dict[str, str | list[str]] = field(default_factory=dict)
    files: dict[str, ReceivedFile] = field(default_factory=dict)

    def text(self, name: str) -> str:
        value = self.fields.get(name, "")
        return value if isinstance(value, str) else ",".join(value)

    def discard(self) -> None:
        for received in self.files.values():
            received.incoming.delete()


class FormReader:
    """One upload's form on its way in; every error is answered only after the whole body."""

    def __init__(self, body: Body, library: Library, owner: str, release: Release) -> None:
        self._body = body
        self._library = library
        self._owner = owner
        self._release = release
        self._form = Form()
        self._open: IncomingFile | None = None

    async def read(self, request: web.Request) -> Form:
        """The whole form; raises Refusal, or what the connection raises when the client is gone.

        Nothing is left on the disk then, but for the empty file that multer leaves of a file in
        the middle of which the form ended.
        """
        complete = False
        try:
            await self._read(request)
            complete = True
        except HttpProcessingError as exc:
            await self._body.drain()
            raise Refusal(400, "Multipart: Malformed part header") from exc
        except (ValueError, AssertionError, RuntimeError) as exc:
            # The ways in which aiohttp's reader says that the form does not end as it should.
            await self._body.drain()
            if self._open is not None:
                self._open.close()
                self._open.truncate()
                self._open = None
            raise Refusal(400, "Multipart: Unexpected end of form") from exc
        finally:
            if self._open is not None:
                self._open.delete()
            if not complete:
                self._form.discard()
        return self._form

    async def _read(self, request: web.Request) -> None:
        reader = Parts(
            request.headers,
            self._body.as_stream(),
            max_field_size=MAX_PART_HEADER,
        )
        refusal: Refusal | None = None
        while (part := await reader.next()) is not None:
            if refusal is not None or not isinstance(part, Part):
                await part.release()
                continue
            try:
                await self._read_part(part)
            except Refusal as exc:
                refusal = exc
        # The epilogue, and whatever else the sender counted in.
        await self._body.drain()
        if refusal is not None:
            raise refusal

    async def _read_part(self, part: Part) -> None:
        named = disposition.parse(part.disposition)
        if part.empty and self._body.at_eof():
            raise ValueError("the form ends after a boundary")
        if named is None or named.name is None:
            await part.release()
        elif named.filename is not None:
            await self._read_file(part, named.name, named.filename)
        elif parse_mimetype(part.headers.get("Content-Type", "")).subtype == "octet-stream":
            # A file to busboy, but multer drops one without a name.
            await part.release()
        else:
            await self._read_field(part, named.name)

    async def _read_field(self, part: Part, name: str) -> None:
        value = bytearray()
        async for piece in part.pieces(FIELD_PIECE):
            value += piece
            if len(value) > MAX_FIELD:
                raise Refusal(400, f"Field value too long - {name}")
        text = value.decode("utf-8", "replace")
        earlier = self._form.fields.get(name)
        if earlier is None:
            self._form.fields[name] = text
        elif isinstance(earlier, str):
            self._form.fields[name] = [earlier, text]
        else:
            earlier.append(text)

    async def _read_file(self, part: Part, field_name: str, filename: str) -> None:
        if field_name not in FILE_FIELDS or field_name in self._form.files:
            raise Refusal(400, f"Unexpected field - {field_name}")
        # A `filename` field that came before the file wins over the part's own name, and does
        # so for the sidecar as well.
        name = self._form.text("filename") or filename
        if field_name == "sidecarData":
            extension = ".xmp"
            accepted = posixpath.splitext(name)[1].lower() in mime.SIDECAR
        else:
            extension = mime.extension(name, self._release)
            accepted = mime.is_asset(name, self._release)
        if not accepted:
            raise Refusal(400, f"Unsupported file type {name}")
        self._open = self._library.receive(self._owner, extension)
        async for piece in part.pieces(PIECE):
            self._open.write(piece)
        self._open.close()
        self._form.files[field_name] = ReceivedFile(self._open, filename)
        self._open = None
