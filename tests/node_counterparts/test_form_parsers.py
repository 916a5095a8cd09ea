"""Forms as Immich's own parsers, busboy and multer, see them."""

import hashlib
from collections.abc import Iterator, Sequence

import aiohttp
import pytest
from aiohttp.abc import AbstractStreamWriter
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from immich_bridge.bridge.form import AssetForm
from node_tools import (
    INSTALL_SECONDS,
    NODE_DIR,
    FormParser,
    ParsedFile,
    ParsedForm,
    ParsedForms,
)

# One event loop and one Node process for all examples: starting either costs more than a form.
# The first test may have to wait for npm.
pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(INSTALL_SECONDS + 60),
]

BOUNDARY = "----brX7f3"

MIB = 2**20


class Collected(AbstractStreamWriter):
    """A writer that keeps what a form writes."""

    def __init__(self) -> None:
        self.body = bytearray()

    async def write(self, chunk: bytes | bytearray | memoryview) -> None:
        self.body += chunk

    async def write_eof(self, chunk: bytes = b"") -> None:
        self.body += chunk

    async def drain(self) -> None:
        pass

    def enable_compression(self, encoding: str = "deflate", strategy: int | None = 0) -> None:
        raise AssertionError("a form is sent as it is")

    def enable_chunking(self) -> None:
        raise AssertionError("framing is the request's affair")

    async def write_headers(self, status_line: str, headers: object) -> None:
        raise AssertionError("a form writes no head of a request")


class Pieces:
    """A photo that arrives in pieces."""

    def __init__(self, pieces: Sequence[bytes]) -> None:
        # An empty piece is how a body says that it ended.
        self._rest: Iterator[bytes] = iter([piece for piece in pieces if piece])

    async def read(self) -> bytes:
        return next(self._rest, b"")

    async def move_to(self, writer: AbstractStreamWriter) -> None:
        """Nothing of it can be moved unread."""


def a_file(name: str, filename: str, mime_type: str, body: bytes) -> ParsedFile:
    return ParsedFile(name, filename, mime_type, len(body), hashlib.sha256(body).hexdigest())


def both(form: ParsedForm) -> ParsedForms:
    return ParsedForms(busboy=form, multer=form)


def raw_form(disposition: str, body: bytes, *, more_headers: str = "", end: str = "--") -> bytes:
    head = f"--{BOUNDARY}\r\nContent-Disposition: {disposition}\r\n{more_headers}\r\n"
    return head.encode() + body + f"\r\n--{BOUNDARY}{end}\r\n".encode()


CONTENT_TYPE = f"multipart/form-data; boundary={BOUNDARY}"


@pytest.mark.parametrize("filename", ["照片 é.HEIC", 'a"b.jpg', "50%25; ü.jpg", " spaces .jpg "])
async def test_harness_sees_what_a_known_form_holds(parser: FormParser, filename: str) -> None:
    body = bytes(range(256)) * 300
    form = aiohttp.FormData(quote_fields=False)
    form.add_field("fileCreatedAt", "2026-11-21T03:00:00.000Z")
    form.add_field("metadata", '[{"key":"ü"}]\r\n')
    form.add_field("assetData", body, filename=filename, content_type="image/heic")
    payload = form()
    collected = Collected()
    await payload.write(collected)

    parsed = await parser.parse(payload.headers["Content-Type"], bytes(collected.body))

    assert parsed == both(
        ParsedForm(
            fields=[
                ("fileCreatedAt", "2026-11-21T03:00:00.000Z"),
                ("metadata", '[{"key":"ü"}]\r\n'),
            ],
            files=[a_file("assetData", filename, "image/heic", body)],
            error=None,
        )
    )


