"""A disk that promises no more than POSIX does, and what a power cut may leave on it.

What was written to a file is safe once the file was synced after it; a name in a folder once
the folder was. Of all else any part may have arrived, in any order. What is weaker still than
ext4 and XFS is left out: a sector is never half old and half new.
"""

import bisect
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, get_args

from torture.power_log import Span

Survival = Literal["none", "all", "some"]
"""How much of what was not synced is there after the cut."""

_SECTORS: Final = (512, 4096)


@dataclass(frozen=True)
class Write:
    """Bytes that a call put into a file."""

    span: Span
    offset: int
    data: bytes


@dataclass(frozen=True)
class Truncation:
    """A call that set the size of a file."""

    span: Span
    size: int


Change = Write | Truncation


@dataclass(frozen=True)
class Binding:
    """What a name of a folder stands for from some call on; `inode` None: nothing.

    `number` counts the changes of all folders. A rename is one change with two bindings.
    """

    span: Span
    number: int
    inode: "Inode | None"


class _Synced:
    """Something that can be synced, and when it was."""

    def __init__(self) -> None:
        self.syncs: list[Span] = []

    def settled_until(self, at: int) -> int:
        """At `at`, what had ended before this line is on disk."""
        return max((sync.begun for sync in self.syncs if sync.ended <= at), default=-1)

    def settled(self, change: Span, at: int) -> bool:
        """Whether a sync that began after `change` had ended by `at`."""
        return change.ended < self.settled_until(at)


class File(_Synced):
    """A file with its history, in the order in which the calls ended."""

    def __init__(self) -> None:
        super().__init__()
        self.changes: list[Change] = []

    def written(self) -> bytes:
        """What its readers saw at the end of its history."""
        content = bytearray()
        for change in self.changes:
            _apply(content, change)
        return bytes(content)

    def content(self, at: int, fate: "Fate") -> bytes:
        """What a power cut at `at` leaves of it."""
        settled, open_ = self._split(at)
        content = bytearray()
        for change in settled:
            _apply(content, change)
        sizes = [len(content)]
        for change in open_:
            if isinstance(change, Truncation):
                sizes.append(change.size)
                if fate.data_survives():
                    _apply(content, change)
                continue
            sizes.append(max(sizes[-1], change.offset + len(change.data)))
            for piece in _sectors(change, fate.sector):
                if fate.data_survives():
                    _apply(content, piece)
        # The size is written apart from the bytes: either may be there without the other.
        size = fate.data_choice(sizes)
        return bytes(content[:size].ljust(size, b"\0"))

    def _split(self, at: int) -> tuple[list[Change], list[Change]]:
        settled = self.settled_until(at)
        end = bisect.bisect_left(self.changes, settled, key=lambda change: change.span.ended)
        rest = [change for change in self.changes[end:] if change.span.begun <= at]
        return self.changes[:end], rest


class Folder(_Synced):
    """A folder with the history of each of its names, in the order in which the calls ended."""

    def __init__(self) -> None:
        super().__init__()
        self.names: dict[str, list[Binding]] = {}

    def now(self, name: str) -> "Inode | None":
        """What the name stands for at the end of its history so far."""
        history = self.names.get(name)
        return history[-1].inode if history else None

    def possible(self, name: str, at: int) -> list[Binding | None]:
        """What the name may stand for after a power cut; None: it was never there."""
        candidates: list[Binding | None] = [None]
        settled = self.settled_until(at)
        for binding in self.names.get(name, ()):
            if binding.span.begun <= at:
                if binding.span.ended < settled:
                    candidates.clear()
                candidates.append(binding)
        return candidates


Inode = File | Folder


