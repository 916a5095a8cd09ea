"""Every request that is not ours: to Immich and back as if this server were not there."""

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter

from immich_bridge.body import IncomingBody
from immich_bridge.bridge.form import StreamedBody
from immich_bridge.bridge.forwarded import forwarded_by_us
from immich_bridge.bridge.headers import end_to_end, request_target
from immich_bridge.bridge.relay import relay
from immich_bridge.bridge.upstream import Upstream
from immich_bridge.bridge.websocket_proxy import WebSocketProxy, asks_for_websocket
from immich_bridge.config import Config


class ReverseProxy:
    """The handler of everything else."""

    def __init__(self, config: Config, upstream: Upstream, websockets: WebSocketProxy) -> None:
        self._config = config
        self._upstream = upstream
        self._websockets = websockets

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Pass `request` on, and Immich's answer back."""
        target = request_target(request.raw_path)
        headers = forwarded_by_us(
            request,
            end_to_end(request.raw_headers),
            host=self._upstream.host,
            trusted=self._config.trusted_proxies,
        )
        if asks_for_websocket(request):
            return await self._websockets.handle(request, target, headers)
        fast_path = self._config.fast_path == "auto"
        if not request.body_exists:
            async with self._upstream.request(request.method, target, headers) as answer:
                return await relay(request, answer, fast_path=fast_path)
        with IncomingBody(
            request,
            idle_timeout=self._config.body_idle_timeout,
            fast_path=fast_path,
        ) as body:
            payload = _Body(body, request.content_type)
            async with self._upstream.request(request.method, target, headers, payload) as answer:
                return await relay(request, answer, fast_path=fast_path)


class _Body(StreamedBody):
    """A body whose head does not wait for it: Immich may answer before the first byte."""

    def __init__(self, body: IncomingBody, content_type: str) -> None:
        super().__init__(body, body.length, content_type)
        self._body = body

    async def write(self, writer: AbstractStreamWriter) -> None:
        """Write the bytes as they come, with the head if some of them are here already."""
        if not self._body.unread:
            writer.send_headers()
        await super().write(writer)
