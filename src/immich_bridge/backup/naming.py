"""Names on disk: day folders, `IMG_0001`, extensions. Nothing a client sends gets into a path.

The extension is the one part that comes from outside, and it is `[a-z0-9]{1,10}`.
"""

import re
from datetime import date
from typing import Final

from immich_bridge.media_types import MIME_TYPES, extension_for

_EXTENSION: Final = re.compile(r"[a-z0-9]{1,10}")
_DATE: Final = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)
_ROOT: Final = "storage/photo"
"""What the API calls the folder of all photos, wherever `STORAGE_DIR` really lies."""


def parse_date(text: str) -> date | None:
    """The date that `text` writes as YYYY-MM-DD; None when there is no such day."""
    if not _DATE.fullmatch(text):
        return None
    try:
        return date.fromisoformat(text)
    except ValueError:
        return None


def day_folder(user_id: int, day: date) -> str:
    """The folder of one user's day as the API and the database write it, with a final slash."""
    return f"{_ROOT}/{user_id:d}/{day.isoformat().replace('-', '/')}/"


def file_stem(number: int) -> str:
    """`IMG_0001` for 1; from 10000 on there are five digits."""
    return f"IMG_{number:04d}"


def normal_extension(text: str) -> str | None:
    """`text` as the extension of a file, None if it cannot be one."""
    extension = text.lower().removeprefix(".")
    return extension if _EXTENSION.fullmatch(extension) else None


def uploaded_extension(file_type: str, indexed_type: str, indexed_extension: str) -> str | None:
    """The extension of an upload that says it is `file_type`: a MIME type or an extension.

    Where several extensions mean the same (jpg, jpeg), the one that was indexed wins. None
    when the type is unknown.
    """
    if "/" not in file_type:
        extension = normal_extension(file_type)
    elif file_type.strip().lower() == indexed_type.strip().lower():
        return indexed_extension
    else:
        extension = extension_for(file_type)
    if extension is not None and _same_kind(extension, indexed_extension):
        return indexed_extension
    return extension


def _same_kind(extension: str, other: str) -> bool:
    mime_type = MIME_TYPES.get(extension)
    return mime_type is not None and mime_type == MIME_TYPES.get(other)
