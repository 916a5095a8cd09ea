"""What every request gets: an id, an answer even when something fails, and one log line."""

import asyncio
import json
import re
from collections.abc import AsyncIterator

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from front import Front, StartBridge, front_of, front_of_a_recorder
from immich_bridge.app import make_app
from immich_bridge.config import Config
from immich_standin import StandIn
from log_capture import written_log
from wire import PATIENCE, Peer, answer, chunked, connect, fetch, request

OURS = "/api/assets/background"


@pytest.fixture
async def front(start_bridge: StartBridge) -> AsyncIterator[Front]:
    async with front_of_a_recorder(start_bridge) as front:
        yield front


class TestRequestIds:
    @pytest.mark.parametrize(
        "given",
        ["a", "0b6f8a3e-7c8a-4d0f-9d8e-2f1c3b4a5d6e", "Root=1-67/a:b+c@d~e_f.g", "x" * 128],
    )
    @pytest.mark.parametrize("target", ["/", "/health", OURS])
    async def test_of_the_client_are_kept(self, front: Front, given: str, target: str) -> None:
        told = await fetch(front.url, "GET", target, ("X-Request-Id", given))
        assert told.header("X-Request-Id") == given

    @pytest.mark.parametrize(
        "given", ["", " ", "x" * 129, "a b", 'a"b', "a,b", "é", "a\tb", "<script>", "a;b", "a%0ab"]
    )
    async def test_that_are_not_fit_for_a_log_are_replaced(self, front: Front, given: str) -> None:
        with written_log() as log:
            told = await fetch(front.url, "GET", "/", ("X-Request-Id", given))
            await log.wait_for(f" request_id={told.header('X-Request-Id')}")
        assert re.fullmatch(r"[0-9a-f]{32}", told.header("X-Request-Id") or "")
        if given.strip():
            assert given not in log.getvalue()

    async def test_are_made_anew_for_each_request(self, front: Front) -> None:
        async with connect(front.url) as peer:
            ids = set()
            for target in ("/", "/", "/health", OURS, "/ready"):
                await peer.send(request("GET", target))
                ids.add((await peer.read_answer()).header("X-Request-Id"))
        assert len(ids) == 5

    async def test_of_immich_do_not_replace_them(self, front: Front) -> None:
        front.reply = answer("200 OK", ("x-request-id", "of immich"))
        told = await fetch(front.url, "GET", "/", ("X-Request-Id", "mine"))
        assert told.all("X-Request-Id") == ["mine"]


