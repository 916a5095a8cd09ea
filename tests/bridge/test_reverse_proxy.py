"""Requests on their way to Immich: every byte of them, and nothing else."""

import asyncio
import gzip
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from front import Front, StartBridge, front_of, front_of_a_recorder
from immich_bridge.serve import Server
from immich_standin import StandIn
from wire import PATIENCE, Peer, answer, chunked, connect, fetch, request

# llhttp's methods for HTTP, but for CONNECT, which asks for a tunnel.
METHODS = (
    "DELETE GET HEAD POST PUT OPTIONS TRACE COPY LOCK MKCOL MOVE PROPFIND PROPPATCH SEARCH UNLOCK "
    "BIND REBIND UNBIND ACL REPORT MKACTIVITY CHECKOUT MERGE M-SEARCH NOTIFY SUBSCRIBE "
    "UNSUBSCRIBE PATCH PURGE MKCALENDAR LINK UNLINK"
)
SIZES = [0, 1, 65535, 1 << 20, 5 << 20]

# What a normaliser would touch, among what it would not.
TARGET_PIECES = [
    *("/", "//", "/.", "/..", "/./", "/../", "%2F", "%2f", "%2e%2e", "%00", "%0d%0a", "%C3%A9"),
    *("%E9", "%41", "%7E", "%zz", "%", "%2", ";", ";v=1", "&", "&&", "?", "??", "=", "+", "%20"),
    *("%2B", ",", ":", "@", "!", "$", "'", "(", ")", "*", '"', "<", ">", "\\", "^", "`", "{", "|"),
    *("}", "[", "]", "~", "-", "_", ".", "a", "Z", "0", "://", "http://x", "#", "#?"),
]
TARGETS = st.lists(st.sampled_from(TARGET_PIECES), max_size=30).map(lambda p: "/" + "".join(p))


@pytest.fixture
async def front(start_bridge: StartBridge) -> AsyncIterator[Front]:
    async with front_of_a_recorder(start_bridge) as front:
        yield front


def some_bytes(size: int) -> bytes:
    return random.Random(size).randbytes(size)


class TestTarget:
    @pytest.mark.parametrize(
        "target",
        [
            "/",
            "//",
            "//host/path",
            "/./a",
            "/../a",
            "/a/./b/../c/",
            "/a%2Fb%2fc",
            "/a;b=c;d",
            "/a?b&&c&",
            "/a?",
            "/a?b=?c",
            "/a+b?c+d=%20e",
            "/%00%0d%0a",
            "/%E9/%C3%A9?%zz%",
            "/%7euser",
            "/a\\b\"<>^`{|}'",
            "/a#b?c",
            "/" + "a%2F" * 7680,
            "/?q=" + "b+" * 15000,
        ],
        ids=lambda target: target[:24],
    )
    async def test_passes_byte_for_byte(self, front: Front, target: str) -> None:
        assert (await fetch(front.url, "GET", target)).status == 200
        assert front.seen[0].first_line == f"GET {target} HTTP/1.1".encode()

    @given(target=TARGETS)
    @example("/http://x/health?")
    @settings(
        max_examples=250,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )
    async def test_passes_whatever_it_is_made_of(self, front: Front, target: str) -> None:
        front.seen.clear()
        await fetch(front.url, "GET", target)
        assert [message.first_line for message in front.seen] == [f"GET {target} HTTP/1.1".encode()]

    @pytest.mark.parametrize("scheme", ["http", "https", "HTTP"])
    async def test_in_absolute_form_loses_scheme_and_host(self, front: Front, scheme: str) -> None:
        await fetch(front.url, "GET", f"{scheme}://u:p@elsewhere:99/a%2f//b?c=%zz")
        assert front.seen[0].target == b"/a%2f//b?c=%zz"
        assert front.seen[0].header("Host") == front.host.decode()

    @pytest.mark.parametrize(("query", "target"), [("", b"/"), ("?a=%zz&b", b"/?a=%zz&b")])
    async def test_of_a_host_alone_is_its_root(
        self, front: Front, query: str, target: bytes
    ) -> None:
        assert (await fetch(front.url, "GET", f"http://elsewhere{query}")).status == 200
        assert [message.target for message in front.seen] == [target]

    async def test_in_asterisk_form_passes(self, front: Front) -> None:
        await fetch(front.url, "OPTIONS", "*")
        assert front.seen[0].first_line == b"OPTIONS * HTTP/1.1"

    @pytest.mark.parametrize("prefix", ["/immich", "/a/b/"])
    async def test_stands_behind_the_prefix_of_immichs_url(
        self, start_bridge: StartBridge, prefix: str
    ) -> None:
        async with front_of_a_recorder(start_bridge, prefix) as front:
            for target in ("/", "//a/../b?c", "/?d"):
                await fetch(front.url, "GET", target)
            await fetch(front.url, "OPTIONS", "*")
            kept = prefix.rstrip("/").encode()
            assert [message.target for message in front.seen] == [
                kept + b"/",
                kept + b"//a/../b?c",
                kept + b"/?d",
                b"*",  # concerns the server as a whole (RFC 9110 9.3.7)
            ]


