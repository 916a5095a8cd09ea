"""The Immich of a soak: the stand-in of the tests, without its memory of every request.

Prints its URL and a key to it. Run it with the folder of the tests on PYTHONPATH.
"""

import asyncio
import signal
import sys
from pathlib import Path

from traffic.tally import pause

from immich_standin import StandIn


async def serve(folder: Path) -> None:
    """Serve until SIGTERM."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with StandIn(data_dir=folder) as standin:
        print(standin.url, standin.api_key, flush=True)
        while not stop.is_set():
            await pause(stop, 1.0)
            # The tests look at all of them; in a soak they would fill the memory.
            standin.requests.clear()


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1])))
