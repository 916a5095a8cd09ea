"""The way to Immich: pooled connections, heads byte for byte, faults in our own words."""

import asyncio
import functools
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from aiohttp import (
    ClientConnectionError,
    ClientConnectorError,
    ClientError,
    ClientHandlerType,
    ClientOSError,
    ClientPayloadError,
    ClientRequest,
    ClientResponse,
    ClientSession,
    ClientTimeout,
    ConnectionTimeoutError,
    DummyCookieJar,
    Payload,
    ServerDisconnectedError,
    ServerTimeoutError,
    TCPConnector,
)
from aiohttp.abc import AbstractStreamWriter
from aiohttp.client_proto import ResponseHandler
from aiohttp.connector import Connection
from aiohttp.helpers import _EXC_SENTINEL
from aiohttp.http import StreamWriter
from yarl import URL

from immich_bridge.bridge.headers import RawHeaders, render_head
from immich_bridge.config import Config
from immich_bridge.errors import BadGateway, BridgeError, GatewayTimeout, StartError, Unavailable
from immich_bridge.http.metrics import Metrics

# Immich closes idle connections after 5 to 6 seconds; ours are not used again after that.
_KEEPALIVE_SECONDS: Final = 4.0
_READ_BUFFER: Final = 256 * 1024
_MAX_FIELD_SIZE: Final = 64 * 1024
_MAX_HEADERS: Final = 1024
_PING_ROUTE: Final = b"/api/server/ping"
# RFC 9110 9.2.2. With a body they could be repeated too, but the body is gone by then.
_IDEMPOTENT: Final = frozenset({"GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"})


class _Exchange:
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
        assert isinstance(request, _UpstreamRequest)  # noqa: S101 - narrows the type
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


class _Protocol(ResponseHandler):
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


class _UpstreamRequest(ClientRequest):
    """A request whose head goes out as the bytes we rendered.

    aiohttp's own rendering goes through yarl, which normalises targets, and through `str`,
    which loses what is not UTF-8.
    """

    exchange: _Exchange
    _read_timeout: float | None = None

    async def send(self, conn: Connection) -> ClientResponse:
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
            if protocol is not None:
                protocol.read_timeout = self._read_timeout
                protocol.start_timeout()


class _HeadWriter(StreamWriter):
    def buffer_head(self, head: bytes) -> None:
        """Have `head` sent together with the first piece of the body."""
        self._headers_buf = head
        self._headers_written = False


class _Connector(TCPConnector):
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


