"""Users and their passwords (argon2id)."""

import asyncio
import hashlib
import os
import secrets
import sqlite3
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, TypeVar

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerifyMismatchError

from immich_bridge.backup.catalog import create_photos_table
from immich_bridge.backup.database import Database, utc_now
from immich_bridge.errors import Unauthorized, Unavailable

T = TypeVar("T")

# OWASP's first choice for argon2id is 46 MiB with one pass, or as here 19 MiB with two.
_TIME_COST: Final = 2
_MEMORY_KIB: Final = 19 * 1024
_PARALLELISM: Final = 1
_HASHES_AT_ONCE: Final = 2
"""Each takes a core and 19 MiB for some 40 ms: a flood of logins must not take the server."""
_MOST_WAITING: Final = 32
"""Passwords that wait to be hashed, some eight seconds' worth; what comes on top is refused."""
_CROWD: Final = 4
"""From so many waiting passwords on they are no household's, but a flood."""
_REST_SECONDS: Final = 0.2
"""Between two passwords of a flood, which are hashed one by one: to hash them as fast as can be
made everybody else wait two to three times as long on two processors."""
_NICENESS: Final = 5
"""Of the threads that hash: what else the server has to do goes first, three to one. With more
they would starve where other programs keep the machine busy."""

_SOME_HASH: Final = """
    SELECT password_hash FROM users ORDER BY id
    LIMIT 1 OFFSET (SELECT ? % max(1, count(*)) FROM users)
"""

MIN_PASSWORD_LENGTH: Final = 8
_MAX_PASSWORD_LENGTH: Final = 1024
_MAX_USERNAME_LENGTH: Final = 64


class AccountError(Exception):
    """An account cannot be made or changed; the message says why."""


@dataclass(frozen=True)
class User:
    """An account."""

    id: int
    username: str
    created_at: str
    password_hash: str = field(repr=False)
    """What a password was verified against; it changes with the password."""


