"""The mark beside a photo that is being put into its place, until its row is written.

A rename and a commit cannot be one step. A crash between the two leaves a whole photo of which
the database does not know, or knows another size. The mark is made before the rename, goes after
the commit, and so tells the next start which rows to bring in line with the disk. Where a photo
is replaced, the mark is the old one by a second name: as long as it is there, it can be put back.
"""

import errno
import os
from contextlib import suppress
from pathlib import Path
from typing import Final

NAME: Final = ".upload-{}.placed"
_MODE: Final = 0o640
_NO_LINK: Final = frozenset(
    {errno.ENOENT, errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}
)
"""There is no old photo, or the file system has no second names, or no more of them."""


class PlacedMark:
    """The mark of the photo that is to lie at `photo`; its methods are work on the disk."""

    def __init__(self, photo: Path) -> None:
        self.photo = photo
        self.path = photo.with_name(NAME.format(photo.name))
        self._is_old_photo = False
        self._photo_is_new = False

    @classmethod
    def at(cls, path: Path) -> "PlacedMark":
        """The mark that lies at `path`."""
        start, _, end = NAME.partition("{}")
        return cls(path.with_name(path.name.removeprefix(start).removesuffix(end)))

    def make(self) -> None:
        """Make it, before the photo is put into its place. Raises `OSError`."""
        self.path.unlink(missing_ok=True)  # of an upload that failed
        try:
            os.link(self.photo, self.path)
            self._is_old_photo = True
        except OSError as exc:
            if exc.errno not in _NO_LINK:
                raise
            self._photo_is_new = exc.errno == errno.ENOENT
            self._make_empty()

    def undo(self, *, keep: bool) -> None:
        """Put back what was there before, as far as that can be done.

        What cannot be undone leaves the mark behind. So does `keep`: a commit that failed may
        yet be found in the log of the database after a crash.
        """
        with suppress(OSError):
            if self._is_old_photo:
                self.path.replace(self.photo)
            elif self._photo_is_new:
                self.photo.unlink(missing_ok=True)
            else:
                return
            if keep:
                self._make_empty()
            else:
                self.path.unlink(missing_ok=True)

    def remove(self) -> None:
        """Remove it, as file and row are in step; one that stays does no harm."""
        with suppress(OSError):
            self.path.unlink(missing_ok=True)

    def _make_empty(self) -> None:
        os.close(os.open(self.path, os.O_WRONLY | os.O_CREAT, _MODE))