class TestRoutes:
    @pytest.mark.parametrize("backup", ["true", "false"])
    @pytest.mark.parametrize(
        ("method", "target"),
        [
            ("GET", "/photos"),
            ("GET", "/photos/7"),
            ("GET", "/photos/index"),
            ("POST", "/photos"),
            ("GET", "/login"),
            ("GET", "/auth/login"),
            ("DELETE", "/status"),
            ("POST", "/health"),
            ("POST", "/ready"),
            ("GET", "/health/"),
            ("GET", "//health"),
            ("GET", "/api/assets/background/"),
            ("POST", "/api/assets"),
            ("GET", "/api/server/ping"),
        ],
    )
    async def test_what_is_not_ours_is_immichs(
        self, start_bridge: StartBridge, tmp_path: Path, method: str, target: str, backup: str
    ) -> None:
        settings = {
            "BACKUP_ENABLED": backup,
            "DB_PATH": str(tmp_path / "app.db"),
            "STORAGE_DIR": str(tmp_path / "storage"),
            "JWT_SECRET": "x" * 32,
        }
        async with front_of_a_recorder(start_bridge, **settings) as front:
            front.reply = answer("418 I'm Immich")
            assert (await fetch(front.url, method, target)).status == 418
            assert front.seen[0].first_line == f"{method} {target} HTTP/1.1".encode()

    @pytest.mark.parametrize("target", ["/login", "/photos/index", "/photos/upload"])
    async def test_without_a_backup_its_routes_are_immichs(self, front: Front, target: str) -> None:
        assert (await fetch(front.url, "POST", target, body=b"abc")).status == 200
        assert front.seen[0].first_line == f"POST {target} HTTP/1.1".encode()

    @pytest.mark.parametrize("target", ["/", "/photos", "/api/assets", "/api/assets/background"])
    async def test_without_an_immich_there_is_nothing(
        self, start_bridge: StartBridge, target: str
    ) -> None:
        bridge = await start_bridge("")
        told = await fetch(bridge.address, "POST", target, ("x-api-key", "k"), body=b"abc")
        assert told.status == 404
        assert told.header("Content-Type") == "application/json"
        assert told.body.startswith(b'{"error": "not_found", "message": ')
        assert (await fetch(bridge.address, "GET", "/health")).status == 200


class TestMethods:
    @pytest.mark.parametrize("method", METHODS.split())
    async def test_passes(self, front: Front, method: str) -> None:
        async with connect(front.url) as peer:
            await peer.send(request(method, "/a"))
            assert (await peer.read_answer(method)).status == 200
            await peer.send(request(method, "/b", body=b"body"))
            assert (await peer.read_answer(method)).status == 200
        assert [message.first_line for message in front.seen] == [
            f"{method} /a HTTP/1.1".encode(),
            f"{method} /b HTTP/1.1".encode(),
        ]
        assert [message.body for message in front.seen] == [b"", b"body"]


