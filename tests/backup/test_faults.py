"""What can go wrong around an upload, and that it loses nothing, tears nothing, leaves nothing."""

import asyncio
import random
import signal
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from backup_uploads import (
    DAY,
    FOLDER,
    ROUTES,
    MemoryGrowth,
    Route,
    ServerProcess,
    StartServerProcess,
    answer_to,
    begun,
    index,
    on_disk,
    pattern,
    upload,
    upload_request,
)
from backup_wing import Answer, Api, photo, rows
from debian_tools import INSTALL_SECONDS
from folder_watch import watched
from immich_bridge.backup.accounts import User
from immich_bridge.backup.database import Database
from immich_bridge.backup.integrity import Integrity
from immich_bridge.backup.storage import Storage
from immich_bridge.config import Config
from immich_bridge.serve import Server, running_server
from log_capture import written_log
from mounts import filled, mounted
from tracing import traced
from wire import PATIENCE, connect

StartBackup = Callable[..., Awaitable[Server]]

JPG = f"{FOLDER}/IMG_0001.jpg"
MIB = 1024 * 1024
OLD = pattern(50_000, 1)


def stored_sizes(db_path: Path) -> dict[str, int]:
    """Size of each stored file, by local id."""
    return {row["local_id"]: row["size"] for row in rows(db_path, "SELECT * FROM files")}


async def logged_in(server: ServerProcess) -> Api:
    api = Api(server.url)
    api.token = (await api.login("admin", "SecurePassword123")).json["token"]
    return api


async def killed(server: ServerProcess) -> None:
    server.process.kill()
    await asyncio.wait_for(server.process.wait(), PATIENCE)


