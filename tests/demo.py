"""The demo: photos as an iPhone sends them, through the bridge, into a stand-in for Immich.

`make demo` runs it. It starts both servers, sends the samples as iOS would (raw bytes, metadata
in headers), downloads them again through the bridge and shows what arrived. A video is cut off
three times and goes on each time. Then the samples are backed up to disk with the bridge's own
photo backup, and the servers run until Ctrl-C. With `--once` it ends after the showing: exit
code 0 when every byte is right.
"""

import argparse
import asyncio
import os
import platform
import re
import shlex
import signal
import sys
import tempfile
from collections.abc import Coroutine, Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import Any

import aiohttp

from demo_backup import BackupShow
from demo_deliveries import SAMPLES
from demo_resumable import ResumeShow
from demo_servers import (
    DemoError,
    ServerProcess,
    choose_port,
    clean_environment,
    running_server,
)
from demo_show import UPLOAD_PATH, Arrival, Show, say
from immich_bridge import __version__
from immich_bridge.serve import event_loop_factory
from immich_standin import StandIn

BRIDGE_PORT = 8080
IMMICH_PORT = 2283
REQUEST_SECONDS = 30.0
TESTS = Path(__file__).resolve().parent


async def introduce(session: aiohttp.ClientSession, bridge: ServerProcess, folder: Path) -> None:
    """Say what runs where, in which version, and whether it is ready."""
    async with session.get(f"{bridge.url}/api/server/version") as answer:
        version = await answer.json()
    async with session.get(f"{bridge.url}/ready") as answer:
        ready = await answer.json()
    checks = ", ".join(f"{name} {state}" for name, state in ready["checks"].items())
    loop = "asyncio" if event_loop_factory() is None else "uvloop"
    number = f"v{version['major']}.{version['minor']}.{version['patch']}"
    say(f"  versions  immich-bridge {__version__}, answering as Immich {number}")
    say(f"            Python {platform.python_version()}, aiohttp {aiohttp.__version__}, {loop}")
    say(f"  ready     {ready['status']} ({checks})")
    say(f"  files     {folder}")


def suggest(bridge_url: str, arrivals: list[Arrival]) -> None:
    """Print commands to copy."""
    key = f"-H 'x-api-key: {StandIn.api_key}'"
    photo = next((a for a in arrivals if a.delivery.sample.endswith(".JPG")), None)
    sample = shlex.quote(str(SAMPLES / "IMG_0002.JPG"))
    say("\nTry next, in another terminal")
    say(f"  curl -s {bridge_url}/health")
    say(f"  curl -s {bridge_url}/ready")
    if photo is not None:
        asset = f"{bridge_url}/api/assets/{photo.asset_id}"
        say(f"  curl -s {key} {asset}")
        say(f"  curl -s {key} {asset}/original | cmp - {sample} && echo same")
    say("  # the date behind the photo makes it a new one to Immich:")
    say(f"  (cat {sample}; date) | curl -si {key} -H 'X-Filename: again.jpg' \\")
    say(f"    --data-binary @- {bridge_url}{UPLOAD_PATH}")


async def start_servers(
    stack: AsyncExitStack, options: argparse.Namespace, folder: Path
) -> tuple[ServerProcess, ServerProcess]:
    """Start the stand-in and the bridge, on their default ports where these are free."""
    environment = {**clean_environment(), "PYTHONUNBUFFERED": "1"}
    search_path = os.pathsep.join(filter(None, (str(TESTS), environment.get("PYTHONPATH"))))
    port = choose_port(options.immich_port, IMMICH_PORT)
    command = ["immich_standin", "--host", "127.0.0.1", "--port", str(port), "--version", "3"]
    immich = await stack.enter_async_context(
        running_server(
            "stand-in Immich",
            [sys.executable, "-m", *command, "--data", str(folder / "immich")],
            announcement=re.compile(r" listening on (http://\S+)"),
            folder=folder,
            environment={**environment, "PYTHONPATH": search_path},
        )
    )
    say(f"  immich    {immich.url}{_taken(options.immich_port, port, IMMICH_PORT)}")
    # Nothing is set that need not be: what is shown are the defaults.
    settings = {} if port == IMMICH_PORT else {"IMMICH_SERVER_URL": immich.url}
    port = choose_port(options.bridge_port, BRIDGE_PORT)
    if port != BRIDGE_PORT:
        settings["PORT"] = str(port)
    bridge = await stack.enter_async_context(
        running_server(
            "bridge",
            [sys.executable, "-m", "immich_bridge"],
            announcement=re.compile(r" listening url=(\S+)"),
            # The default paths of the backup wing are relative: they end up in here.
            folder=folder / "bridge",
            environment={**environment, **settings},
        )
    )
    say(f"  bridge    {bridge.url}{_taken(options.bridge_port, port, BRIDGE_PORT)}")
    return immich, bridge


