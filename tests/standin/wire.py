"""Bytes to the stand-in and bytes back, over a plain socket."""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

from immich_standin import StandIn

# Longer than anything on the loopback takes; only a failing test waits for it.
TIMEOUT = 10.0

Headers = list[tuple[str, str]]


@dataclass
class Response:
    status: int
    reason: str
    headers: Headers
    body: bytes
    interim: list[int]

    def header(self, name: str) -> str | None:
        for key, value in self.headers:
            if key.lower() == name.lower():
                return value
        return None

    @property
    def json(self) -> Any:
        encoded = self.header("Content-Encoding") == "gzip"
        return json.loads(gzip.decompress(self.body) if encoded else self.body)


class Wire:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def response(self, method: str = "GET") -> Response:
        async with asyncio.timeout(TIMEOUT):
            interim = []
            while True:
                status, reason, headers = await self._head()
                if status >= 200 or status == 101:
                    break
                interim.append(status)
            response = Response(status, reason, headers, b"", interim)
            if method != "HEAD" and status not in (101, 204, 304):
                response.body = await self._body(response)
            return response

    async def closed(self) -> bytes:
        """What still comes until the other side closes; a reset counts as closing."""
        rest = bytearray()
        async with asyncio.timeout(TIMEOUT):
            try:
                while piece := await self.reader.read(65536):
                    rest += piece
            except ConnectionError:
                pass
        return bytes(rest)

    def half_close(self) -> None:
        self.writer.write_eof()

    def reset(self) -> None:
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    async def _head(self) -> tuple[int, str, Headers]:
        raw = await self.reader.readuntil(b"\r\n\r\n")
        first, *lines = raw[:-4].decode("latin-1").split("\r\n")
        _, status, reason = first.split(" ", 2)
        headers = [(name, value.strip()) for name, _, value in (x.partition(":") for x in lines)]
        return int(status), reason, headers

    async def _body(self, response: Response) -> bytes:
        length = response.header("Content-Length")
        if length is not None:
            return await self.reader.readexactly(int(length))
        if response.header("Transfer-Encoding") != "chunked":
            return await self.reader.read()
        body = bytearray()
        while size := int(await self.reader.readuntil(b"\r\n"), 16):
            body += (await self.reader.readexactly(size + 2))[:-2]
        await self.reader.readuntil(b"\r\n")
        return bytes(body)


@asynccontextmanager
async def connect(immich: StandIn) -> AsyncIterator[Wire]:
    reader, writer = await asyncio.open_connection(immich.host, immich.port)
    try:
        yield Wire(reader, writer)
    except BaseException:
        # What was not taken would keep an orderly close waiting.
        writer.transport.abort()
        raise
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


def head(method: str, target: str, headers: Headers) -> bytes:
    lines = [f"{method} {target} HTTP/1.1", "Host: immich.test"]
    lines += [f"{name}: {value}" for name, value in headers]
    return "\r\n".join([*lines, "", ""]).encode()


def chunks(body: bytes, size: int, extension: bytes = b"") -> bytes:
    """The body in chunks, without the last one."""
    framed = bytearray()
    for at in range(0, len(body), size):
        piece = body[at : at + size]
        framed += b"%x%s\r\n%s\r\n" % (len(piece), extension, piece)
    return bytes(framed)
