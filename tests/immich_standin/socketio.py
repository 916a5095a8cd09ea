"""Immich's socket.io endpoint: websocket only, and an echo once it is connected."""

from __future__ import annotations

import secrets
from typing import Any

from aiohttp import WSMsgType, web

from .answers import Answer
from .exchange import Exchange
from .release import Refusal, dump
from .service import elsewhere

# engine.io's `maxHttpBufferSize`, which it announces and enforces.
MAX_PAYLOAD = 1_000_000


async def socket_io(exchange: Exchange) -> Answer | web.StreamResponse:
    if exchange.request.query.get("transport") != "websocket":
        body = b'{"code":0,"message":"Transport unknown"}'
        headers = [("Access-Control-Allow-Origin", "*"), ("Content-Type", "application/json")]
        return Answer(400, headers, body, chunked=True, express=False)
    if exchange.request.headers.get("Upgrade", "").lower() != "websocket":
        return await elsewhere(exchange)
    return await _talk(exchange)


async def _talk(exchange: Exchange) -> web.WebSocketResponse:
    offered = exchange.request.headers.get("Sec-WebSocket-Protocol", "")
    protocols = [name.strip() for name in offered.split(",") if name.strip()]
    socket = web.WebSocketResponse(
        protocols=protocols, autoping=False, compress=False, max_msg_size=MAX_PAYLOAD
    )
    await socket.prepare(exchange.request)
    exchange.seen.status = 101
    exchange.instance.journal.changed()
    handshake = {
        "sid": _sid(),
        "upgrades": [],
        "pingInterval": 25000,
        "pingTimeout": 20000,
        "maxPayload": MAX_PAYLOAD,
    }
    await socket.send_str("0" + _text(handshake))
    async for message in socket:
        if message.type is WSMsgType.TEXT and message.data == "40":
            await _connect(exchange, socket)
        elif message.type is WSMsgType.TEXT:
            await socket.send_str(message.data)
        elif message.type is WSMsgType.BINARY:
            await socket.send_bytes(message.data)
        elif message.type is WSMsgType.PING:
            await socket.pong(message.data)
    return socket


async def _connect(exchange: Exchange, socket: web.WebSocketResponse) -> None:
    """The upgrade needs no credentials; the namespace does."""
    await socket.send_str("40" + _text({"sid": _sid()}))
    try:
        exchange.grant()
    except Refusal:
        await socket.send_str('42["error","unauthorized"]')
        await socket.send_str("41")
        return
    version = exchange.release.announced_version
    await socket.send_str("42" + _text(["on_server_version", version]))


def _sid() -> str:
    return secrets.token_urlsafe(15)


def _text(value: Any) -> str:
    return dump(value).decode()
