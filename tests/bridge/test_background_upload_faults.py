"""Background uploads that go wrong: an asset is whole or not there, and everybody is told."""

import asyncio
import base64
import fcntl
import gc
import hashlib
import random
import re
import socket
import sys
import termios
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from front import (
    Front,
    StartBridge,
    front_of,
    front_of_a_recorder,
    let_time_pass,
    unused_port,
)
from immich_bridge.serve import Server
from immich_standin import Behaviour, StandIn
from log_capture import written_log
from raw_upload import (
    CHUNKED,
    KEY,
    NAME,
    ROUTE,
    Flood,
    assert_error,
    assert_nothing_stored,
    both_releases,
    eventually,
    jpeg,
    result,
    upload,
    upload_head,
    upload_request,
)
from wire import Message, Peer, answer, connect, request

MIB = 1 << 20
PHOTO = jpeg(300_000)
HALF = len(PHOTO) // 2
BUFFERS = 16 * MIB
"""More than what the bridge holds of an upload, with what its connection to Immich does."""


@pytest.fixture
async def front(start_bridge: StartBridge) -> AsyncIterator[Front]:
    async with front_of_a_recorder(start_bridge) as front:
        yield front


async def send_half(peer: Peer, immich: StandIn, *headers: tuple[str, str]) -> None:
    """Send half of a photo, and wait until Immich has the greater part of that on its disk."""
    await peer.send(upload_head(len(PHOTO), *headers), PHOTO[:HALF])
    await partly_stored(immich)


