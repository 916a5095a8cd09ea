"""The requests whose connections are cut: what each sends, and what a good answer to it is."""

import gzip
import random
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import sha1
from typing import Final, Literal, get_args

from backup_uploads import Route, upload_request
from backup_wing import multipart
from raw_upload import CHUNKED, KEY, pieces_of
from raw_upload import ROUTE as BACKGROUND
from wire import Message, chunked, connect, request

Kind = Literal[
    "upload",
    "chunked upload",
    "form",
    "put",
    "chunked put",
    "download",
    "listing",
    "backup form",
    "backup raw",
    "backup chunk",
]
BACKUP_KINDS: Final[Mapping[Kind, Route]] = {
    "backup form": "form",
    "backup raw": "raw",
    "backup chunk": "chunk",
}
IMMICH_KINDS: Final = tuple(kind for kind in get_args(Kind) if kind not in BACKUP_KINDS)
CONFIRMED: Final[frozenset[Kind]] = frozenset({"upload", "chunked upload"})
"""Kinds whose answer the bridge reads to its end before it says a word to the client."""
READS: Final[frozenset[Kind]] = frozenset({"download", "listing"})
"""Kinds that only read."""

PUT_PATH: Final = "/api/put/"
"""Where Immich takes the body of any PUT, as the tests tell it to."""
_BLOCK: Final = random.Random(4).randbytes(6 * 1024 * 1024) * 5
_DATES: Final = ("fileCreatedAt", "fileModifiedAt")
_SENT_AT_ONCE: Final = 64 * 1024
_SMALL_CHUNK: Final = 50_000


@dataclass(frozen=True)
class Stored:
    """What there is to read at Immich."""

    path: str
    content: bytes
    gzipped: bool = False
    """Whether it comes compressed, and so in chunks of no announced length."""


@dataclass(frozen=True)
class Ask:
    """One request, and what it is about."""

    kind: Kind
    name: str
    """Its `X-Request-Id`, and the name of the photo."""
    head: bytes = field(repr=False)
    body: bytes = field(repr=False)
    content: bytes = field(repr=False)
    """What has to arrive: at Immich or on disk, or at the client for a kind that only reads."""
    gzipped: bool = False

    @property
    def size(self) -> int:
        """Bytes on the wire."""
        return len(self.head) + len(self.body)

    @property
    def filename(self) -> str:
        """What Immich calls the asset."""
        return f"{self.name}.jpg"

    @property
    def sha1(self) -> bytes:
        """The digest of the content, by which Immich knows its assets."""
        return sha1(self.content, usedforsecurity=False).digest()

    def brought(self, answer: Message) -> bool:
        """Whether the answer to a request that only reads holds all of it."""
        body = gzip.decompress(answer.body) if self.gzipped else answer.body
        return body == self.content

    async def sent_to(self, url: str) -> Message:
        """Send it, and read the answer, also one that comes early.

        Raises `ConnectionError` or `IncompleteReadError` when the connection ends before the
        answer does.
        """
        async with connect(url) as peer:
            # Not `send`: how long the bytes may take is for the bridge to say.
            for piece in pieces_of(self.head + self.body, _SENT_AT_ONCE):
                peer.writer.write(piece)
            try:
                return await peer.read_answer()
            except BaseException:
                # A FIN would wait behind what could not be sent, and nobody would see it.
                with suppress(OSError):  # closed already
                    peer.reset()
                raise
            finally:
                peer.writer.transport.abort()


def photo(chance: random.Random, size: int) -> bytes:
    """`size` bytes that are like no others."""
    return chance.randbytes(32)[:size] + _BLOCK[32:size]


def upload_size(chance: random.Random) -> int:
    """Half of them are large enough that the kernel moves their bytes."""
    bounds = (100_000, 1_000_000) if chance.random() < 0.5 else (1_200_000, 6_000_000)
    return chance.randrange(*bounds)


def ask_immich(kind: Kind, name: str, content: bytes, stored: Mapping[str, Stored]) -> Ask:
    """A request that goes on to Immich; `stored` is what there is to read, by kind."""
    headers: tuple[tuple[str, str], ...] = (("X-Request-Id", name), KEY)
    if kind in READS:
        read = stored[kind]
        accepted = ("Accept-Encoding", "gzip" if read.gzipped else "identity")
        head = request("GET", read.path, *headers, accepted)
        return Ask(kind, name, head, b"", read.content, read.gzipped)
    filename = f"{name}.jpg"
    method, target, body = "POST", BACKGROUND, content
    if kind == "form":
        dates = [(each, "2026-11-21T10:00:00Z", None) for each in _DATES]
        content_type, body = multipart(*dates, ("assetData", content, filename))
        target, headers = "/api/assets", (*headers, content_type)
    elif kind in ("put", "chunked put"):
        method, target = "PUT", f"{PUT_PATH}{name}"
    else:
        headers = (*headers, ("X-Filename", filename))
    if kind.startswith("chunked"):
        headers, body = (*headers, CHUNKED), chunked(*pieces_of(body, _SMALL_CHUNK))
    else:
        headers = (*headers, ("Content-Length", str(len(body))))
    return Ask(kind, name, request(method, target, *headers), body, content)


def ask_backup(kind: Kind, name: str, content: bytes, token: str | None) -> Ask:
    """An upload to the backup wing of the photo `name`, which has to be indexed."""
    header = ("X-Request-Id", name)
    head, body = upload_request(BACKUP_KINDS[kind], token, content, header, local_id=name)
    return Ask(kind, name, head, body, content)
