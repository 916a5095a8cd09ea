"""Bad luck in the middle of a resumable upload: the photo is right, or it is not there."""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from front import StartBridge, front_of, let_time_pass
from immich_bridge.serve import Server
from immich_standin import Behaviour, StandIn
from log_capture import written_log
from raw_upload import (
    KEY,
    NAME,
    Flood,
    assert_error,
    assert_nothing_stored,
    eventually,
    jpeg,
    upload,
)
from resumable.urlsession import (
    Cut,
    UploadTask,
    append,
    ask,
    completeness,
    creation,
    interop,
    read_offer,
    resume,
    state,
    state_of,
)
from wire import Message, Peer, answer, connect, fetch

MIB = 1 << 20
PHOTO = jpeg(700_001)
SIZE = len(PHOTO)
HALF = SIZE // 2
LARGE = jpeg(24 * MIB + 1)
"""More than what the kernel and the bridge hold of an upload."""
PROBLEMS = "https://iana.org/assignments/http-problem-types#"


def assert_stored(immich: StandIn, told: Message, photo: bytes = PHOTO) -> None:
    """Immich holds just this photo, and the client has heard so."""
    assert told.status == 201, told
    [asset] = immich.assets
    assert (asset.path.read_bytes() == photo) is True
    assert immich.files() == [asset.path]
    assert told.header("X-Immich-Asset-Id") == asset.id


async def assert_cancelled(immich: StandIn) -> None:
    """Immich's request has ended before it was whole, and nothing is left of it."""
    seen = await immich.wait_for_abort(5)
    assert not seen.completed
    assert_nothing_stored(immich)
    await eventually(lambda: immich.open_connections == 0)


@asynccontextmanager
async def sending(url: str, *pieces: bytes, size: int | None = SIZE) -> AsyncIterator[
    tuple[Peer, str]
]:
    """An upload under way, of which `pieces` were sent."""
    async with connect(url) as peer:
        await peer.send(creation(size))
        location = await read_offer(peer)
        await peer.send(*pieces)
        yield peer, location


