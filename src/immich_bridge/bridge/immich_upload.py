"""A resumable upload on its way to Immich, whose one request stays open between the phone's."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from immich_bridge.body import IncomingBody
from immich_bridge.digests import ExpectedDigest
from immich_bridge.errors import BridgeError
from immich_bridge.resumable.joined_body import JoinedBody
from immich_bridge.resumable.upload import Finished

Send = Callable[[JoinedBody], Coroutine[Any, Any, Finished]]
"""Sends a body to Immich; returns its answer as soon as there is one."""


class ImmichUpload:
    """A `resumable.upload.Destination`. Nothing of it is kept: not in memory, nor on disk.

    Immich learns of the end of its form only in `finish`. Whatever happens before cuts the
    connection, and what Immich has is no asset.
    """

    def __init__(self, send: Send, digests: Sequence[ExpectedDigest]) -> None:
        self._body = JoinedBody(digests)
        self._whole = False
        """Whether nothing more will come."""
        self._sending = asyncio.create_task(send(self._body))
        self._sending.add_done_callback(self._sent)

    @property
    def offset(self) -> int:
        """How many bytes are on their way to Immich."""
        return self._body.offset

    @property
    def lost(self) -> bool:
        """Whether there is no request to Immich any more, nor an answer to all of it."""
        sending = self._sending
        if not sending.done():
            return False
        return not self._whole or sending.cancelled() or sending.exception() is not None

    async def begin(self, name: str) -> None:
        """The request to Immich waits for its first byte already."""

    async def take(self, body: IncomingBody) -> bool:
        """Pass a body on; False when Immich has answered before its end."""
        return await self._body.take(body)

    async def give_up(self, reason: BridgeError) -> None:
        """Have `take` raise `reason`."""
        await self._body.give_up(reason)

    async def finish(self) -> Finished:
        """Send the end, and return Immich's answer; raises what sending raises."""
        self._whole = True
        self._body.end()
        return await asyncio.shield(self._sending)

    async def suspend(self) -> None:
        """The server stops, and its connections with it."""
        await self.discard()

    async def discard(self) -> None:
        """Cut the connection to Immich."""
        self._sending.cancel()
        await asyncio.wait({self._sending})

    def _sent(self, sending: asyncio.Task[Finished]) -> None:
        self._body.close()
        if not sending.cancelled():
            sending.exception()  # whoever waits has it; nobody may
