"""Memory is flat: whatever is uploaded, and however many are connected, it is a constant each."""

import asyncio
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import aiohttp
import pytest
from soak import own_host
from traffic.idle_socket import IdleSocket
from traffic.immich import Immich
from traffic.tally import Tally

from backup_wing import multipart
from debian_tools import program
from raw_upload import eventually
from torture.effort import Effort
from torture.memory_server import (
    MB,
    PHOTO_ID,
    Bench,
    MeasuredServer,
    many_descriptors,
    measured_server,
    running_bench,
)
from wire import request

ONE_UPLOAD: Final = 48
"""MiB by which the memory may grow for one upload, of any size."""
MANY_UPLOADS: Final = 64
"""MiB for 200 at once."""
IDLE_SOCKET_KIB: Final = 96
PROMISE: Final = "10 memory"
_SOCKETS_AT_ONCE: Final = 50
"""WebSockets that are opened before others: more than a browser farm would at once."""
_PATIENCE: Final = 30.0


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    program("cc", "build-essential")
    with many_descriptors(), running_bench(tmp_path_factory.mktemp("native")) as bench:
        yield bench


@pytest.fixture(scope="module", params=["auto", "off"])
def fast_path(request: pytest.FixtureRequest) -> str:
    """How bodies go through the server."""
    return str(request.param)


@pytest.fixture(scope="module")
def folder(fast_path: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp(fast_path)


@pytest.fixture(scope="module")
def server(bench: Bench, fast_path: str, folder: Path) -> Iterator[MeasuredServer]:
    settings = {"FAST_PATH": fast_path, "MAX_UPLOAD_SIZE": "2GB"}
    with measured_server(bench, folder, **settings) as server:
        yield server


def test_one_large_upload(
    effort: Effort, bench: Bench, server: MeasuredServer, fast_path: str
) -> None:
    size = effort.amount(200 * MB, 10_000 * MB)
    bench.upstream.receipts()
    grown = server.growth(lambda: server.upload(size, times=1, at_once=1))
    received = bench.upstream.receipts()
    assert (received.file_bytes, received.faults) == (size, 0)
    effort.figure(
        PROMISE, f"one upload of {_gigabytes(size)}, FAST_PATH={fast_path}: {grown:.1f} MiB"
    )
    assert grown <= ONE_UPLOAD


def test_a_large_upload_with_a_checksum(
    effort: Effort, bench: Bench, server: MeasuredServer
) -> None:
    size = effort.amount(100 * MB, 1000 * MB)
    sha1 = bench.block.sha1(size)
    grown = server.growth(lambda: server.upload(size, times=1, at_once=1, sha1=sha1))
    effort.figure(PROMISE, f"one upload of {_gigabytes(size)} with a checksum: {grown:.1f} MiB")
    assert grown <= ONE_UPLOAD


def test_a_large_photo_for_the_backup(effort: Effort, server: MeasuredServer, folder: Path) -> None:
    size = effort.amount(100 * MB, 1000 * MB)
    raw = server.growth(lambda: server.back_up(size, times=1, at_once=1))
    form = server.growth(lambda: _upload_form(server, size))
    (stored,) = (folder / "storage").rglob("IMG_*")
    assert stored.stat().st_size == size
    stored.unlink()  # pytest keeps the folders of its last runs
    effort.figure(
        PROMISE,
        f"{_gigabytes(size)} into the photo backup: raw {raw:.1f} MiB, as a form {form:.1f} MiB",
    )
    assert raw <= ONE_UPLOAD
    assert form <= ONE_UPLOAD


# Behind those, since memory that it leaves free would hide what they take.
def test_many_uploads_at_once(
    effort: Effort, bench: Bench, server: MeasuredServer, fast_path: str
) -> None:
    count, size = effort.amount(20, 200), effort.amount(10 * MB, 50 * MB)
    bench.upstream.receipts()
    grown = server.growth(lambda: server.upload(size, times=count, at_once=count))
    received = bench.upstream.receipts()
    assert (received.file_bytes, received.faults) == (count * size, 0)
    effort.figure(
        PROMISE,
        f"{count} uploads of {size // MB} MB at once, FAST_PATH={fast_path}: {grown:.1f} MiB",
    )
    assert grown <= MANY_UPLOADS


async def test_idle_websockets(effort: Effort) -> None:
    count, seconds = effort.amount(100, 1000), effort.amount(0.1, 20.0)
    tally, stop = Tally(), asyncio.Event()

    def pings() -> int:
        return tally.kinds["socket ping"].done if "socket ping" in tally.kinds else 0

    with many_descriptors(), own_host(backup=False) as host:
        assert host.stats is not None
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector) as session:
            immich = Immich(session, host.url, host.key, tally)
            await immich.get("warm-up", "/api/server/about")
            descriptors, rss = host.stats.descriptors(), host.stats.rss()
            open_sockets: list[asyncio.Task[None]] = []
            while len(open_sockets) < count:
                for _ in range(min(_SOCKETS_AT_ONCE, count - len(open_sockets))):
                    idle = IdleSocket(immich, tally)
                    open_sockets.append(asyncio.create_task(idle.run(stop)))
                await eventually(lambda: pings() >= len(open_sockets), _PATIENCE)
            each = (host.stats.rss() - rss) / count / 1024
            # The warm-up's connections are in use again, or closed by now.
            assert host.stats.descriptors() >= 2 * count
            await asyncio.sleep(seconds)
            before = pings()
            stop.set()
            await asyncio.wait_for(asyncio.gather(*open_sockets), _PATIENCE)
        assert (tally.failed, tally.messages) == (0, [])
        assert tally.kinds["socket life"].done == count
        assert before >= count
        stats = host.stats
        await eventually(lambda: stats.descriptors() <= descriptors, _PATIENCE)
    assert each <= IDLE_SOCKET_KIB
    effort.figure(
        PROMISE,
        f"{count} WebSockets, idle but for {before} pings: {each:.0f} KiB each, "
        f"all alive, all descriptors closed behind them",
    )


def _upload_form(server: MeasuredServer, size: int) -> None:
    """Send the photo of the backup as a form, which the driver cannot."""
    fields = [("local_id", PHOTO_ID, None), ("file_type", "image/jpeg", None)]
    mark = b"the file"
    content_type, form = multipart(*fields, ("file", mark, "photo.jpg"))
    before, _, after = form.partition(mark)
    length = len(before) + size + len(after)
    head = request(
        "POST",
        "/photos/upload",
        ("Authorization", f"Bearer {server.token}"),
        ("Content-Length", str(length)),
        content_type,
    )
    with socket.create_connection(("127.0.0.1", server.port), timeout=_PATIENCE) as peer:
        peer.sendall(head + before)
        piece = bytes(MB)
        for _ in range(size // MB):
            peer.sendall(piece)
        peer.sendall(after)
        assert peer.recv(12) == b"HTTP/1.1 200"


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:g} GB"
