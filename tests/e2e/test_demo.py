"""The demo as its viewer meets it: a process with output, an exit code and signals."""

import asyncio
import os
import re
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from urllib.parse import urlsplit

import pytest

DEMO = Path(__file__).parents[1] / "demo.py"
ANY_PORTS = ("--bridge-port", "0", "--immich-port", "0")
PATIENCE = 50.0
"""Two cold Pythons on a busy machine; below the time limit of a test."""

Demo = asyncio.subprocess.Process
StartDemo = Callable[..., Awaitable[Demo]]


@pytest.fixture
async def start_demo(tmp_path: Path) -> AsyncIterator[StartDemo]:
    """Start the demo with arguments: `await start_demo("--once")`."""
    demos: list[Demo] = []

    async def start(*arguments: str) -> Demo:
        demo = await asyncio.create_subprocess_exec(
            sys.executable,
            str(DEMO),
            *arguments,
            cwd=tmp_path,
            # A setting from outside must not reach the bridge, whose defaults are shown.
            env={**os.environ, "TMPDIR": str(tmp_path), "IMMICH_SERVER_URL": "http://192.0.2.1"},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        demos.append(demo)
        return demo

    yield start
    for demo in demos:
        if demo.returncode is None:
            # SIGKILL would leave its servers behind.
            demo.terminate()
            await demo.wait()


async def read_until(demo: Demo, beginning: str) -> str:
    """What the demo prints, up to the line with that beginning."""
    assert demo.stdout is not None
    text = ""
    async with asyncio.timeout(PATIENCE):
        async for raw in demo.stdout:
            text += raw.decode()
            if raw.decode().startswith(beginning):
                return text
    raise AssertionError(f"the demo ended before {beginning!r}:\n{text}")


async def finish(demo: Demo) -> tuple[int | None, str, str]:
    """The exit code, and what is still to read of the two outputs."""
    async with asyncio.timeout(PATIENCE):
        out, err = await demo.communicate()
    return demo.returncode, out.decode(), err.decode()


def addresses(printed: str) -> list[tuple[str, int]]:
    """Where the stand-in and the bridge listen, as the demo says at its beginning."""
    urls = re.findall(r"^  (?:immich|bridge) +(http://\S+)", printed, re.MULTILINE)
    return [(str(url.hostname), int(url.port or 0)) for url in map(urlsplit, urls)]


def is_open(address: tuple[str, int]) -> bool:
    try:
        socket.create_connection(address, timeout=5).close()
    except ConnectionRefusedError:
        return False
    return True


def left_in(folder: Path) -> list[Path]:
    return list(folder.iterdir())


async def test_everything_arrives_byte_for_byte(start_demo: StartDemo, tmp_path: Path) -> None:
    code, out, err = await finish(await start_demo("--once", *ANY_PORTS))
    assert (code, err) == (0, ""), out
    names = ["IMG_0001.MOV", "IMG_0001.HEIC", "IMG_0002.JPG", "IMG_0004.MOV"]
    for name in [*names, "Zürich bei Nacht 夜景.png"]:
        assert re.search(rf"^  {name} .* [0-9a-f]{{40}}  identical$", out, re.MULTILINE), out
    assert "DIFFERENT" not in out
    assert "  NOT " not in out
    assert "200 duplicate" in out
    assert "401 immich_401: Invalid API key" in out
    assert "422 checksum_mismatch" in out
    assert "IMG_0001.HEIC is a Live Photo with IMG_0001.MOV" in out
    assert "\r" not in out, "progress bars are for terminals"
    assert not any(map(is_open, addresses(out)))
    assert left_in(tmp_path) == [], "the demo's files are gone"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_serves_until_told_to_stop(
    number: signal.Signals, start_demo: StartDemo, tmp_path: Path
) -> None:
    demo = await start_demo(*ANY_PORTS)
    printed = await read_until(demo, "serving on http://")
    listening = addresses(printed)
    assert len(listening) == 2
    assert all(map(is_open, listening))
    demo.send_signal(number)
    code, out, err = await finish(demo)
    assert (code, err) == (0, "")
    assert out.endswith("stopped; the demo's files are gone\n")
    assert not any(map(is_open, listening))
    assert left_in(tmp_path) == []


async def test_a_taken_port_is_told_in_a_line(start_demo: StartDemo) -> None:
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        demo = await start_demo("--bridge-port", str(port), "--immich-port", "0")
        code, out, err = await finish(demo)
    assert code == 1
    assert err.startswith("demo: the bridge ended with exit code 1; its last lines:\n")
    assert f"cannot listen on *:{port}: Address already in use" in err
    assert "Traceback" not in err
    assert not any(map(is_open, addresses(out)))
