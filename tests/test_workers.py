"""Several processes on one port: that they serve as one, start as one and end as one."""

import asyncio
import errno
import fcntl
import gc
import os
import re
import shutil
import signal
import socket
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import pytest

from front import let_time_pass
from immich_bridge import workers
from immich_bridge.config import Config
from immich_bridge.errors import StartError
from immich_standin import StandIn
from raw_upload import KEY, NAME, eventually, jpeg, upload_head, upload_request
from resumable.at_immich import arrived
from resumable.test_tus import COLLECTION, NAMED, OCTETS, VERSION, at
from resumable.urlsession import append, creation, interop, read_offer
from scrape import Scrape
from test_serve import Identity, make_identity, run_to_the_end
from wire import PATIENCE, Peer, connect, fetch, request

PHOTO: Final = jpeg(1_000_000, 9)
HALF: Final = len(PHOTO) // 2
BRIDGE_ALONE: Final = {"BACKUP_ENABLED": "false", "LISTEN_ADDR": "127.0.0.1:0"}

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/net/tcp").exists(), reason="who serves whom is read from /proc"
)


class Bridge:
    """A bridge of several processes, the parent of which is `process`; a session of their own."""

    def __init__(self, process: asyncio.subprocess.Process, folder: Path) -> None:
        self.process = process
        self.folder = folder
        """Where it keeps its temporary files."""
        self.log: list[str] = []
        self._said = asyncio.Condition()

    async def follow(self) -> None:
        """Read the log to its end."""
        assert self.process.stderr is not None
        async for line in self.process.stderr:
            async with self._said:
                self.log.append(line.decode().rstrip())
                self._said.notify_all()

    async def said(self, part: str, times: int = 1) -> str:
        """The line of the log that has `part` in it for the n-th time."""
        async with asyncio.timeout(PATIENCE), self._said:
            await self._said.wait_for(lambda: len(self.lines(part)) >= times)
        return self.lines(part)[times - 1]

    def lines(self, part: str) -> list[str]:
        """The lines of the log so far that have `part` in them."""
        return [line for line in self.log if part in line]

    @property
    def url(self) -> str:
        """Where it listens."""
        return self.lines(" listening ")[0].partition(" url=")[2].split()[0]

    @property
    def workers(self) -> list[int]:
        """The processes that serve, in the order in which they were started."""
        return [pid for pid, parent in self._alive() if parent == self.process.pid]

    @property
    def is_alive(self) -> bool:
        """Whether any of its processes is left."""
        return bool(self._alive())

    def _alive(self) -> list[tuple[int, int]]:
        """Each of its processes that has not ended, with its parent."""
        found = []
        for entry in Path("/proc").iterdir():
            with suppress(OSError):
                if entry.name.isdecimal():
                    stat = (entry / "stat").read_text().rpartition(")")[2].split()
                    state, parent, session, started = stat[0], stat[1], stat[3], stat[19]
                    if int(session) == self.process.pid and state != "Z":
                        found.append((int(started), int(entry.name), int(parent)))
        return [(pid, parent) for _, pid, parent in sorted(found)]

    async def has_workers(self, condition: Callable[[list[int]], bool]) -> list[int]:
        """The workers, as soon as they meet `condition`."""
        async with asyncio.timeout(PATIENCE):
            while not condition(workers := self.workers):
                await let_time_pass(0.005)
        return workers

    async def scrape(self) -> Scrape:
        """What Prometheus reads."""
        url = self.lines(" listening ")[0].partition(" metrics=")[2].split()[0]
        told = await fetch(url.removesuffix("/metrics"), "GET", "/metrics")
        assert told.status == 200
        return Scrape(told.body.decode())

    def worker_of(self, peer: Peer) -> int:
        """The process that serves `peer`, whose request was answered."""
        ends = [peer.writer.get_extra_info(end)[1] for end in ("peername", "sockname")]
        for row in Path("/proc/net/tcp").read_text().splitlines()[1:]:
            _, local, remote, *fields = row.split()
            if [int(end.partition(":")[2], 16) for end in (local, remote)] == ends:
                server = f"socket:[{fields[6]}]"
                return next(pid for pid in self.workers if server in _descriptors(pid))
        raise AssertionError("nobody serves it")

    @asynccontextmanager
    async def connection_to(self, worker: int, **options: Any) -> AsyncIterator[Peer]:
        """A connection that the process `worker` serves."""
        for _ in range(300):
            async with connect(self.url, **options) as peer:
                await peer.send(request("GET", "/health"))
                assert (await peer.read_answer()).status == 200
                if self.worker_of(peer) == worker:
                    yield peer
                    return
        raise AssertionError(f"no connection came to {worker}")

    async def exit_code(self, within: float = PATIENCE) -> int:
        """How it ended; nothing is left of it then."""
        code = await asyncio.wait_for(self.process.wait(), within)
        assert not self.is_alive
        assert is_empty(self.folder)
        async with self._said:
            pass  # what it said last
        return code


