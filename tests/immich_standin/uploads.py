"""POST /api/assets, in exactly the order in which Immich does things.

Before the body: credentials, permission, a known ``x-immich-checksum``, and a request that is
not multipart. After the whole body: everything else.
"""

from __future__ import annotations

import os
import re
import uuid
from base64 import b64encode
from contextlib import suppress
from urllib.parse import parse_qsl

from aiohttp.helpers import parse_mimetype

from . import mime
from .accounts import User
from .answers import Answer, json_answer
from .assets import Asset
from .body import MAX_JSON
from .exchange import CLIENT_GONE, Exchange
from .form import Form, FormReader, ReceivedFile
from .release import Json, Refusal, Release
from .upload_fields import Fields, Parsed
from .validation import validate


async def upload(exchange: Exchange) -> Answer:
    grant = exchange.grant()
    grant.require("asset.upload")
    library = exchange.instance.library
    # A test for a duplicate and nothing else: Immich never compares it with the body.
    checksum = normalise_checksum(exchange.request.headers.get("x-immich-checksum", ""))
    known = library.find_checksum(checksum, grant.user.id) if checksum else None
    if known is not None:
        return json_answer({"status": "duplicate", "id": known.id})
    content_type = exchange.request.headers.get("Content-Type", "")
    if not content_type.lower().startswith("multipart/"):
        await _refuse_without_form(exchange)
    if not parse_mimetype(content_type).parameters.get("boundary"):
        raise Refusal(400, "Multipart: Boundary not found")
    reader = FormReader(exchange.body, library, grant.user.id, exchange.release)
    try:
        form = await reader.read(exchange.request)
    except CLIENT_GONE:
        exchange.instance.journal.aborted(exchange.seen)
        raise
    try:
        return _store(exchange, grant.user, form)
    except Refusal as refusal:
        if not refusal.keeps_file:
            form.discard()
        raise


def normalise_checksum(value: str) -> str:
    """The checksum as base64: Immich takes 28 characters for base64, all else for hex."""
    if len(value) == 28:
        return value
    with suppress(ValueError):
        return b64encode(bytes.fromhex(value)).decode()
    return ""


async def _refuse_without_form(exchange: Exchange) -> None:
    """Only JSON and urlencoded bodies are read; any other type is refused unread."""
    release = exchange.release
    content_type = parse_mimetype(exchange.request.headers.get("Content-Type", ""))
    fields: Fields | None = None
    if content_type.subtype == "json":
        fields = await exchange.json()
    elif content_type.subtype == "x-www-form-urlencoded":
        raw = await exchange.body.collect(MAX_JSON)
        fields = dict(parse_qsl((raw or b"").decode("utf-8", "replace")))
    validate(fields, release)
    raise Refusal(400, "File is required")


def _store(exchange: Exchange, user: User, form: Form) -> Answer:
    release, library = exchange.release, exchange.instance.library
    parsed = validate(form.fields, release)
    received = form.files.get("assetData")
    if received is None:
        raise Refusal(400, "File is required")
    incoming = received.incoming
    if incoming.size == 0 and release.is_v3:
        raise Refusal(400, "File is empty", keeps_file=True)
    quota = exchange.behaviour.quota_bytes
    if quota is not None and library.usage(user.id) + incoming.size > quota:
        raise Refusal(400, "Quota has been exceeded!")
    video = _live_photo_video(exchange, user, parsed)
    _refuse_nul(form, parsed, release)
    duplicate = library.find_checksum(incoming.checksum, user.id)
    if duplicate is not None:
        form.discard()
        return json_answer({"status": "duplicate", "id": duplicate.id})
    asset = _asset(exchange, user, form, parsed, received)
    library.assets.append(asset)
    if video is not None and video.visibility == "timeline":
        video.visibility = "hidden"
    if _breaks_database(parsed.metadata):
        # The asset's row is in the database before the metadata fails: Immich deletes the
        # file and leaves a ghost, which makes a duplicate of every later upload.
        asset.metadata = []
        raise Refusal(500, "Failed to upload asset")
    modified = asset.file_modified_at.timestamp()
    with suppress(OSError):  # A year that the file system does not know
        os.utime(incoming.path, (modified, modified))
    return json_answer({"id": asset.id, "status": "created"}, 201)


def _asset(
    exchange: Exchange, user: User, form: Form, parsed: Parsed, received: ReceivedFile
) -> Asset:
    release = exchange.release
    incoming = received.incoming
    # A `filename` field names the asset wherever in the form it stands, and slashes stay in it.
    name = parsed.filename or received.original_name
    sidecar = form.files.get("sidecarData")
    return Asset(
        id=str(uuid.uuid4()),
        owner=user.id,
        path=incoming.path,
        original_file_name=name,
        checksum=incoming.checksum,
        size=incoming.size,
        type=mime.asset_type(incoming.path.name, release),
        mime_type=mime.media_type(name, release),
        fields={key: form.text(key) for key in form.fields},
        file_created_at=parsed.file_created_at,
        file_modified_at=parsed.file_modified_at,
        visibility=parsed.visibility,
        is_favorite=parsed.is_favorite,
        duration=parsed.duration or None,
        live_photo_video_id=parsed.live_photo_video_id,
        sidecar_path=sidecar.incoming.path if sidecar else None,
        metadata=[{"key": item["key"], "value": item["value"]} for item in parsed.metadata],
    )


def _live_photo_video(exchange: Exchange, user: User, parsed: Parsed) -> Asset | None:
    if parsed.live_photo_video_id is None:
        return None
    video = exchange.instance.library.find(parsed.live_photo_video_id, user.id)
    if video is None:
        raise Refusal(400, "Live photo video not found")
    if video.type != "VIDEO":
        raise Refusal(400, "Live photo video must be a video")
    return video


def _refuse_nul(form: Form, parsed: Parsed, release: Release) -> None:
    """PostgreSQL takes no NUL in a text; v3 does not store the device ids any more."""
    values = [parsed.filename or ""]
    if not release.is_v3:
        values += [form.text("deviceAssetId"), form.text("deviceId")]
    if any("\0" in value for value in values):
        raise Refusal(500, "Failed to upload asset")


def _breaks_database(metadata: list[Json]) -> bool:
    """Metadata that PostgreSQL refuses: a key twice, a NUL, or half of a surrogate pair."""
    keys = [item["key"] for item in metadata]
    return len(set(keys)) != len(keys) or bool(re.search("[\0\ud800-\udfff]", _texts(metadata)))


def _texts(value: object) -> str:
    if isinstance(value, dict):
        return "".join(_texts(part) for pair in value.items() for part in pair)
    if isinstance(value, list):
        return "".join(_texts(part) for part in value)
    return value if isinstance(value, str) else ""
