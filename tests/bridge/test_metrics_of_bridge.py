"""What the bridge wing counts, to the last byte, as Prometheus reads it."""

import asyncio
from typing import Any

import pytest

from front import StartBridge, front_of
from immich_bridge.serve import Server
from immich_standin import StandIn
from immich_standin.behaviour import Behaviour
from raw_upload import ROUTE, jpeg, upload, upload_head
from scrape import ON, Scrape, in_flight, scrape, scrape_at_rest, scrape_when
from wire import PATIENCE, Peer, answer, connect, fetch, recording_upstream, request

PHOTO = jpeg(100_000)


def one_request(
    route: str, method: str, status: int, received: int, sent: int, **more: float
) -> dict[str, float]:
    """What one request changes, but for what it asks of Immich; `more` by full name."""
    changes = {
        f'immich_bridge_requests_total{{method="{method}",route="{route}",status="{status}"}}': 1,
        f'immich_bridge_request_duration_seconds_count{{route="{route}"}}': 1,
        f'immich_bridge_received_bytes_total{{route="{route}"}}': received,
        f'immich_bridge_sent_bytes_total{{route="{route}"}}': sent,
    }
    return {name: value for name, value in changes.items() if value} | more


def error(route: str, code: str) -> dict[str, float]:
    return {f'immich_bridge_errors_total{{error="{code}",route="{route}"}}': 1}


def outcome(name: str) -> dict[str, float]:
    return {f'immich_bridge_background_uploads_total{{outcome="{name}"}}': 1}


def asked(route: str, *, connections: int = 1, answered: bool = True) -> dict[str, float]:
    """What a question to Immich changes."""
    changes = {
        "immich_bridge_upstream_connections_total": connections,
        f'immich_bridge_upstream_first_byte_seconds_count{{route="{route}"}}': int(answered),
    }
    return {name: value for name, value in changes.items() if value}


async def exchange(url: str, raw: bytes) -> bytes:
    """All that comes back for `raw`, on a connection of its own."""
    async with connect(url) as peer:
        await peer.send(raw)
        return await peer.read_to_end()


def upload_once(*headers: tuple[str, str], body: bytes = PHOTO) -> bytes:
    """An upload after which the connection is closed."""
    return upload_head(len(body), ("Connection", "close"), *headers) + body


