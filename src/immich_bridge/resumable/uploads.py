"""The uploads that are known: found by their secret names, limited in number, swept when idle."""

import asyncio
import logging
import secrets
from collections import Counter, deque
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Final

from aiohttp import web

from immich_bridge.errors import NotFound
from immich_bridge.http.metrics import Metrics
from immich_bridge.logs import log_event, loggable_path
from immich_bridge.resumable.upload import Upload

_logger = logging.getLogger("immich_bridge.resumable")

PATH: Final = "/uploads"
MAX_UPLOADS: Final = 256
MAX_UPLOADS_OF_ONE: Final = 32
"""A phone that lost its network leaves as many behind as it had under way."""
_REPLAY_SECONDS: Final = 600.0
"""How long the answer to a finished upload is kept, since it may have been lost."""
_MOST_REPLAYS: Final = 1000
"""So many answers are kept; each takes some 6 KB."""
_EMPTY_SECONDS: Final = 120.0
"""How long an upload is kept of which no byte has come: it takes somebody's place for nothing."""
_LEAST_SWEEP_SECONDS: Final = 0.05
_MOST_SWEEP_SECONDS: Final = 30.0

EVENTS: Final = ("created", "resumed", "completed", "failed", "cancelled", "expired")


class _Entry:
    def __init__(self, upload: Upload, owner: str, idle: float) -> None:
        self.upload = upload
        self.owner = owner
        self.senders = 0
        self.quiet_since = asyncio.get_running_loop().time() - idle


class Uploads:
    """All uploads of one process.

    Those that nobody sends are kept for `hold` seconds, unless they say otherwise. `prefix` is
    what the names begin with that are made here.
    """

    def __init__(self, hold: float, prefix: str = "") -> None:
        self.hold = hold
        self._prefix = prefix
        self._entries: dict[str, _Entry] = {}
        self._replays: deque[str] = deque()
        self._closing: set[asyncio.Task[None]] = set()
        self._events: Counter[str] = Counter(dict.fromkeys(EVENTS, 0))

    @property
    def held(self) -> int:
        """How many are unfinished, and sent by nobody at the moment."""
        return sum(not entry.senders for entry in self._unfinished())

    def expose(self, metrics: Metrics) -> None:
        """Let `metrics` tell of them."""
        metrics.gauge(
            "immich_bridge_resumable_uploads_held",
            "Unfinished uploads that nobody sends at the moment.",
            lambda: [((), self.held)],
        )
        metrics.counter(
            "immich_bridge_resumable_uploads",
            "What happened to uploads that can be resumed.",
            lambda: (((event,), count) for event, count in self._events.items()),
            labels=["event"],
        )

    def has_room(self, owner: str) -> bool:
        """Whether `owner` may begin another one."""
        owners = [entry.owner for entry in self._unfinished()]
        return len(owners) < MAX_UPLOADS and owners.count(owner) < MAX_UPLOADS_OF_ONE

    def add(self, upload: Upload, owner: str, name: str | None = None, *, idle: float = 0.0) -> str:
        """Keep an upload; returns the name under which it is found.

        `idle` is for how many seconds nobody has sent it already.
        """
        name = name or self._prefix + secrets.token_urlsafe(32)
        self._entries[name] = _Entry(upload, owner, idle)
        return name

    def hold_of(self, upload: Upload) -> float:
        """For how many seconds an upload is kept while nobody sends it."""
        return self.hold if upload.hold is None else upload.hold

    def _unfinished(self) -> Iterator[_Entry]:
        return (
            entry
            for entry in self._entries.values()
            if not (entry.upload.finished or entry.upload.lost)
        )

    def find(self, name: str) -> Upload:
        """The upload of that name; raises `NotFound`."""
        entry = self._entries.get(name)
        if entry is None or entry.upload.lost:
            raise NotFound("there is no such upload, or no longer")
        return entry.upload

    def happened(self, event: str, name: str) -> None:
        """Count and log what happened to an upload, by the part of its name that logs may show."""
        self._events[event] += 1
        upload = self._entries[name].upload
        log_event(
            _logger,
            logging.INFO,
            f"upload {event}",
            path=loggable_path(f"{PATH}/{name}"),
            offset=upload.offset,
            length=upload.length,
        )

    def completed(self, name: str) -> None:
        """The answer to an upload is known; the oldest of many that are kept is forgotten."""
        self.happened("completed", name)
        self._replays.append(name)
        if len(self._replays) > _MOST_REPLAYS:
            self._entries.pop(self._replays.popleft(), None)

    @contextmanager
    def sender(self, name: str) -> Iterator[None]:
        """Count a request among those that send the upload, as long as the context lasts.

        Raises `NotFound` when there is no such upload any more.
        """
        entry = self._entries.get(name)
        if entry is None:
            raise NotFound("there is no such upload any more")
        entry.senders += 1
        try:
            yield
        finally:
            entry.senders -= 1
            entry.quiet_since = asyncio.get_running_loop().time()

    async def remove(self, name: str, event: str) -> None:
        """Discard an upload, for the reason that `event` tells, unless somebody else did."""
        if name in self._entries:
            self.happened(event, name)
            await self._entries.pop(name).upload.discard()

    def drain(self) -> None:
        """The server stops: let go of what nobody sends."""
        for name, entry in list(self._entries.items()):
            if not entry.senders:
                del self._entries[name]
                task = asyncio.get_running_loop().create_task(entry.upload.suspend())
                self._closing.add(task)
                task.add_done_callback(self._closing.discard)

    async def lifetime(self, _: web.Application) -> AsyncIterator[None]:
        """Sweep until the server stops, then let go of all."""
        sweeping = asyncio.create_task(self._sweep_for_ever())
        try:
            yield
        finally:
            sweeping.cancel()
            await asyncio.wait({sweeping})
            for entry in self._entries.values():
                entry.senders = 0
            self.drain()
            if self._closing:
                await asyncio.wait(self._closing)

    async def _sweep_for_ever(self) -> None:
        while True:
            await asyncio.sleep(max(_LEAST_SWEEP_SECONDS, min(self.hold / 4, _MOST_SWEEP_SECONDS)))
            try:
                await self._sweep()
            except Exception:
                _logger.exception("sweeping unfinished uploads failed")

    async def _sweep(self) -> None:
        now = asyncio.get_running_loop().time()
        for name, entry in list(self._entries.items()):
            finished = entry.upload.finished
            hold = self.hold_of(entry.upload)
            kept = min(hold, _REPLAY_SECONDS) if finished else hold
            if entry.upload.offset == 0:
                kept = min(kept, _EMPTY_SECONDS)
            if entry.senders or entry.upload.finishing:
                continue
            if now - entry.quiet_since < kept and not entry.upload.lost:
                continue
            if finished:
                self._entries.pop(name, None)
            else:
                await self.remove(name, "failed" if entry.upload.lost else "expired")
