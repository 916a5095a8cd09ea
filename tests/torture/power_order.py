"""The order of a safe write, read off a recording: what was on disk before what."""

import hashlib
from collections.abc import Iterable
from typing import Final

from torture.power_disk import File, Naming, Write
from torture.power_phones import Chunk, Index, Version
from torture.power_recording import Recording

_DATABASE: Final = "app.db"
_WAL: Final = "app.db-wal"
_KEY: Final = "jwt_secret.key"
_USER_ROW: Final = b"admin$argon2id$"
"""Name and password hash, as they stand side by side in the row of a user."""


class Order:
    """Asserts for each kind of 200 that all it depends on was safe before it was sent."""

    def __init__(self, recording: Recording) -> None:
        self._recording = recording
        self._disk = recording.replay.disk
        self._files: dict[bytes, File] = {}
        self._wal: list[tuple[File, Write]] = []
        files = {n.binding.inode: n.name for n in self._disk.namings}
        for inode, name in files.items():
            if isinstance(inode, File):
                self._files[_digest(inode.written())] = inode
                if name == _WAL:
                    changes = (change for change in inode.changes if isinstance(change, Write))
                    self._wal += [(inode, change) for change in changes]

    def check_user(self) -> None:
        """The command that makes an account has made it for good when it ends."""
        self._check_committed(_USER_ROW, self._recording.user_made)

    def check_login(self) -> None:
        """A token needs the key that signed it, and its row."""
        answered = self._recording.replay.answered[self._recording.household.login.id]
        (key,) = {n.binding.inode for n in self._disk.namings if n.name == _KEY}
        assert isinstance(key, File)
        (place,) = (naming for naming in self._disk.names_of(key) if naming.name == _KEY)
        self._check_written_before(key, place)
        self._check_named(place, answered)
        self._check_committed(_digest(self._recording.token.encode()), answered)

    def check_index(self, step: Index) -> None:
        """The rows of all photos are committed."""
        answered = self._recording.answered(step)
        for local_id in step.local_ids:
            self._check_committed(local_id.encode(), answered)

    def check_photo(self, version: Version) -> None:
        """Bytes, then name, then folders, then the row, then the answer."""
        file = self._files[_digest(version.content)]
        local_id, extension = version.key
        (place,) = (n for n in self._disk.names_of(file) if _is_photo(n, extension))
        self._check_written_before(file, place)
        size = len(version.content)
        # As these columns stand side by side in the row, SQLite's integers being big-endian.
        columns = f"{local_id}{extension}".encode() + size.to_bytes(2 if size < 1 << 15 else 3)
        row = self._check_committed(columns, self._recording.answered(version.steps[-1]))
        self._check_named(place, row.span.begun)

    def check_chunk(self, chunk: Chunk) -> None:
        """Bytes, then name, then folders, then the answer; it has no row."""
        digest = _digest(chunk.data)
        file = self._files[digest]
        name = f"{chunk.number}-{digest.hex()}"
        names = self._disk.names_of(file)
        # Behind the digest may stand which photo it is to replace.
        (place,) = (naming for naming in names if naming.name.startswith(name))
        self._check_written_before(file, place)
        self._check_named(place, self._recording.answered(chunk))
        self._check_removed_with_all(place)

    def _check_written_before(self, file: File, place: Naming) -> None:
        assert file.changes
        for change in file.changes:
            in_time = file.settled(change.span, place.span.begun)
            assert in_time, f"{place.name} had its name before its bytes were synced"

    def _check_removed_with_all(self, place: Naming) -> None:
        """The folder of a chunk lost its name for good before the chunk did.

        Some chunks of a photo that were left there would be taken for some of its next version.
        """
        folder = self._disk.names_of(place.folder)[0]
        later = [b for b in folder.folder.names[folder.name] if b.number > folder.binding.number]
        for binding in place.folder.names[place.name]:
            if binding.inode is None:
                in_time = later and folder.folder.settled(later[0].span, binding.span.begun)
                assert in_time, f"{place.name} was removed from under the others"

    def _check_named(self, place: Naming, at: int) -> None:
        """The name, and those of all folders around it, were synced before the line `at`."""
        for naming in [*self._disk.way_to(place.folder), place]:
            in_time = naming.folder.settled(naming.span, at)
            assert in_time, f"the folder of {naming.name} was not synced by line {at}"

    def _check_committed(self, needle: bytes, at: int) -> Write:
        """The row that holds `needle` was synced before the line `at`, and so was its file."""
        wal, row = next((wal, write) for wal, write in self._wal if needle in write.data)
        assert wal.settled(row.span, at), f"the row of line {row.span.begun} was not synced by {at}"
        self._check_all_named(self._disk.names_of(wal), at)
        self._check_all_named((n for n in self._disk.namings if n.name == _DATABASE), at)
        return row

    def _check_all_named(self, places: Iterable[Naming], at: int) -> None:
        for place in places:
            self._check_named(place, at)


def _is_photo(naming: Naming, extension: str) -> bool:
    return naming.name.startswith("IMG_") and naming.name.endswith(f".{extension}")


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()
