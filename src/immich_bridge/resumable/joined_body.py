"""The body of an upload that comes in several requests, as one."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from aiohttp.abc import AbstractStreamWriter

from immich_bridge.body import IncomingBody
from immich_bridge.digests import ExpectedDigest
from immich_bridge.errors import BridgeError, ClientGone, Unavailable

_PATIENCE_SECONDS: Final = 5.0


class JoinedBody:
    """One reader's view of the bodies that are given to `take`, one after the other.

    The reader sets the pace, and gets the end only after `end` was called: a body that was
    cut off is followed by the next one. `digests` are fed with all bytes, and compared before
    the end is reported.
    """

    def __init__(self, digests: Sequence[ExpectedDigest]) -> None:
        self._digests = digests
        self._body: IncomingBody | None = None
        self._in_use = False
        """Whether the reader waits for the body, rather than the body for the reader."""
        self._over: asyncio.Future[bool]
        self._taken_before = 0
        self._peeked: list[bytes] = []
        self._ended = False
        self._closed = False
        self._news = asyncio.Event()

    @property
    def offset(self) -> int:
        """How many bytes the reader has taken; they need not be sent again."""
        return self._taken_before + (self._body.received if self._body else 0)

    async def take(self, body: IncomingBody) -> bool:
        """Let the reader have `body`; whether it took all of it, or wants no more.

        Raises what reading `body` raises. `offset` tells how far it came.
        """
        if self._closed:
            return False
        self._body = body
        self._over = asyncio.get_running_loop().create_future()
        self._news.set()
        try:
            return await asyncio.shield(self._over)
        except asyncio.CancelledError:
            with suppress(Unavailable):
                await self.give_up(ClientGone("the client closed the connection in mid-body"))
            if self._over.done():
                self._over.exception()  # there is nobody left to be told
            raise

    async def give_up(self, reason: BridgeError) -> None:
        """Take the body away that is being read; `take` raises `reason`.

        Returns when the reader has let go of it, so that `offset` no longer moves. Raises
        `Unavailable` when it does not, since where it sends the bytes none are taken.
        """
        body = self._body
        if body is None:
            return
        if not self._in_use:
            self._let_go(body, reason)
            return
        body.give_up(reason)
        await asyncio.wait({self._over}, timeout=_PATIENCE_SECONDS)
        if not self._over.done():
            raise Unavailable("the upload does not come to rest at the moment")

    def end(self) -> None:
        """No more bodies will come: the reader gets the end."""
        self._ended = True
        self._news.set()

    def close(self) -> None:
        """The reader wants no more."""
        self._closed = True
        if self._body is not None:
            self._let_go(self._body, None, whole=False)

    async def peek(self, size: int) -> bytes:
        """The first `size` bytes or more, fewer only if there are no more; kept for `read`."""
        while sum(map(len, self._peeked)) < size:
            piece = await self._next()
            if not piece:
                break
            self._peeked.append(piece)
        return b"".join(self._peeked)

    async def read(self) -> bytes:
        """The next piece; `b""` once all bytes came and their digests are right.

        Raises `ChecksumMismatch`.
        """
        return self._peeked.pop(0) if self._peeked else await self._next()

    async def move_to(self, writer: AbstractStreamWriter) -> None:
        """Move what can be moved of the body at hand past this process."""
        body = self._body
        if body is None or self._digests or self._peeked:
            return
        self._in_use = True
        try:
            await body.move_to(writer)
        except BridgeError as exc:
            self._let_go(body, exc)
        finally:
            self._in_use = False

    async def _next(self) -> bytes:
        while True:
            body = await self._next_body()
            if body is None:
                for digest in self._digests:
                    digest.check()
                return b""
            self._in_use = True
            try:
                piece = await body.read()
            except BridgeError as exc:
                self._let_go(body, exc)
                continue
            finally:
                self._in_use = False
            if not piece:
                self._let_go(body, None)
                continue
            for digest in self._digests:
                digest.update(piece)
            return piece

    async def _next_body(self) -> IncomingBody | None:
        while self._body is None and not self._ended:
            self._news.clear()
            await self._news.wait()
        return self._body

    def _let_go(
        self, body: IncomingBody, reason: BridgeError | None, *, whole: bool = True
    ) -> None:
        self._taken_before += body.received
        self._body = None
        if self._over.done():
            return
        if reason is None:
            self._over.set_result(whole)
        else:
            self._over.set_exception(reason)
