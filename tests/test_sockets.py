"""Sockets that listen: on an address of their own, and several on one."""

import socket

import pytest

from immich_bridge.errors import StartError
from immich_bridge.sockets import listening_socket, local_address, shared_sockets


def test_several_share_one_address_and_nobody_else_does() -> None:
    sockets = shared_sockets("127.0.0.1", 0, 3)
    try:
        assert len({each.getsockname() for each in sockets}) == 1
        port = sockets[0].getsockname()[1]
        assert local_address(sockets[2]) == f"127.0.0.1:{port}"
        with pytest.raises(StartError, match=f"^cannot listen on 127.0.0.1:{port}: "):
            listening_socket("127.0.0.1", port)
        with pytest.raises(StartError, match=f"^cannot listen on 127.0.0.1:{port}: "):
            shared_sockets("127.0.0.1", port, 2)
    finally:
        for each in sockets:
            each.close()


def test_connections_come_to_all_of_them() -> None:
    sockets = shared_sockets("127.0.0.1", 0, 2)
    clients = [socket.create_connection(sockets[0].getsockname()) for _ in range(64)]
    try:
        for each in sockets:
            each.settimeout(5)
            each.accept()[0].close()
    finally:
        for each in (*sockets, *clients):
            each.close()


def test_a_system_that_shares_no_port_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(socket, "SO_REUSEPORT")
    with pytest.raises(StartError, match=r"^WORKERS: this system cannot share a port"):
        shared_sockets("127.0.0.1", 0, 2)


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this machine has no IPv6")
def test_each_of_them_takes_ipv4_and_ipv6() -> None:
    sockets = shared_sockets("", 0, 2)
    try:
        options = [each.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) for each in sockets]
        assert options == [0, 0]
    finally:
        for each in sockets:
            each.close()
