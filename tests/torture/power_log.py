"""The log of strace as calls: what a server asked of the kernel, and in which order it happened."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

_WRITING: Final = (
    "write pwrite64 writev pwritev pwritev2 ftruncate truncate fallocate copy_file_range splice "
    "sendfile sendto sendmsg mmap"
)
_NAMING: Final = (
    "openat open creat mkdir mkdirat rename renameat renameat2 link linkat symlink symlinkat "
    "unlink unlinkat rmdir"
)
_SYNCING: Final = "fsync fdatasync sync syncfs sync_file_range msync"
_DESCRIBING: Final = "close dup dup2 dup3 fcntl lseek clone clone3 fork vfork"
TRACED: Final = frozenset(f"{_WRITING} {_NAMING} {_SYNCING} {_DESCRIBING}".split())
"""All that changes files, makes them durable, or tells which file a descriptor stands for."""

OPTIONS: Final = (
    "--follow-forks",
    "--strings-in-hex=all",
    "--string-limit=16777216",
    f"--trace={','.join(sorted(TRACED))}",
)
"""What strace has to be given for `read_calls` to understand its log."""

_LINE: Final = re.compile(
    rb"(?P<thread>\d+) +(?:"
    rb"(?P<begun>\w+)\((?P<first>.*) <unfinished \.\.\.>|"
    rb"<\.\.\. (?P<resumed>\w+) resumed>(?P<rest>.*)\) += (?P<late>\S+).*|"
    rb"(?P<whole>\w+)\((?P<arguments>.*)\) += (?P<result>\S+).*|"
    rb"(?:---|\+\+\+) .*)",
    re.DOTALL,
)
_STRING: Final = re.compile(rb'"([^"]*)"(\.\.\.)?')


class UnreadableLog(Exception):
    """The log holds something that cannot be replayed faithfully."""


@dataclass(frozen=True)
class Span:
    """From when to when something happened, in lines of the log.

    It may have taken effect from `begun` on, and has certainly done so by `ended`.
    """

    begun: int
    ended: int


@dataclass(frozen=True)
class Call(Span):
    """A system call that succeeded. `arguments` are as strace writes them, strings as `"`."""

    name: str
    arguments: tuple[str, ...]
    strings: tuple[bytes, ...]
    result: int

    def number(self, position: int) -> int:
        """The argument at `position`, which is a decimal number."""
        return int(self.arguments[position])


def read_calls(log: Path, first_line: int = 0) -> list[Call]:
    """The calls of a log that succeeded, in the order in which they ended.

    Only `close` stands where it began: from then on the kernel may give its descriptor to
    somebody else. Lines count from `first_line`.
    """
    calls = list(_calls(log, first_line))
    calls.sort(key=lambda call: call.begun if call.name == "close" else call.ended)
    return calls


def _calls(log: Path, first_line: int) -> Iterator[Call]:
    unfinished: dict[bytes, tuple[int, bytes]] = {}
    with log.open("rb") as lines:
        for number, line in enumerate(lines, first_line):
            found = _LINE.fullmatch(line.rstrip(b"\n"))
            if found is None:
                raise UnreadableLog(repr(line[:200]))
            if found["begun"]:
                unfinished[found["thread"]] = number, found["first"]
            elif found["resumed"]:
                begun, first = unfinished.pop(found["thread"])
                call = _call(found["resumed"], first + found["rest"], found["late"], number)
                if call is not None:
                    yield replace(call, begun=begun)
            elif found["whole"]:
                call = _call(found["whole"], found["arguments"], found["result"], number)
                if call is not None:
                    yield call


def _call(name: bytes, arguments: bytes, result: bytes, line: int) -> Call | None:
    if result == b"?" or result.startswith(b"-"):
        return None
    strings = []

    def take(found: re.Match[bytes]) -> bytes:
        if found[2]:
            raise UnreadableLog(f"line {line}: strace has cut a string short")
        strings.append(bytes.fromhex(found[1].replace(b"\\x", b"").decode()))
        return b'"'

    bare = _STRING.sub(take, arguments).decode()
    return Call(
        begun=line,
        ended=line,
        name=name.decode(),
        arguments=tuple(bare.split(", ")),
        strings=tuple(strings),
        result=int(result, 0),
    )
