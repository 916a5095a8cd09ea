"""The disk of the photo backup as a witness of cut uploads."""

from collections.abc import Mapping
from hashlib import sha1
from pathlib import Path
from typing import Final

from backup_uploads import FOLDER, index, upload
from backup_wing import PASSWORD, USERNAME, Api, rows, settings_in
from immich_bridge.backup.accounts import Accounts
from immich_bridge.backup.database import Database
from torture.cuts_requests import Ask

_OLD_SIZE: Final = 3000


async def settings_with_a_user(folder: Path) -> dict[str, str]:
    """Settings of a server that has everything in `folder`, and one user already."""
    settings = settings_in(folder)
    database = Database(Path(settings["DB_PATH"]))
    await database.open()
    accounts = Accounts(database)
    try:
        await accounts.create(USERNAME, PASSWORD)
    finally:
        accounts.close()
        await database.close()
    return settings


async def logged_in(url: str) -> Api:
    """A client of the server at `url`, logged in as that user."""
    answer = await Api(url).login(USERNAME, PASSWORD)
    assert answer.status == 200, answer
    return Api(url, answer.json["token"])


class BackupDisk:
    """The photos of one user, some of them stored before their uploads are cut."""

    def __init__(self, api: Api, settings: Mapping[str, str]) -> None:
        self._api = api
        self._storage_dir = Path(settings["STORAGE_DIR"])
        self._db_path = Path(settings["DB_PATH"])
        self._paths: dict[str, Path] = {}
        self._old: dict[str, bytes] = {}
        self._new: dict[str, bytes] = {}
        """Digests by local id."""

    async def prepare(self, local_ids: list[str]) -> None:
        """Index photos, and store a first version of every other one."""
        filenames = await index(self._api, *local_ids)
        folder = self._storage_dir / FOLDER
        self._paths = {i: folder / name for i, name in zip(local_ids, filenames, strict=True)}
        for local_id in local_ids[::2]:
            content = local_id.encode().ljust(_OLD_SIZE, b".")
            self._old[local_id] = _digest(content)
            assert (await upload(self._api, "raw", content, local_id=local_id)).status == 200

    def arrived(self, ask: Ask) -> bool:
        """Whether the photo is that of the request; fails if it is not the old one either."""
        self._new[ask.name] = ask.sha1
        path = self._paths[ask.name]
        now = _digest(path.read_bytes()) if path.exists() else None
        assert now in (self._old.get(ask.name), ask.sha1), f"half of one: {ask}"
        return now == ask.sha1

    def check(self) -> None:
        """Every file there is, temporary ones and chunks too, is a whole photo with its row."""
        stored = rows(self._db_path, "SELECT * FROM files")
        sizes = {row["local_id"]: row["size"] for row in stored}
        local_ids = {path: local_id for local_id, path in self._paths.items()}
        for path in self._storage_dir.rglob("*"):
            if path.is_file() and path.suffix != ".done":
                local_id = local_ids[path]
                content = path.read_bytes()
                assert sizes.pop(local_id) == len(content)
                versions = (self._old.get(local_id), self._new.get(local_id))
                assert _digest(content) in versions, f"half of one: {path}"
        assert sizes == {}


def _digest(content: bytes) -> bytes:
    return sha1(content, usedforsecurity=False).digest()
