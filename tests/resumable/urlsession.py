"""A client that uploads as Apple's URLSession does: it resumes what was cut off.

It creates an upload with a POST, learns its URL from a `104`, and after a lost connection asks
with HEAD how far the server came, and goes on from there with PATCH. An answer ends it, whatever
it says; only a connection that ends without one makes it resume.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Final, Protocol

from front import let_time_pass
from raw_upload import CHUNKED, KEY, NAME, ROUTE
from wire import PATIENCE, Message, Peer, connect, fetch, request

VERSIONS: Final = (3, 5, 6, 8)
"""The interop versions of iOS 17, 18.0, 18.1 and later, and 26."""
PARTIAL: Final = ("Content-Type", "application/partial-upload")
PIECE: Final = 64 * 1024

_GONE: Final = (ConnectionError, asyncio.IncompleteReadError)
_SECONDS_BETWEEN_TRIES: Final = 0.02

Header = tuple[str, str]


class File(Protocol):
    """What is uploaded: `bytes`, or something that makes them."""

    def __len__(self) -> int: ...

    def __getitem__(self, span: slice, /) -> bytes: ...


def interop(version: int) -> Header:
    """The header that says which iteration of the draft a client speaks."""
    return "Upload-Draft-Interop-Version", str(version)


def completeness(version: int, complete: bool) -> Header:
    """The header that says whether an upload ends with the request at hand."""
    if version == 3:
        return "Upload-Incomplete", "?0" if complete else "?1"
    return "Upload-Complete", "?1" if complete else "?0"


def creation(
    size: int | None,
    *headers: Header,
    version: int = 6,
    complete: bool = True,
    route: str = ROUTE,
    host: str = "bridge",
) -> bytes:
    """The head of a request that begins an upload; without a size it comes in chunks."""
    framing = CHUNKED if size is None else ("Content-Length", str(size))
    fields = [interop(version), completeness(version, complete), framing, NAME, *headers]
    if not any(name.lower() == KEY[0] for name, _ in headers):
        fields.append(KEY)
    return request("POST", route, *fields, host=host)


def append(
    location: str,
    offset: int,
    size: int | None,
    *headers: Header,
    version: int = 6,
    complete: bool = True,
    key: Header = KEY,
    host: str = "bridge",
) -> bytes:
    """The head of a request that goes on with an upload."""
    framing = CHUNKED if size is None else ("Content-Length", str(size))
    fields = [interop(version), completeness(version, complete), ("Upload-Offset", str(offset))]
    if version >= 6:
        fields.append(PARTIAL)
    return request("PATCH", location, *fields, key, framing, *headers, host=host)


async def read_offer(peer: Peer, version: int = 6) -> str:
    """The URL of an upload, out of the `104` that is the next thing to come."""
    offer = await peer.read_head()
    assert offer.first_line == b"HTTP/1.1 104 Upload Resumption Supported"
    return checked_offer(offer, version)


def checked_offer(offer: Message, version: int) -> str:
    """The URL in a `104`, which has to be in the client's own dialect."""
    assert offer.header("Upload-Draft-Interop-Version") == str(version)
    assert (offer.header("Upload-Limit") is not None) == (version >= 6)
    location = offer.header("Location")
    assert location is not None
    assert len(location) > 40
    return location


@dataclass(frozen=True)
class State:
    """How far a server says that it came."""

    offset: int
    complete: bool
    length: int | None


def state_of(told: Message, version: int = 6) -> State:
    """The state that an answer tells."""
    assert told.header("Upload-Draft-Interop-Version") == str(version)
    assert told.header("Cache-Control") == "no-store"
    name, yes = completeness(version, True)
    complete, offset = told.header(name), told.header("Upload-Offset")
    assert complete is not None
    assert offset is not None
    length = told.header("Upload-Length")
    return State(int(offset), complete == yes, None if length is None else int(length))


async def ask(url: str, location: str, version: int = 6, key: Header = KEY) -> Message:
    """How far the server came, in its own words."""
    return await fetch(url, "HEAD", location, interop(version), key)


async def state(url: str, location: str, version: int = 6) -> State:
    """How far the server came; it has to know."""
    told = await ask(url, location, version)
    assert told.status == 204, told
    return state_of(told, version)


async def resume(
    url: str,
    location: str,
    offset: int,
    body: bytes,
    *headers: Header,
    version: int = 6,
    complete: bool = True,
) -> Message:
    """Go on with an upload; all of `body` is sent."""
    async with connect(url) as peer:
        head = append(location, offset, len(body), *headers, version=version, complete=complete)
        await peer.send(head, body)
        return await peer.read_answer()


@dataclass(frozen=True)
class Cut:
    """The end of a connection, once so many bytes of the file were sent in all."""

    after: int
    how: str = "rst"
    """`rst`, `fin`, or `silent`: nobody tells the server, which has to find out."""
    deaf: bool = False
    """Whether it may come before the client has heard of the upload."""