async def held(immich: StandIn, url: str, sent: bytes = PHOTO[:HALF]) -> str:
    """An upload whose connection was cut; its URL."""
    async with sending(url, sent) as (peer, location):
        await immich.wait_for_request(lambda seen: seen.body_received > len(sent) // 2)
        peer.reset()
    return location


class TestASlowImmich:
    @pytest.mark.parametrize("how", ["rst", "fin"])
    async def test_gets_every_byte_once(
        self, immich: StandIn, bridge: Server, how: str
    ) -> None:
        """What was in the pipe at the cut is lost with it, and was not counted."""
        immich.behaviour = Behaviour(stall_after=100_000)
        async with sending(bridge.address, size=len(LARGE)) as (peer, location):
            flood = Flood(peer, LARGE)
            await flood.stalled()
            if how == "rst":
                peer.reset()
            else:
                peer.writer.transport.abort()
            await flood.ended()
        immich.behaviour.release()
        known = await state(bridge.address, location)
        assert 0 < known.offset < len(LARGE)
        told = await resume(bridge.address, location, known.offset, LARGE[known.offset :])
        assert_stored(immich, told, LARGE)
        assert len(immich.requests) == 1

    async def test_holds_nobody_up_who_asks(self, immich: StandIn, bridge: Server) -> None:
        """The upload is at rest, though Immich takes nothing; and moves on when it does."""
        immich.behaviour = Behaviour(stall_after=100_000)
        async with sending(bridge.address, size=len(LARGE)) as (peer, location):
            flood = Flood(peer, LARGE)
            await flood.stalled()
            async with asyncio.timeout(3):
                first = await state(bridge.address, location)
            await flood.ended()
        assert await state(bridge.address, location) == first
        async with connect(bridge.address) as peer:
            rest = LARGE[first.offset :]
            await peer.send(append(location, first.offset, len(rest)))
            flood = Flood(peer, rest)
            async with asyncio.timeout(3):
                second = await state(bridge.address, location)
            await flood.ended()
        assert second.offset >= first.offset
        immich.behaviour.release()
        rest = LARGE[second.offset :]
        assert_stored(immich, await resume(bridge.address, location, second.offset, rest), LARGE)


    async def test_holds_nobody_up_however_little_came(
        self, immich: StandIn, bridge: Server
    ) -> None:
        """A few bytes wait in this process for Immich, and so would the rest."""
        immich.behaviour = Behaviour(stall_after=100_000)
        async with sending(bridge.address, size=len(LARGE)) as (peer, location):
            flood = Flood(peer, LARGE)
            await flood.stalled()
            offset = (await state(bridge.address, location)).offset
            await flood.ended()
        async with connect(bridge.address) as peer:
            rest = LARGE[offset:]
            await peer.send(append(location, offset, len(rest)), rest[:1000])
            await let_time_pass(0.05)
            flood = Flood(peer, rest[1000:])
            await flood.stalled()
            async with asyncio.timeout(3):
                known = await state(bridge.address, location)
            await flood.ended()
        assert known.offset >= offset
        immich.behaviour.release()
        rest = LARGE[known.offset :]
        assert_stored(immich, await resume(bridge.address, location, known.offset, rest), LARGE)


class TestTheOldConnection:
    async def test_ends_when_somebody_asks(self, immich: StandIn, bridge: Server) -> None:
        """It may be dead without a FIN; so whoever comes next is believed."""
        async with sending(bridge.address, PHOTO[:HALF]) as (peer, location):
            await immich.wait_for_request(lambda seen: seen.body_received >= HALF)
            known = await state(bridge.address, location)
            assert known.offset == HALF
            assert await peer.read_to_end() == b""
        assert_stored(immich, await resume(bridge.address, location, HALF, PHOTO[HALF:]))

    async def test_ends_when_another_sends(self, immich: StandIn, bridge: Server) -> None:
        async with sending(bridge.address, PHOTO[:HALF]) as (peer, location):
            await immich.wait_for_request(lambda seen: seen.body_received >= HALF)
            assert_stored(immich, await resume(bridge.address, location, HALF, PHOTO[HALF:]))
            assert await peer.read_to_end() == b""

    async def test_that_sends_on_never_makes_the_offset_a_lie(
        self, immich: StandIn, bridge: Server
    ) -> None:
        """HEAD in the middle of a stream of bytes: what it says stays true."""
        offset, location, asked = 0, "", 0
        while True:
            async with connect(bridge.address) as peer:
                if location:
                    await peer.send(append(location, offset, len(LARGE) - offset))
                else:
                    await peer.send(creation(len(LARGE)))
                    location = await read_offer(peer)
                flood = Flood(peer, LARGE[offset:])
                goal = min(flood.sent + 3 * MIB, len(LARGE) - offset)
                await eventually(lambda: flood.sent >= goal)  # noqa: B023 - at once
                if offset + flood.sent == len(LARGE):
                    told = await peer.read_answer()
                    break
                known = await state(bridge.address, location)
                asked += 1
                assert known.offset >= offset
                offset = known.offset
                await flood.ended()
        assert asked > 2
        assert_stored(immich, told, LARGE)

    async def test_ends_for_one_of_two_that_resume_at_once(
        self, immich: StandIn, bridge: Server
    ) -> None:
        location = await held(immich, bridge.address)
        offset = (await state(bridge.address, location)).offset

        async def go_on() -> Message | None:
            try:
                return await resume(bridge.address, location, offset, PHOTO[offset:])
            except (ConnectionError, asyncio.IncompleteReadError):
                return None  # it was ended for the other

        tellings = await asyncio.gather(*(go_on() for _ in range(4)))
        told = [each for each in tellings if each is not None]
        assert {each.status for each in told} <= {201, 409}
        # Each may have ended the one before it; what they have brought goes on all the same.
        final = await UploadTaskAt(bridge.address, location).finish()
        assert_stored(immich, final)
        assert len(immich.requests) == 1


class UploadTaskAt(UploadTask):
    """A client that knows the URL of its upload from before."""

    def __init__(self, url: str, location: str, file: bytes = PHOTO) -> None:
        super().__init__(url, file)
        self.location = location

    async def finish(self) -> Message:
        """Upload what is missing."""
        return await self.run()


class TestOffsets:
    @pytest.mark.parametrize("offset", [0, 1, HALF - 1, HALF + 1, SIZE, 999_999_999_999_999])
    @pytest.mark.parametrize("version", [3, 6])
    async def test_that_are_wrong_are_told_the_right_one(
        self, immich: StandIn, bridge: Server, offset: int, version: int
    ) -> None:
        async with connect(bridge.address) as peer:
            await peer.send(creation(HALF, version=version, complete=False), PHOTO[:HALF])
            location = await read_offer(peer, version)
            await peer.read_answer()
        told = await resume(bridge.address, location, offset, b"", version=version, complete=False)
        assert told.status == 409
        assert told.header("X-Bridge-Error") == "conflict"
        assert told.header("Content-Type") == "application/problem+json"
        known = state_of(told, version)
        assert (known.offset, known.complete) == (HALF, False)
        problem = json.loads(told.body)
        assert problem["type"] == f"{PROBLEMS}mismatching-upload-offset"
        assert (problem["expected-offset"], problem["provided-offset"]) == (HALF, offset)
        # It has done no harm.
        rest = PHOTO[HALF:]
        told = await resume(bridge.address, location, HALF, rest, version=version)
        assert_stored(immich, told)


def assert_inconsistent(told: Message) -> None:
    assert told.status == 400, told
    assert told.header("X-Bridge-Error") == "bad_request"
    assert told.header("Content-Type") == "application/problem+json"
    assert json.loads(told.body)["type"] == f"{PROBLEMS}inconsistent-upload-length"


def length(size: int) -> tuple[str, str]:
    return "Upload-Length", str(size)


class TestLengths:
    """The whole is as long as was said, or it is nothing."""

    @pytest.mark.parametrize(
        ("content_length", "said", "complete"),
        [(SIZE, SIZE + 1, True), (SIZE, SIZE - 1, True), (SIZE, SIZE - 1, False), (SIZE, 0, False)],
    )
    async def test_that_contradict_themselves_at_first(
        self, immich: StandIn, bridge: Server, content_length: int, said: int, complete: bool
    ) -> None:
        async with connect(bridge.address) as peer:
            await peer.send(creation(content_length, length(said), complete=complete), PHOTO)
            assert_inconsistent(await peer.read_answer())
        assert immich.requests == []

    @pytest.mark.parametrize(
        ("size", "headers", "complete"),
        [
            (SIZE - HALF, [length(SIZE + 1)], True),
            (SIZE - HALF, [length(SIZE - 1)], False),
            (SIZE - HALF - 1, [], True),
            (SIZE - HALF + 1, [], True),
            (SIZE - HALF + 1, [], False),
        ],
    )
    async def test_that_contradict_what_was_said_before(
        self,
        immich: StandIn,
        bridge: Server,
        size: int,
        headers: list[tuple[str, str]],
        complete: bool,
    ) -> None:
        location = await held(immich, bridge.address)
        offset = (await state(bridge.address, location)).offset
        assert offset == HALF
        body = (PHOTO + b"?")[offset : offset + size]
        told = await resume(bridge.address, location, offset, body, *headers, complete=complete)
        assert_inconsistent(told)
        assert immich.assets == []
        assert_stored(immich, await UploadTaskAt(bridge.address, location).finish())

    @pytest.mark.parametrize("size", [SIZE - 1, SIZE + 1])
    async def test_that_show_at_the_end_of_chunks(
        self, immich: StandIn, bridge: Server, size: int
    ) -> None:
        body = (PHOTO + b"?")[:size]
        async with connect(bridge.address) as peer:
            await peer.send(creation(None, length(SIZE)))
            location = await read_offer(peer)
            await peer.send(b"%x\r\n%b\r\n0\r\n\r\n" % (size, body))
            assert_inconsistent(await peer.read_answer())
        await assert_cancelled(immich)
        assert (await ask(bridge.address, location)).status == 404

    @pytest.mark.parametrize("extra", [-1, 1])
    async def test_that_show_at_the_end_of_later_chunks(
        self, immich: StandIn, bridge: Server, extra: int
    ) -> None:
        location = await held(immich, bridge.address)
        offset = (await state(bridge.address, location)).offset
        body = (PHOTO + b"?")[offset : SIZE + extra]
        async with connect(bridge.address) as peer:
            await peer.send(append(location, offset, None))
            await peer.send(b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))
            assert_inconsistent(await peer.read_answer())
        await assert_cancelled(immich)
        assert (await ask(bridge.address, location)).status == 404

    async def test_that_nobody_knew_before_the_end(self, immich: StandIn, bridge: Server) -> None:
        """The form goes to Immich in chunks, which nothing may pass by."""
        async with connect(bridge.address) as peer:
            await peer.send(creation(HALF, complete=False), PHOTO[:HALF])
            location = await read_offer(peer)
            await peer.read_answer()
        assert (await state(bridge.address, location)).length is None
        assert_stored(immich, await resume(bridge.address, location, HALF, PHOTO[HALF:]))

    async def test_that_are_known_are_announced_to_immich(
        self, immich: StandIn, bridge: Server
    ) -> None:
        async with connect(bridge.address) as peer:
            await peer.send(creation(HALF, length(SIZE), complete=False), PHOTO[:HALF])
            location = await read_offer(peer)
            await peer.read_answer()
        assert (await state(bridge.address, location)).length == SIZE
        assert_stored(immich, await resume(bridge.address, location, HALF, PHOTO[HALF:]))
        assert int(immich.requests[0].header("Content-Length") or 0) > SIZE

    async def test_of_nothing(self, immich: StandIn, bridge: Server) -> None:
        async with connect(bridge.address) as peer:
            await peer.send(creation(0))
            await read_offer(peer)
            assert_error(await peer.read_answer(), 400, "bad_request")
        assert immich.requests == []


