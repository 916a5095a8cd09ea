"""What Linux tells of other processes: their processor time and their memory."""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

_PROC: Final = Path("/proc")
_TICKS_PER_SECOND: Final = os.sysconf("SC_CLK_TCK")
_RESET_PEAK: Final = "5"
"""What proc(5) wants written to `clear_refs` to set VmHWM back to VmRSS."""
# Fields of /proc/PID/stat behind the name of the program (proc(5) counts from 1, the name is 2).
_SESSION: Final = 6 - 3
_UTIME: Final = 14 - 3
_STIME: Final = 15 - 3


class ProcessStats:
    """Reads `/proc` of the session that `leader` leads: workers count with their master."""

    def __init__(self, leader: int) -> None:
        self._leader = leader

    def cpu_seconds(self) -> float:
        """User and system time of all threads so far, in steps of a tick (mostly 10 ms)."""
        ticks = sum(int(stat[_UTIME]) + int(stat[_STIME]) for _, stat in self._members())
        return ticks / _TICKS_PER_SECOND

    def rss(self) -> int:
        """Bytes of memory that are resident now; what processes share counts in each."""
        return self._status_bytes("VmRSS")

    def peak_rss(self) -> int:
        """Most bytes that were resident in each process since its start or the last reset."""
        return self._status_bytes("VmHWM")

    def descriptors(self) -> int:
        """How many file descriptors are open."""
        return sum(len(list((folder / "fd").iterdir())) for folder, _ in self._members())

    def reset_peak_rss(self) -> None:
        """Start the peak anew, where that is permitted.

        Where it is not, the peak still counts from the start of the process, which can only
        make a growth look larger than it was.
        """
        for folder, _ in self._members():
            with suppress(PermissionError):
                (folder / "clear_refs").write_text(_RESET_PEAK)

    def _members(self) -> Iterator[tuple[Path, list[str]]]:
        """Each process of the session, with the fields of its `stat` behind the name."""
        for folder in _PROC.iterdir():
            if not folder.name.isdecimal():
                continue
            with suppress(OSError):
                # The name stands in parentheses and may hold spaces and parentheses.
                stat = (folder / "stat").read_text().rpartition(")")[2].split()
                if int(stat[_SESSION]) == self._leader:
                    yield folder, stat

    def _status_bytes(self, name: str) -> int:
        total = 0
        for folder, _ in self._members():
            for line in (folder / "status").read_text().splitlines():
                key, _, value = line.partition(":")
                if key == name:
                    total += int(value.split()[0]) * 1024
        if not total:
            raise ProcessLookupError(f"no process of session {self._leader} has {name}")
        return total
