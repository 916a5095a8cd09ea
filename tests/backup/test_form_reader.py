"""Forms as clients send them, well and badly: what a form says is what comes out, or a refusal."""

import asyncio
import io
import itertools
import random
from collections.abc import Sequence
from pathlib import Path
from typing import cast
from unittest.mock import Mock

import pytest
from aiohttp import BodyPartReader, FormData, MultipartReader, MultipartWriter, StreamReader
from aiohttp.abc import AbstractStreamWriter
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from multidict import CIMultiDict, CIMultiDictProxy

from backup_uploads import FOLDER, answer_to, index, on_disk, pattern
from backup_wing import BOUNDARY, Answer, Api, Part, multipart
from immich_bridge.backup.form_reader import MAX_FIELD_BYTES, FormReader
from immich_bridge.body import IncomingBody
from immich_bridge.errors import BadRequest
from wire import request

FILE = f"{FOLDER}/IMG_0001.jpg"
ID: Part = ("local_id", "IMG_1234", None)
TYPE: Part = ("file_type", "image/jpeg", None)
PHOTO: Part = ("file", b"the photo", "photo.jpg")
ORDERS = [*itertools.permutations((ID, TYPE, PHOTO))]
START = f"--{BOUNDARY}\r\n".encode()
END = f"--{BOUNDARY}--\r\n".encode()
DISPOSITION = b'Content-Disposition: form-data; name="%b"\r\n\r\n'


def part(name: str, content: bytes, *, head: bytes = b"") -> bytes:
    """A part with its delimiter in front; `head` goes before its `Content-Disposition`."""
    return START + head + DISPOSITION % name.encode() + content + b"\r\n"


FIELDS = part("local_id", b"IMG_1234") + part("file_type", b"image/jpeg")


class Body:
    """A body that comes in given pieces."""

    def __init__(self, pieces: Sequence[bytes]) -> None:
        self._pieces = iter([piece for piece in pieces if piece])

    async def read(self) -> bytes:
        return next(self._pieces, b"")


async def read_form(content_type: str, *pieces: bytes) -> list[tuple[str, bytes]]:
    """Name and content of each part of a form that comes in these pieces."""
    headers = CIMultiDictProxy(CIMultiDict({"Content-Type": content_type}))
    form = FormReader(headers, cast(IncomingBody, Body(pieces)))
    found = []
    while (each := await form.next()) is not None:
        content = bytearray()
        while piece := await each.read():
            content += piece
        found.append((each.name, bytes(content)))
    return found


def cut(body: bytes, at: Sequence[int]) -> list[bytes]:
    """`body` in pieces, cut at these positions."""
    borders = sorted({0, len(body), *(position % (len(body) + 1) for position in at)})
    return [body[a:b] for a, b in itertools.pairwise(borders)]


class Sink(AbstractStreamWriter):
    """Where aiohttp's client writes."""

    def __init__(self) -> None:
        self.body = bytearray()

    async def write(self, chunk: bytes | bytearray | memoryview) -> None:
        self.body += chunk

    async def write_eof(self, chunk: bytes = b"") -> None:
        self.body += chunk

    async def drain(self) -> None:
        pass

    def enable_compression(self, encoding: str = "deflate", strategy: int | None = None) -> None:
        raise NotImplementedError

    def enable_chunking(self) -> None:
        raise NotImplementedError

    async def write_headers(self, status_line: str, headers: CIMultiDict[str]) -> None:
        raise NotImplementedError


async def written(form: MultipartWriter) -> bytes:
    """The body of a form of aiohttp's client."""

    sink = Sink()
    await form.write(sink)
    return bytes(sink.body)


async def post(
    api: Api, body: bytes, content_type: str | None = f"multipart/form-data; boundary={BOUNDARY}"
) -> Answer:
    headers = () if content_type is None else (("Content-Type", content_type),)
    return await api.call("POST", "/photos/upload", *headers, body=body)


def upload_head(api: Api, length: int, content_type: str) -> bytes:
    return request(
        "POST",
        "/photos/upload",
        ("Authorization", f"Bearer {api.token}"),
        ("Content-Type", content_type),
        ("Content-Length", str(length)),
    )


