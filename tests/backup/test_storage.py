"""Files on disk: the order of a safe write, and what others see of it at any moment."""

import asyncio
import errno
import os
import re
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backup_uploads import (
    FOLDER,
    ROUTES,
    Route,
    StartServerProcess,
    begun,
    index,
    on_disk,
    pattern,
    upload,
    upload_request,
)
from backup_wing import Answer, Api, photo
from debian_tools import INSTALL_SECONDS
from immich_bridge.backup.accounts import User
from immich_bridge.backup.disk import Disk
from immich_bridge.backup.placed_mark import PlacedMark
from immich_bridge.backup.storage import Storage
from immich_bridge.errors import BadRequest, ClientGone, PayloadTooLarge
from immich_bridge.serve import Server
from tracing import traced
from wire import PATIENCE

LOGICAL = "storage/photo/1/2025/12/10/IMG_0001.jpg"
LOGICAL_FOLDER = "storage/photo/1/2025/12/10/"
TAKEN = 1765360800.0  # 2025-12-10T10:00:00Z


class Pieces:
    """A source of given pieces; a callable among them is called when its turn has come."""

    def __init__(self, *pieces: bytes | Callable[[], object]) -> None:
        self._pieces = iter(pieces)

    async def read(self) -> bytes:
        for piece in self._pieces:
            if isinstance(piece, bytes):
                return piece
            result = piece()
            if isinstance(result, Awaitable):
                await result
        return b""


@pytest.fixture
def storage(storage_dir: Path) -> Storage:
    """A storage that is ready to take files."""
    storage = Storage(storage_dir)
    assert storage.prepare() == 0
    return storage


@pytest.fixture
def umask() -> Iterator[Callable[[int], int]]:
    """`os.umask`, undone at the end."""
    before = os.umask(0)
    os.umask(before)
    yield os.umask
    os.umask(before)


async def store(storage: Storage, content: bytes, logical: str = LOGICAL) -> Path:
    async with await storage.receive(Pieces(content), LOGICAL_FOLDER) as pending:
        await pending.place(storage.path(logical), TAKEN)
    return storage.path(logical)


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o7777


