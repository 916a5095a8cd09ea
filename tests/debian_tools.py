"""Programs from Debian packages: installed by the run that needs them, where that is possible."""

import fcntl
import functools
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

INSTALL_SECONDS: Final = 300
"""A cold package index and some tens of MB pass; a dead line shall not hold the tests."""

_POLICY: Final = Path("/usr/sbin/policy-rc.d")


def program(name: str, package: str) -> Path:
    """The program `name`, installed with `package` when it is missing.

    Installs only as root and with apt-get. Where the program cannot be had the test is
    skipped, but fails where the environment says `CI`: there nobody reads of skips.
    """
    found = _search(name)
    failure = None if found else _install_failure(package)
    found = found or _search(name)
    if found is not None:
        return found
    reason = f"!!! NOT TESTED: no {name}: {failure or f'package {package} brought none'}"
    if os.environ.get("CI"):
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def _search(name: str) -> Path | None:
    # Servers lie in folders that only root has on its PATH.
    path = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"))
    found = shutil.which(name, path=path)
    return Path(found) if found else None


# Kept, so that an offline run tries each package once.
@functools.cache
def _install_failure(package: str) -> str | None:
    apt = shutil.which("apt-get")
    if apt is None:
        return "there is no apt-get"
    if os.geteuid() != 0:
        return f"only root may install {package}"
    # Processes that come here at once wait for the first; this file is a lock as good as any.
    with Path(__file__).open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with _services_stay_down():
            return _run(apt, "update") or _run(apt, "install", "--no-install-recommends", package)


@contextmanager
def _services_stay_down() -> Iterator[None]:
    """Have no package start its service: a test starts its own, on its own port."""
    if _POLICY.exists():
        yield
        return
    _POLICY.write_text("#!/bin/sh\nexit 101\n")
    _POLICY.chmod(0o755)
    try:
        yield
    finally:
        _POLICY.unlink(missing_ok=True)


def _run(apt: str, *arguments: str) -> str | None:
    """Run apt-get; why it failed, or None."""
    command = [apt, "--quiet=2", "--yes", f"--option=DPkg::Lock::Timeout={INSTALL_SECONDS}"]
    try:
        done = subprocess.run(
            [*command, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=INSTALL_SECONDS,
            env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"apt-get {arguments[0]} took longer than {INSTALL_SECONDS} s"
    if done.returncode == 0:
        return None
    errors = [line for line in done.stderr.splitlines() if line.startswith("E:")]
    return f"apt-get {arguments[0]} failed: {'; '.join(errors[:2]) or 'no reason given'}"
