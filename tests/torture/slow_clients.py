"""Clients that hold a connection and hardly use it: half heads, bodies in drops, deaf readers."""

import socket
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from random import Random
from typing import Final

from raw_upload import upload_head
from torture.memory_server import MB, MeasuredServer
from wire import request

_DROP: Final = b"a"
_SECONDS_BETWEEN_DROPS: Final = 1.0
_TURNS: Final = 100
"""In which all of them are served, between two drops of one: they know nothing of each other."""
_SMALLEST_WINDOW: Final = 4096
_PATIENCE: Final = 30.0
_BODY: Final = 1000 * MB
_COPIED, _SPLICED = 7 * MB, 64 * MB
"""Answers below and above the size from which the server moves them inside the kernel."""


@dataclass(frozen=True)
class Limits:
    """Seconds after which the server lets go of a slow client."""

    head: float
    idle_body: float
    unread_answer: float

    @property
    def longest(self) -> float:
        """The longest of them."""
        return max(self.head, self.idle_body, self.unread_answer)

    @property
    def command(self) -> list[str]:
        """Serve with these limits; only that of bodies is a setting."""
        script = (
            "import sys; from immich_bridge import cli, serve; from immich_bridge.http import "
            f"connection; connection._KEEPALIVE_SECONDS = {self.head}; "
            f"serve._UNREAD_SECONDS = {self.unread_answer}; sys.exit(cli.main())"
        )
        return [sys.executable, "-c", script]


class SlowClients:
    """One connection for each of `beginnings`, which is sent on it at once."""

    def __init__(self, port: int, beginnings: Sequence[bytes]) -> None:
        self.sockets = [_connected(port, beginning) for beginning in beginnings]

    def first_lines(self) -> list[bytes]:
        """What the server has answered when it closes; empty where it just closed."""
        return [_first_line(sock) for sock in self.sockets]

    def close(self) -> None:
        """Leave."""
        for sock in self.sockets:
            sock.close()


@dataclass(frozen=True)
class SlowCrowd:
    """The three kinds."""

    heads: SlowClients
    bodies: SlowClients
    readers: SlowClients

    @contextmanager
    def dripping(self, chance: Random) -> Iterator[None]:
        """Heads and bodies go on, a byte now and then, for as long as the context lasts."""
        stop = threading.Event()
        sockets = [*self.heads.sockets, *self.bodies.sockets]
        chance.shuffle(sockets)

        def drip() -> None:
            turn = 0
            while not stop.wait(_SECONDS_BETWEEN_DROPS / _TURNS):
                for sock in sockets[turn::_TURNS]:
                    with suppress(OSError):  # closed by the server
                        sock.send(_DROP, socket.MSG_DONTWAIT)
                turn = (turn + 1) % _TURNS

        dripping = threading.Thread(target=drip)
        dripping.start()
        try:
            yield
        finally:
            stop.set()
            dripping.join()


def half_heads(count: int) -> list[bytes]:
    """Heads of which the last field has no end."""
    return [request("GET", "/api/server/about", ("X-Long", "a"))[: -len("\r\n\r\n")]] * count


def bodies(server: MeasuredServer, count: int) -> list[bytes]:
    """Uploads of either wing whose body has only begun."""
    kinds = [upload_head(_BODY), upload_head(_BODY, ("x-immich-checksum", "0" * 40))]
    kinds.append(server.backup_head(_BODY))
    return [kinds[number % len(kinds)] + _DROP for number in range(count)]


def large_answers(count: int) -> list[bytes]:
    """Requests for more than all buffers on the way hold."""
    sizes = (_COPIED, _SPLICED)
    targets = [f"/api/assets/{size}/original" for size in sizes]
    return [request("GET", targets[number % len(targets)]) for number in range(count)]


@contextmanager
def connected(port: int, beginnings: Sequence[bytes]) -> Iterator[SlowClients]:
    """Slow clients who leave at the end of the context."""
    with ExitStack() as stack:
        clients = SlowClients(port, beginnings)
        stack.callback(clients.close)
        yield clients


def _connected(port: int, beginning: bytes) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    sock.settimeout(_PATIENCE)
    # So that an answer nobody reads is not taken by the kernel of this end.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SMALLEST_WINDOW)
    sock.connect(("127.0.0.1", port))
    sock.sendall(beginning)
    return sock


def _first_line(sock: socket.socket) -> bytes:
    received = b""
    with suppress(ConnectionError):
        while piece := sock.recv(65536):
            received += piece
    return received.partition(b"\r\n")[0]
