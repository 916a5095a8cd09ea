"""Immich's answers on their way to the client: as they come, and cut short where they are."""

import asyncio
import gzip
import random
from collections.abc import AsyncIterator, Callable
from contextlib import suppress

import pytest

from front import Front, StartBridge, front_of, front_of_a_recorder
from wire import PATIENCE, Peer, answer, chunked, connect, fetch, request

SIZES = [0, 1, 65535, 1 << 20, 5 << 20]


@pytest.fixture
async def front(start_bridge: StartBridge) -> AsyncIterator[Front]:
    async with front_of_a_recorder(start_bridge) as front:
        yield front


def some_bytes(size: int) -> bytes:
    return random.Random(size).randbytes(size)


class TestHeads:
    async def test_nothing_is_added_but_the_request_id(self, front: Front) -> None:
        told = await fetch(front.url, "GET", "/", ("X-Request-Id", "mine"))
        assert told.first_line == b"HTTP/1.1 200 OK"
        assert told.headers == [(b"Content-Length", b"0"), (b"X-Request-Id", b"mine")]

    async def test_fields_pass_in_order_with_repeats_and_as_they_are_spelled(
        self, front: Front
    ) -> None:
        fields = [
            ("set-Cookie", "a=1; Path=/; HttpOnly"),
            ("X-B", "1"),
            ("Set-Cookie", "b=2; Expires=Wed, 21 Nov 2026 08:00:00 GMT"),
            ("x-b", "2"),
            ("SET-COOKIE", "a=3"),
            ("Server", "Immich"),
            ("Date", "never"),
            ("Vary", "a"),
            ("Vary", "b"),
            ("Content-Type", "image/heic"),
            ("ETag", 'W/"x"'),
            ("Content-Length", "0"),
            ("X-Empty", ""),
        ]
        front.reply = answer("203 Not Quite", *fields)
        told = await fetch(front.url, "GET", "/", ("X-Request-Id", "mine"))
        assert told.first_line == b"HTTP/1.1 203 Not Quite"
        assert told.headers == [
            *((name.encode(), value.encode()) for name, value in fields),
            (b"X-Request-Id", b"mine"),
        ]

    async def test_hop_by_hop_fields_stay_behind(self, front: Front) -> None:
        front.reply = answer(
            "200 OK",
            ("Connection", "keep-alive, X-Private"),
            ("Keep-Alive", "timeout=5"),
            ("X-Private", "secret"),
            ("Proxy-Authenticate", "Basic"),
            ("Trailer", "X-T"),
            ("Upgrade", "h2c"),
            ("X-Public", "kept"),
        )
        told = await fetch(front.url, "GET", "/", ("X-Request-Id", "mine"))
        assert told.headers == [
            (b"X-Public", b"kept"),
            (b"Content-Length", b"0"),
            (b"X-Request-Id", b"mine"),
        ]

    @pytest.mark.parametrize("reason", [b"", b"Tr\xe8s bien", b"\xe2\x9c\x93 fine"])
    async def test_the_reason_is_bytes(self, front: Front, reason: bytes) -> None:
        front.reply = b"HTTP/1.1 207 %b\r\nContent-Length: 0\r\n\r\n" % reason
        assert (await fetch(front.url, "GET", "/")).first_line == b"HTTP/1.1 207 " + reason

    @pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
    async def test_redirects_are_the_clients_to_follow(self, front: Front, status: int) -> None:
        location = "../else where/%2f//?a=b&&c#d"
        front.reply = answer(f"{status} Elsewhere", ("Location", location), body=b"there")
        told = await fetch(front.url, "GET", "/here")
        assert (told.status, told.header("Location"), told.body) == (status, location, b"there")
        assert [message.target for message in front.seen] == [b"/here"]

    async def test_an_answer_in_two_parts_of_the_head_is_one(
        self, start_bridge: StartBridge
    ) -> None:
        async def script(peer: Peer) -> None:
            await peer.read_request()
            for byte in answer("200 OK", ("X-A", "b"), body=b"hello"):
                await peer.send(bytes([byte]))

        async with front_of(start_bridge, script) as (bridge, _):
            told = await fetch(bridge.address, "GET", "/")
        assert (told.header("X-A"), told.body) == ("b", b"hello")


