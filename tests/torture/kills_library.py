"""What a client knows of its photos, and what has to be true of them after any crash."""

import asyncio
import os
import shutil
import sqlite3
import sys
from collections.abc import Awaitable, Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Final

from backup_uploads import on_disk
from backup_wing import PASSWORD, USERNAME, Api, ServerProcess, rows, settings_in
from immich_bridge.backup.database import Database
from immich_bridge.backup.integrity import Integrity
from immich_bridge.backup.storage import Storage
from wire import PATIENCE

StartProcess = Callable[..., Awaitable[ServerProcess]]

CREATION_TIME: Final = "2025-12-10T10:00:00Z"
_MOST_PHOTOS: Final = 60
"""After each fault all photos are looked at; with thousands that would be most of the work."""
_COMMAND_SECONDS: Final = 60.0
"""A command starts an interpreter, on a machine that may be busy with many servers."""


@dataclass
class Library:
    """A server with one user in a folder of its own, and all that it has confirmed."""

    folder: Path
    settings: Mapping[str, str]
    token: str
    start_process: StartProcess
    origin: Path
    """The data folder of a library to which nothing has happened yet."""
    names: dict[str, str] = field(default_factory=dict)
    """Local id of each photo that was indexed -> its place below the storage, no extension."""
    stored: dict[str, str] = field(default_factory=dict)
    """File below the storage -> SHA-256 of what was confirmed."""
    may_be: dict[str, str] = field(default_factory=dict)
    """The same of uploads without an answer: that, or what was there before."""
    may_be_indexed: list[tuple[str, tuple[str, ...]]] = field(default_factory=list)
    """Folder and local ids of each batch without an answer: all of them, or none."""
    server: ServerProcess = field(init=False)
    first_token: str = field(init=False)
    made: int = 0
    """Local ids and days that were made up so far."""

    def __post_init__(self) -> None:
        self.first_token = self.token

    @property
    def storage(self) -> Path:
        """The folder of all photos."""
        return Path(self.settings["STORAGE_DIR"])

    @property
    def database(self) -> Path:
        """The database file."""
        return Path(self.settings["DB_PATH"])

    @property
    def api(self) -> Api:
        """A client of the server that runs."""
        return Api(self.server.url, self.token)

    @property
    def pid(self) -> int:
        """The process of the server that runs."""
        return self.server.process.pid

    async def start(self) -> None:
        """Start the server, after a crash or for the first time."""
        self.server = await self.start_process(**self.settings)

    async def stay_small(self) -> None:
        """Begin anew, with an empty folder and the same user, once there are many photos."""
        if len(self.stored) < _MOST_PHOTOS:
            return
        await self.check_by_command()
        self.server.process.terminate()
        await asyncio.wait_for(self.server.process.wait(), PATIENCE)
        shutil.rmtree(self.folder)
        shutil.copytree(self.origin, self.folder / "data")
        for known in (self.names, self.stored, self.may_be, self.may_be_indexed):
            known.clear()
        self.token = self.first_token
        await self.start()

    async def restart(self) -> None:
        """Kill the server and start it again."""
        if self.server.process.returncode is None:
            self.server.process.kill()
        await asyncio.wait_for(self.server.process.wait(), PATIENCE)
        await self.start()
        await self.check()

    async def is_up(self) -> bool:
        """Whether the server is alive: it answers."""
        try:
            return (await self.api.call("GET", "/health")).status == 200
        except (ConnectionError, EOFError):
            return False

    def new_name(self) -> str:
        """A local id that no photo has."""
        self.made += 1
        return f"photo/{self.made}"

    def confirm(self, file: str, content: bytes) -> None:
        """Note a 200 for an upload."""
        self.stored[file] = sha256(content).hexdigest()
        self.may_be.pop(file, None)

    def doubt(self, file: str, content: bytes) -> None:
        """Note an upload that is begun."""
        self.may_be[file] = sha256(content).hexdigest()

    async def check(self) -> None:
        """Assert all that has to be true of a server that was started again."""
        assert not [name for name in on_disk(self.storage) if ".upload-" in name]
        photos = self.photos()
        self._check_photos(photos)
        self._check_rows(photos)
        assert await self.findings() == []
        self.stored = photos
        self.may_be.clear()

    def photos(self) -> dict[str, str]:
        """SHA-256 of every file that can be seen, chunks and temporary files left out."""
        return {
            name: sha256(content).hexdigest()
            for name, content in on_disk(self.storage).items()
            if not name.startswith("photo/.chunks/") and ".upload-" not in name
        }

    async def findings(self) -> list[str]:
        """What `storage check` says, asked in this process: a new one takes as long as a kill."""
        database = Database(self.database)
        await database.open()
        try:
            integrity = Integrity(database, Storage(self.storage))
            found = await integrity.check(repair=False, progress=lambda *_: None)
        finally:
            await database.close()
        return [f"{finding.kind}: {finding.path} ({finding.detail})" for finding in found]

    async def check_by_command(self) -> None:
        """Assert that `storage check` finds nothing, as an operator runs it."""
        outcome = await _command(self.settings, "storage", "check")
        assert outcome == (0, "everything is in its place\n")

    def _check_photos(self, photos: Mapping[str, str]) -> None:
        """Each file is what was confirmed, or what the upload without an answer sent; whole."""
        for name in photos.keys() | self.stored.keys():
            legal = {self.stored.get(name), self.may_be.get(name, self.stored.get(name))}
            assert photos.get(name) in legal, f"{name} is torn, lost or of nobody"

    def _check_rows(self, photos: Mapping[str, str]) -> None:
        """Rows and files are in step, and numbers run on without gaps or repeats."""
        stored = rows(self.database, "SELECT * FROM photos_user_1 ORDER BY file_path, number")
        by_folder: dict[str, list[int]] = {}
        recorded = set()
        names = {}
        for row in stored:
            by_folder.setdefault(row["file_path"], []).append(row["number"])
            place = f"{row['file_path']}{row['file_name']}".removeprefix("storage/")
            names[row["local_id"]] = place
            extensions = row["uploaded_extensions"].strip("[]").replace('"', "")
            recorded |= {f"{place}.{each}" for each in extensions.split(",") if each}
        for folder, numbers in by_folder.items():
            assert numbers == [*range(1, len(numbers) + 1)], folder
        assert recorded == photos.keys()
        assert self.names.items() <= names.items()
        batches = [{*local_ids} & names.keys() for _, local_ids in self.may_be_indexed]
        for there, (_, local_ids) in zip(batches, self.may_be_indexed, strict=True):
            assert there in (set(), {*local_ids}), "half a batch"
        self.may_be_indexed.clear()
        self.names = names
        with closing(sqlite3.connect(self.database)) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


