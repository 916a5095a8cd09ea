"""A cut connection never makes a truncated asset, and nothing hangs on it."""

import asyncio
import os
import random
from base64 import b64decode
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

from front import StartBridge
from log_capture import written_log
from raw_upload import eventually
from scrape import ON
from torture.cuts_backup import BackupDisk, logged_in, settings_with_a_user
from torture.cuts_bench import (
    Bench,
    Log,
    StartProcess,
    bench_around_a_process,
    descriptors,
    immich_with_something_to_read,
)
from torture.cuts_judge import SIDES, Cut, Sizes, Tally, draw, kinds_in_turn, rehearse, undergo_all
from torture.cuts_requests import (
    BACKUP_KINDS,
    IMMICH_KINDS,
    Kind,
    ask_backup,
    ask_immich,
    photo,
    upload_size,
)
from torture.effort import Effort
from torture.fault_proxy import Fault, FaultProxy, Way

AT_ONCE = 8
STALLED_AT_ONCE = 16
MORE_THAN_BUFFERS = 30_000_000
BREAKS: Sequence[Way] = ("cut", "cut", "reset", "reset", "trickle")
SHORT = {"BODY_IDLE_TIMEOUT": "2s", "UPSTREAM_RESPONSE_TIMEOUT": "2s"}

BACKUP_SIZES = Sizes({"up": 0, "down": 400}, {})
"""Beside the uploads there are their answers, of about that many bytes."""
KindSizes = Mapping[Kind, Sizes]


async def sizes_on_the_wire(bench: Bench) -> dict[Kind, Sizes]:
    """Send one request of each kind unharmed, also to have everything opened that stays open."""
    content = photo(random.Random(0), 1_500_000)
    sizes: dict[Kind, Sizes] = {}
    for kind in IMMICH_KINDS:
        name = kind.replace(" ", "-")
        asks = [ask_immich(kind, f"{name}-{side}", content, bench.stored) for side in SIDES]
        sizes[kind] = await rehearse(bench, *asks)
    return sizes


def cuts(
    bench: Bench, chance: random.Random, ways: Sequence[Way], sizes: KindSizes
) -> Iterator[Cut]:
    """Cuts without end, of every kind in turn."""
    if "stall" in ways:
        # Seldom drawn: an Immich that stops to read more than all buffers on the way hold.
        ask = ask_immich("upload", "overflow", photo(chance, MORE_THAN_BUFFERS), bench.stored)
        yield Cut(ask, "immich", Fault("stall", "up", 1_000_000))
    for number, kind in enumerate(kinds_in_turn(chance, IMMICH_KINDS)):
        content = photo(chance, upload_size(chance))
        ask = ask_immich(kind, f"cut-{number}", content, bench.stored)
        yield draw(chance, ask, ways, sizes[kind])


def assert_nothing_is_left(bench: Bench, tally: Tally) -> None:
    """What came after its cut was judged is whole too, and beside it there is nothing."""
    assert bench.log.unexpected == []
    late = [asset for asset in bench.immich.assets if asset.original_file_name != "download.jpg"]
    for asset in late:
        name = asset.original_file_name.removesuffix(".jpg")
        assert tally.may_arrive.get(name) == b64decode(asset.checksum), asset
    assert bench.immich.files() == sorted(asset.path for asset in bench.immich.assets)
    assert all(request.finished for request in bench.immich.requests)


def told(tally: Tally, at_start: Counter[str]) -> str:
    """The figures of one test."""
    ways = ", ".join(f"{count} {way}s" for way, count in sorted(tally.struck.items()))
    sentence = f"{tally.total} of them happened ({ways}; {tally.trickled} trickles beside)"
    for name, seconds in (("Immich released", tally.released), ("client told", tally.told)):
        if seconds:
            p99 = sorted(seconds)[int(0.99 * (len(seconds) - 1))]
            sentence += f", {name} within {max(seconds):.2f} s (p99 {p99:.2f} s, {len(seconds)})"
    sockets, pipes = at_start["socket"], at_start["pipe"]
    return f"{sentence}; back to {sockets} sockets and {pipes} pipes; 0 truncated assets"


async def run(
    bench: Bench, effort: Effort, name: str, ways: Sequence[Way], *, wanted: int, at_once: int
) -> None:
    """Have `wanted` cuts happen, and look at what is left; keeps the figures."""
    tally = Tally()
    sizes = await sizes_on_the_wire(bench)
    at_start = await bench.settle()
    await undergo_all(
        bench,
        cuts(bench, effort.chance(name), ways, sizes),
        tally,
        wanted=wanted,
        at_once=at_once,
        progress=lambda done: effort.progress(name, done, wanted),
    )
    assert await bench.settle() == at_start
    assert_nothing_is_left(bench, tally)
    effort.figure("4 cuts", f"{name}: {told(tally, at_start)}")


