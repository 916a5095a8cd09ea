"""Large bodies pass this process by where they can, and nobody at either end can tell."""

import asyncio
import random
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.client_proto import ResponseHandler

from front import StartBridge, front_of, front_of_a_recorder, let_time_pass
from immich_bridge import splice
from immich_bridge.bridge import relay
from immich_bridge.bridge.exchange import Answer
from immich_bridge.http.connection import Connection
from immich_bridge.serve import Server
from immich_standin import StandIn
from raw_upload import CHUNKED, KEY, NAME, eventually, jpeg, result, upload, upload_request
from wire import PATIENCE, Peer, answer, connect, request

MIB = 1 << 20
PHOTO = jpeg(8 * MIB + 12_345)
DOWNLOAD = request("GET", "/api/assets/1/original")

linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has splice")


class Seen:
    """How many bytes came through the process."""

    def __init__(self) -> None:
        self.bytes = 0


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    """Counts what the protocols at both ends of the bridge are given."""
    seen = Seen()

    def counting(method: Callable[[Any, bytes], None]) -> Callable[[Any, bytes], None]:
        def data_received(self: object, data: bytes) -> None:
            seen.bytes += len(data)
            method(self, data)

        return data_received

    for protocol in (Connection, ResponseHandler):
        monkeypatch.setattr(protocol, "data_received", counting(protocol.data_received))
    return seen


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_an_upload_arrives_whole(
    seen: Seen, passage: str, immich: StandIn, bridge: Server
) -> None:
    told = await upload(bridge.address, PHOTO, NAME)
    assert (told.status, result(told)["status"]) == (201, "created")
    assert immich.assets[0].path.read_bytes() == PHOTO
    if passage == "spliced" and sys.platform == "linux":
        assert seen.bytes < 2 * MIB
    else:
        assert seen.bytes > len(PHOTO)


async def test_an_answer_arrives_whole(seen: Seen, passage: str, start_bridge: StartBridge) -> None:
    async with front_of_a_recorder(start_bridge) as front:
        front.reply = answer(body=PHOTO)
        async with connect(front.url) as peer:
            for _ in range(3):
                await peer.send(DOWNLOAD)
                told = await peer.read_answer()
                assert told.status == 200
                assert told.body == PHOTO
    if passage == "spliced" and sys.platform == "linux":
        assert seen.bytes < 6 * MIB
    else:
        assert seen.bytes > 3 * len(PHOTO)


async def test_a_proxied_body_arrives_whole(
    seen: Seen, passage: str, start_bridge: StartBridge
) -> None:
    async with front_of_a_recorder(start_bridge) as front, connect(front.url) as peer:
        length = ("Content-Length", str(len(PHOTO)))
        await peer.send(request("PUT", "/api/anything", length, body=PHOTO))
        assert (await peer.read_answer()).status == 200
        assert front.seen[0].body == PHOTO
    if passage == "spliced" and sys.platform == "linux":
        assert seen.bytes < 2 * MIB


async def test_a_connection_serves_others_behind_it(immich: StandIn, bridge: Server) -> None:
    photos = [jpeg(size, seed=size) for size in (3 * MIB, 1000, 2 * MIB, 5 * MIB)]
    async with connect(bridge.address) as peer:
        for photo in photos:
            await peer.send(upload_request(photo, KEY, NAME))
            assert (await peer.read_answer()).status == 201
            await peer.send(request("GET", "/api/server/ping"))
            assert (await peer.read_answer()).body == b'{"res":"pong"}'
    assert sorted(a.path.read_bytes() for a in immich.assets) == sorted(photos)


async def test_an_answer_right_behind_the_last_byte_keeps_the_connection(
    start_bridge: StartBridge,
) -> None:
    async with front_of_a_recorder(start_bridge) as front, connect(front.url) as peer:
        message = request("PUT", "/api/anything", ("Content-Length", str(5 * MIB)))
        for _ in range(30):
            await peer.send(message, PHOTO[: 5 * MIB])
            told = await peer.read_answer()
            assert (told.status, told.header("Connection")) == (200, None)


async def test_what_is_sent_right_behind_a_body_is_the_next_request(
    immich: StandIn, bridge: Server
) -> None:
    photos = [jpeg(3 * MIB, seed) for seed in range(3)]
    async with connect(bridge.address) as peer:
        sending = asyncio.create_task(
            peer.send(
                b"".join(upload_request(photo, KEY, NAME) for photo in photos)
                + request("GET", "/api/server/ping")
            )
        )
        for _ in photos:
            assert (await peer.read_answer()).status == 201
        assert (await peer.read_answer()).body == b'{"res":"pong"}'
        await sending
    assert sorted(a.path.read_bytes() for a in immich.assets) == sorted(photos)


