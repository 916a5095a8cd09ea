"""SIGTERM under load loses nothing that was acknowledged, and ends within the grace."""

import asyncio
import random
import sys
from base64 import b64decode
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha1
from pathlib import Path

from backup_uploads import FOLDER, index
from backup_wing import rows
from immich_standin import StandIn
from raw_upload import eventually
from torture.cuts_backup import logged_in, settings_with_a_user
from torture.cuts_bench import (
    BridgeProcess,
    StartProcess,
    immich_with_something_to_read,
)
from torture.cuts_load import Load, Upload
from torture.cuts_requests import Stored
from torture.effort import Effort
from wire import PATIENCE, Message, fetch

PATIENT = 20.0
HURRIED = 0.7
"""Seconds of grace: enough for every upload that has an end, and not enough for the others."""
HURRIED_EVERY = 5
AT_ONCE = 3
"""Servers, each with folders and an Immich of its own: a round waits more than it works."""
PHOTOS = 400
"""Indexed for each round; no round comes near."""


@dataclass
class Totals:
    """What came of all rounds."""

    acknowledged: int = 0
    finished: int = 0
    """Under way when the signal came, and acknowledged after it."""
    broken_off: int = 0
    sockets: int = 0
    longest_drain: float = 0.0
    longest_hurried: float = 0.0


async def test_sigterm_under_load(
    effort: Effort, start_process: StartProcess, tmp_path: Path
) -> None:
    rounds = effort.amount(3, 50)
    left = iter(range(rounds))
    totals = Totals()

    async def stop_in_turn(folder: Path) -> None:
        settings = await settings_with_a_user(folder)
        async with immich_with_something_to_read(folder / "immich") as (immich, stored):
            for number in left:
                grace = HURRIED if number % HURRIED_EVERY == HURRIED_EVERY // 2 else PATIENT
                chance = effort.chance("shutdown", number)
                shutdown = Shutdown(settings, immich, stored["download"], chance, grace)
                await shutdown.run(start_process, number, totals)
                effort.progress("SIGTERMs", number + 1, rounds)
        assert await storage_check(settings) == 0

    async with asyncio.TaskGroup() as group:
        for number in range(AT_ONCE):
            group.create_task(stop_in_turn(tmp_path / f"{number}"))
    assert totals.finished > 0
    effort.figure(
        "11 shutdown",
        f"{rounds} SIGTERMs, {totals.acknowledged} uploads acknowledged, {totals.finished} of them "
        f"under way when the signal came, 0 lost; longest drain {totals.longest_drain:.2f} s of a "
        f"grace of {PATIENT:g} s, {totals.longest_hurried:.2f} s of {HURRIED:g} s where uploads "
        f"outlive it; {totals.broken_off} answers broken off, {totals.sockets} WebSockets closed",
    )


