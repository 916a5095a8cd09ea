"""`GET /health` and `GET /ready`: is the process alive, and should it be given work?"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from typing import Final

from aiohttp import web

from immich_bridge.errors import RETRY_AFTER_SECONDS
from immich_bridge.http.lifecycle import Lifecycle

CHECK_TIMEOUT: Final = 2.0
REUSE_SECONDS: Final = 3.0

Check = Callable[[], Awaitable[None]]
"""Returns when the part works; raises an exception whose text says why it does not."""


async def health(request: web.Request) -> web.Response:
    """Liveness: the event loop turns. Asks nobody, so that nobody's fault restarts us."""
    now = time.time()
    stamp = datetime.fromtimestamp(int(now), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return web.json_response({"status": "ok", "timestamp": int(now), "time": stamp})


class Readiness:
    """The state of the parts that requests need, asked at most every few seconds.

    `checks` holds a check for each part that is in use, or None for one that is off. Only
    the parts in `required` make the answer a 503: a dependency that all replicas share
    should not take them all out at once.
    """

    def __init__(
        self, lifecycle: Lifecycle, checks: Mapping[str, Check | None], required: frozenset[str]
    ) -> None:
        self._lifecycle = lifecycle
        self._checks = checks
        self._required = required
        self._known: dict[str, str] = {}
        self._known_until = 0.0
        self._asking = asyncio.Lock()

    async def handle(self, request: web.Request) -> web.Response:
        """Answer `GET /ready`."""
        states = await self._states()
        ready = not any(
            state not in ("ok", "off") and name in self._required for name, state in states.items()
        )
        status = "ok" if ready else "unavailable"
        if self._lifecycle.draining:
            ready, status = False, "shutting_down"
        return web.json_response(
            {"status": status, "checks": states},
            status=200 if ready else 503,
            headers={} if ready else {"Retry-After": str(RETRY_AFTER_SECONDS)},
        )

    async def _states(self) -> dict[str, str]:
        async with self._asking:
            if time.monotonic() >= self._known_until:
                states = await asyncio.gather(*map(_run, self._checks.values()))
                self._known = dict(zip(self._checks, states, strict=True))
                self._known_until = time.monotonic() + REUSE_SECONDS
            return self._known


async def _run(check: Check | None) -> str:
    if check is None:
        return "off"
    try:
        async with asyncio.timeout(CHECK_TIMEOUT):
            await check()
    except TimeoutError:
        return f"no answer within {CHECK_TIMEOUT:g} s"
    except Exception as exc:
        return str(exc) or type(exc).__name__
    return "ok"
