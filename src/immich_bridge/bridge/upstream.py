"""The way to Immich: pooled connections, heads byte for byte, faults in our own words."""

import asyncio
import functools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from types import TracebackType
from typing import Any, Final

from aiohttp import (
    ClientConnectorError,
    ClientError,
    ClientOSError,
    ClientPayloadError,
    ClientRequest,
    ClientTimeout,
    ConnectionTimeoutError,
    Payload,
    ServerDisconnectedError,
    ServerTimeoutError,
)
from aiohttp.http_exceptions import HttpProcessingError
from yarl import URL

from immich_bridge.bridge.exchange import (
    Answer,
    Exchange,
    UpstreamConnector,
    UpstreamProtocol,
)
from immich_bridge.bridge.headers import RawHeaders, render_head
from immich_bridge.config import Config
from immich_bridge.errors import BadGateway, BridgeError, GatewayTimeout, Unavailable
from immich_bridge.http.metrics import Metrics
from immich_bridge.tls import client_context

# Immich closes idle connections after 5 to 6 seconds; ours are not used again after that.
_KEEPALIVE_SECONDS: Final = 4.0
_PING_ROUTE: Final = b"/api/server/ping"
# RFC 9110 9.2.2. With a body they could be repeated too, but the body is gone by then.
_IDEMPOTENT: Final = frozenset({"GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"})

_FAULTS: Final = (ClientError, HttpProcessingError, TimeoutError, OSError)
"""What may go wrong on the way to Immich, as aiohttp has it."""


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
        self._made_connections = 0
        self._config = config
        self._timeout = ClientTimeout(connect=config.upstream_connect_timeout)
        self._pooled: UpstreamConnector
        self._unshared: UpstreamConnector

    async def __aenter__(self) -> "Upstream":
        self._pooled = self._connector(keepalive_timeout=_KEEPALIVE_SECONDS)
        self._unshared = self._connector(force_close=True)
        # To aiohttp's connector a request is where it goes; all go the same way.
        self._any_request = ClientRequest("GET", self._origin, loop=asyncio.get_running_loop())
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
            lambda: [((), self._pooled.open_connections + self._unshared.open_connections)],
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
        try:
            exchange, answer = await self._send(method, render_head(line, headers), body)
        except _FAULTS as exc:
            raise _translate(exc) from exc
        try:
            yield answer
            if not answer.content.at_eof():
                exchange.abort()
        except BaseException as exc:
            # Once the answer is read its connection may already serve somebody else.
            if answer.connection is not None:
                exchange.abort()
            if isinstance(exc, ConnectionError):
                raise  # of a write to the client: Immich has answered
            if isinstance(exc, _FAULTS):
                raise _translate(exc) from exc
            raise
        finally:
            await exchange.end()

    async def ping(self) -> None:
        """Return if Immich answers its own liveness route; raise an error that says why not."""
        headers = [(b"Host", self.host), (b"User-Agent", b"immich-bridge")]
        async with self.request("GET", _PING_ROUTE, headers) as answer:
            if answer.status != 200:
                raise BadGateway(f"Immich answered {answer.status}")

    async def _send(
        self, method: str, head: bytes, body: Payload | None
    ) -> tuple[Exchange, Answer]:
        """Send once, and a second time where that cannot do harm.

        Immich may close an idle connection at the very moment in which it is used again.
        What may be repeated is sent over a pooled connection and repeated over a new one;
        what may not goes over a new one at once.
        """
        if body is None and method in _IDEMPOTENT:
            exchange = await self._exchange(self._pooled)
            with suppress(ClientOSError, ServerDisconnectedError):
                return exchange, await exchange.send(method, head, body)
        exchange = await self._exchange(self._unshared)
        return exchange, await exchange.send(method, head, body)

    async def _exchange(self, connector: UpstreamConnector) -> Exchange:
        """A connection for one request. A failure to connect is tried again: nothing was sent."""
        try:
            try:
                connection = await connector.connect(self._any_request, [], self._timeout)
            except ClientConnectorError:
                connection = await connector.connect(self._any_request, [], self._timeout)
        except TimeoutError as exc:
            raise ConnectionTimeoutError from exc
        return Exchange(connection, self._config.upstream_response_timeout)

    def _connector(self, **pooling: Any) -> UpstreamConnector:
        authority = self._config.immich_ca_file
        tls = client_context(authority) if authority else True
        connector = UpstreamConnector(limit=0, limit_per_host=0, ssl=tls, **pooling)
        loop = asyncio.get_running_loop()
        protocol = functools.partial(UpstreamProtocol, loop=loop, made=self._count_connection)
        connector._factory = protocol  # type: ignore[assignment]  # partial is invariant
        return connector

    def _count_connection(self) -> None:
        self._made_connections += 1


def _translate(exc: Exception) -> BridgeError:
    """What a fault of the way to Immich means to the client."""
    if isinstance(exc, ClientPayloadError):
        if isinstance(exc.__cause__, ServerTimeoutError):
            return GatewayTimeout("Immich fell silent in the middle of its answer")
        return BadGateway("Immich broke off its answer")
    if isinstance(exc, ConnectionTimeoutError):
        return GatewayTimeout("Immich did not take the connection in time")
    if isinstance(exc, ServerTimeoutError | TimeoutError):
        return GatewayTimeout("Immich did not answer in time")
    if isinstance(exc, ClientConnectorError):
        return Unavailable("Immich cannot be reached")
    if isinstance(exc, ServerDisconnectedError | ClientOSError | OSError):
        return BadGateway("Immich closed the connection before it answered")
    return BadGateway("Immich sent something that is no HTTP answer")
