"""File systems of a test's own, for faults that only a real one has. Needs root."""

import subprocess
from contextlib import suppress
from pathlib import Path

import pytest


def mounted(*arguments: str) -> None:
    """Run mount(8); skip the test where that is not permitted."""
    try:
        subprocess.run(["mount", *arguments], check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as exc:
        reason = getattr(exc, "stderr", "") or exc
        pytest.skip(f"NOT TESTED, cannot mount a file system of its own: {reason}")


def filled(disk: Path) -> Path:
    """Leave no room on `disk`; the file to remove when there shall be some again."""
    filler = disk / "filler"
    with suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    return filler
