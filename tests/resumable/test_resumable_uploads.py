"""Uploads that are cut off and resumed: the asset is whole and single, as if nothing had been."""

import hashlib
from base64 import b64encode

import pytest

from front import StartBridge
from immich_bridge.serve import Server
from immich_standin import Behaviour, StandIn
from log_capture import written_log
from raw_upload import KEY, NAME, ROUTE, assert_nothing_stored, eventually, jpeg, result, upload
from resumable.urlsession import (
    VERSIONS,
    Cut,
    UploadTask,
    append,
    ask,
    checked_offer,
    completeness,
    creation,
    interop,
    read_offer,
    resume,
    state,
    state_of,
)
from scrape import ON, scrape, scrape_at_rest
from wire import Message, connect, fetch, request

PHOTO = jpeg(700_001)
SIZE = len(PHOTO)
CUTS = [Cut(100_000), Cut(100_000), Cut(250_007, "fin"), Cut(600_000, "silent"), Cut(SIZE - 1)]

both_framings = pytest.mark.parametrize("chunked", [False, True], ids=["announced", "chunked"])
every_version = pytest.mark.parametrize("version", VERSIONS)


def assert_stored(immich: StandIn, told: Message, photo: bytes = PHOTO) -> None:
    """Immich holds just this photo, and the client has heard so."""
    assert told.status == 201, told
    [asset] = immich.assets
    assert (asset.path.read_bytes() == photo) is True
    assert immich.files() == [asset.path]
    assert result(told)["id"] == told.header("X-Immich-Asset-Id") == asset.id
    assert told.header("X-Immich-Status") == "created"


def offer_is_missing(told: Message) -> bool:
    return not any(b" 104 " in line for line in told.interim)


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
            assert_stored(immich, told)
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
        assert_stored(immich, await task.run(CUTS))
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
        assert_stored(immich, told)

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


class TestOptions:
    async def test_say_what_an_upload_may_be(
        self, immich: StandIn, bridge: Server, start_bridge: StartBridge
    ) -> None:
        limited = await start_bridge(immich.url, MAX_STREAM_SIZE="5MB")
        for server, largest in ((bridge, 999_999_999_999_999), (limited, 5 << 20)):
            for path in (ROUTE, "/uploads/any"):
                told = await fetch(server.address, "OPTIONS", path, interop(8), KEY)
                assert told.status == 200
                assert told.header("Upload-Limit") == f"max-size={largest}, min-size=0"
                assert told.header("Accept-Patch") == "application/partial-upload"
                assert told.header("Upload-Draft-Interop-Version") == "8"
        assert immich.requests == []

    @pytest.mark.parametrize(
        "name", ["Via", "Forwarded", "X-Forwarded-For", "X-Real-IP"]
    )
    async def test_say_no_behind_a_front_that_may_swallow_the_offer(
        self, immich: StandIn, bridge: Server, start_bridge: StartBridge, name: str
    ) -> None:
        sure = await start_bridge(immich.url, RESUMABLE="on")
        for server, status in ((bridge, 501), (sure, 200)):
            told = await fetch(server.address, "OPTIONS", ROUTE, interop(6), (name, "192.0.2.1"))
            assert told.status == status

    @pytest.mark.parametrize("via", ["1.1 Caddy", "2.0 Caddy", "3.0 Caddy"])
    async def test_say_yes_behind_caddy(self, bridge: Server, via: str) -> None:
        """Whatever a client speaks with it."""
        fields = [("Via", via), ("X-Forwarded-For", "192.0.2.1")]
        assert (await fetch(bridge.address, "OPTIONS", ROUTE, *fields)).status == 200
        for other in (f"1.1 nginx, {via}", f"{via}, 1.1 other", "1.1 Caddyshack"):
            told = await fetch(bridge.address, "OPTIONS", ROUTE, ("Via", other))
            assert told.status == 501

    async def test_say_no_where_it_is_turned_off(
        self, immich: StandIn, start_bridge: StartBridge
    ) -> None:
        bridge = await start_bridge(immich.url, RESUMABLE="off")
        assert (await fetch(bridge.address, "OPTIONS", ROUTE, interop(6))).status == 501
        assert immich.requests == []