class TestAccessLog:
    async def test_line_as_text(self, front: Front) -> None:
        front.reply = answer("201 Created", body=b"answer")
        with written_log() as log:
            async with connect(front.url) as peer:
                fields = ("X-Request-Id", "mine"), ("Connection", "close")
                await peer.send(request("POST", "/a/b?c=d", *fields, body=b"seven b"))
                raw = await peer.read_to_end()
        assert len(log.lines) == 1
        match = re.fullmatch(
            r"\S+Z INFO request client=127\.0\.0\.1 route=proxy method=POST path=/a/b status=201 "
            r"bytes_in=7 bytes_out=(\d+) duration_ms=\d+\.\d upstream_ms=\d+\.\d request_id=mine",
            log.lines[0],
        )
        assert match, log.lines[0]
        assert int(match[1]) == len(raw)

    async def test_line_as_json(self, front: Front) -> None:
        framed = chunked(b"ab", b"c")
        front.reply = answer("200 OK", ("Transfer-Encoding", "chunked"), body=framed)
        with written_log("json") as log:
            async with connect(front.url) as peer:
                fields = ("X-Request-Id", "mine"), ("Connection", "close")
                await peer.send(request("GET", "/a/b?c=d", *fields))
                raw = await peer.read_to_end()
        (event,) = map(json.loads, log.lines)
        assert isinstance(event.pop("time"), str)
        assert 0 <= event.pop("upstream_ms") <= event.pop("duration_ms") < 10_000
        assert event == {
            "level": "info",
            "logger": "immich_bridge.access",
            "message": "request",
            "client": "127.0.0.1",
            "route": "proxy",
            "method": "GET",
            "path": "/a/b",
            "status": 200,
            "bytes_in": 0,
            "bytes_out": len(raw),
            "request_id": "mine",
        }

    async def test_tells_what_became_of_a_refused_request(self, front: Front) -> None:
        with written_log("json") as log:
            told = await fetch(front.url, "GET", OURS)
            (event,) = map(json.loads, log.lines)
        assert told.status == 405
        assert (event["status"], event["path"], event["route"]) == (405, OURS, OURS)
        assert event["error"] == "method_not_allowed"
        assert event["outcome"] == json.loads(told.body)["message"]

    async def test_tells_that_immich_broke_off(self, start_bridge: StartBridge) -> None:
        async def script(peer: Peer) -> None:
            await peer.read_request()
            await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nfour")

        with written_log() as log:
            async with front_of(start_bridge, script) as (bridge, _):
                async with connect(bridge.address) as peer:
                    await peer.send(request("GET", "/a"))
                    await peer.read_to_end()
                line = await log.wait_for(" path=/a ")
        assert " status=200 " in line
        assert ' outcome="Immich broke off its answer"' in line

    async def test_tells_that_the_client_left(self, start_bridge: StartBridge) -> None:
        came = asyncio.Event()

        async def script(peer: Peer) -> None:
            await peer.read_request()
            came.set()
            await peer.read_to_end()

        with written_log() as log:
            async with front_of(start_bridge, script) as (bridge, _):
                async with connect(bridge.address) as peer:
                    await peer.send(request("GET", "/a"))
                    await asyncio.wait_for(came.wait(), PATIENCE)
                line = await log.wait_for(" path=/a ")
        assert " status=499 " in line
        assert line.endswith(" outcome=client_gone")
        assert len(log.lines) == 1

    @pytest.mark.parametrize(
        ("trusted", "client"), [("", "127.0.0.1"), ("127.0.0.0/8", "198.51.100.7")]
    )
    async def test_names_the_client_behind_trusted_proxies(
        self, start_bridge: StartBridge, trusted: str, client: str
    ) -> None:
        with written_log() as log:
            async with front_of_a_recorder(start_bridge, TRUSTED_PROXIES=trusted) as front:
                chain = ("X-Forwarded-For", "203.0.113.1, 198.51.100.7")
                await fetch(front.url, "GET", "/", chain)
        assert f" client={client} " in log.lines[0]

    async def test_leaves_health_checks_out(self, front: Front) -> None:
        with written_log() as log:
            await fetch(front.url, "GET", "/health")
            await fetch(front.url, "HEAD", "/health")
            await fetch(front.url, "GET", "/ready")
        assert [re.search(r"path=\S+", line)[0] for line in log.lines] == ["path=/ready"]  # type: ignore[index]

    async def test_leaves_nothing_out_that_goes_to_immich(self, front: Front) -> None:
        with written_log() as log:
            await fetch(front.url, "POST", "/health")
            await fetch(front.url, "GET", "/health?a")
            await fetch(front.url, "GET", "/health/")
        assert [message.target for message in front.seen] == [b"/health", b"/health/"]
        assert len(log.lines) == 3

    async def test_costs_nothing_when_it_is_not_wanted(self, front: Front) -> None:
        with written_log(level="warning") as log:
            await fetch(front.url, "GET", "/")
        assert log.lines == []


