"""Uploads on the three routes as bytes on a wire, and all that they leave on disk."""

import asyncio
from array import array
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, Literal, Protocol, get_args
from urllib.parse import urlencode

from backup_wing import Answer, Api, Header, multipart, photo
from wire import Peer, connect, request

Route = Literal["form", "raw", "chunk"]
ROUTES: Final[tuple[Route, ...]] = get_args(Route)
FORMS: Final[tuple[Route, ...]] = ("form", "chunk")

DAY = "2025-12-10"
FOLDER = "photo/1/2025/12/10"
"""Where the photos of `DAY` of the first user lie below the storage folder."""


class ServerProcess(Protocol):
    """A server as a process of its own: what `start_backup_process` starts."""

    process: asyncio.subprocess.Process
    url: str
    log: list[str]


StartServerProcess = Callable[..., Awaitable[ServerProcess]]


def pattern(size: int, seed: int = 0) -> bytes:
    """`size` bytes in which every stretch tells where it belongs, so that no loss goes unseen."""
    first = seed << 32
    return array("Q", range(first, first + size // 8 + 1)).tobytes()[:size]


def upload_request(
    route: Route,
    token: str | None,
    file: bytes,
    *headers: Header,
    local_id: str = "IMG_1234",
    file_type: str = "image/jpeg",
) -> tuple[bytes, bytes]:
    """Head and body of an upload of a whole photo; as a chunk it is the only one."""
    if token is not None:
        headers = (("Authorization", f"Bearer {token}"), *headers)
    fields = {"local_id": local_id, "file_type": file_type}
    if route == "raw":
        target, body = f"/photos/upload/stream?{urlencode(fields)}", file
    else:
        name = "file"
        target = "/photos/upload"
        if route == "chunk":
            name = "chunk_data"
            target = "/photos/upload/chunk"
            fields |= {"chunk_number": "0", "total_chunks": "1"}
        parts = [(field, value, None) for field, value in fields.items()]
        content_type, body = multipart(*parts, (name, file, "photo.jpg"))
        headers = (*headers, content_type)
    if "transfer-encoding" not in {name.lower() for name, _ in headers}:
        headers = (*headers, ("Content-Length", str(len(body))))
    return request("POST", target, *headers), body


async def upload(
    api: Api,
    route: Route,
    file: bytes,
    *headers: Header,
    local_id: str = "IMG_1234",
    file_type: str = "image/jpeg",
) -> Answer:
    """One upload of a whole photo."""
    async with begun(
        api, route, file, *headers, sent=None, local_id=local_id, file_type=file_type
    ) as peer:
        return Answer(await peer.read_answer("POST"))


@asynccontextmanager
async def begun(
    api: Api,
    route: Route,
    file: bytes,
    *headers: Header,
    sent: int | None,
    local_id: str = "IMG_1234",
    file_type: str = "image/jpeg",
) -> AsyncIterator[Peer]:
    """An upload of which the head and `sent` bytes of the body are on their way; None: all."""
    head, body = upload_request(
        route, api.token, file, *headers, local_id=local_id, file_type=file_type
    )
    async with connect(api.url) as peer:
        await peer.send(head, body[:sent])
        yield peer


async def answer_to(url: str, *request: bytes) -> Answer:
    """The answer to a request, also one that comes before the whole of it was read."""
    async with connect(url) as peer:
        for piece in request:
            peer.writer.write(piece)
        answer = Answer(await peer.read_answer("POST"))
        peer.reset()  # what is still to be sent need not be
        return answer


async def index(api: Api, *local_ids: str, **fields: object) -> list[str]:
    """Index photos on `DAY`; their names."""
    answer = await api.index(DAY, [photo(local_id, **fields) for local_id in local_ids])
    assert answer.status == 200, answer
    return [file["filename"] for file in answer.json["assigned_files"]]


def on_disk(storage_dir: Path) -> dict[str, bytes]:
    """Every file of the storage folder, temporary ones and chunks too.

    Only the notes of chunks that were joined are left out: they hold nothing of a photo.
    """
    return {
        path.relative_to(storage_dir).as_posix(): path.read_bytes()
        for path in storage_dir.rglob("*")
        if path.is_file() and path.suffix != ".done"
    }


def numbers(filenames: Iterable[str]) -> list[int]:
    """The numbers in names such as `IMG_0001.jpg`."""
    return [int(name.removeprefix("IMG_").partition(".")[0]) for name in filenames]


class MemoryGrowth:
    """By how many bytes a process grows from now on, at its peak (Linux)."""

    def __init__(self, pid: int) -> None:
        self._folder = Path(f"/proc/{pid}")
        # Forget the peak so far (proc(5)): hashing a password takes 19 MiB for a moment.
        (self._folder / "clear_refs").write_text("5")
        self._before = self._read("VmRSS")

    @property
    def peak(self) -> int:
        """The most so far."""
        return self._read("VmHWM") - self._before

    def _read(self, name: str) -> int:
        status = (self._folder / "status").read_text()
        (line,) = [line for line in status.splitlines() if line.startswith(f"{name}:")]
        return int(line.split()[1]) * 1024
