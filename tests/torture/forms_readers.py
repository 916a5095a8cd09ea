"""One form, three readers: ours, Node's two, and the Python parser that Starlette relies on."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import cast

from multidict import CIMultiDict, CIMultiDictProxy
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from immich_bridge.backup.form_reader import FormReader
from immich_bridge.body import IncomingBody
from immich_bridge.errors import BadRequest
from node_tools import ParsedForm

_MANY_HEADERS = 1000
"""No reader shall refuse a form only for a limit that another one has set elsewhere."""

PythonPart = tuple[str, str | None, bytes]
"""Name, file name and content of a part as python-multipart reads it."""


class Refused(Exception):
    """A reader takes a form for none; the message says why."""


def pieces_of(body: bytes, size: int) -> Iterator[bytes]:
    """The body, `size` bytes at a time."""
    return (body[at : at + size] for at in range(0, len(body), size))


async def read_by_us(content_type: str, body: bytes, size: int) -> list[tuple[str, bytes]]:
    """Name and content of each part as the photo backup takes them; raises `Refused`."""
    headers = CIMultiDictProxy(CIMultiDict({"Content-Type": content_type}))
    parts = []
    try:
        form = FormReader(headers, cast(IncomingBody, _Body(pieces_of(body, size))))
        while (part := await form.next()) is not None:
            content = bytearray()
            while piece := await part.read():
                content += piece
            # The others read bytes that are no UTF-8 as that.
            name = part.name.encode(errors="surrogateescape").decode(errors="replace")
            parts.append((name, bytes(content)))
    except BadRequest as exc:
        raise Refused(exc.message) from exc
    return parts


class _Body:
    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces

    async def read(self) -> bytes:
        return next(self._pieces, b"")


def read_by_python(content_type: str, body: bytes, size: int) -> list[PythonPart]:
    """The parts as python-multipart reads them; raises `Refused`."""
    _, options = parse_options_header(content_type)
    collected = _Collected()
    parser = MultipartParser(
        options[b"boundary"],
        {
            "on_part_begin": collected.begin,
            "on_header_field": collected.header_name,
            "on_header_value": collected.header_value,
            "on_header_end": collected.header_end,
            "on_headers_finished": collected.headers_end,
            "on_part_data": collected.data,
            "on_part_end": collected.end,
            "on_end": collected.finish,
        },
        max_header_count=_MANY_HEADERS,
        max_header_size=len(body) + 1,
    )
    try:
        for piece in pieces_of(body, size):
            parser.write(piece)
        parser.finalize()
    except FormParserError as exc:
        raise Refused(str(exc)) from exc
    if not collected.finished:
        raise Refused("it does not end")
    return collected.parts


class _Collected:
    """What the parser calls back with; of a header that is there twice the first counts."""

    def __init__(self) -> None:
        self.parts: list[PythonPart] = []
        self.finished = False

    def begin(self) -> None:
        self._headers: dict[bytes, bytes] = {}
        self._name = self._value = b""
        self._content = bytearray()

    def header_name(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def header_end(self) -> None:
        self._headers.setdefault(self._name.lower(), self._value)
        self._name = self._value = b""

    def headers_end(self) -> None:
        kind, options = parse_options_header(self._headers.get(b"content-disposition"))
        if kind != b"form-data" or not options.get(b"name"):
            raise Refused("a part has no name")
        self._options = options

    def data(self, data: bytes, start: int, end: int) -> None:
        self._content += data[start:end]

    def end(self) -> None:
        filename = self._options.get(b"filename")
        self.parts.append(
            (
                self._options[b"name"].decode(errors="replace"),
                None if filename is None else filename.decode(errors="replace"),
                bytes(self._content),
            )
        )

    def finish(self) -> None:
        self.finished = True


def differences(ours: Sequence[tuple[str, bytes]], theirs: ParsedForm) -> list[object]:
    """The parts that one of us saw and the other did not; Node's order of them is not told."""
    files = Counter((file.name, file.sha256) for file in theirs.files)
    fields = Counter(theirs.fields)
    missing: list[object] = []
    for name, content in ours:
        as_file = name, hashlib.sha256(content).hexdigest()
        # Of a text field Node tells the text: what is no UTF-8 has a character in its place.
        as_field = name, content.decode(errors="replace")
        if files[as_file]:
            files[as_file] -= 1
        elif fields[as_field]:
            fields[as_field] -= 1
        else:
            missing.append((name, content))
    return [*missing, *files.elements(), *fields.elements()]
