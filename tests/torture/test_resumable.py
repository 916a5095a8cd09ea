"""Uploads that are cut off again and again: each asset is whole and single, or absent."""

import asyncio
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from block import Block
from compiler import compiled
from discarding_upstream import DiscardingUpstream, running_upstream
from process_stats import ProcessStats
from processes import (
    bridge_command,
    clean_environment,
    free_port,
    running_process,
    wait_until_healthy,
)

from debian_tools import program
from front import StartBridge
from immich_bridge.resumable import uploads
from immich_bridge.serve import Server
from immich_standin import StandIn
from raw_upload import eventually, jpeg
from resumable.urlsession import VERSIONS, Cut, UploadTask
from torture.effort import Effort
from wire import Message

MIB: Final = 1 << 20
PROMISE: Final = "13 resumed"
_GROWTH: Final = 24.0
"""MiB by which the memory may grow for one upload, however long and however often it is cut."""
_AT_ONCE: Final = 8
_LARGEST: Final = 5 * MIB
_MOST_CUTS: Final = 6
_NEVER_RESUMED: Final = 0.15
_CUTS_OF_THE_LARGE_ONE: Final = 10


class Phone:
    """One upload, with the misfortune that chance has in mind for it."""

    def __init__(self, number: int, chance: random.Random, url: str) -> None:
        self.name = f"photo {number}"
        self.photo = jpeg(chance.randrange(1000, _LARGEST), chance.randrange(1 << 30))
        self.cuts = [
            Cut(
                chance.randrange(len(self.photo)),
                chance.choice(["rst", "fin", "silent"]),
                deaf=chance.random() < 0.1,
            )
            for _ in range(chance.randint(1, _MOST_CUTS))
        ]
        # Mostly forward, as a train goes.
        if chance.random() < 0.8:
            self.cuts.sort(key=lambda cut: cut.after)
        self.comes_back = chance.random() > _NEVER_RESUMED
        self.task = UploadTask(
            url,
            self.photo,
            ("X-Device-Asset-Id", self.name),
            version=chance.choice(VERSIONS),
            chunked=chance.random() < 0.3,
        )

    async def upload(self) -> Message | None:
        """Upload, or try to and give up."""
        run = self.task.run if self.comes_back else self.task.abandon
        return await run(self.cuts)


@pytest.mark.parametrize("fast_path", ["auto", "off"])
async def test_each_asset_is_whole_and_single_or_absent(
    effort: Effort,
    immich: StandIn,
    start_bridge: StartBridge,
    monkeypatch: pytest.MonkeyPatch,
    fast_path: str,
) -> None:
    # All are one client's, and many are left behind.
    monkeypatch.setattr(uploads, "MAX_UPLOADS_OF_ONE", 1000)
    monkeypatch.setattr(uploads, "MAX_UPLOADS", 1000)
    bridge = await start_bridge(immich.url, FAST_PATH=fast_path)
    chance = effort.chance("resumable", fast_path)
    total = effort.amount(13, 250)
    phones = [Phone(number, chance, bridge.address) for number in range(total)]
    told = await upload_all(effort, phones)
    whole = {phone.name: phone.photo for phone in phones if told[phone.name] == 201}
    assert {told[phone.name] for phone in phones if phone.comes_back} == {201}
    stored: dict[str, bytes] = {}
    for asset in immich.assets:
        name = asset.original_file_name if not asset.fields else asset.fields["deviceAssetId"]
        assert name not in stored
        stored[name] = asset.path.read_bytes()
    assert stored.keys() == whole.keys()
    assert all(stored[name] == photo for name, photo in whole.items())
    resumed = sum(len(phone.task.resumed) for phone in phones)
    assert resumed > total
    await assert_nothing_lingers(bridge, immich, phones)
    cuts = sum(len(phone.cuts) for phone in phones)
    effort.figure(
        PROMISE,
        f"{total} uploads cut {cuts} times, FAST_PATH={fast_path}: resumed {resumed} times, "
        f"{len(stored)} assets whole and single, {total - len(stored)} absent",
    )