class TestReceivingAndPlacing:
    async def test_a_file_comes_to_its_place(self, storage: Storage, storage_dir: Path) -> None:
        content = pattern(3_000_001)
        pieces = [content[at : at + 70_001] for at in range(0, len(content), 70_001)]
        async with await storage.receive(Pieces(*pieces), LOGICAL_FOLDER) as pending:
            assert pending.size == len(content)
            await pending.place(storage.path(LOGICAL), TAKEN)
        assert on_disk(storage_dir) == {f"{FOLDER}/IMG_0001.jpg": content}

    async def test_what_is_not_placed_is_removed(self, storage: Storage, storage_dir: Path) -> None:
        for content in (b"photo", pattern(3_000_001)):
            async with await storage.receive(Pieces(content), LOGICAL_FOLDER):
                pass
            assert on_disk(storage_dir) == {}

    async def test_a_small_photo_takes_no_file_before_it_is_placed(
        self, storage: Storage, storage_dir: Path
    ) -> None:
        content = pattern(1_000_000)
        async with await storage.receive(Pieces(content), LOGICAL_FOLDER) as pending:
            assert on_disk(storage_dir) == {}
            await pending.place(storage.path(LOGICAL), TAKEN)
        assert on_disk(storage_dir) == {f"{FOLDER}/IMG_0001.jpg": content}

    async def test_the_digest_is_that_of_all_bytes(self, storage: Storage) -> None:
        content = pattern(5_000_001)
        for size in (1, 1_048_575, 1_048_576, 1_048_577, 5_000_001):
            pieces = [content[at : min(at + 300_007, size)] for at in range(0, size, 300_007)]
            async with await storage.receive(Pieces(*pieces), digest=True) as pending:
                assert await pending.digest() == sha256(content[:size]).hexdigest()
                await pending.place(storage.path(LOGICAL), TAKEN)
            assert storage.path(LOGICAL).read_bytes() == content[:size]

    async def test_a_file_whose_place_is_not_known_yet(
        self, storage: Storage, storage_dir: Path
    ) -> None:
        async with await storage.receive(Pieces(b"photo")) as pending:
            await pending.place(storage.path(LOGICAL), TAKEN)
        assert on_disk(storage_dir) == {f"{FOLDER}/IMG_0001.jpg": b"photo"}

    @pytest.mark.parametrize("end", [ClientGone("gone"), OSError("torn"), KeyboardInterrupt()])
    async def test_a_source_that_fails_leaves_nothing(
        self, end: BaseException, storage: Storage, storage_dir: Path
    ) -> None:
        def fail() -> None:
            assert len(on_disk(storage_dir)) == 1
            raise end

        with pytest.raises(type(end)):
            await storage.receive(Pieces(pattern(2_000_000), b"more", fail), LOGICAL_FOLDER)
        assert on_disk(storage_dir) == {}

    @pytest.mark.parametrize("pieces", [(), (b"",)])
    async def test_a_file_of_no_bytes_is_refused(
        self, pieces: tuple[bytes, ...], storage: Storage, storage_dir: Path
    ) -> None:
        with pytest.raises(BadRequest, match="empty"):
            await storage.receive(Pieces(*pieces), LOGICAL_FOLDER)
        assert on_disk(storage_dir) == {}

    @pytest.mark.parametrize("limit", [1, 1_048_576, 3_000_000])
    async def test_the_limit_is_the_last_byte_taken(
        self, limit: int, storage: Storage, storage_dir: Path
    ) -> None:
        content = pattern(limit + 1)
        async with await storage.receive(Pieces(content[:limit]), limit=limit) as pending:
            assert pending.size == limit
        with pytest.raises(PayloadTooLarge):
            await storage.receive(Pieces(content), limit=limit)
        with pytest.raises(PayloadTooLarge):
            await storage.receive(Pieces(content[:limit], content[limit:]), limit=limit)
        assert on_disk(storage_dir) == {}

    async def test_a_cancelled_receiver_leaves_nothing(
        self, storage: Storage, storage_dir: Path
    ) -> None:
        waiting = asyncio.Event()

        async def wait_for_ever() -> None:
            waiting.set()
            await asyncio.get_running_loop().create_future()

        source = Pieces(pattern(2_000_000), wait_for_ever)
        task = asyncio.create_task(storage.receive(source, LOGICAL_FOLDER))
        await asyncio.wait_for(waiting.wait(), PATIENCE)
        assert len(on_disk(storage_dir)) == 1
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert on_disk(storage_dir) == {}

    @pytest.mark.parametrize("new", [b"new", pattern(2_500_000)], ids=["small", "large"])
    @pytest.mark.parametrize("steps", range(4))
    async def test_a_cancelled_placing_has_ended_when_it_says_so(
        self, steps: int, new: bytes, storage: Storage, storage_dir: Path
    ) -> None:
        await store(storage, b"old")

        async def replace() -> None:
            async with await storage.receive(Pieces(new), LOGICAL_FOLDER) as pending:
                received.set()
                await pending.place(storage.path(LOGICAL), TAKEN)

        received = asyncio.Event()
        task = asyncio.create_task(replace())
        await asyncio.wait_for(received.wait(), PATIENCE)
        for _ in range(steps):
            await asyncio.sleep(0)  # a turn of the event loop
        task.cancel()
        with suppress(asyncio.CancelledError):  # unless it had ended already
            await task
        # No thread goes on behind the back of whoever was told that it is over.
        assert on_disk(storage_dir) in (
            {f"{FOLDER}/IMG_0001.jpg": b"old"},
            {f"{FOLDER}/IMG_0001.jpg": new},
        )

    async def test_the_probe_of_readiness_leaves_nothing(
        self, storage: Storage, storage_dir: Path
    ) -> None:
        await storage.check()
        assert on_disk(storage_dir) == {}


