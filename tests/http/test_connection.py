"""What is no proper request: refused in our words, one line in the log, nothing passed on."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest

from front import Front, StartBridge, front_of, front_of_a_recorder
from log_capture import written_log
from wire import PATIENCE, Message, Peer, answer, connect, fetch, request

SECRET = b"s3cr3t"
SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n"


def head(*lines: bytes, first: bytes = b"POST /?apiKey=s3cr3t HTTP/1.1") -> bytes:
    return b"\r\n".join([first, b"Host: h", b"x-api-key: s3cr3t", *lines, b"", b""])


CHUNKED = b"Transfer-Encoding: chunked"
MALFORMED = {
    "length and chunks": head(b"Content-Length: 5", CHUNKED) + b"0\r\n\r\n",
    "chunks and length": head(CHUNKED, b"Content-Length: 5") + b"0\r\n\r\n",
    "two lengths": head(b"Content-Length: 5", b"Content-Length: 6") + b"hello!",
    "one length twice": head(b"Content-Length: 5", b"Content-Length: 5") + b"hello",
    "a list of lengths": head(b"Content-Length: 5, 5") + b"hello",
    "a negative length": head(b"Content-Length: -5") + b"hello",
    "a signed length": head(b"Content-Length: +5") + b"hello",
    "a length in hex": head(b"Content-Length: 0x5") + b"hello",
    "an endless length": head(b"Content-Length: 99999999999999999999") + b"hello",
    "space before the colon": head(b"Content-Length : 5") + b"hello",
    "a coding before chunked": head(b"Transfer-Encoding: gzip, chunked") + b"0\r\n\r\n",
    "an empty coding before chunked": head(b"Transfer-Encoding: ,chunked") + b"0\r\n\r\n",
    "a coding after chunked": head(b"Transfer-Encoding: chunked, gzip") + b"0\r\n\r\n",
    "chunked twice": head(b"Transfer-Encoding: chunked, chunked") + b"0\r\n\r\n",
    "codings in two fields": head(b"Transfer-Encoding: gzip", CHUNKED) + b"0\r\n\r\n",
    "an unknown coding": head(b"Transfer-Encoding: xchunked") + b"0\r\n\r\n",
    "no coding": head(b"Transfer-Encoding: identity"),
    "chunks in HTTP/1.0": head(CHUNKED, first=b"POST / HTTP/1.0") + b"0\r\n\r\n",
    "a bad chunk size": head(CHUNKED) + b"zz\r\n\r\n",
    "a negative chunk size": head(CHUNKED) + b"-5\r\nhello\r\n0\r\n\r\n",
    "an endless chunk size": head(CHUNKED) + b"fffffffffffffffff\r\n",
    "a chunk ended by LF": head(CHUNKED) + b"5\nhello\n0\n\n",
    "garbage": b"\x00\x01s3cr3t\x02\r\n\r\n",
    "a TLS hello": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + SECRET * 9 + b"\r\n\r\n",
    "an HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "an unknown method": head(first=b"FROB /?apiKey=s3cr3t HTTP/1.1"),
    "a method in lower case": head(first=b"get /?apiKey=s3cr3t HTTP/1.1"),
    "an unknown version": head(first=b"GET /?apiKey=s3cr3t HTTP/1.2"),
    "a relative target": head(first=b"GET a/b?apiKey=s3cr3t HTTP/1.1"),
    "an asterisk for GET": head(first=b"GET * HTTP/1.1"),
    "a target without a host": head(first=b"GET http:///a?apiKey=s3cr3t HTTP/1.1"),
    "a target with a bad port": head(first=b"GET http://h:99999/?apiKey=s3cr3t HTTP/1.1"),
    "a control character in the target": head(first=b"GET /\x01?apiKey=s3cr3t HTTP/1.1"),
    "NUL in the target": head(first=b"GET /\x00?apiKey=s3cr3t HTTP/1.1"),
    "UTF-8 in the target": head(first="GET /é?apiKey=s3cr3t HTTP/1.1".encode()),
    "Latin-1 in the target": head(first=b"GET /\xe9?apiKey=s3cr3t HTTP/1.1"),
    "a space in the target": head(first=b"GET /a b?apiKey=s3cr3t HTTP/1.1"),
    "NUL in a value": head(b"Authorization: s3cr3t\x00s3cr3t"),
    "NUL in a name": head(b"Author\x00ization: s3cr3t"),
    "CR in a value": head(b"X: s3cr3t\rY: b"),
    "a folded field": head(b"X: s3cr3t", b" s3cr3t"),
    "a field without a colon": head(b"s3cr3t"),
    "a field without a name": head(b": s3cr3t"),
    "no host": b"GET /?apiKey=s3cr3t HTTP/1.1\r\n\r\n",
    "two hosts": head(b"Host: i"),
    "lines ended by LF": head().replace(b"\r\n", b"\n") + b"\r\n\r\n",
    "a field of 33 KiB": head(b"Cookie: " + SECRET + b"x" * 33 * 1024),
    "a target of 33 KiB": head(first=b"GET /?key=" + SECRET + b"x" * 33 * 1024 + b" HTTP/1.1"),
    "a name of 33 KiB": head(SECRET + b"x" * 33 * 1024 + b": a"),
    "too many fields": head(*[b"X: s3cr3t"] * 1025),
}


@pytest.fixture
async def front(start_bridge: StartBridge) -> AsyncIterator[Front]:
    async with front_of_a_recorder(start_bridge) as front:
        yield front


async def converse(url: str, *pieces: bytes) -> bytes:
    """Send the pieces one by one, as far as they are taken; all that comes back."""
    async with connect(url) as peer:
        reading = asyncio.create_task(peer.read_to_end())
        with suppress(ConnectionError):
            for piece in pieces:
                await peer.send(piece)
                await asyncio.sleep(0)  # lets the bridge read this piece by itself
        return await reading


def one_answer(raw: bytes) -> Message:
    """The only answer in `raw`."""
    assert len(re.findall(rb"HTTP/1\.[01] \d{3} ", raw)) == 1, raw
    text, _, body = raw.partition(b"\r\n\r\n")
    first_line, *lines = text.split(b"\r\n")
    headers = [(name, value.strip()) for name, _, value in (line.partition(b":") for line in lines)]
    return Message(first_line, headers, body)


def assert_refused(raw: bytes, status: int = 400, code: str = "bad_request") -> None:
    told = one_answer(raw)
    assert told.status == status
    assert told.header("Content-Type") == "application/json"
    assert told.header("X-Bridge-Error") == code
    assert told.header("X-Request-Id")
    if told.first_line.startswith(b"HTTP/1.1"):
        assert told.header("Connection") == "close"
    assert told.header("Content-Length") == str(len(told.body))
    error = json.loads(told.body)
    assert error.keys() == {"error", "message"}
    assert error["error"] == code
    assert re.fullmatch(r"[A-Z][ -~]{9,}", error["message"]), "that tells nobody what is wrong"
    assert SECRET not in raw


class TestMalformedRequests:
    @pytest.mark.parametrize("cut", [None, 1, 50])
    @pytest.mark.parametrize("name", MALFORMED)
    async def test_are_refused_and_not_passed_on(
        self, front: Front, name: str, cut: int | None
    ) -> None:
        raw = MALFORMED[name] + SMUGGLED
        size = max(cut or len(raw), len(raw) // 300)
        if CHUNKED in raw and cut is not None:
            # Heads that are in order pass before the chunks are seen to be bad; of these
            # there are tests below.
            size = max(size, raw.index(b"\r\n\r\n") + 24)
        with written_log() as log:
            pieces = (raw[at : at + size] for at in range(0, len(raw), size))
            assert_refused(await converse(front.url, *pieces))
            await fetch(front.url, "GET", "/after")
            await log.wait_for(" path=/after ")
        assert [message.target for message in front.seen] == [b"/after"]
        assert front.upstream.connections == 1
        assert len(log.lines) == 2
        assert " status=400 " in log.lines[0]
        assert SECRET.decode() not in log.getvalue()
        assert "smuggled" not in log.getvalue()

    async def test_in_http_1_0_chunks_are_refused_also_when_nothing_follows(
        self, front: Front
    ) -> None:
        assert_refused(await converse(front.url, MALFORMED["chunks in HTTP/1.0"]))
        assert front.upstream.connections == 0

    @pytest.mark.parametrize("target", [b"immich.example:443", b"/a"])
    async def test_connect_is_not_offered(self, front: Front, target: bytes) -> None:
        with written_log() as log:
            raw = b"CONNECT %b HTTP/1.1\r\nHost: immich.example:443\r\n\r\n" % target
            async with connect(front.url) as peer:
                await peer.send(raw + SMUGGLED)
                told = await peer.read_answer()
        assert (told.status, told.header("X-Bridge-Error")) == (501, "not_implemented")
        assert told.header("Connection") == "close"
        assert told.header("X-Request-Id")
        assert front.upstream.connections == 0
        assert len(log.lines) == 1

    async def test_after_a_good_one_are_refused_alone(self, front: Front) -> None:
        async with connect(front.url) as peer:
            await peer.send(request("GET", "/good"))
            assert (await peer.read_answer()).status == 200
            await peer.send(MALFORMED["two lengths"] + SMUGGLED)
            assert_refused(await peer.read_to_end())
        assert [message.target for message in front.seen] == [b"/good"]

    async def test_while_a_good_one_is_under_way_are_refused_behind_it(self, front: Front) -> None:
        front.reply = answer(body=b"good")
        raw = await converse(front.url, request("GET", "/good"), b"\x00bad\r\n\r\n", SMUGGLED)
        good, bad = raw.split(b"good", 1)
        assert one_answer(good).status == 200
        assert_refused(bad)
        assert [message.target for message in front.seen] == [b"/good"]


class TestBadChunks:
    """Found only after the head and a part of the body were passed on."""

    @pytest.mark.parametrize(
        "bad",
        [b"zz\r\nsecond\r\n0\r\n\r\n", b"-1\r\n", b"6second\r\n", b"6\nsecond\n", b"\r\n", b"\x00"],
    )
    async def test_end_the_request_at_both_sides(
        self, start_bridge: StartBridge, bad: bytes
    ) -> None:
        first_came = asyncio.Event()
        rest: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

        async def script(peer: Peer) -> None:
            await peer.reader.readuntil(b"first\r\n")
            first_came.set()
            rest.set_result(await peer.read_to_end())

        front = front_of(start_bridge, script)
        with written_log() as log:
            async with front as (bridge, upstream), connect(bridge.address) as peer:
                await peer.send(head(CHUNKED) + b"5\r\nfirst\r\n")
                await asyncio.wait_for(first_came.wait(), PATIENCE)
                await peer.send(bad + SMUGGLED)
                assert_refused(await peer.read_to_end())
                # To Immich it has no end.
                assert await asyncio.wait_for(rest, PATIENCE) == b""
        assert upstream.connections == 1
        assert len(log.lines) == 1
        assert " method=POST path=/ status=400 " in log.lines[0]
        assert SECRET.decode() not in log.getvalue()

    async def test_in_a_chunk_that_is_too_long(self, front: Front) -> None:
        async with connect(front.url) as peer:
            await peer.send(head(CHUNKED))
            await peer.send(b"5\r\nfirst and more\r\n0\r\n\r\n" + SMUGGLED)
            assert_refused(await peer.read_to_end())
        assert front.seen == []


class TestBodiesOfRefusedRequests:
    @pytest.mark.parametrize("framing", ["length", "chunks"])
    async def test_are_not_taken_for_requests(self, front: Front, framing: str) -> None:
        body, field = SMUGGLED, b"Content-Length: %d" % len(SMUGGLED)
        if framing == "chunks":
            body, field = b"%x\r\n%b\r\n0\r\n\r\n" % (len(SMUGGLED), SMUGGLED), CHUNKED
        refused = head(field, first=b"PUT /api/assets/background HTTP/1.1") + body
        raw = await converse(front.url, refused, request("GET", "/next", ("Connection", "close")))
        assert raw.startswith(b"HTTP/1.1 405 ")
        assert raw.count(b"HTTP/1.1 ") <= 2
        assert {message.target for message in front.seen} <= {b"/next"}

    async def test_that_do_not_come_are_not_taken_from_what_does(self, front: Front) -> None:
        cut = head(b"Content-Length: 1000000", first=b"PUT /api/assets/background HTTP/1.1")
        async with connect(front.url) as peer:
            await peer.send(cut + b"begin")
            told = await peer.read_answer()
            assert (told.status, told.header("Connection")) == (405, "close")
            # The rest of the body, as far as the bridge cares to read it.
            with suppress(ConnectionError):
                await peer.send(SMUGGLED * 10_000)
            assert await peer.read_to_end() == b""
        assert front.seen == []

    async def test_do_not_reset_the_answer_away(self, front: Front) -> None:
        size = 4 << 20
        first = b"PUT /api/assets/background HTTP/1.1"
        async with connect(front.url) as peer:
            # All of it is sent before the client looks for an answer, as curl does.
            await peer.send(head(b"Content-Length: %d" % size, first=first))
            sending = asyncio.create_task(peer.send(*[bytes(1 << 16)] * (size >> 16)))
            told = await peer.read_answer()
            assert told.status == 405
            assert json.loads(told.body)["error"] == "method_not_allowed"
            assert await peer.reader.read() == b""
            sending.cancel()


class TestOddRequests:
    """Unusual, but in order."""

    @pytest.mark.parametrize(
        "raw",
        [
            b"\r\n" + request("GET", "/odd"),
            b"GET /odd HTTP/1.1\r\nHost:h\r\nX:\r\nY:  \t y \t \r\n\r\n",
            b"GET /odd HTTP/1.1\r\nhost: h\r\nX: 1\r\nX: 1\r\n\r\n",
            b"GET /odd HTTP/1.1\r\nHost:\r\n\r\n",
            b"GET http://elsewhere/odd HTTP/1.1\r\nHost: h\r\n\r\n",
            b"POST /odd HTTP/1.1\r\nHost: h\r\nContent-Length: 0003\r\n\r\nabc",
            b"PUT /odd HTTP/1.1\r\nHost: h\r\n%b\r\n\r\n3\r\nabc\r\n0\r\n\r\n" % CHUNKED.upper(),
            b"POST /odd HTTP/1.1\r\nHost: h\r\n%b\r\n\r\n0003\r\nabc\r\n000\r\n\r\n" % CHUNKED,
            b"POST /odd HTTP/1.1\r\nHost: h\r\n%b\r\n\r\n0\r\n\r\n" % CHUNKED,
            b"GET /odd HTTP/1.0\r\n\r\n",
        ],
    )
    @pytest.mark.parametrize("bytewise", [False, True])
    async def test_pass(self, front: Front, raw: bytes, bytewise: bool) -> None:
        async with connect(front.url) as peer:
            for piece in [raw[at : at + 1] for at in range(len(raw))] if bytewise else [raw]:
                await peer.send(piece)
                await asyncio.sleep(0)
            assert (await peer.read_answer()).status == 200
        assert [message.target for message in front.seen] == [b"/odd"]
        assert front.seen[0].body == (b"abc" if b"abc" in raw else b"")
