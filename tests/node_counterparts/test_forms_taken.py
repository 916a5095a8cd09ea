"""Forms that the photo backup takes mean the same to busboy, on which other servers rely."""

import hashlib
from collections.abc import Iterator
from typing import cast

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from multidict import CIMultiDict, CIMultiDictProxy

from immich_bridge.backup.form_reader import FormReader
from immich_bridge.body import IncomingBody
from immich_bridge.errors import BadRequest
from node_tools import INSTALL_SECONDS, FormParser

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(INSTALL_SECONDS + 60),
]

BOUNDARY = "----brX7f3"
CONTENT_TYPE = f"multipart/form-data; boundary={BOUNDARY}"
START = f"--{BOUNDARY}\r\n".encode()
END = f"--{BOUNDARY}--\r\n".encode()
FIELD = b'Content-Disposition: form-data; name="local_id"\r\n'
FILE = b'Content-Disposition: form-data; name="file"; filename="a.jpg"\r\n'
IMAGE = b"Content-Type: image/jpeg\r\n"

Parts = list[tuple[str, bytes]]
"""Name and content."""


class Body:
    """A body that comes in pieces of one size."""

    def __init__(self, body: bytes, size: int) -> None:
        self._pieces: Iterator[bytes] = (body[at : at + size] for at in range(0, len(body), size))

    async def read(self) -> bytes:
        return next(self._pieces, b"")


async def ours(body: bytes, piece_size: int) -> Parts:
    headers = CIMultiDictProxy(CIMultiDict({"Content-Type": CONTENT_TYPE}))
    form = FormReader(headers, cast(IncomingBody, Body(body, piece_size)))
    parts = []
    while (part := await form.next()) is not None:
        content = bytearray()
        while piece := await part.read():
            content += piece
        parts.append((part.name, bytes(content)))
    return parts


fragments = st.lists(
    st.sampled_from(
        [
            *(START, END, START[:-2], END[:-2], FIELD, FILE, IMAGE, b"\r\n", b"\r\n\r\n", b"\n"),
            *(b"\r", b"--", b" ", b"content", f"\r\n--{BOUNDARY}".encode()[:-1]),
            *(START + FIELD + b"\r\nid\r\n", START + FILE + IMAGE + b"\r\n\0\xff\r\n\r\n"),
            START + FILE + b"\r\n" + bytes(range(256)) * 300 + b"\r\n",
        ]
    ),
    max_size=8,
)


@settings(
    max_examples=400,
    deadline=None,
    # The parser is one process for all examples, and knows nothing of the last one.
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
@given(fragments=fragments, piece_size=st.sampled_from([1, 7, 1009, 64 * 1024, 2**20]))
@example([START + FIELD + b"\r\nid\r\n", START + FILE + IMAGE + b"\r\nphoto\r\n", END], 7)
async def test_what_is_taken_means_the_same_to_busboy(
    parser: FormParser, fragments: list[bytes], piece_size: int
) -> None:
    body = START + FILE + b"\r\nfirst\r\n" + b"".join(fragments) + END
    # RFC 2046 5.1.1: what follows the closing delimiter is no part. busboy reads on there.
    assume(body.find(b"\r\n" + END[:-2]) == len(body) - len(END) - 2)
    try:
        taken = await ours(body, piece_size)
    except BadRequest:
        return  # what one of them refuses nobody misunderstands

    theirs = (await parser.parse(CONTENT_TYPE, body, piece_size=piece_size)).busboy

    assert theirs.error is None
    fields = [(name, content) for name, content in taken if name == "local_id"]
    files = [(name, content) for name, content in taken if name == "file"]
    assert len(fields) + len(files) == len(taken)
    # busboy gives fields as text.
    assert [(name, content.decode(errors="replace")) for name, content in fields] == theirs.fields
    assert [(name, hashlib.sha256(content).hexdigest()) for name, content in files] == [
        (file.name, file.sha256) for file in theirs.files
    ]
