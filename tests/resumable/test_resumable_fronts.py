"""Resumable uploads behind Caddy, which passes a `104`, and behind nginx, which does not."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.front_http2 import PROTOCOL as HTTP2
from deploy.front_http2 import Http2Client
from deploy.front_servers import SITE, TlsFront, running_caddy, running_nginx
from front import StartBridge
from immich_standin import StandIn
from raw_upload import KEY, NAME, ROUTE, jpeg
from resumable.at_immich import arrived, assert_stored
from resumable.urlsession import (
    VERSIONS,
    append,
    checked_offer,
    completeness,
    creation,
    interop,
    state_of,
)
from wire import Message, request

# A front may have to be installed first.
pytestmark = pytest.mark.timeout(400)

PHOTO = jpeg(3_000_001)
SIZE = len(PHOTO)
HALF = SIZE // 2


# A front that has served another test may still use the connections to that one's bridge.
@pytest.fixture
def caddy(tmp_path: Path) -> Iterator[TlsFront]:
    with running_caddy(tmp_path) as front:
        yield front


@pytest.fixture
def nginx(tmp_path: Path) -> Iterator[TlsFront]:
    with running_nginx(tmp_path) as front:
        yield front


def behind(front: TlsFront, **settings: str) -> dict[str, str]:
    """Settings of a bridge behind `front`."""
    address = f"127.0.0.1:{front.bridge_port}"
    return {"LISTEN_ADDR": address, "TRUSTED_PROXIES": "127.0.0.1/32", **settings}


async def ask(front: TlsFront, location: str, version: int = 6) -> int:
    """The offset that the server tells, once it has noticed that the connection is lost."""
    told = await front.fetch("HEAD", location, interop(version), KEY)
    assert told.status == 204, told
    return state_of(told, version).offset


async def resume(front: TlsFront, location: str, offset: int, version: int = 6) -> Message:
    async with front.connect() as peer:
        rest = PHOTO[offset:]
        await peer.send(append(location, offset, len(rest), version=version, host=SITE), rest)
        return await peer.read_answer()


@pytest.mark.parametrize("setting", ["auto", "on"])
class TestCaddy:
    @pytest.mark.parametrize("version", VERSIONS)
    async def test_lets_a_cut_upload_be_resumed(
        self,
        immich: StandIn,
        caddy: TlsFront,
        start_bridge: StartBridge,
        setting: str,
        version: int,
    ) -> None:
        await start_bridge(immich.url, **behind(caddy, RESUMABLE=setting))
        told = await caddy.fetch("OPTIONS", ROUTE, interop(version))
        assert told.status == 200
        assert told.header("Upload-Limit") is not None
        async with caddy.connect() as peer:
            await peer.send(creation(SIZE, version=version, host=SITE))
            location = checked_offer(await peer.read_head(), version)
            await peer.send(PHOTO[:HALF])
            await arrived(immich, HALF, SIZE)
            peer.reset()
        offset = await ask(caddy, location, version)
        assert offset == HALF
        assert_stored(immich, await resume(caddy, location, offset, version), PHOTO)
        assert len(immich.requests) == 1

    async def test_lets_a_cut_upload_over_http2_be_resumed(
        self, immich: StandIn, caddy: TlsFront, start_bridge: StartBridge, setting: str
    ) -> None:
        """As iOS speaks to it."""
        await start_bridge(immich.url, **behind(caddy, RESUMABLE=setting))
        fields = [KEY, NAME, interop(6), completeness(6, True), ("Content-Length", str(SIZE))]
        async with caddy.connect(HTTP2) as peer:
            client = Http2Client(peer)
            asked = await client.begin("OPTIONS", ROUTE, SITE, interop(6))
            await client.send(asked, b"", end=True)
            assert (await client.read_answer(asked)).status == 200
            stream = await client.begin("POST", ROUTE, SITE, *fields)
            location = checked_offer(await client.read_interim(stream), 6)
            await client.send(stream, PHOTO[:HALF])
            await arrived(immich, HALF, SIZE)
            await client.cancel(stream)
            rest = await client.begin("HEAD", location, SITE, KEY, interop(6))
            await client.send(rest, b"", end=True)
            offset = state_of(await client.read_answer(rest), 6).offset
        assert offset == HALF
        assert_stored(immich, await resume(caddy, location, offset), PHOTO)


class TestNginx:
    async def test_is_never_sent_an_offer(
        self, immich: StandIn, nginx: TlsFront, start_bridge: StartBridge
    ) -> None:
        """It would take it for the answer. The upload is one like any other."""
        await start_bridge(immich.url, **behind(nginx))
        assert (await nginx.fetch("OPTIONS", ROUTE, interop(6))).status == 501
        async with nginx.connect() as peer:
            await peer.send(creation(SIZE, host=SITE), PHOTO)
            told = await peer.read_answer()
            assert_stored(immich, told, PHOTO)
            assert told.interim == []
            assert told.header("Upload-Offset") is None
            # The connection is in order.
            await peer.send(request("GET", "/api/server/ping", host=SITE))
            assert (await peer.read_answer()).body == b'{"res":"pong"}'

    async def test_takes_an_offer_for_the_answer(
        self, immich: StandIn, nginx: TlsFront, start_bridge: StartBridge
    ) -> None:
        """That is why `on` is for fronts that are known to pass it."""
        await start_bridge(immich.url, **behind(nginx, RESUMABLE="on"))
        async with nginx.connect() as peer:
            await peer.send(creation(SIZE, host=SITE))
            first = await peer.read_head()
            if b" 104 " in first.first_line and first.header("Server") is None:
                pytest.skip("this nginx passes interim answers")
            assert first.header("Connection") == "keep-alive"  # an answer proper, to nginx
        assert immich.assets == []
