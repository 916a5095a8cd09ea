"""The JSON routes about assets and albums: what @immich/cli and the tests ask for."""

from __future__ import annotations

import uuid
from typing import Any

from .accounts import USERS
from .answers import Answer, json_answer
from .assets import Album, Asset, js_time
from .exchange import Exchange
from .media import find_asset
from .release import Json, Refusal
from .uploads import normalise_checksum
from .validation import check_uuid


async def show_asset(exchange: Exchange) -> Answer:
    return json_answer(asset_json(exchange, find_asset(exchange, "asset.read")))


async def show_metadata(exchange: Exchange) -> Answer:
    asset = find_asset(exchange, "asset.read")
    updated = js_time(asset.created_at)
    return json_answer([{**item, "updatedAt": updated} for item in asset.metadata])


async def statistics(exchange: Exchange) -> Answer:
    owner = exchange.grant().user.id
    mine = [a for a in exchange.instance.library.assets if a.owner == owner and not a.is_trashed]
    videos = sum(asset.type == "VIDEO" for asset in mine)
    return json_answer({"images": len(mine) - videos, "videos": videos, "total": len(mine)})


async def delete_assets(exchange: Exchange) -> Answer:
    """Into the trash, or away for good with ``force``."""
    grant = exchange.grant()
    grant.require("asset.delete")
    asked = await _json_object(exchange)
    library = exchange.instance.library
    assets = [library.find(asset_id, grant.user.id) for asset_id in asked.get("ids", [])]
    for asset in assets:
        if asset is None:
            raise Refusal(400, "Not found or no asset.delete access")
        if asked.get("force"):
            library.delete(asset)
        else:
            asset.is_trashed = True
    return Answer(204)


async def bulk_upload_check(exchange: Exchange) -> Answer:
    grant = exchange.grant()
    grant.require("asset.upload")
    asked = await _json_object(exchange)
    results = []
    for item in asked.get("assets", []):
        checksum = normalise_checksum(item["checksum"])
        known = exchange.instance.library.find_checksum(checksum, grant.user.id)
        result: Json = {"id": item["id"], "action": "accept"}
        if known is not None:
            result = {
                "id": item["id"],
                "action": "reject",
                "reason": "duplicate",
                "assetId": known.id,
                "isTrashed": known.is_trashed,
            }
        results.append(result)
    return json_answer({"results": results})


async def existing_assets(exchange: Exchange) -> Answer:
    """v2's check by device ids, gone in v3."""
    grant = exchange.grant()
    asked = await _json_object(exchange)
    wanted = asked.get("deviceAssetIds", [])
    found = [
        asset.fields["deviceAssetId"]
        for asset in exchange.instance.library.assets
        if asset.owner == grant.user.id
        and asset.fields.get("deviceId") == asked.get("deviceId")
        and asset.fields.get("deviceAssetId") in wanted
    ]
    return json_answer({"existingIds": found})


async def list_albums(exchange: Exchange) -> Answer:
    owner = exchange.grant().user.id
    albums = [a for a in exchange.instance.library.albums if a.owner == owner]
    return json_answer([_album_json(exchange, album) for album in albums])


async def create_album(exchange: Exchange) -> Answer:
    grant = exchange.grant()
    grant.require("album.create")
    asked = await _json_object(exchange)
    album = Album(
        str(uuid.uuid4()), grant.user.id, asked["albumName"], asked.get("description", "")
    )
    exchange.instance.library.albums.append(album)
    _add(exchange, album, asked.get("assetIds", []))
    return json_answer(_album_json(exchange, album), 201)


async def add_to_album(exchange: Exchange) -> Answer:
    grant = exchange.grant()
    grant.require("albumAsset.create")
    album_id = exchange.match("id")
    check_uuid(album_id, "id", exchange.release)
    asked = await _json_object(exchange)
    for album in exchange.instance.library.albums:
        if album.id == album_id and album.owner == grant.user.id:
            return json_answer(_add(exchange, album, asked.get("ids", [])))
    raise Refusal(400, "Not found or no albumAsset.create access")