@pytest.mark.parametrize(
    ("sent", "seen"),
    [
        ('"dir/x.jpg"', "x.jpg"),
        ('"C:\\\\dir\\\\x.jpg"', "x.jpg"),
        ('"../../x.jpg"', "x.jpg"),
        ('"a%22b.jpg"', "a%22b.jpg"),
        ('"a\\"b.jpg"', 'a"b.jpg'),
        ('"%E7%85%A7.jpg"', "%E7%85%A7.jpg"),
    ],
)
async def test_harness_reads_names_as_recorded_from_immich(
    parser: FormParser, sent: str, seen: str
) -> None:
    form = raw_form(f'form-data; name="assetData"; filename={sent}', b"photo")

    parsed = await parser.parse(CONTENT_TYPE, form)

    assert parsed == both(ParsedForm([], [a_file("assetData", seen, "text/plain", b"photo")], None))


async def test_harness_mangles_extended_names_as_immich_does(parser: FormParser) -> None:
    form = raw_form("form-data; name=\"assetData\"; filename*=UTF-8''%E7%85%A7.jpg", b"photo")

    parsed = await parser.parse(CONTENT_TYPE, form)

    # busboy alone decodes the name; Immich then takes the result for Latin-1 once more.
    assert [file.filename for file in parsed.busboy.files] == ["照.jpg"]
    assert [file.filename for file in parsed.multer.files] == ["g.jpg"]


async def test_harness_refuses_part_headers_above_16_kib(parser: FormParser) -> None:
    disposition = 'form-data; name="assetData"; filename="x.jpg"'
    long_header = f"X-Long: {'a' * 16 * 1024}\r\n"

    parsed = await parser.parse(
        CONTENT_TYPE, raw_form(disposition, b"photo", more_headers=long_header)
    )

    assert parsed == both(ParsedForm([], [], "Malformed part header"))


async def test_harness_refuses_fields_above_1_mib(parser: FormParser) -> None:
    largest = "a" * (MIB - 1)

    taken = await parser.parse(
        CONTENT_TYPE, raw_form('form-data; name="metadata"', largest.encode())
    )
    refused = await parser.parse(
        CONTENT_TYPE, raw_form('form-data; name="metadata"', largest.encode() + b"aa")
    )

    assert taken == both(ParsedForm([("metadata", largest)], [], None))
    assert refused.busboy.error == refused.multer.error == "Field value too long"


async def test_harness_refuses_a_form_without_its_end(parser: FormParser) -> None:
    form = raw_form('form-data; name="assetData"; filename="x.jpg"', b"photo", end="")

    parsed = await parser.parse(CONTENT_TYPE, form)

    assert parsed.busboy.error == parsed.multer.error == "Unexpected end of form"


async def test_lock_file_names_no_host() -> None:
    # The packages come from whatever registry or mirror npm is set to. A lock file that npm wrote
    # anew names hosts under "funding" all the same: those entries are to be taken out.
    assert "://" not in (NODE_DIR / "package-lock.json").read_text()


# busboy keeps what follows the last slash or backslash, as Immich does, and refuses control
# characters; a lone surrogate has no UTF-8 form. The bridge checks names before it makes a form.
name_characters = st.characters(exclude_categories=["Cc", "Cs"], exclude_characters="/\\")
awkward_characters = st.sampled_from("\"'%;:=,. \N{NO-BREAK SPACE}*?<>|~`é照\N{CAMERA}\u202e\ufeff")
file_names = st.builds(
    lambda stem, extension: stem + extension,
    st.one_of(
        st.text(name_characters, max_size=40),
        st.text(awkward_characters, max_size=40),
        # Up to 1,000 characters of up to 4 bytes each: a quarter of the 16 KiB for part headers.
        st.builds(
            lambda text, times: (text * times)[:1000],
            st.text(name_characters, min_size=1, max_size=20),
            st.integers(1, 1000),
        ),
    ),
    st.sampled_from([".jpg", ".HEIC", ".mov", ".jpg ", '"', "%22.jpg", ";.png"]),
)

field_values = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=60),
    st.text(st.sampled_from("\r\n\0\"'%&;=-é照\N{CAMERA}"), max_size=60),
    st.sampled_from(["", f"\r\n--{BOUNDARY}"[:-1], f" --{BOUNDARY}--"]),
    # 3 bytes each, together well below the 1 MiB that a field may have.
    st.integers(0, 100_000).map(lambda length: "照" * length),
)
field_names = ["deviceAssetId", "deviceId", "fileCreatedAt", "filename", "isFavorite", "metadata"]
form_fields = st.lists(
    st.tuples(st.sampled_from(field_names), field_values),
    max_size=len(field_names),
    unique_by=lambda field: field[0],
)