class TestStrangers:
    @pytest.mark.parametrize("method", ["HEAD", "PATCH", "DELETE"])
    async def test_find_nothing(self, immich: StandIn, bridge: Server, method: str) -> None:
        location = await held(immich, bridge.address)
        known = await state(bridge.address, location)
        headers = [interop(6), completeness(6, True), ("Upload-Offset", str(known.offset))]
        headers.append(("Content-Type", "application/partial-upload"))
        others = [
            [("x-api-key", "another")],
            [],
            [KEY, ("Authorization", "Bearer x")],
            [("Authorization", f"Bearer {StandIn.api_key}")],
        ]
        for other in others:
            told = await fetch(bridge.address, method, location, *headers, *other, body=b"x")
            assert (told.status, told.header("X-Bridge-Error")) == (404, "not_found")
        for unknown in ("/uploads/x", location[:-1], location + "x"):
            told = await fetch(bridge.address, method, unknown, *headers, KEY, body=b"x")
            assert (told.status, told.header("X-Bridge-Error")) == (404, "not_found")
        assert await state(bridge.address, location) == known

    async def test_do_not_end_what_is_sent(self, immich: StandIn, bridge: Server) -> None:
        async with sending(bridge.address, PHOTO[:HALF]) as (peer, location):
            told = await ask(bridge.address, location, key=("x-api-key", "another"))
            assert told.status == 404
            await peer.send(PHOTO[HALF:])
            assert_stored(immich, await peer.read_answer())