class TestHeaders:
    async def test_nothing_is_added_but_what_tells_of_the_client(self, front: Front) -> None:
        await fetch(front.url, "GET", "/")
        assert front.seen[0].headers == [(b"Host", front.host), *front.forwarded()]

    @pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
    async def test_nothing_is_added_to_a_request_without_a_body(
        self, front: Front, method: str
    ) -> None:
        await fetch(front.url, method, "/")
        assert front.seen[0].headers == [(b"Host", front.host), *front.forwarded()]

    async def test_nothing_is_added_to_a_request_with_a_body(self, front: Front) -> None:
        await fetch(front.url, "POST", "/", body=b"abc")
        length = (b"Content-Length", b"3")
        assert front.seen[0].headers == [(b"Host", front.host), length, *front.forwarded()]

    async def test_they_pass_in_order_with_repeats_and_as_they_are_spelled(
        self, front: Front
    ) -> None:
        fields = [
            (b"x-b", b"1"),
            (b"X-A", b"2"),
            (b"X-B", b"3"),
            (b"cOOKIE", b'a=1; b="2"; =; c'),
            (b"Cookie", b"d=4"),
            (b"accept", b"*/*"),
            (b"Accept", b"text/html;q=0.5,  x/y"),
            (b"ACCEPT-encoding", b"zstd, gzip"),
            (b"User-Agent", b"Immich/1.2 (iOS)"),
            (b"x-api-key", b"k"),
            (b"authorization", b"Bearer t"),
            (b"X-Request-Id", b"mine"),
            (b"If-None-Match", b'W/"a", "b"'),
            (b"Expect", b"something-else"),
            (b"Date", b"never"),
            (b"x-empty", b""),
            (b"x!#$%&'*+.^_`|~", b"odd"),
        ]
        head = b"".join(b"%b: %b\r\n" % one for one in fields)
        async with connect(front.url) as peer:
            await peer.send(b"GET / HTTP/1.1\r\n" + head + b"hOST: bridge\r\n\r\n")
            await peer.read_answer()
        assert front.seen[0].headers == [*fields, (b"hOST", front.host), *front.forwarded()]

    @pytest.mark.parametrize(
        "value",
        [b"caf\xc3\xa9", b"caf\xe9", b"\x80\xff\xfe", b"a\tb", b"\xf0\x9f\x93\xb7", b'"\\\xa0"'],
    )
    async def test_their_values_are_bytes(self, front: Front, value: bytes) -> None:
        front.reply = b"HTTP/1.1 200 OK\r\nX-V: %b\r\nContent-Length: 0\r\n\r\n" % value
        async with connect(front.url) as peer:
            await peer.send(b"GET / HTTP/1.1\r\nHost: h\r\nX-V: %b\r\n\r\n" % value)
            told = await peer.read_answer()
        assert (b"X-V", value) in front.seen[0].headers
        assert told.headers[0] == (b"X-V", value)

    async def test_hop_by_hop_fields_stay_behind(self, front: Front) -> None:
        await fetch(
            front.url,
            "GET",
            "/",
            ("Connection", "keep-alive, x-private"),
            ("Keep-Alive", "timeout=9"),
            ("X-Private", "secret"),
            ("X-Public", "kept"),
            ("TE", "trailers"),
            ("Proxy-Authorization", "Basic x"),
            ("Proxy-Connection", "keep-alive"),
            ("Trailer", "X-T"),
            ("Upgrade", "h2c"),
        )
        public = (b"X-Public", b"kept")
        assert front.seen[0].headers == [(b"Host", front.host), public, *front.forwarded()]

    async def test_what_connection_names_of_the_framing_stays(self, front: Front) -> None:
        naming = ("Connection", "content-length, host, x-forwarded-for")
        await fetch(front.url, "POST", "/", naming, body=b"abc")
        length = (b"Content-Length", b"3")
        assert front.seen[0].headers == [(b"Host", front.host), length, *front.forwarded()]
        assert front.seen[0].body == b"abc"

    @pytest.mark.parametrize("trusted", ["", "10.0.0.0/8"])
    async def test_a_strangers_claims_are_replaced(
        self, start_bridge: StartBridge, trusted: str
    ) -> None:
        async with front_of_a_recorder(start_bridge, TRUSTED_PROXIES=trusted) as front:
            await fetch(
                front.url,
                "GET",
                "/",
                ("X-Forwarded-For", "192.0.2.1"),
                ("X-Forwarded-Proto", "https"),
                ("X-Forwarded-Host", "photos.example"),
            )
            assert front.seen[0].headers == [(b"Host", front.host), *front.forwarded()]

    async def test_a_trusted_proxys_claims_are_continued(self, start_bridge: StartBridge) -> None:
        async with front_of_a_recorder(start_bridge, TRUSTED_PROXIES="127.0.0.0/8") as front:
            await fetch(
                front.url,
                "GET",
                "/",
                ("X-Forwarded-For", "192.0.2.1"),
                ("X-Forwarded-Proto", "https"),
                ("X-Forwarded-Host", "photos.example"),
            )
            assert front.seen[0].headers == [
                (b"Host", front.host),
                (b"X-Forwarded-For", b"192.0.2.1, 127.0.0.1"),
                (b"X-Forwarded-Proto", b"https"),
                (b"X-Forwarded-Host", b"photos.example"),
            ]

    @pytest.mark.parametrize("count", [1, 300])
    async def test_heads_of_32_kib_pass(self, front: Front, count: int) -> None:
        size = 32 * 1024
        line = size // count - 4
        fields = [(f"X-{n:03}", "v" * (line - 5)) for n in range(count)]
        wanted = [(name.encode(), value.encode()) for name, value in fields]
        front.reply = answer("200 OK", *fields)
        told = await fetch(front.url, "GET", "/", *fields)
        assert front.seen[0].headers == [(b"Host", front.host), *wanted, *front.forwarded()]
        assert told.headers[:count] == wanted


