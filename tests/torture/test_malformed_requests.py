"""Malformed HTTP is refused cheaply, and means the same to the bridge as to Immich behind it.

Thousands of changed requests go through a bridge to Node's own parser, most of them between good
ones on the same connection. A reading of the bytes by the letter of RFC 9112 says what they may
mean; what was answered, what Node saw and what was logged must agree with it.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Final

import pytest

from backup_wing import PASSWORD, USERNAME, Api, photo, settings_in
from front import StartBridge
from immich_bridge.backup.accounts import Accounts
from immich_bridge.backup.database import Database
from node_tools import INSTALL_SECONDS, missing_reason
from raw_upload import eventually
from torture.effort import Effort
from torture.node_upstream import NodeUpstream
from torture.request_corpus import TO_IMMICH, Template, conversation, to_backup
from torture.request_runner import Runner, StartProcess
from wire import connect, request

pytestmark = pytest.mark.timeout(INSTALL_SECONDS + 60)

_PROMISE: Final = "5 malformed requests"
_ROUND: Final = 2500
"""Conversations between two looks at everything: the bridge idles while it is looked at."""
_MOST_GROWTH: Final = 32 * 1024 * 1024
"""Bytes; what an allocator keeps of 64 connections, none of them with more than 64 KiB."""
_REFUSED_BY_NODE: Final = {"HPE_HEADER_OVERFLOW", "HPE_INVALID_EOF_STATE"}
"""Heads of more than the 16 KiB that Node takes, and bodies that were cut off."""


@pytest.fixture
async def node() -> AsyncIterator[NodeUpstream]:
    """Node in the place of Immich."""
    if (reason := missing_reason()) is not None:
        pytest.skip(reason)
    async with NodeUpstream() as upstream:
        yield upstream


class _Bench:
    """A runner, and how often it ran."""

    def __init__(self, runner: Runner, effort: Effort, pid: int) -> None:
        self._runner = runner
        self._effort = effort
        self._process = Path(f"/proc/{pid}")

    async def try_all(self, what: str, total: int, templates: Sequence[Template]) -> None:
        """Have `total` conversations; fails with the first findings, each with its bytes."""
        began = time.monotonic()
        start: tuple[int, int] | None = None
        # Two at least: what the first one leaves is what the last one is compared with.
        size = min(_ROUND, -(-total // 2))
        for first in range(0, total, size):
            numbers = range(first, min(total, first + size))
            findings = await self._runner.run(
                conversation(n, self._effort.chance(what, n), templates) for n in numbers
            )
            shown = "\n".join(map(str, findings[:5]))
            assert not findings, f"seed {self._effort.seed}, {len(findings)} findings:\n{shown}"
            assert self._runner.strange_lines == []
            assert set(self._runner.refused) <= _REFUSED_BY_NODE, self._runner.refused
            start = start or (self._descriptors(), self._memory())
            self._effort.progress(what, numbers.stop, total)
        assert start is not None
        descriptors, memory = start
        await eventually(lambda: self._descriptors() <= descriptors)
        growth = self._memory() - memory
        assert growth <= _MOST_GROWTH
        seconds = time.monotonic() - began
        statuses = ", ".join(f"{n} x {s}" for s, n in sorted(self._runner.statuses.items()))
        self._effort.figure(
            _PROMISE,
            f"{total} {what} ({total / seconds:.0f}/s, {self._runner.seen} requests seen by Node), "
            f"0 findings; answers {statuses}; memory grew by {growth / 2**20:.1f} MiB, "
            f"descriptors back to {descriptors}",
        )

    def _descriptors(self) -> int:
        return len(list((self._process / "fd").iterdir()))

    def _memory(self) -> int:
        """Bytes that are resident."""
        lines = (self._process / "status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))


async def test_mean_the_same_to_node(
    node: NodeUpstream, start_process: StartProcess, effort: Effort
) -> None:
    bridge = await start_process(IMMICH_SERVER_URL=node.url)
    bench = _Bench(Runner(bridge, node), effort, bridge.process.pid)
    await bench.try_all("requests to Immich", effort.amount(700, 45_000), TO_IMMICH)


async def test_to_the_photo_backup_neither_hurt_it_nor_reach_node(
    node: NodeUpstream, start_process: StartProcess, effort: Effort, tmp_path: Path
) -> None:
    settings = settings_in(tmp_path) | {"IMMICH_SERVER_URL": node.url}
    database = Database(Path(settings["DB_PATH"]))
    await database.open()
    accounts = Accounts(database)
    await accounts.create(USERNAME, PASSWORD)
    accounts.close()
    await database.close()
    bridge = await start_process(**settings)
    token = (await Api(bridge.url).login(USERNAME, PASSWORD)).json["token"]
    assert (await Api(bridge.url, token).index("2025-12-10", [photo("a")])).status == 200
    runner = Runner(bridge, node)
    bench = _Bench(runner, effort, bridge.process.pid)
    templates = to_backup(token)
    await bench.try_all("requests to the photo backup", effort.amount(150, 5_000), templates)
    stored = [path for path in (tmp_path / "storage").rglob("*") if path.is_file()]
    assert [path.name for path in stored] == ["IMG_0001.jpg"]


class TestFaultsThatWereFound:
    """Each with the fewest bytes that show it."""

    async def test_a_trailer_is_no_field_of_the_next_request(
        self, node: NodeUpstream, start_bridge: StartBridge
    ) -> None:
        bridge = await start_bridge(node.url)
        chunked = b"POST /first HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
        body = b"1\r\na\r\n0\r\nAuthorization: Bearer evil\r\n\r\n"
        for together in (True, False):
            async with connect(bridge.address) as peer:
                if together:
                    await peer.send(chunked + body + request("GET", "/second"))
                    assert (await peer.read_answer()).header("Connection") == "close"
                else:
                    await peer.send(chunked + body)
                    assert (await peer.read_answer()).header("Connection") is None
                    await peer.send(request("GET", "/second"))
                    assert (await peer.read_answer()).status == 200
        await eventually(lambda: len(node.seen) == 3)
        assert [one.target for one in node.seen] == [b"/first", b"/first", b"/second"]
        assert not any(name == b"Authorization" for one in node.seen for name, _ in one.headers)

    async def test_what_follows_an_unknown_upgrade_is_not_read_from_its_middle(
        self, node: NodeUpstream, start_bridge: StartBridge
    ) -> None:
        bridge = await start_bridge(node.url)
        fields = ("Upgrade", "h2c"), ("Connection", "Upgrade")
        held_back = request("POST", "/held-back", ("Content-Length", "300"))
        async with connect(bridge.address) as peer:
            await peer.send(request("GET", "/first", *fields) + held_back)
            assert (await peer.read_answer()).header("Connection") == "close"
            await peer.send(request("GET", "/smuggled"))
            assert await peer.read_to_end() == b""
        await node.quiet(10)
        assert [one.target for one in node.seen] == [b"/first"]

    async def test_a_body_that_breaks_before_it_is_looked_at_is_refused_at_once(
        self, node: NodeUpstream, start_process: StartProcess
    ) -> None:
        bridge = await start_process(IMMICH_SERVER_URL=node.url)
        head = request("PUT", "/first", ("Transfer-Encoding", "chunked"))
        for _ in range(40):  # both pieces have to be there before the bridge turns to the first
            async with connect(bridge.url) as peer:
                for piece in (head + b"1\r\na", b"\r\n0\r\nX: a\rb\r\n\r\n"):
                    peer.writer.write(piece)
                    await asyncio.sleep(0)
                assert (await peer.read_answer()).status == 400

    async def test_are_refused(self, node: NodeUpstream, start_bridge: StartBridge) -> None:
        bridge = await start_bridge(node.url)
        for raw in (
            b"GET /a HTTP/2.0\r\nHost: h\r\n\r\n",
            b"GET /a HTTP/0.9\r\nHost: h\r\n\r\n",
            b"GET /a\r\nHost: h\r\n\r\n",
            b"POST /a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: \r\n\r\n",
            b"GET /a HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Transfer-Encoding: chunked\t\r\n\r\n0\r\n\r\n",
        ):
            async with connect(bridge.address) as peer:
                await peer.send(raw)
                told = await peer.read_answer()
                assert told.first_line == b"HTTP/1.1 400 Bad Request"
                assert told.header("Connection") == "close"
                assert await peer.read_to_end() == b""
        assert node.seen == []
