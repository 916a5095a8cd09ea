"""Uploads in pieces outlive the server, and a full disk: what it says is there, is there."""

import asyncio
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from backup_uploads import FOLDER, index, on_disk, pattern
from backup_wing import (
    PASSWORD,
    USERNAME,
    Api,
    ServerProcess,
    StartBackup,
    StartBackupProcess,
    rows,
)
from front import let_time_pass
from held_uploads import PiecewiseUpload, durable, held, part_file, synced
from immich_bridge.backup.accounts import User
from immich_bridge.backup.held_file import HOLD_SECONDS, HeldFile, HeldRecord, held_files
from immich_bridge.backup.storage import Storage
from immich_bridge.errors import InternalError
from mounts import filled, mounted
from raw_upload import eventually
from resumable.urlsession import creation
from wire import PATIENCE, connect

JPG = f"{FOLDER}/IMG_0001.jpg"
MIB = 1024 * 1024
PHOTO = pattern(30_000_000)
SENT = 20_000_000
SMALL = pattern(2_500_001)
HALF = 1_300_000


async def logged_in(server: ServerProcess) -> Api:
    api = Api(server.url)
    api.token = (await api.login(USERNAME, PASSWORD)).json["token"]
    return api


@pytest.fixture
async def server(start_backup_process: StartBackupProcess, user: User) -> ServerProcess:
    """A server as a process of its own."""
    return await start_backup_process(SHUTDOWN_GRACE="100ms")


@pytest.fixture
async def upload(server: ServerProcess) -> PiecewiseUpload:
    """A large upload to `server` that has not begun."""
    api = await logged_in(server)
    await index(api, "IMG_1234")
    return PiecewiseUpload(api, PHOTO)


async def killed(server: ServerProcess) -> None:
    server.process.kill()
    await asyncio.wait_for(server.process.wait(), PATIENCE)


def assert_stored(storage_dir: Path, db_path: Path, photo: bytes = PHOTO) -> None:
    assert (on_disk(storage_dir) == {JPG: photo}) is True
    assert [row["size"] for row in rows(db_path, "SELECT * FROM files")] == [len(photo)]


