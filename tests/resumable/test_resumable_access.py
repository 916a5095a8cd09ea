"""Whose an upload is, and what is left when it is given up."""

import asyncio

import pytest

from immich_bridge.serve import Server
from immich_standin import StandIn
from raw_upload import (
    KEY,
    jpeg,
)
from resumable.at_immich import assert_cancelled, assert_stored, held
from resumable.urlsession import (
    ask,
    completeness,
    interop,
    sending,
    state,
)
from wire import fetch

PHOTO = jpeg(700_001)
SIZE = len(PHOTO)
HALF = SIZE // 2


class TestStrangers:
    @pytest.mark.parametrize("method", ["HEAD", "PATCH", "DELETE"])
    async def test_find_nothing(self, immich: StandIn, bridge: Server, method: str) -> None:
        location = await held(immich, bridge.address, PHOTO[:HALF], SIZE)
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
        async with sending(bridge.address, PHOTO[:HALF], size=SIZE) as (peer, location):
            told = await ask(bridge.address, location, key=("x-api-key", "another"))
            assert told.status == 404
            await peer.send(PHOTO[HALF:])
            assert_stored(immich, await peer.read_answer(), PHOTO)


class TestCancelledUploads:
    @pytest.mark.parametrize("at_once", [1, 3])
    async def test_are_gone(self, immich: StandIn, bridge: Server, at_once: int) -> None:
        location = await held(immich, bridge.address, PHOTO[:HALF], SIZE)

        async def cancel() -> int:
            return (await fetch(bridge.address, "DELETE", location, interop(6), KEY)).status

        statuses = await asyncio.gather(*(cancel() for _ in range(at_once)))
        assert sorted(statuses) == [204] + [404] * (at_once - 1)
        await assert_cancelled(immich)
        assert (await ask(bridge.address, location)).status == 404
        assert await cancel() == 404

    async def test_end_for_whoever_sends_them(self, immich: StandIn, bridge: Server) -> None:
        async with sending(bridge.address, PHOTO[:HALF], size=SIZE) as (peer, location):
            await immich.wait_for_request(lambda seen: seen.body_received > 0)
            told = await fetch(bridge.address, "DELETE", location, interop(6), KEY)
            assert told.status == 204
            assert await peer.read_to_end() == b""
        await assert_cancelled(immich)

    async def test_that_immich_has_already_stay_there(
        self, immich: StandIn, bridge: Server
    ) -> None:
        async with sending(bridge.address, PHOTO, size=SIZE) as (peer, location):
            assert_stored(immich, await peer.read_answer(), PHOTO)
        told = await fetch(bridge.address, "DELETE", location, interop(6), KEY)
        assert told.status == 204
        assert len(immich.assets) == 1
        assert (await ask(bridge.address, location)).status == 404
