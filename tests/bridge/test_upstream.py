"""The way to Immich when it is stony: refused, idle, silent or crowded connections."""

import asyncio
import json
import socket
from collections import Counter

import pytest

from front import StartBridge, front_of, let_time_pass, unused_port
from immich_bridge.bridge.exchange import UpstreamProtocol
from immich_bridge.bridge.upstream import Upstream
from immich_bridge.config import Config
from immich_bridge.http.metrics import Metrics
from immich_bridge.serve import event_loop_factory
from wire import PATIENCE, Message, Peer, answer, connect, fetch, recording_upstream, request


def assert_error(told: Message, status: int, code: str) -> None:
    assert told.status == status
    assert told.header("Content-Type") == "application/json"
    assert told.header("X-Bridge-Error") == code
    assert told.header("X-Request-Id")
    error = json.loads(told.body)
    assert error.keys() == {"error", "message"}
    assert error["error"] == code
    assert "Immich" in error["message"]


def test_a_connection_given_up_while_it_is_made_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """uvloop closes it, and tells its protocol nothing of that."""
    made: list[UpstreamProtocol] = []
    connection_made = UpstreamProtocol.connection_made

    async def give_up() -> None:
        async with recording_upstream([]) as immich:
            upstream = Upstream(Config.from_mapping({"IMMICH_SERVER_URL": immich.url}))
            metrics = Metrics("uvloop")
            upstream.expose(metrics)
            async with upstream:
                pinging = asyncio.create_task(upstream.ping())

                def made_and_given_up(
                    self: UpstreamProtocol, transport: asyncio.BaseTransport
                ) -> None:
                    connection_made(self, transport)
                    made.append(self)
                    pinging.cancel()

                monkeypatch.setattr(UpstreamProtocol, "connection_made", made_and_given_up)
                with pytest.raises(asyncio.CancelledError):
                    await pinging
                assert len(made) == 1
                value = metrics.registry.get_sample_value
                assert value("immich_bridge_upstream_connections_open") == 0
                assert value("immich_bridge_upstream_connections_total") == 1

    with asyncio.Runner(loop_factory=event_loop_factory()) as runner:
        runner.run(give_up())


class TestConnecting:
    @pytest.mark.parametrize("body", [b"", b"abc"])
    async def test_refused(self, start_bridge: StartBridge, body: bytes) -> None:
        bridge = await start_bridge(f"http://127.0.0.1:{unused_port()}")
        told = await fetch(bridge.address, "POST" if body else "GET", "/", body=body)
        assert_error(told, 503, "unavailable")
        assert int(told.header("Retry-After") or 0) > 0

    async def test_a_host_that_does_not_exist(self, start_bridge: StartBridge) -> None:
        bridge = await start_bridge("http://immich.invalid")
        assert_error(await fetch(bridge.address, "GET", "/"), 503, "unavailable")

    async def test_not_taken_in_time(self, start_bridge: StartBridge) -> None:
        with socket.socket() as listener, socket.socket() as first, socket.socket() as second:
            listener.bind(("127.0.0.1", 0))
            listener.listen(0)
            # Nobody accepts, so that these two fill the queue, and a third has to wait.
            for waiting in (first, second):
                waiting.setblocking(False)
                waiting.connect_ex(listener.getsockname())
            bridge = await start_bridge(
                f"http://127.0.0.1:{listener.getsockname()[1]}", UPSTREAM_CONNECT_TIMEOUT="100ms"
            )
            assert_error(await fetch(bridge.address, "GET", "/"), 504, "gateway_timeout")

    @pytest.mark.parametrize("failures", [1, 2])
    @pytest.mark.parametrize("body", [b"", b"abc"])
    async def test_is_tried_a_second_time(
        self,
        start_bridge: StartBridge,
        monkeypatch: pytest.MonkeyPatch,
        body: bytes,
        failures: int,
    ) -> None:
        loop = asyncio.get_running_loop()
        sock_connect, attempts = loop.sock_connect, 0

        async def refused_at_first(sock: socket.socket, address: tuple[str, int]) -> None:
            nonlocal attempts
            if address != upstream_address:
                return await sock_connect(sock, address)
            attempts += 1
            if attempts <= failures:
                raise ConnectionRefusedError
            return await sock_connect(sock, address)

        seen: list[Message] = []
        async with recording_upstream(seen) as upstream:
            upstream_address = ("127.0.0.1", int(upstream.url.rpartition(":")[2]))
            bridge = await start_bridge(upstream.url)
            monkeypatch.setattr(loop, "sock_connect", refused_at_first)
            told = await fetch(bridge.address, "POST" if body else "GET", "/", body=body)
        assert attempts == 2
        assert told.status == (200 if failures == 1 else 503)
        assert [message.body for message in seen] == [body] * (2 - failures)

    async def test_back_as_soon_as_immich_is_back(self, start_bridge: StartBridge) -> None:
        port = unused_port()
        bridge = await start_bridge(f"http://127.0.0.1:{port}")
        assert (await fetch(bridge.address, "GET", "/")).status == 503

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            peer = Peer(reader, writer)
            await peer.read_request()
            await peer.send(answer())
            await peer.close()

        async with await asyncio.start_server(serve, "127.0.0.1", port):
            assert (await fetch(bridge.address, "GET", "/")).status == 200


