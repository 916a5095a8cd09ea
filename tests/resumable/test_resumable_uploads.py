"""Uploads that are cut off and resumed: the asset is whole and single, as if nothing had been."""

import pytest

from front import StartBridge
from immich_bridge.serve import Server
from immich_standin import StandIn
from log_capture import written_log
from raw_upload import KEY, ROUTE, jpeg
from resumable.at_immich import assert_stored
from resumable.urlsession import (
    VERSIONS,
    Cut,
    UploadTask,
    append,
    ask,
    checked_offer,
    creation,
    interop,
    read_offer,
    resume,
    state,
    state_of,
)
from scrape import ON, scrape, scrape_at_rest
from wire import connect, fetch, request

PHOTO = jpeg(700_001)
SIZE = len(PHOTO)
CUTS = [Cut(100_000), Cut(100_000), Cut(250_007, "fin"), Cut(600_000, "silent"), Cut(SIZE - 1)]

both_framings = pytest.mark.parametrize("chunked", [False, True], ids=["announced", "chunked"])
every_version = pytest.mark.parametrize("version", VERSIONS)


@every_version
class TestEveryVersion:
    async def test_hears_of_the_upload_while_it_runs(
        self, immich: StandIn, bridge: Server, version: int
    ) -> None:
        async with connect(bridge.address) as peer:
            await peer.send(creation(SIZE, version=version))
            location = await read_offer(peer, version)
            assert location.startswith("/uploads/")
            await peer.send(PHOTO)
            told = await peer.read_answer()
            assert_stored(immich, told, PHOTO)
            assert state_of(told, version).offset == SIZE
            assert state_of(told, version).complete
            # The connection is as good as before.
            await peer.send(request("GET", "/api/server/ping"))
            assert (await peer.read_answer()).status == 200

    @both_framings
    async def test_resumes_what_is_cut_off(
        self, immich: StandIn, bridge: Server, version: int, chunked: bool
    ) -> None:
        task = UploadTask(bridge.address, PHOTO, version=version, chunked=chunked)
        assert_stored(immich, await task.run(CUTS), PHOTO)
        assert task.begun == 1
        assert len(task.resumed) == len(CUTS)
        assert task.resumed == sorted(task.resumed)
        assert len(immich.requests) == 1

    async def test_sends_parts_on_purpose(
        self, immich: StandIn, bridge: Server, version: int
    ) -> None:
        parts = [PHOTO[:1], PHOTO[1:300_000], b"", PHOTO[300_000:]]
        async with connect(bridge.address) as peer:
            first = creation(1, version=version, complete=False)
            await peer.send(first, parts[0])
            location = await read_offer(peer, version)
            told = await peer.read_answer()
            assert told.status == 201
            assert told.header("Location") == location
            assert not state_of(told, version).complete
            offset = 1
            for part in parts[1:]:
                assert state_of(told, version).offset == offset
                assert immich.assets == []
                last = part is parts[-1]
                head = append(location, offset, len(part), version=version, complete=last)
                await peer.send(head, part)
                told = await peer.read_answer()
                offset += len(part)
                assert last or told.status == 204
        assert_stored(immich, told, PHOTO)

    async def test_asks_how_far_it_came(
        self, immich: StandIn, bridge: Server, version: int
    ) -> None:
        async with connect(bridge.address) as peer:
            await peer.send(creation(SIZE, version=version))
            location = await read_offer(peer, version)
            known = await state(bridge.address, location, version)
            assert (known.offset, known.complete) == (0, False)
            assert known.length == (SIZE if version >= 6 else None)
            assert await peer.read_to_end() == b""


class TestOrdinaryThings:
    async def test_an_invitation_comes_behind_the_offer(
        self, immich: StandIn, bridge: Server
    ) -> None:
        async with connect(bridge.address) as peer:
            await peer.send(creation(SIZE, ("Expect", "100-continue")))
            checked_offer(await peer.read_head(), 6)
            assert (await peer.read_head()).status == 100
            await peer.send(PHOTO)
            assert_stored(immich, await peer.read_answer(), PHOTO)

    async def test_the_type_is_told_by_the_first_bytes_of_all_pieces(
        self, immich: StandIn, bridge: Server
    ) -> None:
        async with connect(bridge.address) as peer:
            head = creation(2, complete=False).replace(b"X-Filename: IMG_0001.jpg\r\n", b"")
            await peer.send(head, PHOTO[:2])
            location = await read_offer(peer)
            assert (await peer.read_answer()).status == 201
        assert immich.requests == []
        assert_stored(immich, await resume(bridge.address, location, 2, PHOTO[2:]), PHOTO)
        assert immich.assets[0].mime_type == "image/jpeg"

    async def test_credentials_in_the_query_are_in_the_url(
        self, immich: StandIn, bridge: Server
    ) -> None:
        async with connect(bridge.address) as peer:
            route = f"{ROUTE}?deviceId=x&apiKey={StandIn.api_key}"
            head = creation(SIZE, route=route).replace(
                f"x-api-key: {StandIn.api_key}\r\n".encode(), b""
            )
            await peer.send(head, PHOTO[:1000])
            location = await read_offer(peer)
            peer.reset()
        assert location.endswith(f"?apiKey={StandIn.api_key}")
        nobody = ("X-Nobody", "x")
        told = await ask(bridge.address, location, key=nobody)
        offset = state_of(told).offset
        async with connect(bridge.address) as peer:
            await peer.send(append(location, offset, SIZE - offset, key=nobody), PHOTO[offset:])
            assert_stored(immich, await peer.read_answer(), PHOTO)

    async def test_what_happens_is_counted_and_logged(
        self, immich: StandIn, start_bridge: StartBridge
    ) -> None:
        bridge = await start_bridge(immich.url, **ON)
        before = await scrape(bridge)
        with written_log() as log:
            assert_stored(immich, await UploadTask(bridge.address, PHOTO).run(CUTS[:2]), PHOTO)
            async with connect(bridge.address) as peer:
                await peer.send(creation(0, complete=False))
                location = await read_offer(peer)
                await peer.read_answer()
            held = await scrape_at_rest(bridge)
            await fetch(bridge.address, "DELETE", location, interop(6), KEY)
            line = await log.wait_for("upload cancelled")
            assert [line for line in log.lines if "upload created" in line]
            assert [line for line in log.lines if "upload resumed" in line]
            assert [
                line
                for line in log.lines
                if "upload completed" in line and f" offset={SIZE} " in line
            ]
        assert "offset=0" in line
        assert held.value("immich_bridge_resumable_uploads_held") == 1
        seen = await scrape_at_rest(bridge)
        assert seen.value("immich_bridge_resumable_uploads_held") == 0
        counted = {
            name: value
            for name, value in seen.changes(before).items()
            if "resumable" in name or "background_uploads" in name
        }
        assert counted == {
            'immich_bridge_resumable_uploads_total{event="created"}': 2,
            'immich_bridge_resumable_uploads_total{event="resumed"}': 2,
            'immich_bridge_resumable_uploads_total{event="completed"}': 1,
            'immich_bridge_resumable_uploads_total{event="cancelled"}': 1,
            'immich_bridge_background_uploads_total{outcome="created"}': 1,
        }
