"""What a background upload says of its photo, checked and put into Immich's words.

Immich validates the fields of a form only after it has taken the whole file, and leaves a
copy of the file on its disk when it then refuses. So everything is checked here, before
the first byte goes on, and written in the form that Immich v2 and v3 both take.
"""

import json
import re
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Final

from immich_bridge.errors import BadRequest, UnsupportedMediaType
from immich_bridge.media_types import (
    MIME_TYPES,
    extension_for,
    extension_of,
    is_video,
    sniff,
)

DEFAULT_DEVICE_ID: Final = "ios-immich-uploader"
MAX_FILENAME_BYTES: Final = 4096
"""Immich's form parser gives up on part headers above 16 KiB."""
MAX_DURATION_MS: Final = 2**53 - 1

PARAMETERS: Final = {
    "X-Device-Asset-Id": "deviceAssetId",
    "X-Device-Id": "deviceId",
    "X-File-Created-At": "fileCreatedAt",
    "X-File-Modified-At": "fileModifiedAt",
    "X-Is-Favorite": "isFavorite",
    "X-Filename": "filename",
    "X-Content-Type": "contentType",
    "X-iCloud-Id": "iCloudId",
    "X-Latitude": "latitude",
    "X-Longitude": "longitude",
    "X-Live-Photo-Video-Id": "livePhotoVideoId",
    "X-Visibility": "visibility",
    "X-Duration": "duration",
}
"""Header -> query parameter that says the same."""
HEADER_OF: Final = {parameter: header for header, parameter in PARAMETERS.items()}
"""And the other way round."""
_METADATA_NAMES: Final = {
    "X-Filename": ("filename", "name"),
    "X-Content-Type": ("contentType", "filetype", "type"),
}
"""Header -> what clients of tus call it, where they have names of their own."""

_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")
_SURROGATE: Final = re.compile(r"[\ud800-\udfff]")
# ISO 8601 in the extended form. A space before the offset is a "+" that was read as one
# on its way through a query string.
_DATE: Final = re.compile(
    r"(\d{4}-\d\d-\d\d)[Tt ]((?:[01]\d|2[0-3]):\d\d)(?::(\d\d)(?:[.,](\d+))?)?"
    r"(?:([Zz])|([+\- ])(\d\d):?(\d\d))?",
    re.ASCII,
)
_UUID4: Final = re.compile(
    r"[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-4[0-9a-fA-F]{3}-[89abAB][0-9a-fA-F]{3}-[0-9a-fA-F]{12}"
)
_MIME_TYPE: Final = re.compile(r"[A-Za-z0-9][\w!#$&^.+-]*/[A-Za-z0-9][\w!#$&^.+-]*", re.ASCII)
_DECIMAL: Final = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d{1,2})?", re.ASCII)
_VISIBILITIES: Final = ("timeline", "archive", "hidden", "locked")


@dataclass(frozen=True)
class Asset:
    """A photo or video as its sender describes it; None is what the sender left open."""

    device_asset_id: str | None
    device_id: str
    created_at: str
    created_at_given: bool
    modified_at: str
    is_favorite: bool
    filename: str | None
    content_type: str | None
    icloud_id: str | None
    latitude: str | None
    longitude: str | None
    live_photo_video_id: str | None
    visibility: str | None
    duration_ms: int | None

    @classmethod
    def parse(cls, value_of: Callable[[str], str | None]) -> "Asset":
        """Read and check the metadata; `value_of(header)` gives a value or None.

        Raises `BadRequest` that names the header of the first value that makes no sense.
        """

        def read(header: str) -> str | None:
            value = value_of(header)
            if not value:
                return None
            if _CONTROL.search(value) or _SURROGATE.search(value):
                raise BadRequest(f"{header} holds a character that no photo's metadata may hold")
            return value

        created_at = _date("X-File-Created-At", read("X-File-Created-At"))
        modified_at = _date("X-File-Modified-At", read("X-File-Modified-At"))
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"
        return cls(
            device_asset_id=read("X-Device-Asset-Id"),
            device_id=read("X-Device-Id") or DEFAULT_DEVICE_ID,
            created_at=created_at or now,
            created_at_given=created_at is not None,
            modified_at=modified_at or now,
            is_favorite=_boolean("X-Is-Favorite", read("X-Is-Favorite")),
            filename=_filename("X-Filename", read("X-Filename")),
            content_type=_mime_type("X-Content-Type", read("X-Content-Type")),
            icloud_id=read("X-iCloud-Id"),
            latitude=_coordinate("X-Latitude", read("X-Latitude"), 90),
            longitude=_coordinate("X-Longitude", read("X-Longitude"), 180),
            live_photo_video_id=_uuid4("X-Live-Photo-Video-Id", read("X-Live-Photo-Video-Id")),
            visibility=_visibility("X-Visibility", read("X-Visibility")),
            duration_ms=_duration("X-Duration", read("X-Duration")),
        )

    @property
    def needs_sniffing(self) -> bool:
        """Whether only the first bytes of the file can tell what it is."""
        return self._declared_extension is None

    @property
    def _declared_extension(self) -> str | None:
        by_name = extension_of(self.filename) if self.filename else None
        return by_name or (extension_for(self.content_type) if self.content_type else None)

    def file(self, first: bytes) -> tuple[str, str]:
        """The file name and MIME type for a file that begins with `first`.

        Raises `UnsupportedMediaType` when neither name, type nor bytes tell the kind:
        Immich would refuse it after the whole transfer.
        """
        extension = self._declared_extension or sniff(first)
        if extension is None:
            raise UnsupportedMediaType(
                "the kind of the file is unknown: send X-Filename with an extension that Immich "
                "takes, or X-Content-Type"
            )
        filename = self.filename
        if filename is None:
            digits = re.sub(r"\D", "", self.created_at)
            prefix = "VID" if is_video(extension) else "IMG"
            filename = f"{prefix}_{digits[:8]}_{digits[8:14]}.{extension}"
        elif extension_of(filename) is None:
            filename = f"{filename}.{extension}"
        return filename, self.content_type or MIME_TYPES[extension]

    def form_fields(self, filename: str) -> list[tuple[str, str]]:
        """The text fields of Immich's upload form for the file named `filename`."""
        # v2 wants deviceAssetId and deviceId, v3 ignores them.
        device_asset_id = self.device_asset_id or self.icloud_id or f"{filename}-{self.created_at}"
        fields = [
            ("deviceAssetId", device_asset_id),
            ("deviceId", self.device_id),
            ("fileCreatedAt", self.created_at),
            ("fileModifiedAt", self.modified_at),
            ("isFavorite", "true" if self.is_favorite else "false"),
        ]
        if self.visibility is not None:
            fields.append(("visibility", self.visibility))
        if self.duration_ms is not None:
            fields.append(("duration", str(self.duration_ms)))
        if self.live_photo_video_id is not None:
            fields.append(("livePhotoVideoId", self.live_photo_video_id))
        if self.icloud_id is not None:
            fields.append(("metadata", self._mobile_app_metadata()))
        return fields

    def _mobile_app_metadata(self) -> str:
        """What Immich's own mobile app stores with an asset that it found in iCloud."""
        value = {
            "iCloudId": self.icloud_id,
            "createdAt": self.created_at if self.created_at_given else None,
            "latitude": self.latitude,
            "longitude": self.longitude,
        }
        known = {name: text for name, text in value.items() if text is not None}
        return json.dumps([{"key": "mobile-app", "value": known}], ensure_ascii=False)


