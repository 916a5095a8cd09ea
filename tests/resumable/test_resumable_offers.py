"""Who is told that uploads can be resumed; and that a part is never taken for the whole."""

import pytest

from front import StartBridge
from immich_bridge.serve import Server
from immich_standin import StandIn
from raw_upload import KEY, NAME, ROUTE, assert_nothing_stored, jpeg, upload
from resumable.at_immich import assert_stored
from resumable.urlsession import (
    VERSIONS,
    Cut,
    completeness,
    creation,
    interop,
)
from wire import Message, connect, fetch

PHOTO = jpeg(700_001)
SIZE = len(PHOTO)
CUTS = [Cut(100_000), Cut(100_000), Cut(250_007, "fin"), Cut(600_000, "silent"), Cut(SIZE - 1)]

both_framings = pytest.mark.parametrize("chunked", [False, True], ids=["announced", "chunked"])
every_version = pytest.mark.parametrize("version", VERSIONS)


def offer_is_missing(told: Message) -> bool:
    return not any(b" 104 " in line for line in told.interim)


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

    @pytest.mark.parametrize("name", ["Via", "Forwarded", "X-Forwarded-For", "X-Real-IP"])
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
        assert_stored(immich, told, PHOTO)

    async def test_are_clients_of_an_older_http(self, immich: StandIn, bridge: Server) -> None:
        async with connect(bridge.address) as peer:
            head = creation(SIZE).replace(b" HTTP/1.1\r\n", b" HTTP/1.0\r\n")
            await peer.send(head, PHOTO)
            told = await peer.read_answer()
        assert offer_is_missing(told)
        assert_stored(immich, told, PHOTO)

    async def test_are_all_where_it_is_turned_off(
        self, immich: StandIn, start_bridge: StartBridge
    ) -> None:
        bridge = await start_bridge(immich.url, RESUMABLE="off")
        told = await upload(bridge.address, PHOTO, NAME, interop(6), completeness(6, True))
        assert offer_is_missing(told)
        assert_stored(immich, told, PHOTO)

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
