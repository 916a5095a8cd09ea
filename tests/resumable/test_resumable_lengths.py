"""Offsets and lengths that contradict what was said: the whole is right, or nothing is there."""

import json

import pytest

from immich_bridge.serve import Server
from immich_standin import StandIn
from raw_upload import (
    assert_error,
    jpeg,
)
from resumable.at_immich import assert_cancelled, assert_stored, held
from resumable.urlsession import (
    append,
    ask,
    creation,
    finish,
    read_offer,
    resume,
    state,
    state_of,
)
from wire import Message, connect

PHOTO = jpeg(700_001)
SIZE = len(PHOTO)
HALF = SIZE // 2
PROBLEMS = "https://iana.org/assignments/http-problem-types#"


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
        assert_stored(immich, told, PHOTO)


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
        location = await held(immich, bridge.address, PHOTO[:HALF], SIZE)
        offset = (await state(bridge.address, location)).offset
        assert offset == HALF
        body = (PHOTO + b"?")[offset : offset + size]
        told = await resume(bridge.address, location, offset, body, *headers, complete=complete)
        assert_inconsistent(told)
        assert immich.assets == []
        assert_stored(immich, await finish(bridge.address, location, PHOTO), PHOTO)

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
        location = await held(immich, bridge.address, PHOTO[:HALF], SIZE)
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
        assert_stored(immich, await resume(bridge.address, location, HALF, PHOTO[HALF:]), PHOTO)

    async def test_that_are_known_are_announced_to_immich(
        self, immich: StandIn, bridge: Server
    ) -> None:
        async with connect(bridge.address) as peer:
            await peer.send(creation(HALF, length(SIZE), complete=False), PHOTO[:HALF])
            location = await read_offer(peer)
            await peer.read_answer()
        assert (await state(bridge.address, location)).length == SIZE
        assert_stored(immich, await resume(bridge.address, location, HALF, PHOTO[HALF:]), PHOTO)
        assert int(immich.requests[0].header("Content-Length") or 0) > SIZE

    async def test_of_nothing(self, immich: StandIn, bridge: Server) -> None:
        async with connect(bridge.address) as peer:
            await peer.send(creation(0))
            await read_offer(peer)
            assert_error(await peer.read_answer(), 400, "bad_request")
        assert immich.requests == []
