"""`/health` and `/ready`: is the process alive, and should it be given work?"""

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any

import pytest

from front import Front, StartBridge, front_of, front_of_a_recorder, let_time_pass, unused_port
from immich_bridge.http import health
from wire import Message, Peer, answer, connect, fetch, request


@pytest.fixture
async def front(start_bridge: StartBridge) -> AsyncIterator[Front]:
    async with front_of_a_recorder(start_bridge) as front:
        yield front


def body_of(told: Message) -> Any:
    assert (told.header("Content-Type") or "").startswith("application/json")
    return json.loads(told.body)


class TestHealth:
    async def test_tells_the_time(self, front: Front) -> None:
        before = int(time.time())
        told = await fetch(front.url, "GET", "/health")
        assert told.status == 200
        state = body_of(told)
        assert state.keys() == {"status", "timestamp", "time"}
        assert state["status"] == "ok"
        assert before <= state["timestamp"] <= time.time()
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", state["time"])
        assert datetime.fromisoformat(state["time"]).timestamp() == state["timestamp"]

    async def test_asks_nobody(self, front: Front) -> None:
        await fetch(front.url, "GET", "/health")
        assert front.upstream.connections == 0

    @pytest.mark.parametrize("immich", ["off", "away"])
    async def test_is_fine_without_immich(self, start_bridge: StartBridge, immich: str) -> None:
        url = "" if immich == "off" else f"http://127.0.0.1:{unused_port()}"
        bridge = await start_bridge(url, READY_REQUIRES_IMMICH="true")
        assert (await fetch(bridge.address, "GET", "/health")).status == 200

    @pytest.mark.parametrize("target", ["/health", "/ready"])
    async def test_head_has_no_body(self, front: Front, target: str) -> None:
        async with connect(front.url) as peer:
            await peer.send(request("HEAD", target))
            told = await peer.read_answer("HEAD")
            assert told.status == 200
            assert int(told.header("Content-Length") or 0) > 0
            await peer.send(request("GET", "/next"))
            assert (await peer.read_answer()).status == 200
        assert front.seen[-1].target == b"/next"


class TestReady:
    async def test_when_immich_answers(self, front: Front) -> None:
        told = await fetch(front.url, "GET", "/ready")
        assert told.status == 200
        checks = {"immich": "ok", "database": "off", "storage": "off"}
        assert body_of(told) == {"status": "ok", "checks": checks}

    async def test_asks_immich_without_credentials(self, start_bridge: StartBridge) -> None:
        async with front_of_a_recorder(start_bridge, "/prefix") as front:
            await fetch(front.url, "GET", "/ready", ("x-api-key", "k"), ("Cookie", "a=b"))
        assert front.seen[0].first_line == b"GET /prefix/api/server/ping HTTP/1.1"
        assert [name for name, _ in front.seen[0].headers] == [b"Host", b"User-Agent"]

    @pytest.mark.parametrize("required", [False, True])
    @pytest.mark.parametrize("immich", ["away", "sick"])
    async def test_when_immich_does_not(
        self, start_bridge: StartBridge, immich: str, required: bool
    ) -> None:
        async def script(peer: Peer) -> None:
            await peer.read_request()
            if immich == "sick":
                await peer.send(answer("500 Internal Server Error"))

        setting = {"READY_REQUIRES_IMMICH": str(required).lower()}
        async with front_of(start_bridge, script, **setting) as (bridge, _):
            told = await fetch(bridge.address, "GET", "/ready")
        state = body_of(told)
        assert "Immich" in state["checks"]["immich"]
        assert ("500" in state["checks"]["immich"]) == (immich == "sick")
        assert state["status"] == ("unavailable" if required else "ok")
        assert told.status == (503 if required else 200)
        assert (told.header("Retry-After") is not None) == required

    @pytest.mark.parametrize("required", ["false", "true"])
    async def test_when_there_is_no_bridge(self, start_bridge: StartBridge, required: str) -> None:
        bridge = await start_bridge("", READY_REQUIRES_IMMICH=required)
        told = await fetch(bridge.address, "GET", "/ready")
        assert told.status == 200
        assert body_of(told)["checks"]["immich"] == "off"

    async def test_asks_once_for_many_at_once_and_soon_after(self, front: Front) -> None:
        told = await asyncio.gather(*(fetch(front.url, "GET", "/ready") for _ in range(20)))
        told += [await fetch(front.url, "GET", "/ready") for _ in range(3)]
        assert all(each.status == 200 for each in told)
        assert len(front.seen) == 1

    async def test_asks_again_after_a_while(
        self, front: Front, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert 1 <= health.REUSE_SECONDS <= 5
        monkeypatch.setattr(health, "REUSE_SECONDS", 0.05)
        assert body_of(await fetch(front.url, "GET", "/ready"))["checks"]["immich"] == "ok"
        front.reply = answer("503 Starting")
        await let_time_pass(0.1)
        told = await fetch(front.url, "GET", "/ready")
        assert body_of(told)["checks"]["immich"] == "Immich answered 503"
        assert len(front.seen) == 2

    async def test_does_not_wait_for_a_silent_immich(self, start_bridge: StartBridge) -> None:
        async def script(peer: Peer) -> None:
            await peer.read_request()
            assert await peer.read_to_end() == b""

        async with front_of(start_bridge, script, READY_REQUIRES_IMMICH="true") as (bridge, _):
            started = time.monotonic()
            told = await fetch(bridge.address, "GET", "/ready")
            assert time.monotonic() - started < 2.5
        assert told.status == 503
        assert body_of(told)["checks"]["immich"] == "no answer within 2 s"

    async def test_tells_when_the_server_stops(self, start_bridge: StartBridge) -> None:
        asked, may_answer = asyncio.Event(), asyncio.Event()

        async def script(peer: Peer) -> None:
            await peer.read_request()
            asked.set()
            await may_answer.wait()
            await peer.send(answer())

        async with front_of(start_bridge, script) as (bridge, _), connect(bridge.address) as peer:
            await peer.send(request("GET", "/ready"))
            await asyncio.wait_for(asked.wait(), 5)
            draining = asyncio.create_task(bridge.drain(5))
            await asyncio.sleep(0)  # lets the draining begin
            may_answer.set()
            told = await peer.read_answer()
            assert await draining == 0
        assert told.status == 503
        assert body_of(told)["status"] == "shutting_down"
        assert told.header("Retry-After") is not None
        assert told.header("Connection") == "close"