class TestWithoutAnOffer:
    """An upload like any other; but a part is never taken for the whole."""

    @pytest.mark.parametrize(
        "headers",
        [
            [],
            [completeness(6, True)],
            [interop(6)],
            [interop(99), completeness(6, True)],
            [interop(2), completeness(3, True)],
            [interop(3), completeness(6, True)],
            [interop(6), completeness(6, True), ("Via", "1.1 front")],
        ],
    )
    async def test_are_clients_of_no_known_version(
        self, immich: StandIn, bridge: Server, headers: list[tuple[str, str]]
    ) -> None:
        told = await upload(bridge.address, PHOTO, NAME, *headers)
        assert offer_is_missing(told)
        assert_stored(immich, told)

    async def test_are_clients_of_an_older_http(self, immich: StandIn, bridge: Server) -> None:
        async with connect(bridge.address) as peer:
            head = creation(SIZE).replace(b" HTTP/1.1\r\n", b" HTTP/1.0\r\n")
            await peer.send(head, PHOTO)
            told = await peer.read_answer()
        assert offer_is_missing(told)
        assert_stored(immich, told)

    async def test_are_all_where_it_is_turned_off(
        self, immich: StandIn, start_bridge: StartBridge
    ) -> None:
        bridge = await start_bridge(immich.url, RESUMABLE="off")
        told = await upload(bridge.address, PHOTO, NAME, interop(6), completeness(6, True))
        assert offer_is_missing(told)
        assert_stored(immich, told)

    @pytest.mark.parametrize("setting", ["auto", "on", "off"])
    @pytest.mark.parametrize(
        "headers",
        [
            [completeness(6, False)],
            [completeness(3, False)],
            [interop(99), completeness(6, False)],
            [interop(6), completeness(3, False)],
            [interop(6), completeness(6, False), completeness(6, False)],
            [interop(6), ("Upload-Complete", "?0, ?1")],
        ],
    )
    async def test_parts_are_refused(
        self,
        immich: StandIn,
        start_bridge: StartBridge,
        setting: str,
        headers: list[tuple[str, str]],
    ) -> None:
        bridge = await start_bridge(immich.url, RESUMABLE=setting)
        told = await upload(bridge.address, PHOTO, NAME, *headers)
        assert (told.status, told.header("X-Bridge-Error")) == (501, "not_implemented")
        assert_nothing_stored(immich)

    async def test_parts_are_refused_behind_a_front(self, immich: StandIn, bridge: Server) -> None:
        fields = [interop(6), completeness(6, False), ("X-Forwarded-For", "192.0.2.1")]
        told = await upload(bridge.address, PHOTO, NAME, *fields)
        assert (told.status, told.header("X-Bridge-Error")) == (501, "not_implemented")
        assert_nothing_stored(immich)


class TestFinishedUploads:
    async def test_tell_again_what_became_of_them(
        self, immich: StandIn, bridge: Server
    ) -> None:
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
        assert_stored(immich, again)
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
        assert_stored(immich, await resume(bridge.address, location, SIZE, b""))
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
                assert_stored(immich, await second.read_answer())
            assert_stored(immich, await peer.read_answer())

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
        assert_stored(immich, await task.run(CUTS))
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
        assert_stored(immich, await resume(bridge.address, location, 1000, PHOTO[1000:]))


class TestOrdinaryThings:
    async def test_an_invitation_comes_behind_the_offer(
        self, immich: StandIn, bridge: Server
    ) -> None:
        async with connect(bridge.address) as peer:
            await peer.send(creation(SIZE, ("Expect", "100-continue")))
            checked_offer(await peer.read_head(), 6)
            assert (await peer.read_head()).status == 100
            await peer.send(PHOTO)
            assert_stored(immich, await peer.read_answer())

    async def test_the_type_is_told_by_the_first_bytes_of_all_pieces(
        self, immich: StandIn, bridge: Server
    ) -> None:
        async with connect(bridge.address) as peer:
            head = creation(2, complete=False).replace(b"X-Filename: IMG_0001.jpg\r\n", b"")
            await peer.send(head, PHOTO[:2])
            location = await read_offer(peer)
            assert (await peer.read_answer()).status == 201
        assert immich.requests == []
        assert_stored(immich, await resume(bridge.address, location, 2, PHOTO[2:]))
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
            assert_stored(immich, await peer.read_answer())

    async def test_what_happens_is_counted_and_logged(
        self, immich: StandIn, start_bridge: StartBridge
    ) -> None:
        bridge = await start_bridge(immich.url, **ON)
        before = await scrape(bridge)
        with written_log() as log:
            assert_stored(immich, await UploadTask(bridge.address, PHOTO).run(CUTS[:2]))
            async with connect(bridge.address) as peer:
                await peer.send(creation(0, complete=False))
                location = await read_offer(peer)
                await peer.read_answer()
            held = await scrape_at_rest(bridge)
            await fetch(bridge.address, "DELETE", location, interop(6), KEY)
            line = await log.wait_for("upload cancelled")
            assert [line for line in log.lines if "upload created" in line]
            assert [line for line in log.lines if "upload resumed" in line]
            assert [line for line in log.lines if "upload completed" in line and f" offset={SIZE} " in line]
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