class Upstream:
    """Immich as this server sees it. An async context manager that owns the connections."""

    def __init__(self, config: Config) -> None:
        if config.immich_server_url is None:
            raise ValueError("there is no Immich to connect to")
        url = URL(config.immich_server_url)
        self._origin = url.origin()
        self.prefix = url.raw_path.rstrip("/").encode()
        """What stands before every path at this Immich; mostly nothing."""
        self.host = url.host_port_subcomponent.encode() if url.host_port_subcomponent else b""
        """The value of `Host` for requests to Immich."""
        self._open_connections = 0
        self._made_connections = 0
        self._config = config
        self._pooled: ClientSession
        self._unshared: ClientSession

    async def __aenter__(self) -> "Upstream":
        self._pooled = self._session(keepalive_timeout=_KEEPALIVE_SECONDS)
        self._unshared = self._session(force_close=True)
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._pooled.close()
        await self._unshared.close()

    def expose(self, metrics: Metrics) -> None:
        """Let `metrics` tell of the connections."""
        metrics.gauge(
            "immich_bridge_upstream_connections_open",
            "Connections to Immich, in use or kept for the next request.",
            lambda: [((), self._open_connections)],
        )
        metrics.counter(
            "immich_bridge_upstream_connections",
            "Connections to Immich that were made.",
            lambda: [((), self._made_connections)],
        )

    @asynccontextmanager
    async def request(
        self, method: str, target: bytes, headers: RawHeaders, body: Payload | None = None
    ) -> AsyncIterator[Answer]:
        """Send a request; the response, whose body is still to come, lives in the context.

        `target` is the request target without the prefix, `headers` are complete but for
        `Transfer-Encoding`. A response that is not read to its end, or a context left by an
        exception, cuts the connection.

        Raises `Unavailable` (no connection), `GatewayTimeout`, `BadGateway`, and whatever
        error the body raised while it was read.
        """
        if body is not None and body.size is None:
            headers = [*headers, (b"Transfer-Encoding", b"chunked")]
        prefix = b"" if target == b"*" else self.prefix  # concerns the server as a whole
        line = b"%b %b%b HTTP/1.1" % (method.encode(), prefix, target)
        exchange = _Exchange(render_head(line, headers))
        response: Answer | None = None
        try:
            response = await self._send(method, exchange, body)
            if exchange.sent_at is not None:
                response.waited = asyncio.get_running_loop().time() - exchange.sent_at
            yield response
            if not response.content.at_eof():
                exchange.abort()
            response.close()
        except BaseException as exc:
            # Once the response is read its connection may already serve somebody else.
            if response is None or response.connection is not None:
                exchange.abort()
            if response is not None:
                response.close()
            if response is not None and isinstance(exc, ConnectionError):
                raise  # of a write to the client: Immich has answered
            if isinstance(exc, ClientError | TimeoutError | OSError):
                raise _translate(exc) from exc
            raise
        finally:
            await exchange.let_go_of_body()

    async def ping(self) -> None:
        """Return if Immich answers its own liveness route; raise an error that says why not."""
        headers = [(b"Host", self.host), (b"User-Agent", b"immich-bridge")]
        async with self.request("GET", _PING_ROUTE, headers) as answer:
            if answer.status != 200:
                raise BadGateway(f"Immich answered {answer.status}")

    async def _send(self, method: str, exchange: _Exchange, body: Payload | None) -> Answer:
        """Send once, and a second time where that cannot do harm.

        Immich may close an idle connection at the very moment in which it is used again.
        What may be repeated is sent over a pooled connection and repeated over a new one;
        what may not goes over a new one at once. A failure to connect is tried again
        whatever the request is: nothing of it was sent.
        """
        repeatable = body is None and method in _IDEMPOTENT
        first = self._pooled if repeatable else self._unshared
        try:
            return await self._attempt(first, method, exchange, body)
        except ClientConnectorError:
            pass
        except (ClientOSError, ServerDisconnectedError):
            if not repeatable:
                raise
        return await self._attempt(self._unshared, method, exchange, body)

    async def _attempt(
        self, session: ClientSession, method: str, exchange: _Exchange, body: Payload | None
    ) -> Answer:
        try:
            answer = await session.request(
                method,
                self._origin,
                data=body,
                allow_redirects=False,
                middlewares=(exchange.middleware,),
            )
        except ClientError:
            if exchange.body_error is not None:
                raise exchange.body_error from None
            raise
        assert isinstance(answer, Answer)  # noqa: S101 - narrows the type
        return answer

    def _session(self, **pooling: Any) -> ClientSession:
        tls = _tls_context(self._config.immich_ca_file)
        connector = _Connector(limit=0, limit_per_host=0, ssl=tls, **pooling)
        loop = asyncio.get_running_loop()
        protocol = functools.partial(_Protocol, loop=loop, count=self._count_connection)
        connector._factory = protocol  # type: ignore[assignment]  # partial is invariant
        session = ClientSession(
            connector=connector,
            request_class=_UpstreamRequest,
            response_class=Answer,
            cookie_jar=DummyCookieJar(),
            auto_decompress=False,
            read_bufsize=_READ_BUFFER,
            max_line_size=_MAX_FIELD_SIZE,
            max_field_size=_MAX_FIELD_SIZE,
            max_headers=_MAX_HEADERS,
            timeout=ClientTimeout(
                total=None,
                connect=self._config.upstream_connect_timeout,
                sock_read=self._config.upstream_response_timeout,
            ),
        )
        session._retry_connection = False  # `_send` knows better what may be repeated
        return session

    def _count_connection(self, change: int) -> None:
        self._open_connections += change
        self._made_connections += change > 0


def _tls_context(ca_file: Path | None) -> ssl.SSLContext | bool:
    try:
        return ssl.create_default_context(cafile=ca_file) if ca_file else True
    except OSError as exc:  # also ssl.SSLError
        raise StartError(f"IMMICH_CA_FILE cannot be used: {exc}") from exc


def _translate(exc: Exception) -> BridgeError:
    """What a fault of the way to Immich means to the client."""
    if isinstance(exc, ConnectionTimeoutError):
        return GatewayTimeout("Immich did not take the connection in time")
    if isinstance(exc, ServerTimeoutError | TimeoutError):
        return GatewayTimeout("Immich did not answer in time")
    if isinstance(exc, ClientConnectorError):
        return Unavailable("Immich cannot be reached")
    if isinstance(exc, ServerDisconnectedError | ClientOSError | OSError):
        return BadGateway("Immich closed the connection before it answered")
    return BadGateway("Immich sent something that is no HTTP answer")