def is_empty(folder: Path) -> bool:
    return not any(folder.iterdir())


def _descriptors(pid: int) -> set[str]:
    """What a process has open."""
    found = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):
            found.add(str(descriptor.readlink()))
    return found


def _pipe_sizes(pid: int) -> list[int]:
    """How much the pipes of a process hold."""
    sizes = []
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):
            if str(descriptor.readlink()).startswith("pipe:"):
                ours = os.open(descriptor, os.O_RDONLY | os.O_NONBLOCK)
                sizes.append(fcntl.fcntl(ours, fcntl.F_GETPIPE_SZ))
                os.close(ours)
    return sizes


Start = Callable[..., Awaitable[Bridge]]


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    """Start bridges: `await start(immich_url, WORKERS="3", ...)`; by default there are two."""
    async with AsyncExitStack() as stack:

        async def begin(immich_url: str, **settings: str) -> Bridge:
            # In a short path: the names of sockets have to be short.
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="w")))
            values = {**BRIDGE_ALONE, "WORKERS": "2", "IMMICH_SERVER_URL": immich_url, **settings}
            bridge = Bridge(await spawn({"TMPDIR": str(folder), **values}), folder)
            following = asyncio.create_task(bridge.follow())
            stack.push_async_callback(asyncio.wait_for, following, PATIENCE)
            stack.push_async_callback(_end, bridge)
            await bridge.said(" listening ")
            return bridge

        yield begin


async def spawn(settings: dict[str, str], *arguments: str) -> asyncio.subprocess.Process:
    """A bridge in a session of its own."""
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "immich_bridge", *arguments),
        env={"PATH": os.environ["PATH"], **settings},
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )


async def _end(bridge: Bridge) -> None:
    """Leave nothing running, whatever became of the test."""
    if bridge.process.returncode is None:
        bridge.process.terminate()
        with suppress(TimeoutError):
            await asyncio.wait_for(bridge.process.wait(), 1)
    if bridge.is_alive:
        os.killpg(bridge.process.pid, signal.SIGKILL)
    await bridge.process.wait()


async def begin_upload(peer: Peer, immich: StandIn, number: int = 1) -> None:
    """Send the first half of a photo, and wait until Immich has some of so many."""
    await peer.send(upload_head(len(PHOTO)), PHOTO[:HALF])
    async with asyncio.timeout(PATIENCE):
        while sum(seen.body_received > 0 for seen in immich.requests) < number:
            await let_time_pass(0.005)


async def finish_upload(peer: Peer) -> None:
    """Send the rest, and read a success."""
    await peer.send(PHOTO[HALF:])
    told = await peer.read_answer()
    assert told.status in (200, 201), told


async def until_refused(url: str) -> None:
    """Return when nobody takes connections any more."""
    async with asyncio.timeout(PATIENCE):
        while True:
            try:
                async with connect(url):
                    pass
            except ConnectionError:
                return


@pytest.fixture
def identity(tmp_path: Path) -> Identity:
    """The identity of 127.0.0.1."""
    if shutil.which("openssl") is None:
        pytest.skip("there is no openssl to make keys with")
    return make_identity(tmp_path, "IP:127.0.0.1")


def tls_settings(identity: Identity) -> dict[str, str]:
    return {"TLS_CERT_FILE": str(identity.certificate), "TLS_KEY_FILE": str(identity.key)}


