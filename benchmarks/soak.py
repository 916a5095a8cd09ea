"""Soak: mixed traffic for any time, and not one request may fail.

Phones upload photos of 2-8 MB and some videos in the background, browsers fetch JSON,
thumbnails and pieces of videos, WebSockets idle. Without `--target` it starts a stand-in Immich
and a bridge of its own. What it uploads to Immich it deletes again. Exit code 1: a request
failed, or the server kept descriptors open.
"""

import argparse
import asyncio
import ipaddress
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol
from urllib.parse import urlsplit

import aiohttp
from process_stats import ProcessStats
from processes import (
    bridge_command,
    clean_environment,
    free_port,
    running_process,
    wait_until_healthy,
)
from rich.console import Console
from traffic.backup_phone import BackupPhone, log_in
from traffic.browser import Browser
from traffic.idle_socket import IdleSocket
from traffic.immich import Immich
from traffic.phone import Phone
from traffic.photo import Photo
from traffic.server_watch import ServerWatch
from traffic.tally import Tally, Wrong
from traffic.view import View

_HERE: Final = Path(__file__).parent
_SILENCE_SECONDS: Final = 60.0
_END_SECONDS: Final = 120.0
"""How long requests under way may take to finish after the time of the soak."""
_SEEDS: Final = (5_000_000, *range(20_000, 80_000, 5_000))
"""Sizes of what browsers look at; the first is large enough to ask for a part of it."""
_LOG_WIDTH: Final = 110
_USERNAME: Final = "soak"
_PASSWORD: Final = "correct horse battery staple"
PASSWORD_VARIABLE: Final = "BACKUP_PASSWORD"


@dataclass(frozen=True)
class Host:
    """What is soaked. Without `pid` its processes are not on this machine, or not known."""

    url: str
    key: str
    username: str = ""
    password: str = ""
    pid: int = 0
    """The session leader of its processes."""

    @property
    def stats(self) -> ProcessStats | None:
        """What can be seen of its processes."""
        return ProcessStats(self.pid) if self.pid else None


class _Client(Protocol):
    async def run(self, stop: asyncio.Event) -> None: ...


async def soak(host: Host, options: argparse.Namespace) -> int:
    """Run all clients for the time that was asked for; returns the exit code."""
    tally = Tally()
    console = Console()
    if not console.is_terminal:
        console.width = _LOG_WIDTH
    watch = ServerWatch(host.stats) if host.stats else None
    view = View(console, tally, watch, options.duration)
    stop, over = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with AsyncExitStack() as stack:
        session = await stack.enter_async_context(
            aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0),
                timeout=aiohttp.ClientTimeout(total=None, sock_read=_SILENCE_SECONDS),
            )
        )
        immich = Immich(session, host.url, host.key, tally)
        seeds = [
            await immich.upload("seed", Photo(size), "IMG_0000.JPG", digest=True) for size in _SEEDS
        ]
        assets = [asset for asset in seeds if asset]
        clients: list[_Client] = []
        if len(assets) == len(_SEEDS):
            clients += [Phone(immich, options.pause) for _ in range(options.phones)]
            clients += [Browser(immich, assets, options.pause) for _ in range(options.browsers)]
            clients += [IdleSocket(immich, tally) for _ in range(options.sockets)]
            if host.username:
                token = await log_in(session, host.url, host.username, host.password)
                clients += [
                    BackupPhone(session, host.url, token, tally, number, options.pause)
                    for number in range(options.backup_phones)
                ]
        timer = loop.call_later(options.duration if clients else 0.0, stop.set)
        watching = [asyncio.create_task(view.run(over))]
        watching += [asyncio.create_task(watch.run(over))] if watch else []
        try:
            await _run_all(clients, stop, tally)
        finally:
            timer.cancel()
            over.set()
            await asyncio.gather(*watching)
        if assets:
            await immich.delete(assets)
    tally.end()
    unsettled = watch is not None and not await watch.settle()
    console.print(view.table())
    if watch:
        console.print(watch.summary(), soft_wrap=True)
    for message in tally.messages:
        console.print(message, style="red", markup=False, soft_wrap=True)
    verdict = f"{tally.failed} of {tally.done + tally.failed:,} requests failed"
    if watch and unsettled:
        verdict += "; THE SERVER IS GONE" if watch.gone else "; DESCRIPTORS WERE NOT CLOSED"
    console.print(verdict)
    if options.json:
        report = {**tally.as_json(), "server": watch.as_json() if watch else None}
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    return 1 if tally.failed or unsettled else 0


async def _run_all(clients: list[_Client], stop: asyncio.Event, tally: Tally) -> None:
    """Run the clients to their ends; one that has none is a request that failed."""
    tasks = [asyncio.create_task(client.run(stop)) for client in clients]
    if not tasks:
        return
    # A client that raises is broken itself: the soak must not go on without it.
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait({stopping, *tasks}, return_when=asyncio.FIRST_COMPLETED)
    stop.set()
    await stopping
    _, unfinished = await asyncio.wait(tasks, timeout=_END_SECONDS)
    for task in unfinished:
        task.cancel()
        with tally.request("end"):
            raise Wrong(f"a client did not come to its end in {_END_SECONDS:g} s")
    await asyncio.gather(*(task for task in tasks if task not in unfinished))


