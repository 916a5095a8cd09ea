"""Two workers, and requests at one of them on the uploads of the other."""

import asyncio
import base64
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from itertools import cycle
from typing import Any, Final

import pytest

from crew import Crew, a_crew
from immich_bridge.serve import Server
from immich_standin import Behaviour, StandIn
from log_capture import written_log
from raw_upload import KEY, Flood, jpeg
from resumable.at_immich import arrived, assert_cancelled, assert_stored, held
from resumable.test_tus import OCTETS, VERSION, at, create
from resumable.test_tus import ask as ask_in_tus
from resumable.urlsession import (
    VERSIONS,
    Cut,
    UploadTask,
    append,
    ask,
    interop,
    resume,
    sending,
    state,
)
from scrape import ON, scrape, scrape_at_rest, scrape_when
from wire import Message, Peer, connect, fetch, request

PHOTO: Final = jpeg(700_001)
SIZE: Final = len(PHOTO)
HALF: Final = SIZE // 2
LARGE: Final = jpeg((24 << 20) + 1)
"""More than what the kernel and the bridge hold of an upload."""
ROUTE: Final = "/uploads/{name}"
CUTS: Final = [Cut(100_000), Cut(250_007, "fin"), Cut(400_000), Cut(600_000, "silent")]

Pair = tuple[Server, Server]
StartPair = Callable[..., Awaitable[Pair]]


@pytest.fixture
async def crew(immich: StandIn) -> AsyncIterator[Crew]:
    async with a_crew(immich.url) as crew:
        yield crew


@pytest.fixture
async def pair(crew: Crew) -> Pair:
    return await crew.start(0), await crew.start(1)


class AnywhereTask(UploadTask):
    """An upload whose connections come to one worker after the other."""

    def __init__(self, servers: Pair, file: bytes, **options: Any) -> None:
        # It asks before it goes on: so each does so at both, in turn.
        first, second = (server.address for server in servers)
        self._servers = cycle((first, second, second))
        super().__init__("", file, **options)

    @property
    def _url(self) -> str:
        return next(self._servers)

    @_url.setter
    def _url(self, _: str) -> None:
        pass


def without(told: Message, *names: str) -> list[tuple[bytes, bytes]]:
    """The head of an answer but for fields that differ each time."""
    left_out = {name.lower().encode() for name in (*names, "Date", "X-Request-Id")}
    return sorted(field for field in told.headers if field[0].lower() not in left_out)


