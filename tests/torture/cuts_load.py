"""Clients of both wings that work until their server stops, and remember what it told them."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from hashlib import sha1
from typing import Final

from backup_uploads import ROUTES, Route, upload_request
from front import let_time_pass
from raw_upload import KEY, pieces_of
from raw_upload import ROUTE as BACKGROUND
from torture.cuts_requests import Stored, photo
from wire import Message, Peer, connect, request

_EXPECT: Final = ("Expect", "100-continue")
_PIECES: Final = 8
"""Pieces in which a slow client sends."""
_SHORT_PAUSE: Final = 0.05
_LONG_PAUSE: Final = 10.0
"""Between two pieces: an upload that no grace of the tests outlives."""
_SOCKET_IO: Final = request(
    "GET",
    "/api/socket.io/?EIO=4&transport=websocket",
    ("Connection", "Upgrade"),
    ("Upgrade", "websocket"),
    ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ("Sec-WebSocket-Version", "13"),
)


@dataclass
class Upload:
    """One upload, as its client knows it."""

    name: str
    route: Route | None
    """Of the photo backup; None: to Immich."""
    size: int
    sha1: bytes
    ends: bool
    """Whether it takes less time than a grace."""
    accepted: bool = False
    """Whether the server asked for the body (100 Continue)."""
    ended: bool = False
    status: int | None = None
    """Of the answer; None as long as there is none."""

    @property
    def acknowledged(self) -> bool:
        """Whether the client holds it for stored."""
        return self.status in (200, 201)


@dataclass
class Load:
    """All clients of one server, and what came of their requests."""

    url: str
    token: str | None
    chance: random.Random
    local_ids: Iterator[str]
    """Photos that are indexed, each to be uploaded once."""
    download: Stored
    endless: bool
    """Whether there are uploads too that do not end."""
    uploads: list[Upload] = field(default_factory=list)
    downloaded: int = 0
    broken_off: int = 0
    """Answers that ended too early, and could be seen to."""
    sockets_ended: int = 0

    @property
    def under_way(self) -> list[Upload]:
        """Uploads that the server has accepted and not answered, and that do end."""
        uploads = self.uploads
        return [each for each in uploads if each.accepted and not each.ended and each.ends]

    @property
    def acknowledged(self) -> list[Upload]:
        """Uploads that were answered with success."""
        return [each for each in self.uploads if each.acknowledged]

    @property
    def is_going(self) -> bool:
        """Whether each slow client has an upload under way, and somebody was answered."""
        return len(self.under_way) >= len(_SLOW) and bool(self.acknowledged and self.downloaded)

    async def run(self) -> None:
        """Work until the server has gone."""
        clients: list[Awaitable[None]] = [self._browse() for _ in range(2)]
        clients += [self._idle() for _ in range(4)]
        clients += [self._upload_on(route, 0.0) for route in (None, None, *ROUTES)]
        clients += [self._upload_on(route, _SHORT_PAUSE) for route in _SLOW]
        if self.endless:
            clients += [self._upload_on(route, _LONG_PAUSE) for route in (None, *ROUTES)]
        await asyncio.gather(*clients)

    async def _upload_on(self, route: Route | None, pause: float) -> None:
        chance = self._own_chance()
        async with _until_the_server_is_gone():
            while True:
                name = next(self.local_ids, None)
                assert name is not None, "the server takes requests for ever"
                content = photo(chance, chance.randrange(200_000, 2_500_000))
                digest = sha1(content, usedforsecurity=False).digest()
                upload = Upload(name, route, len(content), digest, ends=pause < _LONG_PAUSE)
                self.uploads.append(upload)
                head, body = self._request(upload, content, *([_EXPECT] if pause else []))
                pauses = [chance.uniform(0, 2 * pause) for _ in range(_PIECES)] if pause else []
                try:
                    answer = await self._send(upload, head, body, pauses)
                    upload.status = answer.status
                finally:
                    upload.ended = True

    def _request(
        self, upload: Upload, content: bytes, *headers: tuple[str, str]
    ) -> tuple[bytes, bytes]:
        if upload.route is not None:
            return upload_request(upload.route, self.token, content, *headers, local_id=upload.name)
        named = ("X-Filename", f"{upload.name}.jpg")
        length = ("Content-Length", str(len(content)))
        return request("POST", BACKGROUND, KEY, named, length, *headers), content

    async def _send(
        self, upload: Upload, head: bytes, body: bytes, pauses: Sequence[float]
    ) -> Message:
        async with connect(self.url) as peer:
            if not pauses:
                await peer.send(head, body)
                return await peer.read_answer("POST")
            await peer.send(head)
            invited = await peer.read_head()
            if invited.status != 100:
                return invited
            upload.accepted = True
            # The answer may come before the end of the body, and so may that of the connection.
            sending = asyncio.create_task(_send_slowly(peer, body, pauses))
            try:
                return await peer.read_answer("POST")
            finally:
                sending.cancel()

    async def _browse(self) -> None:
        chance = self._own_chance()
        async with _until_the_server_is_gone():
            while True:
                async with connect(self.url) as peer:
                    await self._browse_on(peer, chance)

    async def _browse_on(self, peer: Peer, chance: random.Random) -> None:
        answer: Message | None = None
        while answer is None or answer.header("Connection") != "close":
            target = chance.choice([self.download.path, "/api/server/ping"])
            await peer.send(request("GET", target, KEY))
            head = await peer.read_head()
            try:
                head.body = await peer.read_body(head)
            except (ConnectionError, asyncio.IncompleteReadError):
                self.broken_off += 1
                raise
            answer = head
            assert answer.status == 200, answer
            if target == self.download.path:
                whole = answer.body == self.download.content
                assert whole, f"{len(answer.body)} bytes pass for a whole answer"
                self.downloaded += 1

    async def _idle(self) -> None:
        async with connect(self.url) as peer:
            await peer.send(_SOCKET_IO)
            assert (await peer.read_head()).status == 101
            with suppress(ConnectionError):
                while await peer.reader.read(1024):
                    pass
        self.sockets_ended += 1

    def _own_chance(self) -> random.Random:
        """What one client draws does not depend on how fast the others are."""
        return random.Random(self.chance.random())


async def _send_slowly(peer: Peer, body: bytes, pauses: Sequence[float]) -> None:
    with suppress(ConnectionError):
        for piece, pause in zip(pieces_of(body, len(body) // len(pauses) + 1), pauses, strict=True):
            await peer.send(piece)
            await let_time_pass(pause)


@asynccontextmanager
async def _until_the_server_is_gone() -> AsyncIterator[None]:
    with suppress(ConnectionError, asyncio.IncompleteReadError):
        yield


_SLOW: Final[tuple[Route | None, ...]] = (None, None, *ROUTES)
"""What the slow clients upload to."""
