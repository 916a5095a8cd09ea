"""Users and their passwords: what is stored of them, and what a login costs."""

import asyncio
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import argon2.low_level
import pytest
from argon2 import PasswordHasher, Type, extract_parameters

from backup_wing import Api, rows
from immich_bridge.backup.accounts import MIN_PASSWORD_LENGTH, AccountError, Accounts, User
from immich_bridge.errors import Unauthorized
from immich_bridge.serve import Server
from wire import PATIENCE

PASSWORD = "correct horse"
REFUSED = "invalid credentials"
SURROGATE = "\udce9"  # what an argument in Latin-1 becomes in a UTF-8 locale


@dataclass
class Verifications:
    """The argon2 verifications that were asked of the library while `watched`."""

    hashes: list[str] = field(default_factory=list)
    threads: list[str] = field(default_factory=list)
    running: int = 0
    most_at_once: int = 0
    begun: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    gate: threading.Event = field(default_factory=threading.Event)
    """While it is not set, a verification waits before it does its work."""

    async def wait_for(self, number: int) -> None:
        """Return once `number` more verifications have begun."""
        for _ in range(number):
            assert await asyncio.to_thread(self.begun.acquire, timeout=PATIENCE)


@contextmanager
def watched(monkeypatch: pytest.MonkeyPatch, *, held: bool = False) -> Iterator[Verifications]:
    """Look on while argon2 verifies; the work itself is the library's, done in full."""
    seen = Verifications()
    lock = threading.Lock()
    verify = argon2.low_level.verify_secret
    if not held:
        seen.gate.set()

    def looked_on(stored: bytes, secret: bytes, kind: Type) -> Any:
        with lock:
            seen.hashes.append(stored.decode())
            seen.threads.append(threading.current_thread().name)
            seen.running += 1
            seen.most_at_once = max(seen.most_at_once, seen.running)
        seen.begun.release()
        try:
            assert seen.gate.wait(PATIENCE)
            return verify(stored, secret, kind)
        finally:
            with lock:
                seen.running -= 1

    with monkeypatch.context() as patch:
        patch.setattr("argon2._password_hasher.verify_secret", looked_on)
        try:
            yield seen
        finally:
            seen.gate.set()


def stored_hash(db_path: Path, username: str) -> str:
    [row] = rows(db_path, "SELECT password_hash FROM users WHERE username = ?", username)
    return str(row["password_hash"])


def store_hash(db_path: Path, username: str, password_hash: str) -> None:
    rows(db_path, "UPDATE users SET password_hash = ? WHERE username = ?", password_hash, username)


@pytest.fixture
async def anna(accounts: Accounts) -> User:
    """A user to log in as."""
    return await accounts.create("anna", PASSWORD)


async def test_a_user_has_an_id_a_name_a_date_and_a_table(
    accounts: Accounts, db_path: Path
) -> None:
    user = await accounts.create("anna", PASSWORD)
    [row] = rows(db_path, "SELECT * FROM users")
    assert (user.id, user.username, user.created_at) == (1, "anna", row["created_at"])
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", user.created_at)
    assert row["updated_at"] == row["created_at"]
    assert rows(db_path, "SELECT * FROM photos_user_1") == []
    assert await accounts.find("anna") == user
    assert await accounts.authenticate("anna", PASSWORD) == user


async def test_a_user_does_not_show_their_hash(anna: User, db_path: Path) -> None:
    assert anna.password_hash == stored_hash(db_path, "anna")
    assert anna.password_hash not in repr(anna)


async def test_no_password_lies_in_the_database_and_equal_ones_do_not_look_alike(
    accounts: Accounts, db_path: Path
) -> None:
    await accounts.create("anna", PASSWORD)
    await accounts.create("bert", PASSWORD)
    assert stored_hash(db_path, "anna") != stored_hash(db_path, "bert")
    contents = b"".join(path.read_bytes() for path in db_path.parent.iterdir())
    assert b"anna" in contents
    assert PASSWORD.encode() not in contents


