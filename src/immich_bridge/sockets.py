"""Sockets that listen: one that is ours alone, or several that share one address."""

import socket
from collections.abc import Sequence

from immich_bridge.errors import StartError


def listening_socket(host: str, port: int) -> socket.socket:
    """A bound socket; without a host one that takes IPv6 and IPv4 on every address.

    Raises `StartError`, also when anybody else listens there.
    """
    try:
        if not host:
            dual_stack = socket.has_dualstack_ipv6()
            family = socket.AF_INET6 if dual_stack else socket.AF_INET
            return socket.create_server(("", port), family=family, dualstack_ipv6=dual_stack)
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, address = found[0]
        return socket.create_server(address, family=family)
    except (OSError, UnicodeError) as exc:
        raise _cannot_listen(host, port, exc) from exc


def metrics_socket(address: tuple[str, int]) -> socket.socket:
    """The socket of `METRICS_ADDR`; raises `StartError`."""
    try:
        return listening_socket(*address)
    except StartError as exc:
        raise StartError(f"METRICS_ADDR: {exc}") from exc


def shared_sockets(host: str, port: int, count: int) -> Sequence[socket.socket]:
    """So many sockets on one address, among which the kernel distributes new connections.

    Raises `StartError`, as for one alone: the first is bound before it may be shared, so that
    two servers by mistake do not share a port. A port of 0 is the same for all.
    """
    if not hasattr(socket, "SO_REUSEPORT"):
        raise StartError("WORKERS: this system cannot share a port among processes, expected 1")
    sockets = [listening_socket(host, port)]
    first = sockets[0]
    dual_stack = first.family == socket.AF_INET6 and not first.getsockopt(
        socket.IPPROTO_IPV6, socket.IPV6_V6ONLY
    )
    try:
        first.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        while len(sockets) < count:
            beside = socket.create_server(
                first.getsockname(),
                family=first.family,
                reuse_port=True,
                dualstack_ipv6=dual_stack,
            )
            sockets.append(beside)
    except OSError as exc:
        for each in sockets:
            each.close()
        raise _cannot_listen(host, port, exc) from exc
    return sockets


def local_address(listening: socket.socket) -> str:
    """Where a socket can be reached from this machine: host and port, fit for a URL."""
    host, port = listening.getsockname()[:2]
    host = {"::": "localhost", "0.0.0.0": "localhost"}.get(host, host)  # noqa: S104
    return f"{f'[{host}]' if ':' in host else host}:{port}"


def _cannot_listen(host: str, port: int, exc: Exception) -> StartError:
    reason = getattr(exc, "strerror", None) or str(exc)
    return StartError(f"cannot listen on {host or '*'}:{port}: {reason}")
