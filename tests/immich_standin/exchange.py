"""One request and its answer, from the first look at the head to the last drained byte."""

from __future__ import annotations

import asyncio
import json
import secrets
import string
from collections.abc import Awaitable, Callable
from typing import Any, cast

from aiohttp import ClientPayloadError, web

from .accounts import Grant, authenticate
from .answers import Answer, finish_head, refusal_answer, send
from .body import MAX_JSON, Body, ConnectionGone
from .connection import Connection
from .instance import Instance
from .release import Refusal, Release

_ALPHABET = string.ascii_lowercase + string.digits

# What a read or a write raises when the client is no longer there.
CLIENT_GONE = (ConnectionGone, ConnectionError, web.RequestPayloadError, ClientPayloadError)

Handler = Callable[["Exchange"], Awaitable[Answer | web.StreamResponse]]


class Exchange:
    """What a handler is given: the request, its body, and the stand-in it has come to."""

    def __init__(self, instance: Instance, request: web.Request) -> None:
        self.instance = instance
        self.request = request
        self.connection = cast(Connection, request.protocol)
        self.behaviour = instance.behaviour_for(request.method, request.raw_path)
        self.seen = instance.journal.begin(request)
        self.body = Body(request, self.connection, self.behaviour, instance.journal)
        given = request.headers.get(instance.release.correlation_header)
        self.correlation_id = given or "".join(secrets.choice(_ALPHABET) for _ in range(8))

    @property
    def release(self) -> Release:
        return self.instance.release

    def grant(self) -> Grant:
        return authenticate(self.request)

    def match(self, name: str) -> str:
        return self.request.match_info[name]

    async def json(self) -> Any:
        """The body as Immich's JSON parser takes it; raises Refusal."""
        if (self.request.content_length or 0) > MAX_JSON:
            raise Refusal(500, "Internal server error", correlated=False)
        raw = await self.body.collect(MAX_JSON)
        if raw is None:
            raise Refusal(500, "Internal server error", correlated=False)
        try:
            return json.loads(raw or b"{}")
        except ValueError as exc:
            raise Refusal(400, "Unexpected end of JSON input", correlated=False) from exc


EXCHANGE: web.RequestKey[Exchange] = web.RequestKey("exchange", Exchange)


def serving(instance: Instance, handler: Handler) -> Callable[..., Awaitable[web.StreamResponse]]:
    """The handler as aiohttp wants it."""

    async def serve(request: web.Request) -> web.StreamResponse:
        exchange = Exchange(instance, request)
        request[EXCHANGE] = exchange
        exchange.connection.incoming = request.content
        try:
            return await _serve(exchange, handler)
        except CLIENT_GONE:
            # Nobody will see it: aiohttp finds the connection closed and gives up.
            exchange.connection.vanish("fin")
            return web.Response()
        finally:
            exchange.connection.incoming = None
            exchange.seen.finished = True
            instance.journal.changed()

    return serve


async def on_prepare(request: web.Request, response: web.StreamResponse) -> None:
    exchange = request.get(EXCHANGE)
    if exchange is not None:
        finish_head(exchange, response)


async def _serve(exchange: Exchange, handler: Handler) -> web.StreamResponse:
    answer = await _decide(exchange, handler)
    if isinstance(answer, web.StreamResponse):
        return answer
    response = await send(exchange, answer)
    exchange.instance.journal.changed()
    if exchange.behaviour.close_idle:
        exchange.connection.vanish("fin")
    elif response.keep_alive:
        await _drain(exchange)
        exchange.connection.await_next_request()
    # Otherwise aiohttp closes with the body unread, as Node does on `Connection: close`.
    return response


async def _decide(exchange: Exchange, handler: Handler) -> Answer | web.StreamResponse:
    behaviour = exchange.behaviour
    if behaviour.early_status is not None:
        return _told(exchange, behaviour.early_status)
    if behaviour.answer_status is not None:
        await exchange.body.drain()
        return _told(exchange, behaviour.answer_status)
    try:
        return await handler(exchange)
    except Refusal as refusal:
        return refusal_answer(exchange, refusal)


def _told(exchange: Exchange, status: int) -> Answer:
    body = exchange.behaviour.answer_body.encode()
    headers = list(exchange.behaviour.answer_headers.items())
    if not any(name.lower() == "content-type" for name, _ in headers):
        headers.append(("Content-Type", "application/json; charset=utf-8"))
    headers.append(("Content-Length", str(len(body))))
    return Answer(status, headers, body)


async def _drain(exchange: Exchange) -> None:
    """Read what still comes after an early answer; give up when nothing does.

    The connection lives on for the next request, so the rest of this one must be taken off it.
    """
    while not exchange.request.content.at_eof():
        try:
            async with asyncio.timeout(exchange.instance.idle_timeout):
                await exchange.body.read_any()
        except TimeoutError:
            exchange.connection.vanish("fin")
            raise ConnectionGone from None
