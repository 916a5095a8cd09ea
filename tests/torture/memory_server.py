"""A server with both wings in front of an Immich that keeps nothing, and how its memory grows.

What a server costs is measured from outside, so it is a process of its own; so are the client
and the Immich, which are written in C and leave the processors to it.
"""

import asyncio
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from block import Block
from compiler import compiled
from discarding_upstream import DiscardingUpstream, running_upstream
from load_driver import Drive, LoadDriver, Request
from process_stats import ProcessStats
from processes import clean_environment, free_port, running_process, wait_until_healthy

from backup_uploads import DAY
from backup_wing import PASSWORD, USERNAME, Api, photo, settings_in
from raw_upload import upload_head
from wire import request

MIB: Final = 1024**2
MB: Final = 1_000_000
SERVE: Final = (sys.executable, "-m", "immich_bridge")
PHOTO_ID: Final = "IMG_1234"
"""The photo that is indexed for uploads to the photo backup."""
_DESCRIPTORS: Final = 16_384


@dataclass(frozen=True)
class Bench:
    """What measures: the client, the Immich, and the bytes that both know."""

    driver: LoadDriver
    upstream: DiscardingUpstream
    block: Block


@dataclass(frozen=True)
class MeasuredServer:
    """A server that runs; `token` is for its photo backup."""

    port: int
    stats: ProcessStats
    token: str
    driver: LoadDriver

    def growth(self, work: Callable[[], object]) -> float:
        """MiB by which the memory grew during `work`, at its peak."""
        self.stats.reset_peak_rss()
        before = self.stats.rss()
        work()
        return (self.stats.peak_rss() - before) / MIB

    def upload(self, size: int, *, times: int, at_once: int, sha1: str = "") -> Drive:
        """Background uploads of `size` bytes; `sha1` is their checksum, if they have one."""
        checksum = [("x-immich-checksum", sha1)] if sha1 else []
        head = upload_head(size, *checksum).decode()
        return self._drive(Request(head, size, status=201), times, at_once)

    def back_up(self, size: int, *, times: int, at_once: int) -> Drive:
        """Raw uploads of `size` bytes to the photo backup."""
        return self._drive(Request(self.backup_head(size).decode(), size), times, at_once)

    def backup_head(self, size: int) -> bytes:
        """The head of a raw upload of `size` bytes."""
        return request(
            "POST",
            f"/photos/upload/stream?local_id={PHOTO_ID}&file_type=image/jpeg",
            ("Authorization", f"Bearer {self.token}"),
            ("Content-Length", str(size)),
        )

    def _drive(self, request: Request, times: int, at_once: int) -> Drive:
        return self.driver.drive(
            self.port, request, connections=at_once, requests=times, seconds=3600.0
        )


@contextmanager
def running_bench(folder: Path) -> Iterator[Bench]:
    """A bench whose programs are compiled into `folder`."""
    block = Block()
    try:
        with running_upstream(compiled("upstream", folder), block) as upstream:
            yield Bench(LoadDriver(compiled("driver", folder), block), upstream, block)
    finally:
        block.close()


@contextmanager
def measured_server(
    bench: Bench, folder: Path, *, command: Sequence[str] = SERVE, **settings: str
) -> Iterator[MeasuredServer]:
    """A server of `settings` with everything in `folder`, which `command` starts."""
    port = free_port()
    environment = clean_environment(
        {
            **settings_in(folder),
            "LISTEN_ADDR": f"127.0.0.1:{port}",
            "IMMICH_SERVER_URL": f"http://127.0.0.1:{bench.upstream.port}",
            "LOG_LEVEL": "warning",
            **settings,
        }
    )
    create = ["user", "create", "--username", USERNAME, "--password", PASSWORD]
    subprocess.run([*SERVE, *create], env=environment, check=True, stdout=subprocess.DEVNULL)
    with running_process(command, environment=environment, folder=folder) as process:
        wait_until_healthy("the server", process, port)
        token = asyncio.run(_prepare(f"http://127.0.0.1:{port}"))
        server = MeasuredServer(port, ProcessStats(process.pid), token, bench.driver)
        # What the first requests load stays, whatever comes after them.
        server.upload(MIB, times=8, at_once=4)
        server.back_up(MIB, times=8, at_once=4)
        yield server


@contextmanager
def many_descriptors() -> Iterator[None]:
    """Let this process, and those that it starts, open thousands of connections."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _DESCRIPTORS if hard == resource.RLIM_INFINITY else min(_DESCRIPTORS, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def _prepare(url: str) -> str:
    """Log in, and index the photo that is uploaded; the token."""
    login = await Api(url).login(USERNAME, PASSWORD)
    token = str(login.json["token"])
    indexed = await Api(url, token).index(DAY, [photo(PHOTO_ID)])
    assert indexed.status == 200, indexed
    return token
