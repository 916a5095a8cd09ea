"""A photo backup server of its own for a run, and a client that costs next to nothing."""

import json
import os
import random
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from process_stats import ProcessStats
from processes import (
    bridge_command,
    clean_environment,
    free_port,
    running_process,
    wait_until_healthy,
)

_STALL_SECONDS: Final = 60.0
_CREDENTIALS: Final = {"username": "benchmark", "password": "correct horse battery staple"}
_BOUNDARY: Final = b"benchmark-2f1a9c07d4"
_BLOCK: Final = 64 * 1024 * 1024
_PIECE: Final = 8 * 1024 * 1024


class Failed(Exception):
    """An answer that is not the expected one; the message holds what came instead."""


class BackupServer:
    """A running server. `idle_rss` is its memory before the first upload."""

    def __init__(self, pid: int, port: int, folder: Path) -> None:
        self.port = port
        self.photos = folder / "storage" / "photo" / "1"
        self.stats = ProcessStats(pid)
        with Client(port) as client:
            self.token = client.log_in()
        # Hashing a password takes 19 MiB for a moment, which are not the upload's.
        self.stats.reset_peak_rss()
        self.idle_rss = self.stats.rss()

    def client(self) -> "Client":
        """A client that is logged in."""
        return Client(self.port, self.token)


@contextmanager
def running_backup_server(folder: Path, event_loop: str) -> Iterator[BackupServer]:
    """A server with one user and everything in `folder`, on `auto` or `asyncio` as event loop."""
    port = free_port()
    environment = clean_environment(
        {
            "LISTEN_ADDR": f"127.0.0.1:{port}",
            "IMMICH_SERVER_URL": "",
            "DB_PATH": str(folder / "app.db"),
            "STORAGE_DIR": str(folder / "storage"),
            "JWT_SECRET_PATH": str(folder / "jwt_secret.key"),
            "MAX_UPLOAD_SIZE": "1T",
            "RATE_LIMIT_LOGIN": "0",
            "LOG_LEVEL": "warning",
        }
    )
    command = bridge_command(event_loop)
    create = ["user", "create"]
    create += [word for name, value in _CREDENTIALS.items() for word in (f"--{name}", value)]
    subprocess.run([*command, *create], env=environment, check=True, stdout=subprocess.DEVNULL)
    with running_process(command, environment=environment, folder=folder) as process:
        wait_until_healthy("the photo backup", process, port)
        yield BackupServer(process.pid, port, folder)


class Client:
    """One connection, kept for any number of requests."""

    def __init__(self, port: int, token: bytes = b"") -> None:
        self._head = b"Host: 127.0.0.1:%d\r\nAuthorization: Bearer %b\r\n" % (port, token)
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=_STALL_SECONDS)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._received = b""

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def post(self, path: str, body: bytes) -> Any:
        """Post JSON; the answer."""
        head = b"POST %b HTTP/1.1\r\n%bContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        self._socket.sendall(head % (path.encode(), self._head, len(body)) + body)
        return self._answer()

    def log_in(self) -> bytes:
        """Log in; the token."""
        return str(self.post("/login", json.dumps(_CREDENTIALS).encode())["token"]).encode()

    def upload_form(self, local_id: str, content: bytes) -> Any:
        """Upload a small photo as a form; the answer."""
        head, start, end = self._form(local_id, len(content))
        self._socket.sendall(head + start + content + end)
        return self._answer()

    def upload_large_form(self, local_id: str, file: "LargeFile") -> Any:
        """Upload a large file as a form; the answer."""
        head, start, end = self._form(local_id, file.size)
        self._socket.sendall(head + start)
        file.send(self._socket)
        self._socket.sendall(end)
        return self._answer()

    def upload_large_raw(self, local_id: str, file: "LargeFile") -> Any:
        """Upload a large file as a raw body; the answer."""
        head = (
            b"POST /photos/upload/stream?local_id=%b&file_type=video/quicktime HTTP/1.1\r\n"
            b"%bContent-Length: %d\r\n\r\n"
        )
        self._socket.sendall(head % (local_id.encode(), self._head, file.size))
        file.send(self._socket)
        return self._answer()

    def _form(self, local_id: str, size: int) -> tuple[bytes, bytes, bytes]:
        field = b'--%b\r\nContent-Disposition: form-data; name="%b"\r\n\r\n%b\r\n'
        start = (
            field % (_BOUNDARY, b"local_id", local_id.encode())
            + field % (_BOUNDARY, b"file_type", b"video/quicktime")
            + b'--%b\r\nContent-Disposition: form-data; name="file"; filename="IMG.MOV"\r\n'
            b"Content-Type: video/quicktime\r\n\r\n" % _BOUNDARY
        )
        end = b"\r\n--%b--\r\n" % _BOUNDARY
        head = (
            b"POST /photos/upload HTTP/1.1\r\n%b"
            b"Content-Type: multipart/form-data; boundary=%b\r\nContent-Length: %d\r\n\r\n"
        )
        return head % (self._head, _BOUNDARY, len(start) + size + len(end)), start, end

    def _answer(self) -> Any:
        while b"\r\n\r\n" not in self._received:
            self._receive()
        head, _, self._received = self._received.partition(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
        while len(self._received) < length:
            self._receive()
        body, self._received = self._received[:length], self._received[length:]
        if not head.startswith(b"HTTP/1.1 200 "):
            raise Failed(f"{head.partition(bytes(2))[0][:100]!r} {body[:200]!r}")
        return json.loads(body)

    def _receive(self) -> None:
        piece = self._socket.recv(1024 * 1024)
        if not piece:
            raise Failed("the server closed the connection")
        self._received += piece


class LargeFile:
    """A file of any size in memory: a block of random bytes, again and again."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.block = random.Random(1).randbytes(min(size, _BLOCK))
        self._descriptor = os.memfd_create("benchmark")
        os.write(self._descriptor, self.block)

    def close(self) -> None:
        """Give the memory back."""
        os.close(self._descriptor)

    def send(self, to: socket.socket) -> None:
        """Send all of it, without a copy in this process."""
        to.settimeout(None)  # a timeout would make the socket non-blocking, and sendfile with it
        sent = 0
        while sent < self.size:
            offset = sent % len(self.block)
            wanted = min(_PIECE, self.size - sent, len(self.block) - offset)
            sent += os.sendfile(to.fileno(), self._descriptor, offset, wanted)

    def equals(self, path: Path) -> bool:
        """Whether the file at `path` holds the same bytes."""
        if path.stat().st_size != self.size:
            return False
        with path.open("rb") as file:
            while piece := file.read(len(self.block)):
                if piece != self.block[: len(piece)]:
                    return False
        return True

    def write_and_sync(self, path: Path) -> float:
        """Write it to `path` as fast as this disk takes it, and sync it; how many seconds."""
        started = time.monotonic()
        with path.open("wb", buffering=0) as file:
            view = memoryview(self.block)
            for start in range(0, self.size, len(self.block)):
                rest = view[: self.size - start]
                while rest:
                    rest = rest[file.write(rest[:_PIECE]) :]
            os.fsync(file.fileno())
        return time.monotonic() - started
