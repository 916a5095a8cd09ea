"""What Immich is told of the client."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from immich_bridge.bridge.forwarded import forwarded

Field = tuple[bytes, bytes]

IMMICH = b"immich:2283"
CLAIMS = [
    (b"X-Forwarded-For", b"192.0.2.1"),
    (b"x-forwarded-proto", b"https"),
    (b"X-FORWARDED-HOST", b"photos.example"),
]


def told(
    headers: list[Field], *, peer: str = "10.0.0.9", scheme: str = "http", trusted: bool = False
) -> list[Field]:
    return forwarded(headers, host=IMMICH, peer=peer, scheme=scheme, peer_is_trusted=trusted)


def test_host_becomes_immichs_where_it_stood() -> None:
    headers = [(b"A", b"1"), (b"hOST", b"bridge:8080"), (b"B", b"2")]
    assert told(headers) == [
        (b"A", b"1"),
        (b"hOST", IMMICH),
        (b"B", b"2"),
        (b"X-Forwarded-For", b"10.0.0.9"),
        (b"X-Forwarded-Proto", b"http"),
        (b"X-Forwarded-Host", b"bridge:8080"),
    ]


def test_host_is_added_for_a_client_that_sent_none() -> None:
    # HTTP/1.0 has no Host.
    assert told([(b"A", b"1")])[:2] == [(b"Host", IMMICH), (b"A", b"1")]


def test_the_scheme_is_that_of_the_clients_connection() -> None:
    assert (b"X-Forwarded-Proto", b"https") in told([(b"Host", b"b")], scheme="https")


def test_an_ipv6_peer_is_named_without_brackets() -> None:
    assert (b"X-Forwarded-For", b"2001:db8::1") in told([(b"Host", b"b")], peer="2001:db8::1")


def test_what_a_stranger_claims_is_replaced() -> None:
    assert told([(b"Host", b"bridge"), *CLAIMS, *CLAIMS]) == [
        (b"Host", IMMICH),
        (b"X-Forwarded-For", b"10.0.0.9"),
        (b"X-Forwarded-Proto", b"http"),
        (b"X-Forwarded-Host", b"bridge"),
    ]


def test_what_a_trusted_proxy_says_is_kept_and_the_proxy_added_to_the_chain() -> None:
    assert told([(b"Host", b"bridge"), *CLAIMS], trusted=True) == [
        (b"Host", IMMICH),
        (b"X-Forwarded-For", b"192.0.2.1, 10.0.0.9"),
        (b"X-Forwarded-Proto", b"https"),
        (b"X-Forwarded-Host", b"photos.example"),
    ]


def test_a_chain_in_several_fields_becomes_one_in_its_order() -> None:
    chain = [(b"X-Forwarded-For", b"192.0.2.1, 192.0.2.2"), (b"x-forwarded-for", b"192.0.2.3")]
    headers = told([(b"Host", b"bridge"), *chain], trusted=True)
    assert (b"X-Forwarded-For", b"192.0.2.1, 192.0.2.2, 192.0.2.3, 10.0.0.9") in headers


def test_a_trusted_proxy_that_says_nothing_is_the_client() -> None:
    assert told([(b"Host", b"bridge")], trusted=True) == told([(b"Host", b"bridge")])


@pytest.mark.parametrize("trusted", [False, True])
@given(
    fields=st.lists(
        st.tuples(st.sampled_from([b"A", b"a", b"Forwarded", b"X-Real-IP"]), st.binary(max_size=9))
    )
)
def test_other_fields_pass_in_order_with_repeats(fields: list[Field], trusted: bool) -> None:
    assert told([(b"Host", b"b"), *fields], trusted=trusted)[1:-3] == fields
