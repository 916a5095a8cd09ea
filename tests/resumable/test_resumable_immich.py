"""An Immich that refuses, vanishes or answers early: clients resume, or learn that they cannot."""

import asyncio
import hashlib

import pytest

from front import StartBridge, front_of, let_time_pass
from immich_bridge.serve import Server
from immich_standin import Behaviour, StandIn
from raw_upload import (
    NAME,
    assert_error,
    assert_nothing_stored,
    eventually,
    jpeg,
    upload,
)
from resumable.at_immich import arrived, assert_stored
from resumable.urlsession import (
    Cut,
    UploadTask,
    ask,
    creation,
    read_offer,
    resume,
    sending,
    state,
)
from wire import Peer, answer, connect

PHOTO = jpeg(700_001)
SIZE = len(PHOTO)
HALF = SIZE // 2


class TestAnImmichThat:
    async def test_cannot_be_reached(self, start_bridge: StartBridge) -> None:
        bridge = await start_bridge("http://127.0.0.1:9")
        async with sending(bridge.address, PHOTO, size=SIZE) as (peer, location):
            told = await peer.read_answer()
            assert_error(told, 503, "unavailable")
            assert told.header("Retry-After") is not None
        assert (await ask(bridge.address, location)).status == 404

    @pytest.mark.parametrize("how", ["rst", "fin"])
    async def test_vanishes_in_mid_upload(self, immich: StandIn, bridge: Server, how: str) -> None:
        """The client is cut off, and asks; only then it hears that it has to begin anew."""
        immich.behaviour = Behaviour(vanish_after=HALF, vanish_with=how, times=1)
        task = UploadTask(bridge.address, PHOTO)
        told = await task.run()
        assert (told.status, told.header("X-Bridge-Error")) == (404, "not_found")
        assert immich.assets == []
        assert_stored(immich, await UploadTask(bridge.address, PHOTO).run([Cut(HALF)]), PHOTO)

    async def test_vanishes_while_it_is_held(self, immich: StandIn, bridge: Server) -> None:
        async with sending(bridge.address, PHOTO[:1000], size=SIZE) as (peer, location):
            await arrived(immich, 1000, SIZE)
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
        async with sending(bridge.address, PHOTO[:HALF], size=SIZE) as (peer, _):
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
            async with sending(bridge.address, PHOTO[:1000], size=SIZE) as (peer, location):
                await let_time_pass(0.05)
                peer.reset()
            assert (await state(bridge.address, location)).offset == 1000
            refuse.set()
            async with asyncio.timeout(5):
                while (await ask(bridge.address, location)).status != 404:
                    await let_time_pass(0.01)

    async def test_refuses_at_the_end_is_heard_again(self, immich: StandIn, bridge: Server) -> None:
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
