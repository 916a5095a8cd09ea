"""``python -m immich_standin``: the stand-in as a process."""

from __future__ import annotations

import argparse
import asyncio
import signal
from pathlib import Path

from .instance import IDLE_TIMEOUT
from .release import RELEASES
from .server import StandIn


async def run(arguments: argparse.Namespace) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    standin = StandIn(
        version=arguments.version,
        data_dir=arguments.data,
        host=arguments.host,
        port=arguments.port,
        idle_timeout=arguments.idle_timeout,
    )
    async with standin:
        # Whoever started this process waits for the line to learn the port.
        print(f"stand-in Immich {standin.release.name} listening on {standin.url}", flush=True)
        await stop.wait()


def main() -> None:
    parser = argparse.ArgumentParser(prog="immich_standin", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--version", type=int, choices=sorted(RELEASES), default=3)
    parser.add_argument("--data", type=Path, required=True, help="folder for the uploaded files")
    parser.add_argument("--idle-timeout", type=float, default=IDLE_TIMEOUT, metavar="SECONDS")
    asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
