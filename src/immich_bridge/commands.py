"""What the command line does beside serving: accounts, and the state of the storage."""

import getpass
import signal
import sys
from argparse import Namespace
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from immich_bridge.backup.accounts import AccountError, Accounts
from immich_bridge.backup.database import Database, DatabaseError
from immich_bridge.backup.integrity import Integrity
from immich_bridge.backup.integrity import Progress as Report
from immich_bridge.backup.storage import Storage
from immich_bridge.config import Config
from immich_bridge.errors import BridgeError


class Refused(Exception):
    """The command cannot be carried out; the message says why in one line."""


async def create_user(config: Config, options: Namespace) -> None:
    """`user create`."""
    password = _password(options)
    async with _accounts(config) as accounts:
        user = await accounts.create(options.username, password)
    print(f"created user {user.username} with id {user.id}")


async def list_users(config: Config, options: Namespace) -> None:
    """`user list`: a line each, id, name and date of creation separated by tabs."""
    async with _accounts(config) as accounts:
        for user in await accounts.all():
            print(f"{user.id}\t{user.username}\t{user.created_at}")


async def reset_password(config: Config, options: Namespace) -> None:
    """`user reset-password`."""
    password = _password(options)
    async with _accounts(config) as accounts:
        await accounts.reset_password(options.username, password)
    print(f"{options.username} has a new password; their tokens are no longer valid")


async def delete_user(config: Config, options: Namespace) -> None:
    """`user delete`."""
    async with _accounts(config) as accounts:
        user = await accounts.find(options.username)
        await accounts.delete(options.username)
    kept = Storage(config.storage_dir).path(f"storage/photo/{user.id}")
    print(f"deleted user {user.username}; their photos, if any, stay in {kept}")


async def check_storage(config: Config, options: Namespace) -> None:
    """`storage check`: names every discrepancy; raises `Refused` while some are left."""
    async with _integrity(config) as integrity:
        with _progress() as progress:
            findings = await integrity.check(repair=options.repair, progress=progress)
        unfinished = integrity.unfinished()
    left = 0
    for finding in findings:
        line = f"{finding.kind}: {_printable(finding.path)} ({finding.detail})"
        if finding.remedy is None:
            line += ": left for you to decide"
        elif options.repair:
            line += f": {finding.remedy}"
        left += not (options.repair and finding.remedy)
        print(line)
    if unfinished:
        print(f"unfinished uploads: {len(unfinished)} ({_megabytes(sum(unfinished))})")
    if left:
        hint = "" if options.repair else "; --repair mends what can be mended without loss"
        raise Refused(f"{left} of {len(findings)} findings are left{hint}")
    print(f"{len(findings)} findings, all mended" if findings else "everything is in its place")


async def fix_times(config: Config, options: Namespace) -> None:
    """`storage fix-times`."""
    user_id = None
    if options.user is not None:
        async with _accounts(config) as accounts:
            user_id = (await accounts.find(options.user)).id
    async with _integrity(config) as integrity:
        with _progress() as progress:
            changed = await integrity.fix_times(user_id, dry_run=options.dry_run, progress=progress)
    for path in changed:
        print(_printable(path))
    print(f"{len(changed)} files {'would get' if options.dry_run else 'got'} their creation time")


@asynccontextmanager
async def _database(config: Config) -> AsyncIterator[Database]:
    database = Database(config.db_path)
    try:
        await database.open()
    except DatabaseError as exc:
        raise Refused(f"DB_PATH: {exc}") from exc
    try:
        yield database
    except BridgeError as exc:
        raise Refused(f"DB_PATH: {config.db_path}: {exc}") from exc
    finally:
        await database.close()


@asynccontextmanager
async def _accounts(config: Config) -> AsyncIterator[Accounts]:
    async with _database(config) as database:
        accounts = Accounts(database)
        try:
            yield accounts
        except AccountError as exc:
            raise Refused(str(exc)) from exc
        finally:
            accounts.close()


@asynccontextmanager
async def _integrity(config: Config) -> AsyncIterator[Integrity]:
    async with _database(config) as database:
        try:
            yield Integrity(database, Storage(config.storage_dir))
        except OSError as exc:
            raise Refused(f"STORAGE_DIR: {exc}") from exc


def _password(options: Namespace) -> str:
    """The password from its option, from standard input, or asked for without an echo."""
    if options.password is not None:
        return str(options.password)
    if not options.password_stdin and not sys.stdin.isatty():
        raise Refused("no password: give --password or --password-stdin, or use a terminal")
    try:
        return _first_line() if options.password_stdin else _asked_for_password()
    except EOFError:
        raise Refused("no password was given") from None
    except UnicodeDecodeError:
        raise Refused("a password is text in the encoding of the locale") from None


def _first_line() -> str:
    return sys.stdin.readline().rstrip("\r\n")


def _asked_for_password() -> str:
    # asyncio's own handler of Ctrl-C cancels the task, which does not end a read.
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        password = getpass.getpass("Password: ")
        if getpass.getpass("Again: ") != password:
            raise Refused("the two passwords differ")
    finally:
        signal.signal(signal.SIGINT, handler)
    return password


def _megabytes(size: int) -> str:
    return f"{size / 1024 / 1024:.1f} MB"


def _printable(path: Path) -> str:
    """A path on one line, and in any encoding: what lies in a folder may be named anyhow."""
    escaped = (c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(path))
    return "".join(escaped)


@contextmanager
def _progress() -> Iterator[Report]:
    """A bar on a terminal; elsewhere nothing, so that the output can be read by programs."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda name, done, total: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as bars:
        tasks: dict[str, TaskID] = {}

        def report(name: str, done: int, total: int | None) -> None:
            if name not in tasks:
                tasks[name] = bars.add_task(name, total=total)
            bars.update(tasks[name], completed=done)

        yield report
