"""The files of a soak: none like another, made without keeping more than a block in memory."""

import base64
import hashlib
import random
from collections.abc import AsyncIterator
from typing import Final

_PIECE: Final = 256 * 1024
_BLOCK: Final = memoryview(random.Random(1).randbytes(16 * 1024 * 1024))
_UNIQUE: Final = 32


class Photo:
    """`size` bytes: some of its own first, then the block all over."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._start = random.randbytes(_UNIQUE)

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self.pieces()

    async def pieces(self) -> AsyncIterator[bytes]:
        """The bytes, as the body of a request."""
        for piece in self._pieces():
            yield bytes(piece)

    @property
    def content(self) -> bytes:
        """All bytes at once."""
        return b"".join(self._pieces())

    @property
    def sha1(self) -> str:
        """The digest in hex, as Immich's clients send it."""
        digest = hashlib.sha1(usedforsecurity=False)
        for piece in self._pieces():
            digest.update(piece)
        return digest.hexdigest()

    @property
    def repr_digest(self) -> str:
        """The digest as RFC 9530 writes it."""
        digest = hashlib.sha256()
        for piece in self._pieces():
            digest.update(piece)
        return f"sha-256=:{base64.b64encode(digest.digest()).decode()}:"

    def _pieces(self) -> list[bytes | memoryview]:
        pieces: list[bytes | memoryview] = [self._start]
        position = _UNIQUE
        while position < self.size:
            offset = position % len(_BLOCK)
            pieces.append(_BLOCK[offset : min(offset + _PIECE, offset + self.size - position)])
            position += len(pieces[-1])
        return pieces
