"""A storage folder in a house full of things that nobody may touch, and the look at all of them."""

import hashlib
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

_OWN_FILE: Final = re.compile(
    r"photo/(?:1/\d{4}/\d\d/\d\d/IMG_\d{4,}\.[a-z0-9]{1,10}"
    r"|\.chunks/1/[0-9a-f]{64}(?:\.done|/\d+-[0-9a-f]{64}(?:-[0-9a-f]+){0,2}))"
)
"""What user 1 may have in the storage folder: photos, and chunks under way or joined."""
_OWN_FOLDER: Final = re.compile(
    r"photo|photo/1(?:/\d{4}(?:/\d\d){0,2})?|photo/\.chunks(?:/1(?:/[0-9a-f]{64})?)?"
)
_DATABASE_FILES: Final = {"app.db", "app.db-wal", "app.db-shm", "jwt_secret.key"}
_STRAYS: Final = ("canary.txt", "taken.txt", "taken")
"""What a name may make in folders too large to be looked through, up to that of the machine."""

Seen = tuple[int, int, int, str]
"""Mode, inode, time of change and content of something on disk."""


@dataclass(frozen=True)
class House:
    """Folders of a test: `root` holds all, `storage` and `data` are the server's."""

    root: Path

    @classmethod
    def build(cls, root: Path) -> Self:
        """Put canaries above, beside and into the storage folder, and links out of it."""
        house = cls(root)
        for folder in (
            *(root, root.parent, root / "srv", root / "elsewhere", root / "srv" / "storage-old"),
            *(house.storage / "photo" / "2" / "2025", house.day, root / "etc"),
        ):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "canary.txt").write_text(f"the canary of {folder.name}")
        (root / "etc" / "passwd").write_text("root")
        for folder in (house.storage, house.storage / "photo", house.day):
            (folder / "escape").symlink_to(root / "elsewhere")
        return house

    @property
    def storage(self) -> Path:
        """`STORAGE_DIR`."""
        return self.root / "srv" / "storage"

    @property
    def day(self) -> Path:
        """Where the photos of user 1 go."""
        return self.storage / "photo" / "1" / "2025" / "12" / "10"

    @property
    def data(self) -> Path:
        """The folder of the database."""
        return self.root / "srv" / "data"

    @property
    def database(self) -> Path:
        """The database file."""
        return self.data / "app.db"

    @property
    def absolute(self) -> tuple[str, ...]:
        """Absolute paths that a name may try to be."""
        inside = (
            self.root / "taken.txt",
            self.root / "elsewhere" / "canary.txt",
            self.data / "app.db",
        )
        return (
            *map(str, inside),
            str(self.storage) + "-old/canary.txt",
            f"file://{self.root}/taken",
        )

    def outside(self) -> dict[str, Seen]:
        """All that is in and around the house and not the server's own, as it is now."""
        strays = [above / name for above in self.root.parents for name in _STRAYS]
        found = [*self._everything(), *(path for path in strays if path.exists())]
        return {str(path): _seen(path) for path in found if not self._is_own(path)}

    def photos(self) -> dict[str, bytes]:
        """The photos of user 1, by their path as the API names them."""
        return {
            f"storage/{path.relative_to(self.storage).as_posix()}": path.read_bytes()
            for path in self.day.iterdir()
            if self._is_own(path)
        }

    def _is_own(self, path: Path) -> bool:
        if path == self.data or path.parent == self.data:
            return path == self.data or path.name in _DATABASE_FILES
        if not path.is_relative_to(self.storage):
            return False
        name = path.relative_to(self.storage).as_posix()
        pattern = _OWN_FOLDER if stat.S_ISDIR(path.lstat().st_mode) else _OWN_FILE
        return pattern.fullmatch(name) is not None

    def _everything(self) -> list[Path]:
        return [
            Path(folder, name)
            for folder, folders, files in os.walk(self.root.parent)
            for name in (*folders, *files)
        ]


def _seen(path: Path) -> Seen:
    status = path.lstat()
    if stat.S_ISLNK(status.st_mode):
        content = path.readlink().as_posix()
    elif stat.S_ISREG(status.st_mode):
        content = hashlib.sha256(path.read_bytes()).hexdigest()
    else:
        content = ""  # of a folder its time of change says whether an entry came or went
    return status.st_mode, status.st_ino, status.st_mtime_ns, content
