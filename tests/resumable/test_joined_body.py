"""Bodies of several requests, read as one: on real connections, without Immich."""

import asyncio
import hashlib
from collections.abc import AsyncIterator

import pytest
from aiohttp import web

from immich_bridge.body import IncomingBody
from immich_bridge.digests import ExpectedDigest
from immich_bridge.errors import BridgeError, ChecksumMismatch
from immich_bridge.resumable.joined_body import JoinedBody
from immich_bridge.resumable.problems import Superseded
from raw_upload import eventually, jpeg
from wire import PATIENCE, connect, request

PHOTO = jpeg(300_000)
SIZE = len(PHOTO)
HALF = SIZE // 2


class Receiver:
    """A server that gives every body to one `JoinedBody`."""

    def __init__(self, *digests: ExpectedDigest) -> None:
        self.body = JoinedBody(digests)
        self.taken: list[bool | str] = []
        """What became of each body: whether all was taken, or the code of an error."""

    async def handle(self, request: web.Request) -> web.Response:
        try:
            with IncomingBody(request, idle_timeout=60) as body:
                self.taken.append(await self.body.take(body))
        except BridgeError as exc:
            self.taken.append(exc.code)
        return web.Response(text="done")

    async def read_all(self) -> bytes:
        """Everything up to the end."""
        pieces = []
        while piece := await asyncio.wait_for(self.body.read(), PATIENCE):
            pieces.append(piece)
        return b"".join(pieces)

    async def happened(self, count: int) -> None:
        """Return once so many bodies are done with."""
        await eventually(lambda: len(self.taken) >= count)


@pytest.fixture
def receiver() -> Receiver:
    return Receiver()


@pytest.fixture
async def url(receiver: Receiver) -> AsyncIterator[str]:
    async with serving(receiver) as url:
        yield url


class serving:  # noqa: N801 - reads as a function
    """A server on a real port."""

    def __init__(self, receiver: Receiver) -> None:
        app = web.Application()
        app.router.add_put("/", receiver.handle)
        self._runner = web.AppRunner(app, handler_cancellation=True)

    async def __aenter__(self) -> str:
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        return f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()


async def put(url: str, body: bytes) -> None:
    async with connect(url) as peer:
        await peer.send(request("PUT", "/", ("Content-Length", str(len(body))), body=body))
        await peer.read_answer()


async def test_pieces_are_one_body(receiver: Receiver, url: str) -> None:
    reading = asyncio.create_task(receiver.read_all())
    for part in (PHOTO[:1], b"", PHOTO[1:HALF], PHOTO[HALF:]):
        await put(url, part)
    assert receiver.taken == [True] * 4
    assert receiver.body.offset == SIZE
    assert not reading.done()
    receiver.body.end()
    assert await reading == PHOTO


async def test_a_look_at_the_first_bytes_goes_over_pieces(receiver: Receiver, url: str) -> None:
    looking = asyncio.create_task(receiver.body.peek(3))
    await put(url, PHOTO[:2])
    assert not looking.done()
    sending = asyncio.create_task(put(url, PHOTO[2:]))
    assert (await looking)[:3] == PHOTO[:3]
    receiver.body.end()
    assert await receiver.read_all() == PHOTO
    await sending


@pytest.mark.parametrize("how", ["rst", "fin"])
async def test_what_is_cut_off_is_followed_by_the_rest(
    receiver: Receiver, url: str, how: str
) -> None:
    reading = asyncio.create_task(receiver.read_all())
    async with connect(url) as peer:
        await peer.send(request("PUT", "/", ("Content-Length", str(SIZE))), PHOTO[:HALF])
        await eventually(lambda: receiver.body.offset == HALF)
        if how == "rst":
            peer.reset()
    await receiver.body.give_up(Superseded("whoever comes next"))
    assert receiver.body.offset == HALF
    await put(url, PHOTO[HALF:])
    receiver.body.end()
    assert await reading == PHOTO


async def test_what_is_given_up_keeps_what_was_read(receiver: Receiver, url: str) -> None:
    reading = asyncio.create_task(receiver.read_all())
    async with connect(url) as peer:
        await peer.send(request("PUT", "/", ("Content-Length", str(SIZE))), PHOTO[:HALF])
        await eventually(lambda: receiver.body.offset == HALF)
        await receiver.body.give_up(Superseded("another"))
        offset = receiver.body.offset
        await peer.send(PHOTO[HALF : HALF + 1000])
        await receiver.happened(1)
        assert receiver.taken == [Superseded.code]
        assert receiver.body.offset == offset == HALF
    await put(url, PHOTO[HALF:])
    receiver.body.end()
    assert await reading == PHOTO


async def test_nothing_is_given_up_where_nothing_is_sent(receiver: Receiver, url: str) -> None:
    await receiver.body.give_up(Superseded("another"))
    reading = asyncio.create_task(receiver.read_all())
    await put(url, PHOTO)
    receiver.body.end()
    assert await reading == PHOTO


async def test_what_is_not_read_is_not_counted(receiver: Receiver, url: str) -> None:
    """A reader that waits for something else lets go at once, and loses nothing."""
    async with connect(url) as peer:
        await peer.send(request("PUT", "/", ("Content-Length", str(SIZE))), PHOTO[:HALF])
        first = await asyncio.wait_for(receiver.body.read(), PATIENCE)
        await receiver.body.give_up(Superseded("another"))
        offset = receiver.body.offset
        assert offset == len(first)
        await receiver.happened(1)
    reading = asyncio.create_task(receiver.read_all())
    await put(url, PHOTO[offset:])
    receiver.body.end()
    assert first + await reading == PHOTO


async def test_a_reader_that_wants_no_more_takes_no_more(receiver: Receiver, url: str) -> None:
    async with connect(url) as peer:
        await peer.send(request("PUT", "/", ("Content-Length", str(SIZE))), PHOTO[:HALF])
        await asyncio.wait_for(receiver.body.read(), PATIENCE)
        receiver.body.close()
        await receiver.happened(1)
    await put(url, b"more")
    assert receiver.taken == [False, False]


@pytest.mark.parametrize("right", [True, False])
async def test_digests_are_those_of_all_pieces(right: bool) -> None:
    promised = hashlib.sha256(PHOTO if right else PHOTO[:-1]).digest()
    receiver = Receiver(ExpectedDigest("Repr-Digest", "sha256", promised))
    async with serving(receiver) as url:
        reading = asyncio.create_task(receiver.read_all())
        await put(url, PHOTO[:HALF])
        await put(url, PHOTO[HALF:])
        receiver.body.end()
        if right:
            assert await reading == PHOTO
        else:
            with pytest.raises(ChecksumMismatch):
                await reading
