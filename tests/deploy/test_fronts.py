"""The example files for nginx and Caddy: each in front of a bridge, in front of Immich."""

import asyncio
import base64
import hashlib
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import aiohttp
import pytest

from deploy.front_http2 import PROTOCOL as HTTP2
from deploy.front_http2 import Http2Client
from deploy.front_servers import RUNNING, SITE, TlsFront
from front import StartBridge, front_of, front_of_a_recorder
from immich_bridge.serve import Server
from immich_standin import Behaviour, StandIn
from immich_standin.accounts import PASSWORD
from log_capture import written_log
from raw_upload import (
    CHUNKED,
    KEY,
    NAME,
    ROUTE,
    Flood,
    assert_nothing_stored,
    eventually,
    jpeg,
    result,
)
from wire import PATIENCE, Message, Peer, answer, connect, fetch, request

# A front may have to be installed first.
pytestmark = pytest.mark.timeout(400)

MIB: Final = 1 << 20
PHOTO: Final = jpeg(3_000_001)
FIRST: Final = 100_000
"""More than the pieces that a front passes on by itself, less than what it could buffer."""
BUFFERS: Final = 64 * MIB
"""More than what the kernel (on three connections), the front and the bridge hold of an upload."""

SOCKET_IO: Final = "/api/socket.io/?EIO=4&transport=websocket"

# Immich gives each answer an id, unless the request had one.
SAME_ID: Final = ("X-Correlation-ID", "f516e070-7597-46dd-b42f-75efe2724f91")

# Of the connection, of the moment, or of the server that says it; all else has to pass.
OF_THE_FRONT: Final = frozenset(
    {"connection", "keep-alive", "transfer-encoding", "date", "server", "via", "x-request-id"}
)


