"""Bad input and bad luck: an upload is whole in Immich or not there at all."""

import asyncio
import hashlib
import json
from collections.abc import Awaitable, Callable

import pytest

from bridge.background import KEY, NAMED, photo, upload, upload_request
from front import front_of, unused_port
from immich_bridge.serve import Server
from immich_standin import StandIn
from log_capture import written_log
from wire import PATIENCE, Message, Peer, chunked, connect

StartBridge = Callable[..., Awaitable[Server]]
CHUNKED = ("Transfer-Encoding", "chunked")
MB = 1_000_000


def assert_refused(answer: Message, status: int, code: str) -> str:
    """That `answer` is an error of the bridge's own; its message."""
    assert (answer.status, answer.header("X-Bridge-Error")) == (status, code), answer
    assert answer.header("Content-Type") == "application/json"
    error = json.loads(answer.body)
    assert error["error"] == code
    return str(error["message"])


async def push_until_stuck(peer: Peer, total: int) -> int:
    """Send zeros until the other side takes no more for half a second; how many it took."""
    for sent in range(0, total, 100_000):
        try:
            peer.writer.write(bytes(100_000))
            await asyncio.wait_for(peer.writer.drain(), 0.5)
        except (TimeoutError, ConnectionError):
            return sent
    raise AssertionError("the other side has taken everything")


class TestMetadata:
    @pytest.mark.parametrize(
        ("header", "value"),
        [
            ("X-File-Created-At", "yesterday"),
            ("X-File-Created-At", "2026-13-45T00:00:00Z"),
            ("X-File-Created-At", "1700000000000"),
            ("X-File-Modified-At", "2026-02-29T00:00:00Z"),
            ("X-Is-Favorite", "maybe"),
            ("X-Live-Photo-Video-Id", "undefined"),
            ("X-Live-Photo-Video-Id", "00000000-0000-1000-8000-000000000000"),
            ("X-Duration", "0:00:10.000"),
            ("X-Duration", "10.5"),
            ("X-Duration", "-1"),
            ("X-Latitude", "91"),
            ("X-Longitude", "-180.5"),
            ("X-Latitude", "nan"),
            ("X-Visibility", "secret"),
            ("X-Content-Type", "a picture"),
        ],
    )
    async def test_that_makes_no_sense(
        self, immich: StandIn, bridge: Server, header: str, value: str
    ) -> None:
        answer = await upload(bridge.address, NAMED, (header, value), body=photo())
        assert header in assert_refused(answer, 400, "bad_request")
        assert immich.requests == []

    @pytest.mark.parametrize(
        "query",
        [
            "?filename=a%0D%0AX-Evil:%20yes%0D%0A.jpg",
            "?filename=a%22%0D%0A%0D%0A--.jpg",
            "?filename=a%00.jpg",
            "?deviceAssetId=a%00b",
            "?filename=%ED%A0%80.jpg",
            "?filename=%FF.jpg",
        ],
    )
    async def test_with_characters_that_end_a_header_or_no_text(
        self, immich: StandIn, bridge: Server, query: str
    ) -> None:
        answer = await upload(bridge.address, body=photo(), query=query)
        assert_refused(answer, 400, "bad_request")
        assert immich.requests == []

    async def test_kind_unknown(self, immich: StandIn, bridge: Server) -> None:
        answer = await upload(bridge.address, ("X-Filename", "note.txt"), body=b"just text" * 99)
        assert_refused(answer, 415, "unsupported_media_type")
        assert immich.requests == []

    async def test_no_credentials(self, immich: StandIn, bridge: Server) -> None:
        async with connect(bridge.address) as peer:
            # Refused by the head alone: the body is never asked for.
            await peer.send(upload_request(NAMED, ("Expect", "100-continue"), length=MB))
            answer = await peer.read_answer("POST")
        assert_refused(answer, 401, "unauthorized")
        assert answer.interim == []
        assert immich.requests == []