class TestTheServerEnds:
    async def test_by_sigterm(
        self,
        server: ServerProcess,
        upload: PiecewiseUpload,
        start_backup_process: StartBackupProcess,
        storage_dir: Path,
        db_path: Path,
    ) -> None:
        async with upload.begun(sent=SENT) as peer:
            await eventually(lambda: synced(storage_dir) > 0)
            server.process.terminate()
            # No answer: that is what makes a client go on.
            assert await peer.read_to_end() == b""
            assert await asyncio.wait_for(server.process.wait(), PATIENCE) == 0
        path = part_file(storage_dir)
        assert path.stat().st_size == durable(path)
        again = await start_backup_process()
        upload.api.url = again.url
        assert (await upload.state()).offset == durable(path)
        assert (await upload.finish()).json["size"] == len(PHOTO)
        assert_stored(storage_dir, db_path)
        assert any("found unfinished uploads uploads=1" in line for line in again.log)

    async def test_again_and_again_by_sigkill(
        self,
        server: ServerProcess,
        upload: PiecewiseUpload,
        start_backup_process: StartBackupProcess,
        storage_dir: Path,
        db_path: Path,
    ) -> None:
        async with upload.begun(sent=SENT):
            await eventually(lambda: synced(storage_dir) > 0)
            await killed(server)
        for life in range(3):
            known = durable(part_file(storage_dir))
            server = await start_backup_process()
            upload.api.url = server.url
            assert (await upload.state()).offset == known > 0
            async with upload.resumed(known, known + 1_500_000 * life):
                await killed(server)
            assert durable(part_file(storage_dir)) >= known
        server = await start_backup_process()
        upload.api.url = server.url
        told = await upload.finish()
        assert told.json["size"] == len(PHOTO)
        assert_stored(storage_dir, db_path)

    @pytest.mark.parametrize("damage", ["garbled", "torn", "holes"])
    async def test_by_a_power_cut(
        self,
        server: ServerProcess,
        upload: PiecewiseUpload,
        start_backup_process: StartBackupProcess,
        storage_dir: Path,
        db_path: Path,
        damage: str,
    ) -> None:
        async with upload.begun(sent=SENT):
            await eventually(lambda: synced(storage_dir) > 0)
            await killed(server)
        path = part_file(storage_dir)
        known = durable(path)
        assert known >= 8 * MIB
        # Whatever is not synced may have come to nothing, or to anything.
        with path.open("r+b") as file:
            file.truncate(known)
            file.seek(known)
            if damage == "garbled":
                file.write(random.Random(1).randbytes(3_000_000))
            elif damage == "holes":
                file.truncate(len(PHOTO) + 5)
        upload.api.url = (await start_backup_process()).url
        assert (await upload.state()).offset == known
        assert (await upload.finish()).json["size"] == len(PHOTO)
        assert_stored(storage_dir, db_path)

    async def test_between_the_photo_and_the_end_of_its_upload(
        self,
        server: ServerProcess,
        upload: PiecewiseUpload,
        start_backup_process: StartBackupProcess,
        storage_dir: Path,
        db_path: Path,
    ) -> None:
        upload.file = SMALL
        await upload.cut_off(sent=HALF)
        part, record = part_file(storage_dir), next((storage_dir / "photo/.held").glob("*.json"))
        saved = record.read_bytes()
        assert (await upload.finish()).status == 200
        await killed(server)
        # As a kill leaves it that comes just then: the photo is in its place under both names.
        record.write_bytes(saved)
        stem = part.name.partition("-")[0]
        os.link(storage_dir / JPG, part.with_name(f"{stem}-{len(SMALL)}.part"))
        upload.api.url = (await start_backup_process()).url
        assert (await upload.ask()).status == 404
        assert_stored(storage_dir, db_path, SMALL)


async def test_a_part_file_that_lost_synced_bytes_is_given_up(
    start_backup: StartBackup, api: Api, storage_dir: Path
) -> None:
    await index(api, "IMG_1234")
    upload = PiecewiseUpload(api, SMALL)
    async with upload.begun(part=HALF) as peer:
        assert (await peer.read_answer()).status == 201
    os.truncate(part_file(storage_dir), HALF - 1)
    async with upload.resumed(HALF) as peer:
        assert (await peer.read_answer()).status == 404
    assert (await upload.ask()).status == 404
    assert JPG not in on_disk(storage_dir)


async def test_a_second_server_leaves_the_uploads_of_the_first_alone(
    start_backup: StartBackup, api: Api, storage_dir: Path, db_path: Path
) -> None:
    await index(api, "IMG_1234")
    upload = PiecewiseUpload(api, SMALL)
    await upload.cut_off(sent=HALF)
    second = await start_backup()
    first, upload.api = upload.api, Api(second.address, api.token)
    assert (await upload.ask()).status == 404
    upload.api = first
    assert (await upload.finish()).status == 200
    assert_stored(storage_dir, db_path, SMALL)


async def test_uploads_that_nobody_went_on_with_for_a_day_are_removed(
    start_backup_process: StartBackupProcess, user: User, storage_dir: Path
) -> None:
    server = await start_backup_process()
    api = await logged_in(server)
    await index(api, "old", "older")
    uploads = [PiecewiseUpload(api, SMALL, local_id=name) for name in ("old", "older")]
    ages: dict[str, float] = {}
    for upload, age in zip(uploads, (HOLD_SECONDS - 600, HOLD_SECONDS + 600), strict=True):
        before = held(storage_dir)
        await upload.cut_off(sent=HALF)
        ages |= dict.fromkeys(held(storage_dir) - before, age)
    await killed(server)
    assert len(ages) == 4
    for name, age in ages.items():
        path = storage_dir / "photo/.held" / name
        written = path.stat().st_mtime - age
        os.utime(path, (written, written))
    server = await start_backup_process(RESUMABLE_HOLD="200ms")  # also how often is looked
    await eventually(lambda: len(held(storage_dir)) == 2)
    await eventually(lambda: any("upload expired" in line for line in server.log))
    api.url = server.url
    assert (await uploads[1].ask()).status == 404
    await let_time_pass(0.2)
    assert (await uploads[0].finish()).status == 200


