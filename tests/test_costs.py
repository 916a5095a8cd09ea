"""What a request costs in calls of the kernel and in memory: figures that no busy machine changes.

The limits have room for other versions of Python and its libraries, and none for a request
that is made in small pieces again, or for a body that is held.
"""

import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from debian_tools import INSTALL_SECONDS
from immich_standin import StandIn
from raw_upload import KEY, NAME, jpeg, upload_request
from tracing import counts, traced
from wire import connect, request

if TYPE_CHECKING:
    from conftest import BridgeProcess

StartProcess = Callable[..., Awaitable["BridgeProcess"]]

pytestmark = pytest.mark.timeout(INSTALL_SECONDS + 60)

MIB = 1 << 20


@pytest.fixture(params=["auto", "off"])
async def process(
    request: pytest.FixtureRequest, immich: StandIn, start_process: StartProcess
) -> "BridgeProcess":
    """A bridge as a process of its own, with `FAST_PATH` as the parameter says."""
    return await start_process(IMMICH_SERVER_URL=immich.url, FAST_PATH=request.param)


async def repeat(url: str, message: bytes, times: int) -> None:
    async with connect(url) as peer:
        for _ in range(times):
            await peer.send(message)
            assert (await peer.read_answer()).status in (200, 201)


async def calls_of(process: "BridgeProcess", message: bytes, times: int, tmp_path: Path) -> float:
    """System calls a request; those that wait are left out, they depend on the moment."""
    await repeat(process.url, message, 3)
    async with traced(process.process.pid, tmp_path / "calls", "-c"):
        await repeat(process.url, message, times)
    made = counts(tmp_path / "calls")
    assert made["recvfrom" if "recvfrom" in made else "read"] >= times, made
    return sum(n for name, n in made.items() if not name.startswith("epoll")) / times


async def test_a_small_proxied_request(process: "BridgeProcess", tmp_path: Path) -> None:
    message = request("GET", "/api/server/ping")
    assert await calls_of(process, message, 100, tmp_path) <= 12


async def test_a_small_upload(process: "BridgeProcess", tmp_path: Path) -> None:
    message = upload_request(jpeg(100_000), KEY, NAME)
    assert await calls_of(process, message, 100, tmp_path) <= 36


async def test_a_large_upload(process: "BridgeProcess", tmp_path: Path) -> None:
    size = 64
    message = upload_request(jpeg(size * MIB), KEY, NAME)
    assert await calls_of(process, message, 3, tmp_path) / size <= 30


async def test_memory_of_a_large_upload(process: "BridgeProcess") -> None:
    proc = Path(f"/proc/{process.process.pid}")

    def kib(name: str) -> int:
        found = re.search(rf"{name}:\s+(\d+) kB", (proc / "status").read_text())
        assert found is not None
        return int(found[1])

    def begin_peak_anew() -> None:
        (proc / "clear_refs").write_text("5")

    await repeat(process.url, upload_request(jpeg(MIB), KEY, NAME), 3)
    begin_peak_anew()
    before = kib("VmRSS")
    await repeat(process.url, upload_request(jpeg(256 * MIB), KEY, NAME), 1)
    assert kib("VmHWM") - before <= 24 * 1024


async def test_memory_that_is_kept_need_not_be_faulted_in_again(
    immich: StandIn, start_process: StartProcess
) -> None:
    message = upload_request(jpeg(3 * MIB), KEY, NAME)
    faults = {}
    for tuning in ("auto", "off"):
        settings = {"FAST_PATH": "off", "MALLOC_TUNING": tuning}
        process = await start_process(IMMICH_SERVER_URL=immich.url, **settings)
        stat = Path(f"/proc/{process.process.pid}/stat")
        await repeat(process.url, message, 10)
        before = minor_faults(stat)
        await repeat(process.url, message, 30)
        faults[tuning] = minor_faults(stat) - before
    assert faults["auto"] * 2 < faults["off"], faults


def minor_faults(stat: Path) -> int:
    """Pages that the kernel had to put in place for a process so far: proc(5)."""
    return int(stat.read_text().rpartition(")")[2].split()[7])