# Text that is nearly a delimiter, and nearly the end of a line before one.
NEARLY = st.sampled_from(
    [b"\r", b"\n", b"\r\n", b"-", b"--", b"x", b"\0", b"\xff", BOUNDARY.encode()]
    + [f"\r\n--{BOUNDARY}".encode()[:length] for length in range(3, len(BOUNDARY) + 4)]
)
CONTENTS = st.one_of(
    st.binary(max_size=300),
    st.lists(NEARLY, max_size=12).map(b"".join),
).filter(lambda content: f"\r\n--{BOUNDARY}".encode() not in b"\r\n" + content)
NAMES = st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1, max_size=10)
CUTS = st.lists(st.integers(0, 2_000_000), max_size=8)
SIZES = st.one_of(
    st.integers(0, 300), st.sampled_from((8191, 8192, 65_535, 65_536, 1_048_575, 1_500_000))
)


class TestByteForByte:
    @settings(deadline=None)
    @given(parts=st.lists(st.tuples(NAMES, CONTENTS), max_size=5), cuts=CUTS)
    async def test_what_is_nearly_a_delimiter_is_content(
        self, parts: list[tuple[str, bytes]], cuts: list[int]
    ) -> None:
        (_, content_type), body = multipart(*((name, content, None) for name, content in parts))
        assert await read_form(content_type, *cut(body, cuts)) == parts

    @pytest.mark.parametrize("size", [0, 1, 1000, 1_048_574, 1_048_576, 1_048_578, 3_000_000])
    @pytest.mark.parametrize("piece", [65_536, 262_144, 1_048_576, 10_000_000])
    async def test_every_piece_border_of_a_file(self, size: int, piece: int) -> None:
        content = pattern(size)
        (_, content_type), body = multipart(ID, ("file", content, "a.jpg"), TYPE)
        pieces = [body[at : at + piece] for at in range(0, len(body), piece)]
        assert await read_form(content_type, *pieces) == [
            ("local_id", b"IMG_1234"),
            ("file", content),
            ("file_type", b"image/jpeg"),
        ]

    async def test_one_byte_at_a_time(self) -> None:
        content = f"\r\n\r\n--{BOUNDARY[:-1]}\r\n--\r\n-".encode()
        (_, content_type), body = multipart(("file", content, "a"), ID)
        pieces = [body[at : at + 1] for at in range(len(body))]
        assert await read_form(content_type, *pieces) == [
            ("file", content),
            ("local_id", b"IMG_1234"),
        ]

    async def test_a_near_delimiter_across_the_border_of_a_whole_read(self) -> None:
        nearly = f"\r\n--{BOUNDARY[:-1]}".encode()
        before = pattern(1_048_576 + 3)
        for shift in range(-len(nearly), 3):
            content = before[: 1_048_576 + shift] + nearly + b"!" * 100
            (_, content_type), body = multipart(("file", content, "a"))
            assert await read_form(content_type, body) == [("file", content)]

    @settings(deadline=None)
    @given(
        files=st.lists(st.tuples(NAMES, SIZES, st.integers(0, 9)), min_size=1, max_size=4),
        boundary=st.from_regex(r"[A-Za-z0-9'()+_,./:=?-]{1,70}", fullmatch=True),
        cuts=CUTS,
    )
    @example(files=[("file", 1_500_000, 0)], boundary="b" * 70, cuts=[])
    async def test_forms_of_aiohttp(
        self, files: list[tuple[str, int, int]], boundary: str, cuts: list[int]
    ) -> None:
        contents = [(name, random.Random(seed).randbytes(size)) for name, size, seed in files]
        # No writer would choose such a boundary.
        assume(not any(f"--{boundary}".encode() in content for _, content in contents))
        writer = MultipartWriter("form-data", boundary=boundary)
        for name, content in contents:
            payload = writer.append(io.BytesIO(content))
            payload.set_content_disposition("form-data", name=name, filename=f"{name}.jpg")
        body = await written(writer)
        found = await read_form(writer.headers["Content-Type"], *cut(body, cuts))
        # A failure should not print megabytes.
        assert [(name, len(content)) for name, content in found] == [f[:2] for f in files]
        assert all(a == b for a, b in zip(found, contents, strict=True))

    async def test_a_form_of_aiohttps_form_data(self) -> None:
        form = FormData({"local_id": 'ü "quoted" \r\n; name=x'})
        form.add_field("file", pattern(100_000), filename='a"b;c=.jpg', content_type="image/jpeg")
        form.add_field("file_type", "image/jpeg")
        writer = form()
        assert isinstance(writer, MultipartWriter)
        body = await written(writer)
        assert await read_form(writer.headers["Content-Type"], body) == [
            ("local_id", 'ü "quoted" \r\n; name=x'.encode()),
            ("file", pattern(100_000)),
            ("file_type", b"image/jpeg"),
        ]

    @pytest.mark.parametrize(
        "head",
        [
            b"Content-Length: 3\r\n",
            b"Content-Length: 999999\r\n",
            b"Content-Type: text/html; charset=utf-16\r\n",
            b"Content-Encoding: gzip\r\n",
            b"Content-Transfer-Encoding: base64\r\n",
            b"Content-Transfer-Encoding: quoted-printable\r\n",
            b"X-Anything: at all\r\n",
            b"\tfolded: header\r\n"[1:],
        ],
    )
    async def test_headers_of_a_part_change_nothing_of_its_bytes(self, head: bytes) -> None:
        # RFC 7578 4.7 and 4.8: of the headers only Content-Disposition and -Type count.
        for content in (b"=41 YWJj not\xff encoded===", pattern(1_300_001), b"", b"A" * 1_048_577):
            body = part("file", content, head=head) + part("local_id", b"x") + END
            content_type = f"multipart/form-data; boundary={BOUNDARY}"
            assert await read_form(content_type, *cut(body, [1000, 1_048_570])) == [
                ("file", content),
                ("local_id", b"x"),
            ]

    @pytest.mark.parametrize(
        "disposition",
        [
            b'Content-Disposition: form-data; name="file"; filename="a.jpg"',
            b'content-disposition: form-data;name="file"',
            b'CONTENT-DISPOSITION: form-data; filename="a.jpg"; name=file',
            b"Content-Disposition: form-data; name=file; filename*=UTF-8''%e2%82%ac.jpg",
            b'Content-Disposition: form-data; name="file"; filename="\xf0\x9f\x99\x82.jpg"',
            b'Content-Disposition: form-data; name="file"; filename=""',
            b'Content-Disposition: form-data; name="file"; filename="../../etc/passwd"',
            b'Content-Disposition: form-data; name="file"; filename="C:\\\\a\\\\b.jpg"',
        ],
    )
    async def test_ways_to_name_a_part(self, disposition: bytes) -> None:
        body = START + disposition + b"\r\n\r\nphoto\r\n" + END
        content_type = f"multipart/form-data; boundary={BOUNDARY}"
        assert await read_form(content_type, body) == [("file", b"photo")]

    @pytest.mark.parametrize(
        ("content_type", "boundary"),
        [
            ('multipart/form-data; boundary="quoted"', "quoted"),
            ('Multipart/Form-Data; Boundary="with space"', "with space"),
            ("multipart/form-data; charset=utf-8; boundary=x", "x"),
            (f"multipart/form-data;boundary={'b' * 70}", "b" * 70),
            ('multipart/form-data; boundary="a:b/c?d=(e),f"', "a:b/c?d=(e),f"),
            ("multipart/form-data; boundary=-", "-"),
            ("multipart/form-data; boundary=----WebKitFormBoundaryX", "----WebKitFormBoundaryX"),
        ],
    )
    async def test_ways_to_give_a_boundary(self, content_type: str, boundary: str) -> None:
        body = multipart(("file", b"photo", None))[1].replace(BOUNDARY.encode(), boundary.encode())
        assert await read_form(content_type, body) == [("file", b"photo")]

    async def test_what_stands_around_the_form_is_no_part_of_it(self) -> None:
        # RFC 2046 5.1.1: a preamble, an epilogue, and padding behind a boundary.
        body = (
            b"This is a message with multiple parts in MIME format.\r\n"
            + part("file", b"photo").replace(b"\r\n", b" \t\r\n", 1)
            + END[:-2]
            + b"  \r\nbehind the end\r\n"
            + part("file", b"too late")
        )
        content_type = f"multipart/form-data; boundary={BOUNDARY}"
        assert await read_form(content_type, body) == [("file", b"photo")]

    async def test_the_last_line_needs_no_end(self) -> None:
        body = part("file", b"photo") + END[:-2]
        content_type = f"multipart/form-data; boundary={BOUNDARY}"
        assert await read_form(content_type, body) == [("file", b"photo")]

    async def test_a_form_of_nothing(self) -> None:
        assert await read_form(f"multipart/form-data; boundary={BOUNDARY}", END) == []

    async def test_a_charset_field_is_a_field(self) -> None:
        # RFC 7578 4.6 lets a form begin with it. What is stored is bytes, and ids are UTF-8.
        (_, content_type), body = multipart(("_charset_", "utf-8", None), ID, ("file", b"x", "a"))
        assert await read_form(content_type, body) == [
            ("_charset_", b"utf-8"),
            ("local_id", b"IMG_1234"),
            ("file", b"x"),
        ]


