"""Login tokens: JWTs that count only while they are listed in the database."""

import hashlib
import os
import secrets
import sqlite3
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import jwt

from immich_bridge.backup.accounts import User
from immich_bridge.backup.database import Database, utc_now
from immich_bridge.backup.disk import make_folders, sync_folder

_ALGORITHM: Final = "HS256"
_CLAIMS: Final = ("user_id", "username", "exp", "iat", "jti")
KEY_BYTES: Final = 32
"""RFC 7518 3.2: a key for HS256 has 256 bits at least."""
_MAX_TOKEN_LENGTH: Final = 4096
_MAX_USER_ID: Final = (1 << 63) - 1
"""SQLite's largest integer: of larger ones it cannot be asked."""


class KeyFileError(Exception):
    """The file of the signing key cannot be used; the message says why."""


@dataclass(frozen=True)
class Token:
    """A token as its owner gets it; `expires_at` is RFC 3339 with the server's offset."""

    text: str
    expires_at: str


@dataclass(frozen=True)
class Session:
    """What a valid token says of whoever sent it."""

    user_id: int
    username: str


class Tokens:
    """Issues tokens, checks and revokes them."""

    def __init__(self, database: Database, key: bytes, ttl: float) -> None:
        self._database = database
        self._key = key
        self._ttl = ttl
        # What was signed stays so. Whether it is still alive and listed, the database says.
        self._verified_before = lru_cache(maxsize=256)(self._verify)

    async def issue(self, user: User) -> Token | None:
        """A new token for `user`; None if their password was changed since it was verified."""
        claims = self._claims(user.id, user.username)
        text = self._encode(claims)

        def insert(db: sqlite3.Connection) -> bool:
            row = db.execute("SELECT password_hash FROM users WHERE id = ?", (user.id,)).fetchone()
            if row is None or row["password_hash"] != user.password_hash:
                return False
            _insert(db, text, claims)
            return True

        return _token(text, claims) if await self._database.write(insert) else None

    async def check(self, text: str) -> Session | None:
        """Whose token `text` is; None unless it is signed by us, alive and listed."""
        session = self._signed(text)
        if session is None:
            return None

        def work(db: sqlite3.Connection) -> bool:
            row = db.execute(
                "SELECT user_id FROM tokens WHERE token_hash = ? AND expires_at > ?",
                (_hash(text), int(time.time())),
            ).fetchone()
            return row is not None and row["user_id"] == session.user_id

        return session if await self._database.read(work) else None

    async def refresh(self, text: str) -> Token | None:
        """Swap a valid token for a new one. Of two refreshes of one token, one wins."""
        old = self._signed(text)
        if old is None:
            return None
        claims = self._claims(old.user_id, old.username)
        new_text = self._encode(claims)

        def swap(db: sqlite3.Connection) -> bool:
            gone = db.execute(
                "DELETE FROM tokens WHERE token_hash = ? AND user_id = ? AND expires_at > ?",
                (_hash(text), old.user_id, int(time.time())),
            ).rowcount
            if gone:
                _insert(db, new_text, claims)
            return gone == 1

        return _token(new_text, claims) if await self._database.write(swap) else None

    async def sweep(self) -> int:
        """Forget expired tokens; how many there were."""
        return await self._database.write(
            lambda db: (
                db.execute("DELETE FROM tokens WHERE expires_at <= ?", (int(time.time()),)).rowcount
            )
        )

    def _claims(self, user_id: int, username: str) -> dict[str, Any]:
        now = int(time.time())
        return {
            "user_id": user_id,
            "username": username,
            "iat": now,
            "exp": now + int(self._ttl),
            # Two tokens of one second must not be the same token.
            "jti": secrets.token_urlsafe(16),
        }

    def _encode(self, claims: dict[str, Any]) -> str:
        return jwt.encode(claims, self._key, algorithm=_ALGORITHM)

    def _signed(self, text: str) -> Session | None:
        """What a token says that we signed and that had not expired when it was first seen."""
        try:
            return self._verified_before(text)
        except (jwt.PyJWTError, ValueError):
            return None  # and looked at again next time: a clock may be set right

    def _verify(self, text: str) -> Session:
        if len(text) > _MAX_TOKEN_LENGTH:
            raise ValueError("longer than any token of ours")
        claims: dict[str, Any] = jwt.decode(
            text, self._key, algorithms=[_ALGORITHM], options={"require": list(_CLAIMS)}
        )
        user_id, username = claims["user_id"], claims["username"]
        well_typed = type(user_id) is int and type(username) is str
        if not well_typed or not 0 < user_id <= _MAX_USER_ID:
            raise ValueError("no user has such an id or name")
        return Session(user_id, username)


def load_key(secret: str | None, path: Path) -> bytes:
    """The signing key: `secret` if there is one, else that of the file, made at first use.

    Raises `KeyFileError` when the file cannot be read or holds too little.
    """
    if secret is not None:
        return secret.encode()
    try:
        make_folders(path.parent)
        with suppress(FileExistsError):
            _write_new_key(path)
        # Also for a key that was there: whoever made it may have been killed before this.
        with suppress(PermissionError):
            sync_folder(path.parent)
        key = path.read_bytes()
    except OSError as exc:
        raise KeyFileError(f"JWT_SECRET_PATH: {path} cannot be used: {exc}") from exc
    if key.isascii():
        key = key.strip()  # text ends with a newline; of random bytes each one counts
    with suppress(ValueError):
        key = bytes.fromhex(key.decode("ascii"))  # as we write it; other bytes count as they are
    if len(key) < KEY_BYTES:
        raise KeyFileError(f"JWT_SECRET_PATH: {path} holds fewer than {KEY_BYTES * 8} bits")
    return key


def _write_new_key(path: Path) -> None:
    """Write a key where none is. Another process that reads sees a whole key or no file."""
    if path.exists():
        return
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(secrets.token_hex(KEY_BYTES) + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.link(temporary, path)  # unlike a rename it never replaces another's key
    finally:
        temporary.unlink()


def _insert(db: sqlite3.Connection, text: str, claims: dict[str, Any]) -> None:
    db.execute(
        "INSERT INTO tokens (token_hash, user_id, expires_at, created_at) VALUES (?, ?, ?, ?)",
        (_hash(text), claims["user_id"], claims["exp"], utc_now()),
    )


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def _token(text: str, claims: dict[str, Any]) -> Token:
    expires_at = datetime.fromtimestamp(claims["exp"]).astimezone()
    return Token(text, expires_at.isoformat(timespec="seconds"))
