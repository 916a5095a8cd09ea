"""WebSockets: the handshake, and the plain tunnel of bytes behind it."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import aiohttp
import pytest
from aiohttp import ClientWebSocketResponse, WSMsgType, web
from aiohttp.test_utils import TestServer

from front import StartBridge, front_of, front_of_a_recorder, let_time_pass, unused_port
from immich_bridge.serve import Server
from immich_standin import StandIn
from log_capture import written_log
from wire import PATIENCE, Message, Peer, ScriptedUpstream, answer, connect, request

SOCKET_IO = "/api/socket.io/?EIO=4&transport=websocket"
HANDSHAKE = request(
    "GET",
    SOCKET_IO,
    ("Connection", "Upgrade"),
    ("Upgrade", "websocket"),
    ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ("Sec-WebSocket-Version", "13"),
)
ACCEPTED = (
    b"HTTP/1.1 101 Switching Protocols\r\n"
    b"Upgrade: websocket\r\n"
    b"Connection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
)
CLOSE_FRAME = b"\x88\x02\x03\xe8"


@dataclass
class Tunnel:
    """Both ends of a tunnel, and what is in the middle."""

    bridge: Server
    upstream: ScriptedUpstream
    client: Peer
    immich: Peer

    async def assert_open(self) -> None:
        for source, sink in ((self.client, self.immich), (self.immich, self.client)):
            await source.send(b"are you there")
            await expect(sink, b"are you there")


@asynccontextmanager
async def open_tunnel(start_bridge: StartBridge, **settings: str) -> AsyncIterator[Tunnel]:
    """A tunnel to an upstream that leaves its end to the test."""
    accepted: asyncio.Future[Peer] = asyncio.get_running_loop().create_future()
    done = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.read_head()
        await peer.send(ACCEPTED)
        accepted.set_result(peer)
        await done.wait()

    front = front_of(start_bridge, script, **settings)
    async with front as (bridge, upstream), connect(bridge.address) as client:
        await client.send(HANDSHAKE)
        assert (await client.read_head()).status == 101
        try:
            yield Tunnel(bridge, upstream, client, await accepted)
        finally:
            done.set()


async def expect(peer: Peer, data: bytes) -> None:
    """Read exactly `data`; a difference in megabytes is not spelled out."""
    received = await asyncio.wait_for(peer.reader.readexactly(len(data)), PATIENCE)
    assert received[:100] == data[:100]
    assert (received == data) is True


async def at_end(peer: Peer) -> bytes:
    """What still comes until the other side closes, in whichever way."""
    return await peer.read_to_end()


class TestHandshake:
    async def test_passes_with_all_its_fields(self, start_bridge: StartBridge) -> None:
        heads: list[Message] = []

        async def script(peer: Peer) -> None:
            heads.append(await peer.read_head())
            await peer.send(
                b"HTTP/1.1 101 Switching Over\r\nX-A: 1\r\nconnection: upgrade\r\n"
                b"UPGRADE: WebSocket\r\nSec-WebSocket-Protocol: b\r\nx-a: 2\r\n\r\n"
            )

        fields = [
            ("Origin", "https://photos.example"),
            ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
            ("sec-websocket-version", "13"),
            ("Sec-WebSocket-Protocol", "a, b"),
            ("Sec-WebSocket-Extensions", "permessage-deflate; client_max_window_bits"),
            ("Cookie", "immich_access_token=t"),
            ("X-Private", "p"),
        ]
        async with front_of(start_bridge, script) as (bridge, upstream):
            async with connect(bridge.address) as peer:
                asking = ("connection", "keep-alive, x-private, UPGRADE"), ("upgrade", "WebSocket")
                mine = ("X-Request-Id", "mine")
                await peer.send(request("GET", SOCKET_IO, *asking, *fields, mine))
                told = await peer.read_head()
            host = upstream.url.removeprefix("http://").encode()
        assert heads[0].first_line == f"GET {SOCKET_IO} HTTP/1.1".encode()
        assert heads[0].headers == [
            (b"Host", host),
            *((name.encode(), value.encode()) for name, value in fields[:-1]),
            (b"X-Request-Id", b"mine"),
            (b"X-Forwarded-For", b"127.0.0.1"),
            (b"X-Forwarded-Proto", b"http"),
            (b"X-Forwarded-Host", b"bridge"),
            (b"Connection", b"Upgrade"),
            (b"Upgrade", b"websocket"),
        ]
        assert told.first_line == b"HTTP/1.1 101 Switching Over"
        assert told.headers == [
            (b"X-A", b"1"),
            (b"Sec-WebSocket-Protocol", b"b"),
            (b"x-a", b"2"),
            (b"Connection", b"Upgrade"),
            (b"Upgrade", b"websocket"),
            (b"X-Request-Id", b"mine"),
        ]

    async def test_refused_shows_immichs_own_answer(self, start_bridge: StartBridge) -> None:
        async with front_of_a_recorder(start_bridge) as front, connect(front.url) as peer:
            front.reply = answer("401 Who Are You", ("X-A", "b"), body=b'{"message":"no"}')
            await peer.send(HANDSHAKE)
            told = await peer.read_answer()
            assert told.first_line == b"HTTP/1.1 401 Who Are You"
            assert told.headers[0] == (b"X-A", b"b")
            assert told.body == b'{"message":"no"}'
            # The connection is still one of HTTP.
            front.reply = answer(body=b"next")
            await peer.send(request("GET", "/next"))
            assert (await peer.read_answer()).body == b"next"

    async def test_refused_by_the_stand_in(self, immich: StandIn, bridge: Server) -> None:
        polling = HANDSHAKE.replace(b"transport=websocket", b"transport=polling")
        async with connect(bridge.address) as peer:
            await peer.send(polling)
            told = await peer.read_answer()
        assert told.status == 400
        assert told.body == b'{"code":0,"message":"Transport unknown"}'

    async def test_without_immich(self, start_bridge: StartBridge) -> None:
        bridge = await start_bridge(f"http://127.0.0.1:{unused_port()}")
        async with connect(bridge.address) as peer:
            await peer.send(HANDSHAKE)
            told = await peer.read_answer()
        assert (told.status, told.header("X-Bridge-Error")) == (503, "unavailable")

    @pytest.mark.parametrize(
        ("method", "fields", "body"),
        [
            ("POST", [("Connection", "Upgrade"), ("Upgrade", "websocket")], b""),
            ("GET", [("Connection", "Upgrade"), ("Upgrade", "websocket")], b"body"),
            ("GET", [("Connection", "Upgrade"), ("Upgrade", "h2c")], b""),
            ("GET", [("Upgrade", "websocket")], b""),
            ("GET", [("Connection", "keep-alive"), ("Upgrade", "websocket")], b""),
        ],
    )
    async def test_what_is_none_goes_without_upgrade(
        self, start_bridge: StartBridge, method: str, fields: list[tuple[str, str]], body: bytes
    ) -> None:
        async with front_of_a_recorder(start_bridge) as front, connect(front.url) as peer:
            front.reply = lambda message: answer(body=message.first_line)
            await peer.send(request(method, "/a", *fields, body=body))
            assert (await peer.read_answer()).body == f"{method} /a HTTP/1.1".encode()
            assert front.seen[0].all("Upgrade") == front.seen[0].all("Connection") == []
            assert front.seen[0].body == body
            await peer.send(request("GET", "/next"))
            assert (await peer.read_answer()).body == b"GET /next HTTP/1.1"


class TestTunnel:
    @pytest.mark.parametrize(
        "data",
        [
            b"\x81\x05hello",
            b"\x89\x04ping\x8a\x04pong",
            b"\xc1\x07\xf2\x48\xcd\xc9\xc9\x07\x00",
            b"GET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
            bytes(range(256)),
        ],
    )
    async def test_bytes_pass_untouched_both_ways(
        self, start_bridge: StartBridge, data: bytes
    ) -> None:
        async with open_tunnel(start_bridge) as tunnel:
            await tunnel.client.send(data)
            await expect(tunnel.immich, data)
            await tunnel.immich.send(data)
            await expect(tunnel.client, data)
            await tunnel.assert_open()

    async def test_what_comes_with_the_handshake_is_not_lost(
        self, start_bridge: StartBridge
    ) -> None:
        came: list[bytes] = []

        async def script(peer: Peer) -> None:
            await peer.read_head()
            await peer.send(ACCEPTED + b"\x81\x05first")
            came.append(await peer.reader.readexactly(22))

        async with front_of(start_bridge, script) as (bridge, _), connect(bridge.address) as peer:
            await peer.send(HANDSHAKE + b"early frame")
            assert (await peer.read_head()).status == 101
            await expect(peer, b"\x81\x05first")
            await peer.send(b"later frame")
            assert await at_end(peer) == b""
        assert came == [b"early framelater frame"]

    async def test_large_messages_both_ways_at_once(self, start_bridge: StartBridge) -> None:
        data = random.Random(5).randbytes(5 << 20)
        async with open_tunnel(start_bridge) as tunnel, asyncio.TaskGroup() as group:
            group.create_task(tunnel.client.send(data))
            group.create_task(tunnel.immich.send(data[::-1]))
            await expect(tunnel.immich, data)
            await expect(tunnel.client, data[::-1])

    @pytest.mark.parametrize("way", ["to immich", "to the client"])
    async def test_a_slow_reader_holds_the_sender_back(
        self, start_bridge: StartBridge, way: str
    ) -> None:
        size, piece = 64 << 20, random.Random(6).randbytes(1 << 20)
        async with open_tunnel(start_bridge) as tunnel:
            source, sink = tunnel.client, tunnel.immich
            if way == "to the client":
                source, sink = sink, source
            sent, reading = 0, None

            async def read() -> None:
                for _ in range(size // len(piece)):
                    await expect(sink, piece)

            while sent < size:
                source.writer.write(piece)
                try:
                    await asyncio.wait_for(source.writer.drain(), 0.3)
                except TimeoutError:
                    # What the sockets between hold, and no more.
                    assert sent < size / 2
                    reading = asyncio.create_task(read())
                    await asyncio.wait_for(source.writer.drain(), PATIENCE)
                sent += len(piece)
            assert reading is not None
            await asyncio.wait_for(reading, PATIENCE)
            await tunnel.assert_open()

    @pytest.mark.parametrize("who", ["client", "immich"])
    async def test_the_last_bytes_of_one_side_reach_the_other_before_the_end(
        self, start_bridge: StartBridge, who: str
    ) -> None:
        async with open_tunnel(start_bridge) as tunnel:
            leaving, staying = tunnel.client, tunnel.immich
            if who == "immich":
                leaving, staying = staying, leaving
            last = random.Random(7).randbytes(300_000) + CLOSE_FRAME
            await leaving.send(last)
            await leaving.close()
            assert (await at_end(staying) == last) is True

    @pytest.mark.parametrize("who", ["client", "immich"])
    async def test_a_reset_of_one_side_ends_the_other(
        self, start_bridge: StartBridge, who: str
    ) -> None:
        async with open_tunnel(start_bridge) as tunnel:
            leaving, staying = tunnel.client, tunnel.immich
            if who == "immich":
                leaving, staying = staying, leaving
            leaving.reset()
            assert await at_end(staying) == b""

    async def test_stays_open_while_nothing_is_said(self, start_bridge: StartBridge) -> None:
        settings = {"UPSTREAM_RESPONSE_TIMEOUT": "50ms", "BODY_IDLE_TIMEOUT": "50ms"}
        async with open_tunnel(start_bridge, **settings) as tunnel:
            await let_time_pass(0.3)
            await tunnel.assert_open()
            await let_time_pass(0.3)
            await tunnel.assert_open()

    async def test_is_closed_when_the_server_stops(self, start_bridge: StartBridge) -> None:
        async with open_tunnel(start_bridge) as tunnel:
            await tunnel.client.send(CLOSE_FRAME)
            await expect(tunnel.immich, CLOSE_FRAME)
            unfinished = await asyncio.wait_for(tunnel.bridge.drain(PATIENCE), PATIENCE / 2)
            assert unfinished == 0
            assert await at_end(tunnel.client) == b""
            assert await at_end(tunnel.immich) == b""

    async def test_is_a_line_in_the_log_once_it_has_ended(self, start_bridge: StartBridge) -> None:
        with written_log() as log:
            async with open_tunnel(start_bridge) as tunnel:
                await tunnel.client.send(b"four")
                await expect(tunnel.immich, b"four")
                await tunnel.immich.send(b"seventy" * 10)
                await expect(tunnel.client, b"seventy" * 10)
                assert log.lines == []
                await tunnel.client.close()
                line = await log.wait_for(" method=GET path=/api/socket.io/ ")
        assert " status=101 " in line
        assert " bytes_in=4 " in line
        head = len(ACCEPTED) + len("X-Request-Id: \r\n") + 32
        assert f" bytes_out={head + 70} " in line
        assert len(log.lines) == 1


class TestMessages:
    """As a client and a server of WebSockets see it."""

    @pytest.fixture
    async def echo(self, start_bridge: StartBridge) -> AsyncIterator[str]:
        """The address of an echo behind a bridge; `close <code>` has it close with that code."""

        async def handle(request: web.Request) -> web.WebSocketResponse:
            ws = web.WebSocketResponse(protocols=("second", "third"), max_msg_size=0)
            await ws.prepare(request)
            async for message in ws:
                if message.type is WSMsgType.BINARY:
                    await ws.send_bytes(message.data)
                elif message.data.startswith("close "):
                    await ws.close(code=int(message.data[6:]), message=b"as you wish")
                else:
                    await ws.send_str(message.data)
            self.close_code.set_result(ws.close_code)
            return ws

        self.close_code: asyncio.Future[int | None] = asyncio.get_running_loop().create_future()
        app = web.Application()
        app.router.add_get("/ws", handle)
        async with TestServer(app) as server:
            bridge = await start_bridge(str(server.make_url("")))
            yield bridge.address + "/ws"

    async def test_text_and_binary(self, echo: str) -> None:
        async with aiohttp.ClientSession() as session, session.ws_connect(echo) as ws:
            await ws.send_str("grüße 📷")
            assert await ws.receive_str(timeout=PATIENCE) == "grüße 📷"
            await ws.send_bytes(bytes(range(256)))
            assert await ws.receive_bytes(timeout=PATIENCE) == bytes(range(256))

    @pytest.mark.parametrize("compress", [0, 15])
    async def test_of_5_mb(self, echo: str, compress: int) -> None:
        data = random.Random(8).randbytes(2_500_000) * 2
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(echo, max_msg_size=0, compress=compress) as ws,
        ):
            assert ws.compress == compress
            await ws.send_bytes(data)
            assert (await ws.receive_bytes(timeout=PATIENCE) == data) is True

    async def test_pings_are_answered_by_the_other_end(self, echo: str) -> None:
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(echo, autoping=False) as ws,
        ):
            await ws.ping(b"are you there")
            message = await ws.receive(timeout=PATIENCE)
            assert (message.type, message.data) == (WSMsgType.PONG, b"are you there")

    @pytest.mark.parametrize(
        ("offered", "chosen"),
        [(["first", "second", "third"], "second"), (["third"], "third"), ([], None)],
    )
    async def test_subprotocols(self, echo: str, offered: list[str], chosen: str | None) -> None:
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(echo, protocols=offered) as ws,
        ):
            assert ws.protocol == chosen

    @pytest.mark.parametrize("code", [1000, 1001, 3999, 4999])
    async def test_close_codes_of_immich(self, echo: str, code: int) -> None:
        async with aiohttp.ClientSession() as session, session.ws_connect(echo) as ws:
            await ws.send_str(f"close {code}")
            message = await ws.receive(timeout=PATIENCE)
            assert message.type is WSMsgType.CLOSE
            assert (message.data, message.extra) == (code, "as you wish")

    @pytest.mark.parametrize("code", [1000, 1001, 3999, 4999])
    async def test_close_codes_of_the_client(self, echo: str, code: int) -> None:
        async with aiohttp.ClientSession() as session, session.ws_connect(echo) as ws:
            await ws.close(code=code)
        assert await asyncio.wait_for(self.close_code, PATIENCE) == code

    async def test_of_immichs_socket_io(self, immich: StandIn, bridge: Server) -> None:
        async def receive(ws: ClientWebSocketResponse) -> str:
            return await ws.receive_str(timeout=PATIENCE)

        key = {"x-api-key": immich.api_key}
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(bridge.address + SOCKET_IO, headers=key) as ws,
        ):
            assert (await receive(ws)).startswith('0{"sid":')
            await ws.send_str("40")
            assert (await receive(ws)).startswith('40{"sid":')
            assert (await receive(ws)).startswith('42["on_server_version"')
            await ws.send_str('42["hello"]')
            assert await receive(ws) == '42["hello"]'
            await ws.send_bytes(b"\x00\x01")
            assert await ws.receive_bytes(timeout=PATIENCE) == b"\x00\x01"
