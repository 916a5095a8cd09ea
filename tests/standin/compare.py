"""What the stand-in answered against what was recorded."""

from __future__ import annotations

import json
import re
from typing import Any

from immich_standin import StandIn

from .bodies import Recording
from .wire import Response


def compare(recording: Recording, response: Response) -> None:
    expected, name = recording["response"], recording["name"]
    assert (response.status, response.reason) == (expected["status"], expected["reason"])
    recorded = [(key, value) for key, value in expected["headers"]]
    assert [key for key, _ in response.headers] == [key for key, _ in recorded]
    free = _free_headers(name)
    if "*" in masked(expected["body"]):
        # Express computes the tag from the body, ids and all.
        free.add("ETag")
    for (key, value), (_, wanted) in zip(response.headers, recorded, strict=True):
        if key not in free:
            assert (key, value) == (key, wanted)
    body = expected["body"]
    if isinstance(body, str) and body.startswith("<"):
        is_file = re.match(r"<\d+ bytes", body)
        assert is_file or response.body.decode() == body
    elif isinstance(body, str):
        assert response.body.decode() == body
    elif name.startswith("s.asset-json"):
        assert _keys(response.json) == _keys(body)
    else:
        assert masked(response.json) == masked(body)


def _free_headers(name: str) -> set[str]:
    free = {"Date", "X-Correlation-ID", "x-immich-cid"}
    if name == "s.echo-correlation":
        free -= {"X-Correlation-ID", "x-immich-cid"}
    if name.startswith(("s.thumbnail", "s.preview")):
        # Not scaled: the stand-in's thumbnails have the size and the date of the original.
        free |= {"Content-Length", "Content-Range", "Last-Modified", "ETag"}
    if name.startswith("s.asset-json"):
        free |= {"Content-Length", "ETag"}
    return free


_VARIABLE = re.compile(
    r"[0-9a-f]{8}-[0-9a-f-]{27}|\d{4}-\d\d-\d\dT[\d:.]+Z|(?<=\"correlationId\": \")[^\"]+"
)


def masked(value: Any) -> str:
    """The JSON with its order of keys, and without what differs from run to run."""
    return _VARIABLE.sub("*", json.dumps(value))


def _keys(value: Any) -> Any:
    """The names in a JSON value, in their order, all the way down."""
    if isinstance(value, dict):
        return [(key, _keys(part)) for key, part in value.items()]
    return None


def compare_asset(recording: Recording, response: Response, immich: StandIn) -> None:
    wanted = recording["observed"].get("asset")
    if wanted is None or response.status not in (200, 201):
        return
    made = response.json["id"]
    asset = next(asset for asset in immich.assets if asset.id == made)
    assert {
        "originalFileName": asset.original_file_name,
        "originalMimeType": asset.mime_type,
        "type": asset.type,
        "visibility": asset.visibility,
        "isFavorite": asset.is_favorite,
    } == wanted


def compare_orphans(recording: Recording, immich: StandIn) -> None:
    """Which files a refused upload leaves behind."""
    wanted = recording["observed"].get("orphan_sizes")
    if wanted is not None:
        owned = {path for asset in immich.assets for path in (asset.path, asset.sidecar_path)}
        orphans = [path for path in immich.files() if path not in owned]
        assert sorted(path.stat().st_size for path in orphans) == wanted
