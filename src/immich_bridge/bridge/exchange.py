"""One request on one connection to Immich: aiohttp's client classes, bent where they must be.

The bytes of a head go out as they were rendered, an answer that is broken off says so, and
whatever happens to the body of a request is known to whoever cleans up.
"""

import asyncio
import socket
from collections.abc import Callable
from typing import Any

from aiohttp import (
    ClientConnectionError,
    ClientConnectorError,
    ClientHandlerType,
    ClientPayloadError,
    ClientRequest,
    ClientResponse,
    ClientTimeout,
    Payload,
    ServerDisconnectedError,
    TCPConnector,
)
from aiohttp.abc import AbstractStreamWriter
from aiohttp.client_proto import ResponseHandler
from aiohttp.connector import Connection
from aiohttp.helpers import _EXC_SENTINEL
from aiohttp.http import StreamWriter


class Exchange:
    """What one try at one request leaves behind, for whoever has to clean up after it."""

    def __init__(self, head: bytes) -> None:
        self.head = head
        self.pump: asyncio.Task[None] | None = None
        self.transport: asyncio.Transport | None = None
        self.body_error: Exception | None = None
        self.sent_at: float | None = None
        """When Immich had the whole request, in the time of the event loop."""

    async def middleware(self, request: ClientRequest, send: ClientHandlerType) -> ClientResponse:
        """Hand this exchange to the request, the one way that aiohttp's session offers."""
        assert isinstance(request, UpstreamRequest)  # noqa: S101 - narrows the type
        request.exchange = self
        return await send(request)

    def abort(self) -> None:
        """Cut the connection: what Immich has of the request stays incomplete for good."""
        if self.transport is not None:
            self.transport.abort()

    async def let_go_of_body(self) -> None:
        """Return once nothing reads the body any more, so that somebody else may."""
        if self.pump is not None and not self.pump.done():
            self.pump.cancel()
            await asyncio.wait({self.pump})


class Answer(ClientResponse):
    """An answer of Immich's, whose body may still be on its way."""

    waited: float | None = None
    """Seconds from the end of the request to the head; None when it came before the end."""


class UpstreamProtocol(ResponseHandler):
    """The client's end of a connection, whose answers notice when they are broken off.

    aiohttp has the reader of a body wait for ever once its chunks are garbage, and takes a
    reset for the proper end of a body that ends with the connection.

    `count` is told 1 when the connection is made, and -1 when it is lost.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, count: Callable[[int], None]) -> None:
        super().__init__(loop)
        self._count = count

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._count(1)

    def set_exception(self, exc: BaseException, exc_cause: BaseException = _EXC_SENTINEL) -> None:
        self._break_body_off(exc)
        super().set_exception(exc, exc_cause)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._count(-1)
        if exc is not None:
            self._break_body_off(exc)
        super().connection_lost(exc)

    def _break_body_off(self, exc: BaseException) -> None:
        if self._payload is not None and not self._payload.is_eof():
            self._payload.set_exception(ClientPayloadError("the answer was broken off"), exc)


class UpstreamRequest(ClientRequest):
    """A request whose head goes out as the bytes we rendered.

    aiohttp's own rendering goes through yarl, which normalises targets, and through `str`,
    which loses what is not UTF-8.
    """

    exchange: Exchange
    _read_timeout: float | None = None

    async def send(self, conn: Connection) -> ClientResponse:
        """Send the head, and begin to send the body; the answer is still to come."""
        protocol = conn.protocol
        if protocol is None or protocol.transport is None:
            raise ServerDisconnectedError
        if protocol.should_close:
            # Something came unasked while the connection was idle. It answers nobody, least
            # of all the client whose request would be next on it.
            conn.close()
            raise ServerDisconnectedError
        self.exchange.transport = protocol.transport
        writer = _HeadWriter(protocol, self.loop)
        writer.buffer_head(self.exchange.head)
        task: asyncio.Task[None] | None = None
        if self._body is None:
            protocol.start_timeout()
            writer.set_eof()
            self.exchange.sent_at = self.loop.time()
        else:
            # Immich's silence counts from the end of the body. aiohttp would count it from
            # the last bytes that came, a `100 Continue` for one.
            self._read_timeout, protocol.read_timeout = protocol.read_timeout, None
            if self._body.size is None:
                writer.enable_chunking()
            task = self._writer = self.loop.create_task(self.write_bytes(writer, conn))
            self.exchange.pump = task
        return self.response_class(
            self.method,
            self.original_url,
            writer=task,
            continue100=None,
            timer=self._timer,
            request_info=self.request_info,
            traces=self._traces,
            loop=self.loop,
            session=self._session,
            stream_writer=writer,
        )

    async def write_bytes(
        self, writer: AbstractStreamWriter, conn: Connection, content_length: int | None = None
    ) -> None:
        """Send the body to its end, or cut the connection."""
        protocol = conn.protocol
        try:
            assert isinstance(self._body, Payload)  # noqa: S101 - narrows the type
            await self._body.write(writer)
            await writer.write_eof()
        except (ClientConnectionError, ConnectionError):
            # Immich stopped listening. It may have answered before it did, so whoever
            # waits for the answer decides what this means.
            conn.close()
        except BaseException as exc:
            # The body has no end. Closing gracefully would still deliver what is buffered.
            if isinstance(exc, Exception):
                self.exchange.body_error = exc
            self.exchange.abort()
            conn.close()
            if not isinstance(exc, Exception):
                raise
        else:
            self.exchange.sent_at = self.loop.time()
            if protocol is not None and protocol.transport is not None:
                protocol.read_timeout = self._read_timeout
                protocol.start_timeout()


class _HeadWriter(StreamWriter):
    def buffer_head(self, head: bytes) -> None:
        """Have `head` sent together with the first piece of the body."""
        self._headers_buf = head
        self._headers_written = False


class UpstreamConnector(TCPConnector):
    """Has the event loop connect where there is one address, and so nothing to race for.

    aiohttp connects a socket of its own first: on uvloop that costs twice the time.
    """

    async def _wrap_create_connection(
        self,
        *args: Any,
        addr_infos: list[Any],
        req: ClientRequest,
        timeout: ClientTimeout,
        client_error: type[Exception] = ClientConnectorError,
        **kwargs: Any,
    ) -> tuple[asyncio.Transport, ResponseHandler]:
        family, _, _, _, address = addr_infos[0]
        if len(addr_infos) > 1 or family != socket.AF_INET or kwargs.get("ssl"):
            return await super()._wrap_create_connection(
                *args,
                addr_infos=addr_infos,
                req=req,
                timeout=timeout,
                client_error=client_error,
                **kwargs,
            )
        try:
            return await self._loop.create_connection(*args, *address)
        except OSError as exc:
            if isinstance(exc, TimeoutError) and exc.errno is None:
                raise  # of our own clock
            raise client_error(req.connection_key, exc) from exc
