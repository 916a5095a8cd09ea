"""A 200 survives a power cut: real uploads, and what a cut at any moment may leave of them."""

import asyncio
import random
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, get_args

import pytest

from backup_wing import Api
from immich_bridge.config import Config
from immich_bridge.serve import running_server
from torture.effort import Effort
from torture.power_disk import Fate, File, Survival, Write
from torture.power_log import Span, UnreadableLog, read_calls
from torture.power_order import Order
from torture.power_phones import Chunk, Household, Index
from torture.power_recording import Layout, Recording, record
from torture.power_replay import Replay
from torture.power_server import command, server
from torture.power_survivors import Survivors

PROMISE: Final = "2 power cuts"
LAYOUTS: Final = (
    Layout(apart=True, server_first=False),
    Layout(apart=False, server_first=False),
    Layout(apart=True, server_first=True),
    Layout(apart=False, server_first=True, killed=True),
    Layout(apart=True, server_first=False, killed=True),
)
PROCESS_EVERY: Final = 25
"""One cut in so many is followed by a process of its own, the others by a server in this one."""
EVERY: Final = 1_000_000

State = frozenset[tuple[str, bytes]]
"""Names and contents of all files."""


@pytest.fixture
def scratch(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory if possible: a server's own syncs cost nothing there."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else tmp_path) as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def recordings(effort: Effort, tmp_path_factory: pytest.TempPathFactory) -> list[Recording]:
    """What servers did while phones sent photos to them, each from its first start on."""

    async def make() -> list[Recording]:
        made = []
        layouts = LAYOUTS[: effort.amount(1, len(LAYOUTS))]
        for number, layout in enumerate(layouts):
            effort.progress("recordings", number, len(layouts))
            chance = effort.chance("recording", number)
            household = Household(
                chance,
                phones=effort.amount(4, 5),
                uploads=effort.amount(5, 6),
                crowd=effort.amount(0, 3500) if number == 0 else 0,
            )
            folder = tmp_path_factory.mktemp("recording")
            made.append(await record(folder, layout, household, chance))
        return made

    # In a thread, since this one has the event loops of tests.
    with ThreadPoolExecutor(1) as executor:
        return executor.submit(asyncio.run, make()).result()


class TestOrder:
    def test_of_what_is_made_at_the_first_start(self, recordings: list[Recording]) -> None:
        for recording in recordings:
            Order(recording).check_user()
            Order(recording).check_login()

    def test_of_every_answer(self, recordings: list[Recording], effort: Effort) -> None:
        photos = requests = syncs = 0
        for recording in recordings:
            order = Order(recording)
            for step in recording.household.steps:
                if isinstance(step, Index):
                    order.check_index(step)
                elif isinstance(step, Chunk):
                    order.check_chunk(step)
            for version in recording.household.versions:
                if not version.abandoned:
                    order.check_photo(version)
                    photos += 1
            requests += len(recording.household.steps)
            syncs += recording.replay.syncs
        effort.figure(
            PROMISE,
            f"{requests} requests answered with 200, {photos} photos among them, and {syncs} "
            "syncs: each in order",
        )


def left_after(log: Sequence[str], chance: random.Random, folder: Path) -> set[State]:
    """All that cuts at the end of a log have left, in some hundred tries."""
    (folder / "log").write_text("\n".join(log))
    replay = Replay(Path("/disk"))
    replay.process(read_calls(folder / "log"))
    states = set()
    for number in range(300):
        target = folder / str(number)
        target.mkdir()
        fate = replay.disk.fate(len(log), chance, chance.choice((None, "none", "all")))
        replay.disk.leave(len(log), fate, target)
        files = ((f"{p.relative_to(target)}", p) for p in target.rglob("*") if p.is_file())
        states.add(frozenset((name, path.read_bytes()) for name, path in files))
    return states


def quoted(text: str) -> str:
    return '"' + "".join(f"\\x{byte:02x}" for byte in text.encode()) + '"'


PART: Final = quoted("/disk/part")
PHOTO: Final = quoted("/disk/photo")
MADE: Final = [
    f"1 openat(AT_FDCWD, {quoted('/disk')}, O_RDONLY|O_DIRECTORY) = 3",
    f"1 openat(AT_FDCWD, {PART}, O_WRONLY|O_CREAT|O_EXCL, 0640) = 4",
    f"1 write(4, {quoted('whole')}, 5) = 5",
]
SYNCED: Final = "1 fsync(4) = 0"
RENAMED: Final = f"1 rename({PART}, {PHOTO}) = 0"
FOLDER_SYNCED: Final = "1 fsync(3) = 0"
NOTHING: Final[State] = frozenset()
EMPTY: Final[State] = frozenset({("photo", b"")})
ZEROS: Final[State] = frozenset({("photo", bytes(5))})
WHOLE: Final[State] = frozenset({("photo", b"whole")})
UNNAMED: Final[State] = frozenset({("part", b"whole")})
BOTH: Final[State] = UNNAMED | WHOLE


class TestModel:
    """Of the disk: one that forgets too little would find no fault with any server."""

    @pytest.mark.parametrize(
        ("calls", "possible"),
        [
            ([SYNCED, RENAMED, FOLDER_SYNCED], {WHOLE}),
            # Without a journal one half of a rename may be there without the other.
            ([SYNCED, RENAMED], {NOTHING, UNNAMED, WHOLE, BOTH}),
            ([SYNCED, FOLDER_SYNCED, RENAMED], {UNNAMED, WHOLE, BOTH, NOTHING}),
            ([RENAMED, FOLDER_SYNCED], {EMPTY, ZEROS, WHOLE}),
            ([RENAMED, FOLDER_SYNCED, SYNCED], {WHOLE}),
            # Begun before the rename had ended: it may have come too early for it.
            (
                [
                    SYNCED,
                    f"2 rename({PART}, {PHOTO} <unfinished ...>",
                    "1 fsync(3 <unfinished ...>",
                    "2 <... rename resumed>) = 0",
                    "1 <... fsync resumed>) = 0",
                ],
                {NOTHING, UNNAMED, WHOLE, BOTH},
            ),
        ],
    )
    def test_of_what_may_be_left_of_a_photo(
        self, calls: list[str], possible: set[State], effort: Effort, tmp_path: Path
    ) -> None:
        assert left_after([*MADE, *calls], effort.chance(), tmp_path) == possible

    def test_a_folder_that_is_lost_takes_all_with_it(self, effort: Effort, tmp_path: Path) -> None:
        log = [
            f"1 openat(AT_FDCWD, {quoted('/disk')}, O_RDONLY|O_DIRECTORY) = 3",
            f"1 mkdir({quoted('/disk/day')}, 0750) = 0",
            f"1 openat(AT_FDCWD, {quoted('/disk/day')}, O_RDONLY|O_DIRECTORY) = 4",
            f"1 openat(AT_FDCWD, {quoted('/disk/day/photo')}, O_WRONLY|O_CREAT, 0640) = 5",
            "1 fsync(5) = 0",
            "1 fsync(4) = 0",
        ]
        there = frozenset({("day/photo", b"")})
        assert left_after(log, effort.chance(), tmp_path) == {NOTHING, there}

    def test_a_write_arrives_sector_by_sector(self, effort: Effort) -> None:
        old, new = bytes(2048), b"x" * 2048
        file = File()
        file.changes = [Write(Span(1, 1), 0, old), Write(Span(3, 3), 0, new)]
        file.syncs = [Span(2, 2)]
        contents = {
            file.content(9, Fate(effort.chance(number), sector=512)) for number in range(300)
        }
        sectors = {content[n : n + 512] for content in contents for n in range(0, 2048, 512)}
        assert sectors == {old[:512], new[:512]}
        assert len(contents) == 16

    def test_what_cannot_be_replayed_is_not_passed_over(self, tmp_path: Path) -> None:
        for call in (
            f"1 truncate({PHOTO}, 0) = 0",
            "1 mmap(NULL, 4096, PROT_READ|PROT_WRITE, MAP_SHARED, 4, 0) = 0x7f0000000000",
            "1 sendfile(4, 9, NULL, 100) = 100",
            "1 fork() = 7",
            '1 write(4, "\\x61"..., 100) = 100',
        ):
            (tmp_path / "log").write_text("\n".join([*MADE, call]))
            with pytest.raises(UnreadableLog):
                Replay(Path("/disk")).process(read_calls(tmp_path / "log"))


@asynccontextmanager
async def started(settings: Mapping[str, str], *, as_process: bool) -> AsyncIterator[Api]:
    """A server that is started on what a power cut has left."""
    if as_process:
        async with server(settings) as url:
            yield Api(url)
        await command(settings, "storage", "check")
    else:
        async with running_server(Config.from_mapping(settings)) as here:
            yield Api(here.address)


async def test_whatever_a_cut_leaves_the_next_start_has_all_that_was_answered(
    recordings: list[Recording], effort: Effort, scratch: Path
) -> None:
    chance = effort.chance("cuts")
    cuts = [
        (recording, line)
        for recording in recordings
        for line in recording.cuts(chance, effort.amount(20, EVERY), effort.amount(20, 45))
    ]
    promised = processes = 0
    for number, (recording, line) in enumerate(cuts):
        effort.progress("power cuts", number, len(cuts))
        survival = chance.choice((None, None, *get_args(Survival)))
        fate = recording.replay.disk.fate(line, chance, survival)
        disk = scratch / "disk"
        disk.mkdir()
        recording.replay.disk.leave(line, fate, disk)
        settings = recording.layout.settings(disk)
        survivors = Survivors(recording, line, settings)
        as_process = number % PROCESS_EVERY == PROCESS_EVERY - 1
        try:
            async with started(settings, as_process=as_process) as api:
                await survivors.check(api)
                await survivors.resume(api)
        except BaseException as exc:
            exc.add_note(f"cut {number}: line {line} of {recording.layout}, {fate}")
            raise
        shutil.rmtree(disk)
        promised += survivors.acknowledged
        processes += as_process
    effort.figure(
        PROMISE,
        f"{len(cuts)} cuts, {processes} of them followed by a process of its own; {promised} "
        "times a photo was to be there, 0 were lost",
    )
