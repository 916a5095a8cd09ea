"""JSON bodies: a list is parsed element by element, and as `json` parses all at once."""

import json
import tracemalloc
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from immich_bridge.errors import BadRequest
from immich_bridge.http.json_body import ListParser

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)
LONG = 65_536


def kept(element: object) -> object:
    """Of an element all of it."""
    return element


def parsed(pieces: Sequence[bytes], most: int = 1000) -> dict[str, Any]:
    """What is made of a body in pieces; one piece alone is parsed at once."""
    parser = ListParser("items", most=most, keep=kept)
    *first, last = pieces or [b""]
    for piece in first:
        parser.feed(piece)
    parser.finish(last)
    return parser.members


def cut(body: bytes, size: int) -> list[bytes]:
    """`body` in pieces of `size` bytes."""
    return [body[at : at + size] for at in range(0, len(body), size)]


@given(
    members=st.dictionaries(st.sampled_from(["date", "items", "other", ""]), VALUES),
    items=st.lists(VALUES, max_size=20),
    size=st.integers(1, 50) | st.just(1 << 20),
    ascii_only=st.booleans(),
    indent=st.sampled_from([None, 0, 3]),
)
def test_any_object_in_any_pieces(
    members: dict[str, object], items: list[object], size: int, ascii_only: bool, indent: int | None
) -> None:
    for value in (members, {**members, "items": items}, {"items": items, **members}):
        text = json.dumps(value, ensure_ascii=ascii_only, indent=indent)
        assert parsed(cut(f" {text}\r\n".encode(), size)) == value


def test_long_lists_in_pieces_of_any_size() -> None:
    value = {"items": [{"id": "日🙂x" * 300, "n": n} for n in range(300)], "date": "today"}
    for ascii_only in (False, True):
        body = json.dumps(value, ensure_ascii=ascii_only).encode()
        for size in (1021, LONG, 1 << 20):
            assert parsed(cut(body, size)) == value


def test_the_later_of_two_counts() -> None:
    body = b'{"items": [1, 2], "items": [3], "a": 1, "a": 2}'
    for size in (7, len(body)):
        assert parsed(cut(body, size)) == {"items": [3], "a": 2}


def test_only_what_is_wanted_is_kept() -> None:
    body = b'{"items": [true, false, null, 12], "other": [1, 2]}'
    for begin in (b"", body[:20]):
        parser = ListParser("items", most=10, keep=lambda element: str(element)[:1])
        if begin:
            parser.feed(begin)
        parser.finish(body[len(begin) :])
        assert parser.members == {"items": ["T", "F", "N", "1"], "other": [1, 2]}


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b" ", b"{", b"}", b"[]", b"1", b"null", b'"items"', b"{}{}", b"{} x", b"{,}", b"{]"),
        *(b'{"a"}', b'{"a":}', b'{"a":1,}', b'{"a":1 "b":2}', b'{"a" 1}', b"{1: 2}", b'{"a":1'),
        *(b'{"items":[', b'{"items":[1', b'{"items":[1,', b'{"items":[1,]}', b'{"items":[,]}'),
        *(b'{"items":[1 2]}', b'{"items":[1}}', b'{"items":[1]', b'{"items":[01]}'),
        *(b'{"a":"\xff"}', b'{"a":"\xc3', b'{"a":"\\ud800"}', b'{"items":["\\udc00"]}'),
        *(b"\xef\xbb\xbf{}", b'{"a":"\n"}', "{}".encode("utf-16")),
        b"[" * 100_000,
        b'{"items":[' + b"[" * 30_000,
    ],
)
def test_what_is_no_such_object(body: bytes) -> None:
    for size in (7, 1 << 20):
        with pytest.raises((ValueError, RecursionError, BadRequest)) as caught:
            parsed(cut(body, size))
        assert not isinstance(caught.value, BadRequest)


@pytest.mark.parametrize(
    "body",
    [
        b'{"a":"' + b"x" * LONG + b'"}',
        b'{"items":[' + b"1" * LONG + b"1]}",
        b'{"items":[[' + b"[]," * LONG + b"[]]]}",
        b"{" + b",".join(b'"%d":1' % n for n in range(65)) + b"}",
    ],
)
def test_what_is_too_much_for_a_large_body(body: bytes) -> None:
    with pytest.raises(ValueError):
        parsed(cut(body, 50_000 if len(body) > LONG else 7))


def test_most_elements() -> None:
    assert parsed([b'{"items": [1, 2, 3]}'], most=3) == {"items": [1, 2, 3]}
    for pieces in ([b'{"items": [1, 2, 3', b", "], [b'{"items": [1, 2, 3, 4]}']):
        with pytest.raises(BadRequest, match="too many items: at most 3 at once"):
            parsed(pieces, most=3)


def test_memory_is_that_of_what_is_kept() -> None:
    element = b"[" + b"[]," * 20_000 + b"[]]"
    pieces = [b'{"items": [', *[element + b","] * 60, b"1]" + b" " * 5_000_000 + b"}"]
    parser = ListParser("items", most=1000, keep=lambda _: None)
    tracemalloc.start()
    for piece in pieces:
        parser.feed(piece)
    parser.finish(b"")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert parser.members == {"items": [None] * 61}
    assert peak < 15_000_000
