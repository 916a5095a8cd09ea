"""The calls of a log applied to the model of a disk, and the answers that left in between."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from torture.power_disk import Disk, File, Folder, Inode, Truncation, Write
from torture.power_log import Call, UnreadableLog

_ANSWER: Final = re.compile(rb"HTTP/1\.1 200 .*?\r\nX-Request-Id: ([^\r]+)\r\n", re.DOTALL)
_MAPPED: Final = "-shm"
"""SQLite writes its index of the WAL through memory, and makes it anew after a crash."""

_Place = tuple[Folder, str]


@dataclass
class _Open:
    """What a descriptor stands for, and where in it the next write goes."""

    inode: Inode
    name: str
    position: int = 0

    @property
    def file(self) -> File:
        """The file that it must be, since it is written to."""
        assert isinstance(self.inode, File)
        return self.inode


class Replay:
    """Fills `disk` with the history of everything below `root`.

    Raises `UnreadableLog` for whatever happens there and is not modelled.
    """

    def __init__(self, root: Path) -> None:
        self.disk = Disk()
        self.answered: dict[str, int] = {}
        """Request id -> the line at which the server began to send its 200."""
        self.lines: set[int] = set()
        """Where something happened to the disk."""
        self.syncs = 0
        self._root = root
        self._above = Folder()
        self._descriptors: dict[int, _Open] = {}
        # Each says whether its call changed or synced something.
        self._apply: dict[str, Callable[[Call], bool]] = {
            "openat": self._open,
            "close": self._close,
            **dict.fromkeys(("dup", "dup2", "dup3", "fcntl"), self._duplicate),
            "lseek": self._seek,
            **dict.fromkeys(("write", "writev"), self._write),
            "pwrite64": self._write_at,
            "ftruncate": self._truncate,
            **dict.fromkeys(("fsync", "fdatasync"), self._sync),
            "mkdir": self._make_folder,
            "link": self._link,
            "rename": self._rename,
            **dict.fromkeys(("unlink", "rmdir", "unlinkat"), self._remove),
            "mmap": self._map,
            **dict.fromkeys(("sendto", "sendmsg", "sync", "msync"), self._pass),
            **dict.fromkeys(("clone", "clone3", "fork", "vfork"), self._start),
        }

    def process(self, calls: Iterable[Call]) -> None:
        """Apply the calls of one process, from its start to its end."""
        self._descriptors.clear()
        for call in calls:
            if self._apply.get(call.name, self._not_modelled)(call):
                self.lines |= {call.begun, call.ended}
            elif answer := _ANSWER.match(b"".join(call.strings)):
                self.answered[answer[1].decode()] = call.begun

    def _open(self, call: Call) -> bool:
        self._descriptors.pop(call.result, None)
        if (place := self._place(call, call.strings[0], call.arguments[0])) is None:
            return False
        folder, name = place
        flags = call.arguments[2].split("|")
        if "O_APPEND" in flags:
            raise UnreadableLog(f"line {call.begun}: appending is not modelled")
        inode = self._inode(place)
        created = inode is None
        if inode is None:
            inode = File()
            self.disk.bind(call, (folder, name, inode))
        elif "O_TRUNC" in flags:
            raise UnreadableLog(f"line {call.begun}: emptying a file is not modelled")
        self._descriptors[call.result] = _Open(inode, name)
        return created

    def _close(self, call: Call) -> bool:
        self._descriptors.pop(call.number(0), None)
        return False

    def _duplicate(self, call: Call) -> bool:
        if call.name == "fcntl" and not call.arguments[1].startswith("F_DUPFD"):
            return False
        self._descriptors.pop(call.result, None)
        if opened := self._descriptors.get(call.number(0)):
            self._descriptors[call.result] = opened
        return False

    def _seek(self, call: Call) -> bool:
        if opened := self._descriptors.get(call.number(0)):
            opened.position = call.result
        return False

    def _write(self, call: Call) -> bool:
        if (opened := self._descriptors.get(call.number(0))) is None:
            return False
        data = b"".join(call.strings)[: call.result]
        opened.file.changes.append(Write(call, opened.position, data))
        opened.position += len(data)
        return True

    def _write_at(self, call: Call) -> bool:
        if (opened := self._descriptors.get(call.number(0))) is None:
            return False
        data = call.strings[0][: call.result]
        opened.file.changes.append(Write(call, call.number(3), data))
        return True

    def _truncate(self, call: Call) -> bool:
        if (opened := self._descriptors.get(call.number(0))) is None:
            return False
        opened.file.changes.append(Truncation(call, call.number(1)))
        return True

    def _sync(self, call: Call) -> bool:
        if (opened := self._descriptors.get(call.number(0))) is None:
            return False
        opened.inode.syncs.append(call)
        self.syncs += 1
        return True

    def _make_folder(self, call: Call) -> bool:
        if (place := self._place(call, call.strings[0])) is None:
            return False
        self.disk.bind(call, (*place, Folder()))
        return True

    def _link(self, call: Call) -> bool:
        old, new = (self._place(call, path) for path in call.strings)
        if old is None or new is None:
            return False
        self.disk.bind(call, (*new, self._inode(old)))
        return True

    def _rename(self, call: Call) -> bool:
        old, new = (self._place(call, path) for path in call.strings)
        if old is None or new is None:
            return False
        self.disk.bind(call, (*new, self._inode(old)), (*old, None))
        return True

    def _remove(self, call: Call) -> bool:
        if (place := self._place(call, call.strings[0], call.arguments[0])) is None:
            return False
        self.disk.bind(call, (*place, None))
        return True

    def _map(self, call: Call) -> bool:
        opened = self._descriptors.get(call.number(4))
        writes = "MAP_SHARED" in call.arguments[3] and "PROT_WRITE" in call.arguments[2]
        if opened is not None and writes and not opened.name.endswith(_MAPPED):
            raise UnreadableLog(f"line {call.begun}: {opened.name} is written through memory")
        return False

    def _start(self, call: Call) -> bool:
        if "CLONE_THREAD" not in " ".join(call.arguments):
            raise UnreadableLog(f"line {call.begun}: a second process has descriptors of its own")
        return False

    def _pass(self, call: Call) -> bool:
        return False

    def _not_modelled(self, call: Call) -> bool:
        numbers = {int(text) for text in call.arguments if text.isdecimal()}
        paths = (self._place(call, string) for string in call.strings)
        if numbers & self._descriptors.keys() or any(path is not None for path in paths):
            raise UnreadableLog(f"line {call.begun}: {call.name} is not modelled")
        return False

    def _place(self, call: Call, path: bytes, folder: str = "AT_FDCWD") -> _Place | None:
        """Folder and name that a path of a call leads to; None outside the root."""
        text = path.decode(errors="replace")
        start = self.disk.root
        if folder.isdecimal():
            opened = self._descriptors.get(int(folder))
            if opened is None:
                return None
            assert isinstance(opened.inode, Folder)
            start = opened.inode
        elif Path(text) == self._root:
            return self._above, ""
        elif Path(text).is_relative_to(self._root):
            text = str(Path(text).relative_to(self._root))
        else:
            return None
        *above, name = Path(text).parts
        for each in above:
            inode = start.now(each)
            if not isinstance(inode, Folder):
                raise UnreadableLog(f"line {call.begun}: {text} is unknown")
            start = inode
        return start, name

    def _inode(self, place: _Place) -> Inode | None:
        folder, name = place
        return self.disk.root if folder is self._above else folder.now(name)