class TestSecrets:
    HEADERS = (
        "x-api-key",
        "Authorization",
        "Proxy-Authorization",
        "x-immich-user-token",
        "x-immich-session-token",
        "x-immich-share-key",
        "x-immich-share-slug",
        "Cookie",
        "Referer",
        "Sec-WebSocket-Protocol",
        "X-Forwarded-For",
        "X-Unknown",
    )

    @pytest.mark.parametrize("log_format", ["text", "json"])
    @pytest.mark.parametrize("reach", ["ours", "immich", "an immich that is away", "no immich"])
    async def test_are_in_no_line(
        self, immich: StandIn, start_bridge: StartBridge, log_format: str, reach: str
    ) -> None:
        secret = "m4rk3d"
        query = f"apiKey={secret}1&key={secret}2&slug={secret}3&password={secret}4"
        targets = {
            "ours": [f"{OURS}?{query}", f"/ready?{query}"],
        }.get(
            reach,
            [
                f"/api/users/me?{query}",
                f"/share/{secret}",
                f"/share/{secret}/photos/7",
                f"/s/{secret}?{query}",
                f"http://user:{secret}@immich/share/{secret}#{secret}",
                f"/api/socket.io/?{query}",
            ],
        )
        url = {"ours": immich.url, "immich": immich.url, "no immich": ""}.get(reach)
        headers = [(name, f"{secret}{number}") for number, name in enumerate(self.HEADERS)]
        upgrade = [("Connection", "Upgrade"), ("Upgrade", "websocket")]
        with written_log(log_format, level="debug") as log:
            if url is None:
                await immich.stop()
                url = immich.url
            bridge = await start_bridge(url)
            photo = b"\xff\xd8\xff" + secret.encode()
            told = [
                await fetch(bridge.address, method, target, *fields, body=body)
                for target in targets
                for fields in (headers, headers + upgrade)
                for method, body in (("GET", b""), ("POST", b""), ("POST", photo))
            ]
        lines = [line for line in log.lines if "request_id" in line]
        assert len(lines) == len(told)
        assert secret not in log.getvalue()
        ours = [answered for answered in told if answered.header("X-Bridge-Error")]
        assert not any(secret.encode() in answered.body for answered in ours)

    async def test_are_in_no_line_about_a_tunnel(
        self, immich: StandIn, start_bridge: StartBridge
    ) -> None:
        secret = "m4rk3d"
        bridge = await start_bridge(immich.url)
        target = f"/api/socket.io/?EIO=4&transport=websocket&apiKey={secret}"
        fields = [
            ("Connection", "Upgrade"),
            ("Upgrade", "websocket"),
            ("Sec-WebSocket-Version", "13"),
            ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
            ("Cookie", f"immich_access_token={secret}"),
        ]
        with written_log(level="debug") as log:
            async with connect(bridge.address) as peer:
                await peer.send(request("GET", target, *fields))
                assert (await peer.read_head()).status == 101
                await peer.send(secret.encode())
            await log.wait_for(" status=101 ")
        assert secret not in log.getvalue()


class TestUnexpectedErrors:
    async def test_are_answered_and_logged_with_the_id(self) -> None:
        async def broken(request: web.Request) -> web.StreamResponse:
            raise RuntimeError("this was not foreseen")

        app = make_app(Config.from_mapping({"IMMICH_SERVER_URL": "", "BACKUP_ENABLED": "false"}))
        app.router.add_get("/broken", broken)
        with written_log() as log:
            server = TestServer(app)
            await server.start_server(access_log=None)
            try:
                url = str(server.make_url(""))
                told = await fetch(url, "GET", "/broken?key=m4rk3d", ("X-Request-Id", "mine"))
            finally:
                await server.close()
        assert told.status == 500
        assert told.header("X-Request-Id") == "mine"
        assert json.loads(told.body) == {
            "error": "internal_error",
            "message": "an unexpected error occurred",
        }
        assert "ERROR unexpected error in GET /broken (request mine)" in log.getvalue()
        assert "RuntimeError: this was not foreseen" in log.getvalue()
        assert " path=/broken status=500 " in log.lines[-1]
        assert "m4rk3d" not in log.getvalue()
