"""A backup server as a process of its own, its accounts, and a user who has logged in."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from backup_wing import PASSWORD, USERNAME, Api, ServerProcess, StartBackupProcess
from immich_bridge.backup.accounts import Accounts
from immich_bridge.backup.database import Database


@asynccontextmanager
async def open_accounts(settings: Mapping[str, str]) -> AsyncIterator[Accounts]:
    """The accounts of a server with these settings, whether or not it runs."""
    database = Database(Path(settings["DB_PATH"]))
    await database.open()
    accounts = Accounts(database)
    try:
        yield accounts
    finally:
        accounts.close()
        await database.close()


async def start_with_user(
    start_process: StartBackupProcess, settings: Mapping[str, str], **more: str
) -> tuple[ServerProcess, Api]:
    """A new server, and its first user's client."""
    async with open_accounts(settings) as accounts:
        await accounts.create(USERNAME, PASSWORD)
    server = await start_process(**{**settings, **more})
    answer = await Api(server.url).login(USERNAME, PASSWORD)
    return server, Api(server.url, answer.json["token"])
