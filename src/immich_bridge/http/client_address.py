"""Who is asking: the client's address, seen through the proxies that the operator trusts."""

import ipaddress
from collections.abc import Sequence

from aiohttp import web

from immich_bridge.setting_values import Network


def peer_address(request: web.BaseRequest) -> str:
    """The address at the other end of the connection; IPv4 as IPv4 also on a dual-stack socket."""
    peer = request.remote or "unknown"
    return peer.removeprefix("::ffff:") if peer.count(".") == 3 else peer


def is_trusted(address: str, networks: Sequence[Network]) -> bool:
    """Whether `address` lies in one of `networks`."""
    if not networks:
        return False
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    return any(parsed.version == network.version and parsed in network for network in networks)


def client_address(request: web.BaseRequest, trusted: Sequence[Network]) -> str:
    """The client's address: the peer, or behind trusted proxies what they say of it.

    `X-Forwarded-For` is read from its end, where the nearest proxy writes, up to the first
    address that is not a trusted proxy: what stands before that, anybody could have sent.
    """
    address = peer_address(request)
    if not is_trusted(address, trusted):
        return address
    hops = [
        hop.strip()
        for value in request.headers.getall("X-Forwarded-For", ())
        for hop in value.split(",")
    ]
    for hop in reversed(hops):
        try:
            address = str(ipaddress.ip_address(hop.strip("[]")))
        except ValueError:
            break
        if not is_trusted(address, trusted):
            break
    return address