class TestUploads:
    @pytest.mark.parametrize("chunked", [False, True], ids=["announced", "chunked"])
    @pytest.mark.parametrize("version", VERSIONS)
    async def test_go_on_anywhere(
        self, immich: StandIn, pair: Pair, version: int, chunked: bool
    ) -> None:
        task = AnywhereTask(pair, PHOTO, version=version, chunked=chunked)
        told = await task.run(CUTS)
        assert_stored(immich, told, PHOTO)
        assert len(immich.requests) == 1
        assert len(task.resumed) >= 3

    @pytest.mark.parametrize("begun_at", [0, 1])
    async def test_are_answered_as_if_there_was_one_worker(
        self, immich: StandIn, pair: Pair, begun_at: int
    ) -> None:
        here, there = pair[begun_at].address, pair[1 - begun_at].address
        location = await held(immich, here, PHOTO[:HALF], SIZE)
        assert location.startswith(f"/uploads/{begun_at}-")
        for version in VERSIONS:
            told = [await ask(url, location, version) for url in (here, there)]
            assert told[0].first_line == told[1].first_line == b"HTTP/1.1 204 No Content"
            assert without(told[0]) == without(told[1])
        told = [await resume(url, location, 1, PHOTO[:1]) for url in (here, there)]
        assert told[0].status == 409
        assert told[0].body == told[1].body
        assert without(told[0], "Connection") == without(told[1], "Connection")
        key = ("x-api-key", "somebody else's")
        told = [await ask(url, location, key=key) for url in (here, there)]
        assert told[0].status == 404
        assert without(told[0]) == without(told[1])
        told = [
            await fetch(url, method, location, KEY) for url in (here, there) for method in ("PUT",)
        ]
        assert told[0].status == 405
        assert (told[0].body, without(told[0])) == (told[1].body, without(told[1]))
        assert_stored(immich, await resume(there, location, HALF, PHOTO[HALF:]), PHOTO)

    async def test_are_cancelled_anywhere(self, immich: StandIn, pair: Pair) -> None:
        location = await held(immich, pair[0].address, PHOTO[:HALF], SIZE)
        told = await fetch(pair[1].address, "DELETE", location, interop(6), KEY)
        assert told.status == 204
        await assert_cancelled(immich)
        for server in pair:
            assert (await ask(server.address, location)).status == 404

    async def test_in_tus_go_on_anywhere(self, immich: StandIn, pair: Pair) -> None:
        async with connect(pair[1].address) as peer:
            url = await create(peer, SIZE)
        async with connect(pair[0].address) as peer:
            for start, end in ((0, 1), (1, HALF), (HALF, SIZE)):
                told = await ask_in_tus(peer, "HEAD", url, VERSION, KEY)
                assert (told.status, told.header("Upload-Offset")) == (200, str(start))
                assert told.header("Tus-Resumable") == "1.0.0"
                method = ("X-HTTP-Method-Override", "PATCH")
                fields = (VERSION, KEY, OCTETS, method, at(start))
                done = await ask_in_tus(peer, "POST", url, *fields, body=PHOTO[start:end])
                assert (done.status, done.header("Upload-Offset")) == (204, str(end)), done
            assert done.header("X-Immich-Status") == "created"
        (asset,) = immich.assets
        assert (asset.path.read_bytes() == PHOTO) is True

    async def test_in_tus_are_checked_anywhere(self, immich: StandIn, pair: Pair) -> None:
        digest = base64.b64encode(hashlib.sha1(b"other").digest()).decode()
        async with connect(pair[0].address) as peer:
            url = await create(peer, SIZE)
        async with connect(pair[1].address) as peer:
            fields = (VERSION, KEY, OCTETS, at(0), ("Upload-Checksum", f"sha1 {digest}"))
            told = await ask_in_tus(peer, "PATCH", url, *fields, body=PHOTO[:HALF])
        assert (told.status, told.header("X-Bridge-Error")) == (460, "checksum_mismatch")
        assert told.header("Tus-Resumable") == "1.0.0"

    async def test_that_nobody_can_have_are_not_found(self, pair: Pair) -> None:
        for name in (
            "2-" + "a" * 43,
            "99-" + "a" * 43,
            "a" * 43,
            "0-",
            "0-x",
            "-1-x",
            "%D9%A0-x",
            "0" * 5000 + "-x",
        ):
            for server in pair:
                told = await ask(server.address, f"/uploads/{name}")
                assert told.status == 404