def metadata_value(metadata: Mapping[str, str], header: str) -> str | None:
    """What tus metadata says of `header`: under its parameter's name, or a usual one of tus."""
    names = _METADATA_NAMES.get(header, (PARAMETERS[header],))
    return next((metadata[name] for name in names if metadata.get(name)), None)


def _date(header: str, text: str | None) -> str | None:
    """`text` as the strict ISO 8601 that Immich v3 wants; without an offset it is UTC."""
    if text is None:
        return None
    match = _DATE.fullmatch(text)
    if match is None:
        raise BadRequest(f"{header} is not an ISO 8601 date and time: {text!r}")
    day, minute, second, fraction, _, sign, offset_hours, offset_minutes = match.groups()
    time_of_day = f"{minute}:{second or '00'}"
    try:
        datetime.fromisoformat(f"{day}T{time_of_day}")
    except ValueError:
        raise BadRequest(f"{header} is not a date that exists: {text!r}") from None
    if sign is None or (offset_hours, offset_minutes) == ("00", "00"):
        offset = "Z"
    elif int(offset_hours) > 23 or int(offset_minutes) > 59:
        raise BadRequest(f"{header} has an impossible offset: {text!r}")
    else:
        offset = f"{'-' if sign == '-' else '+'}{offset_hours}:{offset_minutes}"
    return f"{day}T{time_of_day}{'.' + fraction if fraction else ''}{offset}"


def _boolean(header: str, text: str | None) -> bool:
    match (text or "false").lower():
        case "true" | "1" | "yes":
            return True
        case "false" | "0" | "no":
            return False
    raise BadRequest(f"{header} is neither true nor false: {text!r}")


def _filename(header: str, text: str | None) -> str | None:
    """The last part of a path, which is all that Immich keeps of a name."""
    name = re.split(r"[/\\]", text or "")[-1]
    if len(name.encode()) > MAX_FILENAME_BYTES:
        raise BadRequest(f"{header} is longer than {MAX_FILENAME_BYTES} bytes")
    return name if name.strip() else None


def _mime_type(header: str, text: str | None) -> str | None:
    if text is None:
        return None
    mime_type = text.partition(";")[0].strip()
    if not _MIME_TYPE.fullmatch(mime_type):
        raise BadRequest(f"{header} is not a MIME type: {text!r}")
    return mime_type.lower()


def _coordinate(header: str, text: str | None, limit: int) -> str | None:
    """The text itself, since Immich's app stores coordinates as text; without an exponent."""
    if text is None:
        return None
    if not _DECIMAL.fullmatch(text) or abs(float(text)) > limit:
        raise BadRequest(f"{header} is not a number from -{limit} to {limit}: {text!r}")
    # Many languages print what is next to the equator as 5e-05.
    return f"{Decimal(text):f}" if "e" in text.lower() else text


def _uuid4(header: str, text: str | None) -> str | None:
    if text is None:
        return None
    if not _UUID4.fullmatch(text):
        raise BadRequest(f"{header} is not a version 4 UUID: {text!r}")
    return str(uuid.UUID(text))


def _visibility(header: str, text: str | None) -> str | None:
    if text is None:
        return None
    if text.lower() not in _VISIBILITIES:
        raise BadRequest(f"{header} is none of {', '.join(_VISIBILITIES)}: {text!r}")
    return text.lower()


def _duration(header: str, text: str | None) -> int | None:
    if text is None:
        return None
    if not re.fullmatch(r"[0-9]{1,16}", text) or int(text) > MAX_DURATION_MS:
        raise BadRequest(f"{header} is not a whole number of milliseconds: {text!r}")
    return int(text)