@contextmanager
def locked(db_path: Path) -> Iterator[None]:
    """Keep everybody from writing to the database."""
    with closing(sqlite3.connect(db_path, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield
        finally:
            connection.execute("ROLLBACK")


@pytest.mark.parametrize("route", ROUTES)
class TestClientGone:
    @pytest.mark.parametrize("end", ["FIN", "RST"])
    async def test_in_mid_upload(
        self, route: Route, end: str, api: Api, storage_dir: Path, db_path: Path
    ) -> None:
        await index(api, "IMG_1234", "new")
        await upload(api, "raw", OLD)
        content = pattern(3_000_000, 2)
        with written_log() as log:
            for local_id in ("IMG_1234", "new"):
                length = len(upload_request(route, api.token, content, local_id=local_id)[1])
                for sent in (0, 1, 1000, 1_600_000, length - 60, length - 1):
                    request_id = f"{local_id}-{sent}"
                    header = ("X-Request-Id", request_id)
                    async with begun(
                        api, route, content, header, sent=sent, local_id=local_id
                    ) as peer:
                        if end == "RST":
                            peer.reset()
                    line = await log.wait_for(f"request_id={request_id}")
                    assert "status=499" in line
                    assert on_disk(storage_dir) == {JPG: OLD}
        assert stored_sizes(db_path) == {"IMG_1234": len(OLD)}

    async def test_while_the_body_is_invited(
        self, route: Route, api: Api, storage_dir: Path
    ) -> None:
        await index(api, "IMG_1234")
        await upload(api, "raw", OLD)
        expect = ("Expect", "100-continue")
        with written_log() as log:
            async with begun(
                api, route, OLD * 9, expect, ("X-Request-Id", "invited"), sent=0
            ) as peer:
                assert (await peer.read_head()).status == 100
            assert "status=499" in await log.wait_for("request_id=invited")
        assert on_disk(storage_dir) == {JPG: OLD}

    async def test_while_the_row_is_written(
        self,
        route: Route,
        api: Api,
        backup_settings: dict[str, str],
        storage_dir: Path,
        db_path: Path,
    ) -> None:
        await index(api, "IMG_1234")
        await upload(api, "raw", OLD)
        new = pattern(60_000, 2)
        values = {"LISTEN_ADDR": "127.0.0.1:0", **backup_settings}
        async with running_server(Config.from_mapping(values)) as server:
            target = Api(server.address, api.token)
            # Nobody can write rows, so that the upload cannot get past this point.
            with locked(db_path), watched(storage_dir / FOLDER) as folder, written_log() as log:
                header = ("X-Request-Id", "gone")
                async with begun(target, route, new, header, sent=None) as peer:
                    await folder.until(lambda: (storage_dir / JPG).stat().st_size == len(new))
                    peer.reset()
                assert "status=499" in await log.wait_for("request_id=gone")
                assert stored_sizes(db_path) == {"IMG_1234": len(OLD)}
        # The file was in its place: its row follows, though nobody waits for it any more.
        assert on_disk(storage_dir) == {JPG: new}
        assert stored_sizes(db_path) == {"IMG_1234": len(new)}

    async def test_after_the_body(
        self,
        route: Route,
        api: Api,
        backup_settings: dict[str, str],
        storage_dir: Path,
        db_path: Path,
    ) -> None:
        local_ids = [f"photo {n}" for n in range(30)]
        names = await index(api, *local_ids)
        old, new = {}, {}
        for n, local_id in enumerate(local_ids):
            old[local_id], new[local_id] = pattern(1000 + n, 1), pattern(2000 + n, 2)
            assert (await upload(api, "raw", old[local_id], local_id=local_id)).status == 200
        values = {"LISTEN_ADDR": "127.0.0.1:0", **backup_settings}
        chance = random.Random(route)
        async with running_server(Config.from_mapping(values)) as server:
            target = Api(server.address, api.token)

            async def leave(local_id: str) -> None:
                async with begun(
                    target, route, new[local_id], sent=None, local_id=local_id
                ) as peer:
                    if chance.random() < 0.5:
                        peer.reset()

            await asyncio.gather(*map(leave, local_ids))
            await server.drain(PATIENCE)
        sizes = stored_sizes(db_path)
        files = on_disk(storage_dir)
        assert len(files) == len(local_ids)
        for local_id, name in zip(local_ids, names, strict=True):
            content = files[f"{FOLDER}/{name}"]
            assert content in (old[local_id], new[local_id])
            assert sizes[local_id] == len(content)


@pytest.mark.parametrize("route", ROUTES)
async def test_a_client_that_falls_silent_is_told_and_nothing_is_left(
    route: Route, start_backup: StartBackup, api: Api, storage_dir: Path
) -> None:
    await index(api, "IMG_1234")
    await upload(api, "raw", OLD)
    server = await start_backup(BODY_IDLE_TIMEOUT="200ms")
    impatient = Api(server.address, api.token)
    content = pattern(2_000_000, 2)
    length = len(upload_request(route, api.token, content)[1])
    for sent in (0, 1_200_000, length - 1):
        async with begun(impatient, route, content, sent=sent) as peer:
            answer = Answer(await peer.read_answer("POST"))
        assert answer.error[:2] == (408, "request_timeout")
        assert on_disk(storage_dir) == {JPG: OLD}


class TestSigterm:
    @pytest.mark.parametrize("route", ROUTES)
    async def test_an_upload_under_way_finishes(
        self,
        route: Route,
        start_backup_process: StartServerProcess,
        user: User,
        storage_dir: Path,
        db_path: Path,
    ) -> None:
        server = await start_backup_process()
        api = await logged_in(server)
        await index(api, "IMG_1234")
        content = pattern(20_000_000)
        _, body = upload_request(route, api.token, content)
        async with begun(api, route, content, sent=16_000_000) as peer:
            server.process.terminate()
            await peer.send(body[16_000_000:])
            answer = Answer(await peer.read_answer("POST"))
            assert (answer.status, answer.header("Connection")) == (200, "close")
            assert await peer.read_to_end() == b""
        assert await asyncio.wait_for(server.process.wait(), PATIENCE) == 0
        assert on_disk(storage_dir) == {JPG: content}
        assert stored_sizes(db_path) == {"IMG_1234": len(content)}
        (stopping,) = [n for n, line in enumerate(server.log) if " stopping " in line]
        (answered,) = [n for n, line in enumerate(server.log) if "path=/photos/upload" in line]
        assert stopping < answered

    async def test_an_upload_that_outlives_the_grace_leaves_nothing(
        self, start_backup_process: StartServerProcess, user: User, storage_dir: Path
    ) -> None:
        server = await start_backup_process(SHUTDOWN_GRACE="100ms")
        api = await logged_in(server)
        await index(api, "IMG_1234")
        await upload(api, "raw", OLD)
        async with begun(api, "form", pattern(20_000_000), sent=16_000_000) as peer:
            server.process.terminate()
            assert await asyncio.wait_for(server.process.wait(), PATIENCE) == 0
            peer.reset()
        assert on_disk(storage_dir) == {JPG: OLD}


@dataclass
class Worker:
    """A client that works until its server is gone."""

    answered: int = 0
    """The number of the last piece of work that was answered with 200; 0: none was."""
    begun: int = 0
    """The number of the last one of which anything was sent."""
    progress: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self, api: Api) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                self.begun = self.answered + 1
                await self.work(api)
                self.answered = self.begun
                self.progress.set()

    async def work(self, api: Api) -> None:
        raise NotImplementedError

    async def until_answered(self, number: int) -> None:
        while self.answered < number:
            self.progress.clear()
            await self.progress.wait()


@dataclass
class Uploader(Worker):
    """Sends one photo after the other to one name, and knows which of them may be on disk.

    One that got no answer is sent again: chunks belong to the same photo as those before.
    """

    route: Route = "form"
    seed: int = 0

    def content(self, number: int) -> bytes:
        # All of one length: what a row says of one is true of any.
        return pattern(2_500_000, self.seed * 1000 + number)

    async def work(self, api: Api) -> None:
        content = self.content(self.begun)
        if self.route == "chunk":
            await self.send_chunks(api, content)
        else:
            answer = await upload(api, self.route, content, local_id=self.route)
            assert answer.status == 200, answer

    async def send_chunks(self, api: Api, content: bytes) -> None:
        fields = {"local_id": self.route, "file_type": "jpg", "total_chunks": "3"}
        for number in (2, 0, 1):
            part = content[number * 900_000 : (number + 1) * 900_000]
            answer = await api.upload_chunk({**fields, "chunk_number": str(number)}, part)
            assert answer.status == 200, answer
            if answer.json["complete"]:
                return
        raise AssertionError(answer)

    def may_be(self, content: bytes | None) -> bool:
        """Whether that may be on disk: the last photo answered with 200, or the one after it."""
        if content is None:
            return self.answered == 0
        return content in [self.content(n) for n in {self.answered, self.begun} - {0}]


@dataclass
class Indexer(Worker):
    """Indexes one batch after the other, and remembers what it was told."""

    named: dict[str, str] = field(default_factory=dict)

    async def work(self, api: Api) -> None:
        self.named |= zip(self.batch, await index(api, *self.batch), strict=True)

    @property
    def batch(self) -> list[str]:
        return [f"{self.begun}/{n}" for n in range(4)]


class TestSigkill:
    async def test_at_random_moments(
        self,
        start_backup_process: StartServerProcess,
        user: User,
        storage_dir: Path,
        db_path: Path,
        backup_settings: dict[str, str],
    ) -> None:
        chance = random.Random(2025)
        uploaders = [Uploader(route=route, seed=seed) for seed, route in enumerate(ROUTES)]
        indexer = Indexer()
        workers: list[Worker] = [*uploaders, indexer]
        loop = asyncio.get_running_loop()
        server = await start_backup_process()
        api = await logged_in(server)
        names = await index(api, *ROUTES)
        lives = 6
        for life in range(lives):
            # Everybody works; one of them gets a few answers, and then it may come any time.
            survivor = workers[life % len(workers)]
            target = survivor.answered + life // len(workers)
            running = asyncio.gather(*(worker.run(api) for worker in workers))
            await asyncio.wait_for(survivor.until_answered(target), PATIENCE)
            if life == lives - 1:  # on a slow machine some of them had no time before
                for worker in workers:
                    await asyncio.wait_for(worker.until_answered(3), PATIENCE)
            loop.call_later(chance.uniform(0.0, 0.1), server.process.kill)
            await asyncio.wait_for(running, PATIENCE)
            await asyncio.wait_for(server.process.wait(), PATIENCE)
            assert server.process.returncode == -signal.SIGKILL
            self.check_disk(life, storage_dir, dict(zip(names, uploaders, strict=True)))
            server = await start_backup_process()
            api = Api(server.url, api.token)
            await self.check_restarted(api, db_path, storage_dir, indexer)
        assert await self.command_line(backup_settings, "--repair") == 0
        assert await self.command_line(backup_settings) == 0

    def check_disk(self, life: int, storage_dir: Path, photos: dict[str, Uploader]) -> None:
        """What the kill left: every photo whole, old or new, and nothing else by that name."""
        files = on_disk(storage_dir)
        visible = {
            name: content
            for name, content in files.items()
            if not name.startswith("photo/.chunks/") and ".upload-" not in name
        }
        assert {Path(name).name for name in visible} <= set(photos)
        for name, uploader in photos.items():
            assert uploader.may_be(visible.get(f"{FOLDER}/{name}")), f"{uploader} in life {life}"

    async def check_restarted(
        self, api: Api, db_path: Path, storage_dir: Path, indexer: Indexer
    ) -> None:
        """What the next start makes of it."""
        status = await api.status()
        assert status.status == 200, "the token is no longer valid"
        assert not [name for name in on_disk(storage_dir) if ".upload-" in name]
        stored = rows(db_path, "SELECT * FROM photos_user_1 ORDER BY number")
        assert [row["number"] for row in stored] == [*range(1, len(stored) + 1)]
        names = {row["local_id"]: f"{row['file_name']}.jpg" for row in stored}
        assert indexer.named.items() <= names.items()
        # Of the batch that got no answer either all is there or nothing.
        last = [local_id in names for local_id in indexer.batch]
        assert all(last) or not any(last)
        assert await index(api, *indexer.named) == [*indexer.named.values()]
        database = Database(db_path)
        await database.open()
        integrity = Integrity(database, Storage(storage_dir))
        findings = await integrity.check(repair=False, progress=lambda *_: None)
        await database.close()
        assert findings == []

    async def command_line(self, settings: dict[str, str], *options: str) -> int | None:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "immich_bridge", "storage", "check", *options),
            env=settings,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        return await asyncio.wait_for(process.wait(), PATIENCE)

    @pytest.mark.parametrize("route", ROUTES)
    async def test_while_the_file_is_written(
        self,
        route: Route,
        start_backup_process: StartServerProcess,
        user: User,
        storage_dir: Path,
        db_path: Path,
    ) -> None:
        server = await start_backup_process()
        api = await logged_in(server)
        await index(api, "IMG_1234")
        await upload(api, "raw", OLD)
        async with begun(api, route, pattern(20_000_000), sent=16_000_000):
            await killed(server)
        (temporary,) = on_disk(storage_dir).keys() - {JPG}
        assert Path(temporary).name.startswith(".upload-")
        assert on_disk(storage_dir)[JPG] == OLD
        server = await start_backup_process()
        assert on_disk(storage_dir) == {JPG: OLD}
        assert any("swept files of interrupted uploads files=1" in line for line in server.log)
        again = Api(server.url, api.token)
        assert (await upload(again, route, b"new")).status == 200
        assert on_disk(storage_dir) == {JPG: b"new"}
        assert stored_sizes(db_path) == {"IMG_1234": 3}

    @pytest.mark.timeout(INSTALL_SECONDS + 60)
    @pytest.mark.parametrize("second_names", [True, False])
    @pytest.mark.parametrize("route", ROUTES)
    async def test_between_the_file_and_its_row(
        self,
        route: Route,
        second_names: bool,
        start_backup_process: StartServerProcess,
        user: User,
        tmp_path: Path,
        storage_dir: Path,
        db_path: Path,
    ) -> None:
        server = await start_backup_process()
        api = await logged_in(server)
        await index(api, "other", "IMG_1234")
        await upload(api, "raw", OLD, local_id="other")
        new = f"{FOLDER}/IMG_0002.jpg"
        content = pattern(100_000, 2)
        async with AsyncExitStack() as stack:
            if not second_names:  # the file system knows none
                without = ("-e", "trace=link", "-e", "inject=link:error=EPERM")
                tracing = traced(server.process.pid, tmp_path / "strace", *without)
                await stack.enter_async_context(tracing)
            stack.enter_context(locked(db_path))
            folder = stack.enter_context(watched(storage_dir / FOLDER))
            await stack.enter_async_context(begun(api, route, content, sent=None))
            await folder.until((storage_dir / new).is_file)
            await killed(server)
        visible = {JPG: OLD, new: content}
        left = on_disk(storage_dir)
        unmarked = [name for name in left if ".chunks/" not in name and ".upload-" not in name]
        assert {name: left[name] for name in unmarked} == visible
        assert stored_sizes(db_path) == {"other": len(OLD)}
        # It is whole, in its place and synced, and a mark tells the next start of it.
        server = await start_backup_process()
        assert stored_sizes(db_path) == {"other": len(OLD), "IMG_1234": len(content)}
        assert any("settled interrupted uploads files=1" in line for line in server.log)
        again = Api(server.url, api.token)
        told = (await again.index(DAY, [photo("IMG_1234")])).json["assigned_files"]
        assert told[0]["uploaded_extensions"] == ["jpg"]
        assert (await upload(again, route, content)).json[
            "complete" if route == "chunk" else "size"
        ]
        assert on_disk(storage_dir) == visible
        assert stored_sizes(db_path) == {"other": len(OLD), "IMG_1234": len(content)}