class TestIsLeftOut:
    """Where a condition is missing the bytes are copied, and arrive all the same."""

    async def test_when_switched_off(
        self, seen: Seen, immich: StandIn, start_bridge: StartBridge
    ) -> None:
        bridge = await start_bridge(immich.url, FAST_PATH="off")
        assert (await upload(bridge.address, PHOTO, NAME)).status == 201
        assert seen.bytes > len(PHOTO)

    async def test_for_a_body_that_has_to_be_looked_at(
        self, seen: Seen, immich: StandIn, bridge: Server
    ) -> None:
        wrong = ("x-immich-checksum", "0" * 40)
        assert (await upload(bridge.address, PHOTO, NAME, wrong)).status == 422
        assert immich.assets == []
        assert seen.bytes > len(PHOTO)

    async def test_for_a_body_of_unknown_length(
        self, seen: Seen, immich: StandIn, bridge: Server
    ) -> None:
        assert (await upload(bridge.address, PHOTO, NAME, in_chunks=True)).status == 201
        assert immich.assets[0].path.read_bytes() == PHOTO
        assert seen.bytes > len(PHOTO)

    async def test_for_an_answer_of_unknown_length(
        self, seen: Seen, start_bridge: StartBridge
    ) -> None:
        async with front_of_a_recorder(start_bridge) as front, connect(front.url) as peer:
            body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(PHOTO), PHOTO)
            head = f"HTTP/1.1 200 OK\r\n{CHUNKED[0]}: {CHUNKED[1]}\r\n\r\n"
            front.reply = head.encode() + body
            await peer.send(DOWNLOAD)
            assert (await peer.read_answer()).body == PHOTO
            assert seen.bytes > len(PHOTO)


@linux
async def test_cuts_at_any_byte_leave_nothing_open(
    passage: str, immich: StandIn, bridge: Server
) -> None:
    chance = random.Random(7)
    photo = jpeg(300_000)
    message = upload_request(photo, KEY, NAME)

    async def cut() -> None:
        async with connect(bridge.address) as peer:
            await peer.send(message[: chance.randrange(len(message))])
            if chance.random() < 0.5:
                peer.reset()

    assert (await upload(bridge.address, jpeg(2 * MIB), NAME)).status == 201
    await eventually(lambda: immich.open_connections == 0)
    before = descriptors()
    for _ in range(100):
        await asyncio.gather(*(cut() for _ in range(10)))
    await eventually(lambda: immich.open_connections == 0)
    await eventually(lambda: descriptors() <= before)
    assert len(immich.assets) == 1
    # And it goes on as if nothing had been.
    assert (await upload(bridge.address, photo, NAME)).status == 201