class TestUploads:
    async def test_created_and_duplicate(self, immich: StandIn, start_bridge: StartBridge) -> None:
        bridge = await start_bridge(immich.url, **ON)
        for verdict, status in (("created", 201), ("duplicate", 200)):
            before = await scrape(bridge)
            raw = await exchange(bridge.address, upload_once())
            after = await scrape_at_rest(bridge)
            assert after.changes(before) == {
                **one_request(ROUTE, "POST", status, len(PHOTO), len(raw)),
                **asked(ROUTE),
                **outcome(verdict),
            }

    async def test_known_before_their_bytes_are_no_wait_for_immich(
        self, immich: StandIn, start_bridge: StartBridge
    ) -> None:
        bridge = await start_bridge(immich.url, **ON)
        await upload(bridge.address, PHOTO)
        before = await scrape_at_rest(bridge)
        checksum = ("x-immich-checksum", immich.assets[0].checksum)
        async with connect(bridge.address) as peer:
            await peer.send(upload_head(10_000_000, checksum) + PHOTO)
            assert (await peer.read_answer()).status == 200
        changes = (await scrape_at_rest(bridge)).changes(before)
        assert changes.items() >= outcome("duplicate").items()
        assert not any("first_byte" in name for name in changes)

    async def test_refused_by_immich(self, immich: StandIn, start_bridge: StartBridge) -> None:
        immich.behaviour = Behaviour(answer_status=403, method="POST")
        bridge = await start_bridge(immich.url, **ON)
        before = await scrape(bridge)
        raw = await exchange(bridge.address, upload_once())
        assert (await scrape_at_rest(bridge)).changes(before) == {
            **one_request(ROUTE, "POST", 403, len(PHOTO), len(raw)),
            **asked(ROUTE),
            **outcome("refused"),
        }

    @pytest.mark.parametrize(
        ("headers", "settings", "status", "code", "counted"),
        [
            ([("X-Latitude", "north")], {}, 400, "bad_request", "bad_request"),
            ([("X-Filename", "a.txt")], {}, 415, "unsupported_media_type", None),
            ([], {"MAX_STREAM_SIZE": "9KB"}, 413, "payload_too_large", "too_large"),
        ],
        ids=["metadata", "kind", "size"],
    )
    async def test_refused_here(
        self,
        immich: StandIn,
        start_bridge: StartBridge,
        headers: list[tuple[str, str]],
        settings: dict[str, str],
        status: int,
        code: str,
        counted: str | None,
    ) -> None:
        bridge = await start_bridge(immich.url, **ON, **settings)
        before = await scrape(bridge)
        told = await upload(bridge.address, b"neither photo nor video" * 500, *headers)
        assert told.status == status
        changes = (await scrape_at_rest(bridge)).changes(before)
        expected = error(ROUTE, code) | outcome(counted or code)
        assert changes.items() >= expected.items()
        assert not any("upstream" in name for name in changes)

    async def test_without_credentials(self, immich: StandIn, start_bridge: StartBridge) -> None:
        bridge = await start_bridge(immich.url, **ON)
        before = await scrape(bridge)
        assert (await upload(bridge.address, PHOTO, key="")).status == 401
        changes = (await scrape_at_rest(bridge)).changes(before)
        expected = error(ROUTE, "unauthorized") | outcome("unauthorized")
        assert changes.items() >= expected.items()

    async def test_of_other_bytes_than_promised(
        self, immich: StandIn, start_bridge: StartBridge
    ) -> None:
        bridge = await start_bridge(immich.url, **ON)
        before = await scrape(bridge)
        raw = await exchange(bridge.address, upload_once(("x-immich-checksum", "0" * 40)))
        assert (await scrape_at_rest(bridge)).changes(before) == {
            **one_request(ROUTE, "POST", 422, len(PHOTO), len(raw)),
            **asked(ROUTE, answered=False),
            **error(ROUTE, "checksum_mismatch"),
            **outcome("checksum_mismatch"),
        }

    async def test_whose_client_leaves(self, immich: StandIn, start_bridge: StartBridge) -> None:
        bridge = await start_bridge(immich.url, **ON)
        before = await scrape(bridge)
        async with connect(bridge.address) as peer:
            await peer.send(upload_head(len(PHOTO)) + PHOTO[:50_000])
            halfway = await scrape_when(
                bridge,
                lambda seen: (
                    seen.value("immich_bridge_received_bytes_total", route=ROUTE) == 50_000
                ),
            )
            # It shows while it is on its way, not only at its end.
            assert in_flight(halfway) == {ROUTE: 1}
            assert halfway.value("immich_bridge_upstream_connections_open") == 1
            assert not any("_requests_total" in name for name in halfway.changes(before))
        after = await scrape_at_rest(bridge)
        assert after.changes(before) == {
            **one_request(ROUTE, "POST", 499, 50_000, 0),
            **asked(ROUTE, answered=False),
            **error(ROUTE, "client_gone"),
            **outcome("client_gone"),
        }
        assert after.value("immich_bridge_upstream_connections_open") == 0

    async def test_whose_client_falls_silent(
        self, immich: StandIn, start_bridge: StartBridge
    ) -> None:
        bridge = await start_bridge(immich.url, **ON, BODY_IDLE_TIMEOUT="100ms")
        before = await scrape(bridge)
        async with connect(bridge.address) as peer:
            await peer.send(upload_head(len(PHOTO)) + PHOTO[:50_000])
            assert (await peer.read_answer()).status == 408
        changes = (await scrape_at_rest(bridge)).changes(before)
        expected = error(ROUTE, "request_timeout") | outcome("client_timeout")
        assert changes.items() >= expected.items()

    @pytest.mark.parametrize(
        ("behaviour", "status", "code", "counted"),
        [
            ({"vanish_after": 50_000}, 502, "bad_gateway", "upstream_gone"),
            ({"answer_status": 302}, 502, "bad_gateway", "upstream_gone"),
            ({"never_answer": True}, 504, "gateway_timeout", "upstream_timeout"),
            ({}, 503, "unavailable", "upstream_unavailable"),
        ],
        ids=["vanishes", "redirects", "is silent", "is away"],
    )
    async def test_when_immich(
        self,
        immich: StandIn,
        start_bridge: StartBridge,
        behaviour: dict[str, Any],
        status: int,
        code: str,
        counted: str,
    ) -> None:
        url = immich.url
        if not behaviour:
            await immich.stop()
        immich.behaviour = Behaviour(**behaviour, method="POST")
        bridge = await start_bridge(url, **ON, UPSTREAM_RESPONSE_TIMEOUT="200ms")
        before = await scrape(bridge)
        assert (await upload(bridge.address, PHOTO)).status == status
        changes = (await scrape_at_rest(bridge)).changes(before)
        expected = error(ROUTE, code) | outcome(counted)
        assert changes.items() >= expected.items()
        immich.behaviour.release()

    async def test_are_posts_alone(self, immich: StandIn, start_bridge: StartBridge) -> None:
        bridge = await start_bridge(immich.url, **ON)
        before = await scrape(bridge)
        for method, status in (("GET", 405), ("OPTIONS", 200)):
            assert (await fetch(bridge.address, method, ROUTE)).status == status
        changes = (await scrape_at_rest(bridge)).changes(before)
        assert not any("uploads" in name for name in changes)