class TestCancelledUploads:
    @pytest.mark.parametrize("at_once", [1, 3])
    async def test_are_gone(self, immich: StandIn, bridge: Server, at_once: int) -> None:
        location = await held(immich, bridge.address)

        async def cancel() -> int:
            return (await fetch(bridge.address, "DELETE", location, interop(6), KEY)).status

        statuses = await asyncio.gather(*(cancel() for _ in range(at_once)))
        assert sorted(statuses) == [204] + [404] * (at_once - 1)
        await assert_cancelled(immich)
        assert (await ask(bridge.address, location)).status == 404
        assert await cancel() == 404

    async def test_end_for_whoever_sends_them(self, immich: StandIn, bridge: Server) -> None:
        async with sending(bridge.address, PHOTO[:HALF]) as (peer, location):
            await immich.wait_for_request(lambda seen: seen.body_received > 0)
            told = await fetch(bridge.address, "DELETE", location, interop(6), KEY)
            assert told.status == 204
            assert await peer.read_to_end() == b""
        await assert_cancelled(immich)

    async def test_that_immich_has_already_stay_there(
        self, immich: StandIn, bridge: Server
    ) -> None:
        async with sending(bridge.address, PHOTO) as (peer, location):
            assert_stored(immich, await peer.read_answer())
        told = await fetch(bridge.address, "DELETE", location, interop(6), KEY)
        assert told.status == 204
        assert len(immich.assets) == 1
        assert (await ask(bridge.address, location)).status == 404