class TestInterruptions:
    async def test_what_has_come_before_the_client_left_is_kept(
        self, immich: StandIn, pair: Pair
    ) -> None:
        location = await held(immich, pair[0].address, PHOTO[:1000], SIZE)
        async with connect(pair[1].address) as peer:
            await peer.send(append(location, 1000, SIZE - 1000), PHOTO[1000:HALF])
            await arrived(immich, HALF, SIZE)
            peer.reset()
        for server in pair:
            assert (await state(server.address, location)).offset == HALF
        told = await resume(pair[1].address, location, HALF, PHOTO[HALF:])
        assert_stored(immich, told, PHOTO)

    @pytest.mark.parametrize("asked_at", [0, 1])
    async def test_whoever_comes_next_is_believed(
        self, immich: StandIn, pair: Pair, asked_at: int
    ) -> None:
        """The connection of the request before ends, without an answer."""
        location = await held(immich, pair[0].address, PHOTO[:1000], SIZE)
        async with connect(pair[1].address) as peer:
            await peer.send(append(location, 1000, SIZE - 1000), PHOTO[1000:HALF])
            await arrived(immich, HALF, SIZE)
            told = await resume(pair[asked_at].address, location, HALF, PHOTO[HALF:])
            assert_stored(immich, told, PHOTO)
            assert await peer.read_to_end() == b""

    async def test_a_request_is_believed_before_its_first_byte(
        self, immich: StandIn, pair: Pair
    ) -> None:
        location = await held(immich, pair[0].address, PHOTO[:1000], SIZE)
        async with connect(pair[1].address) as old, connect(pair[1].address) as new:
            await old.send(append(location, 1000, SIZE - 1000), PHOTO[1000:HALF])
            await arrived(immich, HALF, SIZE)
            await new.send(append(location, HALF, SIZE - HALF))
            assert await old.read_to_end() == b""
            await new.send(PHOTO[HALF:])
            assert_stored(immich, await new.read_answer(), PHOTO)

    async def test_silence_ends_a_request_but_not_its_upload(
        self, immich: StandIn, crew: Crew
    ) -> None:
        first, second = [await crew.start(n, BODY_IDLE_TIMEOUT="200ms") for n in (0, 1)]
        location = await held(immich, first.address, PHOTO[:1000], SIZE)
        async with connect(second.address) as peer:
            await peer.send(append(location, 1000, SIZE - 1000), PHOTO[1000:HALF])
            assert await peer.read_to_end() == b""
        assert (await state(second.address, location)).offset == HALF
        assert_stored(immich, await resume(second.address, location, HALF, PHOTO[HALF:]), PHOTO)

    async def test_a_client_that_leaves_while_immich_stalls_is_missed(
        self, immich: StandIn, crew: Crew
    ) -> None:
        """Nobody reads then, and so nobody would see the end of the connection."""
        first, second = await crew.start(0, **ON), await crew.start(1, **ON)
        immich.behaviour = Behaviour(stall_after=1000)
        async with sending(first.address, LARGE[:1000], size=len(LARGE)) as (peer, location):
            await arrived(immich, 1000, len(LARGE))
            peer.reset()
        offset = (await state(first.address, location)).offset
        async with connect(second.address) as peer:
            await peer.send(append(location, offset, len(LARGE) - offset))
            flood = Flood(peer, LARGE[offset:])
            await flood.stalled()
            peer.reset()
            await flood.ended()
        seen = await scrape_when(
            first, lambda seen: not seen.value("immich_bridge_requests_in_flight", route=ROUTE)
        )
        counts = {"route": ROUTE, "method": "PATCH", "status": "499"}
        assert seen.value("immich_bridge_requests_total", **counts) == 1
        immich.behaviour.release()

    async def test_what_one_does_for_another_is_one_request_under_way(
        self, immich: StandIn, pair: Pair
    ) -> None:
        location = await held(immich, pair[0].address, PHOTO[:1000], SIZE)
        async with connect(pair[1].address) as peer:
            await peer.send(append(location, 1000, SIZE - 1000), PHOTO[1000:HALF])
            await arrived(immich, HALF, SIZE)
            assert await pair[1].drain(0) == 0  # it is the other one's
            assert await pair[0].drain(0) == 1

    async def test_it_waits_for_immich_as_long_as_the_other_does(
        self, immich: StandIn, pair: Pair
    ) -> None:
        immich.behaviour = Behaviour(hold_answer=True)
        location = await held(immich, pair[0].address, PHOTO[:1000], SIZE)
        async with connect(pair[1].address) as peer:
            await peer.send(append(location, 1000, SIZE - 1000), PHOTO[1000:])
            await immich.wait_for_request(lambda _: len(immich.assets) == 1)
            immich.behaviour.release()
            assert_stored(immich, await peer.read_answer(), PHOTO)


class TestASiblingThatIsNotThere:
    async def test_may_soon_be_back(self, crew: Crew) -> None:
        server = await crew.start(1, **ON)
        for method in ("HEAD", "PATCH", "DELETE"):
            body = b"x" if method == "PATCH" else b""
            async with connect(server.address) as peer:
                name = "/uploads/0-" + "a" * 43
                await peer.send(request(method, name, KEY, interop(6), body=body))
                told = await peer.read_answer(method)
            assert (told.status, told.header("X-Bridge-Error")) == (503, "unavailable")
            assert told.header("Retry-After") == "5"

    async def test_has_no_uploads_when_it_is_back(self, immich: StandIn, crew: Crew) -> None:
        server = await crew.start(1)
        async with AsyncExitStack() as stack:
            other = Crew(stack, immich.url, crew.folder)
            location = await held(immich, (await other.start(0)).address, PHOTO[:1000], SIZE)
        assert (await ask(server.address, location)).status == 503
        await crew.start(0)
        assert (await ask(server.address, location)).status == 404

    async def test_cuts_its_clients_off_when_it_ends(self, immich: StandIn, crew: Crew) -> None:
        server = await crew.start(1)
        async with AsyncExitStack() as stack:
            other = Crew(stack, immich.url, crew.folder)
            location = await held(immich, (await other.start(0)).address, PHOTO[:1000], SIZE)
            peer = await stack.enter_async_context(connect(server.address))
            await peer.send(append(location, 1000, SIZE - 1000), PHOTO[1000:HALF])
            await arrived(immich, HALF, SIZE)
            ending = asyncio.create_task(stack.pop_all().aclose())
            assert await peer.read_to_end() == b""
            await ending


