"""An app that sends photos in the background: each as the raw body of one request."""

import asyncio
import json
import random
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

import pytest

from front import let_time_pass
from immich_standin import StandIn
from wire import PATIENCE, Message, Peer, chunked, connect, request

ROUTE: Final = "/api/assets/background"
KEY: Final = ("x-api-key", StandIn.api_key)
NAME: Final = ("X-Filename", "IMG_0001.jpg")
CHUNKED: Final = ("Transfer-Encoding", "chunked")
PIECE: Final = 64 * 1024

both_releases = pytest.mark.parametrize("immich", [3, 2], ids=["v3", "v2"], indirect=True)


def jpeg(size: int, seed: int = 0) -> bytes:
    """A photo of that size, different for each seed."""
    start = b"\xff\xd8\xff\xe1"[:size]
    return start + random.Random(f"{size} {seed}").randbytes(size - len(start))


def pieces_of(body: bytes, size: int = PIECE) -> list[bytes]:
    return [body[at : at + size] for at in range(0, len(body), size)]


def upload_request(
    body: bytes, *headers: tuple[str, str], query: str = "", in_chunks: bool = False
) -> bytes:
    """An upload without credentials; the framing is added."""
    target = f"{ROUTE}?{query}" if query else ROUTE
    if in_chunks:
        framed = chunked(*pieces_of(body, 10_000))
        return request("POST", target, CHUNKED, *headers, body=framed)
    return request("POST", target, ("Content-Length", str(len(body))), *headers, body=body)


def upload_head(length: int, *headers: tuple[str, str]) -> bytes:
    """The head of an upload whose body is yet to come."""
    return request("POST", ROUTE, KEY, NAME, ("Content-Length", str(length)), *headers)


async def upload(
    url: str,
    body: bytes,
    *headers: tuple[str, str],
    query: str = "",
    in_chunks: bool = False,
    key: str = StandIn.api_key,
) -> Message:
    """An upload on a connection of its own; an empty key leaves out the credentials."""
    credentials = [("x-api-key", key)] if key else []
    async with connect(url) as peer:
        await peer.send(
            upload_request(body, *credentials, *headers, query=query, in_chunks=in_chunks)
        )
        return await peer.read_answer()


def result(answer: Message) -> dict[str, Any]:
    """The JSON of an answer."""
    assert (answer.header("Content-Type") or "").startswith("application/json")
    value = json.loads(answer.body)
    assert isinstance(value, dict)
    return value


def assert_error(answer: Message, status: int, code: str) -> str:
    """An error of the bridge's own, in the body and in the headers; its message."""
    assert answer.status == status, answer
    assert answer.header("X-Bridge-Error") == code
    assert answer.header("X-Request-Id")
    assert answer.header("X-Immich-Asset-Id") is None
    assert answer.header("X-Immich-Status") is None
    error = result(answer)
    assert error.keys() == {"error", "message"}
    assert error["error"] == code
    message = error["message"]
    assert isinstance(message, str)
    return message


def assert_nothing_stored(immich: StandIn) -> None:
    assert immich.assets == []
    assert immich.files() == []


async def eventually(condition: Callable[[], bool], seconds: float = PATIENCE) -> None:
    """For what shows itself by no event: return as soon as it is so."""
    async with asyncio.timeout(seconds):
        while not condition():
            await let_time_pass(0.002)


class Flood:
    """A sender that pushes bytes into a connection for as long as they are taken."""

    def __init__(self, peer: Peer, body: bytes | None = None) -> None:
        # Left to itself the kernel would take in megabytes that nobody else has seen.
        connection: socket.socket = peer.writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, PIECE)
        self._peer = peer
        self._pieces = pieces_of(body) if body is not None else None
        self._moved = asyncio.Event()
        self.sent = 0
        """Bytes that were taken."""
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        endless = bytes(PIECE)
        writer = self._peer.writer
        with suppress(ConnectionError):
            while self._pieces is None or self._pieces:
                piece = endless if self._pieces is None else self._pieces.pop(0)
                writer.write(piece)
                await writer.drain()
                self.sent += len(piece)
                self._moved.set()

    async def stalled(self, seconds: float = 0.25) -> None:
        """Return once no byte was taken for so long."""
        while not self._task.done():
            self._moved.clear()
            try:
                await asyncio.wait_for(self._moved.wait(), seconds)
            except TimeoutError:
                return

    async def ended(self) -> None:
        """Return once everything was taken, or the connection ended."""
        await asyncio.wait_for(self._task, PATIENCE)