async def demo(options: argparse.Namespace) -> int:
    """Start, show, serve; returns the exit code. Raises `DemoError`."""
    async with AsyncExitStack() as stack:
        folder = stack.enter_context(_folder())
        say("Photos as an iPhone sends them, through the bridge, into a stand-in for Immich")
        immich, bridge = await start_servers(stack, options, folder)
        timeout = aiohttp.ClientTimeout(total=REQUEST_SECONDS)
        session = await stack.enter_async_context(aiohttp.ClientSession(timeout=timeout))
        await immich.healthy(session, "/api/server/ping")
        await bridge.healthy(session, "/health")
        await introduce(session, bridge, folder)
        show = Show(session, bridge.url)
        await _while_alive(show.all(), immich, bridge)
        resuming = ResumeShow(session, bridge.url)
        await _while_alive(resuming.all(), immich, bridge)
        backup = BackupShow(session, bridge.url, folder / "bridge", clean_environment())
        await _while_alive(backup.all(), immich, bridge)
        failures = show.failures + resuming.failures + backup.failures
        if failures:
            say(f"\n{failures} of these were not as they should be")
        else:
            say("\nEverything arrived byte for byte, and what should be refused was refused")
        if not options.once:
            suggest(bridge.url, show.arrivals)
            say(f"\nserving on {bridge.url} until Ctrl-C; its log:")
            bridge.on_line = lambda line: say(f"  {line}")
            await _while_alive(_forever(), immich, bridge)
        return 1 if failures else 0


async def _forever() -> None:
    await asyncio.Event().wait()


async def _while_alive(work: Coroutine[Any, Any, None], *servers: ServerProcess) -> None:
    """Do the work; raises the error that tells of a server's end when one ends meanwhile."""
    working = asyncio.create_task(work)
    deaths = [asyncio.create_task(server.died()) for server in servers]
    try:
        await asyncio.wait([working, *deaths], return_when=asyncio.FIRST_COMPLETED)
        if working.done() and working.exception() is not None:
            # A request that fails may be how the end of a server shows first.
            await asyncio.wait(deaths, timeout=1, return_when=asyncio.FIRST_COMPLETED)
        for death in deaths:
            if death.done():
                raise death.result()
        working.result()
    finally:
        for task in (working, *deaths):
            task.cancel()
        await asyncio.gather(working, *deaths, return_exceptions=True)


@contextmanager
def _folder() -> Iterator[Path]:
    """A folder for as long as the demo lasts, with one for the bridge in it."""
    # A file may still come while the folder is being emptied, from a server that was killed.
    with tempfile.TemporaryDirectory(
        prefix="immich-bridge-demo-", ignore_cleanup_errors=True
    ) as name:
        folder = Path(name)
        (folder / "bridge").mkdir()
        yield folder


def _taken(asked: int | None, port: int, default: int) -> str:
    return f" (port {default} is taken)" if asked is None and port != default else ""


async def run(options: argparse.Namespace) -> int:
    """The demo, until it ends or is told to by a signal."""
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    try:
        return await demo(options)
    except asyncio.CancelledError:
        say("\nstopped; the demo's files are gone")
        return 1 if options.once else 0
    except (aiohttp.ClientError, TimeoutError) as exc:
        raise DemoError(f"a request failed: {exc or type(exc).__name__}") from exc


def main() -> int:
    """Run the demo; returns the exit code."""
    parser = argparse.ArgumentParser(prog="demo.py", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--once", action="store_true", help="end after the showing")
    for name, default in (("--bridge-port", BRIDGE_PORT), ("--immich-port", IMMICH_PORT)):
        text = f"0 for any (default: {default}, or any when that is taken)"
        parser.add_argument(name, type=int, metavar="PORT", help=text)
    options = parser.parse_args()
    # A terminal that cannot show a letter must not end the demo.
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    try:
        return asyncio.run(run(options))
    except DemoError as exc:
        print(f"demo: {exc}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        # Nobody reads any more; the interpreter would complain once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


if __name__ == "__main__":
    sys.exit(main())