async def test_cuts_and_resets(effort: Effort, start_process: StartProcess, tmp_path: Path) -> None:
    async def cut_off(fast_path: str) -> None:
        folder = tmp_path / fast_path
        async with bench_around_a_process(start_process, folder, FAST_PATH=fast_path) as bench:
            pipes = descriptors(bench.pid)["pipe"]
            name = f"cuts and resets, fast path {fast_path}"
            wanted = effort.amount(18, 650)
            await run(bench, effort, name, BREAKS, wanted=wanted, at_once=AT_ONCE // 2)
            # The kernel did move bytes, and then again it did not.
            assert (bench.most_pipes > pipes) is (fast_path == "auto")

    await asyncio.gather(*map(cut_off, ("auto", "off")))


async def test_stalls(effort: Effort, start_process: StartProcess, tmp_path: Path) -> None:
    async def stall(fast_path: str) -> None:
        settings = {**SHORT, "FAST_PATH": fast_path}
        async with bench_around_a_process(start_process, tmp_path / fast_path, **settings) as bench:
            name = f"stalls, fast path {fast_path}"
            wanted, at_once = effort.amount(5, 150), effort.amount(5, STALLED_AT_ONCE)
            await run(bench, effort, name, ["stall"], wanted=wanted, at_once=at_once)

    # Most of a stall is waiting; the small part leaves out the half with less to go wrong.
    await asyncio.gather(*map(stall, ("auto", "off") if effort.full else ("auto",)))


async def test_one_by_one_in_this_process(
    effort: Effort, start_bridge: StartBridge, tmp_path: Path
) -> None:
    """Here the tasks of the bridge can be counted."""
    async with AsyncExitStack() as stack:
        log = stack.enter_context(written_log())
        immich, stored = await stack.enter_async_context(immich_with_something_to_read(tmp_path))
        behind = await stack.enter_async_context(FaultProxy(immich.url))
        bridge = await start_bridge(behind.url, **ON)
        before = await stack.enter_async_context(FaultProxy(bridge.address))
        assert bridge.metrics_address is not None
        bench = Bench(
            url=bridge.address,
            metrics_url=bridge.metrics_address.removesuffix("/metrics"),
            pid=os.getpid(),
            before=before,
            behind=behind,
            immich=immich,
            stored=stored,
            log=Log(lambda: log.lines),
        )
        tasks = asyncio.all_tasks()
        wanted = effort.amount(12, 200)
        await run(bench, effort, "one by one", BREAKS, wanted=wanted, at_once=1)
        await eventually(lambda: asyncio.all_tasks() <= tasks)
    effort.figure("4 cuts", f"one by one: back to {len(tasks)} tasks")


async def test_uploads_to_the_photo_backup(
    effort: Effort,
    start_process: StartProcess,
    tmp_path: Path,
) -> None:
    name, tally = "photo backup", Tally()
    chance = effort.chance(name)
    wanted = effort.amount(15, 300)
    settings = await settings_with_a_user(tmp_path)
    del settings["IMMICH_SERVER_URL"]  # the bench has one
    async with bench_around_a_process(start_process, tmp_path / "immich", **settings) as bench:
        api = await logged_in(bench.url)
        disk = BackupDisk(api, settings)
        local_ids = [f"cut-{number}" for number in range(2 * wanted + 20)]
        await disk.prepare(local_ids)

        def cuts() -> Iterator[Cut]:
            kinds = kinds_in_turn(chance, [*BACKUP_KINDS])
            for local_id, kind in zip(local_ids, kinds, strict=False):
                content = photo(chance, upload_size(chance))
                ask = ask_backup(kind, local_id, content, api.token)
                yield draw(chance, ask, BREAKS, BACKUP_SIZES)

        at_start = await bench.settle()
        await undergo_all(
            bench,
            cuts(),
            tally,
            wanted=wanted,
            at_once=AT_ONCE,
            arrived=disk.arrived,
            progress=lambda done: effort.progress(name, done, wanted),
        )
        assert await bench.settle() == at_start
        assert_nothing_is_left(bench, tally)
        disk.check()
    effort.figure("4 cuts", f"{name}: {told(tally, at_start)}")
