"""The files in which chunks lie, and what their names tell of them.

A name has the number of the chunk, the SHA-256 of its bytes, and which photo lay in the place of
theirs when it came, if one did. All of it works on the disk, and blocks.
"""

import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

_COPY_BUFFER: Final = 1024 * 1024


@dataclass(frozen=True)
class ChunkFile:
    """One chunk: its SHA-256 in hexadecimal digits, its bytes, and what `photo_at` gave then."""

    path: Path
    digest: str
    size: int
    replaces: str


def chunk_name(number: int, digest: str, replaces: str) -> str:
    """The name of a chunk's file."""
    return "-".join(filter(None, (str(number), digest, replaces)))


def chunks_in(folder: Path) -> dict[int, ChunkFile]:
    """The chunks in a folder, by number."""
    chunks = {}
    # Every chunk looks at all that came before it: pathlib would take five times as long.
    with suppress(FileNotFoundError), os.scandir(folder) as files:
        for file in files:
            number, _, rest = file.name.partition("-")
            if number.isdigit():
                digest, _, replaces = rest.partition("-")
                chunks[int(number)] = ChunkFile(
                    Path(file.path), digest, file.stat().st_size, replaces
                )
    return chunks


def photo_at(place: Path) -> str:
    """Which photo lies there, in a few letters; none if there is none.

    It stays the same for one that is put back after an upload that failed, or that is given
    another time.
    """
    try:
        status = place.stat()
    except FileNotFoundError:
        return ""
    return f"{status.st_ino:x}-{status.st_size:x}"


def are_outdated(chunks: Mapping[int, ChunkFile], photo: str) -> bool:
    """Whether some of them came before `photo`, as `photo_at` gives it, was there."""
    return any(chunk.replaces != photo for chunk in chunks.values())


def are_joined_at(chunks: Mapping[int, ChunkFile], place: Path) -> bool:
    """Whether the photo at `place` is what the chunks make when they are joined."""
    with suppress(FileNotFoundError), place.open("rb") as photo:
        if os.fstat(photo.fileno()).st_size != sum(chunk.size for chunk in chunks.values()):
            return False
        return all(_goes_on_with(photo, chunks[number].path) for number in sorted(chunks))
    return False


def copy_in_order(chunks: Mapping[int, ChunkFile], joined: BinaryIO) -> None:
    """Write all of them, one behind the other."""
    for number in sorted(chunks):
        with chunks[number].path.open("rb") as chunk:
            shutil.copyfileobj(chunk, joined, _COPY_BUFFER)


def _goes_on_with(photo: BinaryIO, path: Path) -> bool:
    with path.open("rb") as chunk:
        while block := chunk.read(_COPY_BUFFER):
            if photo.read(len(block)) != block:
                return False
    return True