FRAGMENTS = st.sampled_from(
    [
        *(
            START,
            END,
            START[:-2],
            END[:-2],
            START.rstrip(),
            b"\r\n",
            b"\n",
            b"\r",
            b"--",
            b" ",
            b":",
        ),
        *(DISPOSITION % b"a", DISPOSITION % b"b", b"Content-Type: image/jpeg\r\n", b"X: y\r\n"),
        *(part("a", b"content"), part("b", b"\r\n"), part("", b"nameless"), b"content", b"\0\xff"),
    ]
)


class TestAgainstAnotherReader:
    @pytest.mark.filterwarnings("ignore::RuntimeWarning")  # aiohttp warns of what it cannot read
    @settings(deadline=None, max_examples=500)
    @given(fragments=st.lists(FRAGMENTS, max_size=8), cuts=CUTS)
    @example(fragments=[part("a", b"content"), END], cuts=[])
    async def test_what_is_taken_means_the_same_to_aiohttp(
        self, fragments: list[bytes], cuts: list[int]
    ) -> None:
        body = START + b"".join(fragments)
        content_type = f"multipart/form-data; boundary={BOUNDARY}"
        try:
            ours = await read_form(content_type, *cut(body, cuts))
        except BadRequest:
            return  # stricter may ours be, but never of another opinion
        stream = StreamReader(Mock(), 2**16, loop=asyncio.get_running_loop())
        stream.feed_data(body)
        stream.feed_eof()
        theirs = []
        async for each in MultipartReader({"Content-Type": content_type}, stream):
            assert isinstance(each, BodyPartReader)
            theirs.append((each.name, bytes(await each.read())))
        assert ours == theirs


