"""A backup server with everything in the test's own folder, and one user of it."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from backup_wing import (
    PASSWORD,
    USERNAME,
    Api,
    Login,
    MakeUser,
    ServerProcess,
    StartBackup,
    StartBackupProcess,
    settings_in,
)
from immich_bridge.backup.accounts import Accounts, User
from immich_bridge.backup.catalog import create_photos_table
from immich_bridge.backup.database import Database, utc_now
from immich_bridge.serve import Server


@pytest.fixture
def backup_settings(tmp_path: Path) -> dict[str, str]:
    """Settings of this test's server; logins are not limited."""
    return settings_in(tmp_path)


@pytest.fixture
def db_path(backup_settings: dict[str, str]) -> Path:
    """The database file."""
    return Path(backup_settings["DB_PATH"])


@pytest.fixture
def storage_dir(backup_settings: dict[str, str]) -> Path:
    """The folder of all photos."""
    return Path(backup_settings["STORAGE_DIR"])


@pytest.fixture
def start_backup(
    start_bridge: Callable[..., Awaitable[Server]], backup_settings: dict[str, str]
) -> StartBackup:
    """Start backup servers in this process: `await start_backup(SETTING="value", ...)`."""

    async def start(**settings: str) -> Server:
        return await start_bridge("", **{**backup_settings, **settings})

    return start


@pytest.fixture
def start_backup_process(
    start_process: StartBackupProcess, backup_settings: dict[str, str]
) -> StartBackupProcess:
    """Start backup servers as processes: `await start_backup_process(SETTING="value", ...)`."""

    async def start(**settings: str) -> ServerProcess:
        return await start_process(**{**backup_settings, **settings})

    return start


@pytest.fixture
async def database(db_path: Path) -> AsyncIterator[Database]:
    """The database file, opened beside any server."""
    database = Database(db_path)
    await database.open()
    yield database
    await database.close()


@pytest.fixture
async def accounts(database: Database) -> AsyncIterator[Accounts]:
    """The accounts of the database file."""
    accounts = Accounts(database)
    yield accounts
    accounts.close()


@pytest.fixture
def make_user(accounts: Accounts) -> MakeUser:
    """Make users of the server of this test: `await make_user(username, password)`."""
    return accounts.create


@pytest.fixture
def login() -> Login:
    """Log in: `await login(server, username, password)` gives a token."""

    async def log_in(server: Server, username: str, password: str) -> str:
        answer = await Api(server.address).login(username, password)
        assert answer.status == 200, answer
        return str(answer.json["token"])

    return log_in


@pytest.fixture(scope="session")
def password_hash(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The hash of `PASSWORD` as the server stores it, made once for all tests."""

    async def make() -> str:
        database = Database(tmp_path_factory.mktemp("hash") / "app.db")
        await database.open()
        accounts = Accounts(database)
        try:
            return (await accounts.create(USERNAME, PASSWORD)).password_hash
        finally:
            accounts.close()
            await database.close()

    # In a thread, since this one has the event loops of tests.
    with ThreadPoolExecutor(1) as executor:
        return executor.submit(asyncio.run, make()).result()


@pytest.fixture
async def user(database: Database, password_hash: str) -> User:
    """The user `admin` of id 1 with the password of the API document."""

    def insert(db: sqlite3.Connection) -> User:
        now = utc_now()
        db.execute(
            "INSERT INTO users (username, password_hash, created_at, updated_at)"
            " VALUES (?, ?, ?, ?)",
            (USERNAME, password_hash, now, now),
        )
        create_photos_table(db, 1)
        return User(1, USERNAME, now, password_hash)

    return await database.write(insert)


@pytest.fixture
async def backup(start_backup: StartBackup, user: User) -> Server:
    """A backup server with default settings and one user."""
    return await start_backup()


@pytest.fixture
async def token(backup: Server, user: User, login: Login) -> str:
    """A token of `user` at `backup`."""
    return await login(backup, USERNAME, PASSWORD)


@pytest.fixture
def api(backup: Server, token: str) -> Api:
    """A client of `backup`, logged in as `user`."""
    return Api(backup.address, token)