class TestFullDisk:
    @pytest.fixture
    def disk(self, storage_dir: Path) -> Iterator[Path]:
        """The storage folder on a disk of 4 MiB."""
        storage_dir.mkdir(parents=True)
        mounted("-t", "tmpfs", "-o", "size=4m,nr_inodes=64", "tmpfs", str(storage_dir))
        yield storage_dir
        subprocess.run(["umount", "--lazy", str(storage_dir)], check=True)

    async def test_what_found_room_is_kept(self, disk: Path, api: Api, db_path: Path) -> None:
        await index(api, "IMG_1234")
        photo = pattern(6 * MIB)
        upload = PiecewiseUpload(api, photo)
        async with upload.begun() as peer:
            assert (await peer.read_answer()).status == 507
        offset = (await upload.state()).offset
        assert 3 * MIB < offset < 4 * MIB
        async with upload.resumed(offset) as peer:
            assert (await peer.read_answer()).status == 507
        mounted("-o", "remount,size=16m", str(disk))
        assert (await upload.state()).offset >= offset
        assert (await upload.finish()).json["size"] == len(photo)
        assert_stored(disk, db_path, photo)

    async def test_an_upload_that_cannot_begin(self, disk: Path, api: Api) -> None:
        await index(api, "IMG_1234")
        filler = filled(disk)
        upload = PiecewiseUpload(api, SMALL)
        async with connect(api.url) as peer:
            await peer.send(creation(len(SMALL), upload.key, route=upload.target))
            told = await peer.read_answer()
        assert (told.status, told.interim) == (507, [])
        filler.unlink()
        assert on_disk(disk) == {}

    async def test_a_photo_that_finds_no_place_keeps_its_bytes(
        self, disk: Path, api: Api, db_path: Path
    ) -> None:
        await index(api, "IMG_1234")
        upload = PiecewiseUpload(api, SMALL)
        async with upload.begun(part=HALF) as peer:
            assert (await peer.read_answer()).status == 201
        fillers = []
        with suppress(OSError):
            for number in range(64):
                filler = disk / f"filler{number}"
                filler.touch()
                fillers.append(filler)
        told = await upload.finish()
        assert told.error == (507, "insufficient_storage", "the storage is full")
        state = await upload.state()
        assert (state.offset, state.complete) == (len(SMALL), False)
        for filler in fillers:
            filler.unlink()
        assert (await upload.finish()).json["size"] == len(SMALL)
        assert_stored(disk, db_path, SMALL)