class TestMalformed:
    """Each is refused with 400, and nothing is stored."""

    async def test_a_content_type_that_does_not_fit(self, api: Api, storage_dir: Path) -> None:
        await index(api, "IMG_1234")
        _, body = multipart(ID, TYPE, PHOTO)
        for content_type in (
            None,
            "",
            "application/json",
            "application/x-www-form-urlencoded",
            f"multipart/mixed; boundary={BOUNDARY}",
            "multipart/form-data",
            "multipart/form-data; boundary",
            "multipart/form-data; boundary=",
            'multipart/form-data; boundary=""',
            "multipart/form-data; boundary=another-boundary",
            f"multipart/form-data; boundary={BOUNDARY[:-1]}",
            f"multipart/form-data; boundary={BOUNDARY}x",
            f"multipart/form-data; boundary={'x' * 71}",
            f"multipart/form-datax; boundary={BOUNDARY}",
            f"multipart/form-data/x; boundary={BOUNDARY}",
        ):
            answer = await post(api, body, content_type)
            assert answer.error[:2] == (400, "bad_request"), content_type
            assert answer.error[2].startswith("Invalid request format")
            assert on_disk(storage_dir) == {}

    async def test_a_form_without_its_end(self, api: Api, storage_dir: Path) -> None:
        await index(api, "IMG_1234")
        body = FIELDS + part("file", b"the photo")
        for end in (b"", END[:1], END[:-4], END[:-3], START[:-2], START, START + b"\r\n"):
            answer = await post(api, body + end)
            assert answer.error[:2] == (400, "bad_request"), end
            assert on_disk(storage_dir) == {}
        # The same with its end is a good form.
        assert (await post(api, body + END)).status == 200

    @pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of a disposition cut in half
    async def test_a_form_that_ends_anywhere(self) -> None:
        body = FIELDS + part("file", b"the photo") + END
        content_type = f"multipart/form-data; boundary={BOUNDARY}"
        whole = len(body) - 2  # the last line end may be missing
        for length in range(whole):
            with pytest.raises(BadRequest):
                await read_form(content_type, body[:length])
        assert len(await read_form(content_type, body[:whole])) == 3

    async def test_a_delimiter_inside_the_file_never_cuts_it_short(
        self, api: Api, storage_dir: Path
    ) -> None:
        # RFC 2046 5.1.1: no line of the content may begin with the delimiter, whatever follows.
        await index(api, "IMG_1234")
        for rest in (b"x", b"-", b"-x", b"--x", b"\t.", b"\0"):
            content = b"before\r\n" + START[:-2] + rest + b"\r\nafter"
            answer = await post(api, FIELDS + part("file", content) + END)
            assert answer.error[:2] == (400, "bad_request"), rest
            assert on_disk(storage_dir) == {}

    async def test_a_part_without_a_name(self, api: Api, storage_dir: Path) -> None:
        await index(api, "IMG_1234")
        photo = part("file", b"the photo")
        for head in (
            b"",
            b"Content-Type: image/jpeg\r\n",
            b"Content-Disposition: form-data\r\n",
            b'Content-Disposition: form-data; name=""\r\n',
            b'Content-Disposition: form-data; filename="file"\r\n',
        ):
            nameless = START + head + b"\r\nsomething\r\n"
            for body in (FIELDS + nameless + photo + END, FIELDS + photo + nameless + END):
                answer = await post(api, body)
                assert answer.error[:2] == (400, "bad_request"), head
                assert "has no name" in answer.error[2]
                assert on_disk(storage_dir) == {}

    @pytest.mark.filterwarnings("ignore::RuntimeWarning")  # aiohttp warns of what it cannot read
    async def test_a_disposition_that_cannot_be_read(self, api: Api, storage_dir: Path) -> None:
        await index(api, "IMG_1234")
        for disposition in (
            b"form-data; name",
            b'form-data; name="file',
            b"form-data; =file",
            b"; name=file",
            b"form-data; name=file; name=other",
            b"\xff\xfe",
            b"form-data; name=fi\0le",
        ):
            head = b"Content-Disposition: " + disposition + b"\r\n\r\n"
            answer = await post(api, FIELDS + START + head + b"the photo\r\n" + END)
            assert answer.error[:2] == (400, "bad_request"), disposition
            assert on_disk(storage_dir) == {}

    async def test_headers_that_cannot_be_read(self, api: Api, storage_dir: Path) -> None:
        await index(api, "IMG_1234")
        for head in (
            b"no colon\r\n",
            b": no name\r\n",
            b"bad name: x\r\n",
            b"X: " + b"x" * 20_000 + b"\r\n",
            b"".join(b"X-%d: x\r\n" % number for number in range(200)),
            b"x" * 100_000,
        ):
            answer = await post(api, FIELDS + part("file", b"the photo", head=head) + END)
            assert answer.error[:2] == (400, "bad_request"), head
            assert len(answer.error[2]) < 300
            assert on_disk(storage_dir) == {}

    async def test_more_parts_than_any_client_sends(self) -> None:
        content_type = f"multipart/form-data; boundary={BOUNDARY}"
        assert len(await read_form(content_type, part("x", b"") * 100 + END)) == 100
        with pytest.raises(BadRequest, match="more than 100 parts"):
            await read_form(content_type, part("x", b"") * 101 + END)

    async def test_a_form_in_a_form(self, api: Api, storage_dir: Path) -> None:
        await index(api, "IMG_1234")
        inner = b"--inner\r\n" + DISPOSITION % b"file" + b"the photo\r\n--inner--\r\n"
        for boundary in (b"; boundary=inner", b""):
            head = b"Content-Type: multipart/mixed" + boundary + b"\r\n"
            answer = await post(api, FIELDS + part("file", inner, head=head) + END)
            assert answer.error[:2] == (400, "bad_request"), boundary
            assert on_disk(storage_dir) == {}

    async def test_anything_twice(self, api: Api, storage_dir: Path) -> None:
        await index(api, "IMG_1234")
        for parts in (
            (ID, TYPE, PHOTO, PHOTO),
            (PHOTO, PHOTO, ID, TYPE),
            (ID, ID, TYPE, PHOTO),
            (ID, TYPE, PHOTO, TYPE),
        ):
            answer = await post(api, multipart(*parts)[1])
            assert answer.error[:2] == (400, "bad_request"), parts
            assert "more than one" in answer.error[2]
            assert on_disk(storage_dir) == {}

    async def test_anything_missing(self, api: Api, storage_dir: Path) -> None:
        await index(api, "IMG_1234")
        for missing, order in itertools.product((ID, TYPE, PHOTO), ORDERS):
            parts = [each for each in order if each != missing]
            answer = await post(api, multipart(*parts)[1])
            assert answer.error == (400, "bad_request", f"{missing[0]} is required")
            empty: list[Part] = [(n, "" if (n, c, f) == missing else c, f) for n, c, f in order]
            answer = await post(api, multipart(*empty)[1])
            assert answer.error[:2] == (400, "bad_request")
            assert on_disk(storage_dir) == {}

    async def test_a_field_that_is_no_text(self, api: Api, storage_dir: Path) -> None:
        for name in ("local_id", "file_type"):
            parts: dict[str, Part] = {"local_id": ID, "file_type": TYPE, "file": PHOTO}
            parts[name] = (name, b"\xff\xfe\xed\xa0\x80", None)
            answer = await post(api, multipart(*parts.values())[1])
            assert answer.error == (400, "bad_request", f"{name} is not UTF-8 text")
            assert on_disk(storage_dir) == {}