class Accounts:
    """The users of the backup wing."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._hasher = PasswordHasher(
            time_cost=_TIME_COST, memory_cost=_MEMORY_KIB, parallelism=_PARALLELISM
        )
        self._executor = ThreadPoolExecutor(
            _HASHES_AT_ONCE, thread_name_prefix="argon2", initializer=_let_others_go_first
        )
        self._one_by_one = threading.Lock()
        self._unfinished: set[Future[Any]] = set()
        # Verified against when there is no user at all, so that this case takes as long.
        self._dummy_hash = self._hasher.hash("a password that nobody has")
        self._choice_key = secrets.token_bytes(16)

    @property
    def queue_length(self) -> int:
        """How many passwords wait for a thread to hash them."""
        return max(0, len(self._unfinished) - _HASHES_AT_ONCE)

    def close(self) -> None:
        """Let the hashing threads end."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    async def authenticate(self, username: str, password: str) -> User:
        """The user with this name and password; raises `Unauthorized` for anything else.

        Raises `Unavailable` while too many others wait for theirs.
        """
        row, stored_hash = await self._row_and_hash(username)
        if self.queue_length >= _MOST_WAITING:
            raise Unavailable("too many logins at once, try again later")
        matches = await self._in_thread(partial(self._matches, stored_hash, password))
        if row is None or not matches:
            raise Unauthorized("invalid credentials")
        if self._hasher.check_needs_rehash(stored_hash):
            await self._store_hash(row["id"], stored_hash, await self._hash(password))
            return await self.authenticate(username, password)
        return _user(row)

    async def create(self, username: str, password: str) -> User:
        """Make an account; raises `AccountError`."""
        if not 0 < len(username) <= _MAX_USERNAME_LENGTH or not username.isprintable():
            raise AccountError(f"a username has 1 to {_MAX_USERNAME_LENGTH} printable characters")
        if username != username.strip():
            raise AccountError("a username neither begins nor ends with a space")
        _check_password(password)
        password_hash = await self._hash(password)

        def insert(db: sqlite3.Connection) -> User | None:
            if db.execute("SELECT 1 FROM users WHERE username = ?", (username,)).fetchone():
                return None
            now = utc_now()
            row = db.execute(
                "INSERT INTO users (username, password_hash, created_at, updated_at)"
                " VALUES (?, ?, ?, ?) RETURNING *",
                (username, password_hash, now, now),
            ).fetchone()
            create_photos_table(db, row["id"])
            return _user(row)

        if (user := await self._database.write(insert)) is None:
            raise AccountError(f"there is a user {username!r} already")
        return user

    async def all(self) -> list[User]:
        """Every user, oldest first."""
        rows = await self._database.read(
            lambda db: db.execute("SELECT * FROM users ORDER BY id").fetchall()
        )
        return [_user(row) for row in rows]

    async def find(self, username: str) -> User:
        """The user of that name; raises `AccountError`."""
        row = await self._row(username)
        if row is None:
            raise AccountError(f"there is no user {username!r}")
        return _user(row)

    async def reset_password(self, username: str, password: str) -> None:
        """Give the user a new password and end all of their tokens; raises `AccountError`."""
        _check_password(password)
        await self.find(username)
        password_hash = await self._hash(password)

        def update(db: sqlite3.Connection) -> bool:
            changed = db.execute(
                "UPDATE users SET password_hash = ?, updated_at = ? WHERE username = ?",
                (password_hash, utc_now(), username),
            ).rowcount
            db.execute(
                "DELETE FROM tokens WHERE user_id = (SELECT id FROM users WHERE username = ?)",
                (username,),
            )
            return changed == 1

        if not await self._database.write(update):
            raise AccountError(f"there is no user {username!r}")

    async def delete(self, username: str) -> None:
        """Remove the account and its tokens; photos and their rows stay. Raises `AccountError`."""
        await self.find(username)
        deleted = await self._database.write(
            lambda db: db.execute("DELETE FROM users WHERE username = ?", (username,)).rowcount
        )
        if not deleted:
            raise AccountError(f"there is no user {username!r}")

    async def _row_and_hash(self, username: str) -> tuple[sqlite3.Row | None, str]:
        """The user's row, and the hash to verify a password against.

        For a name that nobody has it is the hash of some user, for one name always the same
        one's: what a verification costs stands in the hash, and old ones may cost less than
        those of today.
        """
        digest = hashlib.blake2b(username.encode(), key=self._choice_key, digest_size=7).digest()

        def work(db: sqlite3.Connection) -> tuple[sqlite3.Row | None, str]:
            row = db.execute("SELECT * FROM users WHERE username = ?", (username,)).fetchone()
            # Chosen for every name, so that it takes as long.
            some = db.execute(_SOME_HASH, (int.from_bytes(digest),)).fetchone()
            some_hash = some["password_hash"] if some else self._dummy_hash
            return row, row["password_hash"] if row else some_hash

        return await self._database.read(work)

    async def _row(self, username: str) -> sqlite3.Row | None:
        if not _is_unicode(username):
            return None  # an argument in another encoding than the locale's
        return await self._database.read(
            lambda db: db.execute("SELECT * FROM users WHERE username = ?", (username,)).fetchone()
        )

    async def _store_hash(self, user_id: int, old_hash: str, new_hash: str) -> None:
        # Only over the hash that was verified: the password may have been reset meanwhile.
        await self._database.write(
            lambda db: (
                db.execute(
                    "UPDATE users SET password_hash = ? WHERE id = ? AND password_hash = ?",
                    (new_hash, user_id, old_hash),
                ).rowcount
            )
        )

    async def _hash(self, password: str) -> str:
        return await self._in_thread(partial(self._hasher.hash, password))

    async def _in_thread(self, work: Callable[[], T]) -> T:
        future = self._executor.submit(self._in_turn, work)
        # Until the thread is done, whether or not somebody still waits for it.
        self._unfinished.add(future)
        future.add_done_callback(self._unfinished.discard)
        return await asyncio.wrap_future(future)

    def _in_turn(self, work: Callable[[], T]) -> T:
        """Do `work`, at a pace that leaves the machine to others when there is a flood of it."""
        if self.queue_length < _CROWD:
            return work()
        with self._one_by_one:
            time.sleep(_REST_SECONDS)
            return work()

    def _matches(self, stored_hash: str, password: str) -> bool:
        try:
            return self._hasher.verify(stored_hash, password)
        except (VerifyMismatchError, InvalidHashError):
            return False


def _check_password(password: str) -> None:
    if not MIN_PASSWORD_LENGTH <= len(password) <= _MAX_PASSWORD_LENGTH:
        raise AccountError(
            f"a password has {MIN_PASSWORD_LENGTH} to {_MAX_PASSWORD_LENGTH} characters"
        )
    if not _is_unicode(password):
        # An argument in another encoding than the locale's; no client could ever send it.
        raise AccountError("a password is text in the encoding of the locale")


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _let_others_go_first() -> None:
    """Make this thread nicer; Linux alone knows the niceness of a thread."""
    if sys.platform == "linux":
        with suppress(OSError):  # a sandbox may forbid it
            thread = threading.get_native_id()
            mine = os.getpriority(os.PRIO_PROCESS, thread)
            os.setpriority(os.PRIO_PROCESS, thread, mine + _NICENESS)


def _user(row: sqlite3.Row) -> User:
    return User(row["id"], row["username"], row["created_at"], row["password_hash"])
