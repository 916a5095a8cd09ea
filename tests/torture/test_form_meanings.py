"""Promise 7: a form means the same to us, to busboy and multer, and to another Python parser."""

import asyncio
from collections import Counter
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, assume, given, seed, settings
from hypothesis import strategies as st

from immich_bridge.bridge.form import AssetForm
from node_counterparts.test_form_parsers import (
    BOUNDARY,
    MIB,
    Collected,
    Pieces,
    a_file,
    both,
    file_names,
    form_fields,
    photo_pieces,
)
from node_tools import INSTALL_SECONDS, FormParser, ParsedForm, ParsedForms, missing_reason
from torture.effort import Effort
from torture.forms_readers import PythonPart, Refused, differences, read_by_python, read_by_us
from torture.forms_sent import SentForm, sent_forms

# The first test may have to wait for npm.
pytestmark = pytest.mark.timeout(INSTALL_SECONDS + 60)

_LEAST_TAKEN = 0.4
"""Of the forms sent: a test in which all are refused would find no difference either."""

_LEAST_COMPARED = 0.8
"""Of the forms that we take: those that the other readers define as we do."""
_SMALL_FORM = 4000
"""Bytes of a form that may come in the smallest of pieces without taking all day."""


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    """The loop of all forms: hypothesis calls a test that is no coroutine."""
    with asyncio.Runner() as running:
        yield running


@pytest.fixture(scope="module")
def node(runner: asyncio.Runner) -> Iterator[FormParser]:
    """busboy and multer, in one Node process for all forms: to start it costs more than a form."""
    reason = missing_reason()
    if reason is not None:
        pytest.skip(reason)
    parser = FormParser()
    runner.run(parser.__aenter__())
    yield parser
    runner.run(parser.__aexit__(None, None, None))


def examples(count: int) -> settings:
    """`count` examples; whatever is found is made small, and none are kept in files."""
    return settings(
        max_examples=count,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


async def by_others(
    node: FormParser,
    content_type: str,
    body: bytes,
    piece_size: int,
    *,
    ask_node: bool = True,
    ask_python: bool = True,
) -> tuple[ParsedForms | None, list[PythonPart]]:
    """A form as Node's parsers and python-multipart read it, in two processes at once.

    Raises `Refused` when the latter does not take it.
    """
    parsing = None
    if ask_node:
        parsing = asyncio.create_task(node.parse(content_type, body, piece_size=piece_size))
        await asyncio.sleep(0)  # it is sent
    try:
        by_python = read_by_python(content_type, body, piece_size) if ask_python else []
    finally:
        # Whatever comes of the form: its answer is not to be taken for that to the next one.
        by_node = await parsing if parsing else None
    return by_node, by_python


def test_forms_that_we_send(effort: Effort, runner: asyncio.Runner, node: FormParser) -> None:
    count = effort.amount(100, 5000)
    seen: Counter[str] = Counter()

    @seed(effort.seed)
    @examples(count)
    @given(
        fields=form_fields,
        filename=file_names,
        pieces=photo_pieces,
        announced=st.booleans(),
        small_piece=st.integers(1, 100),
        large_piece=st.sampled_from([1009, 16 * 1024, 64 * 1024, MIB]),
    )
    def check(
        fields: list[tuple[str, str]],
        filename: str,
        pieces: list[bytes],
        announced: bool,
        small_piece: int,
        large_piece: int,
    ) -> None:
        photo = b"".join(pieces)
        # RFC 2046 5.1.1: no part may hold the delimiter. In use a random boundary sees to it;
        # this one is known, so that parts can come near.
        delimiter = f"\r\n--{BOUNDARY}".encode()
        parts = [photo, *(value.encode() for _, value in fields)]
        assume(not any(delimiter in b"\r\n" + part for part in parts))
        form = AssetForm(
            fields,
            filename=filename,
            content_type="image/heic",
            body=Pieces(pieces),
            length=len(photo) if announced else None,
            boundary=BOUNDARY,
        )
        collected = Collected()
        runner.run(form.write(collected))
        content_type, body = form.headers["Content-Type"], bytes(collected.body)
        assert form.size == (len(body) if announced else None)
        piece_size = small_piece if len(body) <= _SMALL_FORM else large_piece

        by_node, by_python = runner.run(by_others(node, content_type, body, piece_size))
        expected = ParsedForm(fields, [a_file("assetData", filename, "image/heic", photo)], None)
        assert by_node == both(expected)
        assert by_python == [
            *((name, None, value.encode()) for name, value in fields),
            ("assetData", filename, photo),
        ]
        seen["forms"] += 1
        effort.progress("forms sent", seen["forms"], count)

    check()
    effort.figure("7 forms", f"{seen['forms']} forms sent: 0 differences among three readers")


def test_forms_that_we_take(effort: Effort, runner: asyncio.Runner, node: FormParser) -> None:
    count = effort.amount(200, 5000)
    seen: Counter[str] = Counter()

    @seed(effort.seed)
    @examples(count)
    @given(sent_forms())
    def check(form: SentForm) -> None:
        seen["forms"] += 1
        effort.progress("forms taken", seen["forms"], count)
        sent = form.content_type, form.body, form.piece_size
        try:
            ours = runner.run(read_by_us(*sent))
        except Refused:
            return  # what we refuse we cannot misunderstand
        seen["taken"] += 1
        # busboy goes on behind the closing delimiter, where RFC 2046 5.1.1 has no parts any more,
        # and passes over a part whose delimiter is padded with blanks, which are allowed there.
        for_busboy = not form.has_epilogue and not form.has_padding
        # python-multipart knows no padding either, and of a preamble nothing but line ends.
        for_python = not form.has_preamble and not form.has_padding
        by_node, by_python = runner.run(
            by_others(node, *sent, ask_node=for_busboy, ask_python=for_python)
        )
        if by_node is not None:
            assert by_node.busboy.error is None, form
            assert differences(ours, by_node.busboy) == [], form
        if for_python:
            assert [(name, content) for name, _, content in by_python] == ours, form
        seen["by busboy"] += for_busboy
        seen["by python"] += for_python

    check()
    assert seen["taken"] > _LEAST_TAKEN * seen["forms"], seen
    assert min(seen["by busboy"], seen["by python"]) > _LEAST_COMPARED * seen["taken"], seen
    effort.figure(
        "7 forms",
        f"{seen['forms']} forms given to us, half of them damaged: {seen['taken']} taken, of them "
        f"{seen['by busboy']} read by busboy and {seen['by python']} by python-multipart: "
        "0 differences",
    )
