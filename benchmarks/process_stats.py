"""What Linux tells of another process: its processor time and its memory."""

import os
from contextlib import suppress
from pathlib import Path
from typing import Final

_TICKS_PER_SECOND: Final = os.sysconf("SC_CLK_TCK")
_RESET_PEAK: Final = "5"
"""What proc(5) wants written to `clear_refs` to set VmHWM back to VmRSS."""


class ProcessStats:
    """Reads `/proc/PID` of a running process; raises OSError once it is gone."""

    def __init__(self, pid: int) -> None:
        self._folder = Path(f"/proc/{pid}")

    def cpu_seconds(self) -> float:
        """User and system time of all threads so far, in steps of a tick (mostly 10 ms)."""
        # The name of the program stands in parentheses and may hold spaces; utime and stime
        # are fields 14 and 15, counted from 1 (proc(5)).
        fields = (self._folder / "stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS_PER_SECOND

    def rss(self) -> int:
        """Bytes of memory that are resident now."""
        return self._status_bytes("VmRSS")

    def peak_rss(self) -> int:
        """Most bytes that were resident at once since the start or the last reset."""
        return self._status_bytes("VmHWM")

    def reset_peak_rss(self) -> None:
        """Start the peak anew, where that is permitted.

        Where it is not, the peak still counts from the start of the process, which can only
        make a growth look larger than it was.
        """
        with suppress(PermissionError):
            (self._folder / "clear_refs").write_text(_RESET_PEAK)

    def _status_bytes(self, name: str) -> int:
        for line in (self._folder / "status").read_text().splitlines():
            key, _, value = line.partition(":")
            if key == name:
                return int(value.split()[0]) * 1024
        raise ProcessLookupError(f"{self._folder}/status has no {name}")
