"""One client connection, with the few things Node does below the level of a request."""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
from typing import TYPE_CHECKING, cast

from aiohttp import web
from aiohttp.http_exceptions import LineTooLong

if TYPE_CHECKING:
    from aiohttp import StreamReader
    from aiohttp.web_request import BaseRequest

    from .instance import Instance

# Node refuses a header block above 16 KiB; aiohttp can only limit one line of it.
MAX_HEADER_SIZE = 16 * 1024
# Node keeps the first 2000 headers of a request.
MAX_HEADERS = 2000
# aiohttp's own idle timer also closes connections that have not said anything yet, which Node
# keeps for a minute: it is put out of the way, and ``await_next_request`` does its work.
NEVER = 24 * 3600.0

_LINGER_ZERO = struct.pack("ii", 1, 0)
_access_log = logging.getLogger(f"{__package__}.access")


class Connection(web.RequestHandler):
    """aiohttp's protocol, made to end connections the way Node ends them."""

    def __init__(
        self, instance: Instance, server: web.Server, loop: asyncio.AbstractEventLoop
    ) -> None:
        super().__init__(
            server,
            loop=loop,
            keepalive_timeout=NEVER,
            access_log=_access_log,
            max_line_size=MAX_HEADER_SIZE,
            max_field_size=MAX_HEADER_SIZE,
            max_headers=MAX_HEADERS,
            lingering_time=0,
            # Immich ignores Content-Encoding on requests.
            auto_decompress=False,
        )
        self._instance = instance
        self._wire: asyncio.Transport | None = None
        self._idle: asyncio.TimerHandle | None = None
        self.incoming: StreamReader | None = None
        """The body of the request being handled."""
        self.gone = asyncio.Event()
        """Set when the connection has ended, from whichever side."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._wire = cast(asyncio.Transport, transport)
        super().connection_made(transport)
        behaviour = self._instance.behaviour
        if behaviour.reset_on_accept and behaviour.take_one():
            self.vanish("rst")
        else:
            self._instance.connections.add(self)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._stop_idle_timer()
        self._instance.connections.discard(self)
        self.gone.set()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._stop_idle_timer()
        super().data_received(data)

    def eof_received(self) -> None:
        """A client that half-closes in the middle of a body gets Node's bare 400."""
        if self.incoming is not None and not self.incoming.is_eof():
            self._write_bare("400 Bad Request")

    def handle_error(
        self,
        request: BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what is not HTTP as Node does: a status line, ``Connection: close``, no body."""
        if status >= 500:
            return super().handle_error(request, status, exc, message)
        if isinstance(exc, LineTooLong):
            self._write_bare("431 Request Header Fields Too Large")
        else:
            self._write_bare("400 Bad Request")
        return web.Response(status=status)

    def await_next_request(self) -> None:
        """Close the connection when nothing comes within the idle timeout."""
        if self._wire is not None and not self._wire.is_closing():
            self._stop_idle_timer()
            loop = asyncio.get_running_loop()
            self._idle = loop.call_later(self._instance.idle_timeout, self._wire.close)

    def vanish(self, how: str) -> None:
        """End the connection now: ``rst`` drops what is unsent, ``fin`` sends it first."""
        if self._wire is None or self._wire.is_closing():
            return
        if how == "rst":
            sock = self._wire.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_ZERO)
            self._wire.abort()
        else:
            self._wire.close()

    def _write_bare(self, status: str) -> None:
        if self._wire is not None:
            self._wire.write(f"HTTP/1.1 {status}\r\nConnection: close\r\n\r\n".encode())
            self._wire.close()

    def _stop_idle_timer(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None
