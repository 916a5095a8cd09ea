"""Names on disk: day folders, `IMG_0001`, extensions. Nothing a client sends gets into a path.

The extension is the one part that comes from outside, and it is `[a-z0-9]{1,10}`.
"""

import re
from collections.abc import Sequence
from datetime import date
from typing import Final

from immich_bridge.media_types import extension_for

_EXTENSION: Final = re.compile(r"[a-z0-9]{1,10}")
_DATE: Final = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)
_NUMBERED: Final = re.compile(r"IMG_(\d{4,9})\.", re.ASCII)
_EQUALS: Final = (
    frozenset({"jpg", "jpeg", "jpe"}),
    frozenset({"tif", "tiff"}),
    frozenset({"heif", "hif"}),
    frozenset({"mpg", "mpeg", "mpe"}),
    frozenset({"3gp", "3gpp"}),
)
"""Extensions for one and the same format. Others share a MIME type without being the same."""
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


def file_number(name: str) -> int:
    """The number in the name of a photo's file; 0 for any other file."""
    found = _NUMBERED.match(name)
    return int(found[1]) if found else 0


def normal_extension(text: str) -> str | None:
    """`text` as the extension of a file, None if it cannot be one."""
    extension = text.lower().removeprefix(".")
    return extension if _EXTENSION.fullmatch(extension) else None


def uploaded_extension(
    file_type: str, indexed_type: str, indexed_extension: str, uploaded: Sequence[str] = ()
) -> str | None:
    """The extension of an upload that says it is `file_type`: a MIME type or an extension.

    Where several extensions mean the same (jpg, jpeg), the one that was indexed wins, or one
    that was `uploaded` already. None when the type is unknown.
    """
    bare = None if "/" in file_type else normal_extension(file_type)
    if bare is None and file_type.strip().lower() == indexed_type.strip().lower():
        return indexed_extension
    extension = bare or extension_for(file_type)
    for known in (indexed_extension, *uploaded):
        if any({extension, known} <= equal for equal in _EQUALS):
            return known
    return extension
