"""The assets, and the folder their files lie in."""

from __future__ import annotations

import hashlib
import os
import uuid
from base64 import b64encode
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

# Opening with O_EXCL: two uploads never share a file, as Immich names each by a fresh UUID.
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL


@dataclass
class Asset:
    id: str
    owner: str
    path: Path
    original_file_name: str
    checksum: str
    """base64 of the SHA-1"""
    size: int
    type: str
    mime_type: str
    fields: dict[str, str]
    """The form fields as they came, without the files."""
    file_created_at: datetime
    file_modified_at: datetime
    visibility: str = "timeline"
    is_favorite: bool = False
    duration: int | str | None = None
    live_photo_video_id: str | None = None
    sidecar_path: Path | None = None
    metadata: list[dict[str, Any]] = field(default_factory=list)
    is_trashed: bool = False
    created_at: datetime = field(default_factory=lambda: datetime.now(UTC))


@dataclass
class Album:
    id: str
    owner: str
    name: str
    description: str
    asset_ids: list[str] = field(default_factory=list)
    created_at: datetime = field(default_factory=lambda: datetime.now(UTC))


class IncomingFile:
    """A file under its final path while its bytes still arrive, as Immich writes it.

    Writes block the loop; the stand-in is a test double and the pieces are small.
    """

    def __init__(self, library: Library, path: Path) -> None:
        self.path = path
        self.size = 0
        self._library = library
        self._sha1 = hashlib.sha1(usedforsecurity=False)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._fd: int | None = os.open(path, _CREATE, 0o640)
        library.incoming.add(path)

    @property
    def checksum(self) -> str:
        return b64encode(self._sha1.digest()).decode()

    def write(self, piece: bytes) -> None:
        assert self._fd is not None
        self._sha1.update(piece)
        self.size += len(piece)
        view = memoryview(piece)
        while view:
            view = view[os.write(self._fd, view) :]

    def close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
            self._library.incoming.discard(self.path)

    def truncate(self) -> None:
        """What multer leaves of a file in the middle of which the form ended."""
        os.truncate(self.path, 0)
        self.size = 0

    def delete(self) -> None:
        self.close()
        self.path.unlink(missing_ok=True)


class Library:
    """All assets and albums of all users."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.assets: list[Asset] = []
        self.albums: list[Album] = []
        self.incoming: set[Path] = set()

    def receive(self, owner: str, extension: str) -> IncomingFile:
        name = str(uuid.uuid4())
        path = self.folder / owner / name[:2] / name[2:4] / f"{name}{extension}"
        return IncomingFile(self, path)

    def find(self, asset_id: str, owner: str) -> Asset | None:
        for asset in self.assets:
            if asset.id == asset_id and asset.owner == owner:
                return asset
        return None

    def find_checksum(self, checksum: str, owner: str) -> Asset | None:
        """The asset of this owner with this base64 SHA-1, trashed or not."""
        for asset in self.assets:
            if asset.checksum == checksum and asset.owner == owner:
                return asset
        return None

    def usage(self, owner: str) -> int:
        return sum(asset.size for asset in self.assets if asset.owner == owner)

    def partial_files(self) -> list[Path]:
        """The files whose bytes are still arriving."""
        return sorted(path for path in self.incoming if path.exists())

    def files(self) -> list[Path]:
        """Every file in the upload folder: assets, sidecars, partial files and orphans."""
        return sorted(path for path in self.folder.rglob("*") if path.is_file())

    def delete(self, asset: Asset) -> None:
        self.assets.remove(asset)
        asset.path.unlink(missing_ok=True)
        if asset.sidecar_path is not None:
            asset.sidecar_path.unlink(missing_ok=True)

    def clear(self) -> None:
        """Forget everything and delete every file that is not just being written."""
        self.assets.clear()
        self.albums.clear()
        for path in self.files():
            if path not in self.incoming:
                path.unlink()


def js_time(moment: datetime) -> str:
    """A moment as JavaScript's ``toISOString`` writes it, to the millisecond."""
    utc = moment.astimezone(UTC)
    return f"{utc:%Y-%m-%dT%H:%M:%S}.{utc.microsecond // 1000:03}Z".rjust(24, "0")
