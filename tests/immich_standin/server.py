"""The stand-in as a server: in a test's own event loop, or behind ``python -m``."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from aiohttp import web

from . import library, media, service, socketio, uploads
from .accounts import ACCESS_TOKEN, API_KEY, OTHER_API_KEY, READONLY_API_KEY
from .assets import Album, Asset
from .behaviour import Behaviour
from .connection import Connection
from .control import control_routes
from .exchange import Handler, on_prepare, serving
from .instance import IDLE_TIMEOUT, Instance
from .journal import SeenRequest
from .release import RELEASES

# Handlers are let go before the server stops, so this only bounds a stuck one.
_SHUTDOWN_TIMEOUT = 2.0

ROUTES: list[tuple[str, str, Handler]] = [
    ("POST", "/api/assets", uploads.upload),
    ("DELETE", "/api/assets", library.delete_assets),
    ("POST", "/api/assets/bulk-upload-check", library.bulk_upload_check),
    ("GET", "/api/assets/statistics", library.statistics),
    ("GET", "/api/assets/{id}", library.show_asset),
    ("GET", "/api/assets/{id}/metadata", library.show_metadata),
    ("GET", "/api/assets/{id}/original", media.original),
    ("GET", "/api/assets/{id}/thumbnail", media.thumbnail),
    ("GET", "/api/assets/{id}/video/playback", media.playback),
    ("GET", "/api/albums", library.list_albums),
    ("POST", "/api/albums", library.create_album),
    ("PUT", "/api/albums/{id}/assets", library.add_to_album),
    ("POST", "/api/auth/login", service.login),
    ("GET", "/api/users/me", service.my_user),
    ("GET", "/api/api-keys/me", service.my_api_key),
    ("GET", "/api/server/ping", service.ping),
    ("GET", "/api/server/version", service.version),
    ("GET", "/api/server/version-history", service.version_history),
    ("GET", "/api/server/features", service.features),
    ("GET", "/api/server/config", service.config),
    ("GET", "/api/server/media-types", service.media_types),
    ("GET", "/api/server/about", service.about),
    ("GET", "/.well-known/immich", service.well_known),
    ("*", "/api/socket.io/", socketio.socket_io),
    ("*", "/{path:.*}", service.elsewhere),
]
V2_ROUTES: list[tuple[str, str, Handler]] = [
    ("POST", "/api/assets/exist", library.existing_assets),
]


class StandIn:
    """A stand-in Immich on a port of its own.

    Used as an async context manager; ``stop()`` and ``start()`` take it down and bring it up
    again on the same port, with its assets.
    """

    api_key = API_KEY
    other_api_key = OTHER_API_KEY
    readonly_api_key = READONLY_API_KEY
    access_token = ACCESS_TOKEN

    def __init__(
        self,
        *,
        version: int = 3,
        data_dir: Path,
        host: str = "127.0.0.1",
        port: int = 0,
        idle_timeout: float = IDLE_TIMEOUT,
    ) -> None:
        self.release = RELEASES[version]
        self.host = host
        self.port = port
        self._instance = Instance(self.release, data_dir, idle_timeout)
        self._runner: web.AppRunner | None = None
        self._listener: asyncio.Server | None = None

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    @property
    def assets(self) -> list[Asset]:
        return self._instance.library.assets

    @property
    def albums(self) -> list[Album]:
        return self._instance.library.albums

    @property
    def requests(self) -> list[SeenRequest]:
        return self._instance.journal.requests

    @property
    def behaviour(self) -> Behaviour:
        return self._instance.behaviour

    @behaviour.setter
    def behaviour(self, behaviour: Behaviour) -> None:
        self._instance.behaviour = behaviour

    @property
    def open_connections(self) -> int:
        return len(self._instance.connections)

    def partial_files(self) -> list[Path]:
        """The files of uploads under way."""
        return self._instance.library.partial_files()

    def files(self) -> list[Path]:
        """Every file in the upload folder, orphans included."""
        return self._instance.library.files()

    async def wait_for_request(
        self, predicate: Callable[[SeenRequest], bool] = lambda _: True, timeout: float = 5.0
    ) -> SeenRequest:
        """The first request of which the predicate holds, now or later; raises TimeoutError.

        The predicate is asked again whenever a request comes, is answered, is finished, or has
        more of its body read.
        """
        return await self._instance.journal.wait_for(predicate, timeout)

    async def wait_for_abort(self, timeout: float = 5.0) -> SeenRequest:
        """The next upload whose client vanished, once its partial file is gone."""
        return await self._instance.journal.wait_for_abort(timeout)

    async def start(self) -> None:
        """Listen; raises OSError when the port is taken."""
        application = web.Application()
        application.on_response_prepare.append(on_prepare)
        application.add_routes(control_routes(self._instance))
        routes = (V2_ROUTES if not self.release.is_v3 else []) + ROUTES
        for method, path, handler in routes:
            serve = serving(self._instance, handler)
            application.router.add_route(method, path, serve)
            if method == "GET":
                application.router.add_route("HEAD", path, serve)
        self._runner = web.AppRunner(application, shutdown_timeout=_SHUTDOWN_TIMEOUT)
        await self._runner.setup()
        server = self._runner.server
        assert server is not None
        loop = asyncio.get_running_loop()
        self._listener = await loop.create_server(
            lambda: Connection(self._instance, server, loop), self.host, self.port
        )
        self.port = self._listener.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Stop listening and reset what is connected."""
        if self._runner is None or self._listener is None:
            return
        self._listener.close()
        self.behaviour.release()
        for connection in list(self._instance.connections):
            connection.vanish("rst")
        await self._runner.cleanup()
        await self._listener.wait_closed()
        self._runner = self._listener = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.stop()
