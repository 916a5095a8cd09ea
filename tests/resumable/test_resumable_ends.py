"""The end of a resumable upload: its answer, told as often as need be, and its checksum."""

import hashlib
from base64 import b64encode

import pytest

from immich_bridge.serve import Server
from immich_standin import Behaviour, StandIn
from log_capture import written_log
from raw_upload import NAME, assert_nothing_stored, eventually, jpeg, result, upload
from resumable.at_immich import assert_stored
from resumable.urlsession import (
    VERSIONS,
    Cut,
    UploadTask,
    append,
    ask,
    creation,
    read_offer,
    resume,
    state,
)
from wire import connect

PHOTO = jpeg(700_001)
SIZE = len(PHOTO)
CUTS = [Cut(100_000), Cut(100_000), Cut(250_007, "fin"), Cut(600_000, "silent"), Cut(SIZE - 1)]

both_framings = pytest.mark.parametrize("chunked", [False, True], ids=["announced", "chunked"])
every_version = pytest.mark.parametrize("version", VERSIONS)


class TestFinishedUploads:
    async def test_tell_again_what_became_of_them(self, immich: StandIn, bridge: Server) -> None:
        async with connect(bridge.address) as peer:
            await peer.send(creation(SIZE), PHOTO)
            location = await read_offer(peer)
            told = await peer.read_answer()
        for _ in range(2):
            known = await state(bridge.address, location)
            assert (known.offset, known.complete, known.length) == (SIZE, True, SIZE)
            again = await resume(bridge.address, location, SIZE, b"")
            assert (again.status, again.body) == (told.status, told.body)
            assert again.header("X-Immich-Asset-Id") == told.header("X-Immich-Asset-Id")
        assert_stored(immich, again, PHOTO)
        assert len(immich.requests) == 1

    async def test_tell_it_even_when_nobody_heard_it_the_first_time(
        self, immich: StandIn, bridge: Server
    ) -> None:
        """All of it came, and then the connection was lost, before Immich had answered."""
        immich.behaviour = Behaviour(hold_answer=True)
        with written_log() as log:
            async with connect(bridge.address) as peer:
                await peer.send(creation(SIZE), PHOTO)
                location = await read_offer(peer)
                await immich.wait_for_request(lambda _: len(immich.assets) == 1)
                peer.reset()
            await log.wait_for("outcome=client_gone")
        known = await state(bridge.address, location)
        assert (known.offset, known.complete) == (SIZE, True)
        immich.behaviour.release()
        await eventually(lambda: immich.open_connections == 0)
        known = await state(bridge.address, location)
        assert (known.offset, known.complete) == (SIZE, True)
        assert_stored(immich, await resume(bridge.address, location, SIZE, b""), PHOTO)
        assert len(immich.requests) == 1

    async def test_wait_for_the_answer_when_they_are_asked_early(
        self, immich: StandIn, bridge: Server
    ) -> None:
        immich.behaviour = Behaviour(hold_answer=True)
        async with connect(bridge.address) as peer:
            await peer.send(creation(SIZE), PHOTO)
            location = await read_offer(peer)
            await immich.wait_for_request(lambda _: len(immich.assets) == 1)
            async with connect(bridge.address) as second:
                await second.send(append(location, SIZE, 0))
                immich.behaviour.release()
                assert_stored(immich, await second.read_answer(), PHOTO)
            assert_stored(immich, await peer.read_answer(), PHOTO)

    async def test_take_no_more(self, immich: StandIn, bridge: Server) -> None:
        async with connect(bridge.address) as peer:
            await peer.send(creation(SIZE), PHOTO)
            location = await read_offer(peer)
            await peer.read_answer()
        told = await resume(bridge.address, location, SIZE, b"more")
        assert (told.status, told.header("X-Bridge-Error")) == (400, "bad_request")
        assert told.header("Content-Type") == "application/problem+json"
        assert (await state(bridge.address, location)).complete

    async def test_were_duplicates(self, immich: StandIn, bridge: Server) -> None:
        await upload(bridge.address, PHOTO, NAME)
        task = UploadTask(bridge.address, PHOTO)
        told = await task.run([Cut(300_000)])
        assert (told.status, result(told)["duplicate"]) == (200, True)
        assert told.header("X-Immich-Status") == "duplicate"
        assert len(immich.assets) == 1


class TestDigests:
    """They are those of the whole file, however many pieces it came in."""

    @staticmethod
    def digests(photo: bytes) -> list[tuple[str, str]]:
        sha256 = b64encode(hashlib.sha256(photo).digest()).decode()
        sha1 = hashlib.sha1(photo, usedforsecurity=False).hexdigest()
        return [
            ("Repr-Digest", f"sha-256=:{sha256}:"),
            ("Content-Digest", f"sha-256=:{sha256}:"),
            ("x-immich-checksum", sha1),
        ]

    @pytest.mark.parametrize("which", range(3))
    async def test_that_are_right(self, immich: StandIn, bridge: Server, which: int) -> None:
        task = UploadTask(bridge.address, PHOTO, self.digests(PHOTO)[which])
        assert_stored(immich, await task.run(CUTS), PHOTO)
        assert len(task.resumed) == len(CUTS)

    @pytest.mark.parametrize("which", range(3))
    async def test_that_are_wrong(self, immich: StandIn, bridge: Server, which: int) -> None:
        other = PHOTO[:-1] + bytes([PHOTO[-1] ^ 1])
        task = UploadTask(bridge.address, PHOTO, self.digests(other)[which])
        told = await task.run(CUTS)
        assert (told.status, told.header("X-Bridge-Error")) == (422, "checksum_mismatch")
        await eventually(lambda: immich.open_connections == 0)
        assert_nothing_stored(immich)
        assert task.location is not None
        assert (await ask(bridge.address, task.location)).status == 404

    async def test_of_a_part_are_not_those_of_the_file(
        self, immich: StandIn, bridge: Server
    ) -> None:
        part = self.digests(PHOTO[:1000])[1]
        async with connect(bridge.address) as peer:
            await peer.send(creation(1000, part, complete=False), PHOTO[:1000])
            location = await read_offer(peer)
            assert (await peer.read_answer()).status == 201
        assert_stored(immich, await resume(bridge.address, location, 1000, PHOTO[1000:]), PHOTO)
