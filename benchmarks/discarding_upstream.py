"""An Immich that keeps nothing: takes an upload form, counts it, answers 201.

Run as a program it prints its port in the first line and then one JSON object a request:
`first_byte` (seconds of CLOCK_MONOTONIC, which all processes share), `file_bytes`, `fault`
(empty when all that was announced came, and no more) and, with `--verify`, `file_sha256`.
"""

import argparse
import hashlib
import json
import re
import socket
import struct
import sys
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Final
from uuid import uuid4

_STALL_SECONDS: Final = 30
_MAX_HEADS: Final = 64 * 1024
_PIECE: Final = 4 * 1024 * 1024
_CONTENT_LENGTH: Final = re.compile(rb"\r\ncontent-length: *(\d+) *\r\n", re.IGNORECASE)
_BOUNDARY: Final = re.compile(rb'\r\ncontent-type: [^\r\n]*boundary="?([^"\r\n;]+)', re.IGNORECASE)
_FILE_PART: Final = b'name="assetData"'
# Linux: TCP drops the bytes that it counts, so that nothing is copied (tcp(7)).
_DISCARD: Final = (
    socket.MSG_TRUNC | socket.MSG_WAITALL if sys.platform == "linux" else socket.MSG_WAITALL
)


@dataclass
class Receipt:
    """What came of one upload."""

    first_byte: float
    file_bytes: int = 0
    file_sha256: str = ""
    fault: str = ""


class _Fault(Exception):
    """What came is not the form that was announced."""


class _Upload:
    """One form, read from `connection`, whose first bytes are already in `received`."""

    def __init__(self, connection: socket.socket, received: bytearray, verify: bool) -> None:
        self._connection = connection
        self._verify = verify
        self._buffer = memoryview(bytearray(_PIECE))
        head = self._read_until(received, b"\r\n\r\n", 0)
        length, boundary = _CONTENT_LENGTH.search(received), _BOUNDARY.search(received)
        if length is None or boundary is None:
            raise _Fault("no Content-Length or no boundary")
        self._file_start = self._read_until(
            received, b"\r\n\r\n", self._read_until(received, _FILE_PART, head)
        )
        self._early_file = bytes(received[self._file_start :])
        self._end = b"\r\n--" + boundary[1] + b"--\r\n"
        self._outstanding = head + int(length[1]) - len(received)
        self.file_bytes = head + int(length[1]) - self._file_start - len(self._end)

    def read(self) -> str:
        """Take the rest of the form; the SHA-256 of the file if it is wanted."""
        if self._outstanding < len(self._end):
            raise _Fault("the file is too small for this benchmark")
        file_rest = self._outstanding - len(self._end)
        sha256 = hashlib.sha256(self._early_file) if self._verify else None
        while file_rest:
            size = min(file_rest, _PIECE)
            count = self._connection.recv_into(
                self._buffer, size, socket.MSG_WAITALL if sha256 else _DISCARD
            )
            if not count:
                raise _Fault(f"{file_rest} bytes of the file are missing")
            if sha256:
                sha256.update(self._buffer[:count])
            file_rest -= count
        end = self._connection.recv(len(self._end), socket.MSG_WAITALL)
        if end != self._end:
            raise _Fault(f"the form ends in {end!r}")
        try:
            # The closing boundary was read by its length, so more can only be too much.
            surplus = self._connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            surplus = b""
        if surplus:
            raise _Fault("more came than was announced")
        return sha256.hexdigest() if sha256 else ""

    def _read_until(self, received: bytearray, mark: bytes, start: int) -> int:
        """The position behind the first `mark` after `start`."""
        while (found := received.find(mark, start)) < 0:
            piece = self._connection.recv(_MAX_HEADS)
            if not piece or len(received) > _MAX_HEADS * 2:
                raise _Fault("no upload form")
            received += piece
        return found + len(mark)


def _serve_connection(connection: socket.socket, verify: bool, print_lock: threading.Lock) -> None:
    stall = struct.pack("ll", _STALL_SECONDS, 0)
    # A connection that breaks or stays silent between two uploads is nobody's fault.
    with connection, suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, stall)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while received := bytearray(connection.recv(_MAX_HEADS)):
            receipt = Receipt(first_byte=time.monotonic())
            try:
                upload = _Upload(connection, received, verify)
                receipt.file_bytes = upload.file_bytes
                receipt.file_sha256 = upload.read()
            except (_Fault, OSError) as exc:
                receipt.fault = str(exc) or type(exc).__name__
            with print_lock:
                print(json.dumps(asdict(receipt)), flush=True)
            if receipt.fault:
                return
            text = json.dumps({"id": str(uuid4()), "status": "created"}).encode()
            connection.sendall(
                b"HTTP/1.1 201 Created\r\nContent-Type: application/json; charset=utf-8\r\n"
                b"Content-Length: %d\r\n\r\n%b" % (len(text), text)
            )


def main() -> None:
    """Serve uploads until the process is ended."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--verify", action="store_true", help="digest the files (slow)")
    verify = parser.parse_args().verify
    print_lock = threading.Lock()
    with socket.create_server(("127.0.0.1", 0), backlog=256) as listener:
        print(listener.getsockname()[1], flush=True)
        while True:
            connection, _ = listener.accept()
            threading.Thread(
                target=_serve_connection, args=(connection, verify, print_lock), daemon=True
            ).start()


if __name__ == "__main__":
    main()
