"""Uploads that are held: for how long, how many, and what they leave behind when they end."""

import asyncio
import gc
import signal
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from front import StartBridge, let_time_pass
from immich_bridge.resumable import uploads
from immich_standin import Behaviour, StandIn
from raw_upload import KEY, NAME, assert_error, assert_nothing_stored, eventually, jpeg, upload
from resumable.at_immich import arrived
from resumable.urlsession import (
    Cut,
    UploadTask,
    append,
    ask,
    completeness,
    creation,
    interop,
    read_offer,
    state,
)
from scrape import ON, scrape, scrape_when
from wire import PATIENCE, connect, fetch

if TYPE_CHECKING:
    from conftest import BridgeProcess

StartProcess = Callable[..., Awaitable["BridgeProcess"]]

PHOTO = jpeg(700_001)
SIZE = len(PHOTO)
HALF = SIZE // 2


async def hold(url: str, key: tuple[str, str] = KEY, sent: bytes = PHOTO[:1000]) -> str:
    """Leave an upload behind; its URL."""
    async with connect(url) as peer:
        await peer.send(creation(len(sent), key, complete=False), sent)
        location = await read_offer(peer)
        told = await peer.read_answer()
        assert told.status == 201, told
    return location


class TestHold:
    async def test_ends_after_a_while(self, immich: StandIn, start_bridge: StartBridge) -> None:
        bridge = await start_bridge(immich.url, RESUMABLE_HOLD="1s", **ON)
        location = await hold(bridge.address)
        assert (await state(bridge.address, location)).offset == 1000
        await immich.wait_for_request(lambda seen: seen.body_received >= 1000)
        seen = await immich.wait_for_abort(PATIENCE)
        assert not seen.completed
        assert_nothing_stored(immich)
        assert (await ask(bridge.address, location)).status == 404
        told = await scrape(bridge)
        assert told.value("immich_bridge_resumable_uploads_total", event="expired") == 1
        assert told.value("immich_bridge_resumable_uploads_held") == 0

    async def test_does_not_count_while_somebody_sends(
        self, immich: StandIn, start_bridge: StartBridge
    ) -> None:
        bridge = await start_bridge(immich.url, RESUMABLE_HOLD="1s")
        async with connect(bridge.address) as peer:
            await peer.send(creation(SIZE))
            await read_offer(peer)
            for at in range(16):
                await peer.send(PHOTO[at * 10_000 : (at + 1) * 10_000])
                await let_time_pass(0.1)
            await peer.send(PHOTO[160_000:])
            assert (await peer.read_answer()).status == 201

    async def test_does_not_count_while_immich_makes_up_its_mind(
        self, immich: StandIn, start_bridge: StartBridge
    ) -> None:
        bridge = await start_bridge(immich.url, RESUMABLE_HOLD="200ms", **ON)
        immich.behaviour = Behaviour(hold_answer=True)
        async with connect(bridge.address) as peer:
            await peer.send(creation(SIZE), PHOTO)
            await read_offer(peer)
            await arrived(immich, SIZE, SIZE)
        await let_time_pass(1)  # several holds
        immich.behaviour.release()
        completed = "immich_bridge_resumable_uploads_total"
        await scrape_when(bridge, lambda seen: seen.value(completed, event="completed") == 1)
        assert len(immich.assets) == 1