class TestAnImmichThat:
    async def test_cannot_be_reached(self, start_bridge: StartBridge) -> None:
        bridge = await start_bridge("http://127.0.0.1:9")
        async with sending(bridge.address, PHOTO) as (peer, location):
            told = await peer.read_answer()
            assert_error(told, 503, "unavailable")
            assert told.header("Retry-After") is not None
        assert (await ask(bridge.address, location)).status == 404

    @pytest.mark.parametrize("how", ["rst", "fin"])
    async def test_vanishes_in_mid_upload(
        self, immich: StandIn, bridge: Server, how: str
    ) -> None:
        """The client is cut off, and asks; only then it hears that it has to begin anew."""
        immich.behaviour = Behaviour(vanish_after=HALF, vanish_with=how, times=1)
        task = UploadTask(bridge.address, PHOTO)
        told = await task.run()
        assert (told.status, told.header("X-Bridge-Error")) == (404, "not_found")
        assert immich.assets == []
        assert_stored(immich, await UploadTask(bridge.address, PHOTO).run([Cut(HALF)]))

    async def test_vanishes_while_it_is_held(self, immich: StandIn, bridge: Server) -> None:
        async with sending(bridge.address, PHOTO[:1000]) as (peer, location):
            await immich.wait_for_request(lambda seen: seen.body_received >= 1000)
            peer.reset()
        assert (await state(bridge.address, location)).offset == 1000
        await immich.stop()
        await immich.start()
        await eventually(lambda: immich.open_connections == 0)
        told = await resume(bridge.address, location, 1000, PHOTO[1000:])
        assert told.status == 404
        assert_nothing_stored(immich)

    async def test_vanishes_with_its_answer(self, immich: StandIn, bridge: Server) -> None:
        immich.behaviour = Behaviour(lose_answer=True, times=1)
        task = UploadTask(bridge.address, PHOTO)
        told = await task.run()
        assert told.status == 404
        # It has the photo, and says so to whoever sends it once more.
        told = await UploadTask(bridge.address, PHOTO).run()
        assert (told.status, told.header("X-Immich-Status")) == (200, "duplicate")
        assert len(immich.assets) == 1

    @pytest.mark.parametrize("status", [400, 401, 413, 500, 503])
    async def test_refuses_before_the_end(
        self, immich: StandIn, bridge: Server, status: int
    ) -> None:
        immich.behaviour = Behaviour(early_status=status)
        async with sending(bridge.address, PHOTO[:HALF]) as (peer, location):
            told = await peer.read_answer()
        assert (told.status, told.header("X-Bridge-Error")) == (status, f"immich_{status}")
        assert_nothing_stored(immich)

    async def test_refuses_while_it_is_held(self, start_bridge: StartBridge) -> None:
        """Nobody hears it; so whoever comes back begins anew, and hears it then."""
        refuse = asyncio.Event()

        async def script(peer: Peer) -> None:
            await peer.read_head()
            await refuse.wait()
            await peer.send(answer("401 Unauthorized", ("Connection", "close")))

        async with front_of(start_bridge, script) as (bridge, _):
            async with sending(bridge.address, PHOTO[:1000]) as (peer, location):
                await let_time_pass(0.05)
                peer.reset()
            assert (await state(bridge.address, location)).offset == 1000
            refuse.set()
            async with asyncio.timeout(5):
                while (await ask(bridge.address, location)).status != 404:
                    await let_time_pass(0.01)

    async def test_refuses_at_the_end_is_heard_again(
        self, immich: StandIn, bridge: Server
    ) -> None:
        immich.behaviour = Behaviour(answer_status=400, answer_body='{"message":"no"}')
        task = UploadTask(bridge.address, PHOTO)
        told = await task.run([Cut(HALF)])
        assert (told.status, told.body) == (400, b'{"message":"no"}')
        assert told.header("X-Bridge-Error") == "immich_400"
        assert task.location is not None
        again = await resume(bridge.address, task.location, SIZE, b"")
        assert (again.status, again.body) == (told.status, told.body)
        assert len(immich.requests) == 1

    async def test_knows_the_photo_answers_before_its_end(
        self, immich: StandIn, bridge: Server
    ) -> None:
        await upload(bridge.address, PHOTO, NAME)
        known = ("x-immich-checksum", hashlib.sha1(PHOTO, usedforsecurity=False).hexdigest())
        async with connect(bridge.address) as peer:
            await peer.send(creation(SIZE, known), PHOTO[:1000])
            location = await read_offer(peer)
            told = await peer.read_answer()
        assert (told.status, told.header("X-Immich-Status")) == (200, "duplicate")
        assert len(immich.assets) == 1
        again = await ask(bridge.address, location)
        assert again.status in (204, 404)


class TestSilentClients:
    async def test_lose_their_connection_but_not_their_upload(
        self, immich: StandIn, start_bridge: StartBridge
    ) -> None:
        bridge = await start_bridge(immich.url, BODY_IDLE_TIMEOUT="0.3s")
        with written_log() as log:
            async with sending(bridge.address, PHOTO[:HALF]) as (peer, location):
                assert await peer.read_to_end() == b""
            await log.wait_for("error=request_timeout")
        assert (await state(bridge.address, location)).offset == HALF
        assert_stored(immich, await resume(bridge.address, location, HALF, PHOTO[HALF:]))


class TestBrokenChunks:
    async def test_are_refused_and_the_rest_can_follow(
        self, immich: StandIn, bridge: Server
    ) -> None:
        async with connect(bridge.address) as peer:
            await peer.send(creation(None))
            location = await read_offer(peer)
            await peer.send(b"%x\r\n%b\r\n" % (HALF, PHOTO[:HALF]))
            await immich.wait_for_request(lambda seen: seen.body_received >= HALF)
            await peer.send(b"zz\r\n")
            assert_error(await peer.read_answer(), 400, "bad_request")
        assert immich.assets == []
        assert_stored(immich, await UploadTaskAt(bridge.address, location).finish())