class TestLongFields:
    async def test_a_field_of_ten_megabytes_is_refused(self, api: Api, storage_dir: Path) -> None:
        for parts in ((("local_id", b"x" * 10_000_000, None), TYPE, PHOTO),
                      (PHOTO, TYPE, ("local_id", b"x" * 10_000_000, None))):  # fmt: skip
            (_, content_type), body = multipart(*parts)
            head = upload_head(api, len(body), content_type)
            answer = await answer_to(api.url, head, body)
            message = f"local_id is longer than {MAX_FIELD_BYTES} bytes"
            assert answer.error == (400, "bad_request", message)
            assert on_disk(storage_dir) == {}

    async def test_a_field_of_the_longest_kind(self, api: Api) -> None:
        # Long enough to be taken, and then of course no photo's id.
        answer = await post(api, multipart(("local_id", "x" * MAX_FIELD_BYTES, None), TYPE)[1])
        assert answer.error == (500, "internal_error", "photo not found")
        answer = await post(api, multipart(("local_id", "x" * (MAX_FIELD_BYTES + 1), None))[1])
        assert answer.error[0] == 400

    async def test_a_field_that_is_not_ours_is_read_past(self, api: Api, storage_dir: Path) -> None:
        await index(api, "IMG_1234")
        others: list[Part] = [
            ("creation_date", b"x" * 10_000_000, None),
            ("creation_date", b"\xff twice", None),
            ("thumbnail", pattern(100_000), "thumbnail.jpg"),
        ]
        answer = await post(api, multipart(others[0], ID, others[1], PHOTO, TYPE, others[2])[1])
        assert answer.status == 200, answer
        assert on_disk(storage_dir) == {FILE: b"the photo"}