@linux
class TestWakingUp:
    """A fast sender is taken in large pieces, and nobody waits for more than there will be."""

    @pytest.fixture
    def patient(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Nothing is moved on for no other reason than that some time has passed."""
        monkeypatch.setattr(splice, "_WAKE_SECONDS", 10 * PATIENCE)

    async def test_not_for_each_packet(
        self, monkeypatch: pytest.MonkeyPatch, immich: StandIn, bridge: Server
    ) -> None:
        waits = 0
        readable = splice._Duplicate.readable

        async def counted(self: splice._Duplicate, least: int) -> None:
            nonlocal waits
            waits += 1
            await readable(self, least)

        monkeypatch.setattr(splice._Duplicate, "readable", counted)
        photo = jpeg(24 * MIB)
        message = upload_request(photo, KEY, NAME)
        async with connect(bridge.address) as peer:
            for begin in range(0, len(message), 32 * 1024):
                await peer.send(message[begin : begin + 32 * 1024])
                await asyncio.sleep(0)
            assert (await peer.read_answer()).status == 201
        assert immich.assets[0].path.read_bytes() == photo
        assert waits <= 120

    @pytest.mark.usefixtures("patient")
    async def test_for_the_last_bytes(self, immich: StandIn, bridge: Server) -> None:
        async with connect(bridge.address) as peer:
            for seed in range(3):
                message = upload_request(jpeg(3 * MIB, seed), KEY, NAME)
                await peer.send(message[:-1000])
                await let_time_pass(0.05)  # until it waits for the rest
                await peer.send(message[-1000:])
                assert (await peer.read_answer()).status == 201
                await peer.send(request("GET", "/api/server/ping"))
                assert (await peer.read_answer()).status == 200
        assert len(immich.assets) == 3

    @pytest.mark.usefixtures("patient")
    async def test_for_the_end_of_a_sender(self, start_bridge: StartBridge) -> None:
        async def broken(peer: Peer) -> None:
            await peer.read_request()
            await peer.send(answer(body=PHOTO)[: 3 * MIB])

        async with (
            front_of(start_bridge, broken) as (bridge, _),
            connect(bridge.address) as peer,
        ):
            await peer.send(DOWNLOAD)
            with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
                await peer.read_answer()

    async def test_for_what_a_slow_sender_has_sent(self, start_bridge: StartBridge) -> None:
        pieces = [2 * MIB + 1000, 10, 1, 300_000]
        arrived = asyncio.Queue[bytes]()

        async def receiving(peer: Peer) -> None:
            await peer.read_head()
            for size in (*pieces, len(PHOTO) - sum(pieces)):
                arrived.put_nowait(await peer.reader.readexactly(size))
            await peer.send(answer())

        async with (
            front_of(start_bridge, receiving) as (bridge, _),
            connect(bridge.address) as peer,
        ):
            await peer.send(request("PUT", "/api/anything", ("Content-Length", str(len(PHOTO)))))
            begin = 0
            for size in (*pieces, len(PHOTO) - sum(pieces)):
                await peer.send(PHOTO[begin : begin + size])
                came = await asyncio.wait_for(arrived.get(), PATIENCE)
                assert came == PHOTO[begin : begin + size]
                begin += size
            assert (await peer.read_answer()).status == 200


@linux
class TestAnswers:
    async def test_that_break_off_break_off_at_the_client(self, start_bridge: StartBridge) -> None:
        async def broken(peer: Peer) -> None:
            await peer.read_request()
            await peer.send(answer(body=PHOTO)[: -MIB // 2])

        async with front_of(start_bridge, broken) as (bridge, _):
            before = descriptors()
            for _ in range(20):
                async with connect(bridge.address) as peer:
                    await peer.send(DOWNLOAD)
                    with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
                        await peer.read_answer()
            await eventually(lambda: descriptors() <= before)

    async def test_arrive_whole_although_immich_has_closed(self, start_bridge: StartBridge) -> None:
        """It does so some seconds after it has written an answer, whoever has read how much."""
        body = jpeg(4 * MIB)
        closed = asyncio.Event()

        async def reply(peer: Peer) -> None:
            await peer.read_request()
            await peer.send(answer(body=body))
            await peer.close()
            closed.set()

        async with (
            front_of(start_bridge, reply) as (bridge, _),
            connect(bridge.address, limit=64 * 1024) as peer,
        ):
            await peer.send(DOWNLOAD)
            head = await peer.read_head()
            await asyncio.wait_for(closed.wait(), PATIENCE)
            assert await peer.read_body(head) == body

    async def test_that_fall_silent_are_cut_off(self, start_bridge: StartBridge) -> None:
        async def silent(peer: Peer) -> None:
            await peer.read_request()
            await peer.send(answer(body=PHOTO)[: 3 * MIB])
            await peer.read_to_end()

        settings = {"UPSTREAM_RESPONSE_TIMEOUT": "500ms"}
        async with (
            front_of(start_bridge, silent, **settings) as (bridge, _),
            connect(bridge.address) as peer,
        ):
            await peer.send(DOWNLOAD)
            with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
                await peer.read_answer()

    async def test_that_nobody_reads_are_not_silent(self, start_bridge: StartBridge) -> None:
        """The time in which the client takes nothing is not Immich's."""
        body = jpeg(24 * MIB)

        async def reply(peer: Peer) -> None:
            await peer.read_request()
            await peer.send(answer(body=body))

        settings = {"UPSTREAM_RESPONSE_TIMEOUT": "300ms"}
        async with (
            front_of(start_bridge, reply, **settings) as (bridge, _),
            connect(bridge.address, limit=64 * 1024) as peer,
        ):
            await peer.send(DOWNLOAD)
            head = await peer.read_head()
            await let_time_pass(1.0)
            assert await peer.read_body(head) == body

    async def test_that_are_read_slowly_are_not_silent(
        self, start_bridge: StartBridge, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Not even if the connection to Immich had been paused before, with a full buffer."""
        body = jpeg(40 * MIB)
        move = relay._move

        async def move_late(request: web.Request, upstream: Answer) -> bool:
            await let_time_pass(0.1)
            return await move(request, upstream)

        async def reply(peer: Peer) -> None:
            await peer.read_request()
            await peer.send(answer(body=body))

        monkeypatch.setattr(relay, "_move", move_late)
        settings = {"UPSTREAM_RESPONSE_TIMEOUT": "300ms"}
        async with (
            front_of(start_bridge, reply, **settings) as (bridge, _),
            connect(bridge.address, limit=64 * 1024) as peer,
        ):
            await peer.send(DOWNLOAD)
            await peer.read_head()
            received = bytearray()
            while len(received) < len(body):
                received += await peer.reader.readexactly(2 * MIB)
                await let_time_pass(0.04)
            assert received == body

    async def test_that_nobody_wants_any_more_let_go_of_immich(
        self, start_bridge: StartBridge
    ) -> None:
        left = asyncio.Event()

        async def endless(peer: Peer) -> None:
            await peer.read_request()
            await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n")
            with suppress(ConnectionError):
                while True:
                    await peer.send(bytes(MIB))
            left.set()

        async with front_of(start_bridge, endless) as (bridge, _):
            before = descriptors()
            async with connect(bridge.address) as peer:
                await peer.send(DOWNLOAD)
                await peer.read_head()
                await peer.reader.readexactly(5 * MIB)
            await asyncio.wait_for(left.wait(), PATIENCE)
            await eventually(lambda: descriptors() <= before)