class TestSize:
    @pytest.mark.parametrize("framing", [("Content-Length", "0"), CHUNKED, ("X-None", "")])
    async def test_empty(self, immich: StandIn, bridge: Server, framing: tuple[str, str]) -> None:
        async with connect(bridge.address) as peer:
            end = chunked() if framing is CHUNKED else b""
            await peer.send(upload_request(KEY, NAMED, framing) + end)
            assert_refused(await peer.read_answer(), 400, "bad_request")
        assert immich.requests == []

    async def test_too_large_by_announcement(
        self, immich: StandIn, start_bridge: StartBridge
    ) -> None:
        bridge = await start_bridge(immich.url, MAX_STREAM_SIZE="100000")
        async with connect(bridge.address) as peer:
            await peer.send(upload_request(KEY, NAMED, length=100_001))
            assert_refused(await peer.read_answer(), 413, "payload_too_large")
        assert immich.requests == []
        answer = await upload(bridge.address, NAMED, body=photo(100_000))
        assert answer.status == 201

    async def test_too_large_by_surprise(self, immich: StandIn, start_bridge: StartBridge) -> None:
        bridge = await start_bridge(immich.url, MAX_STREAM_SIZE="100000")
        async with connect(bridge.address) as peer:
            await peer.send(upload_request(KEY, NAMED, CHUNKED), chunked(photo(60_000))[:-5])
            await immich.wait_for_request(lambda seen: seen.body_received > 50_000)
            await peer.send(chunked(photo(60_000)))
            assert_refused(await peer.read_answer(), 413, "payload_too_large")
        await immich.wait_for_abort()
        assert (immich.assets, immich.partial_files()) == ([], [])


class TestClientGone:
    @pytest.mark.parametrize("how", ["fin", "rst"])
    @pytest.mark.parametrize("framing", ["length", "chunked"])
    async def test_in_mid_body(
        self, immich: StandIn, bridge: Server, how: str, framing: str
    ) -> None:
        async with connect(bridge.address) as peer:
            if framing == "length":
                await peer.send(upload_request(KEY, NAMED, body=photo(MB), length=2 * MB))
            else:
                await peer.send(upload_request(KEY, NAMED, CHUNKED), chunked(photo(MB))[:-5])
            await immich.wait_for_request(lambda seen: seen.body_received > 500_000)
            if how == "rst":
                peer.reset()
        await immich.wait_for_abort()
        assert (immich.assets, immich.partial_files()) == ([], [])

    async def test_one_byte_before_the_end(self, immich: StandIn, bridge: Server) -> None:
        async with connect(bridge.address) as peer:
            await peer.send(upload_request(KEY, NAMED, body=photo(MB), length=MB + 1))
            await immich.wait_for_request(lambda seen: seen.body_received > MB)
        await immich.wait_for_abort()
        assert (immich.assets, immich.partial_files()) == ([], [])

    async def test_before_the_answer(self, immich: StandIn, bridge: Server) -> None:
        immich.behaviour.hold_answer = True
        async with connect(bridge.address) as peer:
            await peer.send(upload_request(KEY, NAMED, body=photo()))
            await immich.wait_for_request(lambda seen: seen.completed)
        # What was whole is stored, and the way to Immich is given up all the same.
        async with asyncio.timeout(PATIENCE):
            await until_no_connection(immich)
        assert [asset.size for asset in immich.assets] == [100_000]

    async def test_while_immich_stalls(self, immich: StandIn, bridge: Server) -> None:
        immich.behaviour.stall_after = 100_000
        with written_log() as log:
            async with connect(bridge.address) as peer:
                await peer.send(upload_request(KEY, NAMED, body=photo(), length=10**9))
                await push_until_stuck(peer, 10**9)
                peer.reset()
            # Nothing moves on either side; only a look at the client's socket tells.
            async with asyncio.timeout(5):
                await log.wait_for("client_gone")
        immich.behaviour.release()
        await immich.wait_for_abort()
        assert (immich.assets, immich.partial_files()) == ([], [])

    async def test_silent_in_mid_body(self, immich: StandIn, start_bridge: StartBridge) -> None:
        bridge = await start_bridge(immich.url, BODY_IDLE_TIMEOUT="300ms")
        async with connect(bridge.address) as peer:
            await peer.send(upload_request(KEY, NAMED, body=photo(), length=MB))
            assert_refused(await peer.read_answer(), 408, "request_timeout")
            assert await peer.read_to_end() == b""
        await immich.wait_for_abort()
        assert (immich.assets, immich.partial_files()) == ([], [])

    async def test_slow_but_never_silent_for_long(
        self, immich: StandIn, start_bridge: StartBridge
    ) -> None:
        bridge = await start_bridge(immich.url, BODY_IDLE_TIMEOUT="1s")
        body = photo(1000)
        async with connect(bridge.address) as peer:
            await peer.send(upload_request(KEY, NAMED, length=len(body)))
            for at in range(0, len(body), 200):
                await peer.send(body[at : at + 200])
                await immich.wait_for_request(
                    lambda seen, at=at: seen.body_received >= at  # type: ignore[misc]
                )
            assert (await peer.read_answer()).status == 201
        assert immich.assets[0].path.read_bytes() == body


async def until_no_connection(immich: StandIn) -> None:
    """Return once the stand-in has no connection left."""
    while immich.open_connections:  # noqa: ASYNC110 - it tells of requests alone
        await asyncio.sleep(0)


