"""The way to the other workers of this server, for requests on uploads that one of them has.

A resumable upload lives in the process that began it, with its open request to Immich; the kernel
gives the next connection of its client to any. So a request on an upload of a sibling is passed on,
head and body, as they come. The sibling answers, counts and logs it.
"""

import asyncio
import functools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from aiohttp import ClientError, ClientRequest, ClientTimeout, Payload, UnixConnector, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.connector import Connection
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.typedefs import Handler
from yarl import URL

from immich_bridge.body import IncomingBody
from immich_bridge.bridge.exchange import Answer, Exchange, UpstreamProtocol
from immich_bridge.bridge.form import StreamedBody
from immich_bridge.bridge.headers import end_to_end, render_head, request_target, without
from immich_bridge.bridge.relay import relay
from immich_bridge.config import Config
from immich_bridge.errors import ClientGone, RequestTimeout, Unavailable
from immich_bridge.http.client_address import peer_address
from immich_bridge.http.connection import is_internal
from immich_bridge.http.middleware import PEER_HEADER, REQUEST_ID_HEADER
from immich_bridge.http.record import RECORD
from immich_bridge.worker import Worker

_CONNECT_SECONDS: Final = 5.0
_SPARE_SECONDS: Final = 30.0
"""A sibling waits for Immich, and should be the one that gives up."""
_MADE_ANEW: Final = frozenset({PEER_HEADER.lower().encode(), REQUEST_ID_HEADER.lower().encode()})

_CUT: Final = (
    *(ClientError, HttpProcessingError, TimeoutError, OSError),  # the sibling ended it, or itself
    *(RequestTimeout, Unavailable),  # the client fell silent, or this server stops
)
"""What ends a request on an upload without an answer, so that the client asks how far it came."""


class _BodyBehindHead(StreamedBody):
    """A body that does not hold its head back until its first byte has come.

    What the head says is enough to refuse it, or to end a request that hangs.
    """

    async def write(self, writer: AbstractStreamWriter) -> None:
        writer.send_headers()
        await super().write(writer)


class Siblings:
    """Passes requests on; `lifetime` owns what that takes."""

    def __init__(self, config: Config, worker: Worker) -> None:
        self._config = config
        self._worker = worker
        self._connectors: dict[int, UnixConnector] = {}
        self._any_request: ClientRequest

    async def lifetime(self, _: web.Application) -> AsyncIterator[None]:
        """Be able to connect, as long as the server runs."""
        loop = asyncio.get_running_loop()
        # To aiohttp's connector a request is where it goes.
        self._any_request = ClientRequest("GET", URL("http://worker"), loop=loop)
        for number in self._worker.siblings:
            path = str(self._worker.requests_socket(number))
            connector = UnixConnector(path, force_close=True, limit=0)
            protocol = functools.partial(UpstreamProtocol, loop=loop, made=lambda: None)
            connector._factory = protocol  # type: ignore[assignment]  # partial is invariant
            self._connectors[number] = connector
        yield
        for connector in self._connectors.values():
            await connector.close()

    def in_front_of(self, handler: Handler) -> Handler:
        """`handler` for the uploads of this worker; those of others are asked for there."""

        async def handle(request: web.Request) -> web.StreamResponse:
            owner = self._worker.owner_of(request.match_info["name"])
            if owner == self._worker.number or is_internal(request):
                return await handler(request)
            return await self._pass_on(request, owner)

        return handle

    async def _pass_on(self, request: web.Request, owner: int) -> web.StreamResponse:
        """Pass `request` on to the worker `owner`, and its answer back.

        Raises `Unavailable` when that one is not there. Where it gives no answer, there is none.
        """
        try:
            timeout = ClientTimeout(connect=_CONNECT_SECONDS)
            connection = await self._connectors[owner].connect(self._any_request, [], timeout)
        except (ClientError, TimeoutError, OSError) as exc:
            raise Unavailable("the process that has this upload is away") from exc
        record = request[RECORD]
        record.told_elsewhere = True
        headers = [
            *without(end_to_end(request.raw_headers), _MADE_ANEW),
            (REQUEST_ID_HEADER.encode(), record.request_id.encode()),
            (PEER_HEADER.encode(), peer_address(request).encode()),
        ]
        try:
            if not request.body_exists:
                async with self._sent(connection, request, headers) as answer:
                    return await relay(request, answer)
            with IncomingBody(request, idle_timeout=self._config.body_idle_timeout) as body:
                payload = _BodyBehindHead(body, body.length, request.content_type)
                async with self._sent(connection, request, headers, payload) as answer:
                    return await relay(request, answer)
        except _CUT as exc:
            raise ClientGone("the process that has this upload ended the request") from exc

    @asynccontextmanager
    async def _sent(
        self,
        connection: Connection,
        request: web.Request,
        headers: list[tuple[bytes, bytes]],
        body: Payload | None = None,
    ) -> AsyncIterator[Answer]:
        """Send a request on `connection`; its answer lives in the context."""
        if body is not None and body.size is None:
            headers.append((b"Transfer-Encoding", b"chunked"))
        line = b"%b %b HTTP/1.1" % (request.method.encode(), request_target(request.raw_path))
        silence = self._config.upstream_response_timeout + _SPARE_SECONDS
        exchange = Exchange(connection, silence)
        answer = await exchange.send(request.method, render_head(line, headers), body)
        try:
            yield answer
        finally:
            await exchange.end()
