"""The client: sends a large file with sendfile, so that it costs next to nothing itself."""

import hashlib
import os
import random
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

_STALL_SECONDS: Final = 30
_BLOCK: Final = 64 * 1024 * 1024
"""Bytes that are held in memory; a larger file is this block again and again."""
_PIECE: Final = 8 * 1024 * 1024
_MAX_ANSWER: Final = 64 * 1024
_BOUNDARY: Final = b"benchmark-2f1a9c07d4"
_FILE_TYPE: Final = b"video/quicktime"
_CREATED: Final = b"2026-05-04T10:20:30.400Z"

_BACKGROUND_HEAD: Final = (
    b"POST /api/assets/background HTTP/1.1\r\nHost: %b\r\nx-api-key: benchmark\r\n"
    b"X-Device-Asset-Id: benchmark/L0/001\r\nX-Filename: IMG_0001.MOV\r\n"
    b"X-File-Created-At: " + _CREATED + b"\r\nX-Content-Type: " + _FILE_TYPE + b"\r\n"
    b"Content-Type: " + _FILE_TYPE + b"\r\nContent-Length: %d\r\n\r\n"
)
_FORM_HEAD: Final = (
    b"POST /api/assets HTTP/1.1\r\nHost: %b\r\nx-api-key: benchmark\r\n"
    b"Content-Type: multipart/form-data; boundary=" + _BOUNDARY + b"\r\n"
    b"Content-Length: %d\r\n\r\n"
)
_FORM_START: Final = (
    b"--" + _BOUNDARY + b'\r\nContent-Disposition: form-data; name="deviceAssetId"\r\n\r\n'
    b"benchmark/L0/001\r\n"
    b"--" + _BOUNDARY + b'\r\nContent-Disposition: form-data; name="fileCreatedAt"\r\n\r\n'
    b"" + _CREATED + b"\r\n"
    b"--" + _BOUNDARY + b'\r\nContent-Disposition: form-data; name="assetData"; '
    b'filename="IMG_0001.MOV"\r\nContent-Type: ' + _FILE_TYPE + b"\r\n\r\n"
)
_FORM_END: Final = b"\r\n--" + _BOUNDARY + b"--\r\n"


class UploadFailed(Exception):
    """The upload was not answered with 201; the message holds what came instead."""


@dataclass(frozen=True)
class Sent:
    """One finished upload: when it began (CLOCK_MONOTONIC) and how long it took, in seconds."""

    first_byte: float
    seconds: float


class Photo:
    """A file of any size in memory, the same bytes on every run.

    After `deadline` (seconds of CLOCK_MONOTONIC) uploads are cut off.
    """

    def __init__(self, deadline: float) -> None:
        self._deadline = deadline
        self._fd = os.memfd_create("benchmark")
        # Like any compressed photo, the bytes have no pattern.
        self._block = random.Random(1).randbytes(_BLOCK)
        os.write(self._fd, self._block)

    def close(self) -> None:
        """Give the memory back."""
        os.close(self._fd)

    def sha256(self, size: int) -> str:
        """The digest of the first `size` bytes, in hex."""
        digest = hashlib.sha256()
        for start in range(0, size, _BLOCK):
            digest.update(memoryview(self._block)[: size - start])
        return digest.hexdigest()

    def upload_raw(self, port: int, size: int) -> Sent:
        """Upload as iOS does: to the bridge, metadata in headers, the body the file itself."""
        with _connection(port) as (sock, host):
            return self._upload(sock, _BACKGROUND_HEAD % (host, size), size, b"")

    def upload_form(self, port: int, size: int) -> Sent:
        """Upload as the bridge does: to Immich, as a form."""
        length = len(_FORM_START) + size + len(_FORM_END)
        with _connection(port) as (sock, host):
            return self._upload(sock, _FORM_HEAD % (host, length) + _FORM_START, size, _FORM_END)

    def _upload(self, sock: socket.socket, start: bytes, size: int, end: bytes) -> Sent:
        first_byte = time.monotonic()
        try:
            sock.sendall(start)
            sent = 0
            while sent < size:
                if time.monotonic() > self._deadline:
                    raise UploadFailed(f"time was up after {sent} of {size} bytes")
                offset = sent % _BLOCK
                wanted = min(_PIECE, size - sent, _BLOCK - offset)
                sent += os.sendfile(sock.fileno(), self._fd, offset, wanted)
            sock.sendall(end)
        except OSError as exc:
            # An answer that came before the end of the body says more than the error does.
            raise UploadFailed(f"{exc}; answer: {_answer(sock)!r}") from exc
        answer = _answer(sock)
        seconds = time.monotonic() - first_byte
        if not answer.startswith(b"HTTP/1.1 201 ") or b'"created"' not in answer:
            raise UploadFailed(f"answer: {answer!r}")
        return Sent(first_byte, seconds)


@contextmanager
def _connection(port: int) -> Iterator[tuple[socket.socket, bytes]]:
    with socket.create_connection(("127.0.0.1", port), timeout=_STALL_SECONDS) as sock:
        # A timeout of Python's would make the socket non-blocking, and sendfile with it.
        sock.settimeout(None)
        stall = struct.pack("ll", _STALL_SECONDS, 0)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, stall)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, stall)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        yield sock, b"127.0.0.1:%d" % port


def _answer(sock: socket.socket) -> bytes:
    """The answer as far as it comes; its end is the end of its JSON object."""
    answer = b""
    try:
        while not answer.endswith(b"}") and len(answer) < _MAX_ANSWER:
            piece = sock.recv(_MAX_ANSWER)
            if not piece:
                break
            answer += piece
    except BlockingIOError:
        return answer + b" (silent for %d s)" % _STALL_SECONDS
    except OSError as exc:
        return answer + b" (%b)" % str(exc).encode()
    return answer