class TestBodies:
    @pytest.mark.parametrize("size", SIZES)
    async def test_of_known_length_arrive_byte_for_byte(self, front: Front, size: int) -> None:
        body = some_bytes(size)
        length = ("Content-Length", str(size))
        assert (await fetch(front.url, "POST", "/", length, body=body)).status == 200
        assert front.seen[0].header("Content-Length") == str(size)
        assert front.seen[0].header("Transfer-Encoding") is None
        assert front.seen[0].body == body

    @pytest.mark.parametrize("size", SIZES)
    @pytest.mark.parametrize("piece", [7777, 1 << 18])
    async def test_in_chunks_arrive_byte_for_byte(
        self, front: Front, size: int, piece: int
    ) -> None:
        body = some_bytes(size)
        framed = chunked(*(body[at : at + piece] for at in range(0, size, piece)))
        encoding = ("Transfer-Encoding", "chunked")
        assert (await fetch(front.url, "POST", "/", encoding, body=framed)).status == 200
        assert front.seen[0].header("Transfer-Encoding") == "chunked"
        assert front.seen[0].header("Content-Length") is None
        assert front.seen[0].body == body

    @given(pieces=st.lists(st.binary(min_size=1, max_size=3000), max_size=12), chunks=st.booleans())
    @settings(
        max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
    )
    async def test_arrive_however_they_are_cut(
        self, front: Front, pieces: list[bytes], chunks: bool
    ) -> None:
        front.seen.clear()
        body = b"".join(pieces)
        framing = "Transfer-Encoding: chunked" if chunks else f"Content-Length: {len(body)}"
        async with connect(front.url) as peer:
            await peer.send(f"PUT / HTTP/1.1\r\nHost: h\r\n{framing}\r\n\r\n".encode())
            for piece in pieces:
                await peer.send(b"%x\r\n%b\r\n" % (len(piece), piece) if chunks else piece)
                await asyncio.sleep(0)  # lets the bridge read this piece by itself
            await peer.send(b"0\r\n\r\n" if chunks else b"")
            assert (await peer.read_answer()).status == 200
        assert [message.body for message in front.seen] == [body]

    async def test_trailers_and_chunk_extensions_end_here(self, front: Front) -> None:
        framed = b'3;a="b"\r\nabc\r\n0\r\nX-T: v\r\n\r\n'
        await fetch(front.url, "POST", "/", ("Transfer-Encoding", "chunked"), body=framed)
        assert front.seen[0].body == b"abc"

    async def test_encoded_ones_are_not_decoded(self, front: Front) -> None:
        body = gzip.compress(some_bytes(100_000) + bytes(100_000))
        gzipped = ("Content-Encoding", "gzip")
        await fetch(front.url, "POST", "/", gzipped, ("Content-Type", "text/x"), body=body)
        assert front.seen[0].header("Content-Encoding") == "gzip"
        assert front.seen[0].header("Content-Type") == "text/x"
        assert front.seen[0].body == body

    async def test_their_first_part_is_at_immich_before_the_second_is_sent(
        self, start_bridge: StartBridge
    ) -> None:
        first_came = asyncio.Event()

        async def script(peer: Peer) -> None:
            await peer.read_head()
            assert await peer.reader.readexactly(5) == b"first"
            first_came.set()
            assert await peer.reader.readexactly(6) == b"second"
            await peer.send(answer())

        async with front_of(start_bridge, script) as (bridge, _), connect(bridge.address) as peer:
            await peer.send(request("POST", "/", ("Content-Length", "11")), b"first")
            await asyncio.wait_for(first_came.wait(), 5)
            await peer.send(b"second")
            assert (await peer.read_answer()).status == 200

    async def test_a_slow_immich_holds_the_client_back(self, start_bridge: StartBridge) -> None:
        size = 96 << 20
        piece = some_bytes(1 << 20)
        held_back = asyncio.Event()

        async def script(peer: Peer) -> None:
            await peer.read_head()
            await held_back.wait()
            for _ in range(size // len(piece)):
                assert await peer.reader.readexactly(len(piece)) == piece
            await peer.send(answer())

        async with front_of(start_bridge, script) as (bridge, _), connect(bridge.address) as peer:
            await peer.send(request("POST", "/", ("Content-Length", str(size))))
            sent = 0
            while sent < size:
                peer.writer.write(piece)
                try:
                    await asyncio.wait_for(peer.writer.drain(), 0.3)
                except TimeoutError:
                    # What the sockets between hold, and no more.
                    assert sent < size / 2
                    held_back.set()
                    await asyncio.wait_for(peer.writer.drain(), PATIENCE)
                sent += len(piece)
            assert held_back.is_set()
            assert (await peer.read_answer()).status == 200

    async def test_a_client_that_asks_before_it_sends_is_invited(self, front: Front) -> None:
        async with connect(front.url) as peer:
            expect = ("Expect", "100-continue")
            await peer.send(request("POST", "/", expect, ("Content-Length", "3")))
            assert (await peer.read_head()).first_line == b"HTTP/1.1 100 Continue"
            await peer.send(b"abc")
            told = await peer.read_answer()
        assert (told.status, told.interim) == (200, [])
        assert front.seen[0].body == b"abc"


async def test_requests_on_one_connection_are_answered_in_their_order(front: Front) -> None:
    front.reply = lambda message: answer(body=message.target)
    async with connect(front.url) as peer:
        await peer.send(b"".join(request("GET", f"/{n}") for n in range(20)))
        answers = [(await peer.read_answer()).body for _ in range(20)]
    assert answers == [f"/{n}".encode() for n in range(20)]


async def test_a_client_of_http_1_0_is_served(front: Front) -> None:
    front.reply = answer(body=b"hello")
    async with connect(front.url) as peer:
        await peer.send(b"GET /old HTTP/1.0\r\n\r\n")
        told = await peer.read_answer()
        assert told.body == b"hello"
        assert told.header("Connection") == "close"
        assert await peer.read_to_end() == b""
    assert front.seen[0].first_line == b"GET /old HTTP/1.1"
    assert front.seen[0].headers == [(b"Host", front.host), *front.forwarded(host=b"")]


async def test_a_client_of_http_1_0_may_keep_its_connection(front: Front) -> None:
    async with connect(front.url) as peer:
        for _ in range(2):
            await peer.send(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
            assert (await peer.read_answer()).header("Connection") == "keep-alive"


async def test_a_client_of_http_1_0_that_does_not_say_so_may_not(front: Front) -> None:
    message = b"GET / HTTP/1.0\r\nProxy-Connection: keep-alive\r\n\r\n"
    async with connect(front.url) as peer:
        await peer.send(message + message)
        assert (await peer.read_answer()).header("Connection") == "close"
        assert await peer.read_to_end() == b""
    assert len(front.seen) == 1


async def test_one_clients_cookies_never_go_with_anothers_request(front: Front) -> None:
    front.reply = answer("200 OK", ("Set-Cookie", "immich_access_token=secret; Path=/"))
    for path in ("/a", "/b", "/c"):
        await fetch(front.url, "GET", path)
    await fetch(front.url, "POST", "/d", body=b"x")
    assert len(front.seen) == 4
    assert not any(message.all("Cookie") for message in front.seen)


async def test_ranges_of_an_original(immich: StandIn, bridge: Server) -> None:
    photo = b"\xff\xd8\xff" + some_bytes(300_000)
    key = ("x-api-key", immich.api_key)
    await fetch(bridge.address, "POST", "/api/assets/background", key, body=photo)
    target = f"/api/assets/{immich.assets[0].id}/original"
    told = await fetch(bridge.address, "GET", target, key, ("Range", "bytes=1000-250000"))
    assert told.status == 206
    assert told.header("Content-Range") == f"bytes 1000-250000/{len(photo)}"
    assert told.body == photo[1000:250001]
    whole = await fetch(bridge.address, "GET", target, key)
    assert (whole.status, whole.body) == (200, photo)
