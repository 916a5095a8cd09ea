"""The application: which route is whose, and what lives as long as the server does."""

from collections.abc import AsyncIterator
from functools import partial

from aiohttp import web
from aiohttp.typedefs import Handler

from immich_bridge.backup.wing import BackupWing
from immich_bridge.bridge.background_upload import ROUTE, BackgroundUpload
from immich_bridge.bridge.reverse_proxy import ReverseProxy
from immich_bridge.bridge.siblings import Siblings
from immich_bridge.bridge.upstream import Upstream
from immich_bridge.bridge.websocket_proxy import WebSocketProxy
from immich_bridge.config import Config
from immich_bridge.errors import NotFound
from immich_bridge.http.health import Check, Readiness, health
from immich_bridge.http.lifecycle import LIFECYCLE, Lifecycle
from immich_bridge.http.metrics import Metrics
from immich_bridge.http.middleware import request_middleware
from immich_bridge.http.record import running
from immich_bridge.http.routing import UNROUTED, add_fallback, add_route, route_labels
from immich_bridge.resumable.resource import Resumable
from immich_bridge.resumable.tus_resource import TusResource
from immich_bridge.worker import Worker


def make_app(
    config: Config, metrics: Metrics | None = None, worker: Worker | None = None
) -> web.Application:
    """Build the whole application for `config`. Nothing of it is shared between two calls.

    `worker` says which one this is, where there are several.
    """
    app = web.Application(middlewares=[request_middleware(config, metrics)])
    lifecycle = app[LIFECYCLE] = Lifecycle()
    checks: dict[str, Check | None] = {"immich": None, "database": None, "storage": None}
    resumable = _resumable(config, lifecycle, metrics, worker)
    if config.backup_enabled:
        backup = BackupWing(config, resumable)
        backup.add_routes(app)
        checks |= {"database": backup.check_database, "storage": backup.check_storage}
        if metrics is not None:
            backup.expose(metrics)
    if config.immich_server_url is not None:
        checks["immich"] = _add_bridge(app, config, lifecycle, metrics, resumable, worker)
    else:
        if resumable is not None:
            resumable.add_routes(app)
        add_fallback(app, _nothing_here, UNROUTED)
    if resumable is not None:
        # Last, so that it ends first: what is held needs what the wings hold open.
        app.cleanup_ctx.append(resumable.uploads.lifetime)
    required = {"database", "storage"}
    if config.ready_requires_immich:
        required.add("immich")
    readiness = Readiness(lifecycle, checks, frozenset(required))
    for method in ("GET", "HEAD"):
        add_route(app, method, "/health", health)
        add_route(app, method, "/ready", readiness.handle)
    if metrics is not None:
        metrics.running = partial(running, lifecycle)
        for label in route_labels(app):
            metrics.traffic[label]  # is there from the first scrape on
    return app


def _resumable(
    config: Config, lifecycle: Lifecycle, metrics: Metrics | None, worker: Worker | None
) -> Resumable | None:
    """Uploads that go on where they were cut off, unless they are turned off."""
    if config.resumable == "off":
        return None
    resumable = Resumable(config, worker.prefix if worker else "")
    lifecycle.on_drain(resumable.uploads.drain)
    if metrics is not None:
        resumable.expose(metrics)
    return resumable


def _add_bridge(
    app: web.Application,
    config: Config,
    lifecycle: Lifecycle,
    metrics: Metrics | None,
    resumable: Resumable | None,
    worker: Worker | None,
) -> Check:
    """Route the bridge wing; the check says whether Immich answers."""
    upstream = Upstream(config)
    websockets = WebSocketProxy(upstream)
    lifecycle.on_drain(websockets.close_all)

    async def connections(_: web.Application) -> AsyncIterator[None]:
        async with upstream:
            yield

    app.cleanup_ctx.append(connections)
    background_upload = BackgroundUpload(config, upstream, resumable)
    add_route(app, "*", ROUTE, background_upload.handle)
    if resumable is not None:
        siblings = Siblings(config, worker) if worker else None
        if siblings is not None:
            app.cleanup_ctx.append(siblings.lifetime)
        tus = TusResource(config, resumable, background_upload.begin)
        tus.add_routes(app, siblings.in_front_of if siblings else _nobody_in_front)
    add_fallback(app, ReverseProxy(config, upstream, websockets).handle, "proxy")
    if metrics is not None:
        upstream.expose(metrics)
        websockets.expose(metrics)
    return upstream.ping


def _nobody_in_front(handler: Handler) -> Handler:
    return handler


async def _nothing_here(request: web.Request) -> web.StreamResponse:
    raise NotFound("nothing is here, and there is no Immich to ask (IMMICH_SERVER_URL is empty)")