class TestServing:
    async def test_is_what_all_of_them_do(self, immich: StandIn, start: Start) -> None:
        bridge = await start(immich.url, WORKERS="3")
        (line,) = bridge.lines(" listening ")
        assert line.endswith(" workers=3")
        assert bridge.url.startswith("http://127.0.0.1:")
        serving = bridge.workers
        assert len(serving) == 3
        for worker in serving:
            async with bridge.connection_to(worker) as peer:
                await peer.send(request("GET", "/api/server/ping"))
                assert (await peer.read_answer()).body == b'{"res":"pong"}'
        await bridge.said(" INFO request ", times=3)
        told = {line.rpartition(" ")[2] for line in bridge.lines(" INFO request ")}
        assert told == {"worker=0", "worker=1", "worker=2"}

    async def test_many_uploads_arrive_byte_for_byte_and_are_counted_in_one_sum(
        self, immich: StandIn, start: Start
    ) -> None:
        bridge = await start(immich.url, METRICS_ADDR="127.0.0.1:0")
        photos = [jpeg(1_100_000 if seed % 20 == 0 else 5_000, seed) for seed in range(200)]
        served: Counter[int] = Counter()

        async def send(photo: bytes) -> None:
            async with connect(bridge.url) as peer:
                await peer.send(upload_request(photo, KEY, NAME))
                told = await peer.read_answer()
                assert told.status == 201, told
                if len(served) < 2:
                    served[bridge.worker_of(peer)] += 1

        for first in range(0, len(photos), 20):
            await asyncio.gather(*map(send, photos[first : first + 20]))
        assert {asset.path.read_bytes() for asset in immich.assets} == set(photos)
        assert len(immich.assets) == 200
        assert set(served) == set(bridge.workers)
        seen = await bridge.scrape()
        route = "/api/assets/background"
        counts = {"route": route, "method": "POST", "status": "201"}
        assert seen.value("immich_bridge_workers") == 2
        assert seen.value("immich_bridge_requests_total", **counts) == 200
        assert seen.value("immich_bridge_background_uploads_total", outcome="created") == 200
        name = "immich_bridge_request_duration_seconds"
        assert seen.value(f"{name}_count", route=route) == 200
        assert seen.value(f"{name}_bucket", route=route, le="+Inf") == 200
        sent = sum(map(len, photos))
        assert seen.value("immich_bridge_received_bytes_total", route=route) == sent
        assert seen.value("immich_bridge_upstream_connections_total") == 200
        assert bridge.lines("ERROR") == []

    async def test_on_every_address_and_any_port(self, immich: StandIn, start: Start) -> None:
        bridge = await start(immich.url, LISTEN_ADDR=":0")
        match = re.fullmatch(r"http://localhost:(\d+)", bridge.url)
        assert match
        for host in ["127.0.0.1"] + (["[::1]"] if socket.has_dualstack_ipv6() else []):
            for _ in range(8):
                told = await fetch(f"http://{host}:{match[1]}", "GET", "/api/server/ping")
                assert told.status == 200

    async def test_their_metrics_are_not_for_clients(self, immich: StandIn, start: Start) -> None:
        bridge = await start(immich.url, METRICS_ADDR="127.0.0.1:0")
        await fetch(bridge.url, "GET", "/metrics")
        assert [seen.target for seen in immich.requests] == ["/metrics"]  # for Immich to answer
        (folder,) = bridge.folder.iterdir()
        assert folder.stat().st_mode & 0o777 == 0o700

    @pytest.mark.skipif(not hasattr(os, "splice"), reason="this system has no splice")
    async def test_they_share_what_their_pipes_may_hold(
        self, immich: StandIn, start: Start
    ) -> None:
        """Linux bounds it for all processes of a user together."""
        bridge = await start(immich.url, WORKERS="8")
        (folder,) = bridge.folder.iterdir()
        assert len([*folder.iterdir()]) == 8  # all of them listen before that is said
        photo = jpeg(3_000_000)
        async with connect(bridge.url) as peer:
            await peer.send(upload_head(len(photo)), photo[: len(photo) // 2])

            def largest() -> int:
                return max(size for worker in bridge.workers for size in _pipe_sizes(worker))

            # It is made once the first bytes have gone.
            await eventually(lambda: largest() >= 512 * 1024)
            assert largest() == 512 * 1024
            await peer.send(photo[len(photo) // 2 :])
            assert (await peer.read_answer()).status == 201


class TestUploadsOfASibling:
    @pytest.mark.parametrize("secure", [False, True], ids=["http", "https"])
    async def test_go_on(
        self, immich: StandIn, start: Start, identity: Identity, secure: bool
    ) -> None:
        bridge = await start(immich.url, **(tls_settings(identity) if secure else {}))
        options = {"ssl": identity.client} if secure else {}
        first, second = bridge.workers
        async with bridge.connection_to(first, **options) as peer:
            await peer.send(creation(len(PHOTO)))
            location = await read_offer(peer)
            await peer.send(PHOTO[:HALF])
            await arrived(immich, HALF, len(PHOTO))
            peer.reset()
        assert location.startswith("/uploads/0-")
        async with bridge.connection_to(second, **options) as peer:
            await peer.send(request("HEAD", location, interop(6), KEY))
            told = await peer.read_answer("HEAD")
            assert (told.status, told.header("Upload-Offset")) == (204, str(HALF))
            await peer.send(append(location, HALF, len(PHOTO) - HALF), PHOTO[HALF:])
            told = await peer.read_answer()
            assert (told.status, told.header("X-Immich-Status")) == (201, "created")
        assert [asset.path.read_bytes() == PHOTO for asset in immich.assets] == [True]

    async def test_go_on_in_tus(self, immich: StandIn, start: Start) -> None:
        bridge = await start(immich.url)
        first, second = bridge.workers
        size = ("Upload-Length", str(len(PHOTO)))
        async with bridge.connection_to(second) as peer:
            await peer.send(request("POST", COLLECTION, VERSION, KEY, NAMED, size))
            location = (await peer.read_answer()).header("Location") or ""
        assert location.startswith("/uploads/1-")
        async with bridge.connection_to(first) as peer:
            for begin, end in ((0, HALF), (HALF, len(PHOTO))):
                head = (VERSION, KEY, OCTETS, at(begin))
                await peer.send(request("PATCH", location, *head, body=PHOTO[begin:end]))
                told = await peer.read_answer()
                assert (told.status, told.header("Upload-Offset")) == (204, str(end))
        assert [asset.path.read_bytes() == PHOTO for asset in immich.assets] == [True]

    async def test_are_gone_with_it(self, immich: StandIn, start: Start) -> None:
        bridge = await start(immich.url)
        first, second = bridge.workers
        async with bridge.connection_to(first) as peer:
            await peer.send(creation(len(PHOTO)))
            location = await read_offer(peer)
            os.kill(first, signal.SIGKILL)
            assert await peer.read_to_end() == b""
        statuses: list[int] = []
        async with asyncio.timeout(PATIENCE), bridge.connection_to(second) as peer:
            while not statuses or statuses[-1] == 503:
                await peer.send(request("HEAD", location, interop(6), KEY))
                told = await peer.read_answer("HEAD")
                statuses.append(told.status)
                if told.status == 503:
                    assert told.header("Retry-After")
                    assert told.header("X-Bridge-Error") == "unavailable"
        assert set(statuses) <= {404, 503}
        assert statuses[-1] == 404


def test_a_start_without_room_for_another_process_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_room() -> int:
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(os, "fork", no_room)
    monkeypatch.setattr(gc, "freeze", lambda: None)
    config = Config.from_mapping({**BRIDGE_ALONE, "WORKERS": "2"})
    with pytest.raises(StartError, match="a worker cannot be started: Resource temporarily"):
        workers.serve_with_workers(config)


class TestStopping:
    @pytest.mark.parametrize("to_all", [False, True], ids=["parent", "group"])
    async def test_lets_uploads_finish(self, immich: StandIn, start: Start, to_all: bool) -> None:
        """What a terminal sends to the whole group is one signal, and nobody hurries."""
        bridge = await start(immich.url)
        first, second = bridge.workers
        async with bridge.connection_to(first) as one, bridge.connection_to(second) as other:
            await begin_upload(one, immich)
            await begin_upload(other, immich, 2)
            if to_all:
                os.killpg(bridge.process.pid, signal.SIGINT)
            else:
                bridge.process.terminate()
            await until_refused(bridge.url)
            await finish_upload(one)
            assert await one.read_to_end() == b""
            await finish_upload(other)
        assert await bridge.exit_code() == 0
        assert all(asset.path.read_bytes() == PHOTO for asset in immich.assets)
        stopped = await bridge.said(" stopped ")
        assert stopped.endswith(" INFO stopped unfinished_requests=0")
        assert len(bridge.lines(" stopping ")) == len(bridge.lines(" stopped ")) == 1
        assert bridge.log[-1] == stopped
        assert bridge.lines("ERROR") == []

    async def test_ends_where_nobody_reads_the_log(self, immich: StandIn, start: Start) -> None:
        bridge = await start(immich.url)
        bridge.process._transport.get_pipe_transport(2).close()  # type: ignore[attr-defined]
        for worker in bridge.workers:
            async with bridge.connection_to(worker) as peer:
                await peer.send(request("GET", "/api/something"))  # a line of the log
                await peer.read_answer()
        bridge.process.terminate()
        await bridge.exit_code()

    async def test_kills_who_does_not_hear(self, immich: StandIn, start: Start) -> None:
        bridge = await start(immich.url, SHUTDOWN_GRACE="60s")
        frozen = bridge.workers[1]
        os.kill(frozen, signal.SIGSTOP)
        bridge.process.terminate()
        await bridge.said(" stopping ")
        for _ in range(2):
            bridge.process.terminate()
            await let_time_pass(0.05)  # two signals at once are one
        await bridge.exit_code()
        assert f"process {frozen} ended: SIGKILL" in await bridge.said("worker lost")

    async def test_tells_how_many_did_not_finish(self, immich: StandIn, start: Start) -> None:
        bridge = await start(immich.url, SHUTDOWN_GRACE="200ms")
        first, second = bridge.workers
        async with bridge.connection_to(first) as one, bridge.connection_to(second) as other:
            await begin_upload(one, immich)
            await begin_upload(other, immich, 2)
            bridge.process.terminate()
            assert await bridge.exit_code() == 0
        assert (await bridge.said(" stopped ")).endswith(" unfinished_requests=2")
        assert immich.assets == []

    async def test_hurries_when_told_twice(self, immich: StandIn, start: Start) -> None:
        bridge = await start(immich.url, SHUTDOWN_GRACE="60s")
        first, second = bridge.workers
        async with bridge.connection_to(first) as one, bridge.connection_to(second) as other:
            await begin_upload(one, immich)
            await begin_upload(other, immich, 2)
            bridge.process.terminate()
            await until_refused(bridge.url)
            bridge.process.terminate()
            assert await bridge.exit_code(within=5) == 0
        assert immich.assets == []
        assert (await bridge.said(" stopped ")).endswith(" unfinished_requests=unknown")

    async def test_tells_metrics_until_the_last_has_drained(
        self, immich: StandIn, start: Start
    ) -> None:
        bridge = await start(immich.url, METRICS_ADDR="127.0.0.1:0")
        async with bridge.connection_to(bridge.workers[1]) as peer:
            await begin_upload(peer, immich)
            bridge.process.terminate()
            await until_refused(bridge.url)
            for _ in range(10):  # the one that tells them has nothing else to do
                await let_time_pass(0.02)
                seen = await bridge.scrape()
            assert seen.value("immich_bridge_workers") == 2
            route = "/api/assets/background"
            assert seen.value("immich_bridge_requests_in_flight", route=route) == 1
            await finish_upload(peer)
        assert await bridge.exit_code() == 0

    async def test_does_not_wait_for_one_that_died(self, immich: StandIn, start: Start) -> None:
        bridge = await start(immich.url)
        async with bridge.connection_to(bridge.workers[1]) as peer:
            await begin_upload(peer, immich)
            bridge.process.terminate()
            await until_refused(bridge.url)
            os.kill(bridge.workers[1], signal.SIGKILL)
            assert await bridge.exit_code(within=5) == 0
        assert "SIGKILL" in await bridge.said(" ERROR worker lost worker=1 ")
        await bridge.said(" stopped ")

    async def test_by_the_death_of_the_parent_lets_uploads_finish(
        self, immich: StandIn, start: Start
    ) -> None:
        bridge = await start(immich.url)
        async with bridge.connection_to(bridge.workers[1]) as peer:
            await begin_upload(peer, immich)
            bridge.process.kill()
            await bridge.said("the parent process is gone", times=2)
            await until_refused(bridge.url)
            await finish_upload(peer)
        async with asyncio.timeout(PATIENCE):
            while bridge.is_alive:
                await let_time_pass(0.01)
        assert is_empty(bridge.folder)


class TestADeadWorker:
    async def test_is_replaced_and_those_who_come_meanwhile_are_served(
        self, immich: StandIn, start: Start
    ) -> None:
        bridge = await start(immich.url, METRICS_ADDR="127.0.0.1:0")
        first, second = bridge.workers
        async with bridge.connection_to(first) as peer:
            async with bridge.connection_to(second):
                pass  # so that it has counted something
            before = await bridge.scrape()
            await begin_upload(peer, immich)
            os.kill(second, signal.SIGKILL)
            await bridge.has_workers(lambda workers: workers == [first])
            # Nearly one in two of them comes to a socket whose worker is dead.
            told = await asyncio.gather(*(fetch(bridge.url, "GET", "/health") for _ in range(16)))
            assert [each.status for each in told] == [200] * 16
            await finish_upload(peer)
        replaced = bridge.workers
        assert len(replaced) == 2
        assert replaced[0] == first
        line = await bridge.said(" ERROR ")
        reason = f'reason="worker process {second} ended: SIGKILL"'
        assert line.endswith(f" ERROR worker lost worker=1 {reason}")
        async with bridge.connection_to(replaced[1]) as peer:
            await peer.send(request("GET", "/api/server/ping"))
            assert (await peer.read_answer()).status == 200
        # What it has counted is not lost, or Prometheus would count what the others did twice.
        seen = await bridge.scrape()
        assert seen.value("immich_bridge_workers") == 2
        health = {"route": "/health", "method": "GET", "status": "200"}
        counted = [each.value("immich_bridge_requests_total", **health) for each in (before, seen)]
        assert counted[1] >= counted[0] + 17
        grown = {name: n for name, n in seen.changes(before).items() if "_total" in name}
        assert min(grown.values()) > 0, grown
        assert len(bridge.lines(" listening ")) == len(bridge.lines("ERROR")) == 1

    async def test_that_tells_the_metrics_is_replaced(self, immich: StandIn, start: Start) -> None:
        bridge = await start(immich.url, METRICS_ADDR="127.0.0.1:0")
        os.kill(bridge.workers[0], signal.SIGKILL)
        seen = await bridge.scrape()
        assert seen.value("immich_bridge_workers") == 2

    async def test_whose_heir_cannot_start_is_tried_again_each_second(
        self, immich: StandIn, start: Start, identity: Identity
    ) -> None:
        bridge = await start(immich.url, **tls_settings(identity))
        hidden = identity.key.rename(identity.key.with_suffix(".hidden"))
        first, second = bridge.workers
        os.kill(second, signal.SIGKILL)
        why = f"TLS_KEY_FILE: '{identity.key}' cannot be used: there is no such file"
        lines = [await bridge.said(why, times) for times in (1, 2)]
        assert all(" ERROR worker lost worker=1 " in line for line in lines)
        tried = [datetime.fromisoformat(line.split()[0]) for line in lines]
        assert (tried[1] - tried[0]).total_seconds() > 0.9
        hidden.rename(identity.key)
        again = await bridge.has_workers(lambda workers: len(workers) == 2)
        assert again[0] == first
        async with bridge.connection_to(again[1], ssl=identity.client):
            pass
        bridge.process.terminate()
        assert await bridge.exit_code() == 0


class TestStarting:
    @pytest.mark.parametrize(("running", "late"), [(2, 1), (1, 2)])
    async def test_on_the_port_of_another_server(
        self, immich: StandIn, start: Start, tmp_path: Path, running: int, late: int
    ) -> None:
        bridge = await start(immich.url, WORKERS=str(running))
        address = bridge.url.removeprefix("http://")
        settings = {**BRIDGE_ALONE, "LISTEN_ADDR": address, "WORKERS": str(late)}
        code, lines = await run_to_the_end(tmp_path, **settings)
        assert code == 1
        assert len(lines) == 1
        assert lines[0].startswith(f"immich-bridge: cannot listen on {address}: ")
        assert (await fetch(bridge.url, "GET", "/health")).status == 200

    @pytest.mark.parametrize(
        ("settings", "code", "line"),
        [
            (
                {"TLS_CERT_FILE": "/nonexistent", "TLS_KEY_FILE": "/nonexistent"},
                *(2, "TLS_CERT_FILE: '/nonexistent' cannot be used: there is no such file, "),
            ),
            (
                {"IMMICH_CA_FILE": "/nonexistent"},
                *(2, "IMMICH_CA_FILE: '/nonexistent' cannot be used: there is no such file, "),
            ),
            ({"METRICS_ADDR": "{taken}"}, 1, "METRICS_ADDR: cannot listen on {taken}: "),
            ({"LISTEN_ADDR": "{taken}"}, 1, "cannot listen on {taken}: "),
            ({"TMPDIR": "{long}"}, 1, "cannot listen on {long}"),
        ],
        ids=["key", "ca file", "metrics", "port", "path"],
    )
    async def test_with_what_cannot_be_had(
        self, settings: dict[str, str], code: int, line: str, tmp_path: Path
    ) -> None:
        long = tmp_path / ("x" * 100)
        long.mkdir()
        with (
            socket.create_server(("127.0.0.1", 0)) as taken,
            tempfile.TemporaryDirectory(prefix="w") as short,
        ):
            words = {"taken": f"127.0.0.1:{taken.getsockname()[1]}", "long": str(long)}
            given = {name: value.format(**words) for name, value in settings.items()}
            process = await spawn({"TMPDIR": short, **BRIDGE_ALONE, **given}, "--workers", "3")
            _, written = await asyncio.wait_for(process.communicate(), PATIENCE)
            lines = written.decode().splitlines()
            assert process.returncode == code
            assert len(lines) == 1, lines
            assert lines[0].startswith(f"immich-bridge: {line.format(**words)}")
            assert not Bridge(process, Path(short)).is_alive
            assert is_empty(Path(short))
            assert is_empty(long)

    async def test_ends_when_one_dies_before_all_are_there(self, immich: StandIn) -> None:
        for _ in range(10):  # it may be there before anybody has looked
            with tempfile.TemporaryDirectory(prefix="w") as folder:
                settings = {"TMPDIR": folder, **BRIDGE_ALONE, "IMMICH_SERVER_URL": immich.url}
                process = await spawn(settings, "--workers", "8")
                bridge = Bridge(process, Path(folder))
                await bridge.has_workers(lambda serving: len(serving) > 0)
                process.send_signal(signal.SIGSTOP)
                os.kill(bridge.workers[0], signal.SIGKILL)
                process.send_signal(signal.SIGCONT)
                assert process.stderr is not None
                line = await asyncio.wait_for(process.stderr.readline(), PATIENCE)
                if b" listening " in line:
                    process.terminate()
                rest = await asyncio.wait_for(process.stderr.read(), PATIENCE)
                await process.wait()
                assert not bridge.is_alive
                assert is_empty(bridge.folder)
            if process.returncode == 1:
                break
        assert re.fullmatch(rb"immich-bridge: worker process \d+ ended: SIGKILL\n", line)
        assert rest == b""

    def test_without_a_folder_for_temporary_files(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(tempfile, "tempdir", "/nonexistent")
        with (
            pytest.raises(StartError, match=r"^WORKERS: no folder for temporary files \(TMPDIR\)"),
            workers._private_folder(),
        ):
            pytest.fail("there is one")

    @pytest.mark.parametrize(
        ("settings", "line"),
        [
            ({"BACKUP_ENABLED": "true"}, "WORKERS: 2 cannot be used with the photo backup"),
            ({"IMMICH_SERVER_URL": ""}, "WORKERS: 2 cannot be used without the bridge"),
            ({"WORKERS": "0"}, "WORKERS: '0' cannot be used, expected a number from 1 to 64"),
        ],
        ids=["backup", "no bridge", "none"],
    )
    async def test_with_what_makes_no_sense(
        self, tmp_path: Path, settings: dict[str, str], line: str
    ) -> None:
        code, lines = await run_to_the_end(tmp_path, **{**BRIDGE_ALONE, "WORKERS": "2", **settings})
        assert code == 2
        assert len(lines) == 1
        assert lines[0].startswith(f"immich-bridge: {line}")
        assert is_empty(tmp_path)
