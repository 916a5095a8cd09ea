"""An upload's fields as Immich understands them, and what both releases check alike."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from .release import Json

Fields = Mapping[str, str | list[str]]
"""The text fields of a form; a field that came twice is a list."""

UUID = re.compile(
    "([0-9a-fA-F]{8}-[0-9a-fA-F]{4}-4[0-9a-fA-F]{3}-[89abAB][0-9a-fA-F]{3}-[0-9a-fA-F]{12})"
)
VISIBILITIES = ["archive", "timeline", "hidden", "locked"]
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass
class Parsed:
    """The fields of an upload, as Immich understands them."""

    file_created_at: datetime
    file_modified_at: datetime
    is_favorite: bool = False
    visibility: str = "timeline"
    duration: int | str | None = None
    live_photo_video_id: str | None = None
    metadata: list[Json] = field(default_factory=list)
    filename: str | None = None


def parse_date(value: str) -> datetime | None:
    text = value.replace(",", ".").replace("z", "Z")
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
