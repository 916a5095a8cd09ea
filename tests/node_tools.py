"""Real counterparts from npm: Immich's own form parsers and its command line client."""

import asyncio
import fcntl
import functools
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

NODE_DIR = Path(__file__).parent / "node"
NODE_MODULES = NODE_DIR / "node_modules"

# What @immich/cli demands; Immich itself runs on 24.
MINIMUM_NODE = 22

# A cold install fetches some 40 MB; a slow line shall pass, a dead one shall not hold the tests.
INSTALL_SECONDS = 300

# A form of a few hundred KB is parsed in milliseconds: this much means that a parser hangs.
PARSE_SECONDS = 30

# An answer holds every field value twice, each up to 1 MiB and JSON-escaped.
ANSWER_LIMIT = 64 * 2**20


def node_binary(minimum: int = MINIMUM_NODE) -> Path | None:
    """A Node of at least this major version: the installed platform package's, else PATH's."""
    for candidate in _node_candidates():
        major = _major_version(candidate)
        if major is not None and major >= minimum:
            return candidate
    return None


def _node_candidates() -> Iterator[Path]:
    yield from sorted(NODE_MODULES.glob("node-*/bin/node"))
    on_path = shutil.which("node")
    if on_path is not None:
        yield Path(on_path)


def _major_version(node: Path) -> int | None:
    # Asked rather than read from package.json: a binary for another libc is there, but won't run.
    try:
        answer = subprocess.run(
            [node, "--version"], capture_output=True, text=True, timeout=30, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    match = re.match(r"v(\d+)\.", answer)
    return int(match[1]) if match else None


def install() -> Path | None:
    """Bring node_modules in line with the lock file, once.

    Returns node_modules, or None after one loud line when that is impossible (npm missing,
    offline). Processes that call it at once wait for the first.
    """
    return NODE_MODULES if _install_failure() is None else None


# Kept, so that an offline run tries once and tells once.
@functools.cache
def _install_failure() -> str | None:
    try:
        with (NODE_DIR / ".install.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            failure = _install_locked()
    except OSError as error:
        failure = str(error)
    if failure is not None:
        print(f"\n!!! Node counterparts are SKIPPED: {failure}", file=sys.stderr, flush=True)
    return failure


def _install_locked() -> str | None:
    # Inside node_modules, so that whatever removes the packages removes the stamp.
    stamp = NODE_MODULES / ".installed"
    wanted = _wanted_stamp()
    if stamp.is_file() and stamp.read_text() == wanted and node_binary() is not None:
        return None
    npm = shutil.which("npm")
    if npm is None:
        return "npm is not on PATH"
    try:
        subprocess.run(
            [npm, "ci", "--no-audit", "--no-fund", "--ignore-scripts"],
            cwd=NODE_DIR,
            capture_output=True,
            text=True,
            timeout=INSTALL_SECONDS,
            check=True,
        )
    except subprocess.TimeoutExpired:
        return f"npm ci took longer than {INSTALL_SECONDS} s"
    except subprocess.CalledProcessError as error:
        return f"npm ci failed: {_first_error(error.stderr)}"
    # npm passes over an optional package that it could not fetch, and calls that success.
    if node_binary() is None:
        return f"no Node >= {MINIMUM_NODE} for {platform.system()} {platform.machine()}"
    stamp.write_text(wanted)
    return None


def _wanted_stamp() -> str:
    # Content rather than times, which a checkout sets anew; the platform, since a folder may be
    # mounted into a container of another one.
    digest = hashlib.sha256()
    for name in ("package.json", "package-lock.json"):
        digest.update((NODE_DIR / name).read_bytes())
    return f"{digest.hexdigest()} {platform.system()} {platform.machine()}\n"


def _first_error(stderr: str) -> str:
    lines = [line for line in stderr.splitlines() if line.startswith("npm error")]
    return "; ".join(lines[:2]) or "no reason given"


def missing_reason() -> str | None:
    """Why tests with the Node counterparts cannot run here, or None when they can."""
    failure = _install_failure()
    return None if failure is None else f"Node counterparts missing: {failure}"


def require_node() -> Path:
    """The Node binary to use.

    Raises LookupError when there is none.
    """
    node = node_binary()
    if node is None:
        raise LookupError(f"no Node of version {MINIMUM_NODE} or later")
    return node


def immich_cli_command() -> list[str]:
    """The command line client of Immich, to be followed by its arguments."""
    return [str(require_node()), str(NODE_MODULES / "@immich" / "cli" / "bin" / "immich")]


@dataclass(frozen=True)
class ParsedFile:
    """A file part as a parser saw it."""

    name: str
    filename: str | None
    mime_type: str
    size: int | None
    sha256: str | None


@dataclass(frozen=True)
class ParsedForm:
    """A whole form as one parser saw it."""

    fields: list[tuple[str, str]]
    files: list[ParsedFile]
    error: str | None

    @classmethod
    def from_answer(cls, answer: dict[str, Any]) -> Self:
        return cls(
            fields=[(name, value) for name, value in answer["fields"]],
            files=[
                ParsedFile(
                    name=file["name"],
                    filename=file["filename"],
                    mime_type=file["mimeType"],
                    # Absent when an error came before the file's end.
                    size=file.get("size"),
                    sha256=file.get("sha256"),
                )
                for file in answer["files"]
            ],
            error=answer["error"],
        )


@dataclass(frozen=True)
class ParsedForms:
    """The same form as busboy by itself and as multer, set up as in Immich, saw it."""

    busboy: ParsedForm
    multer: ParsedForm


class FormParser:
    """A Node process that parses one multipart form after another."""

    def __init__(self) -> None:
        self._process: asyncio.subprocess.Process | None = None
        self._turn = asyncio.Lock()

    async def __aenter__(self) -> Self:
        self._process = await asyncio.create_subprocess_exec(
            str(require_node()),
            str(NODE_DIR / "parse_forms.js"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=ANSWER_LIMIT,
            # A NODE_OPTIONS of the surrounding shell may name modules that only it knows.
            env={name: value for name, value in os.environ.items() if name != "NODE_OPTIONS"},
        )
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        process = self._process
        self._process = None
        if process is None:
            return
        if process.stdin is not None:
            process.stdin.close()
        try:
            async with asyncio.timeout(PARSE_SECONDS):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()

    async def parse(
        self, content_type: str, body: bytes, *, piece_size: int = 64 * 1024
    ) -> ParsedForms:
        """Parse a form, handed to the parsers in pieces of `piece_size` bytes.

        Raises RuntimeError when the process ends, TimeoutError when a parser hangs.
        """
        process = self._process
        if process is None or process.stdin is None or process.stdout is None:
            raise RuntimeError("the form parser is not running")
        header = json.dumps({"contentType": content_type, "slice": piece_size}).encode()
        async with self._turn, asyncio.timeout(PARSE_SECONDS):
            for frame in (header, body):
                process.stdin.write(len(frame).to_bytes(4, "big") + frame)
            await process.stdin.drain()
            line = await process.stdout.readline()
        if not line:
            raise RuntimeError(f"the form parser ended with {await process.wait()}")
        answer = json.loads(line)
        return ParsedForms(
            busboy=ParsedForm.from_answer(answer["busboy"]),
            multer=ParsedForm.from_answer(answer["multer"]),
        )