class TestImmich:
    async def test_refuses_connections(self, start_bridge: StartBridge) -> None:
        bridge = await start_bridge(f"http://127.0.0.1:{unused_port()}")
        answer = await upload(bridge.address, NAMED, body=photo())
        assert_refused(answer, 503, "unavailable")
        assert int(answer.header("Retry-After") or 0) > 0

    async def test_resets_on_connect(self, immich: StandIn, bridge: Server) -> None:
        immich.behaviour.reset_on_accept = True
        answer = await upload(bridge.address, NAMED, body=photo())
        assert_refused(answer, 502, "bad_gateway")
        assert immich.assets == []

    @pytest.mark.parametrize(
        ("key", "status", "text"),
        [
            ("wrong", 401, "Invalid API key"),
            ("readonly-key", 403, "Missing required permission: asset.upload"),
        ],
    )
    async def test_refuses_early(
        self, immich: StandIn, bridge: Server, key: str, status: int, text: str
    ) -> None:
        async with connect(bridge.address) as peer:
            head = upload_request(("x-api-key", key), NAMED, body=photo(), length=10**9)
            await peer.send(head)
            answer = await peer.read_answer("POST")
            assert answer.status == status
            assert json.loads(answer.body)["message"] == text
            assert answer.header("X-Bridge-Error") == f"immich_{status}"
            assert answer.header("Connection") == "close"
            # Of the rest no more is taken than what buffers hold.
            assert await push_until_stuck(peer, 10**9) < 20 * MB
            assert await peer.read_to_end() == b""
        assert immich.assets == []

    async def test_knows_the_checksum_already(self, immich: StandIn, bridge: Server) -> None:
        body = photo()
        first = json.loads((await upload(bridge.address, NAMED, body=body)).body)
        checksum = ("x-immich-checksum", hashlib.sha1(body).hexdigest())
        async with connect(bridge.address) as peer:
            await peer.send(upload_request(KEY, NAMED, checksum, body=body[:1000], length=10**8))
            answer = await peer.read_answer("POST")
        assert answer.status == 200
        assert json.loads(answer.body) == {
            "status": "duplicate",
            "id": first["id"],
            "duplicate": True,
        }
        assert answer.header("X-Immich-Status") == "duplicate"
        assert answer.header("Connection") == "close"

    @pytest.mark.parametrize("status", [400, 404, 413, 429, 500, 503])
    async def test_answers_with_an_error_after_the_body(
        self, immich: StandIn, bridge: Server, status: int
    ) -> None:
        immich.behaviour.answer_status = status
        immich.behaviour.answer_body = '{"message":"no"}'
        immich.behaviour.answer_headers = {"X-Something": "else"}
        answer = await upload(bridge.address, NAMED, body=photo())
        assert (answer.status, answer.body) == (status, b'{"message":"no"}')
        assert answer.header("X-Bridge-Error") == f"immich_{status}"
        assert answer.header("X-Something") == "else"

    @pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
    async def test_answers_with_a_redirect(
        self, immich: StandIn, bridge: Server, status: int
    ) -> None:
        immich.behaviour.answer_status = status
        immich.behaviour.answer_headers = {"Location": "/elsewhere"}
        answer = await upload(bridge.address, NAMED, body=photo())
        assert_refused(answer, 502, "bad_gateway")
        assert answer.header("Location") is None

    @pytest.mark.parametrize(
        ("status", "body"),
        [
            (200, "<html>welcome</html>"),
            (201, '{"status":"created"}'),
            (201, '{"id":"a\\r\\nX: y"}'),
            (201, "[]"),
            (202, '{"id":"00000000-0000-4000-8000-000000000000"}'),
            (200, "x" * 2_000_000),
        ],
        ids=range(6),
    )
    async def test_answers_what_confirms_no_upload(
        self, immich: StandIn, bridge: Server, status: int, body: str
    ) -> None:
        immich.behaviour.answer_status = status
        immich.behaviour.answer_body = body
        answer = await upload(bridge.address, NAMED, body=photo())
        assert_refused(answer, 502, "bad_gateway")

    @pytest.mark.parametrize("how", ["rst", "fin"])
    async def test_vanishes_in_mid_body(self, immich: StandIn, bridge: Server, how: str) -> None:
        immich.behaviour.vanish_after = 300_000
        immich.behaviour.vanish_with = how
        async with connect(bridge.address) as peer:
            await peer.send(upload_request(KEY, NAMED, body=photo(MB), length=10**8))
            assert_refused(await peer.read_answer(), 502, "bad_gateway")
        assert immich.assets == []

    async def test_stays_silent(self, immich: StandIn, start_bridge: StartBridge) -> None:
        bridge = await start_bridge(immich.url, UPSTREAM_RESPONSE_TIMEOUT="300ms")
        immich.behaviour.never_answer = True
        answer = await upload(bridge.address, NAMED, body=photo())
        assert_refused(answer, 504, "gateway_timeout")

    async def test_stalls_and_goes_on(self, immich: StandIn, start_bridge: StartBridge) -> None:
        # Its silence counts from the end of the body, and the client's only while it is waited for.
        bridge = await start_bridge(
            immich.url, UPSTREAM_RESPONSE_TIMEOUT="400ms", BODY_IDLE_TIMEOUT="400ms"
        )
        immich.behaviour.stall_after = 100_000
        total = 60 * MB
        async with connect(bridge.address) as peer:
            await peer.send(upload_request(KEY, NAMED, length=total))
            sent = await push_until_stuck(peer, total)
            # The kernel's buffers on both connections, and some hundred KB of our own.
            assert sent < 30 * MB
            immich.behaviour.release()
            waiting = peer.writer.transport.get_write_buffer_size()
            assert waiting <= 200_000
            left = total - sent - 100_000  # the piece that got stuck is on its way too
            for at in range(0, left, 100_000):
                await peer.send(bytes(min(100_000, left - at)))
            assert (await peer.read_answer()).status == 201
        assert immich.assets[0].path.read_bytes() == bytes(total)


