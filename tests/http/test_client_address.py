"""Who is asking, as far as those who say so are trusted."""

import ipaddress
from collections.abc import Sequence

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request
from hypothesis import given
from hypothesis import strategies as st

from immich_bridge.http.client_address import client_address, is_trusted, peer_address
from immich_bridge.setting_values import Network, parse_networks

TRUSTED = parse_networks("10.0.0.0/8, fd00::/8, 127.0.0.1")
ADDRESSES = st.ip_addresses().map(str)


def asked_by(peer: str, *forwarded_for: str) -> web.BaseRequest:
    headers = [("X-Forwarded-For", value) for value in forwarded_for]
    return make_mocked_request("GET", "/", headers=headers).clone(remote=peer)


@pytest.mark.parametrize(
    ("peer", "expected"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8::1", "2001:db8::1"),
        ("::ffff:0:1", "::ffff:0:1"),
        ("fe80::1%eth0", "fe80::1%eth0"),
    ],
)
def test_ipv4_is_named_as_ipv4_also_on_a_dual_stack_socket(peer: str, expected: str) -> None:
    assert peer_address(asked_by(peer)) == expected


@pytest.mark.parametrize(
    ("address", "networks", "expected"),
    [
        ("10.1.2.3", "10.0.0.0/8", True),
        ("11.1.2.3", "10.0.0.0/8", False),
        ("10.1.2.3", "", False),
        ("10.1.2.3", "192.168.0.0/16,10.0.0.0/8", True),
        ("fd12::1", "fd00::/8", True),
        ("fe80::1%eth0", "fe80::/10", True),
        ("10.1.2.3", "::/0", False),
        ("::1", "0.0.0.0/0", False),
        ("unknown", "0.0.0.0/0 ::/0", False),
        ("", "0.0.0.0/0", False),
    ],
)
def test_trust_is_a_matter_of_networks(address: str, networks: str, expected: bool) -> None:
    assert is_trusted(address, parse_networks(networks)) is expected


@pytest.mark.parametrize(
    ("peer", "chain", "expected"),
    [
        # Nobody vouches for what a stranger says.
        ("192.0.2.9", ["198.51.100.1"], "192.0.2.9"),
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", ["198.51.100.1"], "198.51.100.1"),
        ("::ffff:10.0.0.1", ["198.51.100.1"], "198.51.100.1"),
        ("10.0.0.1", ["198.51.100.1, 10.0.0.2"], "198.51.100.1"),
        ("10.0.0.1", ["198.51.100.1", "10.0.0.2", "fd00::2"], "198.51.100.1"),
        ("10.0.0.1", ["[2001:db8::7]"], "2001:db8::7"),
        # A forged beginning is not reached.
        ("10.0.0.1", ["203.0.113.1, 198.51.100.1"], "198.51.100.1"),
        ("10.0.0.1", ["10.0.0.7, 198.51.100.1, 10.0.0.2"], "198.51.100.1"),
        # All of it is trusted: the farthest is the client.
        ("10.0.0.1", ["10.0.0.3, 10.0.0.2"], "10.0.0.3"),
        # What is no address ends the chain at the last that is one.
        ("10.0.0.1", ["198.51.100.1, unknown, 10.0.0.2"], "10.0.0.2"),
        ("10.0.0.1", [""], "10.0.0.1"),
    ],
)
def test_the_client_is_the_nearest_that_is_no_trusted_proxy(
    peer: str, chain: Sequence[str], expected: str
) -> None:
    assert client_address(asked_by(peer, *chain), TRUSTED) == expected


@given(
    forged=st.lists(st.one_of(ADDRESSES, st.sampled_from(["", "unknown", "10.0.0.5"]))),
    client=ADDRESSES.filter(lambda address: not is_trusted(address, TRUSTED)),
)
def test_what_a_client_puts_before_its_own_address_has_no_say(
    forged: list[str], client: str
) -> None:
    request = asked_by("10.0.0.1", ", ".join([*forged, client]))
    assert client_address(request, TRUSTED) == str(ipaddress.ip_address(client))


@given(peer=ADDRESSES, chain=st.lists(ADDRESSES))
def test_without_trusted_proxies_the_peer_is_the_client(peer: str, chain: list[str]) -> None:
    nobody: tuple[Network, ...] = ()
    request = asked_by(peer, *chain)
    assert client_address(request, nobody) == peer_address(request)