class TestWhatIsTold:
    async def test_is_told_once(self, immich: StandIn, crew: Crew) -> None:
        """By the one who has the upload, with the address and the id of the client."""
        first, second = await crew.start(0, **ON), await crew.start(1, **ON)
        location = await held(immich, second.address, PHOTO[:HALF], SIZE)
        before = await scrape_at_rest(first)
        with written_log() as log:
            ids = ("X-Request-Id", "the-id-of-it")
            forged = ("X-Immich-Bridge-Peer", "192.0.2.6")
            told = await resume(first.address, location, HALF, PHOTO[HALF:], ids, forged)
            assert told.header("X-Request-Id") == "the-id-of-it"
            line = await log.wait_for(f" route={ROUTE} ")
        assert [each for each in log.lines if " request " in each] == [line]
        assert " client=127.0.0.1 " in line
        assert f" bytes_in={SIZE - HALF} " in line
        assert " status=201 " in line
        assert " request_id=the-id-of-it upload=created" in line
        seen = await scrape_at_rest(first)
        changes = seen.changes(before)
        received = f'immich_bridge_received_bytes_total{{route="{ROUTE}"}}'
        patched = f'immich_bridge_requests_total{{method="PATCH",route="{ROUTE}",status="201"}}'
        assert changes.pop(received) == SIZE - HALF
        assert changes.pop(patched) == 1
        assert changes.pop(f'immich_bridge_sent_bytes_total{{route="{ROUTE}"}}') > 0
        name = "immich_bridge_request_duration_seconds"
        assert changes.pop(f'{name}_count{{route="{ROUTE}"}}') == 1
        assert changes == {
            'immich_bridge_background_uploads_total{outcome="created"}': 1,
            'immich_bridge_resumable_uploads_total{event="resumed"}': 1,
            'immich_bridge_resumable_uploads_total{event="completed"}': 1,
            "immich_bridge_resumable_uploads_held": -1,
            "immich_bridge_upstream_connections_open": -1,
        }

    async def test_is_told_while_it_goes_on(self, immich: StandIn, crew: Crew) -> None:
        first, second = await crew.start(0, **ON), await crew.start(1, **ON)
        location = await held(immich, second.address, PHOTO[:1000], SIZE)
        before = await scrape_at_rest(first)
        async with connect(first.address) as peer:
            await peer.send(append(location, 1000, SIZE - 1000), PHOTO[1000:HALF])
            await arrived(immich, HALF, SIZE)
            seen = await scrape(first)
            assert seen.value("immich_bridge_requests_in_flight", route=ROUTE) == 1
            assert seen.value("immich_bridge_client_connections_open") == 1
            changes = seen.changes(before)
            assert changes[f'immich_bridge_received_bytes_total{{route="{ROUTE}"}}'] == HALF - 1000

    async def test_is_told_of_the_client_behind_a_trusted_front(
        self, immich: StandIn, crew: Crew
    ) -> None:
        trust = {"TRUSTED_PROXIES": "127.0.0.1"}
        first, second = await crew.start(0, **trust), await crew.start(1, **trust)
        location = await held(immich, first.address, PHOTO[:HALF], SIZE)
        with written_log() as log:
            head = (interop(6), KEY, ("X-Forwarded-For", "192.0.2.7"))
            assert (await fetch(second.address, "HEAD", location, *head)).status == 204
            assert " client=192.0.2.7 " in await log.wait_for(f" route={ROUTE} ")

    async def test_nobody_outside_can_pass_for_a_worker(self, immich: StandIn, pair: Pair) -> None:
        """What says that a request was passed on is the socket that it came over."""
        location = await held(immich, pair[0].address, PHOTO[:HALF], SIZE)
        forged = ("X-Immich-Bridge-Peer", "192.0.2.6")
        for server in pair:
            with written_log() as log:
                told = await fetch(server.address, "HEAD", location, interop(6), KEY, forged)
                assert told.status == 204
                assert " client=127.0.0.1 " in await log.wait_for(f" route={ROUTE} ")

    async def test_what_was_passed_on_is_not_passed_on_again(
        self, immich: StandIn, crew: Crew
    ) -> None:
        first = await crew.start(0)
        await crew.start(1)
        location = await held(immich, first.address, PHOTO[:HALF], SIZE)
        peer = Peer(*await asyncio.open_unix_connection(str(crew.folder / "1")))
        await peer.send(request("HEAD", location, interop(6), KEY))
        assert (await peer.read_answer("HEAD")).status == 404
        await peer.close()
