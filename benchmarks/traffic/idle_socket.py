"""A WebSocket as the web page keeps it open: silent, but for a ping now and then."""

import asyncio
from typing import Final

import aiohttp
from aiohttp import WSMsgType
from traffic.immich import Immich
from traffic.tally import Tally, Wrong, pause

_PATH: Final = "/api/socket.io/?EIO=4&transport=websocket"
_PING_SECONDS: Final = 5.0
_ANSWER_SECONDS: Final = 10.0
_END: Final = (WSMsgType.CLOSE, WSMsgType.CLOSING, WSMsgType.CLOSED, WSMsgType.ERROR)


class IdleSocket:
    """Connects to Immich's socket.io, and counts as wrong when that closes."""

    def __init__(self, immich: Immich, tally: Tally) -> None:
        self._immich = immich
        self._tally = tally

    async def run(self, stop: asyncio.Event) -> None:
        """Stay connected until `stop`; connect again if it breaks."""
        while not stop.is_set():
            with self._tally.request("socket life"):
                async with self._immich.session.ws_connect(
                    self._immich.url + _PATH, headers=self._immich.headers, autoping=False
                ) as socket:
                    # engine.io opens, socket.io connects.
                    await self._expect(socket, "0")
                    await socket.send_str("40")
                    await self._expect(socket, "40")
                    while not stop.is_set():
                        await self._ping(socket)
                        await pause(stop, _PING_SECONDS)
            if not stop.is_set():
                await pause(stop, 1.0)

    async def _expect(self, socket: aiohttp.ClientWebSocketResponse, start: str) -> None:
        message = await socket.receive(_ANSWER_SECONDS)
        if message.type is not WSMsgType.TEXT or not message.data.startswith(start):
            raise Wrong(f"{message.type.name} {message.data!r} instead of {start!r}")

    async def _ping(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        """Ping, and take what has come meanwhile; raises `Wrong` when the socket is closed."""
        broken = None
        with self._tally.request("socket ping"):
            await socket.ping(b"soak")
            while True:
                message = await socket.receive(_ANSWER_SECONDS)
                if message.type is WSMsgType.PONG:
                    break
                if message.type is WSMsgType.PING:
                    await socket.pong(message.data)
                elif message.type is WSMsgType.TEXT and message.data == "2":
                    await socket.send_str("3")  # engine.io's own ping and pong
                elif message.type in _END:
                    broken = Wrong(f"closed with code {socket.close_code}")
                    raise broken
        if broken:
            raise broken
