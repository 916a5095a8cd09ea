"""One upload: where its bytes go, how far it is, and who sends it at the moment."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from aiohttp import web

from immich_bridge.body import IncomingBody
from immich_bridge.errors import BridgeError, InsufficientStorage, NotFound
from immich_bridge.resumable.problems import (
    CompletedUpload,
    InconsistentLength,
    MismatchingOffset,
    Superseded,
)

Authorize = Callable[[web.Request], Awaitable[None]]
"""Raises an error unless a request comes from whoever began the upload."""


@dataclass(frozen=True)
class Finished:
    """The answer to an upload as a value: it may have to be given more than once."""

    status: int
    body: bytes
    headers: Sequence[tuple[str, str]] = ()
    verdict: str | None = None
    """What became of it, in the words of the metrics."""

    def response(self, extra_headers: Mapping[str, str]) -> web.Response:
        """An answer to send."""
        response = web.Response(status=self.status, body=self.body)
        response.headers.popall("Content-Type", None)
        for name, value in self.headers:
            response.headers.add(name, value)
        response.headers.update(extra_headers)
        return response


class Destination(Protocol):
    """Where the bytes of one upload go."""

    @property
    def offset(self) -> int:
        """How many bytes are there, and need not be sent again."""

    @property
    def lost(self) -> bool:
        """Whether it came to nothing while nobody was there to be told."""

    async def begin(self, name: str) -> None:
        """Get ready for an upload of that name; the client is told of it when this returns."""

    async def take(self, body: IncomingBody) -> bool:
        """Take a body; whether all of it was taken, or no more is wanted.

        Raises what reading it raises; `offset` tells how far it came.
        """

    async def give_up(self, reason: BridgeError) -> None:
        """Have `take` raise `reason`; returns when `offset` no longer moves."""

    async def finish(self) -> Finished:
        """What becomes of the bytes, now that they are all here; asked again, it is the same.

        What was begun goes on when whoever waits for it is cancelled.
        """

    async def suspend(self) -> None:
        """The server stops: keep what will be of use after its next start."""

    async def discard(self) -> None:
        """Nothing will come of it."""


class Upload:
    """An upload that may be interrupted, and the rules by which it goes on.

    `length` is that of all of it, None while nobody has said. `hold` is for how many seconds it
    is kept while nobody sends it, None for as long as others. `background` says whether what
    becomes of it is an outcome of a background upload.
    """

    def __init__(
        self,
        destination: Destination,
        length: int | None,
        authorize: Authorize,
        *,
        hold: float | None = None,
        background: bool = True,
    ) -> None:
        self.length = length
        self.hold = hold
        self.background = background
        self.complete = False
        """Whether all of it is here, and nothing can be appended."""
        self.authorize = authorize
        self.finished = False
        """Whether its answer is known."""
        self._destination = destination
        self._finishing: asyncio.Task[Finished] | None = None
        self._turn = asyncio.Lock()
        self._discarded = False

    @property
    def offset(self) -> int:
        """Where the next byte belongs."""
        return self._destination.offset

    @property
    def lost(self) -> bool:
        """Whether there is nothing left to go on with."""
        return self._destination.lost and not self.finished

    @property
    def finishing(self) -> bool:
        """Whether all of it is here, and what becomes of it is about to be known."""
        return self._finishing is not None and not self._finishing.done()

    async def begin(self, name: str) -> None:
        """Get ready for the first byte."""
        await self._destination.begin(name)

    async def rest(self) -> None:
        """End the request that sends it, if there is one, so that `offset` stays what it is.

        Raises `NotFound` when it was discarded meanwhile.
        """
        async with self._turn:
            await self._destination.give_up(Superseded("a newer request took the upload over"))
        if self._discarded:
            raise NotFound("there is no such upload any more")

    def check(self, offset: int, length: int | None, content_length: int | None) -> None:
        """Raise a problem unless `content_length` bytes may be appended at `offset`.

        `length` is what the request says of the whole.
        """
        if offset != self.offset:
            raise MismatchingOffset(self.offset, offset)
        if self.complete and content_length != 0:
            raise CompletedUpload("the upload is complete")
        if None not in (length, self.length) and length != self.length:
            raise InconsistentLength(f"the upload was to have {self.length} bytes, not {length}")
        whole = self.length if length is None else length
        if whole is not None and offset + (content_length or 0) > whole:
            raise InconsistentLength(f"the upload was to have {whole} bytes")
        self.length = whole

    async def append(self, body: IncomingBody, *, last: bool | None) -> bool:
        """Add `body`, which `check` has let pass; whether `finish` knows what becomes of all.

        Nothing may be awaited between the two. `last` says whether it is the last one; None:
        it is if nothing is missing then. Raises what reading `body` raises, and
        `InconsistentLength` when it is the last one and bytes are missing.
        """
        if self.complete:
            return True  # its answer was lost
        if not await self._destination.take(body):
            return True
        if last is None:
            last = self.offset == self.length
        if last:
            if self.length not in (None, self.offset):
                raise InconsistentLength(
                    f"the upload ends after {self.offset} of {self.length} bytes"
                )
            self.length = self.offset
            self.complete = True
        return last

    async def finish(self, finished: Callable[[], None]) -> Finished:
        """What became of it, once all of it is here; `finished` is called when that is known.

        The client may be gone by then, and come back for it.
        """
        self.complete = True
        if self._finishing is None:
            self._finishing = asyncio.create_task(self._finish(finished))
            # Its client may have gone, and never ask what went wrong.
            self._finishing.add_done_callback(lambda task: task.cancelled() or task.exception())
        return await asyncio.shield(self._finishing)

    async def _finish(self, finished: Callable[[], None]) -> Finished:
        try:
            answer = await self._destination.finish()
        except InsufficientStorage:
            self.complete, self._finishing = False, None  # it can be tried again
            raise
        self.finished = True
        finished()
        return answer

    async def suspend(self) -> None:
        """The server stops."""
        await self._destination.suspend()

    async def discard(self) -> None:
        """Forget all that has come."""
        self._discarded = True
        await self._destination.discard()
