"""Limits on how often somebody may ask, counted by the `limits` library."""

import math
import time
from importlib.util import find_spec
from typing import Final

from aiohttp import web
from limits import RateLimitItem, parse
from limits.aio.storage import Storage
from limits.aio.strategies import FixedWindowRateLimiter
from limits.errors import ConfigurationError
from limits.storage import storage_from_string

from immich_bridge.config import ConfigError
from immich_bridge.errors import RateLimited, Unavailable

RATE_LIMIT_HEADERS: web.RequestKey[dict[str, str]] = web.RequestKey("rate_limit_headers", dict)
"""What the answer to a limited request has to say of the limit."""

_NAMESPACE: Final = "immich-bridge"

_REDIS: Final = ("coredis", "immich-bridge[redis]")
_VALKEY: Final = ("valkey", "limits[async-valkey]")
_CLIENTS: Final = {
    "redis": _REDIS,
    "rediss": _REDIS,
    "valkey": _VALKEY,
    "valkeys": _VALKEY,
    "memcached": ("memcachio", "limits[async-memcached]"),
    "mongodb": ("motor", "limits[async-mongodb]"),
}
"""The module that speaks to a storage, by the first word of its scheme, and what installs it."""


class RateLimitStorageError(Exception):
    """What `RATE_LIMIT_STORAGE` needs is not installed; the message says how to install it."""


def rate_limit_storage(url: str) -> Storage:
    """The storage of counts at `url`.

    Raises `ConfigError` for what is no storage, `RateLimitStorageError` for one whose client is
    not installed.
    """
    url = url.removeprefix("async+")
    scheme = url.partition(":")[0]
    shown = f"{scheme}://..."  # the rest may hold a password
    module, package = _CLIENTS.get(scheme.partition("+")[0], (None, None))
    if module is not None and find_spec(module) is None:
        raise RateLimitStorageError(
            f"RATE_LIMIT_STORAGE: {shown} needs {module}, which is not installed "
            f"(pip install '{package}')"
        )
    try:
        storage = storage_from_string(f"async+{url}")
    except (ConfigurationError, ValueError, ImportError) as exc:
        raise ConfigError.of("RATE_LIMIT_STORAGE", shown) from exc
    if not isinstance(storage, Storage):
        raise ConfigError.of("RATE_LIMIT_STORAGE", shown)
    return storage


class RateLimit:
    """One limit, such as five logins a minute; `scope` tells it from others."""

    def __init__(self, storage: Storage, rate: str | None, scope: str) -> None:
        self._limiter = FixedWindowRateLimiter(storage)
        self._item: RateLimitItem | None = parse(rate) if rate else None
        self._scope = scope

    async def hit(self, request: web.Request, who: str) -> None:
        """Count one request of `who`; raises `RateLimited` above the limit."""
        if self._item is None:
            return
        key = (_NAMESPACE, self._scope, who)
        try:
            allowed = await self._limiter.hit(self._item, *key)
            window = await self._limiter.get_window_stats(self._item, *key)
        except Exception as exc:  # each storage has errors of its own
            raise Unavailable("requests cannot be counted at the moment") from exc
        headers = {
            "X-RateLimit-Limit": str(self._item.amount),
            "X-RateLimit-Remaining": str(max(0, window.remaining)),
            "X-RateLimit-Reset": str(math.ceil(window.reset_time)),
        }
        request[RATE_LIMIT_HEADERS] = headers
        if not allowed:
            wait = max(1, math.ceil(window.reset_time - time.time()))
            raise RateLimited(
                f"too many requests, try again in {wait} s", headers={"Retry-After": str(wait)}
            )