async def partly_stored(immich: StandIn, size: int = HALF // 2) -> None:
    await immich.wait_for_request(
        lambda seen: seen.body_received >= size and len(immich.partial_files()) == 1
    )


async def assert_cancelled(immich: StandIn, seconds: float = 2.0) -> None:
    """The upload ended before it was whole, and nothing is left of it."""
    seen = await immich.wait_for_abort(seconds)
    assert not seen.completed
    assert_nothing_stored(immich)
    await eventually(lambda: immich.open_connections == 0, seconds)


class TestHeads:
    """What is wrong in the head is told before Immich is contacted."""

    @pytest.mark.parametrize(
        ("header", "name", "value"),
        [
            ("X-File-Created-At", "fileCreatedAt", "yesterday"),
            ("X-File-Created-At", "fileCreatedAt", "2026-02-30T00:00:00Z"),
            ("X-File-Modified-At", "fileModifiedAt", "1700000000"),
            ("X-Live-Photo-Video-Id", "livePhotoVideoId", "not-a-uuid"),
            ("X-Duration", "duration", "0:00:10.000"),
            ("X-Latitude", "latitude", "91"),
            ("X-Longitude", "longitude", "east"),
            ("X-Is-Favorite", "isFavorite", "maybe"),
            ("X-Visibility", "visibility", "public"),
            ("X-Content-Type", "contentType", "jpeg"),
            ("X-Filename", "filename", "x" * 5000 + ".jpg"),
        ],
    )
    @pytest.mark.parametrize("way", ["header", "query"])
    async def test_that_make_no_sense(
        self, front: Front, header: str, name: str, value: str, way: str
    ) -> None:
        headers = [(header, value)] if way == "header" else []
        query = f"{name}={value}" if way == "query" else ""
        told = await upload(front.url, PHOTO, *headers, query=query)
        assert header in assert_error(told, 400, "bad_request")
        assert front.upstream.connections == 0

    @pytest.mark.parametrize(
        "query",
        [
            "filename=a.jpg%22%0D%0AX-Evil%3A%201%0D%0A%0D%0A",
            "filename=a%0d%0a.jpg",
            "filename=a%0A.jpg",
            "filename=a%00.jpg",
            "deviceAssetId=a%00",
            "iCloudId=%0d%0a--boundary",
            "contentType=image/jpeg%0d%0aX-Evil:%201",
        ],
    )
    async def test_that_inject_lines(self, front: Front, query: str) -> None:
        told = await upload(front.url, PHOTO, query=query)
        message = assert_error(told, 400, "bad_request")
        assert re.match(r"X-(Filename|Device-Asset-Id|iCloud-Id|Content-Type) ", message)
        assert told.header("X-Evil") is None
        assert front.upstream.connections == 0

    @pytest.mark.parametrize("query", ["filename=%ff.jpg", "deviceId=%ED%A0%80", "x=%C3"])
    async def test_whose_query_is_no_utf8(self, front: Front, query: str) -> None:
        told = await upload(front.url, PHOTO, NAME, query=query)
        assert "query" in assert_error(told, 400, "bad_request")
        assert front.upstream.connections == 0

    @pytest.mark.parametrize("header", ["Repr-Digest", "Content-Digest"])
    async def test_whose_digest_cannot_be_read(self, front: Front, header: str) -> None:
        told = await upload(front.url, PHOTO, NAME, (header, "sha-256=:c2hvcnQ=:"))
        assert header in assert_error(told, 400, "bad_request")
        assert front.upstream.connections == 0

    @pytest.mark.parametrize("coding", ["gzip", "br", "identity, gzip"])
    async def test_of_encoded_bodies(self, front: Front, coding: str) -> None:
        told = await upload(front.url, PHOTO, NAME, ("Content-Encoding", coding))
        assert_error(told, 415, "unsupported_media_type")
        assert front.upstream.connections == 0

    @pytest.mark.parametrize(
        "headers", [[], [("X-Filename", "note.txt")], [("X-Filename", ".jpg")]]
    )
    @pytest.mark.parametrize("size", [1, 511, 512, 300_000])
    @pytest.mark.parametrize("in_chunks", [False, True], ids=["announced", "chunked"])
    async def test_of_unknown_kinds(
        self, front: Front, headers: list[tuple[str, str]], size: int, in_chunks: bool
    ) -> None:
        body = (b"Dear diary, " * (size // 12 + 1))[:size]
        told = await upload(front.url, body, *headers, in_chunks=in_chunks)
        assert "X-Filename" in assert_error(told, 415, "unsupported_media_type")
        assert front.upstream.connections == 0

    async def test_that_are_all_that_ever_comes(self, front: Front) -> None:
        with written_log() as log:
            async with connect(front.url) as peer:
                await peer.send(upload_head(len(PHOTO)))
            line = await log.wait_for("path=/api/assets/background")
        assert "status=499" in line
        assert front.upstream.connections == 0


class TestSize:
    LIMIT = 200_000

    @pytest.fixture
    async def bridge(self, immich: StandIn, start_bridge: StartBridge) -> Server:
        return await start_bridge(immich.url, MAX_STREAM_SIZE=f"{self.LIMIT}B")

    async def test_above_the_limit_is_refused_when_announced(
        self, immich: StandIn, bridge: Server
    ) -> None:
        async with connect(bridge.address) as peer:
            await peer.send(upload_head(self.LIMIT + 1))
            message = assert_error(await peer.read_answer(), 413, "payload_too_large")
        assert str(self.LIMIT) in message
        assert immich.requests == []

    async def test_above_the_limit_is_cancelled_when_it_comes_as_a_surprise(
        self, immich: StandIn, bridge: Server
    ) -> None:
        photo = jpeg(self.LIMIT + 1)
        async with connect(bridge.address) as peer:
            await peer.send(request("POST", ROUTE, KEY, NAME, CHUNKED))
            await peer.send(b"%x\r\n%b\r\n" % (self.LIMIT, photo[:-1]))
            await partly_stored(immich)
            await peer.send(b"1\r\n%b\r\n0\r\n\r\n" % photo[-1:])
            assert_error(await peer.read_answer(), 413, "payload_too_large")
        await assert_cancelled(immich)

    @pytest.mark.parametrize("in_chunks", [False, True], ids=["announced", "chunked"])
    async def test_at_the_limit_is_taken(
        self, immich: StandIn, bridge: Server, in_chunks: bool
    ) -> None:
        photo = jpeg(self.LIMIT)
        told = await upload(bridge.address, photo, NAME, in_chunks=in_chunks)
        assert told.status == 201
        assert immich.assets[0].path.read_bytes() == photo


def unread_bytes(client: Peer) -> int:
    """Bytes that the kernel holds for a bridge that does not take them (Linux)."""
    ours = client.writer.get_extra_info("sockname")[1]
    theirs = client.writer.get_extra_info("peername")[1]
    # Address and port of both ends, the state, and the bytes in both queues: proc(5).
    entry = rf":{theirs:04X} [0-9A-F]+:{ours:04X} [0-9A-F]+ [0-9A-F]+:([0-9A-F]+) "
    found = re.search(entry, Path("/proc/net/tcp").read_text())
    assert found is not None, "the bridge has no such connection"
    return int(found[1], 16)


def unsent_bytes(client: Peer) -> int:
    """Bytes that the client's kernel has not got rid of yet (Linux)."""
    connection: socket.socket = client.writer.get_extra_info("socket")
    left = fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, bytes(4))
    return int.from_bytes(left, sys.byteorder)


def taken(client: Peer, flood: Flood) -> int:
    """Bytes that went further than the kernel, whose own buffers may hold tens of megabytes."""
    return flood.sent - unsent_bytes(client) - unread_bytes(client)


async def send_until_nobody_reads(client: Peer) -> None:
    """Send just so much that the bridge, stalled by Immich, leaves some of it unread.

    All of it has left the client then: a FIN would otherwise wait behind the rest.
    """
    while True:
        await client.send(bytes(64 * 1024))
        await eventually(lambda: unsent_bytes(client) == 0)
        if unread := unread_bytes(client):
            await let_time_pass(0.02)
            if unread_bytes(client) == unread:
                return


def leave(peer: Peer, how: str) -> None:
    if how == "rst":
        peer.reset()
    elif how == "fin":
        peer.writer.close()
    else:
        peer.writer.write_eof()


@both_releases
class TestClientsThatLeave:
    @pytest.mark.parametrize("how", ["fin", "rst", "half-closed"])
    async def test_in_mid_body(self, immich: StandIn, bridge: Server, how: str) -> None:
        async with connect(bridge.address) as peer:
            await send_half(peer, immich)
            leave(peer, how)
            await assert_cancelled(immich)

    @pytest.mark.parametrize("how", ["fin", "rst"])
    async def test_one_byte_before_the_end(self, immich: StandIn, bridge: Server, how: str) -> None:
        async with connect(bridge.address) as peer:
            await peer.send(upload_head(len(PHOTO) + 1), PHOTO)
            await partly_stored(immich)
            leave(peer, how)
            await assert_cancelled(immich)

    @pytest.mark.parametrize("how", ["fin", "rst"])
    @pytest.mark.parametrize("missing", [b"0\r\n\r\n", b"\r\n", b"\n"])
    async def test_in_mid_body_of_chunks(
        self, immich: StandIn, bridge: Server, how: str, missing: bytes
    ) -> None:
        """Every byte of the photo came, but not the word that these were all."""
        async with connect(bridge.address) as peer:
            await peer.send(upload_request(PHOTO, KEY, NAME, in_chunks=True).removesuffix(missing))
            await partly_stored(immich)
            leave(peer, how)
            await assert_cancelled(immich)

    @pytest.mark.parametrize("how", ["fin", "rst"])
    async def test_before_immich_has_taken_what_came(
        self, immich: StandIn, bridge: Server, how: str
    ) -> None:
        """All of it came and is under way, so that it may become an asset, but no half of one."""
        immich.behaviour = Behaviour(stall_after=100_000)
        with written_log() as log:
            async with connect(bridge.address) as peer:
                await peer.send(upload_request(PHOTO, KEY, NAME))
                await partly_stored(immich)
                leave(peer, how)
                await log.wait_for("outcome=client_gone")
        immich.behaviour.release()
        await immich.wait_for_request(lambda seen: seen.finished)
        await eventually(lambda: immich.open_connections == 0)
        assert immich.files() == [asset.path for asset in immich.assets]
        assert all(asset.path.read_bytes() == PHOTO for asset in immich.assets)

    @pytest.mark.parametrize("how", ["fin", "rst"])
    async def test_before_the_answer(self, immich: StandIn, bridge: Server, how: str) -> None:
        immich.behaviour = Behaviour(hold_answer=True)
        async with connect(bridge.address) as peer:
            await peer.send(upload_request(PHOTO, KEY, NAME))
            await immich.wait_for_request(lambda _: len(immich.assets) == 1)
            leave(peer, how)
            await immich.wait_for_request(lambda seen: seen.finished, timeout=2)
            await eventually(lambda: immich.open_connections == 0, 2)
        # It was whole when its sender left.
        assert immich.assets[0].path.read_bytes() == PHOTO


class TestBrokenBodies:
    @both_releases
    @pytest.mark.parametrize(
        "broken",
        [b"zz\r\n", b"-5\r\nhello\r\n", b"5\r\nhelloworld\r\n0\r\n\r\n", b"f" * 17 + b"\r\n"],
    )
    async def test_with_a_bad_chunk(self, immich: StandIn, bridge: Server, broken: bytes) -> None:
        async with connect(bridge.address) as peer:
            await peer.send(request("POST", ROUTE, KEY, NAME, CHUNKED))
            await peer.send(b"%x\r\n%b\r\n" % (HALF, PHOTO[:HALF]))
            await partly_stored(immich)
            await peer.send(broken)
            assert_error(await peer.read_answer(), 400, "bad_request")
            assert await peer.read_to_end() == b""
        await assert_cancelled(immich)

    @pytest.mark.parametrize("in_chunks", [False, True], ids=["announced", "chunked"])
    async def test_that_fall_silent(
        self, immich: StandIn, start_bridge: StartBridge, in_chunks: bool
    ) -> None:
        bridge = await start_bridge(immich.url, BODY_IDLE_TIMEOUT="0.3s")
        framing = CHUNKED if in_chunks else ("Content-Length", str(len(PHOTO)))
        half = b"%x\r\n%b" % (len(PHOTO), PHOTO[:HALF]) if in_chunks else PHOTO[:HALF]
        async with connect(bridge.address) as peer:
            await peer.send(request("POST", ROUTE, KEY, NAME, framing), half)
            await partly_stored(immich)
            assert_error(await peer.read_answer(), 408, "request_timeout")
            assert await peer.read_to_end() == b""
        await assert_cancelled(immich)

    async def test_that_never_begin(self, immich: StandIn, start_bridge: StartBridge) -> None:
        bridge = await start_bridge(immich.url, BODY_IDLE_TIMEOUT="0.3s")
        async with connect(bridge.address) as peer:
            await peer.send(upload_head(len(PHOTO)))
            assert_error(await peer.read_answer(), 408, "request_timeout")
        assert immich.requests == []

    async def test_that_are_slow_are_not_silent(
        self, immich: StandIn, start_bridge: StartBridge
    ) -> None:
        bridge = await start_bridge(immich.url, BODY_IDLE_TIMEOUT="0.3s")
        async with connect(bridge.address) as peer:
            await peer.send(upload_head(8))
            for byte in b"\xff\xd8\xffslow!":
                await let_time_pass(0.08)
                await peer.send(bytes([byte]))
            assert (await peer.read_answer()).status == 201
        assert immich.assets[0].path.read_bytes() == b"\xff\xd8\xffslow!"


def digests(body: bytes) -> list[tuple[str, str]]:
    """Every way to promise `body`."""
    sha1 = hashlib.sha1(body, usedforsecurity=False)
    sha256 = base64.b64encode(hashlib.sha256(body).digest()).decode()
    sha512 = base64.b64encode(hashlib.sha512(body).digest()).decode()
    return [
        ("x-immich-checksum", sha1.hexdigest()),
        ("x-immich-checksum", base64.b64encode(sha1.digest()).decode()),
        ("Repr-Digest", f"sha-256=:{sha256}:"),
        ("Repr-Digest", f"sha-512=:{sha512}:"),
        ("Content-Digest", f"sha-256=:{sha256}:"),
        ("Content-Digest", f"md5=:AAAA:, sha-512=:{sha512}:"),
    ]


class TestMismatches:
    @both_releases
    @pytest.mark.parametrize("promise", digests(PHOTO))
    @pytest.mark.parametrize("in_chunks", [False, True], ids=["announced", "chunked"])
    async def test_of_a_damaged_photo(
        self, immich: StandIn, bridge: Server, promise: tuple[str, str], in_chunks: bool
    ) -> None:
        damaged = bytearray(PHOTO)
        damaged[-1] ^= 1
        told = await upload(bridge.address, bytes(damaged), NAME, promise, in_chunks=in_chunks)
        assert promise[0] in assert_error(told, 422, "checksum_mismatch")
        await assert_cancelled(immich)

    async def test_of_one_promise_among_right_ones(self, immich: StandIn, bridge: Server) -> None:
        right, wrong = digests(PHOTO), digests(b"another photo")
        told = await upload(bridge.address, PHOTO, NAME, right[0], right[2], wrong[4])
        assert "Content-Digest" in assert_error(told, 422, "checksum_mismatch")
        await assert_cancelled(immich)

    async def test_of_a_photo_of_one_byte(self, immich: StandIn, bridge: Server) -> None:
        told = await upload(bridge.address, b"\xff", NAME, digests(b"\xfe")[2])
        assert_error(told, 422, "checksum_mismatch")
        await assert_cancelled(immich)

    async def test_leave_the_way_clear_for_the_whole_photo(
        self, immich: StandIn, bridge: Server
    ) -> None:
        promise = digests(PHOTO)[0]
        assert (await upload(bridge.address, PHOTO[:-1], NAME, promise)).status == 422
        assert (await upload(bridge.address, PHOTO, NAME, promise)).status == 201
        assert immich.files() == [immich.assets[0].path]
        assert immich.assets[0].path.read_bytes() == PHOTO


def count_connects(monkeypatch: pytest.MonkeyPatch, port: int, refused: int) -> Callable[[], int]:
    """Send the first connections to `port` where nobody listens; how many tries there were."""
    loop = asyncio.get_running_loop()
    connect_socket = loop.sock_connect
    tries = 0

    async def sock_connect(sock: object, address: tuple[str, int]) -> None:
        nonlocal tries
        if address[1] == port:
            tries += 1
            if tries <= refused:
                address = (address[0], unused_port())
        await connect_socket(sock, address)  # type: ignore[arg-type]

    monkeypatch.setattr(loop, "sock_connect", sock_connect)
    return lambda: tries


class TestAnImmichThatFails:
    async def test_refusing_connections(self, start_bridge: StartBridge) -> None:
        bridge = await start_bridge(f"http://127.0.0.1:{unused_port()}")
        told = await upload(bridge.address, PHOTO, NAME)
        assert "Immich" in assert_error(told, 503, "unavailable")
        assert int(told.header("Retry-After") or 0) > 0

    async def test_refusing_the_first_connection(
        self, immich: StandIn, bridge: Server, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        tries = count_connects(monkeypatch, immich.port, refused=1)
        assert (await upload(bridge.address, PHOTO, NAME)).status == 201
        assert tries() == 2
        (seen,) = immich.requests
        assert seen.header("Content-Length") == str(seen.body_received)
        assert immich.assets[0].path.read_bytes() == PHOTO

    async def test_refusing_the_second_connection_too(
        self, immich: StandIn, bridge: Server, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        tries = count_connects(monkeypatch, immich.port, refused=2)
        assert_error(await upload(bridge.address, PHOTO, NAME), 503, "unavailable")
        assert tries() == 2

    async def test_resetting_connections(self, immich: StandIn, bridge: Server) -> None:
        immich.behaviour = Behaviour(reset_on_accept=True)
        told = await upload(bridge.address, PHOTO, NAME)
        assert_error(told, 502, "bad_gateway")
        assert_nothing_stored(immich)

    @pytest.mark.parametrize("how", ["rst", "fin"])
    @pytest.mark.parametrize("after", [0, 100_000])
    async def test_vanishing_in_mid_body(
        self, immich: StandIn, bridge: Server, how: str, after: int
    ) -> None:
        immich.behaviour = Behaviour(vanish_after=after, vanish_with=how)
        async with connect(bridge.address) as peer:
            flood = Flood(peer, upload_head(64 * MIB) + PHOTO)
            assert_error(await peer.read_answer(), 502, "bad_gateway")
            await flood.ended()
        assert len(immich.requests) == 1
        assert_nothing_stored(immich)

    @pytest.mark.parametrize("how", ["rst", "fin"])
    async def test_vanishing_before_its_answer(
        self, immich: StandIn, bridge: Server, how: str
    ) -> None:
        immich.behaviour = Behaviour(lose_answer=True, vanish_with=how)
        assert_error(await upload(bridge.address, PHOTO, NAME), 502, "bad_gateway")
        assert len(immich.requests) == 1

    async def test_vanishing_in_its_answer(self, immich: StandIn, bridge: Server) -> None:
        immich.behaviour = Behaviour(cut_answer_after=10)
        told = await upload(bridge.address, PHOTO, NAME)
        assert assert_error(told, 502, "bad_gateway") == "Immich broke off its answer"
        gc.collect()  # aiohttp warns of a connection that was left to the garbage

    async def test_falling_silent_after_the_body(
        self, immich: StandIn, start_bridge: StartBridge
    ) -> None:
        bridge = await start_bridge(immich.url, UPSTREAM_RESPONSE_TIMEOUT="0.3s")
        immich.behaviour = Behaviour(never_answer=True)
        told = await upload(bridge.address, PHOTO, NAME)
        assert_error(told, 504, "gateway_timeout")
        await immich.wait_for_request(lambda seen: seen.finished, timeout=2)
        await eventually(lambda: immich.open_connections == 0, 2)

    async def test_falling_silent_in_its_answer(self, start_bridge: StartBridge) -> None:
        async def script(peer: Peer) -> None:
            await peer.read_request()
            await peer.send(answer("201 Created", ("Content-Length", "50")), b'{"id"')
            await peer.read_to_end()

        async with front_of(start_bridge, script, UPSTREAM_RESPONSE_TIMEOUT="0.3s") as (bridge, _):
            told = await upload(bridge.address, PHOTO, NAME)
        assert "silent" in assert_error(told, 504, "gateway_timeout")

    async def test_is_not_silent_before_the_body_is_whole(self, start_bridge: StartBridge) -> None:
        invited = asyncio.Event()

        async def script(peer: Peer) -> None:
            message = await peer.read_head()
            await peer.send(b"HTTP/1.1 100 Cont")
            invited.set()
            await peer.read_body(message)
            await peer.send(b"inue\r\n\r\n")
            await peer.send(answer("201 Created", body=b'{"id":"x","status":"created"}'))

        front = front_of(start_bridge, script, UPSTREAM_RESPONSE_TIMEOUT="0.1s")
        async with front as (bridge, _), connect(bridge.address) as peer:
            await peer.send(upload_head(len(PHOTO)), PHOTO[:HALF])
            await invited.wait()
            await let_time_pass(0.3)
            await peer.send(PHOTO[HALF:])
            told = await peer.read_answer()
        assert (told.status, told.interim) == (201, [])
        assert told.header("X-Immich-Asset-Id") == "x"

    async def test_falling_silent_in_mid_body_is_a_stall(
        self, immich: StandIn, start_bridge: StartBridge
    ) -> None:
        """How long it may take over a body is the sender's affair."""
        bridge = await start_bridge(
            immich.url, UPSTREAM_RESPONSE_TIMEOUT="0.1s", BODY_IDLE_TIMEOUT="0.1s"
        )
        immich.behaviour = Behaviour(stall_after=100_000)
        photo = jpeg(BUFFERS)
        async with connect(bridge.address) as peer:
            flood = Flood(peer, upload_request(photo, KEY, NAME))
            await flood.stalled()
            await let_time_pass(0.4)
            assert immich.requests[0].status is None
            immich.behaviour.release()
            assert (await peer.read_answer()).status == 201
        assert immich.assets[0].path.read_bytes() == photo

    @both_releases
    @pytest.mark.parametrize("status", [400, 401, 404, 413, 429, 500, 502, 503, 507])
    async def test_with_an_error_after_the_body(
        self, immich: StandIn, bridge: Server, status: int
    ) -> None:
        said = '{"message":  "Kein Platz für é"}\n'
        immich.behaviour = Behaviour(
            answer_status=status, answer_body=said, answer_headers={"X-Why": "full"}
        )
        told = await upload(bridge.address, PHOTO, NAME, ("X-Request-Id", "mine"))
        assert (told.status, told.body) == (status, said.encode())
        assert told.header("X-Bridge-Error") == f"immich_{status}"
        assert told.header("X-Why") == "full"
        assert told.header("X-Request-Id") == "mine"
        assert told.header("X-Immich-Status") is None
        assert immich.requests[0].completed
        assert len(immich.requests) == 1

    @both_releases
    async def test_with_an_error_of_its_own(self, immich: StandIn, bridge: Server) -> None:
        immich.behaviour = Behaviour(quota_bytes=1000)
        told = await upload(bridge.address, PHOTO, NAME)
        assert told.status == 400
        assert result(told)["message"] == "Quota has been exceeded!"
        assert told.header("X-Bridge-Error") == "immich_400"
        assert_nothing_stored(immich)

    @pytest.mark.parametrize("status", [302, 307])
    async def test_with_a_redirect(self, immich: StandIn, bridge: Server, status: int) -> None:
        immich.behaviour = Behaviour(answer_status=status, answer_headers={"Location": "/x"})
        told = await upload(bridge.address, PHOTO, NAME)
        assert_error(told, 502, "bad_gateway")
        assert told.header("Location") is None
        assert len(immich.requests) == 1


@both_releases
class TestEarlyAnswers:
    """Immich answers some uploads before their body; the sender need not finish its own."""

    CHECKSUM = ("x-immich-checksum", hashlib.sha1(PHOTO, usedforsecurity=False).hexdigest())

    async def begin(self, peer: Peer, key: str) -> None:
        await peer.send(
            request(
                "POST",
                ROUTE,
                ("x-api-key", key),
                NAME,
                self.CHECKSUM,
                ("Content-Length", str(1 << 30)),
            )
        )

    async def test_reach_clients_that_send_on_and_end_their_connections(
        self, immich: StandIn, bridge: Server
    ) -> None:
        await upload(bridge.address, PHOTO, NAME)
        loop = asyncio.get_running_loop()

        async def send_on(key: str) -> Message:
            async with connect(bridge.address) as peer:
                await self.begin(peer, key)
                flood = Flood(peer)
                told = await peer.read_answer()
                answered = loop.time()
                assert told.header("Connection") == "close"
                await flood.stalled()
                assert taken(peer, flood) < 4 * MIB
                await flood.ended()
                assert loop.time() - answered < 3.5
                return told

        unknown, forbidden, duplicate = await asyncio.gather(
            *map(send_on, ("wrong", StandIn.readonly_api_key, StandIn.api_key))
        )
        assert (unknown.status, unknown.header("X-Bridge-Error")) == (401, "immich_401")
        assert "API key" in result(unknown)["message"]
        assert (forbidden.status, forbidden.header("X-Bridge-Error")) == (403, "immich_403")
        assert "asset.upload" in result(forbidden)["message"]
        assert (duplicate.status, duplicate.header("X-Immich-Status")) == (200, "duplicate")
        assert duplicate.header("X-Immich-Asset-Id") == immich.assets[0].id
        assert result(duplicate)["duplicate"] is True
        assert immich.files() == [immich.assets[0].path]
        await eventually(lambda: immich.open_connections == 0)

    @pytest.mark.parametrize("sent", [1, 100_000])
    async def test_reach_clients_that_wait_for_them(
        self, immich: StandIn, bridge: Server, sent: int
    ) -> None:
        async with connect(bridge.address) as peer:
            await self.begin(peer, "wrong")
            flood = Flood(peer, bytes(sent))
            assert (await peer.read_answer()).status == 401
            await flood.ended()
        await eventually(lambda: immich.open_connections == 0, 1)
        assert_nothing_stored(immich)


class TestAnImmichThatStalls:
    async def test_stalls_the_client_and_loses_nothing(
        self, immich: StandIn, bridge: Server
    ) -> None:
        immich.behaviour = Behaviour(stall_after=100_000)
        photo = jpeg(3 * BUFFERS)
        async with connect(bridge.address) as peer:
            flood = Flood(peer, upload_request(photo, KEY, NAME))
            await flood.stalled()
            sent, received = flood.sent, immich.requests[0].body_received
            assert taken(peer, flood) < BUFFERS
            await let_time_pass(0.3)
            assert (flood.sent, immich.requests[0].body_received) == (sent, received)
            immich.behaviour.release()
            assert (await peer.read_answer()).status == 201
        assert immich.assets[0].path.read_bytes() == photo

    @pytest.mark.parametrize("how", ["fin", "rst"])
    async def test_is_let_go_when_the_client_leaves(
        self, immich: StandIn, bridge: Server, how: str
    ) -> None:
        immich.behaviour = Behaviour(stall_after=100_000)
        with written_log() as log:
            async with connect(bridge.address) as peer:
                await peer.send(upload_head(1 << 30))
                await send_until_nobody_reads(peer)
                leave(peer, how)
                async with asyncio.timeout(2):
                    await log.wait_for("outcome=client_gone")
        # Only now can the stand-in see what became of the connection.
        immich.behaviour.release()
        await assert_cancelled(immich)


class TestMany:
    @both_releases
    async def test_uploads_at_once_keep_apart(self, immich: StandIn, bridge: Server) -> None:
        sizes = random.Random(1)
        photos = {f"照片 {n}.jpg": jpeg(sizes.randrange(1, 300_000), n) for n in range(50)}

        async def one(name: str, photo: bytes, in_chunks: bool) -> None:
            told = await upload(
                bridge.address,
                photo,
                ("X-Filename", name),
                ("X-Device-Asset-Id", name),
                digests(photo)[2],
                in_chunks=in_chunks,
            )
            assert told.status == 201
            ids[name] = told.header("X-Immich-Asset-Id")

        ids: dict[str, str | None] = {}
        await asyncio.gather(
            *(one(name, photo, n % 2 == 0) for n, (name, photo) in enumerate(photos.items()))
        )
        assert {a.original_file_name: a.path.read_bytes() for a in immich.assets} == photos
        assert {a.original_file_name: a.id for a in immich.assets} == ids
        assert all(a.fields["deviceAssetId"] == a.original_file_name for a in immich.assets)
        assert len(immich.files()) == 50

    @both_releases
    async def test_identical_uploads_at_once_are_one_asset(
        self, immich: StandIn, bridge: Server
    ) -> None:
        told = await asyncio.gather(*(upload(bridge.address, PHOTO, NAME) for _ in range(6)))
        assert sorted(each.status for each in told) == [200] * 5 + [201]
        assert {each.header("X-Immich-Asset-Id") for each in told} == {immich.assets[0].id}
        assert immich.files() == [immich.assets[0].path]

    async def test_failures_do_not_touch_their_neighbours(
        self, immich: StandIn, bridge: Server
    ) -> None:
        async def one_that_leaves(number: int) -> None:
            async with connect(bridge.address) as peer:
                await peer.send(upload_head(len(PHOTO)), jpeg(HALF, number))
                peer.reset()

        async def one_that_stays(number: int) -> None:
            told = await upload(bridge.address, jpeg(100_000, number), NAME)
            assert told.status == 201

        await asyncio.gather(
            *((one_that_stays, one_that_leaves)[number % 2](number) for number in range(30))
        )
        await eventually(lambda: immich.partial_files() == [] and immich.open_connections == 0)
        stored = {asset.path.read_bytes() for asset in immich.assets}
        assert stored == {jpeg(100_000, number) for number in range(0, 30, 2)}
        assert len(immich.files()) == 15