def _add(exchange: Exchange, album: Album, asset_ids: list[str]) -> list[Json]:
    results: list[Json] = []
    for asset_id in asset_ids:
        if asset_id in album.asset_ids:
            results.append({"id": asset_id, "success": False, "error": "duplicate"})
        elif exchange.instance.library.find(asset_id, album.owner) is None:
            results.append({"id": asset_id, "success": False, "error": "no_permission"})
        else:
            album.asset_ids.append(asset_id)
            results.append({"id": asset_id, "success": True})
    return results


def _album_json(exchange: Exchange, album: Album) -> Json:
    created = js_time(album.created_at)
    owner = _user_json(album.owner)
    value: Json = {
        "albumName": album.name,
        "description": album.description,
        "albumThumbnailAssetId": album.asset_ids[0] if album.asset_ids else None,
        "createdAt": created,
        "updatedAt": created,
        "id": album.id,
        "shared": False,
        "hasSharedLink": False,
        "isActivityEnabled": True,
        "assetCount": len(album.asset_ids),
        "order": "desc",
    }
    if exchange.release.is_v3:
        value["albumUsers"] = [{"user": owner, "role": "owner"}]
    else:
        value |= {"ownerId": album.owner, "owner": owner, "albumUsers": [], "assets": []}
    return value


def _user_json(user_id: str) -> Json:
    user = next(user for user in USERS if user.id == user_id)
    return {
        "id": user.id,
        "email": user.email,
        "name": user.name,
        "profileImagePath": "",
        "avatarColor": "gray",
        "profileChangedAt": "2026-11-21T03:26:59.620418+00:00",
    }


def asset_json(exchange: Exchange, asset: Asset) -> Json:
    """An asset as GET /api/assets/{id} shows it, with nothing extracted from the file."""
    v2 = not exchange.release.is_v3
    value: Json = {"id": asset.id, "createdAt": js_time(asset.created_at)}
    if v2:
        value["deviceAssetId"] = asset.fields.get("deviceAssetId", "")
    value |= {"ownerId": asset.owner, "owner": _user_json(asset.owner)}
    if v2:
        value["deviceId"] = asset.fields.get("deviceId", "")
    created = js_time(asset.file_created_at)
    duration = asset.duration
    if v2 and duration is None:
        duration = "0:00:00.00000"
    value |= {
        "libraryId": None,
        "type": asset.type,
        "originalPath": str(asset.path),
        "originalFileName": asset.original_file_name,
        "originalMimeType": asset.mime_type,
        "thumbhash": None,
        "fileCreatedAt": created,
        "fileModifiedAt": js_time(asset.file_modified_at),
        "localDateTime": created,
        "updatedAt": js_time(asset.created_at),
        "isFavorite": asset.is_favorite,
        "isArchived": asset.visibility == "archive",
        "isTrashed": asset.is_trashed,
        "visibility": asset.visibility,
        "duration": duration,
        "exifInfo": _exif(asset),
        "livePhotoVideoId": asset.live_photo_video_id,
        "tags": [],
        "people": [],
    }
    if v2:
        value["unassignedFaces"] = []
    value |= {
        "checksum": asset.checksum,
        "stack": None,
        "isOffline": False,
        "hasMetadata": True,
        "duplicateId": None,
        "resized": True,
        "width": None,
        "height": None,
        "isEdited": False,
    }
    return value


_EXIF = (
    *("make", "model", "exifImageWidth", "exifImageHeight", "fileSizeInByte", "orientation"),
    *("dateTimeOriginal", "modifyDate", "timeZone", "lensModel", "fNumber", "focalLength"),
    *("iso", "exposureTime", "latitude", "longitude", "city", "state"),
    *("country", "description", "projectionType", "rating"),
)


def _exif(asset: Asset) -> Json:
    exif: Json = dict.fromkeys(_EXIF)
    exif["fileSizeInByte"] = asset.size
    exif["dateTimeOriginal"] = asset.file_created_at.isoformat()
    exif["modifyDate"] = asset.file_modified_at.isoformat()
    exif["description"] = ""
    return exif


async def _json_object(exchange: Exchange) -> dict[str, Any]:
    value = await exchange.json()
    if not isinstance(value, dict):
        raise Refusal(400, "Validation failed")
    return value
