"""The server, watched from inside: how many tasks it has, and what holds up its event loop.

`python blocking_watch.py REPORT` serves as `python -m immich_bridge` does. From SIGUSR1 on, until
SIGUSR2, it writes what it sees to the file REPORT, again and again. Two things hold up an event
loop:

- A call that waits, for a disk or for somebody else. `blockbuster` knows those calls, and makes
  each of them that happens on the event loop an error.
- Work. Its measure is the processor time of the thread between two ticks of the loop: a turn
  that takes 50 ms of it keeps everybody waiting, whereas 50 ms by the clock may just be another
  program that had the processor.
"""

import asyncio
import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Final

from blockbuster import BlockBuster, blockbuster
from blockbuster.blockbuster import BlockingError

from immich_bridge import cli, serve
from immich_bridge.config import Config

_TICK_SECONDS: Final = 0.005
_REPORT_SECONDS: Final = 0.25
_OURS: Final = "immich_bridge"


class LoopWatch:
    """What was seen of the event loop since `begin`."""

    def __init__(self, report: Path) -> None:
        self._report = report
        self._loop = asyncio.get_running_loop()
        self._buster = BlockBuster()
        self._blocking: list[str] = []
        self._busiest = self._longest = 0.0
        self._cpu = self._clock = 0.0
        self._reporting: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Watch from now on."""
        blocking = self._blocking

        class Recorded(BlockingError):
            """Is in the report also where somebody takes it for an ordinary error."""

            def __init__(self, func: str) -> None:
                super().__init__(func)
                ours = [frame for frame in traceback.extract_stack() if _OURS in frame.filename]
                where = [f"{Path(f.filename).name}:{f.lineno} {f.name}" for f in ours[-2:]]
                blocking.append(f"{func} in {', '.join(where)}")

        blockbuster.BlockingError = Recorded  # type: ignore[misc]
        self._buster.activate()
        self._cpu, self._clock = time.thread_time(), time.monotonic()
        self._tick()
        self._reporting = asyncio.create_task(self._report_for_ever())

    def end(self) -> None:
        """Let it block: a server that stops waits for its threads."""
        self._buster.deactivate()

    def _tick(self) -> None:
        cpu, clock = time.thread_time(), time.monotonic()
        self._busiest = max(self._busiest, cpu - self._cpu)
        self._longest = max(self._longest, clock - self._clock - _TICK_SECONDS)
        self._cpu, self._clock = cpu, clock
        self._loop.call_later(_TICK_SECONDS, self._tick)

    async def _report_for_ever(self) -> None:
        new = self._report.with_suffix(".new")
        while True:
            seen = {
                "tasks": len(asyncio.all_tasks()) - 1,  # this one is not the server's
                "busiest_turn_ms": self._busiest * 1000,
                "longest_turn_ms": self._longest * 1000,
                "blocking_calls": self._blocking,
            }
            await asyncio.to_thread(new.write_text, json.dumps(seen))
            await asyncio.to_thread(os.replace, new, self._report)
            await asyncio.sleep(_REPORT_SECONDS)


async def serve_watched(config: Config) -> None:
    """Serve, and watch from SIGUSR1 to SIGUSR2."""
    watch = LoopWatch(Path(sys.argv[1]))
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, watch.begin)
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR2, watch.end)
    await serve.serve(config)


if __name__ == "__main__":
    cli.serve = serve_watched  # type: ignore[attr-defined]  # it is imported there
    sys.exit(cli.main([]))
