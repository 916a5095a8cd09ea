"""The works that are measured: the same request for everyone, and how often."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from load_driver import Request

MB: Final = 1_000_000
KIB: Final = 1024
MIB: Final = 1024**2
GIB: Final = 1024**3
_JSON_BYTES: Final = 1024
_NO_LIMIT: Final = 10**9
_LARGE: Final = MB
"""From so many bytes a request on, bytes a second say more than requests a second."""

_CHARTED: Final = (
    "upload 1 GiB",
    "upload 50 x 20 MiB at once",
    "upload 50 x 100 MiB at once",
    "upload 3 MB",
    "upload 100 KB, 16 at once",
    "GET 1 GiB",
    "JSON, 16 at once",
)

# The upload as iOS sends it. Who cannot make a form of it passes it on as it is.
_UPLOAD_HEAD: Final = (
    "POST /api/assets/background HTTP/1.1\r\nHost: localhost\r\nx-api-key: benchmark\r\n"
    "X-Device-Asset-Id: benchmark/L0/001\r\nX-Filename: IMG_0001.MOV\r\n"
    "X-File-Created-At: 2026-05-04T10:20:30.400Z\r\nX-Content-Type: video/quicktime\r\n"
    "Content-Type: video/quicktime\r\nContent-Length: {length}\r\n{checksum}\r\n"
)
_GET_HEAD: Final = "GET {path} HTTP/1.1\r\nHost: localhost\r\nx-api-key: benchmark\r\n\r\n"


@dataclass(frozen=True)
class Work:
    """One request, sent over `connections` at once; once over each, or for some seconds."""

    name: str
    request: Request
    connections: int = 1
    once: bool = False
    checksum: bool = False
    """Whether the bytes are digested on the way, which only a bridge can do."""
    charted: bool = False
    """Whether it is one of the few that charts show."""

    @property
    def bytes(self) -> int:
        """Bytes of the file that a request moves, up or down."""
        return self.request.file_bytes or self.request.answer_bytes

    @property
    def large(self) -> bool:
        """Whether its speed is told in MB/s rather than in requests."""
        return self.bytes >= _LARGE

    @property
    def requests(self) -> int:
        """Most requests of a round."""
        return self.connections if self.once else _NO_LIMIT

    @property
    def limited(self) -> bool:
        """Whether the limits of a single large upload apply."""
        return self.once and self.connections == 1 and self.request.file_bytes > 0


Digest = Callable[[int], str]
"""SHA-1 in hex of a file of so many bytes."""


def quick_works(sha1: Digest) -> list[Work]:
    """What a few minutes suffice for."""
    works = [
        _upload("upload 1 GiB", GIB, once=True),
        _with_checksum(_upload("upload 1 GiB", GIB, once=True), sha1),
        _upload("upload 50 x 20 MiB at once", 20 * MIB, 50, once=True),
        _upload("upload 3 MB", 3 * MB),
        _upload("upload 100 KB", 100_000),
        _upload("upload 100 KB, 16 at once", 100_000, 16),
        _with_checksum(_upload("upload 100 KB, 16 at once", 100_000, 16), sha1),
        _upload("upload 100 KB, 64 at once", 100_000, 64),
        _download("GET 1 GiB", GIB, once=True),
        _download("GET 3 MB", 3 * MB),
        _json("JSON"),
        _json("JSON, 16 at once", 16),
    ]
    return _charted(works)


def full_works(sha1: Digest) -> list[Work]:
    """Everything."""
    uploads = [
        _upload("upload 1 GiB", GIB, once=True),
        _upload("upload 2 GiB", 2 * GIB, once=True),
        _upload("upload 50 x 100 MiB at once", 100 * MIB, 50, once=True),
        _upload("upload 3 MB", 3 * MB),
        _upload("upload 3 MB, 16 at once", 3 * MB, 16),
        _upload("upload 100 KB", 100_000),
        _upload("upload 100 KB, 16 at once", 100_000, 16),
        _upload("upload 100 KB, 64 at once", 100_000, 64),
    ]
    works = [
        *(each for work in uploads for each in (work, _with_checksum(work, sha1))),
        _download("GET 1 GiB", GIB, once=True),
        _download("GET 3 MB", 3 * MB),
        _download("GET 3 MB, 16 at once", 3 * MB, 16),
        _json("JSON"),
        _json("JSON, 16 at once", 16),
    ]
    return _charted(works)


def tiny_works(sha1: Digest) -> list[Work]:
    """One of each kind, small: shows that the benchmark itself works, and nothing of speed."""
    works = [
        _upload("upload 4 MiB", 4 * MIB, once=True),
        _with_checksum(_upload("upload 100 KB, 4 at once", 100_000, 4), sha1),
        _download("GET 3 MB", 3 * MB),
        _json("JSON"),
    ]
    return [replace(work, charted=True) for work in works]


def _charted(works: list[Work]) -> list[Work]:
    """The works, with those marked that stand for all: large and small, up and down."""
    return [replace(work, charted=work.name in _CHARTED) for work in works]


def _upload(name: str, size: int, connections: int = 1, *, once: bool = False) -> Work:
    head = _UPLOAD_HEAD.format(length=size, checksum="")
    return Work(name, Request(head, size, status=201), connections, once=once)


def _with_checksum(work: Work, sha1: Digest) -> Work:
    size = work.request.file_bytes
    checksum = f"x-immich-checksum: {sha1(size)}\r\n"
    head = _UPLOAD_HEAD.format(length=size, checksum=checksum)
    request = replace(work.request, head=head)
    return replace(work, name=f"{work.name}, checksum", request=request, checksum=True)


def _download(name: str, size: int, connections: int = 1, *, once: bool = False) -> Work:
    head = _GET_HEAD.format(path=f"/api/assets/{size}/original")
    return Work(name, Request(head, answer_bytes=size), connections, once=once)


def _json(name: str, connections: int = 1) -> Work:
    head = _GET_HEAD.format(path="/api/server/about")
    return Work(name, Request(head, answer_bytes=_JSON_BYTES), connections)
