"""The server as a process: how it starts, how it stops, and what survives that."""

import asyncio
import os
import random
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from front import StartBridge, front_of, front_of_a_recorder
from immich_standin import StandIn
from raw_upload import KEY, NAME, jpeg, upload_request
from wire import PATIENCE, Peer, answer, connect, fetch, request

if TYPE_CHECKING:
    from conftest import BridgeProcess

StartProcess = Callable[..., Awaitable["BridgeProcess"]]

UPLOAD = "/api/assets/background"
PHOTO = b"\xff\xd8\xff" + random.Random(9).randbytes(1_000_000)


async def run_to_the_end(folder: Path, **settings: str) -> tuple[int | None, list[str]]:
    """Start a bridge that will not start; its exit code and what it wrote."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "immich_bridge"),
        cwd=folder,
        env={"PATH": os.environ["PATH"], "LISTEN_ADDR": "127.0.0.1:0", **settings},
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        _, written = await asyncio.wait_for(process.communicate(), PATIENCE)
    finally:
        if process.returncode is None:
            process.kill()
    return process.returncode, written.decode().splitlines()


async def begin_upload(peer: Peer, immich: StandIn) -> None:
    """Send the first half of a photo, and wait until Immich has some of it."""
    key = ("x-api-key", immich.api_key)
    await peer.send(request("POST", UPLOAD, key, ("Content-Length", str(len(PHOTO)))))
    await peer.send(PHOTO[:500_000])
    await immich.wait_for_request(lambda seen: seen.body_received > 0)


async def exit_code(bridge: "BridgeProcess", within: float = PATIENCE) -> int:
    return await asyncio.wait_for(bridge.process.wait(), within)


async def until_draining(idle: Peer) -> None:
    """Idle connections are closed as the first thing."""
    assert await idle.read_to_end() == b""


class TestStopping:
    async def test_lets_an_upload_finish(
        self, immich: StandIn, start_process: StartProcess
    ) -> None:
        bridge = await start_process(IMMICH_SERVER_URL=immich.url)
        async with connect(bridge.url) as peer, connect(bridge.url) as idle:
            await idle.send(request("GET", "/health"))
            assert (await idle.read_answer()).header("Connection") != "close"
            await begin_upload(peer, immich)
            bridge.process.terminate()
            await until_draining(idle)
            with pytest.raises(ConnectionRefusedError):
                await fetch(bridge.url, "GET", "/health")
            await peer.send(PHOTO[500_000:])
            told = await peer.read_answer()
            assert (told.status, told.header("X-Immich-Status")) == (201, "created")
            assert told.header("Connection") == "close"
            assert await peer.read_to_end() == b""
        assert await exit_code(bridge) == 0
        assert (immich.assets[0].path.read_bytes() == PHOTO) is True
        assert " INFO stopping " in bridge.log[-3]
        assert f" path={UPLOAD} status=201 " in bridge.log[-2]
        assert bridge.log[-1].endswith(" INFO stopped unfinished_requests=0")

    async def test_ends_an_upload_that_outlives_the_grace(
        self, immich: StandIn, start_process: StartProcess
    ) -> None:
        bridge = await start_process(IMMICH_SERVER_URL=immich.url, SHUTDOWN_GRACE="300ms")
        async with connect(bridge.url) as peer:
            await begin_upload(peer, immich)
            started = time.monotonic()
            bridge.process.terminate()
            assert await exit_code(bridge) == 0
            assert 0.3 <= time.monotonic() - started < 3.3
            assert b" 201 " not in await peer.read_to_end()
        await immich.wait_for_abort()
        assert immich.assets == []
        assert immich.files() == []
        assert bridge.log[-1].endswith(" INFO stopped unfinished_requests=1")
        assert not any("Traceback" in line for line in bridge.log)

    async def test_hurries_when_told_twice(
        self, immich: StandIn, start_process: StartProcess
    ) -> None:
        bridge = await start_process(IMMICH_SERVER_URL=immich.url, SHUTDOWN_GRACE="60s")
        async with connect(bridge.url) as peer, connect(bridge.url) as idle:
            await idle.send(request("GET", "/health"))
            await idle.read_answer()
            await begin_upload(peer, immich)
            bridge.process.terminate()
            await until_draining(idle)
            bridge.process.terminate()
            assert await exit_code(bridge, within=5) == 0
        await immich.wait_for_abort()
        assert immich.assets == []

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    async def test_is_soon_done_when_nothing_is_under_way(
        self, immich: StandIn, start_process: StartProcess, number: signal.Signals
    ) -> None:
        bridge = await start_process(IMMICH_SERVER_URL=immich.url)
        async with connect(bridge.url) as idle, connect(bridge.url) as silent:
            await idle.send(request("GET", "/api/server/ping"))
            assert (await idle.read_answer()).status == 200
            await silent.send(b"GET /half HTTP/1.1\r\nHo")
            await fetch(bridge.url, "GET", "/health")
            bridge.process.send_signal(number)
            assert await idle.read_to_end() == b""
            assert await silent.read_to_end() == b""
            assert await exit_code(bridge, within=2) == 0

    async def test_says_in_the_answers_that_the_connection_ends(
        self, start_bridge: StartBridge
    ) -> None:
        came = asyncio.Event()

        async def script(peer: Peer) -> None:
            await peer.reader.readuntil(b"\r\n\r\nfo")
            came.set()
            assert await peer.reader.readexactly(2) == b"ur"
            await peer.send(answer())
            assert await peer.read_to_end() == b""

        async with front_of(start_bridge, script) as (bridge, _), connect(bridge.address) as peer:
            await peer.send(request("POST", "/", ("Content-Length", "4")), b"fo")
            await asyncio.wait_for(came.wait(), PATIENCE)
            draining = asyncio.create_task(bridge.drain(PATIENCE))
            await asyncio.sleep(0)  # lets the draining begin
            await peer.send(b"ur" + request("GET", "/behind"))
            assert (await peer.read_answer()).header("Connection") == "close"
            assert await peer.read_to_end() == b""
            assert await draining == 0


async def test_many_photos_that_come_at_once_are_all_taken(
    immich: StandIn, start_process: "StartProcess"
) -> None:
    # On uvloop, whose first piece of a body may come before anybody looks at the head.
    bridge = await start_process(IMMICH_SERVER_URL=immich.url)
    photos = [jpeg(1_100_000, seed) for seed in range(60)]

    async def send(some: list[bytes]) -> None:
        async with connect(bridge.url) as peer:
            for photo in some:
                await peer.send(upload_request(photo, KEY, NAME))
                answered = await peer.read_answer()
                assert answered.status == 201, answered

    await asyncio.gather(*(send(photos[n::20]) for n in range(20)))
    stored = {asset.path.read_bytes() for asset in immich.assets}
    assert stored == set(photos)


class TestStarting:
    async def test_on_a_port_that_is_taken(self, tmp_path: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            address = f"127.0.0.1:{listener.getsockname()[1]}"
            code, lines = await run_to_the_end(
                tmp_path, LISTEN_ADDR=address, BACKUP_ENABLED="false"
            )
        assert code == 1
        assert len(lines) == 1
        assert lines[0].startswith(f"immich-bridge: cannot listen on {address}: ")

    @pytest.mark.parametrize(
        ("settings", "line"),
        [
            (
                {"IMMICH_CA_FILE": "/nonexistent"},
                "IMMICH_CA_FILE: '/nonexistent' cannot be used: there is no such file, expected a "
                "PEM file with certificates",
            ),
            (
                {"TLS_CERT_FILE": "/nonexistent", "TLS_KEY_FILE": "/nonexistent"},
                "TLS_CERT_FILE: '/nonexistent' cannot be used: there is no such file, expected a "
                "PEM file with a certificate chain",
            ),
        ],
        ids=["ca file", "certificate"],
    )
    async def test_with_a_file_that_is_not_there(
        self, tmp_path: Path, settings: dict[str, str], line: str
    ) -> None:
        code, lines = await run_to_the_end(tmp_path, BACKUP_ENABLED="false", **settings)
        assert (code, lines) == (2, [f"immich-bridge: {line}"])

    async def test_on_an_address_that_is_not_there(self, tmp_path: Path) -> None:
        settings = {"BACKUP_ENABLED": "false", "LISTEN_ADDR": "immich.invalid:0"}
        code, lines = await run_to_the_end(tmp_path, **settings)
        assert code == 1
        assert len(lines) == 1
        assert lines[0].startswith("immich-bridge: cannot listen on immich.invalid:0: ")

    async def test_on_every_address(self, start_bridge: StartBridge) -> None:
        async with front_of_a_recorder(start_bridge) as front:
            bridge = await start_bridge(front.upstream.url, LISTEN_ADDR=":0")
            match = re.fullmatch(r"http://localhost:(\d+)", bridge.address)
            assert match
            hosts = ["127.0.0.1"] + (["[::1]"] if socket.has_dualstack_ipv6() else [])
            for host in hosts:
                assert (await fetch(f"http://{host}:{match[1]}", "GET", "/")).status == 200
            told = [message.header("X-Forwarded-For") for message in front.seen]
            assert told == [host.strip("[]") for host in hosts]

    @pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this machine has no IPv6")
    async def test_on_an_ipv6_address(self, start_bridge: StartBridge) -> None:
        bridge = await start_bridge("", LISTEN_ADDR="[::1]:0")
        assert bridge.address.startswith("http://[::1]:")
        assert (await fetch(bridge.address, "GET", "/health")).status == 200


@dataclass
class Identity:
    """A certificate that vouches for itself."""

    certificate: Path
    key: Path

    @property
    def server(self) -> ssl.SSLContext:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(self.certificate, self.key)
        return context

    @property
    def client(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=self.certificate)


def make_identity(folder: Path, names: str) -> Identity:
    made = Identity(folder / "certificate.pem", folder / "key.pem")
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2"
    subprocess.run(
        [
            *command.split(),
            *("-subj", "/CN=test", "-addext", f"subjectAltName={names}"),
            *("-out", made.certificate, "-keyout", made.key),
        ],
        check=True,
        capture_output=True,
    )
    return made


@pytest.fixture
def identity(tmp_path: Path) -> Identity:
    """The identity of 127.0.0.1."""
    return make_identity(tmp_path, "IP:127.0.0.1")


@pytest.mark.skipif(shutil.which("openssl") is None, reason="there is no openssl to make keys with")
class TestTls:
    async def test_serves_https(self, start_bridge: StartBridge, identity: Identity) -> None:
        tls = {"TLS_CERT_FILE": str(identity.certificate), "TLS_KEY_FILE": str(identity.key)}
        async with front_of_a_recorder(start_bridge) as front:
            front.reply = lambda message: answer(body=message.body[::-1])
            bridge = await start_bridge(front.upstream.url, **tls)
            assert bridge.address.startswith("https://127.0.0.1:")
            async with connect(bridge.address, ssl=identity.client) as peer:
                await peer.send(request("POST", "/", body=PHOTO))
                told = await peer.read_answer()
                assert (told.body == PHOTO[::-1]) is True
            assert front.seen[0].header("X-Forwarded-Proto") == "https"

    async def test_is_not_troubled_by_http(
        self, immich: StandIn, start_process: StartProcess, identity: Identity
    ) -> None:
        bridge = await start_process(
            IMMICH_SERVER_URL=immich.url,
            TLS_CERT_FILE=str(identity.certificate),
            TLS_KEY_FILE=str(identity.key),
        )
        async with connect(bridge.url) as peer:
            await peer.send(request("GET", "/plain"))
            assert b"HTTP/1" not in await peer.read_to_end()
        async with connect(bridge.url, ssl=identity.client) as peer:
            await peer.send(request("GET", "/api/server/ping"))
            assert (await peer.read_answer()).body == b'{"res":"pong"}'
        bridge.process.terminate()
        assert await exit_code(bridge) == 0
        # Nobody but the one who asked properly has left a trace.
        assert len([line for line in bridge.log if " request " in line]) == 1
        assert len(bridge.log) == 4

    @pytest.mark.parametrize("trust", ["its file", "the system", "another"])
    async def test_of_immich_is_verified(
        self, start_bridge: StartBridge, identity: Identity, tmp_path: Path, trust: str
    ) -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            peer = Peer(reader, writer)
            message = await peer.read_request()
            await peer.send(answer(body=message.body))
            await peer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=identity.server)
        settings = {"its file": {"IMMICH_CA_FILE": str(identity.certificate)}}.get(trust, {})
        if trust == "another":
            (tmp_path / "other").mkdir()
            other = make_identity(tmp_path / "other", "IP:127.0.0.1")
            settings = {"IMMICH_CA_FILE": str(other.certificate)}
        async with server:
            url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            bridge = await start_bridge(url, **settings)
            told = await fetch(bridge.address, "POST", "/", body=PHOTO)
        if trust == "its file":
            assert told.status == 200
            assert (told.body == PHOTO) is True
        else:
            assert (told.status, told.header("X-Bridge-Error")) == (503, "unavailable")

    async def test_of_immich_has_to_bear_its_name(
        self, start_bridge: StartBridge, tmp_path: Path
    ) -> None:
        wrong = make_identity(tmp_path, "DNS:immich.example")
        came: list[bytes] = []

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            came.append(await reader.read())

        server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=wrong.server)
        async with server:
            url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            bridge = await start_bridge(url, IMMICH_CA_FILE=str(wrong.certificate))
            told = await fetch(bridge.address, "GET", "/")
        assert told.status == 503
        assert not any(came)