class TestBodilessAnswers:
    async def test_head_keeps_the_headers_of_a_get(self, front: Front) -> None:
        front.reply = answer("200 OK", ("Content-Length", "12345"), ("ETag", '"x"'))
        await self.assert_no_body(front, "HEAD", [(b"Content-Length", b"12345"), (b"ETag", b'"x"')])

    async def test_head_of_unknown_length(self, front: Front) -> None:
        front.reply = answer("200 OK", ("Transfer-Encoding", "chunked"), ("ETag", '"x"'))
        await self.assert_no_body(front, "HEAD", [(b"ETag", b'"x"')])

    @pytest.mark.parametrize("fields", [[], [("Content-Length", "12345")]])
    async def test_304(self, front: Front, fields: list[tuple[str, str]]) -> None:
        head = [b"HTTP/1.1 304 Not Modified", b'ETag: "x"']
        head += [f"{name}: {value}".encode() for name, value in fields]
        front.reply = b"\r\n".join(head) + b"\r\n\r\n"
        kept = [(name.encode(), value.encode()) for name, value in fields]
        await self.assert_no_body(front, "GET", [(b"ETag", b'"x"'), *kept])

    async def test_204(self, front: Front) -> None:
        front.reply = b'HTTP/1.1 204 No Content\r\nETag: "x"\r\n\r\n'
        await self.assert_no_body(front, "GET", [(b"ETag", b'"x"')])

    async def test_204_loses_a_length_that_it_must_not_have(self, front: Front) -> None:
        front.reply = answer("204 No Content", ("ETag", '"x"'))
        await self.assert_no_body(front, "DELETE", [(b"ETag", b'"x"')])

    async def assert_no_body(
        self, front: Front, method: str, headers: list[tuple[bytes, bytes]]
    ) -> None:
        """The next answer on the connection comes right behind the head of this one."""
        async with connect(front.url) as peer:
            await peer.send(request(method, "/", ("X-Request-Id", "mine")))
            assert (await peer.read_answer("HEAD")).headers == [
                *headers,
                (b"X-Request-Id", b"mine"),
            ]
            front.reply = answer("200 Next")
            await peer.send(request("GET", "/"))
            assert (await peer.read_answer()).first_line == b"HTTP/1.1 200 Next"


