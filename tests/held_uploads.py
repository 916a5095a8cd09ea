"""A client of the photo backup that sends one photo in pieces, and what lies on disk meanwhile."""

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlencode

from backup_wing import Answer, Api, Header
from resumable.urlsession import State, append, ask, creation, interop, read_offer, state_of
from wire import Message, Peer, connect, fetch

HELD = "photo/.held/"


class PiecewiseUpload:
    """One photo on its way to `api`, on as many connections as it takes."""

    def __init__(
        self,
        api: Api,
        file: bytes,
        *,
        version: int = 6,
        local_id: str = "IMG_1234",
        file_type: str = "image/jpeg",
    ) -> None:
        self.api = api
        self.file = file
        self.version = version
        self.target = "/photos/upload/stream?" + urlencode(
            {"local_id": local_id, "file_type": file_type}
        )
        self.location = ""

    @property
    def key(self) -> Header:
        """The token of this moment."""
        return "Authorization", f"Bearer {self.api.token}"

    @asynccontextmanager
    async def begun(
        self, *headers: Header, sent: int | None = None, part: int | None = None
    ) -> AsyncIterator[Peer]:
        """The first request, `sent` bytes of it on their way; `part` is all that it brings."""
        async with connect(self.api.url) as peer:
            head = creation(
                len(self.file) if part is None else part,
                self.key,
                *headers,
                version=self.version,
                complete=part is None,
                route=self.target,
            )
            await peer.send(head)
            self.location = await read_offer(peer, self.version)
            # Not to its end: an early answer leaves the rest unread.
            peer.writer.write(self.file[: part if sent is None else sent])
            yield peer

    async def cut_off(self, *headers: Header, sent: int) -> int:
        """Begin, and lose the connection once `sent` bytes were sent; how far the server came."""
        async with self.begun(*headers, sent=sent):
            offset = (await self.state()).offset
        assert 0 <= offset <= sent
        return offset

    @asynccontextmanager
    async def resumed(self, offset: int, sent: int | None = None) -> AsyncIterator[Peer]:
        """A request for the rest, of which the bytes up to `sent` are on their way."""
        async with connect(self.api.url) as peer:
            rest = len(self.file) - offset
            head = append(self.location, offset, rest, version=self.version, key=self.key)
            peer.writer.write(head + self.file[offset:sent])
            yield peer

    async def ask(self) -> Message:
        """What HEAD is answered."""
        return await ask(self.api.url, self.location, self.version, self.key)

    async def state(self) -> State:
        """How far the server came; it has to know."""
        told = await self.ask()
        assert told.status == 204, told
        return state_of(told, self.version)

    async def finish(self) -> Answer:
        """Ask how far it came, and send the rest."""
        offset = (await self.state()).offset
        async with self.resumed(offset) as peer:
            return Answer(await peer.read_answer())

    async def cancel(self) -> Message:
        """What DELETE is answered."""
        return await fetch(self.api.url, "DELETE", self.location, interop(self.version), self.key)


def held(storage_dir: Path) -> set[str]:
    """The names of the files of unfinished uploads."""
    return {path.name for path in (storage_dir / HELD).glob("*")}


def part_file(storage_dir: Path) -> Path:
    """The part file of the only upload, while nobody sends it."""
    (path,) = (storage_dir / HELD).glob("*.part")
    return path


def durable(path: Path) -> int:
    """How many bytes of a part file count."""
    return int(path.stem.partition("-")[2])


def synced(storage_dir: Path) -> int:
    """How many bytes of the only upload count, also while it is sent."""
    return max(map(durable, (storage_dir / HELD).glob("*.part")), default=0)


def cuts(chance: random.Random, size: int, number: int) -> list[int]:
    """Offsets at which connections are lost."""
    return sorted(chance.randrange(size) for _ in range(number))
