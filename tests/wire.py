"""Both ends of a connection as bytes, for tests that must see what is really on the wire."""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

PATIENCE = 10.0
"""Seconds after which a test has waited long enough for something that should have come."""


@dataclass
class Message:
    """A request or an answer, as it came."""

    first_line: bytes
    headers: list[tuple[bytes, bytes]]
    body: bytes = b""
    interim: list[bytes] = field(default_factory=list)
    """First lines of the 1xx answers before this one."""

    @property
    def status(self) -> int:
        """Status code of an answer."""
        return int(self.first_line.split()[1])

    @property
    def target(self) -> bytes:
        """Request target of a request."""
        return self.first_line.split(b" ")[1]

    def all(self, name: str) -> list[str]:
        """Every value of a header."""
        return [v.decode("latin-1") for n, v in self.headers if n.lower() == name.lower().encode()]

    def header(self, name: str) -> str | None:
        """The only value of a header, or None."""
        values = self.all(name)
        assert len(values) <= 1, f"{name} came {len(values)} times"
        return values[0] if values else None


class Peer:
    """One end of a connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, *pieces: bytes) -> None:
        """Write, and wait until the kernel has taken it."""
        for piece in pieces:
            self.writer.write(piece)
            await asyncio.wait_for(self.writer.drain(), PATIENCE)

    async def read_head(self) -> Message:
        """The next head; raises `IncompleteReadError` when the connection ends before it."""
        text = await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), PATIENCE)
        first_line, *lines = text[:-4].split(b"\r\n")
        headers = [(n, v.strip()) for n, _, v in (line.partition(b":") for line in lines)]
        return Message(first_line, headers)

    async def read_body(self, message: Message) -> bytes:
        """The body that follows `message`, with chunked framing removed."""
        if "chunked" in (message.header("Transfer-Encoding") or ""):
            body = bytearray()
            while size := int(await self._line(), 16):
                body += await self._exactly(size)
                await self._line()
            await self._line()
            return bytes(body)
        length = message.header("Content-Length")
        if length is not None:
            return await self._exactly(int(length))
        if message.first_line.startswith(b"HTTP/"):
            return await asyncio.wait_for(self.reader.read(-1), PATIENCE)
        return b""

    async def read_request(self) -> Message:
        """The next request with its body."""
        message = await self.read_head()
        message.body = await self.read_body(message)
        return message

    async def read_answer(self, method: str = "GET") -> Message:
        """The next answer with its body, past any 1xx."""
        message = await self.read_head()
        interim = []
        while 100 <= message.status < 200 and message.status != 101:
            interim.append(message.first_line)
            message = await self.read_head()
        message.interim = interim
        if method != "HEAD" and message.status not in (101, 204, 304):
            message.body = await self.read_body(message)
        return message

    async def read_to_end(self) -> bytes:
        """Everything until the other side closes; a reset counts as an end too."""
        received = bytearray()
        with suppress(ConnectionError):
            while piece := await asyncio.wait_for(self.reader.read(1 << 20), PATIENCE):
                received += piece
        return bytes(received)

    async def close(self) -> None:
        """Close with a FIN."""
        self.writer.close()
        with suppress(ConnectionError, TimeoutError):
            await asyncio.wait_for(self.writer.wait_closed(), PATIENCE)

    def reset(self) -> None:
        """Close with an RST."""
        sock: socket.socket = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    async def _line(self) -> bytes:
        return (await asyncio.wait_for(self.reader.readuntil(b"\r\n"), PATIENCE))[:-2]

    async def _exactly(self, size: int) -> bytes:
        return await asyncio.wait_for(self.reader.readexactly(size), PATIENCE)


@asynccontextmanager
async def connect(url: str, **options: Any) -> AsyncIterator[Peer]:
    """A client's connection to the server at `url`."""
    parts = urlsplit(url)
    peer = Peer(*await asyncio.open_connection(parts.hostname, parts.port, **options))
    try:
        yield peer
    finally:
        await peer.close()


async def fetch(
    url: str,
    method: str,
    target: str,
    *headers: tuple[str, str],
    body: bytes = b"",
) -> Message:
    """One request on a connection of its own."""
    async with connect(url) as peer:
        await peer.send(request(method, target, *headers, body=body))
        return await peer.read_answer(method)


def request(
    method: str, target: str, *headers: tuple[str, str], body: bytes = b"", host: str = "bridge"
) -> bytes:
    """A request; `Content-Length` is added when there is a body and no framing is given."""
    names = {name.lower() for name, _ in headers}
    lines = [f"{method} {target} HTTP/1.1", f"Host: {host}"]
    lines += [f"{name}: {value}" for name, value in headers]
    if body and not names & {"content-length", "transfer-encoding"}:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join(lines).encode("utf-8", "surrogateescape") + b"\r\n\r\n" + body


def chunked(*pieces: bytes) -> bytes:
    """A whole body in chunked framing."""
    return b"".join(b"%x\r\n%b\r\n" % (len(p), p) for p in pieces if p) + b"0\r\n\r\n"


def answer(status: str = "200 OK", *headers: tuple[str, str], body: bytes = b"") -> bytes:
    """An answer; `Content-Length` is added unless framing is given."""
    names = {name.lower() for name, _ in headers}
    lines = [f"HTTP/1.1 {status}", *(f"{name}: {value}" for name, value in headers)]
    if not names & {"content-length", "transfer-encoding"}:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join(lines).encode("utf-8", "surrogateescape") + b"\r\n\r\n" + body


class ScriptedUpstream:
    """A server that does on each connection just what a test tells it to.

    `script(peer)` runs once a connection; the connection is closed after it.
    """

    def __init__(self, script: Callable[[Peer], Awaitable[None]]) -> None:
        self._script = script
        self.connections = 0
        self.failures: list[BaseException] = []

    async def __aenter__(self) -> "ScriptedUpstream":
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, backlog=1024)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        assert not self.failures, self.failures

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        peer = Peer(reader, writer)
        try:
            await self._script(peer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        except Exception as exc:
            self.failures.append(exc)
        finally:
            await peer.close()


EMPTY_OK = answer()


def recording_upstream(
    seen: list[Message], reply: bytes | Callable[[Message], bytes] = EMPTY_OK
) -> ScriptedUpstream:
    """An upstream that puts each request into `seen` and answers `reply`."""

    async def script(peer: Peer) -> None:
        while True:
            message = await peer.read_request()
            seen.append(message)
            await peer.send(reply if isinstance(reply, bytes) else reply(message))

    return ScriptedUpstream(script)