@contextmanager
def own_host(
    backup: bool, folder: Path | None = None, command: Sequence[str] | None = None
) -> Iterator[Host]:
    """A bridge with a stand-in Immich behind it.

    Without a `folder` nothing of theirs is left afterwards. `command` starts the bridge if it
    is not to be started as usual.
    """
    with ExitStack() as stack:
        if folder is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="soak-")))
        search_path = os.pathsep.join((str(_HERE), str(_HERE.parent / "tests")))
        immich = stack.enter_context(
            subprocess.Popen(
                [sys.executable, str(_HERE / "soak_immich.py"), str(folder / "immich")],
                env=clean_environment({"PYTHONPATH": search_path}),
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
        )
        stack.callback(immich.terminate)
        assert immich.stdout is not None
        url, key = immich.stdout.readline().split()
        port = free_port()
        environment = clean_environment(
            {
                "LISTEN_ADDR": f"127.0.0.1:{port}",
                "IMMICH_SERVER_URL": url,
                "BACKUP_ENABLED": str(backup).lower(),
                "DB_PATH": str(folder / "app.db"),
                "STORAGE_DIR": str(folder / "storage"),
                "JWT_SECRET_PATH": str(folder / "jwt_secret.key"),
                "LOG_LEVEL": "warning",
            }
        )
        usual = bridge_command("auto")
        if backup:
            create = ["user", "create", "--username", _USERNAME, "--password", _PASSWORD]
            subprocess.run(
                [*usual, *create], env=environment, check=True, stdout=subprocess.DEVNULL
            )
        process = stack.enter_context(
            running_process(command or usual, environment=environment, folder=folder)
        )
        wait_until_healthy("the bridge", process, port)
        username = _USERNAME if backup else ""
        yield Host(f"http://127.0.0.1:{port}", key, username, _PASSWORD, process.pid)


def is_private(url: str) -> bool:
    """Whether every address of the URL's host is of this machine or of a private network."""
    parts = urlsplit(url)
    found = socket.getaddrinfo(parts.hostname, parts.port or 80, type=socket.SOCK_STREAM)
    addresses = [ipaddress.ip_address(str(entry[4][0]).partition("%")[0]) for entry in found]
    return all(address.is_private or address.is_loopback for address in addresses)


def main() -> int:
    """Soak; returns the exit code."""
    options = _options()
    random.seed(options.seed)
    if options.target:
        host = Host(
            options.target.rstrip("/"),
            options.api_key,
            options.backup_user,
            os.environ.get(PASSWORD_VARIABLE, ""),
            options.server_pid,
        )
        return asyncio.run(soak(host, options))
    with own_host(options.backup_phones > 0) as own:
        return asyncio.run(soak(own, options))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--duration", type=_seconds, default="60s", help="such as 90s, 30m, 12h, 3d (60s)"
    )
    for name, default, meaning in (
        ("--phones", 8, "phones that upload in the background"),
        ("--browsers", 4, "browsers"),
        ("--sockets", 50, "WebSockets that idle"),
        ("--backup-phones", 0, "phones that send to the bridge's own photo backup"),
    ):
        parser.add_argument(name, type=int, default=default, help=f"{meaning} ({default})")
    parser.add_argument(
        "--pause", type=float, default=0.1, help="seconds between requests of a client (0.1)"
    )
    parser.add_argument("--seed", type=int, help="choose the same sizes and kinds as before")
    parser.add_argument("--target", metavar="URL", help="a bridge that runs already")
    parser.add_argument("--api-key", default="", help="key of Immich's, with --target")
    parser.add_argument(
        "--backup-user",
        default="",
        metavar="NAME",
        help=f"user of the photo backup, with --target; password in {PASSWORD_VARIABLE}",
    )
    parser.add_argument(
        "--server-pid",
        type=int,
        default=0,
        metavar="PID",
        help="session leader of the target's processes on this machine, to be watched",
    )
    parser.add_argument(
        "--i-own-this-host",
        action="store_true",
        help="let the target be outside of this machine and of private networks",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to FILE")
    options = parser.parse_args()
    if options.target:
        try:
            private = is_private(options.target)
        except (OSError, ValueError) as exc:
            parser.error(f"--target {options.target}: {exc}")
        if not private and not options.i_own_this_host:
            parser.error(f"{options.target} is public; if it is yours, add --i-own-this-host")
        if not options.api_key:
            parser.error("--target needs --api-key")
        if options.backup_phones and not options.backup_user:
            parser.error("--backup-phones needs --backup-user")
    return options


def _seconds(text: str) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text)
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r}; wanted: 90s, 30m, 12h or 3d")
    return float(found[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[found[2]]


if __name__ == "__main__":
    sys.exit(main())