class TestNumbers:
    @pytest.fixture(autouse=True)
    def few(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(uploads, "MAX_UPLOADS_OF_ONE", 2)
        monkeypatch.setattr(uploads, "MAX_UPLOADS", 3)

    async def test_of_one_client_are_limited(
        self, immich: StandIn, start_bridge: StartBridge
    ) -> None:
        bridge = await start_bridge(immich.url)
        locations = [await hold(bridge.address) for _ in range(2)]
        # A part cannot be taken, but the whole can: as an upload like any other.
        wish = [interop(6), completeness(6, False)]
        told = await upload(bridge.address, PHOTO, NAME, *wish)
        assert_error(told, 503, "unavailable")
        assert told.header("Retry-After") is not None
        told = await upload(bridge.address, PHOTO, NAME, interop(6), completeness(6, True))
        assert (told.status, told.interim) == (201, [])
        # Another client has room, and so has this one once something has ended.
        other = ("x-api-key", "another")
        async with connect(bridge.address) as peer:
            await peer.send(creation(1000, other))
            await read_offer(peer)
        await fetch(bridge.address, "DELETE", locations[0], KEY)
        assert (await UploadTask(bridge.address, jpeg(5000)).run([Cut(3000)])).status == 201

    async def test_in_total_are_limited(self, immich: StandIn, start_bridge: StartBridge) -> None:
        bridge = await start_bridge(immich.url)
        for number in range(3):
            # Nobody has asked Immich yet whether it takes these keys.
            await hold(bridge.address, ("x-api-key", f"key {number}"), b"")
        told = await upload(bridge.address, PHOTO, NAME, interop(6), completeness(6, True))
        assert (told.status, told.interim) == (201, [])

    async def test_do_not_count_what_is_finished(
        self, immich: StandIn, start_bridge: StartBridge
    ) -> None:
        bridge = await start_bridge(immich.url)
        for number in range(5):
            task = UploadTask(bridge.address, jpeg(5000, number))
            assert (await task.run([Cut(3000)])).status == 201
            assert task.location is not None
        assert len(immich.assets) == 5


class TestWhatIsKept:
    async def test_of_an_upload_without_a_byte_is_nothing_for_long(
        self, immich: StandIn, start_bridge: StartBridge, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(uploads, "_EMPTY_SECONDS", 0.2)
        monkeypatch.setattr(uploads, "_MOST_SWEEP_SECONDS", 0.05)
        bridge = await start_bridge(immich.url)
        begun = await hold(bridge.address)
        empty = await hold(bridge.address, sent=b"")
        async with asyncio.timeout(PATIENCE):
            while (await ask(bridge.address, empty)).status != 404:
                await let_time_pass(0.3)  # each question is a sign of life
        assert (await state(bridge.address, begun)).offset == 1000

    async def test_of_answers_are_the_newest(
        self, immich: StandIn, start_bridge: StartBridge, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(uploads, "_MOST_REPLAYS", 2)
        bridge = await start_bridge(immich.url)
        locations = []
        for seed in range(3):
            photo = jpeg(1000, seed)
            async with connect(bridge.address) as peer:
                await peer.send(creation(len(photo)), photo)
                locations.append(await read_offer(peer))
                assert (await peer.read_answer()).status == 201
        statuses = [(await ask(bridge.address, each)).status for each in locations]
        assert statuses == [404, 204, 204]


class TestSizes:
    @pytest.mark.parametrize("size", [SIZE, None])
    async def test_above_the_limit_are_refused(
        self, immich: StandIn, start_bridge: StartBridge, size: int | None
    ) -> None:
        bridge = await start_bridge(immich.url, MAX_STREAM_SIZE=f"{SIZE - 1}B")
        async with connect(bridge.address) as peer:
            await peer.send(creation(size))
            if size is None:
                await read_offer(peer)
                await peer.send(b"%x\r\n%b\r\n0\r\n\r\n" % (SIZE, PHOTO))
            assert_error(await peer.read_answer(), 413, "payload_too_large")
        await eventually(lambda: immich.open_connections == 0)
        assert_nothing_stored(immich)

    async def test_above_the_limit_are_refused_in_parts(
        self, immich: StandIn, start_bridge: StartBridge
    ) -> None:
        bridge = await start_bridge(immich.url, MAX_STREAM_SIZE=f"{SIZE - 1}B")
        location = await hold(bridge.address)
        async with connect(bridge.address) as peer:
            await peer.send(append(location, 1000, SIZE - 1000, complete=False))
            told = await peer.read_answer()
        assert_error(told, 413, "payload_too_large")
        assert told.header("Upload-Limit") == f"max-size={SIZE - 1}, min-size=0"
        async with connect(bridge.address) as peer:
            head = creation(1000, ("Upload-Length", str(SIZE)), complete=False)
            await peer.send(head, PHOTO[:1000])
            assert_error(await peer.read_answer(), 413, "payload_too_large")


class TestShutdown:
    async def test_cuts_what_is_held_and_lets_the_others_finish(
        self, immich: StandIn, start_process: StartProcess
    ) -> None:
        bridge = await start_process(IMMICH_SERVER_URL=immich.url, SHUTDOWN_GRACE="20s")
        location = await hold(bridge.url)
        await immich.wait_for_request(lambda seen: seen.body_received >= 1000)
        async with connect(bridge.url) as peer, connect(bridge.url) as asking:
            await asking.send(b"GET /ready HTTP/1.1\r\nHost: bridge\r\n\r\n")
            assert (await asking.read_answer()).status == 200
            await peer.send(creation(SIZE), PHOTO[:HALF])
            await read_offer(peer)
            await arrived(immich, HALF, SIZE)
            bridge.process.send_signal(signal.SIGTERM)
            seen = await immich.wait_for_abort(PATIENCE)
            assert seen.body_received < HALF
            assert bridge.process.returncode is None
            await peer.send(PHOTO[HALF:])
            assert (await peer.read_answer()).status == 201
        assert await asyncio.wait_for(bridge.process.wait(), PATIENCE) == 0
        [asset] = immich.assets
        assert asset.path.read_bytes() == PHOTO
        assert immich.files() == [asset.path]
        assert location not in "\n".join(bridge.log)
        assert not [line for line in bridge.log if "Traceback" in line or " ERROR " in line]

    async def test_waits_for_nobody_longer_than_the_grace(
        self, immich: StandIn, start_process: StartProcess
    ) -> None:
        bridge = await start_process(IMMICH_SERVER_URL=immich.url, SHUTDOWN_GRACE="0.5s")
        async with connect(bridge.url) as peer:
            await peer.send(creation(SIZE), PHOTO[:HALF])
            await read_offer(peer)
            await arrived(immich, HALF, SIZE)
            bridge.process.send_signal(signal.SIGTERM)
            assert await asyncio.wait_for(bridge.process.wait(), PATIENCE) == 0
        await immich.wait_for_abort(PATIENCE)
        assert_nothing_stored(immich)
        assert not [line for line in bridge.log if "Traceback" in line or " ERROR " in line]

    async def test_is_not_ready(self, immich: StandIn, start_bridge: StartBridge) -> None:
        """Uploads that nobody sends do not keep a server from stopping."""
        bridge = await start_bridge(immich.url)
        location = await hold(bridge.address)
        await immich.wait_for_request(lambda seen: seen.body_received >= 1000)
        async with connect(bridge.address) as peer:
            # Held open by a request under way, so that it can be asked.
            immich.behaviour = Behaviour(path="/api/server", hold_answer=True)
            await peer.send(b"GET /api/server/ping HTTP/1.1\r\nHost: bridge\r\n\r\n")
            await immich.wait_for_request(lambda seen: seen.target == "/api/server/ping")
            draining = asyncio.create_task(bridge.drain(PATIENCE))
            await immich.wait_for_abort(PATIENCE)
            immich.behaviour.release()
            await peer.read_answer()
            assert await draining == 0
        assert location
        assert_nothing_stored(immich)


def descriptors() -> list[str]:
    """What this process has open, but for what the interpreter opens as it likes."""

    def targets() -> Iterator[str]:
        for entry in Path("/proc/self/fd").iterdir():
            try:
                yield str(entry.readlink()).partition(":")[0]
            except FileNotFoundError:
                continue

    return sorted(kind for kind in targets() if kind in ("socket", "pipe"))


class TestTraces:
    async def test_of_many_cuts_are_none(self, immich: StandIn, start_bridge: StartBridge) -> None:
        bridge = await start_bridge(immich.url)
        photo = jpeg(3 << 20)

        async def one(number: int) -> None:
            cuts = [Cut((number + 1) * 50_000, ("rst", "fin")[number % 2]), Cut(2 << 20)]
            body = photo + bytes([number])
            assert (await UploadTask(bridge.address, body).run(cuts)).status in (200, 201)

        async def given_up(number: int) -> None:
            async with AsyncExitStack() as stack:
                peer = await stack.enter_async_context(connect(bridge.address))
                await peer.send(creation(len(photo)), photo[: (number + 1) * 100_000])
                location = await read_offer(peer)
                peer.reset()
            told = await fetch(bridge.address, "DELETE", location, interop(6), KEY)
            assert told.status == 204

        await one(20)
        await given_up(5)
        await eventually(lambda: immich.open_connections == 0)
        gc.collect()
        before, tasks = descriptors(), len(asyncio.all_tasks())
        for _ in range(3):
            await asyncio.gather(*map(one, range(6)), *map(given_up, range(6)))
        await eventually(lambda: immich.open_connections == 0)
        await eventually(lambda: len(asyncio.all_tasks()) <= tasks)
        await eventually(lambda: len(descriptors()) <= len(before))
        assert len(immich.files()) == len(immich.assets) == 7
