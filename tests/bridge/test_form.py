"""The upload form: its size to the byte, its bytes as parsers see them, no end without a body."""

import asyncio
import re
from collections.abc import Iterator, Sequence

import pytest
from aiohttp import BodyPartReader, MultipartReader, StreamReader
from aiohttp.abc import AbstractStreamWriter
from aiohttp.base_protocol import BaseProtocol
from hypothesis import example, given, settings
from hypothesis import strategies as st

from immich_bridge.bridge.form import AssetForm, StreamedBody
from immich_bridge.errors import ClientGone

BOUNDARY = "----brX7f3"
FIELDS = [
    ("deviceAssetId", "A1/L0/001"),
    ("deviceId", "iPhone von Jörg"),
    ("metadata", '[{"a":1}]'),
]


class Written(AbstractStreamWriter):
    """A writer that keeps the pieces it was given, each as the write of its own that it was."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []

    @property
    def body(self) -> bytes:
        return b"".join(self.pieces)

    async def write(self, chunk: bytes | bytearray | memoryview) -> None:
        self.pieces.append(bytes(chunk))

    async def write_eof(self, chunk: bytes = b"") -> None:
        raise AssertionError("the end of the request is not the form's affair")

    async def drain(self) -> None:
        pass

    def enable_compression(self, encoding: str = "deflate", strategy: int | None = 0) -> None:
        raise AssertionError("a form is sent as it is")

    def enable_chunking(self) -> None:
        raise AssertionError("framing is the request's affair")

    async def write_headers(self, status_line: str, headers: object) -> None:
        raise AssertionError("a form writes no head of a request")


class Photo:
    """A photo that arrives in pieces; `failure` comes in the place of its end."""

    def __init__(self, *pieces: bytes, failure: Exception | None = None) -> None:
        # An empty piece is how a body says that it ended.
        self._rest: Iterator[bytes] = iter([piece for piece in pieces if piece])
        self._failure = failure

    async def read(self) -> bytes:
        piece = next(self._rest, b"")
        if not piece and self._failure is not None:
            raise self._failure
        return piece

    async def move_to(self, writer: AbstractStreamWriter) -> None:
        """Nothing of it can be moved unread."""


def form_of(
    photo: Photo,
    length: int | None = None,
    *,
    fields: Sequence[tuple[str, str]] = FIELDS,
    filename: str = "IMG_0001.HEIC",
    content_type: str = "image/heic",
    boundary: str | None = BOUNDARY,
) -> AssetForm:
    return AssetForm(
        fields,
        filename=filename,
        content_type=content_type,
        body=photo,
        length=length,
        boundary=boundary,
    )


async def written(form: AssetForm) -> Written:
    writer = Written()
    await form.write(writer)
    return writer


def by_hand(body: bytes, boundary: str) -> list[tuple[list[bytes], bytes]]:
    """The parts of a form (RFC 7578, RFC 2046 5.1.1): header lines and content of each."""
    delimiter = f"\r\n--{boundary}".encode()
    assert body.endswith(delimiter + b"--\r\n"), "no closing boundary, or something behind it"
    first, *parts = (
        (b"\r\n" + body).removesuffix(b"--\r\n").removesuffix(delimiter).split(delimiter)
    )
    assert first == b"", "something stands before the first part"
    found = []
    for part in parts:
        assert part.startswith(b"\r\n")
        head, _, content = part[2:].partition(b"\r\n\r\n")
        found.append((head.split(b"\r\n"), content))
    return found


async def by_aiohttp(form: AssetForm, body: bytes) -> list[tuple[str | None, str | None, bytes]]:
    """Name, file name and content of each part, as aiohttp's own reader sees them."""
    loop = asyncio.get_running_loop()
    stream = StreamReader(BaseProtocol(loop), 2**16, loop=loop)
    stream.feed_data(body)
    stream.feed_eof()
    found = []
    reader = MultipartReader(form.headers, stream)
    while (part := await reader.next()) is not None:
        assert isinstance(part, BodyPartReader)
        found.append((part.name, part.filename, bytes(await part.read())))
    return found


