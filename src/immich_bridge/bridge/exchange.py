"""One request on one connection to Immich, on aiohttp's connections and its parser.

aiohttp's session would do the same with a dozen objects more, a quarter of all that a small
request costs; its requests go through yarl, which normalises targets, and through `str`, which
loses what is not UTF-8. Here heads go out as they were rendered, an answer that is broken off
says so, and whatever happens to the body of a request is known to whoever cleans up.
"""

import asyncio
import socket
from collections.abc import Callable, Mapping
from typing import Any, Final

from aiohttp import (
    ClientConnectionError,
    ClientConnectorError,
    ClientPayloadError,
    ClientRequest,
    ClientTimeout,
    Payload,
    ServerDisconnectedError,
    StreamReader,
    TCPConnector,
)
from aiohttp.client_proto import ResponseHandler
from aiohttp.connector import Connection
from aiohttp.helpers import _EXC_SENTINEL
from aiohttp.http import RawResponseMessage, StreamWriter

_READ_BUFFER: Final = 256 * 1024
_MAX_FIELD_SIZE: Final = 64 * 1024
_MAX_HEADERS: Final = 1024


class Answer:
    """An answer of Immich's, whose body may still be on its way."""

    waited: float | None = None
    """Seconds from the end of the request to the head; None when it came before the end."""

    def __init__(
        self, message: RawResponseMessage, content: StreamReader, connection: Connection
    ) -> None:
        self.status = message.code
        self.reason = message.reason
        self.headers: Mapping[str, str] = message.headers
        self.raw_headers = message.raw_headers
        self.content = content
        self.connection: Connection | None = connection
        """On which it comes; None once the body is whole and somebody else may have it."""

    @property
    def content_length(self) -> int | None:
        """Length of the body, where the head says it."""
        length = self.headers.get("Content-Length")
        return None if length is None else int(length)


class Exchange:
    """One request on one connection, and what it leaves behind for whoever cleans up after it."""

    def __init__(self, connection: Connection, silence: float | None) -> None:
        """`silence` is how many seconds Immich may be silent before and in its answer."""
        self._connection = connection
        self._silence = silence
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._pump: asyncio.Task[None] | None = None
        self._answer: Answer | None = None
        self._body_error: Exception | None = None
        self._sent_at: float | None = None
        """When Immich had the whole request, in the time of the event loop."""

    async def send(self, method: str, head: bytes, body: Payload | None) -> Answer:
        """Send a request, and return as soon as the head of its answer is here.

        Raises aiohttp's errors, and whatever error the body raised while it was read; nothing
        is left of the exchange then.
        """
        try:
            return await self._send(method, head, body)
        except BaseException as exc:
            self.abort()
            await self.end()
            if self._body_error is not None and isinstance(exc, Exception):
                raise self._body_error from None
            raise

    def abort(self) -> None:
        """Cut the connection: what Immich has of the request stays incomplete for good."""
        if self._transport is not None:
            self._transport.abort()

    async def end(self) -> None:
        """Close the connection unless it may serve others; then nothing reads the body any more."""
        self._connection.close()
        if self._pump is not None and not self._pump.done():
            self._pump.cancel()
            await asyncio.wait({self._pump})

    async def _send(self, method: str, head: bytes, body: Payload | None) -> Answer:
        protocol = self._connection.protocol
        # Something that came unasked while the connection was idle answers nobody, least of
        # all the client whose request would be next on it.
        if protocol is None or protocol.transport is None or protocol.should_close:
            raise ServerDisconnectedError
        self._transport = protocol.transport
        protocol.set_response_params(
            skip_payload=method == "HEAD",
            read_until_eof=True,
            auto_decompress=False,
            # Immich's silence counts from the end of the body. aiohttp would count it from
            # the last bytes that came, a `100 Continue` for one.
            read_timeout=self._silence if body is None else None,
            read_bufsize=_READ_BUFFER,
            max_line_size=_MAX_FIELD_SIZE,
            max_field_size=_MAX_FIELD_SIZE,
            max_headers=_MAX_HEADERS,
        )
        writer = _HeadWriter(protocol, self._loop)
        writer.buffer_head(head)
        if body is None:
            writer.send_headers()
            self._sent(protocol)
        else:
            if body.size is None:
                writer.enable_chunking()
            self._pump = self._loop.create_task(self._send_body(body, writer, protocol))
        message, content = await protocol.read()
        while message.code < 200 and message.code != 101:
            message, content = await protocol.read()
        answer = self._answer = Answer(message, content, self._connection)
        if self._sent_at is not None:
            answer.waited = self._loop.time() - self._sent_at
        if not protocol.upgraded:
            content.on_eof(self._release)
        return answer

    async def _send_body(
        self, body: Payload, writer: StreamWriter, protocol: ResponseHandler
    ) -> None:
        """Send the body to its end, or cut the connection."""
        try:
            await body.write(writer)
            await writer.write_eof()
        except (ClientConnectionError, ConnectionError):
            # Immich stopped listening. It may have answered before it did, so whoever
            # waits for the answer decides what this means.
            self._connection.close()
        except BaseException as exc:
            # The body has no end. Closing gracefully would still deliver what is buffered.
            self.abort()
            if not isinstance(exc, Exception):
                raise
            self._body_error = exc
        else:
            protocol.read_timeout = self._silence
            self._sent(protocol)

    def _sent(self, protocol: ResponseHandler) -> None:
        """Immich has the whole request; it is its turn."""
        self._sent_at = self._loop.time()
        if protocol.transport is not None:
            protocol.start_timeout()

    def _release(self) -> None:
        """The answer is whole: the connection may serve others once the request is, too."""
        if self._pump is not None and not self._pump.done():
            self._pump.add_done_callback(lambda _: self._release())
            return
        self._connection.release()
        if self._answer is not None:
            self._answer.connection = None