@dataclass
class Fate:
    """What one power cut does.

    `journal` None: of each name any state since the last sync of its folder may be on disk,
    whatever became of other names. Else the file system has an ordered journal: the changes
    of all folders up to that number survive, those after it do not.
    """

    chance: random.Random
    names: Survival = "some"
    data: Survival = "some"
    journal: int | None = None
    sector: int = _SECTORS[0]
    _data_share: float = field(init=False)

    def __post_init__(self) -> None:
        self._data_share = {"none": 0.0, "all": 1.0, "some": self.chance.random()}[self.data]

    def data_survives(self) -> bool:
        """Whether one sector or truncation has arrived."""
        return self.chance.random() < self._data_share

    def data_choice(self, sizes: list[int]) -> int:
        """One of the sizes of a file since it was synced."""
        return sizes[self._index(self.data, len(sizes))]

    def binding(self, possible: list[Binding | None]) -> "Inode | None":
        """What a name stands for, of all that it may."""
        if self.journal is None:
            chosen = possible[self._index(self.names, len(possible))]
        else:
            chosen = [b for b in possible if b is None or b.number <= self.journal][-1]
        return chosen.inode if chosen else None

    def _index(self, survival: Survival, length: int) -> int:
        return {"none": 0, "all": length - 1, "some": self.chance.randrange(length)}[survival]


@dataclass(frozen=True)
class Naming:
    """That a name of a folder stood for something from some call on."""

    folder: Folder
    name: str
    binding: Binding

    @property
    def span(self) -> Span:
        """When the call was made."""
        return self.binding.span


class Disk:
    """A disk that holds one empty folder to begin with."""

    def __init__(self) -> None:
        self.root = Folder()
        self.namings: list[Naming] = []
        """In the order in which the calls ended."""
        self._changes = 0

    def bind(self, span: Span, *bindings: tuple[Folder, str, Inode | None]) -> None:
        """Have names stand for something else, all in one change."""
        self._changes += 1
        for folder, name, inode in bindings:
            binding = Binding(span, self._changes, inode)
            folder.names.setdefault(name, []).append(binding)
            self.namings.append(Naming(folder, name, binding))

    def names_of(self, inode: Inode) -> list[Naming]:
        """Every name that it ever got."""
        return [naming for naming in self.namings if naming.binding.inode is inode]

    def way_to(self, folder: Folder) -> list[Naming]:
        """How `folder` was reached from the root by its first name."""
        if folder is self.root:
            return []
        naming = self.names_of(folder)[0]
        return [*self.way_to(naming.folder), naming]

    def fate(self, at: int, chance: random.Random, survival: Survival | None = None) -> Fate:
        """What a cut at `at` does: `survival` to all that is not synced, or anything legal."""
        sector = chance.choice(_SECTORS)
        if survival is not None:
            return Fate(chance, survival, survival, sector=sector)
        names, data = (chance.choice(get_args(Survival)) for _ in range(2))
        journal = self._cut_journal(at, chance) if chance.random() < 0.5 else None
        return Fate(chance, names, data, journal, sector)

    def leave(self, at: int, fate: Fate, target: Path) -> None:
        """Make in the empty folder `target` what a power cut at `at` leaves."""
        contents: dict[File, bytes] = {}
        for path, inode in _walk(self.root, at, fate):
            if isinstance(inode, Folder):
                (target / path).mkdir()
                continue
            if inode not in contents:
                contents[inode] = inode.content(at, fate)
            (target / path).write_bytes(contents[inode])

    def _cut_journal(self, at: int, chance: random.Random) -> int:
        begun = [naming for naming in self.namings if naming.span.begun <= at]
        settled = {folder: folder.settled_until(at) for folder in {n.folder for n in begun}}
        written = [n.binding.number for n in begun if n.span.ended < settled[n.folder]]
        last = max((naming.binding.number for naming in begun), default=0)
        return chance.randint(max(written, default=0), last)


def _walk(folder: Folder, at: int, fate: Fate) -> Iterator[tuple[Path, Inode]]:
    for name in folder.names:
        inode = fate.binding(folder.possible(name, at))
        if inode is not None:
            yield Path(name), inode
        if isinstance(inode, Folder):
            yield from ((Path(name) / path, below) for path, below in _walk(inode, at, fate))


def _sectors(write: Write, size: int) -> Iterator[Write]:
    """The write cut at the borders of sectors."""
    start = 0
    while start < len(write.data):
        end = start + size - (write.offset + start) % size
        yield Write(write.span, write.offset + start, write.data[start:end])
        start = end


def _apply(content: bytearray, change: Change) -> None:
    end = change.size if isinstance(change, Truncation) else change.offset
    if len(content) < end:
        content.extend(bytes(end - len(content)))
    if isinstance(change, Truncation):
        del content[end:]
    else:
        content[end : end + len(change.data)] = change.data
