"""What Immich is told of the other end: `Host` is its own, `X-Forwarded-*` speak of the client."""

from collections.abc import Sequence
from typing import Final

from aiohttp import web

from immich_bridge.bridge.headers import RawHeaders, first_value
from immich_bridge.http.client_address import is_trusted, peer_address
from immich_bridge.setting_values import Network

_FORWARDED: Final = frozenset({b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host"})


def forwarded_by_us(
    request: web.BaseRequest, headers: RawHeaders, *, host: bytes, trusted: Sequence[Network]
) -> list[tuple[bytes, bytes]]:
    """`headers` of `request` as the Immich at `host` gets them."""
    peer = peer_address(request)
    return forwarded(
        headers,
        host=host,
        peer=peer,
        scheme=request.scheme,
        peer_is_trusted=is_trusted(peer, trusted),
    )


def forwarded(
    headers: RawHeaders, *, host: bytes, peer: str, scheme: str, peer_is_trusted: bool
) -> list[tuple[bytes, bytes]]:
    """`headers` for Immich: `Host` is its own, `X-Forwarded-*` tell of the client.

    What a peer says of those before it counts only when the operator trusts the peer.
    """
    said = {
        name: b", ".join(value for field, value in headers if field.lower() == name)
        for name in _FORWARDED
        if peer_is_trusted
    }
    client_host = first_value(headers, b"host") or b""
    chain = said.get(b"x-forwarded-for", b"")
    passed = [
        (name, host if name.lower() == b"host" else value)
        for name, value in headers
        if name.lower() not in _FORWARDED
    ]
    if not client_host:
        passed.insert(0, (b"Host", host))
    return [
        *passed,
        (b"X-Forwarded-For", (chain + b", " if chain else b"") + peer.encode()),
        (b"X-Forwarded-Proto", said.get(b"x-forwarded-proto") or scheme.encode()),
        (b"X-Forwarded-Host", said.get(b"x-forwarded-host") or client_host),
    ]