class TestOrder:
    async def test_parts_come_in_any_order(self, api: Api, storage_dir: Path) -> None:
        await index(api, "IMG_1234")
        for number, order in enumerate(ORDERS):
            content = b"photo %d" % number
            parts = [each if each != PHOTO else ("file", content, "a.jpg") for each in order]
            answer = await post(api, multipart(*parts)[1])
            assert (answer.status, answer.json["filename"]) == (200, "IMG_0001.jpg")
            assert on_disk(storage_dir) == {FILE: content}

    async def test_a_file_may_come_as_a_text_field(self, api: Api, storage_dir: Path) -> None:
        # Some clients give no file name; what counts is the name of the part.
        await index(api, "IMG_1234")
        answer = await post(api, multipart(ID, TYPE, ("file", b"the photo", None))[1])
        assert answer.status == 200, answer
        assert on_disk(storage_dir) == {FILE: b"the photo"}

    async def test_fields_in_front_refuse_before_the_file_comes(
        self, api: Api, storage_dir: Path
    ) -> None:
        (_, content_type), body = multipart(ID, TYPE, ("file", pattern(5_000_000), "photo.jpg"))
        head = upload_head(api, 40_000_000, content_type)
        # The file never comes, and the answer does.
        answer = await answer_to(api.url, head, body[:-5_000_000])
        assert answer.error == (500, "internal_error", "photo not found")
        assert on_disk(storage_dir) == {}
