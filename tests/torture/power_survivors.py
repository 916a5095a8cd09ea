"""What has to be there after a power cut, and that the phones can go on from it."""

import asyncio
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from backup_uploads import on_disk
from backup_wing import PASSWORD, USERNAME, Api, rows
from immich_bridge.backup.database import Database
from immich_bridge.backup.integrity import UNKNOWN_FILE, WRONG_SIZE, Finding, Integrity
from immich_bridge.backup.naming import day_folder
from immich_bridge.backup.storage import Storage
from torture.power_phones import Chunk, FileKey, Index, Login, Step, Version, Whole
from torture.power_recording import Recording

_USER: Final = 1


class Survivors:
    """What a cut at the line `at` of a recording must have left on the disk of `settings`.

    A server was started on it since.
    """

    def __init__(self, recording: Recording, at: int, settings: Mapping[str, str]) -> None:
        self._household = recording.household
        self._has_user = at >= recording.user_made
        self._token = recording.token
        self._db_path = Path(settings["DB_PATH"])
        self._storage_dir = Path(settings["STORAGE_DIR"])
        steps = self._household.steps
        self._answered = {step for step in steps if recording.answered(step) <= at}
        # A phone waits for each answer: of the steps that were not answered only the next
        # one can have reached the server.
        waiting = ([s for s in p.steps if s not in self._answered] for p in self._household.phones)
        self.in_flight = [steps[0] for steps in waiting if steps]
        self._indexed = [step for step in steps if isinstance(step, Index)]
        self.acknowledged = sum(self._is_answered(v) for v in self._household.versions)

    def _is_answered(self, version: Version) -> bool:
        return not version.abandoned and version.steps[-1] in self._answered

    def _is_in_flight(self, version: Version) -> bool:
        return not version.abandoned and version.steps[-1] in self.in_flight

    def _may_be(self, key: FileKey) -> list[bytes | None]:
        """What the file may hold: the last photo answered, or one that had no answer yet."""
        versions = [version for version in self._household.versions if version.key == key]
        answered = [version for version in versions if self._is_answered(version)]
        last = [
            version
            for version in answered
            if not any(version.steps[-1].ended < later.steps[-1].began for later in answered)
        ]
        flying = [version for version in versions if self._is_in_flight(version)]
        contents: list[bytes | None] = [version.content for version in (*last, *flying)]
        return contents if answered else [None, *contents]

    async def check(self, api: Api) -> None:
        """Compare with what is there, before anybody sends anything."""
        if not self._has_user:
            return
        assert rows(self._db_path, "SELECT id FROM users") == [{"id": _USER}]
        if any(isinstance(step, Login) for step in self._answered):
            api.token = self._token
            assert (await api.status()).status == 200, "the token is no longer valid"
        else:
            api.token = (await api.login(USERNAME, PASSWORD)).json["token"]
        self._check_rows()
        files = self._check_files()
        self._check_chunks(files)
        for finding in await self.findings():
            self._check_finding(finding)

    def _paths(self) -> dict[str, FileKey]:
        """Where the files of all photos lie, whether they were indexed by then or not."""
        paths = {}
        keys = {version.key for version in self._household.versions}
        for step in self._indexed:
            for local_id, name in step.names().items():
                folder = day_folder(_USER, step.day).removeprefix("storage/")
                for key in keys:
                    if key[0] == local_id:
                        paths[f"{folder}{Path(name).stem}.{key[1]}"] = key
        return paths

    def _check_rows(self) -> None:
        photos = rows(self._db_path, "SELECT * FROM photos_user_1 ORDER BY number")
        names = {row["local_id"]: f"{row['file_name']}.{row['file_extension']}" for row in photos}
        for step in self._indexed:
            if step in self._answered:
                assert step.names().items() <= names.items(), f"{step.id} is lost"
        for folder in {row["file_path"] for row in photos}:
            numbers = [row["number"] for row in photos if row["file_path"] == folder]
            assert numbers == [*range(1, len(numbers) + 1)]
        uploaded = {row["local_id"]: json.loads(row["uploaded_extensions"]) for row in photos}
        sizes = {
            (row["local_id"], row["extension"]): row["size"]
            for row in rows(self._db_path, "SELECT * FROM files WHERE user_id = ?", _USER)
        }
        for key in {version.key for version in self._household.versions}:
            allowed = self._may_be(key)
            size = sizes.get(key)
            assert size in [None if c is None else len(c) for c in allowed], f"row of {key}"
            assert (key[1] in uploaded.get(key[0], ())) == (size is not None), f"row of {key}"

    def _check_files(self) -> dict[str, bytes]:
        files = on_disk(self._storage_dir)
        assert not [name for name in files if ".upload-" in name]
        photos = {name: files[name] for name in files if not name.startswith("photo/.")}
        paths = self._paths()
        assert photos.keys() <= paths.keys()
        for path, key in paths.items():
            # Not with ==, which would have pytest compare the bytes at length.
            fits = any(content == photos.get(path) for content in self._may_be(key))
            assert fits, f"{key} is lost or torn: {path}"
        return files

    def _check_chunks(self, files: Mapping[str, bytes]) -> None:
        """Chunks that were answered are there until their photo is, or another version."""
        # Number and digest; behind them may stand which photo they are to replace.
        kept = {
            "-".join(Path(name).name.split("-")[:2])
            for name in files
            if name.startswith("photo/.chunks/")
        }
        stored = [files[path] for path in self._paths() if path in files]
        for version in self._household.versions:
            if self._is_replaced(version) or version.content in stored:
                continue
            for chunk in version.steps:
                if isinstance(chunk, Chunk) and chunk in self._answered:
                    name = f"{chunk.number}-{hashlib.sha256(chunk.data).hexdigest()}"
                    assert name in kept, f"{chunk.id} is lost"

    def _is_replaced(self, version: Version) -> bool:
        """Whether a version that came later has begun, or is stored."""
        later = [other.steps[0] for other in self._household.versions if other.key == version.key]
        begun = [s for s in later if s in self._answered or s in self.in_flight]
        return any(step.began > version.steps[0].began for step in begun)

    def _check_finding(self, finding: Finding) -> None:
        """A file that is ahead of its row, and of which nobody was told."""
        key = self._paths()[str(finding.path.relative_to(self._storage_dir))]
        flying = {
            version.key for version in self._household.versions if self._is_in_flight(version)
        }
        assert finding.kind in (UNKNOWN_FILE, WRONG_SIZE), finding
        assert finding.remedy, finding
        assert key in flying, finding

    async def findings(self) -> list[Finding]:
        """What `storage check` finds."""
        database = Database(self._db_path)
        await database.open()
        try:
            integrity = Integrity(database, Storage(self._storage_dir))
            return await integrity.check(repair=False, progress=lambda *_: None)
        finally:
            await database.close()

    async def resume(self, api: Api) -> None:
        """Have every phone send again what got no answer; then all is in its place."""
        if not self._has_user:
            return
        await asyncio.gather(*(self._send_again(api, step) for step in self.in_flight))
        files = on_disk(self._storage_dir)
        sent = [s.version for s in self.in_flight if isinstance(s, Whole | Chunk)]
        for path, key in self._paths().items():
            wanted = [v.content for v in sent if v.key == key and not v.abandoned]
            allowed = wanted or self._may_be(key)
            fits = any(content == files.get(path) for content in allowed)
            assert fits, f"{key} is torn after it was sent again: {path}"
        assert await self.findings() == []

    async def _send_again(self, api: Api, step: Step) -> None:
        answer = await step.send(api)
        assert answer.status == 200, answer
        if isinstance(step, Chunk) and not step.version.abandoned:
            for chunk in step.version.steps:
                if answer.json["complete"]:
                    break
                if isinstance(chunk, Chunk) and chunk.number not in answer.json["received"]:
                    answer = await chunk.send(api)
                    assert answer.status == 200, answer
            assert answer.json["complete"], answer