class UploadTask:
    """One file on its way, on as many connections as it takes."""

    def __init__(
        self,
        url: str,
        file: File,
        *headers: Header,
        version: int = 6,
        chunked: bool = False,
    ) -> None:
        self._url = url
        self._file = file
        self._headers = headers
        self._version = version
        self._chunked = chunked
        self.location: str | None = None
        self._offered = asyncio.Event()
        self.begun = 0
        """How often it began anew, since the connection was lost before there was a `104`."""
        self.resumed: list[int] = []
        """The offsets at which it went on."""

    async def run(self, cuts: Iterable[Cut] = ()) -> Message:
        """Upload until there is an answer; each of `cuts` ends one connection."""
        planned = iter(cuts)
        async with AsyncExitStack() as left_open:
            for _ in range(1000):
                told = await self._connection(next(planned, None), left_open)
                if told is not None:
                    return told
            raise AssertionError("it comes to no end")

    async def abandon(self, cuts: Iterable[Cut]) -> Message | None:
        """Upload as far as `cuts` go, and do not come back; the answer if there was one."""
        async with AsyncExitStack() as left_open:
            for cut in cuts:
                told = await self._connection(cut, left_open)
                if told is not None:
                    return told
        return None

    async def _connection(self, cut: Cut | None, left_open: AsyncExitStack) -> Message | None:
        """What is sent and heard on one connection; None where that ended without an answer."""
        offset = 0
        if self.location is not None:
            told = await self._ask()
            if told.status != 204:
                return told
            offset = state_of(told, self._version).offset
        context = connect(self._url)
        peer = await context.__aenter__()
        hearing = asyncio.create_task(self._hear(peer))
        try:
            await self._send(peer, hearing, offset, cut)
            if cut is not None and self.location is None and not cut.deaf:
                offered = asyncio.create_task(self._offered.wait())
                await asyncio.wait({offered, hearing}, return_when=asyncio.FIRST_COMPLETED)
                offered.cancel()
            if cut is None or hearing.done():
                return await asyncio.wait_for(hearing, PATIENCE)
        except _GONE:
            if hearing.done() and hearing.exception() is None:
                return hearing.result()
            await let_time_pass(_SECONDS_BETWEEN_TRIES)
            return None
        finally:
            # Python 3.11's `wait_for` may swallow it when an answer comes at the same time.
            while not hearing.done():
                hearing.cancel()
                await asyncio.wait({hearing}, timeout=0.1)
            if not hearing.cancelled():
                hearing.exception()  # whatever it was, the connection is over
            if cut is not None and cut.how == "rst":
                peer.reset()
            if cut is not None and cut.how == "silent":
                left_open.push_async_exit(context)
            else:
                await context.__aexit__(None, None, None)
        return None

    async def _ask(self) -> Message:
        assert self.location is not None
        for _ in range(500):
            try:
                return await ask(self._url, self.location, self._version)
            except _GONE:
                await let_time_pass(_SECONDS_BETWEEN_TRIES)
        raise AssertionError("nobody answers")

    async def _hear(self, peer: Peer) -> Message:
        """The answer; a `104` on the way to it is remembered."""
        while True:
            message = await peer.read_head()
            if message.status == 104 and self.location is None:
                self.location = checked_offer(message, self._version)
                self._offered.set()
            elif message.status >= 200:
                message.body = await peer.read_body(message) if message.status != 204 else b""
                return message

    async def _send(
        self, peer: Peer, hearing: asyncio.Task[Message], offset: int, cut: Cut | None
    ) -> None:
        """Send the file from `offset` to its end or to the cut, or until there is an answer."""
        size = len(self._file)
        end = size if cut is None else max(offset, min(cut.after, size))
        rest = None if self._chunked else size - offset
        if self.location is None:
            self.begun += 1
            await peer.send(creation(rest, *self._headers, version=self._version))
        else:
            self.resumed.append(offset)
            await peer.send(append(self.location, offset, rest, version=self._version))
        for at in range(offset, end, PIECE):
            if hearing.done():
                return
            piece = self._file[at : min(at + PIECE, end)]
            await peer.send(b"%x\r\n%b\r\n" % (len(piece), piece) if self._chunked else piece)
        if self._chunked and cut is None:
            await peer.send(b"0\r\n\r\n")


@asynccontextmanager
async def sending(url: str, *pieces: bytes, size: int | None) -> AsyncIterator[tuple[Peer, str]]:
    """An upload of `size` bytes under way, of which `pieces` were sent; with its URL."""
    async with connect(url) as peer:
        await peer.send(creation(size))
        location = await read_offer(peer)
        await peer.send(*pieces)
        yield peer, location


async def finish(url: str, location: str, file: File) -> Message:
    """Send what is missing of an upload whose URL is known."""
    task = UploadTask(url, file)
    task.location = location
    return await task.run()