class TestProxy:
    async def test_counts_what_passes(self, start_bridge: StartBridge) -> None:
        not_found = answer("404 Not Found", body=b"nothing")
        async with recording_upstream([], not_found) as upstream:
            bridge = await start_bridge(upstream.url, **ON)
            before = await scrape(bridge)
            raw = await exchange(
                bridge.address,
                request("PUT", "/api/x?y=z", ("Connection", "close"), body=b"seven b"),
            )
            assert (await scrape_at_rest(bridge)).changes(before) == {
                **one_request("proxy", "PUT", 404, 7, len(raw)),
                **asked("proxy"),
            }

    async def test_keeps_connections(self, start_bridge: StartBridge) -> None:
        async with recording_upstream([]) as upstream:
            bridge = await start_bridge(upstream.url, **ON)
            for _ in range(3):
                await fetch(bridge.address, "GET", "/")
            seen = await scrape_at_rest(bridge)
        assert seen.value("immich_bridge_upstream_connections_total") == 1
        assert seen.value("immich_bridge_upstream_connections_open") == 1

    async def test_tells_how_long_immich_took(self, start_bridge: StartBridge) -> None:
        asked_for, may_answer = asyncio.Event(), asyncio.Event()

        async def script(peer: Peer) -> None:
            await peer.read_request()
            asked_for.set()
            await may_answer.wait()
            await peer.send(answer())

        async with front_of(start_bridge, script, **ON) as (bridge, _):
            fetching = asyncio.create_task(fetch(bridge.address, "GET", "/"))
            await asyncio.wait_for(asked_for.wait(), PATIENCE)
            started = asyncio.get_running_loop().time()
            await scrape_when(bridge, lambda _: asyncio.get_running_loop().time() > started + 0.06)
            may_answer.set()
            await fetching
            seen = await scrape_at_rest(bridge)
        waited = seen.value("immich_bridge_upstream_first_byte_seconds_sum", route="proxy")
        lasted = seen.value("immich_bridge_request_duration_seconds_sum", route="proxy")
        assert 0.05 < waited <= lasted
        assert self.below(seen, "0.05") == 0
        assert self.below(seen, "+Inf") == 1

    @staticmethod
    def below(seen: Scrape, bound: str) -> float:
        return seen.value(
            "immich_bridge_upstream_first_byte_seconds_bucket", route="proxy", le=bound
        )

    async def test_an_answer_that_breaks_off_is_an_error(self, start_bridge: StartBridge) -> None:
        async def script(peer: Peer) -> None:
            await peer.read_request()
            await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nfour")

        async with front_of(start_bridge, script, **ON) as (bridge, _):
            before = await scrape(bridge)
            raw = await exchange(bridge.address, request("GET", "/"))
            assert (await scrape_at_rest(bridge)).changes(before) == {
                **one_request("proxy", "GET", 200, 0, len(raw)),
                **asked("proxy"),
                **error("proxy", "bad_gateway"),
            }


async def test_websockets_are_counted_while_open_and_apart_from_requests(
    immich: StandIn, start_bridge: StartBridge
) -> None:
    bridge = await start_bridge(immich.url, **ON)
    before = await scrape(bridge)
    handshake = request(
        "GET",
        "/api/socket.io/?EIO=4&transport=websocket",
        ("Connection", "Upgrade"),
        ("Upgrade", "websocket"),
        ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ("Sec-WebSocket-Version", "13"),
    )
    async with connect(bridge.address) as first, connect(bridge.address) as second:
        for peer in (first, second):
            await peer.send(handshake)
            assert (await peer.read_head()).status == 101
        opened = await scrape(bridge)
        assert opened.value("immich_bridge_websockets_open") == 2
        assert in_flight(opened) == {"websocket": 2}
        await first.close()
        await scrape_when(bridge, lambda seen: in_flight(seen) == {"websocket": 1})
    after = await scrape_at_rest(bridge)
    assert after.value("immich_bridge_websockets_open") == 0
    changes = after.changes(before)
    answers = {name: value for name, value in changes.items() if "requests_total" in name}
    assert answers == {
        'immich_bridge_requests_total{method="GET",route="websocket",status="101"}': 2
    }
    assert not any("errors" in name for name in changes)


async def test_two_servers_share_nothing(immich: StandIn, start_bridge: StartBridge) -> None:
    servers: list[Server] = [await start_bridge(immich.url, **ON) for _ in range(2)]
    before = await scrape(servers[1])
    await upload(servers[0].address, PHOTO)
    await scrape_at_rest(servers[0])
    assert (await scrape(servers[1])).changes(before) == {}