@pytest.fixture
def small_disk(storage_dir: Path) -> Iterator[Path]:
    """The storage folder on a disk of 4 MiB."""
    storage_dir.mkdir(parents=True)
    mounted("-t", "tmpfs", "-o", "size=4m,nr_inodes=64", "tmpfs", str(storage_dir))
    yield storage_dir
    subprocess.run(["umount", "--lazy", str(storage_dir)], check=True)


def resized(disk: Path, options: str) -> None:
    mounted("-o", f"remount,{options}", str(disk))


FULL = (507, "insufficient_storage", "the storage is full")


class TestFullDisk:
    @pytest.mark.parametrize("route", ROUTES)
    async def test_a_photo_that_does_not_fit_leaves_nothing(
        self, route: Route, small_disk: Path, api: Api, db_path: Path
    ) -> None:
        await index(api, "IMG_1234", "new")
        await upload(api, "raw", OLD)
        content = pattern(5 * MIB)
        with written_log() as log:
            for local_id in ("IMG_1234", "new"):
                request = upload_request(route, api.token, content, local_id=local_id)
                assert (await answer_to(api.url, *request)).error == FULL
                assert on_disk(small_disk) == {JPG: OLD}
        errors = [line for line in log.lines if " ERROR " in line]
        assert len(errors) == 2
        assert all(f"{small_disk}/photo/" in line and "No space left" in line for line in errors)
        assert stored_sizes(db_path) == {"IMG_1234": len(OLD)}

    @pytest.mark.parametrize("route", ROUTES)
    async def test_the_next_upload_after_something_was_freed(
        self, route: Route, small_disk: Path, api: Api, db_path: Path
    ) -> None:
        await index(api, "IMG_1234")
        filler = small_disk / "filler"
        filler.write_bytes(bytes(3 * MIB))
        content = pattern(1_900_000)
        assert (await upload(api, route, content)).error == FULL
        assert on_disk(small_disk).keys() == {"filler"}
        filler.unlink()
        answer = await upload(api, route, content)
        assert (answer.status, answer.json["size"]) == (200, len(content))
        assert on_disk(small_disk) == {JPG: content}
        # There is no room for both: the old photo stays.
        big = pattern(2_500_000, 2)
        assert (await upload(api, route, big)).error == FULL
        assert on_disk(small_disk) == {JPG: content}
        assert stored_sizes(db_path) == {"IMG_1234": len(content)}

    @pytest.mark.parametrize("route", ROUTES)
    async def test_a_disk_without_room_for_one_more_file(
        self, route: Route, small_disk: Path, api: Api
    ) -> None:
        await index(api, "IMG_1234", "new")
        await upload(api, "raw", OLD)
        fillers = []
        with suppress(OSError):
            for number in range(64):
                filler = small_disk / f"filler{number}"
                filler.touch()
                fillers.append(filler)
        for local_id in ("IMG_1234", "new"):
            assert (await upload(api, route, b"photo", local_id=local_id)).error == FULL
        for filler in fillers:
            filler.unlink()
        assert on_disk(small_disk) == {JPG: OLD}
        assert (await upload(api, route, b"photo")).status == 200

    async def test_chunks_that_cannot_be_joined_stay_until_they_can(
        self, small_disk: Path, api: Api, db_path: Path
    ) -> None:
        await index(api, "IMG_1234")
        chunks = [pattern(MIB, number) for number in range(3)]

        async def send(number: int) -> Answer:
            fields = {"local_id": "IMG_1234", "file_type": "jpg"}
            fields |= {"chunk_number": str(number), "total_chunks": "3"}
            return await api.upload_chunk(fields, chunks[number])

        for number in (0, 1):
            assert (await send(number)).status == 200
        assert (await send(2)).error == FULL
        files = on_disk(small_disk)
        assert not [
            name for name in files if not name.startswith("photo/.chunks/") or ".upload-" in name
        ]
        assert sorted(files.values()) == sorted(chunks)
        resized(small_disk, "size=16m")
        answer = await send(2)
        assert (answer.status, answer.json["complete"]) == (200, True)
        assert on_disk(small_disk) == {JPG: b"".join(chunks)}

    async def test_many_uploads_that_compete_for_the_last_room(
        self, small_disk: Path, api: Api, db_path: Path
    ) -> None:
        local_ids = [f"photo {n}" for n in range(9)]
        names = await index(api, *local_ids)
        contents = [pattern(900_000, n) for n in range(9)]

        async def send(n: int) -> int:
            request = upload_request(
                "form" if n % 2 else "raw", api.token, contents[n], local_id=local_ids[n]
            )
            return (await answer_to(api.url, *request)).status

        statuses = await asyncio.gather(*map(send, range(9)))
        assert set(statuses) <= {200, 507}
        assert 507 in statuses
        stored = [n for n in range(9) if statuses[n] == 200]
        assert on_disk(small_disk) == {f"{FOLDER}/{names[n]}": contents[n] for n in stored}
        assert stored_sizes(db_path) == {local_ids[n]: 900_000 for n in stored}