async def upload_all(effort: Effort, phones: list[Phone]) -> dict[str, int | None]:
    """Upload some at a time; what each was told in the end."""
    told: dict[str, int | None] = {}
    turn = asyncio.Semaphore(_AT_ONCE)

    async def one(phone: Phone) -> None:
        async with turn:
            answer = await phone.upload()
        told[phone.name] = answer.status if answer is not None else None
        effort.progress("uploads", len(told), len(phones))

    await asyncio.gather(*map(one, phones))
    return told


async def assert_nothing_lingers(bridge: Server, immich: StandIn, phones: list[Phone]) -> None:
    """What was given up is all that is still open, and ends with the server."""
    # Also what a client begins anew that has not heard of it.
    held = sum(phone.task.begun - phone.comes_back for phone in phones)
    await eventually(lambda: immich.open_connections <= held)
    assert await bridge.drain(5) == 0
    await eventually(lambda: immich.open_connections == 0 and not immich.partial_files())
    assert Counter(immich.files()) == Counter(asset.path for asset in immich.assets)


class RepeatedBlock:
    """A file of any size in the bytes that the discarding Immich expects."""

    def __init__(self, block: Block, size: int) -> None:
        self._block = Path(block.path).read_bytes()
        self._size = size

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, span: slice, /) -> bytes:
        start, stop, _ = span.indices(self._size)
        at = start % len(self._block)
        piece = self._block[at : at + stop - start]
        return piece + self._block[: stop - start - len(piece)]


@pytest.fixture(scope="module")
def upstream(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[DiscardingUpstream, Block]]:
    """An Immich that compares every byte with what it has to be, and keeps none."""
    program("cc", "build-essential")
    block = Block()
    try:
        folder = tmp_path_factory.mktemp("native")
        with running_upstream(compiled("upstream", folder), block, verify=True) as upstream:
            yield upstream, block
    finally:
        block.close()


@pytest.mark.parametrize("fast_path", ["auto", "off"])
async def test_a_long_video_costs_no_memory(
    effort: Effort,
    upstream: tuple[DiscardingUpstream, Block],
    tmp_path: Path,
    fast_path: str,
) -> None:
    immich, block = upstream
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    settings = {
        "LISTEN_ADDR": f"127.0.0.1:{port}",
        "IMMICH_SERVER_URL": f"http://127.0.0.1:{immich.port}",
        "BACKUP_ENABLED": "false",
        "FAST_PATH": fast_path,
        "LOG_LEVEL": "warning",
    }
    server = running_process(
        bridge_command("auto"), environment=clean_environment(settings), folder=tmp_path
    )
    with server as process:
        wait_until_healthy("the bridge", process, port)
        await measure(effort, immich, block, url, ProcessStats(process.pid), fast_path)


async def measure(
    effort: Effort,
    immich: DiscardingUpstream,
    block: Block,
    url: str,
    stats: ProcessStats,
    fast_path: str,
) -> None:
    """Send a video that is cut often, and compare what came and what it cost."""
    warm = UploadTask(url, RepeatedBlock(block, 8 * MIB))
    assert (await warm.run([Cut(3 * MIB)])).status == 201
    await asyncio.to_thread(immich.receipts)
    video = RepeatedBlock(block, effort.amount(48 * MIB, 2048 * MIB))
    chance = effort.chance("long video", fast_path)
    ends = sorted(chance.sample(range(len(video)), _CUTS_OF_THE_LARGE_ONE))
    stats.reset_peak_rss()
    before = stats.rss()
    task = UploadTask(url, video)
    told = await task.run([Cut(end, chance.choice(["rst", "fin", "silent"])) for end in ends])
    grown = (stats.peak_rss() - before) / MIB
    assert told.status == 201, told
    received = await asyncio.to_thread(immich.receipts)
    assert (received.uploads, received.file_bytes) == (1, len(video))
    assert received.faults == 0, received.fault
    assert len(task.resumed) == _CUTS_OF_THE_LARGE_ONE
    assert grown < _GROWTH
    effort.figure(
        PROMISE,
        f"one upload of {len(video) // MIB} MiB cut {len(ends)} times, FAST_PATH={fast_path}: "
        f"byte for byte, memory grew by {grown:.1f} MiB",
    )
