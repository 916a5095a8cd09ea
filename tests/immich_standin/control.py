"""The routes by which a test in another process looks into the stand-in and upsets it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from aiohttp import web

from .assets import Asset
from .behaviour import Behaviour
from .instance import Instance
from .journal import SeenRequest
from .release import Json

PREFIX = "/_standin"


def control_routes(instance: Instance) -> list[web.RouteDef]:
    """``/_standin/behaviour`` and ``/_standin/state``; neither shows up among the requests."""

    async def show_behaviour(request: web.Request) -> web.Response:
        return web.json_response(instance.behaviour.as_json())

    async def put_behaviour(request: web.Request) -> web.Response:
        """Replace the behaviour: what is not named goes back to its default."""
        try:
            instance.behaviour = Behaviour.from_json(await request.json())
        except (ValueError, TypeError, AttributeError) as exc:
            return web.json_response({"message": str(exc)}, status=400)
        return web.json_response(instance.behaviour.as_json())

    async def reset_behaviour(request: web.Request) -> web.Response:
        instance.behaviour = Behaviour()
        return web.Response(status=204)

    async def show_state(request: web.Request) -> web.Response:
        library = instance.library
        state = {
            "version": instance.release.name,
            "assets": [_asset(asset) for asset in library.assets],
            "albums": [{"name": a.name, "assetIds": a.asset_ids} for a in library.albums],
            "requests": [_request(seen) for seen in instance.journal.requests],
            "partialFiles": [str(path) for path in library.partial_files()],
            "openConnections": len(instance.connections),
        }
        return web.json_response(state)

    async def clear_state(request: web.Request) -> web.Response:
        instance.library.clear()
        instance.journal.clear()
        return web.Response(status=204)

    handlers: list[tuple[str, str, Callable[[web.Request], Awaitable[web.StreamResponse]]]] = [
        ("GET", "/behaviour", show_behaviour),
        ("PUT", "/behaviour", put_behaviour),
        ("DELETE", "/behaviour", reset_behaviour),
        ("GET", "/state", show_state),
        ("DELETE", "/state", clear_state),
    ]
    return [web.route(method, PREFIX + path, handler) for method, path, handler in handlers]


def _asset(asset: Asset) -> Json:
    return {
        "id": asset.id,
        "owner": asset.owner,
        "path": str(asset.path),
        "originalFileName": asset.original_file_name,
        "checksum": asset.checksum,
        "size": asset.size,
        "type": asset.type,
        "mimeType": asset.mime_type,
        "fields": asset.fields,
        "visibility": asset.visibility,
        "isFavorite": asset.is_favorite,
        "livePhotoVideoId": asset.live_photo_video_id,
        "metadata": asset.metadata,
        "isTrashed": asset.is_trashed,
    }


def _request(seen: SeenRequest) -> Json:
    return {
        "method": seen.method,
        "target": seen.target,
        "headers": [[n.decode("latin-1"), v.decode("latin-1")] for n, v in seen.raw_headers],
        "bodyReceived": seen.body_received,
        "completed": seen.completed,
        "status": seen.status,
        "finished": seen.finished,
    }
