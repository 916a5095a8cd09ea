"""The way to Immich: pooled connections, heads byte for byte, faults in our own words."""

import asyncio
import functools
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from aiohttp import (
    ClientConnectorError,
    ClientError,
    ClientOSError,
    ClientSession,
    ClientTimeout,
    ConnectionTimeoutError,
    DummyCookieJar,
    Payload,
    ServerDisconnectedError,
    ServerTimeoutError,
)
from yarl import URL

from immich_bridge.bridge.exchange import (
    Answer,
    Exchange,
    UpstreamConnector,
    UpstreamProtocol,
    UpstreamRequest,
)
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
        exchange = Exchange(render_head(line, headers))
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

    async def _send(self, method: str, exchange: Exchange, body: Payload | None) -> Answer:
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
        self, session: ClientSession, method: str, exchange: Exchange, body: Payload | None
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
        connector = UpstreamConnector(limit=0, limit_per_host=0, ssl=tls, **pooling)
        loop = asyncio.get_running_loop()
        protocol = functools.partial(UpstreamProtocol, loop=loop, count=self._count_connection)
        connector._factory = protocol  # type: ignore[assignment]  # partial is invariant
        session = ClientSession(
            connector=connector,
            request_class=UpstreamRequest,
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
