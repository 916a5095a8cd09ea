"""Bad luck in the middle of a resumable upload: every byte arrives once."""

import asyncio

import pytest

from front import StartBridge, let_time_pass
from immich_bridge.serve import Server
from immich_standin import Behaviour, StandIn
from log_capture import written_log
from raw_upload import (
    Flood,
    assert_error,
    eventually,
    jpeg,
)
from resumable.at_immich import arrived, assert_stored, held
from resumable.urlsession import (
    append,
    creation,
    finish,
    read_offer,
    resume,
    sending,
    state,
)
from wire import Message, connect

PHOTO = jpeg(700_001)
SIZE = len(PHOTO)
HALF = SIZE // 2
LARGE = jpeg((24 << 20) + 1)
"""More than what the kernel and the bridge hold of an upload."""


class TestASlowImmich:
    @pytest.mark.parametrize("how", ["rst", "fin"])
    async def test_gets_every_byte_once(self, immich: StandIn, bridge: Server, how: str) -> None:
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
        for _ in range(3):
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
            offset = known.offset
        immich.behaviour.release()
        rest = LARGE[known.offset :]
        assert_stored(immich, await resume(bridge.address, location, known.offset, rest), LARGE)


class TestTheOldConnection:
    async def test_ends_when_somebody_asks(self, immich: StandIn, bridge: Server) -> None:
        """It may be dead without a FIN; so whoever comes next is believed."""
        async with sending(bridge.address, PHOTO[:HALF], size=SIZE) as (peer, location):
            await arrived(immich, HALF, SIZE)
            known = await state(bridge.address, location)
            assert known.offset == HALF
            assert await peer.read_to_end() == b""
        assert_stored(immich, await resume(bridge.address, location, HALF, PHOTO[HALF:]), PHOTO)

    async def test_ends_when_another_sends(self, immich: StandIn, bridge: Server) -> None:
        async with sending(bridge.address, PHOTO[:HALF], size=SIZE) as (peer, location):
            await arrived(immich, HALF, SIZE)
            assert_stored(immich, await resume(bridge.address, location, HALF, PHOTO[HALF:]), PHOTO)
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
                goal = min(flood.sent + 3 << 20, len(LARGE) - offset)
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
        location = await held(immich, bridge.address, PHOTO[:HALF], SIZE)
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
        final = await finish(bridge.address, location, PHOTO)
        assert_stored(immich, final, PHOTO)
        assert len(immich.requests) == 1


class TestSilentClients:
    async def test_lose_their_connection_but_not_their_upload(
        self, immich: StandIn, start_bridge: StartBridge
    ) -> None:
        bridge = await start_bridge(immich.url, BODY_IDLE_TIMEOUT="0.3s")
        with written_log() as log:
            async with sending(bridge.address, PHOTO[:HALF], size=SIZE) as (peer, location):
                assert await peer.read_to_end() == b""
            await log.wait_for("error=request_timeout")
        assert (await state(bridge.address, location)).offset == HALF
        assert_stored(immich, await resume(bridge.address, location, HALF, PHOTO[HALF:]), PHOTO)


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
        assert_stored(immich, await finish(bridge.address, location, PHOTO), PHOTO)