async def test_hashes_are_argon2id_of_the_strength_that_owasp_asks(
    anna: User, db_path: Path
) -> None:
    # The Password Storage Cheat Sheet's equals: (memory in KiB, passes), one lane.
    owasp = [(47104, 1), (19456, 2), (12288, 3), (9216, 4), (7168, 5)]
    found = extract_parameters(stored_hash(db_path, "anna"))
    assert found.type is Type.ID
    assert found.version == 19
    assert found.salt_len >= 16
    assert found.hash_len >= 16
    assert any(found.memory_cost >= kib and found.time_cost >= n for kib, n in owasp), found


WRONG_CREDENTIALS = [
    ("anna", "Correct horse"),
    ("anna", PASSWORD + " "),
    ("anna", PASSWORD + "\0"),
    ("anna", PASSWORD[:-1]),
    ("anna", ""),
    ("Anna", PASSWORD),
    ("anna ", PASSWORD),
    ("anna\0", PASSWORD),
    ("ann", PASSWORD),
    ("", PASSWORD),
    ("' OR 1=1 --", PASSWORD),
    ("%", PASSWORD),
]


async def test_anything_but_the_name_and_its_password_is_refused_alike(
    accounts: Accounts, anna: User, subtests: pytest.Subtests
) -> None:
    for username, password in WRONG_CREDENTIALS:
        with subtests.test(username=username, password=password):
            with pytest.raises(Unauthorized) as refusal:
                await accounts.authenticate(username, password)
            assert refusal.value.message == REFUSED


async def test_an_unknown_user_costs_what_a_wrong_password_does(
    accounts: Accounts, anna: User, monkeypatch: pytest.MonkeyPatch, db_path: Path
) -> None:
    work = []
    for username in ("anna", "nobody"):
        with watched(monkeypatch) as seen, pytest.raises(Unauthorized):
            await accounts.authenticate(username, "a wrong password")
        work.append([extract_parameters(text) for text in seen.hashes])
        assert [name.partition("_")[0] for name in seen.threads] == ["argon2"]
    assert work == [[extract_parameters(stored_hash(db_path, "anna"))]] * 2


async def test_nobody_gets_in_as_the_user_that_does_not_exist(
    accounts: Accounts, monkeypatch: pytest.MonkeyPatch
) -> None:
    with watched(monkeypatch) as seen, pytest.raises(Unauthorized):
        await accounts.authenticate("nobody", "a password that nobody has")
    # It even is the password of the hash that is verified in a user's place.
    assert PasswordHasher().verify(seen.hashes[0], "a password that nobody has")