async def new_libraries(
    folder: Path, count: int, start_process: StartProcess, **settings: str
) -> list[Library]:
    """Libraries of the same user and key in folders of their own, each with its server."""
    first = settings_in(folder / "library0")
    account = ("--username", USERNAME, "--password", PASSWORD)
    assert (await _command(first, "user", "create", *account))[0] == 0
    server = await start_process(**first, **settings)
    token = (await Api(server.url).login(USERNAME, PASSWORD)).json["token"]
    server.process.terminate()
    await asyncio.wait_for(server.process.wait(), PATIENCE)
    origin = (folder / "library0" / "data").rename(folder / "origin")
    libraries = []
    for number in range(count):
        own = folder / f"library{number}"
        shutil.copytree(origin, own / "data")
        own_settings = {**settings_in(own), **settings}
        libraries.append(Library(own, own_settings, token, start_process, origin))
    await asyncio.gather(*(library.start() for library in libraries))
    return libraries


async def _command(settings: Mapping[str, str], *arguments: str) -> tuple[int | None, str]:
    """Run a command as an operator does; its exit code and all that it writes."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "immich_bridge", *arguments),
        env={**os.environ, **settings},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await asyncio.wait_for(process.communicate(), _COMMAND_SECONDS)
    return process.returncode, output.decode()
