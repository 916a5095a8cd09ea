"""What SECURITY.md says of files, settings and dependencies is so."""

import os
import re
import stat
from collections.abc import Iterator
from configparser import ConfigParser
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from backup_wing import PASSWORD, USERNAME, Api, photo, settings_in
from front import StartBridge
from immich_bridge.backup.accounts import Accounts
from immich_bridge.backup.database import Database
from immich_bridge.settings import SETTINGS

ROOT = Path(__file__).parents[1]
DOCUMENT = (ROOT / "SECURITY.md").read_text()
PHOTO = b"\xff\xd8\xff\xe1photo"
PRIVATE = 0o600
OTHERS = 0o007
"""Whatever others may do."""


@pytest.fixture(params=[0o022, 0o000], ids=["umask 022", "umask 000"])
def umask(request: pytest.FixtureRequest) -> Iterator[None]:
    """A start with the usual umask, and one with none."""
    before = os.umask(request.param)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    """The permissions of a file or a folder."""
    return stat.S_IMODE(path.stat().st_mode)


def content(folder: Path) -> bytes:
    """Everything in the files of a folder."""
    return b"".join(path.read_bytes() for path in folder.iterdir())


async def make_user(database_file: Path) -> None:
    database = Database(database_file)
    await database.open()
    accounts = Accounts(database)
    await accounts.create(USERNAME, PASSWORD)
    accounts.close()
    await database.close()


class TestFiles:
    async def test_are_closed_to_others(
        self, umask: None, start_bridge: StartBridge, tmp_path: Path
    ) -> None:
        house = tmp_path / "new" / "house"
        settings = settings_in(house)
        await make_user(Path(settings["DB_PATH"]))
        server = await start_bridge("", **settings)
        token = (await Api(server.address).login(USERNAME, PASSWORD)).json["token"]
        api = Api(server.address, token)
        await api.index("2025-12-10", [photo("a"), photo("b")])
        assert (await api.upload_stream(PHOTO, local_id="a", file_type="jpg")).status == 200
        chunk = {"local_id": "b", "file_type": "jpg", "chunk_number": "0", "total_chunks": "2"}
        assert (await api.upload_chunk(chunk, PHOTO)).status == 200

        made = [house.parent, *house.parent.rglob("*")]
        assert [str(path) for path in made if mode(path) & OTHERS] == []
        secrets = [path for path in (house / "data").iterdir() if path.is_file()]
        assert {path.name for path in secrets} >= {"jwt_secret.key", "app.db", "app.db-wal"}
        assert {mode(path) for path in secrets} == {PRIVATE}
        folders = [path for path in made if path.is_dir()]
        assert {mode(path) for path in folders} == {0o750}
        photos = [path for path in (house / "storage").rglob("*") if path.is_file()]
        assert len(photos) >= 2
        assert {mode(path) for path in photos} == {0o640}

    async def test_of_the_database_hold_neither_password_nor_token(
        self, start_bridge: StartBridge, tmp_path: Path
    ) -> None:
        settings = settings_in(tmp_path)
        await make_user(Path(settings["DB_PATH"]))
        server = await start_bridge("", **settings)
        token = (await Api(server.address).login(USERNAME, PASSWORD)).json["token"]
        held = content(tmp_path / "data")
        assert b"$argon2id$v=19$m=19456," in held
        assert PASSWORD.encode() not in held
        assert token.encode() not in held
        assert token.rpartition(".")[2].encode() not in held


class TestDocument:
    def test_names_settings_that_exist(self) -> None:
        named = set(re.findall(r"`([A-Z][A-Z0-9]*_[A-Z0-9_]+)(?:=[^`]*)?`", DOCUMENT))
        assert len(named) > 10
        assert named <= {setting.name for setting in SETTINGS}

    def test_links_to_files_that_exist(self) -> None:
        links = re.findall(r"\]\(([^)]+)\)", DOCUMENT)
        assert len(links) >= 4
        assert [link for link in links if not (ROOT / link).exists()] == []


class TestDependencies:
    def fixed(self) -> Iterator[tuple[str, Version]]:
        """Packages, and releases in which a vulnerability of theirs was fixed."""
        rows = re.findall(r"^\| ([a-z-]+) \| ([\d.]+) \| .*CVE-", DOCUMENT, re.MULTILINE)
        return ((name, Version(number)) for name, number in rows)

    def floors(self) -> dict[str, Version]:
        """The oldest release of each package that an installation may have."""
        manifest = ConfigParser()
        manifest.read(ROOT / "setup.cfg")
        lines = manifest["options"]["install_requires"].split()
        requirements = map(Requirement, lines)
        return {
            one.name: min(Version(part.version) for part in one.specifier if part.operator == ">=")
            for one in requirements
        }

    def test_have_floors_at_or_above_every_fix(self) -> None:
        fixed, floors = list(self.fixed()), self.floors()
        assert {name for name, _ in fixed} == {"aiohttp", "pyjwt"}
        assert [(name, fix) for name, fix in fixed if floors[name] < fix] == []

    def test_are_installed_at_or_above_their_floors(self) -> None:
        too_old = {name: floor for name, floor in self.floors().items() if _older(name, floor)}
        assert too_old == {}


def _older(name: str, floor: Version) -> bool:
    return Version(version(name)) < floor
