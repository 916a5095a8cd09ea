"""Helm itself, a shared library from a package of PyPI: fetched once, never installed."""

import fcntl
import functools
import hashlib
import platform
import subprocess
import sys
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory

REQUIREMENT = Path(__file__).with_name("engine-requirement.txt")

# In the environment that runs the tests, and gone with it.
FOLDER = Path(sys.prefix) / "share" / "helm-engine"

# Some 50 MB: a slow line shall pass, a dead one shall not hold the tests.
DOWNLOAD_SECONDS = 300


class LibraryMissingError(Exception):
    """Helm cannot be had on this machine; the message says why."""


@functools.cache
def helm_library() -> Path:
    """The shared library, downloaded at the first call on a machine.

    Processes that call it at once wait for the first. Raises `LibraryMissingError`.
    """
    library = FOLDER / f"libhelm-{_wanted()}.so"
    try:
        FOLDER.mkdir(parents=True, exist_ok=True)
        with (FOLDER / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not library.is_file():
                _fetch(library)
    except OSError as error:
        raise LibraryMissingError(str(error)) from error
    return library


def _wanted() -> str:
    return hashlib.sha256(REQUIREMENT.read_bytes()).hexdigest()[:16]


def _fetch(library: Path) -> None:
    # On the same file system, so that the library appears whole or not at all.
    with TemporaryDirectory(dir=FOLDER) as folder:
        unpacked = Path(folder) / "library"
        unpacked.write_bytes(_read_library(_download(Path(folder))))
        for old in FOLDER.glob("libhelm-*.so"):
            old.unlink()
        unpacked.rename(library)


def _download(folder: Path) -> Path:
    # `download` rather than `install`: pip then takes a package for another Python as it is.
    command = [
        *(sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet"),
        *("--requirement", str(REQUIREMENT), "--require-hashes", "--dest", str(folder)),
        *("--no-deps", "--only-binary=:all:", "--python-version=3.12"),
    ]
    try:
        subprocess.run(
            command, capture_output=True, text=True, timeout=DOWNLOAD_SECONDS, check=True
        )
    except subprocess.TimeoutExpired:
        raise LibraryMissingError(f"its download took over {DOWNLOAD_SECONDS} s") from None
    except subprocess.CalledProcessError as error:
        reason = error.stderr.strip().splitlines() or ["pip gave no reason"]
        raise LibraryMissingError(reason[-1]) from None
    return next(folder.glob("*.whl"))


def _read_library(wheel: Path) -> bytes:
    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    member = f"helm_sdkpy/_lib/{platform.system().lower()}-{machine}/libhelm_sdkpy.so"
    with zipfile.ZipFile(wheel) as archive:
        try:
            return archive.read(member)
        except KeyError:
            raise LibraryMissingError(
                f"the package has no Helm for {platform.system()} {platform.machine()}"
            ) from None
