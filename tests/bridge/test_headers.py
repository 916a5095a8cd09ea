"""Which header fields pass, and what becomes of a request target."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from immich_bridge.bridge.headers import (
    end_to_end,
    first_value,
    render_head,
    request_target,
    without,
)

Field = tuple[bytes, bytes]

NAMES = st.text("abcdefgXYZ-_.!0123456789", min_size=1, max_size=12).map(str.encode)
VALUES = st.binary(max_size=20)
# The one letter that none of the hop-by-hop fields shares is what keeps these end-to-end.
END_TO_END = st.lists(st.tuples(NAMES.map(lambda name: b"q" + name), VALUES), max_size=12)


@pytest.mark.parametrize(
    "name",
    [
        b"Connection",
        b"Keep-Alive",
        b"Proxy-Authenticate",
        b"Proxy-Authorization",
        b"Proxy-Connection",
        b"TE",
        b"Trailer",
        b"Transfer-Encoding",
        b"Upgrade",
    ],
)
@pytest.mark.parametrize("spelling", [bytes, bytes.lower, bytes.upper])
def test_hop_by_hop_fields_stay_behind(name: bytes, spelling: type[bytes]) -> None:
    kept = [(b"A", b"1"), (b"B", b"2")]
    assert end_to_end([kept[0], (spelling(name), b"x"), kept[1]]) == kept


@pytest.mark.parametrize(
    "name", [b"Trailers", b"X-Upgrade", b"Upgrade-Insecure-Requests", b"T", b""]
)
def test_fields_of_similar_names_pass(name: bytes) -> None:
    assert end_to_end([(name, b"x")]) == [(name, b"x")]


@pytest.mark.parametrize(
    "options",
    [
        [b"x-one, X-TWO"],
        [b"X-One", b"x-two"],
        [b" ,close,, x-one ,\tX-Two\t, "],
        [b"keep-alive, x-one", b"close", b"x-two"],
    ],
)
def test_connection_names_more_that_stay_behind(options: list[bytes]) -> None:
    fields = [(b"X-One", b"1"), (b"X-Three", b"3"), (b"x-two", b"2"), (b"X-ONE", b"1 again")]
    connection = [(b"Connection", value) for value in options]
    assert end_to_end([*fields, *connection]) == [(b"X-Three", b"3")]
    assert end_to_end([*connection, *fields]) == [(b"X-Three", b"3")]


def test_connection_cannot_take_away_what_frames_or_routes_the_message() -> None:
    framing = [(b"Host", b"immich"), (b"Content-Length", b"5")]
    assert end_to_end([(b"Connection", b"Host, content-length, close"), *framing]) == framing


@given(END_TO_END)
def test_all_others_pass_in_order_with_repeats(fields: list[Field]) -> None:
    assert end_to_end([*fields, *fields]) == [*fields, *fields]


@given(END_TO_END, END_TO_END, st.sampled_from([b"close", b"keep-alive", b"", b"Upgrade"]))
def test_a_hop_by_hop_field_leaves_the_order_of_the_others(
    before: list[Field], after: list[Field], option: bytes
) -> None:
    assert end_to_end([*before, (b"connection", option), *after]) == [*before, *after]


def test_without_takes_every_field_of_a_name_away() -> None:
    fields = [(b"A", b"1"), (b"b", b"2"), (b"a", b"3"), (b"C", b"4")]
    assert without(fields, frozenset({b"a", b"c"})) == [(b"b", b"2")]


def test_first_value_is_of_the_first_field_in_any_case() -> None:
    fields = [(b"X-A", b"1"), (b"x-a", b"2")]
    assert first_value(fields, b"x-a") == b"1"
    assert first_value(fields, b"x-b") is None
    assert first_value([(b"X-A", b"")], b"x-a") == b""


@pytest.mark.parametrize(
    ("raw_path", "expected"),
    [
        ("/", b"/"),
        ("//", b"//"),
        ("/a/./../b//c;d?x=%2F&&y=+#z", b"/a/./../b//c;d?x=%2F&&y=+#z"),
        ("/http://elsewhere/a", b"/http://elsewhere/a"),
        ("/?to=http://elsewhere/a", b"/?to=http://elsewhere/a"),
        ("*", b"*"),
        ("http://immich", b"/"),
        ("http://immich/", b"/"),
        ("http://immich?a=b", b"/?a=b"),
        ("http://immich#a", b"/#a"),
        ("http://immich//a/../b?c=http://d/e", b"//a/../b?c=http://d/e"),
        ("HTTPS://user:password@[::1]:8443/a%2fb?", b"/a%2fb?"),
        ("x-custom+1.0://h/a", b"/a"),
    ],
)
def test_request_target_is_the_origin_form(raw_path: str, expected: bytes) -> None:
    assert request_target(raw_path) == expected


@given(st.binary(max_size=60))
def test_request_target_keeps_every_byte_of_an_origin_form(rest: bytes) -> None:
    # This is how aiohttp's parser makes a `str` of the target.
    raw_path = (b"/" + rest).decode("utf-8", "surrogateescape")
    assert request_target(raw_path) == b"/" + rest


def test_head_is_rendered_as_it_goes_onto_the_wire() -> None:
    head = render_head(b"GET / HTTP/1.1", [(b"Host", b"a"), (b"x", b"\xff"), (b"x", b"")])
    assert head == b"GET / HTTP/1.1\r\nHost: a\r\nx: \xff\r\nx: \r\n\r\n"
    assert render_head(b"HTTP/1.1 204 ", []) == b"HTTP/1.1 204 \r\n\r\n"