async def test_two_are_verified_at_once_while_the_server_answers_others(
    backup: Server, token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    api = Api(backup.address, token)
    with watched(monkeypatch, held=True) as seen:
        logins = [asyncio.create_task(api.login("admin", f"wrong {n}")) for n in range(6)]
        await seen.wait_for(2)
        # Both threads are taken, and more logins wait; nothing else does.
        assert (await api.call("GET", "/health")).status == 200
        assert (await api.status()).status == 200
        assert seen.running == 2
        assert not any(login.done() for login in logins)
        seen.gate.set()
        answers = await asyncio.gather(*logins)
    assert [answer.error for answer in answers] == [(401, "unauthorized", REFUSED)] * 6
    assert len(seen.hashes) == 6
    assert seen.most_at_once == 2


async def test_a_flood_is_verified_one_by_one_and_slowly(
    accounts: Accounts, anna: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    rests: list[float] = []
    monkeypatch.setattr("immich_bridge.backup.accounts.time", SimpleNamespace(sleep=rests.append))

    async def log_in(count: int) -> None:
        logins = (accounts.authenticate("anna", "wrong password") for _ in range(count))
        outcomes = await asyncio.gather(*logins, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [Unauthorized] * count

    await log_in(4)
    assert rests == []
    with watched(monkeypatch) as verifications:
        await log_in(20)
    assert len(verifications.hashes) == 20
    # All but those that found both threads free, and those behind whom only few waited.
    assert 12 <= len(rests) <= 18


WEAKER = {
    "memory": PasswordHasher(time_cost=1, memory_cost=8 * 1024, parallelism=1),
    "passes": PasswordHasher(time_cost=1, memory_cost=19 * 1024, parallelism=1),
    "kind": PasswordHasher(time_cost=2, memory_cost=19 * 1024, parallelism=1, type=Type.I),
}


@pytest.mark.parametrize("weaker", WEAKER.values(), ids=WEAKER)
async def test_a_login_renews_a_hash_of_other_parameters(
    accounts: Accounts, anna: User, db_path: Path, weaker: PasswordHasher
) -> None:
    todays = extract_parameters(stored_hash(db_path, "anna"))
    old = weaker.hash(PASSWORD)
    store_hash(db_path, "anna", old)
    with pytest.raises(Unauthorized):
        await accounts.authenticate("anna", "a wrong password")
    assert stored_hash(db_path, "anna") == old
    assert (await accounts.authenticate("anna", PASSWORD)).id == anna.id
    renewed = stored_hash(db_path, "anna")
    assert extract_parameters(renewed) == todays
    assert PasswordHasher().verify(renewed, PASSWORD)
    await accounts.authenticate("anna", PASSWORD)
    assert stored_hash(db_path, "anna") == renewed


async def test_a_password_that_was_reset_meanwhile_is_not_undone_by_a_login(
    accounts: Accounts, anna: User, db_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store_hash(db_path, "anna", PasswordHasher(time_cost=1, memory_cost=8192).hash(PASSWORD))
    with watched(monkeypatch, held=True) as seen:
        login = asyncio.create_task(accounts.authenticate("anna", PASSWORD))
        await seen.wait_for(1)
        await accounts.reset_password("anna", "a new password")
        seen.gate.set()
        with pytest.raises(Unauthorized):
            await login
    assert PasswordHasher().verify(stored_hash(db_path, "anna"), "a new password")


async def test_a_damaged_hash_lets_nobody_in(accounts: Accounts, anna: User, db_path: Path) -> None:
    for damaged in "", "plain text", PASSWORD, "$2b$12$" + "a" * 53:
        store_hash(db_path, "anna", damaged)
        with pytest.raises(Unauthorized):
            await accounts.authenticate("anna", PASSWORD)


NAMES = ["a", "x" * 64, "Anna Schmidt", "anna@example.org", "žofie", "小明", "👩", "o'hara; --"]


async def test_names_that_can_be_had(accounts: Accounts, subtests: pytest.Subtests) -> None:
    for username in NAMES:
        with subtests.test(username=username):
            user = await accounts.create(username, PASSWORD)
            assert user.username == username
            assert await accounts.find(username) == user


NO_NAMES = [
    "",
    "x" * 65,
    " anna",
    "anna ",
    "an\0na",
    "an\nna",
    "an\tna",
    "an\x1b[2Jna",
    "anna\u200b",
    "an\u202ena",
    "an\u2028na",
    "an\u00a0na",
    "an\x85na",
    SURROGATE,
    "\ufffe",
]


async def test_names_that_cannot_be_had(accounts: Accounts, subtests: pytest.Subtests) -> None:
    for username in NO_NAMES:
        with subtests.test(username=ascii(username)):
            with pytest.raises(AccountError) as refusal:
                await accounts.create(username, PASSWORD)
            assert str(refusal.value).isprintable()
    assert await accounts.all() == []


PASSWORDS = [
    "x" * MIN_PASSWORD_LENGTH,
    "x" * 1024,
    " " * 8,
    "pass\0word",
    "\0" * 8,
    "päßwörter",
    "密码密码密码密码",
    "line\nbreak\r\n",
    "👩‍👧👩‍👧👩‍👧",
    "\u202edrowssap",
]


async def test_passwords_that_can_be_had(
    accounts: Accounts, anna: User, subtests: pytest.Subtests
) -> None:
    for password in PASSWORDS:
        with subtests.test(password=ascii(password[:20])):
            await accounts.reset_password("anna", password)
            assert (await accounts.authenticate("anna", password)).id == anna.id
            # Every character counts, to the last and beyond a NUL.
            with pytest.raises(Unauthorized):
                await accounts.authenticate("anna", password[:-1])


NO_PASSWORDS = ["", "x" * 7, "密" * 7, "x" * 1025, SURROGATE * 8]


async def test_passwords_that_cannot_be_had(
    accounts: Accounts, anna: User, db_path: Path, subtests: pytest.Subtests
) -> None:
    before = rows(db_path, "SELECT * FROM users")
    for password in NO_PASSWORDS:
        with subtests.test(password=ascii(password[:20])):
            with pytest.raises(AccountError, match="a password"):
                await accounts.create("bert", password)
            with pytest.raises(AccountError, match="a password"):
                await accounts.reset_password("anna", password)
    assert rows(db_path, "SELECT * FROM users") == before


async def test_a_name_is_given_once(accounts: Accounts, anna: User, db_path: Path) -> None:
    before = rows(db_path, "SELECT * FROM users")
    with pytest.raises(AccountError, match="'anna'"):
        await accounts.create("anna", "another password")
    assert rows(db_path, "SELECT * FROM users") == before
    # Names are compared as they are written.
    assert (await accounts.create("Anna", PASSWORD)).id != anna.id


async def test_of_two_that_want_a_name_at_once_one_gets_it(accounts: Accounts) -> None:
    results = await asyncio.gather(
        *(accounts.create("anna", PASSWORD) for _ in range(4)), return_exceptions=True
    )
    made = [result for result in results if isinstance(result, User)]
    assert len(made) == 1
    assert all(isinstance(result, AccountError) for result in results if result not in made)
    assert await accounts.all() == made


async def test_users_are_listed_oldest_first(accounts: Accounts) -> None:
    assert await accounts.all() == []
    made = [await accounts.create(name, PASSWORD) for name in ("carla", "anna", "bert")]
    assert await accounts.all() == made


async def test_a_reset_changes_one_password_and_its_date(
    accounts: Accounts, anna: User, db_path: Path
) -> None:
    bert = await accounts.create("bert", PASSWORD)
    rows(db_path, "UPDATE users SET created_at = '2020-01-01T00:00:00Z', updated_at = created_at")
    await accounts.reset_password("anna", "a new password")
    with pytest.raises(Unauthorized):
        await accounts.authenticate("anna", PASSWORD)
    assert (await accounts.authenticate("anna", "a new password")).id == anna.id
    assert (await accounts.authenticate("bert", PASSWORD)).id == bert.id
    [row] = rows(db_path, "SELECT * FROM users WHERE username = 'anna'")
    assert row["created_at"] == "2020-01-01T00:00:00Z"
    assert row["updated_at"] > row["created_at"]


async def test_who_is_not_there_can_be_neither_found_reset_nor_deleted(
    accounts: Accounts, anna: User, db_path: Path
) -> None:
    before = rows(db_path, "SELECT * FROM users")
    for attempt in (
        accounts.find("bert"),
        accounts.reset_password("bert", PASSWORD),
        accounts.delete("bert"),
    ):
        with pytest.raises(AccountError, match="there is no user 'bert'"):
            await attempt
    assert rows(db_path, "SELECT * FROM users") == before


async def test_an_id_is_never_given_twice(accounts: Accounts, anna: User, db_path: Path) -> None:
    await accounts.delete("anna")
    assert await accounts.all() == []
    with pytest.raises(Unauthorized):
        await accounts.authenticate("anna", PASSWORD)
    # The photos of the one before, and their table, are not the newcomer's.
    assert rows(db_path, "SELECT * FROM photos_user_1") == []
    again = await accounts.create("anna", PASSWORD)
    assert again.id == anna.id + 1
    assert rows(db_path, "SELECT * FROM photos_user_2") == []


async def test_hashing_threads_end_with_the_accounts(accounts: Accounts, anna: User) -> None:
    def hashing() -> list[threading.Thread]:
        return [t for t in threading.enumerate() if t.name.startswith("argon2")]

    threads = hashing()
    assert threads
    accounts.close()
    for thread in threads:
        await asyncio.to_thread(thread.join, PATIENCE)
    assert hashing() == []
