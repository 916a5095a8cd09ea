"""The log line of a request: what joins it with the metrics and with Immich's own log."""

import json
from typing import Any

import pytest

from front import StartBridge
from immich_standin import StandIn
from immich_standin.behaviour import Behaviour
from log_capture import WrittenLog, written_log
from raw_upload import ROUTE, jpeg, upload
from scrape import ON, scrape_at_rest
from wire import answer, connect, fetch, recording_upstream, request

PHOTO = jpeg(10_000)


def requests(log: WrittenLog) -> list[dict[str, Any]]:
    """The lines about requests."""
    return [event for event in map(json.loads, log.lines) if event["message"] == "request"]


class TestCorrelationIds:
    @pytest.mark.parametrize(
        ("immich", "header"),
        [(3, "X-Correlation-ID"), (2, "x-immich-cid")],
        ids=["v3", "v2"],
        indirect=["immich"],
    )
    async def test_of_both_releases_are_in_the_line(
        self, immich: StandIn, start_bridge: StartBridge, header: str
    ) -> None:
        bridge = await start_bridge(immich.url)
        with written_log("json") as log:
            told = [
                await fetch(bridge.address, "GET", "/api/server/ping"),
                await upload(bridge.address, PHOTO),
                await upload(bridge.address, PHOTO, key="wrong"),
            ]
        ids = [message.header(header) for message in told]
        assert all(ids)
        assert len({*ids}) == 3
        assert [event["correlation_id"] for event in requests(log)] == ids

    @pytest.mark.parametrize(
        ("fields", "shown"),
        [
            ([], None),
            ([("X-Correlation-ID", "a" * 128)], "a" * 128),
            ([("X-Correlation-ID", "a" * 129)], None),
            ([("X-Correlation-ID", "a b")], None),
            ([("X-Correlation-ID", 'a" error="none')], None),
            ([("X-Correlation-ID", "é")], None),
            ([("X-Correlation-ID", "")], None),
            ([("X-Correlation-ID", "a b"), ("x-immich-cid", "c")], "c"),
            ([("x-immich-cid", "v2"), ("x-correlation-id", "v3")], "v3"),
        ],
    )
    async def test_are_bounded_and_plain(
        self, start_bridge: StartBridge, fields: list[tuple[str, str]], shown: str | None
    ) -> None:
        async with recording_upstream([], answer("200 OK", *fields)) as upstream:
            bridge = await start_bridge(upstream.url)
            with written_log("json") as log:
                told = await fetch(bridge.address, "GET", "/")
        assert [told.all(name) for name, _ in fields] == [
            [value.encode().decode("latin-1")] for _, value in fields
        ]
        (event,) = requests(log)
        assert event.get("correlation_id") == shown

    async def test_of_a_websocket_are_in_its_line(self, start_bridge: StartBridge) -> None:
        accepted = answer(
            "101 Switching Protocols",
            ("Upgrade", "websocket"),
            ("Connection", "Upgrade"),
            ("X-Correlation-ID", "tunnel"),
            ("Content-Length", "0"),
        )
        fields = ("Connection", "Upgrade"), ("Upgrade", "websocket")
        async with recording_upstream([], accepted) as upstream:
            bridge = await start_bridge(upstream.url)
            with written_log("json") as log:
                async with connect(bridge.address) as peer:
                    await peer.send(request("GET", "/api/socket.io/", *fields))
                    assert (await peer.read_head()).status == 101
                await log.wait_for('"status": 101')
        (event,) = requests(log)
        assert (event["route"], event["correlation_id"]) == ("websocket", "tunnel")
        assert "error" not in event


class TestWhatJoinsLogAndMetrics:
    async def test_every_line_has_its_count(
        self, immich: StandIn, start_bridge: StartBridge
    ) -> None:
        bridge = await start_bridge(immich.url, **ON, MAX_STREAM_SIZE="1MB")
        with written_log("json") as log:
            await fetch(bridge.address, "GET", "/api/server/ping")
            await fetch(bridge.address, "GET", "/api/nothing", ("x-api-key", "wrong"))
            await fetch(bridge.address, "DELETE", ROUTE)
            await upload(bridge.address, PHOTO)
            await upload(bridge.address, PHOTO)
            await upload(bridge.address, PHOTO, key="wrong")
            await upload(bridge.address, jpeg(1_500_000))
            await upload(bridge.address, PHOTO, ("x-immich-checksum", "0" * 40))
            immich.behaviour = Behaviour(vanish_after=5_000, method="POST")
            await upload(bridge.address, PHOTO)
            seen = await scrape_at_rest(bridge)
        events = requests(log)
        assert len(events) == 9
        for event in events:
            labels = {"route": event["route"], "method": event["method"]}
            status = str(event["status"])
            assert seen.value("immich_bridge_requests_total", **labels, status=status) > 0
            if "error" in event:
                failed = {"route": event["route"], "error": event["error"]}
                assert seen.value("immich_bridge_errors_total", **failed) > 0
            assert ("upload" in event) == (event["route"] == ROUTE and event["method"] == "POST")
            if "upload" in event:
                outcome = event["upload"]
                assert seen.value("immich_bridge_background_uploads_total", outcome=outcome) == 1
        assert sum(v for k, v in seen.samples.items() if "_requests_total" in k) == 9
        failures = sum("error" in event for event in events)
        assert sum(v for k, v in seen.samples.items() if "_errors_total" in k) == failures == 4

    async def test_malformed_requests_have_a_route_too(
        self, immich: StandIn, start_bridge: StartBridge
    ) -> None:
        bridge = await start_bridge(immich.url)
        with written_log("json") as log:
            async with connect(bridge.address) as peer:
                await peer.send(b"nonsense\r\n\r\n")
                await peer.read_answer()
        (event,) = map(json.loads, log.lines)
        assert (event["message"], event["route"]) == ("malformed request", "malformed")

    async def test_the_wait_for_immich_is_told_apart(
        self, immich: StandIn, start_bridge: StartBridge
    ) -> None:
        bridge = await start_bridge(immich.url)
        with written_log("json") as log:
            await upload(bridge.address, PHOTO)
            await upload(bridge.address, PHOTO, key="")
        asked, refused = requests(log)
        assert 0 <= asked["upstream_ms"] <= asked["duration_ms"]
        assert "upstream_ms" not in refused  # nobody was asked