class TestAnswers:
    @pytest.mark.parametrize(
        "garbage",
        [
            b"garbage\r\n\r\n",
            b"HTTP/1.1 abc\r\n\r\n",
            b"HTTP/3.9 200 OK\r\n\r\n",
            b"\x15\x03\x01\x00\x02\x02\x46\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
            b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000 + b"\r\n\r\n",
        ],
        ids=range(8),
    )
    @pytest.mark.parametrize("method", ["GET", "POST"])
    async def test_that_are_none(
        self, start_bridge: StartBridge, method: str, garbage: bytes
    ) -> None:
        came = 0

        async def script(peer: Peer) -> None:
            nonlocal came
            await peer.read_request()
            came += 1
            await peer.send(garbage)

        async with front_of(start_bridge, script) as (bridge, _):
            body = b"abc" if method == "POST" else b""
            told = await fetch(bridge.address, method, "/", body=body)
        assert_error(told, 502, "bad_gateway")
        assert came == 1

    @pytest.mark.parametrize("ending", ["fin", "rst", "half a head"])
    @pytest.mark.parametrize("body", [b"", b"abc"])
    async def test_to_a_post_that_never_come_are_not_asked_for_twice(
        self, start_bridge: StartBridge, ending: str, body: bytes
    ) -> None:
        came = 0

        async def script(peer: Peer) -> None:
            nonlocal came
            await peer.read_request()
            came += 1
            if ending == "rst":
                peer.reset()
            elif ending == "half a head":
                await peer.send(b"HTTP/1.1 200 OK\r\nX-A: ")

        async with front_of(start_bridge, script) as (bridge, _):
            length = ("Content-Length", str(len(body)))
            told = await fetch(bridge.address, "POST", "/", length, body=body)
        assert_error(told, 502, "bad_gateway")
        assert came == 1

    @pytest.mark.parametrize("method", ["GET", "HEAD", "DELETE", "PUT", "OPTIONS"])
    async def test_to_what_may_be_repeated_are_asked_for_again(
        self, start_bridge: StartBridge, method: str
    ) -> None:
        came = 0

        async def script(peer: Peer) -> None:
            nonlocal came
            await peer.read_request()
            came += 1
            if came > 1:
                await peer.send(answer())

        async with front_of(start_bridge, script) as (bridge, _), connect(bridge.address) as peer:
            await peer.send(request(method, "/"))
            assert (await peer.read_answer(method)).status == 200
        assert came == 2

    async def test_that_never_come_are_asked_for_twice_at_most(
        self, start_bridge: StartBridge
    ) -> None:
        came = 0

        async def script(peer: Peer) -> None:
            nonlocal came
            await peer.read_request()
            came += 1

        async with front_of(start_bridge, script) as (bridge, _):
            assert_error(await fetch(bridge.address, "GET", "/"), 502, "bad_gateway")
        assert came == 2


class TestSilence:
    @pytest.mark.parametrize("body", [b"", b"abc"])
    async def test_ends_in_a_timeout(self, start_bridge: StartBridge, body: bytes) -> None:
        let_go = asyncio.Event()

        async def script(peer: Peer) -> None:
            await peer.read_request()
            assert await peer.read_to_end() == b""
            let_go.set()

        front = front_of(start_bridge, script, UPSTREAM_RESPONSE_TIMEOUT="100ms")
        async with front as (bridge, upstream):
            told = await fetch(bridge.address, "POST" if body else "GET", "/", body=body)
            assert_error(told, 504, "gateway_timeout")
            await asyncio.wait_for(let_go.wait(), PATIENCE)
            assert upstream.connections == 1

    async def test_counts_from_the_end_of_the_body(self, start_bridge: StartBridge) -> None:
        async def script(peer: Peer) -> None:
            await peer.read_request()
            await peer.send(answer())

        front = front_of(start_bridge, script, UPSTREAM_RESPONSE_TIMEOUT="300ms")
        async with front as (bridge, _), connect(bridge.address) as peer:
            await peer.send(request("POST", "/", ("Content-Length", "4")))
            for byte in (b"a", b"b", b"c", b"d"):
                await let_time_pass(0.1)
                await peer.send(byte)
            assert (await peer.read_answer()).status == 200

    @pytest.mark.parametrize("framing", ["Content-Length: 8", "X-Until: close"])
    async def test_does_not_end_an_answer_whose_bytes_flow(
        self, start_bridge: StartBridge, framing: str
    ) -> None:
        async def script(peer: Peer) -> None:
            await peer.read_request()
            await peer.send(f"HTTP/1.1 200 OK\r\n{framing}\r\n\r\n".encode())
            for byte in b"abcdefgh":
                await let_time_pass(0.08)
                await peer.send(bytes([byte]))

        front = front_of(start_bridge, script, UPSTREAM_RESPONSE_TIMEOUT="400ms")
        async with front as (bridge, _):
            assert (await fetch(bridge.address, "GET", "/")).body == b"abcdefgh"

    async def test_in_the_middle_of_an_answer_cuts_it_short(
        self, start_bridge: StartBridge
    ) -> None:
        async def script(peer: Peer) -> None:
            await peer.read_request()
            await peer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n")
            assert await peer.read_to_end() == b""

        front = front_of(start_bridge, script, UPSTREAM_RESPONSE_TIMEOUT="100ms")
        async with front as (bridge, _), connect(bridge.address) as peer:
            await peer.send(request("GET", "/"))
            assert (await peer.read_head()).status == 200
            assert await peer.read_to_end() == b"5\r\nfirst\r\n"


