"""`GET /metrics`, on a listener of its own: what Prometheus reads is not for clients."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web
from prometheus_client.exposition import choose_encoder

from immich_bridge.http.metrics import Metrics
from immich_bridge.http.metrics_sum import MetricsSum


@asynccontextmanager
async def metrics_runner(
    metrics: Metrics, total: MetricsSum | None = None
) -> AsyncIterator[web.AppRunner]:
    """An application that serves `metrics` and nothing else, for as long as the context lasts.

    With `total`, the sum of those of all workers is served instead.
    """

    async def show(request: web.Request) -> web.Response:
        for refresh in metrics.before_scrape:
            await refresh()
        if total is not None:
            await total.refresh()
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        # Read and written in one go on the event loop, where everything is counted: else a
        # request could end between two numbers that speak of it.
        return web.Response(
            body=encode(total or metrics.registry), headers={"Content-Type": content_type}
        )

    app = web.Application()
    app.router.add_get("/metrics", show)
    runner = web.AppRunner(app, shutdown_timeout=0)
    try:
        await runner.setup()
        yield runner
    finally:
        await runner.cleanup()