class Shutdown:
    """One life of a bridge with both wings, from its start to its end under load."""

    def __init__(
        self,
        settings: Mapping[str, str],
        immich: StandIn,
        download: Stored,
        chance: random.Random,
        grace: float,
    ) -> None:
        self._settings = {**settings, "IMMICH_SERVER_URL": immich.url}
        self._storage_dir = Path(settings["STORAGE_DIR"])
        self._immich = immich
        self._download = download
        self._chance = chance
        self._grace = grace

    async def run(self, start_process: StartProcess, number: int, totals: Totals) -> None:
        """Start, load, stop, and look at what is left."""
        bridge = await start_process(SHUTDOWN_GRACE=f"{self._grace:g}s", **self._settings)
        assert self._temporary_files() == []
        api = await logged_in(bridge.url)
        local_ids = [f"{number}-{photo}" for photo in range(PHOTOS)]
        filenames = await index(api, *local_ids)
        load = Load(
            url=bridge.url,
            token=api.token,
            chance=self._chance,
            local_ids=iter(local_ids),
            download=self._download,
            endless=self._grace == HURRIED,
        )
        under_way, seconds = await self._stop_under(load, bridge)
        self._check_log(bridge)
        await self._check_immich(load)
        self._check_disk(load, dict(zip(local_ids, filenames, strict=True)))
        if self._grace == PATIENT:
            assert all(upload.acknowledged for upload in under_way), under_way
            totals.longest_drain = max(totals.longest_drain, seconds)
        else:
            totals.longest_hurried = max(totals.longest_hurried, seconds)
        totals.acknowledged += len(load.acknowledged)
        totals.finished += sum(upload.acknowledged for upload in under_way)
        totals.broken_off += load.broken_off
        totals.sockets += load.sockets_ended

    async def _stop_under(self, load: Load, bridge: BridgeProcess) -> tuple[list[Upload], float]:
        """Terminate at a random moment; what was under way then, and how long the end took."""
        loop = asyncio.get_running_loop()
        stopped: asyncio.Future[tuple[list[Upload], float]] = loop.create_future()

        def stop() -> None:
            bridge.process.terminate()
            stopped.set_result((load.under_way, loop.time()))

        running = asyncio.create_task(load.run())
        try:
            await eventually(lambda: load.is_going or running.done())
            assert (await fetch(bridge.url, "GET", "/ready")).status == 200
            loop.call_later(self._chance.uniform(0.0, 0.4), stop)
            under_way, at = await stopped
            await eventually(lambda: any(" stopping " in line for line in bridge.log))
            answer = await _ready(bridge.url)
            assert answer is None or answer.status == 503, answer
            # Nothing here depends on how busy this machine is but the allowance.
            code = await asyncio.wait_for(bridge.process.wait(), self._grace + PATIENCE)
            seconds = loop.time() - at
            assert code == 0
            await asyncio.wait_for(running, PATIENCE)
        finally:
            running.cancel()
        return under_way, seconds

    def _check_log(self, bridge: BridgeProcess) -> None:
        assert " stopped unfinished_requests=" in bridge.log[-1]
        left = int(bridge.log[-1].rpartition("=")[2])
        assert (left == 0) is (self._grace == PATIENT), bridge.log[-1]
        assert not [line for line in bridge.log if "Traceback" in line or " ERROR " in line]

    async def _check_immich(self, load: Load) -> None:
        """Every asset is whole, and every acknowledged upload is one; there is nothing else."""
        await eventually(lambda: not self._immich.partial_files())
        sent = {f"{each.name}.jpg": each for each in load.uploads if each.route is None}
        made = [asset for asset in self._immich.assets if asset.original_file_name in sent]
        for asset in made:
            assert b64decode(asset.checksum) == sent[asset.original_file_name].sha1
            asset.path.unlink()
            self._immich.assets.remove(asset)
        names = [asset.original_file_name for asset in made]
        assert len(names) == len(set(names))
        lost = {name for name, upload in sent.items() if upload.acknowledged} - set(names)
        assert not lost
        assert self._immich.files() == [asset.path for asset in self._immich.assets]
        self._immich.requests.clear()

    def _check_disk(self, load: Load, filenames: Mapping[str, str]) -> None:
        """Every photo is whole and has its row, and every acknowledged upload is a photo."""
        assert self._temporary_files() == []
        stored = rows(self._settings["DB_PATH"], "SELECT * FROM files")
        sizes = {row["local_id"]: row["size"] for row in stored}
        for upload in load.uploads:
            if upload.route is None:
                continue
            path = self._storage_dir / FOLDER / filenames[upload.name]
            there = path.exists()
            assert there or not upload.acknowledged, f"lost: {upload}"
            assert sizes.get(upload.name) == (upload.size if there else None), upload
            if there:
                digest = sha1(path.read_bytes(), usedforsecurity=False).digest()
                assert digest == upload.sha1, f"not whole: {upload}"

    def _temporary_files(self) -> list[Path]:
        return [*self._storage_dir.rglob(".upload-*")]


async def _ready(url: str) -> Message | None:
    """The answer to `GET /ready`; None when nobody answers."""
    try:
        return await fetch(url, "GET", "/ready")
    except (ConnectionError, asyncio.IncompleteReadError):
        return None


async def storage_check(settings: Mapping[str, str]) -> int | None:
    """The exit code of `storage check`: 0 when there is nothing to find."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "immich_bridge", "storage", "check"),
        env=dict(settings),
        stdout=asyncio.subprocess.DEVNULL,
    )
    return await asyncio.wait_for(process.wait(), PATIENCE)
