"""The mark beside a photo that is being put into its place, until its row is written.

A place on disk and a row cannot be taken in one step. A crash between the two leaves a whole
photo of which the database does not know, or knows another size. The mark is there before the
photo is seen, goes after the commit, and so tells the next start which rows to bring in line
with the disk. It costs a new photo next to nothing: that gets its place as a second name, and its
temporary file is the mark. Where a photo is replaced, the mark is the old one by a second name:
as long as it is there, it can be put back.
"""

import errno
import os
from collections.abc import Set
from contextlib import suppress
from pathlib import Path
from typing import Final

NAME: Final = ".upload-{}.placed"
_MODE: Final = 0o640
_NO_LINK: Final = frozenset(
    {errno.EEXIST, errno.ENOENT, errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}
)
"""There is an old photo, or none; or the file system has no second names, or no more of them."""


class PlacedMark:
    """The mark of the photo that is to lie at `photo`; its methods are work on the disk."""

    def __init__(self, photo: Path) -> None:
        self.photo = photo
        self.path = self._beside = photo.with_name(NAME.format(photo.name))
        """Where it lies, or will."""
        self._is_old_photo = False
        self._photo_is_new = False

    @classmethod
    def at(cls, path: Path) -> "PlacedMark | None":
        """The mark that lies at `path`, of this life or a former one; None if there is none."""
        start, _, end = NAME.partition("{}")
        if path.match(NAME.format("*")):
            return cls(path.with_name(path.name.removeprefix(start).removesuffix(end)))
        if not path.name.startswith(start):
            return None
        with suppress(FileNotFoundError):
            status = path.stat()
            names = path.parent.iterdir() if status.st_nlink > 1 else ()
            for photo in names:
                if not photo.name.startswith(start) and _is(photo, status):
                    mark = cls(photo)
                    mark.path = path
                    return mark
        return None

    def place(self, temporary: Path) -> None:
        """Put the file at `temporary`, which lies in the photo's folder, into its place.

        Raises `OSError`; then everything is as it was.
        """
        try:
            os.link(temporary, self.photo)
        except OSError as exc:
            if exc.errno not in _NO_LINK:
                raise
            self._replace_with(temporary)
        else:
            self.path = temporary
            self._photo_is_new = True

    def undo(self, *, keep: bool) -> None:
        """Put back what was there before, as far as that can be done.

        What cannot be undone leaves the mark behind. So does `keep`: a commit that failed may
        yet be found in the log of the database after a crash.
        """
        with suppress(OSError):
            if self._is_old_photo:
                self.path.replace(self.photo)
                if keep:
                    self._make_empty()
            elif self._photo_is_new:
                if keep and self.path != self._beside:
                    self.path.replace(self._beside)  # a full disk may have no room for a new one
                self.photo.unlink(missing_ok=True)
                if keep:
                    os.truncate(self._beside, 0)
                else:
                    self.path.unlink(missing_ok=True)

    @property
    def files(self) -> Set[Path]:
        """What is to be removed once file and row are in step; what stays does no harm.

        Beside the mark itself that of an upload that failed.
        """
        return {self.path, self._beside}

    def _replace_with(self, temporary: Path) -> None:
        self._beside.unlink(missing_ok=True)  # of an upload that failed
        try:
            os.link(self.photo, self._beside)
            self._is_old_photo = True
        except OSError as exc:
            if exc.errno not in _NO_LINK:
                raise
            self._photo_is_new = exc.errno == errno.ENOENT
            self._make_empty()
        try:
            temporary.replace(self.photo)
        except OSError:
            with suppress(OSError):
                self._beside.unlink(missing_ok=True)
            raise

    def _make_empty(self) -> None:
        os.close(os.open(self._beside, os.O_WRONLY | os.O_CREAT, _MODE))


def _is(path: Path, status: os.stat_result) -> bool:
    """Whether `path` is a name of that file."""
    try:
        return os.path.samestat(path.stat(), status)
    except FileNotFoundError:
        return False