class TestConnections:
    async def test_are_used_again(self, start_bridge: StartBridge) -> None:
        async with recording_upstream([]) as upstream:
            bridge = await start_bridge(upstream.url)
            for _ in range(10):
                assert (await fetch(bridge.address, "GET", "/")).status == 200
            assert upstream.connections == 1

    async def test_150_requests_are_under_way_at_once(self, start_bridge: StartBridge) -> None:
        arrived = 0
        all_here = asyncio.Event()

        async def script(peer: Peer) -> None:
            nonlocal arrived
            message = await peer.read_request()
            arrived += 1
            if arrived == 150:
                all_here.set()
            await all_here.wait()
            await peer.send(answer(body=message.target))

        async with front_of(start_bridge, script) as (bridge, _):
            targets = [f"/{number}" for number in range(150)]
            told = await asyncio.gather(*(fetch(bridge.address, "GET", each) for each in targets))
        assert [each.body.decode() for each in told] == targets

    async def test_that_immich_closes_while_idle_never_become_an_error(
        self, start_bridge: StartBridge
    ) -> None:
        async def script(peer: Peer) -> None:
            await peer.read_request()
            await peer.send(answer("200 OK", ("Connection", "keep-alive")))

        async with front_of(start_bridge, script) as (bridge, _), connect(bridge.address) as peer:
            for number in range(100):
                post = number % 3 == 0
                body = b"abc" if post else b""
                await peer.send(request("POST" if post else "GET", f"/{number}", body=body))
                assert (await peer.read_answer()).status == 200

    async def test_that_immich_drops_as_they_are_used_again_never_become_an_error(
        self, start_bridge: StartBridge
    ) -> None:
        came: Counter[bytes] = Counter()
        answered: Counter[bytes] = Counter()

        async def script(peer: Peer) -> None:
            first = await peer.read_request()
            came[first.first_line] += 1
            answered[first.first_line] += 1
            await peer.send(answer())
            second = await peer.read_request()
            came[second.first_line] += 1  # read, and dropped without a word

        lines = []
        async with front_of(start_bridge, script) as (bridge, _), connect(bridge.address) as peer:
            for number in range(60):
                method = ("GET", "POST", "PUT", "DELETE", "PATCH")[number % 5]
                body = b"abc" if method in ("PUT", "PATCH") else b""
                await peer.send(request(method, f"/{number}", body=body))
                assert (await peer.read_answer()).status == 200
                lines.append(f"{method} /{number} HTTP/1.1".encode())
        assert answered == Counter(lines)
        # What may not be repeated went over a connection that was never used before.
        assert {line for line, times in came.items() if times > 1} <= {
            line for line in lines if line.startswith((b"GET ", b"DELETE "))
        }
        assert max(came.values()) == 2, "no connection was ever dropped as it was used again"

    async def test_are_shared_by_no_two_requests_at_once(self, start_bridge: StartBridge) -> None:
        async def script(peer: Peer) -> None:
            while True:
                message = await peer.read_request()
                await peer.send(answer(body=message.target + b" " + message.body))

        async with front_of(start_bridge, script) as (bridge, _):

            async def ask(number: int) -> None:
                async with connect(bridge.address) as peer:
                    for turn in range(10):
                        body = f"{number}-{turn}".encode() * (turn % 2 * 5000)
                        method = "POST" if body else "GET"
                        await peer.send(request(method, f"/{number}/{turn}", body=body))
                        told = await peer.read_answer()
                        assert told.body == f"/{number}/{turn} ".encode() + body

            await asyncio.gather(*map(ask, range(20)))


async def test_what_came_unasked_is_nobodys_answer(start_bridge: StartBridge) -> None:
    sent = asyncio.Event()

    async def script(peer: Peer) -> None:
        while True:
            message = await peer.read_request()
            await peer.send(answer(body=message.target))
            if message.target == b"/alice":
                await peer.send(answer(body=b"for nobody"))
                sent.set()

    async with front_of(start_bridge, script) as (bridge, upstream):
        assert (await fetch(bridge.address, "GET", "/alice")).body == b"/alice"
        await asyncio.wait_for(sent.wait(), PATIENCE)
        await let_time_pass(0.05)
        assert (await fetch(bridge.address, "GET", "/bob")).body == b"/bob"
        assert upstream.connections == 2
