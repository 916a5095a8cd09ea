"""The baseline: a bridge that holds the whole file in memory before it sends the first byte.

`python read_all.py PORT UPSTREAM_PORT`. It shows what streaming brings, with the same libraries.
"""

import sys
from collections.abc import AsyncIterator

from aiohttp import ClientSession, ClientTimeout, FormData, TCPConnector, web

from immich_bridge.serve import event_loop_factory

_SESSION: web.AppKey[ClientSession] = web.AppKey("session", ClientSession)
_TRANSFER_HEADERS = frozenset({"connection", "content-length", "host", "transfer-encoding"})


class ReadAllBridge:
    """Answers the background upload, and proxies the rest, one whole body after another."""

    def __init__(self, upstream: str) -> None:
        self._upstream = upstream

    def app(self) -> web.Application:
        """The application, with its pool of connections to the upstream."""
        app = web.Application(client_max_size=0)
        app.cleanup_ctx.append(self._session)
        app.router.add_post("/api/assets/background", self._upload)
        app.router.add_route("*", "/{path:.*}", self._proxy)
        return app

    async def _session(self, app: web.Application) -> AsyncIterator[None]:
        connector = TCPConnector(limit=0)
        async with ClientSession(
            connector=connector, timeout=ClientTimeout(), auto_decompress=False
        ) as session:
            app[_SESSION] = session
            yield

    async def _upload(self, request: web.Request) -> web.Response:
        form = FormData()
        form.add_field("deviceAssetId", request.headers.get("X-Device-Asset-Id", ""))
        form.add_field("fileCreatedAt", request.headers.get("X-File-Created-At", ""))
        form.add_field(
            "assetData",
            await request.read(),
            filename=request.headers.get("X-Filename", "photo.jpg"),
            content_type=request.headers.get("X-Content-Type", "image/jpeg"),
        )
        headers = {"x-api-key": request.headers.get("x-api-key", "")}
        url = f"{self._upstream}/api/assets"
        async with request.app[_SESSION].post(url, data=form, headers=headers) as answer:
            return web.Response(
                status=answer.status, body=await answer.read(), content_type="application/json"
            )

    async def _proxy(self, request: web.Request) -> web.Response:
        headers = {k: v for k, v in request.headers.items() if k.lower() not in _TRANSFER_HEADERS}
        body = await request.read()
        url = f"{self._upstream}{request.raw_path}"
        async with request.app[_SESSION].request(
            request.method, url, data=body, headers=headers, allow_redirects=False
        ) as answer:
            kept = {k: v for k, v in answer.headers.items() if k.lower() not in _TRANSFER_HEADERS}
            return web.Response(status=answer.status, body=await answer.read(), headers=kept)


if __name__ == "__main__":
    new_event_loop = event_loop_factory()
    web.run_app(
        ReadAllBridge(f"http://127.0.0.1:{sys.argv[2]}").app(),
        host="127.0.0.1",
        port=int(sys.argv[1]),
        access_log=None,
        print=None,
        loop=new_event_loop() if new_event_loop else None,
    )
