"""v2's checks: class-validator, whose messages Immich hands on as a list."""

from __future__ import annotations

import json
import re
from datetime import datetime

from .release import Json, Refusal
from .upload_fields import EPOCH, UUID, VISIBILITIES, Fields, Parsed, parse_date

# What v2's isISO8601 takes of the dates that occur: a space for T, no offset, `+0800`, `z`.
_LENIENT_DATE = re.compile(
    r"\d{4}-(?:0[1-9]|1[0-2])-(?:0[1-9]|[12]\d|3[01])"
    r"(?:[T ](?:[01]\d|2[0-3]):[0-5]\d(?::[0-5]\d(?:[.,]\d+)?)?"
    r"(?:[zZ]|[+-](?:[01]\d|2[0-3]):?[0-5]\d)?)?"
)


class ClassValidator:
    def __init__(self) -> None:
        self._messages: list[str] = []

    def raise_if_failed(self) -> None:
        if self._messages:
            raise Refusal(400, self._messages, keeps_file=True)

    def run(self, fields: Fields | None) -> Parsed:
        fields = fields or {}
        for name in ("deviceAssetId", "deviceId"):
            self._device(fields, name)
        parsed = Parsed(self._date(fields, "fileCreatedAt"), self._date(fields, "fileModifiedAt"))
        parsed.duration = self._string(fields, "duration")
        parsed.filename = self._string(fields, "filename")
        parsed.metadata = self._metadata(fields)
        favorite = fields.get("isFavorite")
        if favorite not in (None, "true", "false"):
            self._messages.append("isFavorite must be a boolean value")
        parsed.is_favorite = favorite == "true"
        visibility = fields.get("visibility", "timeline")
        if isinstance(visibility, str) and visibility in VISIBILITIES:
            parsed.visibility = visibility
        else:
            options = "archive, timeline, hidden, locked"
            self._messages.append(f"visibility must be one of the following values: {options}")
        video = fields.get("livePhotoVideoId")
        if video is not None:
            if isinstance(video, str) and UUID.fullmatch(video):
                parsed.live_photo_video_id = video
            else:
                self._messages.append("livePhotoVideoId must be a UUID")
        return parsed

    def _device(self, fields: Fields, name: str) -> None:
        value = fields.get(name)
        if not isinstance(value, str):
            self._messages.append(f"{name} must be a string")
        if not value:
            self._messages.append(f"{name} should not be empty")

    def _string(self, fields: Fields, name: str) -> str | None:
        value = fields.get(name)
        if isinstance(value, list):
            self._messages.append(f"{name} must be a string")
            return None
        return value

    def _date(self, fields: Fields, name: str) -> datetime:
        value = fields.get(name)
        if value is None:
            self._messages += [f"{name} must be a Date instance", f"{name} should not be empty"]
            return EPOCH
        moment = None
        if isinstance(value, str) and _LENIENT_DATE.fullmatch(value):
            moment = parse_date(value)
        if moment is None:
            # Thrown while the fields are transformed, before any of them is validated.
            raise Refusal(400, f"{name} must be a date string", keeps_file=True)
        return moment

    def _metadata(self, fields: Fields) -> list[Json]:
        if "metadata" not in fields:
            return []
        try:
            items = json.loads(self._string(fields, "metadata") or "")
        except ValueError:
            self._messages.append("metadata must be valid JSON")
            return []
        if isinstance(items, dict):
            items = [items]
        if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
            what = "each value in nested property metadata must be either object or array"
            self._messages.append(f"metadata.{what}")
            return []
        for index, item in enumerate(items):
            key = item.get("key")
            if not isinstance(key, str):
                self._messages.append(f"metadata.{index}.key must be a string")
            if not key:
                self._messages.append(f"metadata.{index}.key should not be empty")
            if not isinstance(item.get("value"), dict):
                self._messages.append(f"metadata.{index}.value must be an object")
        return items
