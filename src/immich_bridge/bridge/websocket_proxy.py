"""WebSockets between client and Immich: after the handshake, a plain tunnel of bytes.

Frames are not looked at. aiohttp's own WebSocket objects would answer pings, negotiate
compression and translate close codes; that is between the two ends.
"""

import asyncio
from typing import Final

from aiohttp import web
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http import StreamWriter

from immich_bridge.bridge.exchange import Answer
from immich_bridge.bridge.headers import RawHeaders, end_to_end
from immich_bridge.bridge.relay import RelayedResponse, relay
from immich_bridge.bridge.upstream import Upstream
from immich_bridge.errors import Unavailable
from immich_bridge.http.metrics import Metrics
from immich_bridge.http.middleware import REQUEST_ID_HEADER
from immich_bridge.http.record import RECORD

_ROUTE: Final = "websocket"
"""The route of a tunnel, to the log and the metrics: one lasts for hours."""
# `Upgrade` and `Connection` concern one connection each (RFC 9110 7.8), so they are made anew.
UPGRADE_HEADERS: Final = ((b"Connection", b"Upgrade"), (b"Upgrade", b"websocket"))


def asks_for_websocket(request: web.Request) -> bool:
    """Whether `request` is the client's half of a WebSocket handshake (RFC 6455 4.1)."""
    if request.method != "GET" or request.body_exists:
        return False
    if request.headers.get("Upgrade", "").lower() != "websocket":
        return False
    options = ",".join(request.headers.getall("Connection", ())).lower().split(",")
    return "upgrade" in (option.strip() for option in options)


class WebSocketProxy:
    """Opens tunnels, and closes them when the server stops."""

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream
        self._tunnels: set[asyncio.Transport] = set()
        self._closed = False

    def expose(self, metrics: Metrics) -> None:
        """Let `metrics` tell how many tunnels there are."""
        metrics.gauge(
            "immich_bridge_websockets_open",
            "WebSockets between clients and Immich.",
            lambda: [((), len(self._tunnels))],
        )

    async def handle(
        self, request: web.Request, target: bytes, headers: RawHeaders
    ) -> web.StreamResponse:
        """Pass the handshake on; what follows a 101 is tunnelled, a refusal is shown as it is."""
        async with self._upstream.request("GET", target, [*headers, *UPGRADE_HEADERS]) as answer:
            if answer.status != 101:
                return await relay(request, answer)
            record = request[RECORD]
            record.upstream = answer
            record.route = _ROUTE
            if self._closed:
                raise Unavailable("this server is stopping")
            response = RelayedResponse(
                101,
                answer.reason or "",
                [
                    *end_to_end(answer.raw_headers),
                    *UPGRADE_HEADERS,
                    (REQUEST_ID_HEADER.encode(), record.request_id.encode()),
                ],
                chunked=False,
                has_body=False,
            )
            await response.prepare(request)
            await response.flush_head()
            response.force_close()  # what comes after the tunnel is no HTTP
            transport = request.transport
            if transport is None:
                raise ConnectionResetError("the client left during the handshake")
            self._tunnels.add(transport)
            try:
                await _tunnel(request, answer)
            finally:
                self._tunnels.discard(transport)
            return response

    def close_all(self) -> None:
        """End every tunnel: idle sockets must not hold up a shutdown, and clients come back."""
        self._closed = True
        for transport in self._tunnels:
            transport.close()


async def _tunnel(request: web.Request, answer: Answer) -> None:
    """Move bytes both ways until one side closes."""
    client = request.protocol
    connection = answer.connection
    if connection is None or connection.protocol is None:
        raise ConnectionResetError("Immich left during the handshake")
    immich = connection.protocol
    immich.read_timeout = None  # an idle socket lives as long as both ends want
    ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    to_client = _Flow(immich, client, ended)
    to_immich = _Flow(client, immich, ended)
    client.set_parser(to_immich)  # type: ignore[arg-type]  # a parser by its two methods
    immich.set_parser(to_client, answer.content)
    try:
        await ended
    finally:
        to_client.stop()
        to_immich.stop()
        request[RECORD].bytes_tunnelled = to_immich.moved
        request.writer.output_size += to_client.moved
        # Closes gracefully: what one side sent last, a close frame, still has to arrive.
        connection.close()


class _Flow:
    """One direction of a tunnel, in the shape of the parsers that aiohttp feeds.

    `source` feeds it, and is not read while `sink` has more than it can send.
    """

    def __init__(
        self, source: BaseProtocol, sink: BaseProtocol, ended: asyncio.Future[None]
    ) -> None:
        self._source = source
        self._sink = sink
        self._ended = ended
        self._writer = StreamWriter(sink, asyncio.get_running_loop())
        self._draining: asyncio.Task[None] | None = None
        self.moved = 0
        """Bytes that went this way."""

    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        """Take what the source sent; `(False, b"")`: there is more to come, none is left."""
        transport = self._sink.transport
        if transport is None or transport.is_closing():
            self.feed_eof()
        else:
            transport.write(data)
            self.moved += len(data)
            source = self._source.transport
            if self._sink.writing_paused and self._draining is None and source is not None:
                source.pause_reading()
                self._draining = asyncio.get_running_loop().create_task(self._drain(source))
        return False, b""

    def feed_eof(self) -> None:
        """The source has closed."""
        if not self._ended.done():
            self._ended.set_result(None)

    def stop(self) -> None:
        """Let go of the source."""
        if self._draining is not None:
            self._draining.cancel()

    async def _drain(self, source: asyncio.Transport) -> None:
        try:
            await self._writer.drain()
        except ConnectionError:
            self.feed_eof()
        finally:
            self._draining = None
            if not source.is_closing():
                source.resume_reading()