@pytest.fixture(params=sorted(RUNNING))
def tls_front(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[TlsFront]:
    """Each of the fronts; one that has served another test might still know that one's bridge."""
    with RUNNING[request.param](tmp_path) as front:
        yield front


def behind(front: TlsFront, **settings: str) -> dict[str, str]:
    """Settings of a bridge behind `front`, as the example files tell them."""
    address = f"127.0.0.1:{front.bridge_port}"
    return {"LISTEN_ADDR": address, "TRUSTED_PROXIES": "127.0.0.1/32", **settings}


@pytest.fixture
async def bridge(immich: StandIn, tls_front: TlsFront, start_bridge: StartBridge) -> Server:
    """A bridge between `tls_front` and `immich`."""
    return await start_bridge(immich.url, **behind(tls_front))


def upload_head(length: int, *headers: tuple[str, str], key: bool = True) -> bytes:
    """The head of an upload whose body is yet to come."""
    fields = [*([KEY] if key else []), NAME, ("Content-Length", str(length)), *headers]
    return request("POST", ROUTE, *fields, host=SITE)


async def has_reached(immich: StandIn, size: int) -> None:
    """Return once Immich has at least `size` bytes of an upload that is not over."""
    seen = await immich.wait_for_request(lambda seen: seen.body_received >= size, PATIENCE)
    assert not seen.completed


def assert_stored(immich: StandIn, told: Message, photo: bytes) -> None:
    """Immich holds just this photo, and the client has heard so."""
    assert told.status == 201, told
    [asset] = immich.assets
    assert result(told)["id"] == told.header("X-Immich-Asset-Id") == asset.id
    assert (asset.path.read_bytes() == photo) is True


@pytest.mark.usefixtures("bridge")
class TestUploads:
    async def test_stream(self, immich: StandIn, tls_front: TlsFront) -> None:
        """Immich has the first bytes before the client has sent the last."""
        async with tls_front.connect() as peer:
            await peer.send(upload_head(len(PHOTO)), PHOTO[:FIRST])
            await has_reached(immich, FIRST)
            assert tls_front.spooled() == []
            await peer.send(PHOTO[FIRST:])
            assert_stored(immich, await peer.read_answer(), PHOTO)

    async def test_in_chunks_stream_too(self, immich: StandIn, tls_front: TlsFront) -> None:
        def chunk(data: bytes) -> bytes:
            return b"%x\r\n%b\r\n" % (len(data), data)

        async with tls_front.connect() as peer:
            await peer.send(request("POST", ROUTE, KEY, NAME, CHUNKED, host=SITE))
            await peer.send(chunk(PHOTO[:FIRST]))
            await has_reached(immich, FIRST)
            await peer.send(chunk(PHOTO[FIRST:]), b"0\r\n\r\n")
            assert_stored(immich, await peer.read_answer(), PHOTO)

    async def test_over_http2_stream_too(self, immich: StandIn, tls_front: TlsFront) -> None:
        length = ("Content-Length", str(len(PHOTO)))
        async with tls_front.connect(HTTP2) as peer:
            client = Http2Client(peer)
            stream = await client.begin("POST", ROUTE, SITE, KEY, NAME, length)
            await client.send(stream, PHOTO[:FIRST])
            await has_reached(immich, FIRST)
            # A phone far away sends a window in each round trip.
            await client.read_until_window(stream, 384 * 1024)
            await client.send(stream, PHOTO[FIRST:], end=True)
            assert_stored(immich, await client.read_answer(stream), PHOTO)

    async def test_of_100_mb_pass(self, immich: StandIn, tls_front: TlsFront) -> None:
        block = random.Random(100).randbytes(MIB)
        async with tls_front.connect() as peer:
            await peer.send(upload_head(4 + 100 * MIB), PHOTO[:4])
            for _ in range(100):
                await peer.send(block)
            told = await peer.read_answer()
        assert told.status == 201, told
        [asset] = immich.assets
        assert asset.size == 4 + 100 * MIB
        checksum = hashlib.sha1(PHOTO[:4] + block * 100).digest()
        assert asset.checksum == base64.b64encode(checksum).decode()
        assert tls_front.spooled() == []

    async def test_wait_for_immich(self, immich: StandIn, tls_front: TlsFront) -> None:
        """A sender that Immich does not keep up with is held back: nothing piles up on the way."""
        immich.behaviour = Behaviour(path="/api/assets", stall_after=FIRST)
        async with tls_front.connect() as peer:
            await peer.send(upload_head(100 * MIB), PHOTO[:4])
            flood = Flood(peer)
            await has_reached(immich, FIRST)
            await flood.stalled()
            assert 0 < flood.sent < BUFFERS
            assert tls_front.spooled() == []
            peer.reset()
            await flood.ended()
        immich.behaviour.release()
        await immich.wait_for_abort(PATIENCE)
        assert_nothing_stored(immich)

    async def test_are_met_with_100_continue(self, immich: StandIn, tls_front: TlsFront) -> None:
        async with tls_front.connect() as peer:
            await peer.send(upload_head(len(PHOTO), ("Expect", "100-continue")))
            interim = await peer.read_head()
            assert interim.status == 100
            await peer.send(PHOTO)
            assert_stored(immich, await peer.read_answer(), PHOTO)

    @pytest.mark.parametrize("how", ["fin", "rst"])
    async def test_given_up_half_way_leave_nothing(
        self, immich: StandIn, tls_front: TlsFront, how: str
    ) -> None:
        async with tls_front.connect() as peer:
            await peer.send(upload_head(len(PHOTO)), PHOTO[:FIRST])
            await has_reached(immich, FIRST)
            if how == "rst":
                peer.reset()
        await assert_cancelled(immich)

    async def test_given_up_over_http2_leave_nothing(
        self, immich: StandIn, tls_front: TlsFront
    ) -> None:
        length = ("Content-Length", str(len(PHOTO)))
        async with tls_front.connect(HTTP2) as peer:
            client = Http2Client(peer)
            stream = await client.begin("POST", ROUTE, SITE, KEY, NAME, length)
            await client.send(stream, PHOTO[:FIRST])
            await has_reached(immich, FIRST)
            await client.cancel(stream)
            await assert_cancelled(immich)

    async def test_refused_at_once_are_told_before_they_end(
        self, immich: StandIn, tls_front: TlsFront
    ) -> None:
        async with tls_front.connect() as peer:
            await peer.send(upload_head(100 * MIB, key=False), PHOTO[:FIRST])
            # Its head, which is what iOS shows an app: Caddy may lose the body of such an answer.
            told = await peer.read_head()
        assert (told.status, told.header("X-Bridge-Error")) == (401, "unauthorized")
        assert immich.requests == []


async def assert_cancelled(immich: StandIn) -> None:
    """The upload ended before it was whole, and nothing is left of it."""
    seen = await immich.wait_for_abort(PATIENCE)
    assert not seen.completed
    assert_nothing_stored(immich)
    await eventually(lambda: immich.open_connections == 0)


class TestClients:
    async def test_keep_their_address(
        self, immich: StandIn, tls_front: TlsFront, start_bridge: StartBridge
    ) -> None:
        with written_log() as log:
            await start_bridge(immich.url, **behind(tls_front))
            made_up = [
                ("X-Forwarded-For", "192.0.2.66"),
                ("X-Forwarded-Proto", "gopher"),
                ("X-Forwarded-Host", "elsewhere.example"),
            ]
            async with tls_front.connect(source="127.0.0.2") as peer:
                await peer.send(request("GET", "/api/server/ping", *made_up, host=SITE))
                assert (await peer.read_answer()).body == b'{"res":"pong"}'
            line = await log.wait_for(" path=/api/server/ping ")
        assert " client=127.0.0.2 " in line
        [seen] = immich.requests
        assert [seen.header(f"X-Forwarded-{name}") for name in ("For", "Proto", "Host")] == [
            "127.0.0.2, 127.0.0.1",
            "https",
            SITE,
        ]
        assert seen.header("Host") == immich.url.removeprefix("http://")

    async def test_that_leave_are_not_answered_by_immich(
        self, immich: StandIn, bridge: Server, tls_front: TlsFront
    ) -> None:
        immich.behaviour = Behaviour(hold_answer=True)
        async with tls_front.connect() as peer:
            await peer.send(request("GET", "/api/server/ping", host=SITE))
            await immich.wait_for_request()
            peer.reset()
        await eventually(lambda: immich.open_connections == 0)

    async def test_without_tls_are_sent_to_it(self, tls_front: TlsFront) -> None:
        async with connect(f"http://127.0.0.1:{tls_front.http_port}") as peer:
            await peer.send(request("GET", "/photos?a=%2F", host=SITE))
            told = await peer.read_answer()
        assert told.status == 308
        where = told.header("Location")
        assert where in {
            f"https://{SITE}{port}/photos?a=%2F" for port in ("", f":{tls_front.https_port}")
        }


def fields(message: Message) -> list[tuple[str, str]]:
    """The header fields that a front has to leave alone; repeats stay in their order."""
    named = [(n.decode().lower(), v.decode("latin-1")) for n, v in message.headers]
    passed = (field for field in named if field[0] not in OF_THE_FRONT)
    return sorted(passed, key=lambda field: field[0])


class TestAnswers:
    @pytest.mark.parametrize(
        ("method", "target", "headers", "status"),
        [
            ("GET", "/api/server/media-types", [("Accept-Encoding", "gzip")], 200),
            ("GET", "/api/server/media-types", [], 200),
            ("HEAD", "/api/assets/{id}/original", [KEY], 200),
            ("GET", "/api/assets/{id}/original", [KEY], 200),
            ("GET", "/api/assets/{id}/original", [KEY, ("Range", "bytes=7-1000006")], 206),
            ("GET", "/api/assets/{id}/thumbnail?size=fullsize", [KEY], 302),
            ("GET", "/api/users/me", [], 401),
            ("GET", "/api/nowhere", [], 404),
            ("GET", "/photos", [("Accept-Encoding", "gzip, br")], 200),
            ("POST", ROUTE, [NAME], 401),
            ("DELETE", ROUTE, [KEY], 405),
        ],
    )
    async def test_are_those_of_the_bridge(
        self,
        immich: StandIn,
        bridge: Server,
        tls_front: TlsFront,
        method: str,
        target: str,
        headers: list[tuple[str, str]],
        status: int,
    ) -> None:
        length = ("Content-Length", str(len(PHOTO)))
        upload = request("POST", ROUTE, KEY, NAME, length, host=SITE, body=PHOTO)
        async with tls_front.connect() as peer:
            await peer.send(upload)
            photo = (await peer.read_answer()).header("X-Immich-Asset-Id")
        target = target.format(id=photo)
        headers = [*headers, SAME_ID]
        direct = await fetch(bridge.address, method, target, *headers)
        through = await tls_front.fetch(method, target, *headers)
        assert through.status == direct.status == status
        assert fields(through) == fields(direct)
        assert (through.body == direct.body) is True
        # Immich was asked the same both times: nothing was added that it would answer to.
        asked = [seen.raw_headers for seen in immich.requests if seen.target == target]
        if asked:
            first, second = ({n.lower() for n, _ in names} for names in asked)
            assert second - first <= {b"via"}

    async def test_repeat_their_cookies(self, bridge: Server, tls_front: TlsFront) -> None:
        login = json.dumps({"email": "admin@example.com", "password": PASSWORD}).encode()
        kind = ("Content-Type", "application/json")
        asked = ("POST", "/api/auth/login", kind, SAME_ID)
        direct = await fetch(bridge.address, *asked, body=login)
        through = await tls_front.fetch(*asked, body=login)
        assert len(through.all("Set-Cookie")) == 3
        assert fields(through) == fields(direct)
        assert through.body == direct.body

    @pytest.mark.parametrize(
        ("framing", "halves"),
        [
            (("Content-Length", "2000"), [bytes(1000), bytes(1000)]),
            (CHUNKED, [b"3e8\r\n%b\r\n" % bytes(1000)] * 2 + [b"0\r\n\r\n"]),
        ],
        ids=["length", "chunked"],
    )
    async def test_stream(
        self,
        tls_front: TlsFront,
        start_bridge: StartBridge,
        framing: tuple[str, str],
        halves: list[bytes],
    ) -> None:
        """The first half comes while Immich still holds back the second."""
        half_seen = asyncio.Event()

        async def script(peer: Peer) -> None:
            await peer.read_request()
            await peer.send(answer("200 OK", framing), halves[0])
            await half_seen.wait()
            await peer.send(*halves[1:])

        async with (
            front_of(start_bridge, script, **behind(tls_front)),
            tls_front.connect() as peer,
        ):
            await peer.send(request("GET", "/slow", host=SITE))
            head = await peer.read_head()
            first = await asyncio.wait_for(peer.reader.readexactly(900), PATIENCE)
            half_seen.set()
            assert head.status == 200
            assert b"\0" * 800 in first

    async def test_of_requests_with_long_heads(
        self, tls_front: TlsFront, start_bridge: StartBridge
    ) -> None:
        cookie = ("Cookie", "a=" + "x" * 20_000)
        async with front_of_a_recorder(start_bridge, **behind(tls_front)) as front:
            target = "/a%2Fb//c?d=%20&e=" + "y" * 9000
            assert (await tls_front.fetch("GET", target, cookie)).status == 200
            [seen] = front.seen
        assert seen.target == target.encode()
        assert seen.header("Cookie") == cookie[1]


@pytest.mark.usefixtures("bridge")
class TestWebSockets:
    async def test_of_immich_echo(self, immich: StandIn, tls_front: TlsFront) -> None:
        url = f"https://127.0.0.1:{tls_front.https_port}{SOCKET_IO}"
        headers = {"Host": SITE, **dict([KEY])}
        tls = tls_front.identity.client
        async with (
            aiohttp.ClientSession(headers=headers) as session,
            session.ws_connect(url, ssl=tls, server_hostname=SITE) as socket,
        ):

            async def receive() -> str:
                return await socket.receive_str(timeout=PATIENCE)

            assert (await receive()).startswith('0{"sid":')
            await socket.send_str("40")
            assert (await receive()).startswith('40{"sid":')
            assert (await receive()).startswith('42["on_server_version"')
            await socket.send_str('42["hello"]')
            assert await receive() == '42["hello"]'
            await socket.send_bytes(bytes(range(256)) * 1000)
            echo = await socket.receive_bytes(timeout=PATIENCE)
            assert echo == bytes(range(256)) * 1000
        [seen] = immich.requests
        assert seen.status == 101
        assert seen.header("X-Forwarded-Proto") == "https"