class TestBodies:
    @pytest.mark.parametrize("size", SIZES)
    async def test_of_known_length_arrive_byte_for_byte(self, front: Front, size: int) -> None:
        body = some_bytes(size)
        front.reply = answer(body=body)
        told = await fetch(front.url, "GET", "/")
        assert told.header("Content-Length") == str(size)
        assert told.header("Transfer-Encoding") is None
        assert told.body == body

    @pytest.mark.parametrize("size", SIZES)
    async def test_in_chunks_arrive_byte_for_byte(self, front: Front, size: int) -> None:
        body = some_bytes(size)
        framed = chunked(*(body[at : at + 7777] for at in range(0, size, 7777)))
        front.reply = answer("200 OK", ("Transfer-Encoding", "chunked"), body=framed)
        told = await fetch(front.url, "GET", "/")
        assert told.header("Content-Length") is None
        assert told.body == body

    @pytest.mark.parametrize("size", SIZES)
    async def test_that_end_with_the_connection_arrive_byte_for_byte(
        self, start_bridge: StartBridge, size: int
    ) -> None:
        body = some_bytes(size)

        async def script(peer: Peer) -> None:
            await peer.read_request()
            await peer.send(b"HTTP/1.1 200 OK\r\n\r\n", body)

        async with front_of(start_bridge, script) as (bridge, _), connect(bridge.address) as peer:
            # The end has to be told to a client that keeps its connection.
            for _ in range(2):
                await peer.send(request("GET", "/"))
                told = await peer.read_answer()
                assert told.header("Transfer-Encoding") == "chunked"
                assert told.body == body

    async def test_of_unknown_length_end_with_the_connection_for_http_1_0(
        self, front: Front
    ) -> None:
        front.reply = answer("200 OK", ("Transfer-Encoding", "chunked"), body=chunked(b"ab", b"c"))
        async with connect(front.url) as peer:
            await peer.send(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
            told = await peer.read_head()
            assert told.header("Transfer-Encoding") is None
            assert told.header("Connection") == "close"
            assert await peer.read_to_end() == b"abc"

    async def test_encoded_ones_are_not_decoded(self, front: Front) -> None:
        body = gzip.compress(some_bytes(100_000) + bytes(100_000))
        front.reply = answer("200 OK", ("Content-Encoding", "gzip"), body=body)
        told = await fetch(front.url, "GET", "/")
        assert told.header("Content-Encoding") == "gzip"
        assert told.body == body

    @pytest.mark.parametrize(
        ("framing", "framed"),
        [
            ("Content-Length: 11", lambda piece: piece),
            ("Transfer-Encoding: chunked", lambda piece: b"%x\r\n%b\r\n" % (len(piece), piece)),
            ("X-Until: close", lambda piece: piece),
        ],
    )
    async def test_each_part_is_at_the_client_before_the_next_is_sent(
        self, start_bridge: StartBridge, framing: str, framed: Callable[[bytes], bytes]
    ) -> None:
        head_came, first_came = asyncio.Event(), asyncio.Event()

        async def script(peer: Peer) -> None:
            await peer.read_request()
            await peer.send(f"HTTP/1.1 200 OK\r\n{framing}\r\n\r\n".encode())
            await head_came.wait()
            await peer.send(framed(b"first"))
            await first_came.wait()
            await peer.send(framed(b"second"), b"0\r\n\r\n" if "chunked" in framing else b"")

        async with front_of(start_bridge, script) as (bridge, _), connect(bridge.address) as peer:
            await peer.send(request("GET", "/"))
            told = await peer.read_head()
            assert told.status == 200
            head_came.set()
            assert b"first" in await asyncio.wait_for(peer.reader.readuntil(b"first"), PATIENCE)
            first_came.set()
            assert b"second" in await asyncio.wait_for(peer.reader.readuntil(b"second"), PATIENCE)


class TestBrokenAnswers:
    @pytest.mark.parametrize("ending", ["fin", "rst"])
    @pytest.mark.parametrize(
        ("framing", "sent"),
        [
            ("Content-Length: 1000", b"x" * 500),
            ("Content-Length: 1000", b""),
            ("Transfer-Encoding: chunked", b"1f4\r\n" + b"x" * 500 + b"\r\n"),
            ("Transfer-Encoding: chunked", b"3e8\r\n" + b"x" * 500),
            ("Transfer-Encoding: chunked", b""),
        ],
    )
    async def test_are_broken_at_the_client_too(
        self, start_bridge: StartBridge, framing: str, sent: bytes, ending: str
    ) -> None:
        may_end = asyncio.Event()

        async def script(peer: Peer) -> None:
            await peer.read_request()
            await peer.send(f"HTTP/1.1 200 OK\r\n{framing}\r\n\r\n".encode(), sent)
            await may_end.wait()
            if ending == "rst":
                peer.reset()

        async with front_of(start_bridge, script) as (bridge, _), connect(bridge.address) as peer:
            await peer.send(request("GET", "/"))
            told = await peer.read_head()
            came = await peer.reader.readexactly(sent.count(b"x") and len(sent))
            may_end.set()
            came += await peer.read_to_end()
        assert told.status == 200
        assert came.count(b"x") == sent.count(b"x")
        assert not came.endswith(b"0\r\n\r\n")

    async def test_one_that_would_end_with_the_connection_but_is_reset(
        self, start_bridge: StartBridge
    ) -> None:
        first_came = asyncio.Event()

        async def script(peer: Peer) -> None:
            await peer.read_request()
            await peer.send(b"HTTP/1.1 200 OK\r\n\r\nfirst")
            await first_came.wait()
            peer.reset()

        async with front_of(start_bridge, script) as (bridge, _), connect(bridge.address) as peer:
            await peer.send(request("GET", "/"))
            await peer.reader.readuntil(b"first\r\n")
            first_came.set()
            assert await peer.read_to_end() == b""

    async def test_bad_chunks_break_the_answer(self, start_bridge: StartBridge) -> None:
        first_came = asyncio.Event()

        async def script(peer: Peer) -> None:
            await peer.read_request()
            await peer.send(
                answer("200 OK", ("Transfer-Encoding", "chunked"), body=b"5\r\nfirst\r\n")
            )
            await first_came.wait()
            await peer.send(b"zz\r\nsecond\r\n0\r\n\r\n")

        async with front_of(start_bridge, script) as (bridge, _), connect(bridge.address) as peer:
            await peer.send(request("GET", "/"))
            await peer.reader.readuntil(b"first\r\n")
            first_came.set()
            assert await peer.read_to_end() == b""

    async def test_what_follows_an_answer_is_no_answer_to_the_next_request(
        self, start_bridge: StartBridge
    ) -> None:
        forged = answer("200 Forged", body=b"forged")

        async def script(peer: Peer) -> None:
            await peer.read_request()
            await peer.send(answer("200 OK", body=b"true") + forged)
            await peer.read_request()

        async with front_of(start_bridge, script) as (bridge, _):
            for _ in range(5):
                assert (await fetch(bridge.address, "GET", "/")).body == b"true"

    async def test_a_switch_of_protocols_that_nobody_asked_for(
        self, start_bridge: StartBridge
    ) -> None:
        async def script(peer: Peer) -> None:
            await peer.read_request()
            switch = ("Connection", "Upgrade"), ("Upgrade", "websocket"), ("X-Until", "x")
            await peer.send(answer("101 Switching Protocols", *switch))
            await peer.read_request()

        async with front_of(start_bridge, script) as (bridge, _):
            assert (await fetch(bridge.address, "GET", "/")).status == 502


class TestPace:
    async def test_a_slow_client_holds_immich_back(self, start_bridge: StartBridge) -> None:
        size = 96 << 20
        piece = some_bytes(1 << 20)
        sent = 0
        held_back = asyncio.Event()

        async def script(peer: Peer) -> None:
            nonlocal sent
            await peer.read_request()
            await peer.send(answer("200 OK", ("Content-Length", str(size))))
            while sent < size:
                peer.writer.write(piece)
                try:
                    await asyncio.wait_for(peer.writer.drain(), 0.3)
                except TimeoutError:
                    held_back.set()
                    await asyncio.wait_for(peer.writer.drain(), PATIENCE)
                sent += len(piece)

        async with front_of(start_bridge, script) as (bridge, _), connect(bridge.address) as peer:
            await peer.send(request("GET", "/"))
            await peer.read_head()
            await asyncio.wait_for(held_back.wait(), PATIENCE)
            # What the sockets between hold, and no more.
            assert sent < size / 2
            for _ in range(size // len(piece)):
                assert await peer.reader.readexactly(len(piece)) == piece

    @pytest.mark.parametrize("ending", ["fin", "rst"])
    @pytest.mark.parametrize("flowing", [True, False])
    async def test_immich_is_let_go_when_the_client_leaves(
        self, start_bridge: StartBridge, ending: str, flowing: bool
    ) -> None:
        let_go = asyncio.Event()

        async def script(peer: Peer) -> None:
            await peer.read_request()
            await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\nfirst")
            try:
                while flowing:
                    await peer.send(bytes(1 << 16))
                assert await peer.reader.read() == b""
            finally:
                let_go.set()

        async with front_of(start_bridge, script) as (bridge, _), connect(bridge.address) as peer:
            await peer.send(request("GET", "/"))
            await peer.reader.readuntil(b"first")
            if ending == "rst":
                peer.reset()
            else:
                await peer.close()
            await asyncio.wait_for(let_go.wait(), PATIENCE)

    async def test_immich_is_let_go_when_the_client_leaves_before_the_answer(
        self, start_bridge: StartBridge
    ) -> None:
        came, let_go = asyncio.Event(), asyncio.Event()

        async def script(peer: Peer) -> None:
            await peer.read_request()
            came.set()
            assert await peer.read_to_end() == b""
            let_go.set()

        async with front_of(start_bridge, script) as (bridge, _), connect(bridge.address) as peer:
            await peer.send(request("GET", "/"))
            await asyncio.wait_for(came.wait(), PATIENCE)
            await peer.close()
            await asyncio.wait_for(let_go.wait(), PATIENCE)


class TestEarlyAnswers:
    @pytest.mark.parametrize("then", ["waits", "reads on", "closes"])
    @pytest.mark.parametrize("framing", ["Content-Length: 9999999", "Transfer-Encoding: chunked"])
    async def test_reach_the_client_before_the_end_of_its_upload(
        self, start_bridge: StartBridge, framing: str, then: str
    ) -> None:
        done = asyncio.Event()

        async def script(peer: Peer) -> None:
            await peer.read_head()
            await peer.send(answer("401 Unauthorized", ("X-Early", "yes"), body=b"who are you"))
            if then == "waits":
                await done.wait()
            elif then == "closes":
                peer.writer.write_eof()
            await peer.read_to_end()

        async with front_of(start_bridge, script) as (bridge, _), connect(bridge.address) as peer:
            await peer.send(f"POST / HTTP/1.1\r\nHost: h\r\n{framing}\r\n\r\n".encode())
            await peer.send(b"10000\r\n" + bytes(1 << 16) + b"\r\n")
            told = await peer.read_answer()
            assert told.status == 401
            assert (told.header("X-Early"), told.body) == ("yes", b"who are you")
            assert told.header("Connection") == "close"
            # Whoever sends on gets an end, and no reset, which might overtake the answer.
            await peer.send(b"80000\r\n" + bytes(1 << 19) + b"\r\n")
            assert await asyncio.wait_for(peer.reader.read(), PATIENCE) == b""
            done.set()

    @pytest.mark.parametrize("framing", ["Content-Length: 9999999", "Transfer-Encoding: chunked"])
    async def test_reach_the_client_before_the_first_byte_of_its_upload(
        self, start_bridge: StartBridge, framing: str
    ) -> None:
        async def script(peer: Peer) -> None:
            assert framing.encode() in [
                b"%b: %b" % field for field in (await peer.read_head()).headers
            ]
            await peer.send(answer("401 Unauthorized", body=b"who are you"))
            await peer.read_to_end()

        async with front_of(start_bridge, script) as (bridge, _), connect(bridge.address) as peer:
            await peer.send(f"POST / HTTP/1.1\r\nHost: h\r\n{framing}\r\n\r\n".encode())
            told = await peer.read_answer()
        assert (told.status, told.body) == (401, b"who are you")

    async def test_end_an_upload_without_reading_all_of_it(self, start_bridge: StartBridge) -> None:
        received = sent = 0

        async def script(peer: Peer) -> None:
            nonlocal received
            await peer.read_head()
            await peer.send(answer("401 Unauthorized"))
            while piece := await peer.reader.read(1 << 16):
                received += len(piece)

        async def upload(peer: Peer) -> None:
            nonlocal sent
            with suppress(ConnectionError):
                while True:
                    peer.writer.write(bytes(1 << 16))
                    await peer.writer.drain()
                    sent += 1 << 16

        async with front_of(start_bridge, script) as (bridge, _), connect(bridge.address) as peer:
            await peer.send(request("POST", "/", ("Content-Length", str(1 << 30))))
            uploading = asyncio.create_task(upload(peer))
            assert (await peer.read_answer()).status == 401
            # The client does not stop by itself, so that in the end it is cut off.
            await asyncio.wait_for(uploading, PATIENCE)
        # A few megabytes fit into the sockets between.
        assert sent < 64 << 20
        assert received < 64 << 20