class TestBytes:
    async def test_of_a_whole_form(self) -> None:
        form = form_of(Photo(b"photo"), 5)
        assert (await written(form)).body == (
            b"------brX7f3\r\n"
            b'Content-Disposition: form-data; name="deviceAssetId"\r\n'
            b"\r\n"
            b"A1/L0/001\r\n"
            b"------brX7f3\r\n"
            b'Content-Disposition: form-data; name="deviceId"\r\n'
            b"\r\n"
            b"iPhone von J\xc3\xb6rg\r\n"
            b"------brX7f3\r\n"
            b'Content-Disposition: form-data; name="metadata"\r\n'
            b"\r\n"
            b'[{"a":1}]\r\n'
            b"------brX7f3\r\n"
            b"Content-Type: image/heic\r\n"
            b'Content-Disposition: form-data; name="assetData"; filename="IMG_0001.HEIC"\r\n'
            b"\r\n"
            b"photo\r\n"
            b"------brX7f3--\r\n"
        )
        assert form.headers["Content-Type"] == "multipart/form-data; boundary=----brX7f3"

    @pytest.mark.parametrize(
        ("filename", "quoted"),
        [
            ("照片 é.HEIC", "照片 é.HEIC"),
            ('a"b.jpg', 'a\\"b.jpg'),
            ("a%22b.jpg", "a%22b.jpg"),
            ("%E7%85%A7.jpg", "%E7%85%A7.jpg"),
            ("a;b=c.jpg", "a;b=c.jpg"),
        ],
    )
    async def test_of_a_file_name_are_utf8(self, filename: str, quoted: str) -> None:
        body = (await written(form_of(Photo(b"photo"), filename=filename))).body
        *_, (head, content) = by_hand(body, BOUNDARY)
        disposition = f'Content-Disposition: form-data; name="assetData"; filename="{quoted}"'
        assert disposition.encode() in head
        assert content == b"photo"

    async def test_each_form_has_a_boundary_of_its_own(self) -> None:
        boundaries = {form_of(Photo(), boundary=None).boundary for _ in range(100)}
        assert len(boundaries) == 100
        assert all(re.fullmatch(r"[0-9A-Za-z'()+_,./:=?-]{16,70}", each) for each in boundaries)

    @settings(deadline=None)
    @given(
        fields=st.lists(
            st.tuples(
                st.sampled_from(["deviceAssetId", "deviceId", "metadata"]),
                st.text(st.characters(exclude_categories=["Cs"]), max_size=50),
            ),
            max_size=4,
        ),
        # aiohttp's reader refuses some names that Immich's takes.
        filename=st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=50),
        pieces=st.lists(
            st.binary(max_size=80) | st.sampled_from([b"\r\n", b"--", b"\r\n------brX7f", b"\0"]),
            max_size=5,
        ),
        announced=st.booleans(),
    )
    @example([], "x", [f"\r\n--{BOUNDARY}--\r\n".encode()], True)
    @example([], "x", [b"\r\n", b"\r\n--"], True)
    async def test_are_the_same_to_every_reader(
        self,
        fields: list[tuple[str, str]],
        filename: str,
        pieces: list[bytes],
        announced: bool,
    ) -> None:
        photo = b"".join(pieces)
        length = len(photo) if announced else None
        form = form_of(Photo(*pieces), length, fields=fields, filename=filename, boundary=None)
        body = (await written(form)).body
        assert form.size == (len(body) if announced else None)
        assert await by_aiohttp(form, body) == [
            *((name, None, value.encode()) for name, value in fields),
            ("assetData", filename, photo),
        ]
        parts = by_hand(body, form.boundary)
        assert [content for _, content in parts] == [
            *(value.encode() for _, value in fields),
            photo,
        ]
        assert [head for head, _ in parts[:-1]] == [
            [f'Content-Disposition: form-data; name="{name}"'.encode()] for name, _ in fields
        ]


class TestSize:
    @pytest.mark.parametrize("length", [0, 1, 5, 2**16, 2**20 + 1])
    async def test_is_exact(self, length: int) -> None:
        form = form_of(Photo(bytes(length)), length, filename="照片 é.HEIC")
        assert form.size == len((await written(form)).body)

    async def test_is_known_before_the_photo_is(self) -> None:
        assert (form_of(Photo(), 3 << 30).size or 0) - (form_of(Photo(), 0).size or 0) == 3 << 30

    async def test_is_unknown_when_that_of_the_photo_is(self) -> None:
        assert form_of(Photo(b"photo")).size is None


class TestWrites:
    async def test_all_that_precedes_the_file_goes_out_with_its_first_piece(self) -> None:
        pieces = [b"first", b"second", b"third"]
        first, *rest = (await written(form_of(Photo(*pieces), 16))).pieces
        assert first.startswith(b"------brX7f3\r\n")
        assert first.endswith(b'filename="IMG_0001.HEIC"\r\n\r\nfirst')
        assert rest == [b"second", b"third", b"\r\n------brX7f3--\r\n"]

    async def test_the_end_waits_for_the_end_of_the_photo(self) -> None:
        asked, ended = asyncio.Event(), asyncio.Event()

        class Slow(Photo):
            async def read(self) -> bytes:
                piece = await super().read()
                if not piece:
                    asked.set()
                    await ended.wait()
                return piece

        writer = Written()
        writing = asyncio.create_task(form_of(Slow(b"photo"), 5).write(writer))
        await asked.wait()
        assert writer.body.endswith(b"photo")
        ended.set()
        await writing
        assert writer.body.endswith(b"photo\r\n------brX7f3--\r\n")

    @pytest.mark.parametrize("pieces", [[], [b"first"], [b"first", b"second"]])
    async def test_nothing_follows_a_photo_that_broke_off(self, pieces: list[bytes]) -> None:
        writer = Written()
        with pytest.raises(ClientGone):
            await form_of(Photo(*pieces, failure=ClientGone("gone")), 1000).write(writer)
        if pieces:
            assert writer.body.endswith(b"".join(pieces))
        assert len(writer.pieces) == len(pieces)
        assert b"--\r\n" not in writer.body


class TestStreamedBody:
    async def test_is_written_piece_by_piece(self) -> None:
        body = StreamedBody(Photo(b"first", b"second"), 11, "image/heic")
        writer = Written()
        await body.write(writer)
        assert writer.pieces == [b"first", b"second"]
        assert (body.size, body.headers["Content-Type"]) == (11, "image/heic")

    async def test_ends_with_its_source(self) -> None:
        body = StreamedBody(Photo(b"first", failure=ClientGone("gone")), None, "image/heic")
        writer = Written()
        with pytest.raises(ClientGone):
            await body.write(writer)
        assert (writer.pieces, body.size) == ([b"first"], None)

    async def test_is_never_held_as_text(self) -> None:
        with pytest.raises(TypeError):
            StreamedBody(Photo(b"first"), None, "image/heic").decode()
