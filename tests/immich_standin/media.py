"""Originals, thumbnails and videos: ranges, conditions and redirects as Express `send` has them."""

from __future__ import annotations

import posixpath
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import format_datetime, parsedate_to_datetime
from pathlib import Path
from urllib.parse import quote

from . import mime
from .answers import Answer, FileSlice, etag_matches
from .assets import Asset
from .exchange import Exchange
from .release import Refusal
from .validation import check_uuid

CACHE_CONTROL = (
    "private, max-age=86400, no-transform, stale-while-revalidate=2592000, stale-if-error=2592000"
)
_ONE_RANGE = re.compile(r"bytes=\s*(\d*)-(\d*)\s*")


def find_asset(exchange: Exchange, permission: str) -> Asset:
    """The asset of the path; raises Refusal 400, not 404, for one that is not there."""
    grant = exchange.grant()
    asset_id = exchange.match("id")
    check_uuid(asset_id, "id", exchange.release)
    asset = exchange.instance.library.find(asset_id, grant.user.id)
    if asset is None:
        raise Refusal(400, f"Not found or no {permission} access")
    return asset


async def original(exchange: Exchange) -> Answer:
    asset = find_asset(exchange, "asset.download")
    content_type = mime.media_type(asset.path.name, exchange.release)
    return _file(exchange, asset.path, content_type, asset.original_file_name)


async def thumbnail(exchange: Exchange) -> Answer:
    """The original's bytes under the thumbnail's head: the stand-in does not scale images."""
    asset = find_asset(exchange, "asset.view")
    size = exchange.request.query.get("size", "thumbnail")
    if size == "original" and not exchange.release.is_v3:
        raise Refusal(400, "May not request original file")
    if size in ("original", "fullsize"):
        return _to_original(exchange)
    stem = posixpath.splitext(asset.original_file_name)[0]
    if size == "preview":
        return _file(exchange, asset.path, "image/jpeg", f"{stem}_preview.jpeg")
    return _file(exchange, asset.path, "image/webp", f"{stem}_thumbnail.webp")


async def playback(exchange: Exchange) -> Answer:
    asset = find_asset(exchange, "asset.view")
    if asset.type != "VIDEO":
        if exchange.release.is_v3:
            raise Refusal(404, "Not Found")
        message = "Asset not found or asset is not a video"
        raise Refusal(404, message, cache_control="none")
    content_type = mime.media_type(asset.path.name, exchange.release)
    return _file(exchange, asset.path, content_type, None)


def _to_original(exchange: Exchange) -> Answer:
    """A redirect with a relative Location, which keeps the query but for the size."""
    query = [
        f"{quote(name)}={quote(value)}"
        for name, value in exchange.request.query.items()
        if name != "size"
    ]
    location = f"original?{'&'.join(query)}"
    body = f"Found. Redirecting to {location}".encode()
    headers = [
        ("Location", location),
        ("Vary", "Accept, Accept-Encoding"),
        ("Content-Type", "text/plain; charset=utf-8"),
        ("Content-Length", str(len(body))),
    ]
    return Answer(302, headers, body)


@dataclass(frozen=True)
class _Stamp:
    size: int
    mtime_ms: int

    @property
    def etag(self) -> str:
        return f'W/"{self.size:x}-{self.mtime_ms:x}"'

    @property
    def modified(self) -> datetime:
        return datetime.fromtimestamp(self.mtime_ms // 1000, UTC)


def _file(exchange: Exchange, path: Path, content_type: str, name: str | None) -> Answer:
    try:
        stat = path.stat()
    except FileNotFoundError:
        # A ghost: its row is there, its file is not.
        if exchange.release.is_v3:
            raise Refusal(404, "Not Found") from None
        raise Refusal(500, "Internal server error") from None
    stamp = _Stamp(stat.st_size, stat.st_mtime_ns // 1_000_000)
    typed = [("Content-Type", content_type)]
    described = [
        ("Accept-Ranges", "bytes"),
        ("Last-Modified", format_datetime(stamp.modified, usegmt=True)),
        ("ETag", stamp.etag),
    ]
    if name is not None:
        # What encodeURIComponent leaves alone.
        encoded = quote(name, safe="!'()*-._~", errors="replace")
        described.insert(0, ("Content-Disposition", f"inline; filename*=UTF-8''{encoded}"))
    cached = [("Cache-Control", CACHE_CONTROL)]
    if _unchanged(exchange, stamp):
        return Answer(304, cached + described)
    wanted = _range(exchange, stamp)
    if wanted is None:
        length = ("Content-Length", str(stamp.size))
        return Answer(200, [*cached, *typed, *described, length], FileSlice(path, 0, stamp.size))
    start, end = wanted
    if start >= stamp.size or start > end:
        return _unsatisfiable(exchange, content_type, described, stamp.size)
    described.append(("Content-Range", f"bytes {start}-{end}/{stamp.size}"))
    count = end - start + 1
    length = ("Content-Length", str(count))
    return Answer(206, [*cached, *typed, *described, length], FileSlice(path, start, count))


def _unsatisfiable(
    exchange: Exchange, content_type: str, described: list[tuple[str, str]], size: int
) -> Answer:
    """Immich turns the 416 of `send` into its own errors, with the head already half written."""
    if exchange.release.is_v3:
        status, control, text = 404, CACHE_CONTROL, '{"message":"Not Found"}'
    else:
        status, control = 500, "none"
        text = (
            '{"message":"Internal server error","statusCode":500,'
            f'"correlationId":"{exchange.correlation_id}"}}'
        )
    body = text.encode()
    headers = [
        ("Cache-Control", control),
        ("Content-Type", f"{content_type}; charset=utf-8"),
        *described,
        ("Content-Range", f"bytes */{size}"),
        ("Content-Length", str(len(body))),
    ]
    return Answer(status, headers, body)


def _unchanged(exchange: Exchange, stamp: _Stamp) -> bool:
    """RFC 9110, 13.2.2: If-Modified-Since counts only without an If-None-Match."""
    headers = exchange.request.headers
    if (tags := headers.get("If-None-Match")) is not None:
        return etag_matches(tags, stamp.etag)
    since = _http_date(headers.get("If-Modified-Since", ""))
    return since is not None and stamp.modified <= since


def _range(exchange: Exchange, stamp: _Stamp) -> tuple[int, int] | None:
    """The first and last byte asked for; None for the whole file.

    Several ranges, what is not a byte range and a stale If-Range all get the whole file.
    """
    headers = exchange.request.headers
    found = _ONE_RANGE.fullmatch(headers.get("Range", ""))
    if found is None or found[0] == "bytes=-":
        return None
    condition = headers.get("If-Range")
    if condition is not None and not _if_range(condition, stamp):
        return None
    first, last = found[1], found[2]
    if not first:
        return max(0, stamp.size - int(last)), stamp.size - 1
    return int(first), min(int(last), stamp.size - 1) if last else stamp.size - 1


def _if_range(condition: str, stamp: _Stamp) -> bool:
    if '"' in condition:
        return etag_matches(condition, stamp.etag)
    date = _http_date(condition)
    return date is not None and stamp.modified <= date


def _http_date(value: str) -> datetime | None:
    try:
        return parsedate_to_datetime(value)
    except ValueError:
        return None
