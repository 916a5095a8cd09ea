"""Programs that the benchmark runs: found, or installed from Debian's packages."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

_INSTALL_SECONDS: Final = 300
# Servers lie in folders that only root has on its PATH.
_PATH: Final = os.pathsep.join(
    (str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin")
)


class Missing(Exception):
    """A program that is not here and cannot be had; the message says why."""


def program(name: str, *packages: str) -> Path:
    """The program `name`, installed with Debian `packages` if it is missing.

    Raises `Missing`. Without packages nothing is installed. What is installed is not started:
    each server here runs on a port and with a configuration of its own.
    """
    found = shutil.which(name, path=_PATH)
    if found is None and packages:
        _install(packages)
        found = shutil.which(name, path=_PATH)
    if found is None:
        raise Missing(f"no program {name}")
    return Path(found)


def _install(packages: tuple[str, ...]) -> None:
    apt = shutil.which("apt-get")
    if apt is None or os.geteuid() != 0:
        raise Missing(f"{' '.join(packages)}: only root with apt-get can install it")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    for command in (["update"], ["install", "--no-install-recommends", *packages]):
        try:
            done = subprocess.run(
                [apt, "--quiet=2", "--yes", *command],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=_INSTALL_SECONDS,
                env=environment,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise Missing(f"apt-get {command[0]} took over {_INSTALL_SECONDS} s") from None
        if done.returncode:
            lines = done.stderr.strip().splitlines()
            raise Missing(f"apt-get {command[0]} failed: {lines[-1] if lines else 'no reason'}")