class TestFullDatabaseDisk:
    @pytest.fixture
    def db_disk(self, db_path: Path) -> Iterator[Path]:
        """The database on a disk of its own."""
        db_path.parent.mkdir(parents=True)
        mounted("-t", "tmpfs", "-o", "size=4m", "tmpfs", str(db_path.parent))
        yield db_path.parent
        subprocess.run(["umount", "--lazy", str(db_path.parent)], check=True)

    @pytest.mark.parametrize("route", ROUTES)
    async def test_an_upload_whose_row_does_not_fit(
        self, route: Route, db_disk: Path, api: Api, storage_dir: Path, db_path: Path
    ) -> None:
        await index(api, "IMG_1234")
        filler = filled(db_disk)
        assert (await upload(api, route, b"photo")).error[:2] == (507, "insufficient_storage")
        filler.unlink()
        # The file may lie there, but nobody was told that it does; the next try settles it.
        assert stored_sizes(db_path) == {}
        assert (await upload(api, route, b"photo")).status == 200
        assert on_disk(storage_dir) == {JPG: b"photo"}
        assert stored_sizes(db_path) == {"IMG_1234": 5}

    async def test_an_index_that_does_not_fit_is_undone(
        self, db_disk: Path, api: Api, db_path: Path
    ) -> None:
        await index(api, "a")
        filler = filled(db_disk)
        answer = await api.index(DAY, [photo(f"{n}" * 100) for n in range(2000)])
        assert answer.error[:2] == (507, "insufficient_storage")
        filler.unlink()
        assert len(rows(db_path, "SELECT * FROM photos_user_1")) == 1
        assert await index(api, "b") == ["IMG_0002.jpg"]