class UpstreamProtocol(ResponseHandler):
    """The client's end of a connection, whose answers notice when they are broken off.

    aiohttp has the reader of a body wait for ever once its chunks are garbage, and takes a
    reset for the proper end of a body that ends with the connection.

    `made` is called when the connection is made.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, made: Callable[[], None]) -> None:
        super().__init__(loop)
        self._made = made

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._made()

    def set_exception(self, exc: BaseException, exc_cause: BaseException = _EXC_SENTINEL) -> None:
        self._break_body_off(exc)
        super().set_exception(exc, exc_cause)

    def connection_lost(self, exc: BaseException | None) -> None:
        if exc is not None:
            self._break_body_off(exc)
        super().connection_lost(exc)

    def _break_body_off(self, exc: BaseException) -> None:
        payload = self._payload
        if payload is not None and not payload.is_eof():
            error = ClientPayloadError("the answer was broken off")
            error.__cause__ = exc
            payload.set_exception(error, exc)
            # And later: a reader that was just woken by the end of a chunk goes to sleep once
            # more, whatever has happened to the body meanwhile.
            self._loop.call_soon(payload.set_exception, error, exc)


class _HeadWriter(StreamWriter):
    def buffer_head(self, head: bytes) -> None:
        """Have `head` sent together with the first piece of the body."""
        self._headers_buf = head
        self._headers_written = False


class UpstreamConnector(TCPConnector):
    """Has the event loop connect where there is one address, and so nothing to race for.

    aiohttp connects a socket of its own first: on uvloop that costs twice the time.
    """

    @property
    def open_connections(self) -> int:
        """How many there are, in use or kept.

        Counting those that were made and not lost would not do: uvloop tells nobody of the loss of
        one whose making was cancelled at the last moment.
        """
        kept = (connection for pool in self._conns.values() for connection, _ in pool)
        every = (*self._acquired, *kept)
        return sum(isinstance(each, ResponseHandler) and each.is_connected() for each in every)

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