class TestDamage:
    @pytest.mark.parametrize(
        "checksum",
        [
            ("x-immich-checksum", hashlib.sha1(b"other").hexdigest()),
            ("Repr-Digest", "sha-256=:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=:"),
        ],
    )
    async def test_bytes_that_do_not_match_their_checksum(
        self, immich: StandIn, bridge: Server, checksum: tuple[str, str]
    ) -> None:
        answer = await upload(bridge.address, NAMED, checksum, body=photo(MB))
        assert checksum[0] in assert_refused(answer, 422, "checksum_mismatch")
        await immich.wait_for_abort()
        assert (immich.assets, immich.partial_files()) == ([], [])

    async def test_broken_chunks(self, immich: StandIn, bridge: Server) -> None:
        async with connect(bridge.address) as peer:
            await peer.send(upload_request(KEY, NAMED, CHUNKED), chunked(photo(MB))[:-5])
            await immich.wait_for_request(lambda seen: seen.body_received > 500_000)
            await peer.send(b"zz\r\n")
            assert_refused(await peer.read_answer(), 400, "bad_request")
            assert await peer.read_to_end() == b""
        await immich.wait_for_abort()
        assert (immich.assets, immich.partial_files()) == ([], [])


class TestMany:
    async def test_at_once_stay_apart(self, immich: StandIn, bridge: Server) -> None:
        bodies = {f"IMG_{n:04d}.JPG": photo(200_000 + n) + bytes([n]) * 1000 for n in range(50)}
        answers = await asyncio.gather(
            *(
                upload(bridge.address, ("X-Filename", name), body=body)
                for name, body in bodies.items()
            )
        )
        ids = {json.loads(answer.body)["id"] for answer in answers}
        stored = {asset.original_file_name: asset for asset in immich.assets}
        assert {asset.id for asset in stored.values()} == ids
        assert {name: asset.path.read_bytes() for name, asset in stored.items()} == bodies

    async def test_cookies_stay_with_their_client(self, start_bridge: StartBridge) -> None:
        seen: list[Message] = []

        async def script(peer: Peer) -> None:
            seen.append(await peer.read_request())
            text = b'{"id":"00000000-0000-4000-8000-000000000000","status":"created"}'
            await peer.send(
                b"HTTP/1.1 201 Created\r\nSet-Cookie: immich_access_token=first\r\n"
                b"Content-Length: %d\r\n\r\n%b" % (len(text), text)
            )

        async with front_of(start_bridge, script) as (bridge, _):
            first = await upload(bridge.address, NAMED, body=photo())
            await upload(bridge.address, NAMED, body=photo())
        assert first.header("Set-Cookie") == "immich_access_token=first"
        assert [message.all("Cookie") for message in seen] == [[], []]

    async def test_connections_are_left_as_they_were(self, immich: StandIn, bridge: Server) -> None:
        for _ in range(20):
            async with connect(bridge.address) as peer:
                await peer.send(upload_request(KEY, NAMED, body=photo(), length=MB))
                await immich.wait_for_request(lambda seen: not seen.finished)
        async with asyncio.timeout(PATIENCE):
            await until_no_connection(immich)
            while immich.partial_files():  # noqa: ASYNC110 - the disk tells nobody
                await asyncio.sleep(0)