@pytest.mark.parametrize("route", ROUTES)
async def test_a_storage_that_can_only_be_read(
    route: Route, small_disk: Path, api: Api, db_path: Path
) -> None:
    await index(api, "IMG_1234", "new")
    await upload(api, "raw", OLD)
    resized(small_disk, "ro")
    with written_log() as log:
        for local_id in ("IMG_1234", "new"):
            answer = await upload(api, route, b"photo", local_id=local_id)
            assert answer.error == (
                500,
                "internal_error",
                "the file cannot be stored: Read-only file system",
            )
    assert str(small_disk) not in answer.error[2]
    errors = [line for line in log.lines if " ERROR " in line]
    assert errors
    assert all(f"{small_disk}/photo/" in line for line in errors)
    assert not [line for line in log.lines if "Traceback" in line]
    assert on_disk(small_disk) == {JPG: OLD}
    assert stored_sizes(db_path) == {"IMG_1234": len(OLD)}
    resized(small_disk, "rw")
    assert (await upload(api, route, b"photo")).status == 200
    assert on_disk(small_disk) == {JPG: b"photo"}


class TestMemory:
    SIZE = 300 * MIB

    @asynccontextmanager
    async def large(self, api: Api, route: Route) -> AsyncIterator[Answer]:
        """A large upload, of which this process does not hold more than a block either."""
        block = random.Random(300).randbytes(MIB)
        head, body = upload_request(route, api.token, b"*")
        start, _, end = body.partition(b"*")
        length = len(start) + self.SIZE + len(end)
        head = head.replace(b"Content-Length: %d" % len(body), b"Content-Length: %d" % length)
        async with connect(api.url) as peer:
            await peer.send(head, start)
            for _ in range(self.SIZE // MIB):
                await peer.send(block)
            await peer.send(end)
            yield Answer(await peer.read_answer("POST"))

    @pytest.mark.parametrize("route", ["raw", "form"])
    async def test_an_upload_of_three_hundred_megabytes(
        self,
        route: Route,
        start_backup_process: StartServerProcess,
        user: User,
        storage_dir: Path,
    ) -> None:
        server = await start_backup_process(MAX_UPLOAD_SIZE="400MB")
        api = await logged_in(server)
        await index(api, "IMG_1234")
        memory = MemoryGrowth(server.process.pid)
        async with self.large(api, route) as answer:
            assert (answer.status, answer.json["size"]) == (200, self.SIZE)
        assert memory.peak < 24 * MIB, f"{memory.peak / MIB:.1f} MiB"
        block = random.Random(300).randbytes(MIB)
        with (storage_dir / JPG).open("rb") as stored:
            assert all(stored.read(MIB) == block for _ in range(self.SIZE // MIB))
            assert stored.read() == b""