class TestSharedSyncs:
    """A folder is synced after every change of it, once for all that wait."""

    @pytest.fixture
    def syncs(self, storage_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator["SlowSyncs"]:
        syncs = SlowSyncs(Disk(storage_dir), storage_dir)
        monkeypatch.setattr("immich_bridge.backup.disk.sync_folder", syncs.sync)
        with syncs.pool:
            yield syncs

    def test_all_who_wait_share_the_next_one(self, syncs: "SlowSyncs") -> None:
        first = syncs.begin_first()
        others = syncs.wait_behind_it(9)
        syncs.go_on.set()
        for each in (first, *others):
            each.result(PATIENCE)
        # The one under way when they came had begun before their changes: it counts for none.
        assert syncs.made == 2

    def test_one_that_fails_fails_for_all_who_share_it(self, syncs: "SlowSyncs") -> None:
        syncs.outcomes = [None, OSError(5, "broken")]
        first = syncs.begin_first()
        others = syncs.wait_behind_it(4)
        syncs.go_on.set()
        first.result(PATIENCE)
        assert [type(each.exception(PATIENCE)) for each in others] == [OSError] * 4
        assert syncs.made == 2
        # Whoever comes later gets one of their own.
        syncs.disk.sync_folder(syncs.folder)
        assert syncs.made == 3


class SlowSyncs:
    """Syncs of a folder, of which the first lasts until it may end."""

    def __init__(self, disk: Disk, folder: Path) -> None:
        self.disk = disk
        self.folder = folder
        self.pool = ThreadPoolExecutor(10)
        self.go_on = threading.Event()
        self.made = 0
        self.outcomes: list[OSError | None] = []
        """How the first syncs end; all others end well."""
        self._begun = threading.Event()

    def sync(self, _: Path) -> None:
        self.made += 1
        if self.made == 1:
            self._begun.set()
            assert self.go_on.wait(PATIENCE)
        outcome = self.outcomes.pop(0) if self.outcomes else None
        if outcome is not None:
            raise outcome

    def begin_first(self) -> Future[None]:
        first = self.pool.submit(self.disk.sync_folder, self.folder)
        assert self._begun.wait(PATIENCE)
        return first

    def wait_behind_it(self, count: int) -> list[Future[None]]:
        """So many more, each of which has come to where it waits."""
        (shared,) = self.disk._folder_syncs.values()
        others = [self.pool.submit(self.disk.sync_folder, self.folder) for _ in range(count)]
        deadline = time.monotonic() + PATIENCE
        # No event tells that a thread waits for a lock: the tickets drawn do, the first two by
        # the sync under way.
        while repr(shared._tickets) != f"count({count + 3})":
            assert time.monotonic() < deadline
            time.sleep(0.001)
        return others


class TestWhatOthersSee:
    async def test_an_unfinished_file_is_in_no_listing_of_photos(
        self, storage: Storage, storage_dir: Path
    ) -> None:
        seen: list[Path] = []

        def look() -> None:
            seen.extend(path for path in storage_dir.rglob("*") if path.is_file())
            assert not [*storage_dir.rglob("IMG*"), *storage_dir.rglob("*.jpg")]

        content = pattern(2_000_000)
        async with await storage.receive(Pieces(content, look, b"end"), LOGICAL_FOLDER) as pending:
            look()
            await pending.place(storage.path(LOGICAL), TAKEN)
        assert seen == [pending.path] * 2
        # In the folder of its destination, so that the rename stays on one file system.
        assert pending.path.parent == storage_dir / FOLDER
        assert pending.path.name.startswith(".")  # hidden from `ls`, `*` and file managers
        assert not re.search(r"IMG|\.(jpg|heic|mov)$", pending.path.name)
        assert storage.is_temporary(pending.path)
        assert not storage.is_temporary(storage.path(LOGICAL))

    async def test_two_unfinished_files_never_share_a_name(self, storage: Storage) -> None:
        paths = {storage.pending(storage.root).path for _ in range(1000)}
        assert len(paths) == 1000

    async def test_the_old_file_is_whole_until_the_new_one_is(
        self, storage: Storage, storage_dir: Path
    ) -> None:
        old, new = pattern(1_500_000, 1), pattern(2_500_000, 2)
        path = await store(storage, old)
        seen: list[bytes] = []
        with path.open("rb") as reader:
            half = reader.read(700_000)
            source = Pieces(
                lambda: seen.append(path.read_bytes()),
                new[:1_200_000],
                lambda: seen.append(path.read_bytes()),
                new[1_200_000:],
                lambda: seen.append(path.read_bytes()),
            )
            async with await storage.receive(source, LOGICAL_FOLDER) as pending:
                seen.append(path.read_bytes())
                await pending.place(storage.path(LOGICAL), TAKEN)
            assert path.read_bytes() == new
            # Whoever has the old photo open goes on reading the old photo.
            assert half + reader.read() == old
        assert seen == [old] * 4
        assert on_disk(storage_dir) == {f"{FOLDER}/IMG_0001.jpg": new}

    @pytest.mark.parametrize("route", ROUTES)
    async def test_a_photo_is_readable_while_it_is_replaced(
        self, route: Route, api: Api, storage_dir: Path
    ) -> None:
        old, new = pattern(300_000, 1), pattern(20_000_000, 2)
        await index(api, "IMG_1234")
        assert (await upload(api, route, old)).status == 200
        path = storage_dir / FOLDER / "IMG_0001.jpg"
        # More than the sockets hold: what was taken of it is on disk or on its way.
        async with begun(api, route, new, sent=16_000_000) as peer:
            assert len(on_disk(storage_dir)) == 2
            with path.open("rb") as reader:
                assert reader.read(100_000) == old[:100_000]
                _, body = upload_request(route, api.token, new)
                await peer.send(body[16_000_000:])
                answer = Answer(await peer.read_answer("POST"))
                assert answer.status == 200, answer
                assert reader.read() == old[100_000:]
        assert on_disk(storage_dir) == {f"{FOLDER}/IMG_0001.jpg": new}


class TestModesAndTimes:
    @pytest.mark.parametrize(
        ("mask", "file_mode", "folder_mode"),
        [(0o000, 0o640, 0o750), (0o022, 0o640, 0o750), (0o077, 0o600, 0o700)],
    )
    async def test_modes_are_private_and_heed_the_umask(
        self,
        mask: int,
        file_mode: int,
        folder_mode: int,
        storage_dir: Path,
        umask: Callable[[int], int],
    ) -> None:
        umask(mask)
        storage = Storage(storage_dir)
        storage.prepare()
        for pieces in (Pieces(pattern(2_000_000)), Pieces(pattern(2_000_001))):
            async with await storage.receive(pieces, LOGICAL_FOLDER) as pending:
                assert mode(pending.path) == file_mode
                await pending.place(storage.path(LOGICAL), TAKEN)
            path = storage.path(LOGICAL)
            assert mode(path) == file_mode
            for folder in path.relative_to(storage_dir).parents[:-1]:
                assert mode(storage_dir / folder) == folder_mode

    async def test_the_time_of_a_file_is_the_one_given(self, storage: Storage) -> None:
        path = await store(storage, b"photo")
        assert path.stat().st_mtime == TAKEN
        assert path.stat().st_atime == TAKEN

    @pytest.mark.parametrize("route", ROUTES)
    async def test_the_time_of_a_photo_is_its_creation_time(
        self, route: Route, api: Api, storage_dir: Path
    ) -> None:
        times = {
            "2025-12-10T10:00:00Z": 1765360800.0,
            "2025-12-10T10:00:00+08:00": 1765332000.0,
            "2025-12-10T10:00:00.250Z": 1765360800.25,
            "1955-11-05T06:15:00Z": -446751900.0,
        }
        for creation_time, expected in times.items():
            (name,) = await index(api, creation_time, creation_time=creation_time)
            for content in (b"first", b"again"):
                answer = await upload(api, route, content, local_id=creation_time)
                assert answer.status == 200, answer
                assert (storage_dir / FOLDER / name).stat().st_mtime == expected

    async def test_a_time_that_no_file_can_have_loses_no_photo(
        self, storage: Storage, storage_dir: Path
    ) -> None:
        async with await storage.receive(Pieces(b"photo"), LOGICAL_FOLDER) as pending:
            await pending.place(storage.path(LOGICAL), 1e30)
        assert on_disk(storage_dir) == {f"{FOLDER}/IMG_0001.jpg": b"photo"}


class TestPaths:
    async def test_folders_are_made_as_they_are_needed(
        self, storage: Storage, storage_dir: Path
    ) -> None:
        days = ("1/2025/12/10", "1/2025/12/11", "1/2026/01/01", "23/2025/12/10")
        # At the same time: each finds folders made by others in the meantime.
        await asyncio.gather(
            *(store(storage, day.encode(), f"storage/photo/{day}/IMG_0001.jpg") for day in days)
        )
        assert on_disk(storage_dir) == {f"photo/{d}/IMG_0001.jpg": d.encode() for d in days}

    def test_the_root_is_made_with_its_parents(self, tmp_path: Path) -> None:
        Storage(tmp_path / "a" / "b").prepare()
        assert (tmp_path / "a" / "b" / "photo").is_dir()

    @given(st.lists(st.text("abc019_.", min_size=1).filter(lambda s: s.strip(".")), min_size=1))
    def test_logical_and_real_paths_mirror_each_other(self, parts: list[str]) -> None:
        storage = Storage(Path("/somewhere/else"))
        logical = "storage/" + "/".join(parts)
        assert storage.path(logical) == Path("/somewhere/else", *parts)
        assert storage.logical(storage.path(logical)) == logical

    async def test_a_file_where_a_folder_should_be_fails_and_leaves_nothing(
        self, storage: Storage, storage_dir: Path
    ) -> None:
        (storage_dir / "photo" / "1").write_bytes(b"in the way")
        for content in (b"photo", pattern(2_000_000)):
            with pytest.raises(Exception, match="cannot be stored: Not a directory"):
                await store(storage, content)
        assert on_disk(storage_dir) == {"photo/1": b"in the way"}


class TestSweeping:
    def leave(self, storage_dir: Path) -> dict[str, bytes]:
        """What is to stay; what is not lies beside it."""
        kept = {
            f"{FOLDER}/IMG_0001.jpg": b"photo",
            f"{FOLDER}/.hidden": b"of somebody else",
            f"{FOLDER}/upload-1.part": b"of somebody else",
            "photo/notes.txt": b"of somebody else",
            "chunks/1/abc/0": b"chunk",
        }
        swept = (
            f"{FOLDER}/.upload-0123456789abcdef.part",
            "photo/.upload-fedcba9876543210.part",
            "photo/2/1999/01/01/.upload-0123456789abcdef.part",
            "chunks/1/abc/.upload-0123456789abcdef.part",
        )
        for name, content in {**kept, **dict.fromkeys(swept, b"torn")}.items():
            (storage_dir / name).parent.mkdir(parents=True, exist_ok=True)
            (storage_dir / name).write_bytes(content)
        return kept

    def test_temporary_files_and_nothing_else_are_swept(self, storage_dir: Path) -> None:
        kept = self.leave(storage_dir)
        assert Storage(storage_dir).prepare() == 4
        assert on_disk(storage_dir) == kept
        assert Storage(storage_dir).prepare() == 0

    def test_nothing_is_swept_that_another_server_may_be_writing(self, storage_dir: Path) -> None:
        first, second, third = (Storage(storage_dir) for _ in range(3))
        assert first.prepare() == 0
        self.leave(storage_dir)
        before = on_disk(storage_dir)
        assert second.prepare() == 0
        first.close()
        assert third.prepare() == 0  # the second is still there
        assert on_disk(storage_dir) == before
        second.close()
        third.close()
        assert Storage(storage_dir).prepare() == 4

    async def test_the_server_sweeps_when_it_starts(
        self, storage_dir: Path, start_backup: Callable[..., Awaitable[Server]]
    ) -> None:
        kept = self.leave(storage_dir)
        await start_backup()
        assert on_disk(storage_dir) == kept

    async def test_what_an_upload_under_way_writes_is_what_would_be_swept(
        self, storage: Storage
    ) -> None:
        source = Pieces(pattern(2_000_000))
        async with await storage.receive(source, LOGICAL_FOLDER) as pending:
            assert [*pending.path.parent.iterdir()] == [pending.path]
            assert storage.is_temporary(pending.path)


def test_a_photo_without_its_row_is_hidden_also_where_no_file_can_be_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary, photo = tmp_path / ".upload-0.part", tmp_path / "IMG_0001.jpg"
    temporary.write_bytes(b"photo")
    mark = PlacedMark(photo)
    mark.place(temporary)

    def no_room(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "open", no_room)
    mark.undo(keep=True)
    monkeypatch.undo()
    (left,) = tmp_path.iterdir()
    assert left.stat().st_size == 0
    found = PlacedMark.at(left)
    assert found is not None
    assert found.photo == photo


TRACED = (
    "openat,write,writev,pwrite64,ftruncate,sendto,sendmsg,mkdir,mkdirat,"
    "utimensat,futimesat,fsync,fdatasync,rename,renameat,renameat2,link,linkat,unlink,unlinkat"
)


@dataclass
class Call:
    """A system call: lines at which it began and ended, its name, and the rest of the line."""

    began: int
    ended: int
    name: str
    text: str


def parse_strace(output: str) -> list[Call]:
    """The calls of all threads, in the order in which they began."""
    calls: list[Call] = []
    unfinished: dict[str, Call] = {}
    for number, line in enumerate(output.splitlines()):
        thread, _, text = line.partition(" ")
        text = text.strip()
        if resumed := re.match(r"<\.\.\. \w+ resumed>(.*)", text):
            if call := unfinished.pop(thread, None):
                call.ended = number
                call.text += resumed[1]
        elif called := re.match(r"(\w+)\((.*)", text):
            call = Call(number, number, called[1], called[2])
            calls.append(call)
            if call.text.endswith("<unfinished ...>"):
                unfinished[thread] = call
    return calls


class TestOrderOfASafeWrite:
    """What the kernel was asked for, seen by strace."""

    @pytest.mark.timeout(INSTALL_SECONDS + 60)
    async def test_everything_is_synced_before_the_answer(
        self,
        start_backup_process: StartServerProcess,
        user: User,
        tmp_path: Path,
        storage_dir: Path,
        db_path: Path,
    ) -> None:
        server = await start_backup_process()
        api = Api(server.url)
        api.token = (await api.login("admin", "SecurePassword123")).json["token"]
        for number, route in enumerate(ROUTES, 10):
            answer = await api.index(f"2025-12-{number}", [photo(route)])
            assert answer.status == 200, answer
        output = tmp_path / "strace"
        async with traced(server.process.pid, output, "-y", "-s", "32", "-e", f"trace={TRACED}"):
            for seed in (1, 2):  # the second one replaces the first
                for route in ROUTES:
                    content = pattern(3_000_000 + seed)
                    assert (await upload(api, route, content, local_id=route)).status == 200
        calls = parse_strace(output.read_text())
        answers = [call for call in calls if "HTTP/1.1 200" in call.text]
        assert len(answers) == 2 * len(ROUTES)
        begin = 0
        for number, answer_call in enumerate(answers):
            upload_calls = [c for c in calls if begin <= c.began < answer_call.began]
            replaces, day = divmod(number, len(ROUTES))
            folder = storage_dir / "photo/1/2025/12" / str(10 + day)
            self.check_order(
                upload_calls, answer_call, folder, db_path, storage_dir, replaces=bool(replaces)
            )
            begin = answer_call.ended

    def check_order(
        self,
        calls: list[Call],
        answer: Call,
        folder: Path,
        db_path: Path,
        storage_dir: Path,
        *,
        replaces: bool,
    ) -> None:
        def named(*names: str) -> list[Call]:
            return [call for call in calls if call.name in names]

        def only(found: list[Call]) -> Call:
            assert len(found) == 1, found
            return found[0]

        def paths(call: Call) -> list[str]:
            return re.findall(r'"([^"]*)"', call.text)

        photo = str(folder / "IMG_0001.jpg")
        placements = [
            call
            for call in named("rename", "renameat", "renameat2", "link", "linkat")
            if paths(call)[-1] == photo and call.text.endswith("= 0")
        ]
        placement = only(placements)
        temporary = paths(placement)[0]
        assert Path(temporary).parent == folder
        created = [c for c in named("openat") if f'"{temporary}"' in c.text and "O_CREAT" in c.text]
        assert "O_EXCL" in created[0].text
        assert ", 0640)" in created[0].text
        of_file = [c for c in calls if f"<{temporary}>" in c.text]
        writes = [c for c in of_file if c.name in ("write", "writev", "pwrite64", "ftruncate")]
        sync = only([c for c in of_file if c.name in ("fsync", "fdatasync")])
        times = only([c for c in of_file if c.name in ("utimensat", "futimesat")])
        assert writes
        assert created[0].ended < min(c.began for c in writes)
        assert max(c.ended for c in [*writes, times]) < sync.began
        assert sync.ended < placement.began
        # An entry survives once the folder that holds it is synced.
        syncs = named("fsync")

        def synced(path: Path, after: int) -> list[Call]:
            return [c for c in syncs if f"<{path}>" in c.text and c.began > after]

        folder_sync = synced(folder, placement.ended)[0]
        made_folders = named("mkdir", "mkdirat")
        assert made_folders or replaces
        for made in made_folders:
            path = Path(paths(made)[0])
            assert storage_dir in path.parents
            assert synced(path.parent, made.ended)[0].ended < answer.began
        # Then the row, and it is on disk before the answer.
        log = f"<{db_path}-wal>"
        row = [c for c in named("pwrite64", "write") if log in c.text and c.began > placement.ended]
        row_sync = [c for c in named("fsync", "fdatasync") if log in c.text][-1]
        assert folder_sync.ended < min(c.began for c in row)
        assert max(c.ended for c in row) < row_sync.began
        assert row_sync.ended < answer.began
        # From before the photo is seen until its row is there a mark lies beside it.
        mark = str(folder / ".upload-IMG_0001.jpg.placed") if replaces else temporary
        if replaces:
            assert paths(only([c for c in named("link") if paths(c)[0] == photo])) == [photo, mark]
        removed = [c for c in named("unlink") if paths(c) == [mark] and c.text.endswith("= 0")]
        assert row_sync.ended < only(removed).began
