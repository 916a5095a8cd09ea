"""`GET /metrics`: who may read it and how, which names and labels there are, and no more."""

import asyncio
import random
import socket
import string
import sys
from pathlib import Path

import pytest
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as openmetrics_families,
)
from prometheus_client.samples import Sample

from front import StartBridge
from immich_bridge import __version__
from immich_bridge.config import Config
from immich_bridge.errors import BridgeError, ClientGone, StartError
from immich_bridge.http.metrics import UPLOAD_OUTCOMES
from immich_bridge.serve import Server, running_server
from immich_standin import StandIn
from log_capture import written_log
from scrape import ON, Scrape, get, in_flight, scrape, scrape_at_rest, scrape_when
from wire import PATIENCE, Peer, ScriptedUpstream, answer, connect, fetch, recording_upstream
from wire import request as http_request

README = Path(__file__).parent.parent.parent / "README.md"


def names_in(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def backup_settings(folder: Path) -> dict[str, str]:
    return {
        "BACKUP_ENABLED": "true",
        "DB_PATH": str(folder / "app.db"),
        "STORAGE_DIR": str(folder / "storage"),
        "JWT_SECRET": "x" * 32,
    }


@pytest.fixture
async def bridge(immich: StandIn, start_bridge: StartBridge) -> Server:
    return await start_bridge(immich.url, **ON)


class TestListener:
    async def test_tells_in_the_text_format(self, bridge: Server) -> None:
        told = await get(bridge)
        assert told.status == 200
        assert told.header("Content-Type") == "text/plain; version=0.0.4; charset=utf-8"
        assert b"\n# TYPE immich_bridge_requests_total counter\n" in told.body

    async def test_tells_in_openmetrics_when_asked(self, bridge: Server) -> None:
        await fetch(bridge.address, "GET", "/api/server/ping")
        accepted = ("Accept", "application/openmetrics-text;version=1.0.0,text/plain;q=0.5")
        told = await get(bridge, accepted)
        assert (told.header("Content-Type") or "").startswith(
            "application/openmetrics-text; version=1.0.0; charset=utf-8"
        )
        assert told.body.endswith(b"# EOF\n")
        # Its parser is strict: units, suffixes, order of buckets.
        families = openmetrics_families(told.body.decode())  # type: ignore[no-untyped-call]
        assert "immich_bridge_requests" in {family.name for family in families}

    @pytest.mark.parametrize("accepted", ["", ";", "a/b;version="])
    async def test_bears_any_wish(self, bridge: Server, accepted: str) -> None:
        assert (await get(bridge, ("Accept", accepted))).status == 200

    @pytest.mark.parametrize("path", ["/", "/metrics/", "/health", "/login", "/api/server/ping"])
    async def test_has_nothing_else(self, immich: StandIn, bridge: Server, path: str) -> None:
        assert (await get(bridge, path=path)).status == 404
        assert immich.requests == []

    async def test_is_not_where_clients_are(self, immich: StandIn, bridge: Server) -> None:
        await fetch(bridge.address, "GET", "/metrics")
        assert [seen.target for seen in immich.requests] == ["/metrics"]  # for Immich to answer

    async def test_is_off_by_default(self, immich: StandIn, start_bridge: StartBridge) -> None:
        bridge = await start_bridge(immich.url)
        assert bridge.metrics_address is None

    async def test_is_not_troubled_by_what_is_no_http(self, bridge: Server) -> None:
        before = await scrape(bridge)
        assert bridge.metrics_address is not None
        with written_log() as log:
            async with connect(bridge.metrics_address) as peer:
                await peer.send(b"GET /metrics m4rk3d\r\nx\r\n\r\n")
                assert (await peer.read_answer()).status == 400
        assert len(log.lines) == 1
        assert "m4rk3d" not in log.getvalue()
        assert (await scrape(bridge)).changes(before) == {}

    async def test_ends_with_the_server(self, immich: StandIn) -> None:
        settings = {"LISTEN_ADDR": "127.0.0.1:0", "BACKUP_ENABLED": "false", **ON}
        async with running_server(
            Config.from_mapping({**settings, "IMMICH_SERVER_URL": immich.url})
        ) as server:
            assert (await get(server)).status == 200
            address = server.metrics_address or ""
        with pytest.raises(ConnectionError):
            await fetch(address, "GET", "/metrics")

    async def test_is_there_until_the_last_request_has_ended(
        self, start_bridge: StartBridge
    ) -> None:
        came, may_answer = asyncio.Event(), asyncio.Event()

        async def script(peer: Peer) -> None:
            await peer.read_request()
            came.set()
            await may_answer.wait()
            await peer.send(answer())

        async with ScriptedUpstream(script) as upstream:
            bridge = await start_bridge(upstream.url, **ON)
            fetching = asyncio.create_task(fetch(bridge.address, "GET", "/"))
            await asyncio.wait_for(came.wait(), PATIENCE)
            draining = asyncio.create_task(bridge.drain(PATIENCE))
            assert in_flight(await scrape(bridge)) == {"proxy": 1}
            may_answer.set()
            assert (await fetching).status == 200
            assert await draining == 0
            assert in_flight(await scrape_at_rest(bridge)) == {}

    async def test_on_a_port_that_is_taken_stops_the_start(self, tmp_path: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            address = f"127.0.0.1:{taken.getsockname()[1]}"
            settings = {"LISTEN_ADDR": "127.0.0.1:0", "METRICS_ADDR": address}
            settings |= backup_settings(tmp_path)
            with pytest.raises(StartError, match=f"^METRICS_ADDR: cannot listen on {address}: "):
                async with running_server(Config.from_mapping(settings)):
                    pytest.fail("it runs")
        assert names_in(tmp_path) == []

    async def test_on_an_address_that_is_not_here_stops_the_start(self) -> None:
        settings = {"BACKUP_ENABLED": "false", "LISTEN_ADDR": "127.0.0.1:0"}
        config = Config.from_mapping({**settings, "METRICS_ADDR": "immich.invalid:9100"})
        with pytest.raises(StartError, match=r"^METRICS_ADDR: cannot listen on immich\.invalid:"):
            async with running_server(config):
                pytest.fail("it runs")


class TestNames:
    async def test_follow_the_conventions(self, bridge: Server) -> None:
        await fetch(bridge.address, "GET", "/api/server/ping")
        seen = await scrape_at_rest(bridge)
        for family in seen.families:
            assert family.name.startswith(("immich_bridge_", "process_")), family
            assert family.documentation, family
            if family.type == "counter":
                assert all(sample.name.endswith("_total") for sample in family.samples)
            if family.type == "histogram":
                assert family.name.endswith("_seconds")

    async def test_tell_what_is_running(self, bridge: Server) -> None:
        seen = await scrape(bridge)
        loop = type(asyncio.get_running_loop()).__module__.partition(".")[0]
        python = ".".join(map(str, sys.version_info[:3]))
        labels = {"version": __version__, "python": python, "event_loop": loop}
        assert seen.value("immich_bridge_build_info", **labels) == 1

    @pytest.mark.skipif(sys.platform != "linux", reason="it is read from /proc")
    async def test_tell_of_the_process(self, bridge: Server) -> None:
        seen = await scrape(bridge)
        assert seen.value("process_cpu_seconds_total") > 0
        assert seen.value("process_resident_memory_bytes") > 10_000_000
        assert seen.value("process_open_fds") > 3

    async def test_are_there_before_the_first_request(
        self, immich: StandIn, start_bridge: StartBridge
    ) -> None:
        # A counter that appears with its first event has no rate for that event.
        bridge = await start_bridge(immich.url, **ON)
        seen = await scrape(bridge)
        routes = {
            *("/health", "/ready", "/api/assets/background", "/uploads/", "/uploads/{name}"),
            "proxy",
        }
        assert {sample.labels["route"] for sample in traffic(seen)} == routes
        outcomes = "immich_bridge_background_uploads_total"
        assert sum(name.startswith(outcomes) for name in seen.samples) == 3 + len(UPLOAD_OUTCOMES)


def traffic(seen: Scrape) -> list[Sample]:
    """How long requests took, by route."""
    (family,) = (f for f in seen.families if f.name == "immich_bridge_request_duration_seconds")
    return family.samples


class TestLabels:
    async def test_are_bounded_whatever_clients_send(
        self, start_bridge: StartBridge, tmp_path: Path
    ) -> None:
        chance = random.Random(5)
        standard = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
        others = ["TRACE", "PROPFIND", "MKCOL", "PURGE", "REPORT", "LINK", "SEARCH", "M-SEARCH"]
        statuses = [200, 204, 299, 404, 418, 499, 599, 777, 999]
        ours = ["/login", "/photos/upload", "/photos/upload/stream", "/health", "/ready"]

        def path() -> str:
            letters = "".join(chance.choices(string.ascii_letters + string.digits + "/%{}", k=12))
            return chance.choice([f"/{letters}", f"/photos/{letters}", *ours])

        status = iter(chance.choices(statuses, k=1001))
        reply = recording_upstream([], lambda _: answer(f"{next(status)} Any"))
        async with reply as upstream:
            bridge = await start_bridge(upstream.url, **ON, **backup_settings(tmp_path))
            before = await scrape(bridge)
            async with connect(bridge.address) as peer:
                for _ in range(1000):
                    method = chance.choice(standard + others)
                    await peer.send(http_request(method, path()))
                    await peer.read_answer(method)
            seen = await scrape_at_rest(bridge)
        labels: dict[str, set[str]] = {}
        for family in seen.families:
            for sample in family.samples:
                if sample.name != "immich_bridge_build_info":
                    for name, value in sample.labels.items():
                        labels.setdefault(name, set()).add(value)
        assert labels["method"] == {*standard, "other"}
        expected = {"200", "204", "404", "418", "499", "other"}  # as Immich says
        assert labels["status"] <= expected | {"400", "401", "415", "429"}  # as we say
        assert labels["error"] <= {error.code for error in BridgeError.__subclasses__()}
        assert labels["route"] == {sample.labels["route"] for sample in traffic(before)}
        assert len(labels["route"]) == 13
        requests = [name for name in seen.samples if "_requests_total{" in name]
        total = sum(seen.samples[name] for name in requests)
        assert total == 1000

    async def test_of_what_is_no_http(self, bridge: Server) -> None:
        before = await scrape(bridge)
        for malformed in (b"\x00\r\n\r\n", b"GET / HTTP/1.1\r\nno colon\r\n\r\n"):
            async with connect(bridge.address) as peer:
                await peer.send(malformed)
                assert (await peer.read_answer()).status == 400
        assert (await scrape_at_rest(bridge)).changes(before) == {
            'immich_bridge_requests_total{method="other",route="malformed",status="400"}': 2,
            'immich_bridge_errors_total{error="bad_request",route="malformed"}': 2,
        }

    async def test_of_what_no_route_takes(self, start_bridge: StartBridge) -> None:
        bridge = await start_bridge("", **ON)
        told = await fetch(bridge.address, "GET", "/nothing/here")
        assert told.status == 404
        seen = await scrape_at_rest(bridge)
        labels = {"method": "GET", "route": "unrouted"}
        assert seen.value("immich_bridge_requests_total", **labels, status="404") == 1
        errors = seen.value("immich_bridge_errors_total", route="unrouted", error="not_found")
        assert errors == 1

    def test_of_outcomes_are_made_of_codes_that_exist(self) -> None:
        codes = {error.code for error in BridgeError.__subclasses__()}
        assert UPLOAD_OUTCOMES.keys() <= codes
        assert len({*UPLOAD_OUTCOMES.values()}) == len(UPLOAD_OUTCOMES)
        assert UPLOAD_OUTCOMES[ClientGone.code] == "client_gone"


async def test_clients_are_counted_by_their_connections(bridge: Server) -> None:
    async with connect(bridge.address) as first, connect(bridge.address) as second:
        for peer in (first, second):
            await peer.send(http_request("GET", "/health"))
            await peer.read_answer()
        seen = await scrape(bridge)
        assert seen.value("immich_bridge_client_connections_open") == 2
    await scrape_when(bridge, lambda seen: not seen.value("immich_bridge_client_connections_open"))


async def test_the_readme_lists_them_all(start_bridge: StartBridge, tmp_path: Path) -> None:
    async with recording_upstream([]) as upstream:
        bridge = await start_bridge(upstream.url, **ON, **backup_settings(tmp_path))
        await fetch(bridge.address, "GET", "/")
        seen = await scrape_at_rest(bridge)
    section = README.read_text().partition("\n## Watching it\n")[2].partition("\n## ")[0]
    listed = {
        row.split("|")[1].strip(" `").partition("{")[0]
        for row in section.splitlines()
        if row.startswith("| `immich_bridge_")
    }
    exposed = {
        f"{family.name}_total" if family.type == "counter" else family.name
        for family in seen.families
        if family.name.startswith("immich_bridge_")
    }
    assert listed == {
        name.replace("_build", "_build_info") if name.endswith("_build") else name
        for name in exposed
    }
