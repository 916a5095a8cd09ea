"""v3's checks: zod, whose issues Immich hands on as they are."""

from __future__ import annotations

import json
import re
from datetime import datetime
from typing import Any

from .release import Json, Refusal
from .upload_fields import EPOCH, UUID, VISIBILITIES, Fields, Parsed, parse_date

# zod's own pattern for `z.iso.datetime({ offset: true })`, as it stands in Immich's errors.
DATETIME_PATTERN = (
    r"(?:(?:\d\d[2468][048]|\d\d[13579][26]|\d\d0[48]|[02468][048]00|[13579][26]00)-02-29|\d{4}-"
    r"(?:(?:0[13578]|1[02])-(?:0[1-9]|[12]\d|3[01])|(?:0[469]|11)-(?:0[1-9]|[12]\d|30)|(?:02)-"
    r"(?:0[1-9]|1\d|2[0-8])))T(?:(?:[01]\d|2[0-3]):[0-5]\d(?::[0-5]\d(?:\.\d+)?)?"
    r"(?:Z|([+-](?:[01]\d|2[0-3]):[0-5]\d)))"
)
MISSING = "undefined"


class Zod:
    def __init__(self) -> None:
        self._issues: list[Json] = []

    def raise_if_failed(self) -> None:
        if self._issues:
            raise Refusal(400, "Validation failed", errors=self._issues, keeps_file=True)

    def run(self, fields: Fields | None) -> Parsed:
        if fields is None:
            self._type("object", [], MISSING)
            return Parsed(EPOCH, EPOCH)
        parsed = Parsed(self._date(fields, "fileCreatedAt"), self._date(fields, "fileModifiedAt"))
        parsed.duration = self._duration(fields.get("duration"))
        parsed.filename = self._string(fields, "filename")
        parsed.is_favorite = self._favorite(fields)
        video = self._string(fields, "livePhotoVideoId")
        if video is not None and not UUID.fullmatch(video):
            self._issues.append(uuid_issue("livePhotoVideoId"))
        parsed.live_photo_video_id = video
        parsed.metadata = self._metadata(fields)
        parsed.visibility = self._visibility(fields)
        return parsed

    def _type(self, expected: str, path: list[str | int], got: str, what: str = "") -> None:
        self._issues.append(
            {
                "expected": expected,
                "code": "invalid_type",
                "path": path,
                "message": f"Invalid input: expected {what or expected}, received {got}",
            }
        )

    def _string(self, fields: Fields, name: str) -> str | None:
        value = fields.get(name)
        if isinstance(value, list):
            self._type("string", [name], "array")
            return None
        return value

    def _date(self, fields: Fields, name: str) -> datetime:
        what = "ISO 8601 datetime string"
        value = fields.get(name)
        if not isinstance(value, str):
            self._type("string", [name], MISSING if value is None else "object", what)
            return EPOCH
        moment = parse_date(value) if re.fullmatch(DATETIME_PATTERN, value) else None
        if moment is None:
            self._issues.append(
                {
                    "origin": "string",
                    "code": "invalid_format",
                    "format": "datetime",
                    "pattern": f"/^{DATETIME_PATTERN}$/",
                    "path": [name],
                    "message": f"Invalid input: expected {what}, received string",
                }
            )
        return moment or EPOCH

    def _duration(self, value: str | list[str] | None) -> int | None:
        if value is None:
            return None
        number = _js_number(value) if isinstance(value, str) else None
        if number is None:
            self._issues.append(
                {
                    "expected": "number",
                    "code": "invalid_type",
                    "received": "NaN",
                    "path": ["duration"],
                    "message": "Invalid input: expected number, received NaN",
                }
            )
        elif not number.is_integer():
            self._issues.append(
                {
                    "expected": "int",
                    "format": "safeint",
                    "code": "invalid_type",
                    "path": ["duration"],
                    "message": "Invalid input: expected int, received number",
                }
            )
        elif number < 0:
            self._issues.append(
                {
                    "origin": "number",
                    "code": "too_small",
                    "minimum": 0,
                    "inclusive": True,
                    "path": ["duration"],
                    "message": "Too small: expected number to be >=0",
                }
            )
        else:
            return int(number)
        return None

    def _favorite(self, fields: Fields) -> bool:
        value = self._string(fields, "isFavorite")
        if value not in (None, "true", "false"):
            self._issues.append(
                {
                    "code": "invalid_value",
                    "expected": "stringbool",
                    "values": ["true", "false"],
                    "path": ["isFavorite"],
                    "message": 'Invalid option: expected one of "true"|"false"',
                }
            )
        return value == "true"

    def _visibility(self, fields: Fields) -> str:
        value = fields.get("visibility", "timeline")
        if isinstance(value, str) and value in VISIBILITIES:
            return value
        options = "|".join(f'"{option}"' for option in VISIBILITIES)
        self._issues.append(
            {
                "code": "invalid_value",
                "values": VISIBILITIES,
                "path": ["visibility"],
                "message": f"Invalid option: expected one of {options}",
            }
        )
        return "timeline"

    def _metadata(self, fields: Fields) -> list[Json]:
        if "metadata" not in fields:
            return []
        try:
            items = json.loads(self._string(fields, "metadata") or "")
        except ValueError:
            message = "Invalid input: expected JSON string, received string"
            self._issues.append({"code": "custom", "message": message, "path": ["metadata"]})
            return []
        if not isinstance(items, list):
            self._type("array", ["metadata"], _js_type(items))
            return []
        for index, item in enumerate(items):
            if not isinstance(item, dict):
                self._type("object", ["metadata", index], _js_type(item))
                continue
            if not isinstance(item.get("key"), str):
                got = _js_type(item["key"]) if "key" in item else MISSING
                self._type("string", ["metadata", index, "key"], got)
            if not isinstance(item.get("value"), dict):
                got = _js_type(item["value"]) if "value" in item else MISSING
                self._type("record", ["metadata", index, "value"], got)
        return items


def uuid_issue(name: str) -> Json:
    return {
        "origin": "string",
        "code": "invalid_format",
        "format": "uuid",
        "pattern": f"/^{UUID.pattern}$/",
        "path": [name],
        "message": "Invalid UUID",
    }


def _js_number(value: str) -> float | None:
    """``Number(value)`` for decimal numbers; None for NaN."""
    text = value.strip()
    if not text:
        return 0.0
    return float(text) if re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", text) else None


def _js_type(value: Any) -> str:
    names: dict[type, str] = {bool: "boolean", str: "string", list: "array", dict: "object"}
    return "null" if value is None else names.get(type(value), "number")