class TestSyncs:
    @pytest.fixture
    def storage(self, storage_dir: Path) -> Iterator[Storage]:
        storage = Storage(storage_dir)
        storage.prepare()
        yield storage
        storage.close()

    async def test_bytes_are_synced_before_the_name_that_counts_them(
        self, storage: Storage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        file = HeldFile(storage, "a name", HeldRecord(1, "IMG_1234", "jpg", None, []))
        done: list[tuple[str, int]] = []
        fsync, rename = os.fsync, Path.rename

        def recorded_fsync(descriptor: int) -> None:
            path = Path(f"/proc/self/fd/{descriptor}").readlink()
            size = path.stat().st_size if path.is_file() else 0
            done.append((f"fsync {path.suffix or path.name}", size))
            fsync(descriptor)

        def recorded_rename(path: Path, target: Path) -> Path:
            done.append(("rename", durable(target)))
            return rename(path, target)

        await file.create()
        monkeypatch.setattr(os, "fsync", recorded_fsync)
        monkeypatch.setattr(Path, "rename", recorded_rename)
        await file.append(Pieces(*[bytes(MIB)] * 9))
        assert done == [
            step
            for size in (8 * MIB, 9 * MIB)
            for step in (("fsync .part", size), ("rename", size), ("fsync .held", 0))
        ]

    async def test_what_was_not_synced_does_not_count(
        self, storage: Storage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        record = HeldRecord(1, "IMG_1234", "jpg", None, [])
        file = HeldFile(storage, "a name", record)
        await file.create()
        await file.append(Pieces(b"first"))

        fsync, failures = os.fsync, [OSError(5, "Input/output error")]

        def fail_once(descriptor: int) -> None:
            # The kernel tells of lost bytes once, and takes them for written then.
            if failures:
                raise failures.pop()
            fsync(descriptor)

        monkeypatch.setattr(os, "fsync", fail_once)
        with pytest.raises(InternalError):
            await file.append(Pieces(*[bytes(MIB)] * 9))
        assert file.size == 5
        [found], rest = held_files(storage)
        assert (found.name, found.record, found.size, rest) == ("a name", record, 5, [])
        await file.append(Pieces(b" second"))
        assert file.path.read_bytes() == b"first second"


class Pieces:
    """A source of the bytes that it is given."""

    def __init__(self, *pieces: bytes) -> None:
        self._pieces = [*pieces, b""]

    async def read(self) -> bytes:
        return self._pieces.pop(0)


class TestStorageCheck:
    async def check(self, settings: dict[str, str], *options: str) -> tuple[int | None, list[str]]:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "immich_bridge", "storage", "check", *options),
            env={"PATH": os.environ["PATH"], **settings},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        output, _ = await asyncio.wait_for(process.communicate(), PATIENCE)
        return process.returncode, output.decode().splitlines()

    async def test_counts_what_is_unfinished_and_removes_what_nobody_goes_on_with(
        self, api: Api, backup_settings: dict[str, str], storage_dir: Path
    ) -> None:
        names = ["kept", "kept too", "expired"]
        await index(api, *names)
        uploads = [PiecewiseUpload(api, SMALL, local_id=name) for name in names]
        for upload in uploads:
            async with upload.begun(part=HALF) as peer:
                assert (await peer.read_answer()).status == 201
            if upload is uploads[1]:
                left = held(storage_dir)
                assert await self.check(backup_settings) == (
                    0,
                    ["unfinished uploads: 2 (2.5 MB)", "everything is in its place"],
                )
        folder = storage_dir / "photo/.held"
        long_ago = time.time() - HOLD_SECONDS - 60
        old = [folder / name for name in held(storage_dir) if name not in left]
        stray = [folder / f"{'0' * 64}-5.part", folder / f"{'1' * 64}.json"]
        for path in stray:
            path.write_bytes(b"12345")
        for path in old:
            os.utime(path, (long_ago, long_ago))
        # A stray file that is new may be of an upload that is just beginning.
        os.utime(stray[0], (long_ago, long_ago))
        code, told = await self.check(backup_settings)
        assert (code, "unfinished uploads: 3 (3.7 MB)" in told) == (1, True)
        assert sum(line.startswith("left-over temporary file: ") for line in told) == 4
        code, told = await self.check(backup_settings, "--repair")
        assert code == 1  # one is left
        assert held(storage_dir) == left | {stray[1].name}
        os.utime(stray[1], (long_ago, long_ago))
        assert (await self.check(backup_settings, "--repair"))[0] == 0
        assert held(storage_dir) == left
        for upload in uploads[:2]:
            assert (await upload.finish()).status == 200
        assert await self.check(backup_settings) == (0, ["everything is in its place"])
