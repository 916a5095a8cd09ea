"""A flood of logins, and how long everybody else waits meanwhile."""

import asyncio
import json
import os
import statistics
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

from backup_uploads import DAY, upload_request
from backup_wing import PASSWORD, USERNAME, photo
from torture.names_caller import Caller
from wire import PATIENCE, connect, request

LOGINS_A_SECOND = 100
_PAUSE = 0.01
"""Seconds between two requests of one caller: others are to be measured, not to be a load."""
_BEGUN = b"begun\n"
_LOGIN_PATIENCE = 60.0
"""Seconds until the last login of a flood is answered, on a machine that others keep busy."""

Route = Callable[[str], bytes]
"""A request with the given token."""


def _index(token: str) -> bytes:
    batch = {"date": DAY, "photos": [photo("indexed")]}
    header = ("Authorization", f"Bearer {token}")
    return request("POST", "/photos/index", header, body=json.dumps(batch).encode())


def _upload(token: str) -> bytes:
    return b"".join(upload_request("raw", token, b"photo" * 400, local_id="uploaded"))


ROUTES: dict[str, Route] = {
    "GET /status": lambda token: request("GET", "/status", ("Authorization", f"Bearer {token}")),
    "POST /photos/index": _index,
    "POST /photos/upload/stream": _upload,
    "a proxied GET": lambda token: request("GET", "/api/assets/statistics"),
}
"""What others do while there are logins. Both photos have to be indexed before."""


@dataclass
class Flood:
    """Logins at a steady rate: right and wrong passwords, and users that nobody knows."""

    url: str
    statuses: Counter[int] = field(default_factory=Counter)
    without_retry_after: int = 0
    """Refusals for lack of capacity that did not say when to come again."""
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Have a process of its own send logins until the context ends, to the last answer.

        In this one it would keep those waiting who measure.
        """
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, __file__, self.url),
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            assert await asyncio.wait_for(process.stdout.readline(), PATIENCE) == _BEGUN
            yield
            process.stdin.close()
            told = await asyncio.wait_for(process.stdout.read(), _LOGIN_PATIENCE)
            self.statuses.update({int(status): n for status, n in json.loads(told).items()})
        finally:
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    process.kill()
            await process.wait()

    async def pour(self) -> None:
        """Send logins until nobody is left at the other end of standard input."""
        pouring = asyncio.create_task(self._pour())
        sys.stdout.buffer.write(_BEGUN)
        sys.stdout.flush()
        await asyncio.to_thread(sys.stdin.read)
        pouring.cancel()
        await asyncio.wait([pouring])
        await asyncio.gather(*self._tasks)
        json.dump(self.statuses, sys.stdout)

    async def burst(self, count: int) -> None:
        """Send so many at once, and wait for all answers."""
        await asyncio.gather(*(self._log_in(number) for number in range(count)))

    async def _pour(self) -> None:
        began = time.monotonic()
        number = 0
        while True:
            number += 1
            task = asyncio.create_task(self._log_in(number))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            await asyncio.sleep(max(0, began + number / LOGINS_A_SECOND - time.monotonic()))

    async def _log_in(self, number: int) -> None:
        username = USERNAME if number % 2 else f"nobody {number}"
        password = PASSWORD if number % 4 == 1 else "a wrong password"
        body = json.dumps({"username": username, "password": password}).encode()
        async with connect(self.url) as peer:
            await peer.send(request("POST", "/login", body=body))
            head = await asyncio.wait_for(peer.reader.readuntil(b"\r\n\r\n"), _LOGIN_PATIENCE)
        status = int(head.split()[1])
        self.statuses[status] += 1
        if status in (429, 503) and b"\r\nRetry-After: " not in head:
            self.without_retry_after += 1


async def latencies(
    url: str, token: str, seconds: float, routes: Sequence[str] = tuple(ROUTES)
) -> dict[str, list[float]]:
    """Seconds that each request of each route took; they all have to succeed."""

    async def call(route: Route) -> list[float]:
        taken = []
        end = time.monotonic() + seconds
        async with Caller(url) as caller:
            while time.monotonic() < end:
                began = time.perf_counter()
                answer = await caller.ask(route(token))
                taken.append(time.perf_counter() - began)
                assert answer.status == 200, answer
                await asyncio.sleep(_PAUSE)
        return taken

    measured = await asyncio.gather(*(call(ROUTES[route]) for route in routes))
    return dict(zip(routes, measured, strict=True))


def percentile_99(values: Sequence[float]) -> float:
    """What all but one in a hundred stay below."""
    return statistics.quantiles(values, n=100)[-1]


def welch_t(first: Sequence[float], second: Sequence[float]) -> float:
    """Welch's t: how sure it is that the two have different means, beyond some 4.5 it is."""
    spread = sum(statistics.variance(sample) / len(sample) for sample in (first, second))
    return (statistics.fmean(first) - statistics.fmean(second)) / float(spread**0.5)


def trimmed(values: Sequence[float], share: float = 0.1) -> list[float]:
    """Without the largest: they tell of the machine, not of the work."""
    return sorted(values)[: round(len(values) * (1 - share))]


if __name__ == "__main__":
    asyncio.run(Flood(sys.argv[1]).pour())