# Everything that comes near the delimiter, CRLF "--" boundary.
near_boundary = st.sampled_from(
    [
        f"\r\n--{BOUNDARY}"[:-1].encode() + b"\0",
        f"\r\n-{BOUNDARY[1:]}".encode(),
        f"\n--{BOUNDARY}--\r\n".encode(),
        f"\r\r\n-- {BOUNDARY}".encode(),
        b"\r\n--",
        b"\r\n\r\n",
        b"\r",
        b"--",
        b"--\r\n",
    ]
)
photo_pieces = st.lists(
    st.one_of(
        near_boundary,
        st.binary(max_size=200),
        st.builds(
            lambda byte, size: byte * size,
            st.binary(min_size=1, max_size=1),
            st.integers(0, 100_000),
        ),
    ),
    max_size=6,
)


@settings(
    max_examples=500,
    deadline=None,
    # The parser is one process for all examples, and knows nothing of the last one.
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(
    fields=form_fields,
    filename=file_names,
    content_type=st.sampled_from(
        ["image/jpeg", "image/heic", "video/quicktime", "application/octet-stream"]
    ),
    pieces=photo_pieces,
    announced=st.booleans(),
    boundary=st.sampled_from([BOUNDARY, None]),
    piece_size=st.sampled_from([1009, 16 * 1024, 64 * 1024, MIB]),
)
@example([], "x.jpg", "image/jpeg", [], True, None, 1)
@example([], "x.jpg", "image/jpeg", [f"\r\n--{BOUNDARY}--\r\n".encode()], True, None, 1)
@example([], "x.jpg", "image/jpeg", [f"\r\n--{BOUNDARY}"[:-1].encode()], True, BOUNDARY, 1)
@example([("metadata", "照\r\n")], '"%"; ü.jpg', "image/jpeg", [b"\r\n--"], False, BOUNDARY, 1)
async def test_asset_form_reads_the_same_everywhere(
    parser: FormParser,
    fields: list[tuple[str, str]],
    filename: str,
    content_type: str,
    pieces: list[bytes],
    announced: bool,
    boundary: str | None,
    piece_size: int,
) -> None:
    photo = b"".join(pieces)
    # RFC 2046 5.1.1: a part must not hold the delimiter, and the CRLF that ends its headers may
    # begin one. Against that a random boundary helps; the fixed one only lets parts come near.
    delimiter = f"\r\n--{boundary}".encode()
    parts = [photo, *(value.encode() for _, value in fields)]
    assume(boundary is None or not any(delimiter in b"\r\n" + part for part in parts))
    form = AssetForm(
        fields,
        filename=filename,
        content_type=content_type,
        body=Pieces(pieces),
        length=len(photo) if announced else None,
        boundary=boundary,
    )
    collected = Collected()
    await form.write(collected)

    parsed = await parser.parse(
        form.headers["Content-Type"], bytes(collected.body), piece_size=piece_size
    )

    assert parsed == both(
        ParsedForm(fields, [a_file("assetData", filename, content_type, photo)], None)
    )
    # What is announced to Immich is what it waits for: one byte off, and the upload never ends.
    assert form.size == (len(collected.body) if announced else None)


async def test_asset_form_takes_the_largest_field(parser: FormParser) -> None:
    metadata = "m" * (MIB - 1)
    form = AssetForm(
        [("metadata", metadata)],
        filename="x.jpg",
        content_type="image/jpeg",
        body=Pieces([b"photo"]),
        length=5,
    )
    collected = Collected()
    await form.write(collected)

    parsed = await parser.parse(form.headers["Content-Type"], bytes(collected.body))

    file = a_file("assetData", "x.jpg", "image/jpeg", b"photo")
    assert parsed == both(ParsedForm([("metadata", metadata)], [file], None))
