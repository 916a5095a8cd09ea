"""An Immich made of Node's own HTTP parser, and what it tells of the requests it has seen."""

import asyncio
import json
import os
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from node_tools import require_node
from wire import PATIENCE

_PROGRAM: Final = Path(__file__).with_name("node_upstream.js")
_LINE_LIMIT: Final = 16 * 2**20
"""A refused packet is told in full, and JSON escapes its bytes."""


@dataclass(frozen=True)
class Seen:
    """A request as Node understood it. `digest` is the SHA-256 of its body in hexadecimal digits.

    Of an upload form length and digest are those of the file in it.
    """

    serial: int
    """Also in the header `X-Seen` of the answer to it."""
    method: str
    target: bytes
    headers: tuple[tuple[bytes, bytes], ...]
    complete: bool
    """Whether it came to its end; nothing is known of the body of one that did not."""
    length: int | None = None
    digest: str | None = None

    @classmethod
    def from_line(cls, told: dict[str, Any]) -> Self:
        """Read what the program wrote."""
        flat = [text.encode("latin-1") for text in told["headers"]]
        return cls(
            serial=told["serial"],
            method=told["method"],
            target=told["target"].encode("latin-1"),
            headers=tuple(zip(flat[::2], flat[1::2], strict=True)),
            complete=told["complete"],
            length=told.get("length"),
            digest=told.get("digest"),
        )

    @property
    def client(self) -> str:
        """The address that the bridge saw at the other end: out of the clients' reach."""
        values = [value for name, value in self.headers if name.lower() == b"x-forwarded-for"]
        assert len(values) == 1, f"X-Forwarded-For came {len(values)} times: {self}"
        return values[0].decode()


@dataclass(frozen=True)
class Refused:
    """Bytes that Node's parser did not take for a request."""

    code: str
    bytes_read: bytes


class NodeUpstream:
    """The Node process. An async context manager."""

    def __init__(self) -> None:
        self.seen: list[Seen] = []
        self.refused: list[Refused] = []
        self.url = ""
        self._quiet = asyncio.Event()
        self._process: asyncio.subprocess.Process
        self._following: asyncio.Task[None]

    async def __aenter__(self) -> Self:
        self._process = await asyncio.create_subprocess_exec(
            str(require_node()),
            str(_PROGRAM),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=_LINE_LIMIT,
            # A NODE_OPTIONS of the surrounding shell might make its parser lenient.
            env={name: value for name, value in os.environ.items() if name != "NODE_OPTIONS"},
        )
        assert self._process.stdout is not None
        first = await asyncio.wait_for(self._process.stdout.readline(), PATIENCE)
        self.url = f"http://127.0.0.1:{json.loads(first)['port']}"
        self._following = asyncio.create_task(self._follow(self._process.stdout))
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            await asyncio.wait_for(self._process.wait(), PATIENCE)
        except TimeoutError:
            self._process.kill()
            await self._process.wait()
        await self._following

    async def quiet(self, seconds: float) -> None:
        """Return once no connection is left, and all is told; raises `TimeoutError`."""
        assert self._process.stdin is not None
        self._quiet.clear()
        self._process.stdin.write(b"quiet\n")
        await asyncio.wait_for(self._quiet.wait(), seconds)

    async def _follow(self, stdout: asyncio.StreamReader) -> None:
        async for line in stdout:
            told = json.loads(line)
            if "seen" in told:
                self.seen.append(Seen.from_line(told["seen"]))
            elif "refused" in told:
                self.refused.append(Refused(told["refused"], told["bytes"].encode("latin-1")))
            else:
                self._quiet.set()
