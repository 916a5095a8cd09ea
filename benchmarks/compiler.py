"""Compiles the helpers in `native/`: Python would be the bottleneck for small requests."""

import subprocess
from pathlib import Path
from typing import Final

from programs import program

_SOURCES: Final = Path(__file__).parent / "native"
_OPTIONS: Final = ("-O2", "-Wall", "-Wextra", "-std=c11")


def compiled(name: str, folder: Path) -> Path:
    """The program made of `native/NAME.c`, in `folder`; raises `programs.Missing`."""
    compiler = program("cc", "gcc", "libc6-dev")
    target = folder / name
    subprocess.run([compiler, *_OPTIONS, "-o", target, _SOURCES / f"{name}.c"], check=True)
    return target
