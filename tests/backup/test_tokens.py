"""Login tokens: what is in them, which ones count, and the key that signs them."""

import asyncio
import base64
import hashlib
import json
import multiprocessing
import re
import stat
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import jwt
import pytest

from backup_wing import PASSWORD, USERNAME, Api, Login, StartBackup, StartBackupProcess, rows
from immich_bridge.backup.accounts import Accounts, User
from immich_bridge.backup.database import Database
from immich_bridge.backup.tokens import KEY_BYTES, KeyFileError, Session, Token, Tokens, load_key

KEY = bytes(range(KEY_BYTES))
TTL = 3600.0
GONE = (401, "unauthorized", "token not found or expired")
# The key's owner could sign any claims; only a listed token reaches the checks beyond.
FAR = 4_000_000_000


@pytest.fixture
async def anna(database: Database) -> User:
    """A user without a password: tokens know nothing of it."""
    return await add_user(database, "anna")


@pytest.fixture
def tokens(database: Database) -> Tokens:
    """The tokens of the database file, signed with `KEY`."""
    return Tokens(database, KEY, TTL)


async def add_user(database: Database, username: str) -> User:
    user_id = await database.write(
        lambda db: (
            db.execute(
                "INSERT INTO users (username, password_hash, created_at, updated_at)"
                " VALUES (?, '', '', '')",
                (username,),
            ).lastrowid
        )
    )
    assert user_id is not None
    return User(user_id, username, "", "")


async def issued(tokens: Tokens, user: User) -> Token:
    token = await tokens.issue(user)
    assert token is not None
    return token


def digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


async def put_in_list(database: Database, text: str, user_id: int, expires_at: int = FAR) -> None:
    """List a token that was not issued, so that nothing but the checks before can refuse it."""
    await database.write(
        lambda db: (
            db.execute(
                "INSERT INTO tokens VALUES (?, ?, ?, '')", (digest(text), user_id, expires_at)
            ).rowcount
        )
    )


def claims_of(user: User, **changes: object) -> dict[str, object]:
    """The claims of a token of `user` that counts; with a None of one that lacks the claim."""
    now = int(time.time())
    claims: dict[str, object] = {
        "user_id": user.id,
        "username": user.username,
        "iat": now,
        "exp": now + 60,
        "jti": "any",
        **changes,
    }
    return {name: value for name, value in claims.items() if value is not None}


def unpadded(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


def part(value: object) -> str:
    return unpadded(json.dumps(value).encode())


def signed(claims: object, key: bytes = KEY, algorithm: str = "HS256") -> str:
    """A token made by hand: PyJWT would refuse to write some of these claims."""
    head = part({"alg": algorithm, "typ": "JWT"})
    text = f"{head}.{part(claims)}"
    signature = jwt.get_algorithm_by_name(algorithm).sign(text.encode(), key)
    return f"{text}.{unpadded(signature)}"


async def test_a_token_has_exactly_the_claims_of_the_api(tokens: Tokens, anna: User) -> None:
    before = int(time.time())
    token = await issued(tokens, anna)
    after = int(time.time())
    assert jwt.get_unverified_header(token.text) == {"alg": "HS256", "typ": "JWT"}
    claims = jwt.decode(token.text, KEY, algorithms=["HS256"])
    assert set(claims) == {"user_id", "username", "exp", "iat", "jti"}
    assert (claims["user_id"], claims["username"]) == (anna.id, "anna")
    assert type(claims["iat"]) is int
    assert before <= claims["iat"] <= after
    assert claims["exp"] == claims["iat"] + TTL
    assert len(claims["jti"]) >= 16
    # RFC 3339 with the server's own offset, and the same moment as in the claims.
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d\d:\d\d", token.expires_at)
    assert datetime.fromisoformat(token.expires_at).timestamp() == claims["exp"]


async def test_two_tokens_of_one_second_are_two(tokens: Tokens, anna: User, db_path: Path) -> None:
    twenty = await asyncio.gather(*(issued(tokens, anna) for _ in range(20)))
    assert len({token.text for token in twenty}) == 20
    assert len(rows(db_path, "SELECT * FROM tokens")) == 20


async def test_the_sha256_of_a_token_is_stored_and_never_the_token(
    tokens: Tokens, anna: User, db_path: Path
) -> None:
    token = await issued(tokens, anna)
    exp = jwt.decode(token.text, KEY, algorithms=["HS256"])["exp"]
    [row] = rows(db_path, "SELECT * FROM tokens")
    assert row["token_hash"] == digest(token.text)
    assert (row["user_id"], row["expires_at"]) == (anna.id, exp)
    contents = b"".join(path.read_bytes() for path in db_path.parent.iterdir())
    assert digest(token.text) in contents
    for piece in token.text.split("."):
        assert piece.encode() not in contents


async def test_a_token_counts_while_it_is_signed_alive_and_listed(
    tokens: Tokens, anna: User, database: Database
) -> None:
    # What every forgery below differs from in one point.
    text = signed(claims_of(anna))
    assert await tokens.check(text) is None
    await put_in_list(database, text, anna.id)
    assert await tokens.check(text) == Session(anna.id, "anna")
    assert await tokens.refresh(text) is not None


Forge = Callable[[User], str]

FORGERIES: dict[str, Forge] = {
    "alg none, unsigned": lambda user: (
        part({"alg": "none", "typ": "JWT"}) + "." + part(claims_of(user)) + "."
    ),
    "alg none, signed": lambda user: signed(claims_of(user)).replace(
        part({"alg": "HS256", "typ": "JWT"}), part({"alg": "none", "typ": "JWT"})
    ),
    "no alg": lambda user: signed(claims_of(user)).replace(
        part({"alg": "HS256", "typ": "JWT"}), part({"typ": "JWT"})
    ),
    "HS384 with our key": lambda user: signed(claims_of(user), algorithm="HS384"),
    "HS512 with our key": lambda user: signed(claims_of(user), algorithm="HS512"),
    "another key": lambda user: signed(claims_of(user), KEY[::-1]),
    "an empty key": lambda user: signed(claims_of(user), b""),
    "no signature": lambda user: signed(claims_of(user)).rpartition(".")[0] + ".",
    "half a signature": lambda user: signed(claims_of(user))[:-20],
    "other claims under a signature": lambda user: ".".join(
        [
            signed(claims_of(user)).split(".")[0],
            part(claims_of(user, exp=FAR)),
            signed(claims_of(user)).split(".")[2],
        ]
    ),
    "expired": lambda user: signed(claims_of(user, exp=int(time.time()) - 1)),
    "expires now": lambda user: signed(claims_of(user, exp=int(time.time()))),
    "from the future": lambda user: signed(claims_of(user, iat=int(time.time()) + 30)),
    "not valid yet": lambda user: signed(claims_of(user, nbf=int(time.time()) + 30)),
    "without user_id": lambda user: signed(claims_of(user, user_id=None)),
    "without username": lambda user: signed(claims_of(user, username=None)),
    "without exp": lambda user: signed(claims_of(user, exp=None)),
    "without iat": lambda user: signed(claims_of(user, iat=None)),
    "without jti": lambda user: signed(claims_of(user, jti=None)),
    "user_id a string": lambda user: signed(claims_of(user, user_id=str(user.id))),
    "user_id a float": lambda user: signed(claims_of(user, user_id=float(user.id))),
    "user_id a bool": lambda user: signed(claims_of(user, user_id=True)),
    "user_id a list": lambda user: signed(claims_of(user, user_id=[user.id])),
    "user_id of no SQLite integer": lambda user: signed(claims_of(user, user_id=2**70)),
    "username a number": lambda user: signed(claims_of(user, username=1)),
    "username a list": lambda user: signed(claims_of(user, username=["anna"])),
    "exp a word": lambda user: signed(claims_of(user, exp="tomorrow")),
    "exp a list": lambda user: signed(claims_of(user, exp=[FAR])),
    "exp endless": lambda user: signed(claims_of(user, exp=float("inf"))),
    "exp no number": lambda user: signed(claims_of(user, exp=float("nan"))),
    "iat a word": lambda user: signed(claims_of(user, iat="yesterday")),
    "iat endless": lambda user: signed(claims_of(user, iat=float("inf"))),
    "jti a number": lambda user: signed(claims_of(user, jti=1)),
    "claims a list": lambda user: signed([claims_of(user)]),
    "claims no JSON": lambda user: signed(claims_of(user)).split(".")[0] + ".e30x.AAAA",
    "huge": lambda user: signed(claims_of(user, jti="x" * 100_000)),
    "deep": lambda user: "eyJhbGciOiJIUzI1NiJ9." + unpadded(b"[" * 2500) + ".AAAA",
    "empty": lambda user: "",
    "dots": lambda user: "..",
    "a word": lambda user: "token",
    "five parts": lambda user: signed(claims_of(user)) + ".AAAA.AAAA",
    "not ASCII": lambda user: "žeton.žeton.žeton",
    "a lone surrogate": lambda user: "\udce9.\udce9.\udce9",
    "NUL": lambda user: signed(claims_of(user)) + "\0",
    "with a space": lambda user: signed(claims_of(user)) + " ",
}


async def test_no_other_token_counts_even_if_it_is_listed(
    tokens: Tokens, anna: User, database: Database, db_path: Path, subtests: pytest.Subtests
) -> None:
    for name, forge in FORGERIES.items():
        with subtests.test(name=name):
            text = forge(anna)
            if name != "a lone surrogate":  # which has no digest to list it by
                await put_in_list(database, text, anna.id)
            before = rows(db_path, "SELECT * FROM tokens")
            assert await tokens.check(text) is None
            assert await tokens.refresh(text) is None
            assert rows(db_path, "SELECT * FROM tokens") == before


async def test_a_token_is_of_the_user_it_was_listed_for(
    tokens: Tokens, anna: User, database: Database, db_path: Path
) -> None:
    bert = await add_user(database, "bert")
    text = signed(claims_of(anna, user_id=bert.id))
    await put_in_list(database, text, anna.id)
    assert await tokens.check(text) is None
    assert await tokens.refresh(text) is None
    assert len(rows(db_path, "SELECT * FROM tokens")) == 1


async def test_the_list_has_its_own_word_on_when_a_token_ends(
    tokens: Tokens, anna: User, database: Database
) -> None:
    text = signed(claims_of(anna))
    await put_in_list(database, text, anna.id, expires_at=int(time.time()))
    assert await tokens.check(text) is None
    assert await tokens.refresh(text) is None


async def test_a_token_that_counted_before_ends_when_its_time_has_come(
    tokens: Tokens, anna: User, database: Database
) -> None:
    token = await issued(tokens, anna)
    assert await tokens.check(token.text) == Session(anna.id, "anna")
    await database.write(lambda db: db.execute("UPDATE tokens SET expires_at = 1").rowcount)
    assert await tokens.check(token.text) is None
    assert await tokens.refresh(token.text) is None


async def test_a_token_of_the_future_counts_once_its_time_has_come(
    tokens: Tokens, anna: User, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = signed(claims_of(anna, iat=int(time.time()) + 3600))
    await put_in_list(database, text, anna.id)
    assert await tokens.check(text) is None
    monkeypatch.setattr("jwt.PyJWT._validate_iat", lambda *_: None)  # the clock is set right
    assert await tokens.check(text) == Session(anna.id, "anna")


async def test_a_refresh_swaps_the_token(tokens: Tokens, anna: User, db_path: Path) -> None:
    old = await issued(tokens, anna)
    other = await issued(tokens, anna)
    new = await tokens.refresh(old.text)
    assert new is not None
    assert await tokens.check(old.text) is None
    assert await tokens.check(new.text) == Session(anna.id, "anna")
    assert await tokens.check(other.text) == Session(anna.id, "anna")
    assert await tokens.refresh(old.text) is None
    listed = {row["token_hash"] for row in rows(db_path, "SELECT * FROM tokens")}
    assert listed == {digest(new.text), digest(other.text)}


async def test_of_twenty_refreshes_of_one_token_one_wins(
    start_backup: StartBackup, user: User, login: Login, db_path: Path
) -> None:
    # Two servers on one file, as while one replaces the other: the swap is the database's.
    servers = [await start_backup(), await start_backup()]
    token = await login(servers[0], USERNAME, PASSWORD)
    answers = await asyncio.gather(
        *(Api(servers[n % 2].address, token).refresh() for n in range(20))
    )
    won = [answer for answer in answers if answer.status == 200]
    assert len(won) == 1
    assert [answer.error for answer in answers if answer not in won] == [GONE] * 19
    new = won[0].json["token"]
    assert (await Api(servers[1].address, new).status()).status == 200
    assert (await Api(servers[1].address, token).status()).error == GONE
    assert [row["token_hash"] for row in rows(db_path, "SELECT * FROM tokens")] == [digest(new)]


async def test_a_reset_ends_the_tokens_of_its_user_alone(
    tokens: Tokens, accounts: Accounts, anna: User, database: Database
) -> None:
    bert = await add_user(database, "bert")
    annas = [await issued(tokens, anna), await issued(tokens, anna)]
    berts = await issued(tokens, bert)
    await accounts.reset_password("anna", "a new password")
    assert [await tokens.check(token.text) for token in annas] == [None, None]
    assert await tokens.refresh(annas[0].text) is None
    assert await tokens.check(berts.text) == Session(bert.id, "bert")


async def test_deleting_a_user_ends_their_tokens_alone(
    tokens: Tokens, accounts: Accounts, anna: User, database: Database, db_path: Path
) -> None:
    bert = await add_user(database, "bert")
    annas, berts = await issued(tokens, anna), await issued(tokens, bert)
    await accounts.delete("anna")
    assert await tokens.check(annas.text) is None
    assert await tokens.refresh(annas.text) is None
    assert await tokens.check(berts.text) == Session(bert.id, "bert")
    assert [row["user_id"] for row in rows(db_path, "SELECT * FROM tokens")] == [bert.id]


async def test_no_token_is_issued_for_a_password_that_is_no_longer_the_users(
    tokens: Tokens, accounts: Accounts, db_path: Path
) -> None:
    verified = await accounts.create("anna", "a password")
    await accounts.reset_password("anna", "a new password")
    assert await tokens.issue(verified) is None
    verified = await accounts.authenticate("anna", "a new password")
    assert await tokens.issue(verified) is not None
    await accounts.delete("anna")
    assert await tokens.issue(verified) is None
    assert rows(db_path, "SELECT * FROM tokens") == []


async def test_sweeping_forgets_the_expired_alone(
    tokens: Tokens, anna: User, database: Database, db_path: Path
) -> None:
    alive = await issued(tokens, anna)
    now = int(time.time())
    for n, expires_at in enumerate((1, now - 1, now)):
        await put_in_list(database, f"old {n}", anna.id, expires_at)
    assert await tokens.sweep() == 3
    assert await tokens.sweep() == 0
    [row] = rows(db_path, "SELECT * FROM tokens")
    assert row["token_hash"] == digest(alive.text)


async def test_a_server_sweeps_when_it_starts(
    database: Database, start_backup: StartBackup, user: User, login: Login, db_path: Path
) -> None:
    await put_in_list(database, "old", user.id, 1)
    server = await start_backup()
    # Writes of a server are made one after the other, and the sweep is its first.
    token = await login(server, USERNAME, PASSWORD)
    assert [row["token_hash"] for row in rows(db_path, "SELECT * FROM tokens")] == [digest(token)]


def test_a_key_file_is_made_with_256_bits_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "a" / "folder" / "key"
    key = load_key(None, path)
    assert len(key) == KEY_BYTES == 32
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.read_text() == key.hex() + "\n"
    assert load_key(None, path) == key
    assert list(path.parent.iterdir()) == [path], "nothing else is left"
    assert load_key(None, tmp_path / "another") != key


@pytest.mark.parametrize(
    ("content", "key"),
    [
        (KEY.hex().encode(), KEY),
        (KEY.hex().upper().encode() + b"\r\n", KEY),
        (b"k" * 32, b"k" * 32),
        (b"  " + b"k" * 32 + b"\n", b"k" * 32),
        (b"any words of thirty-two characters or more\n", None),
        # Bytes as they are: one in twenty keys begins or ends with what looks like a space.
        (b"\n" + bytes(range(200, 230)) + b" ", b"\n" + bytes(range(200, 230)) + b" "),
        (bytes(range(200, 240)), bytes(range(200, 240))),
    ],
)
def test_a_key_that_the_operator_made_counts_as_it_is(
    tmp_path: Path, content: bytes, key: bytes | None
) -> None:
    path = tmp_path / "key"
    path.write_bytes(content)
    path.chmod(0o640)
    assert load_key(None, path) == (key or content.strip())
    assert path.read_bytes() == content
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


@pytest.mark.parametrize(
    "content", [b"", b"\n", b"k" * 31, b"k" * 31 + b"\n", b" " * 40, b"ab" * 31, b"\xff" * 31]
)
def test_a_key_of_fewer_bits_is_refused_and_kept(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "key"
    path.write_bytes(content)
    with pytest.raises(KeyFileError, match=r"JWT_SECRET_PATH: .*/key holds fewer than 256 bits"):
        load_key(None, path)
    assert path.read_bytes() == content


def test_a_key_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere" / "key")
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    (tmp_path / "file").write_text("")
    for path in ("folder", "dangling", "circle", "file/key"):
        with pytest.raises(KeyFileError, match=f"JWT_SECRET_PATH: .*/{path} cannot be used"):
            load_key(None, tmp_path / path)
    assert {path.name for path in tmp_path.iterdir()} == {"folder", "dangling", "circle", "file"}


def test_the_key_in_the_environment_wins_and_no_file_is_made(tmp_path: Path) -> None:
    path = tmp_path / "key"
    assert load_key("ž" * 32, path) == "ž".encode() * 32
    assert not path.exists()
    path.write_text("too short")
    assert load_key("s" * 32, path) == b"s" * 32


def test_the_key_is_of_a_strength_that_pyjwt_does_not_warn_of() -> None:
    # Warnings are errors here: with a shorter key this one would be raised.
    assert jwt.decode(signed({}), KEY, algorithms=["HS256"]) == {}
    with pytest.raises(jwt.InsecureKeyLengthWarning):
        jwt.decode(signed({}, KEY[:-1]), KEY[:-1], algorithms=["HS256"])


def _load_at_once(path: Path, barrier: Any, answers: Any) -> None:
    barrier.wait()
    answers.put(load_key(None, path))


def test_processes_that_start_at_once_share_one_key(tmp_path: Path) -> None:
    # Forked, so that all of them stand before the file within microseconds.
    context = multiprocessing.get_context("fork")
    for attempt in range(5):
        path = tmp_path / str(attempt) / "key"
        barrier, answers = context.Barrier(8), context.SimpleQueue()
        processes = [
            context.Process(target=_load_at_once, args=(path, barrier, answers)) for _ in range(8)
        ]
        for process in processes:
            process.start()
        keys = {answers.get() for _ in processes}
        for process in processes:
            process.join()
        assert keys == {bytes.fromhex(path.read_text())}
        assert list(path.parent.iterdir()) == [path]


async def test_two_servers_that_start_at_once_take_each_others_tokens(
    start_backup_process: StartBackupProcess, user: User, tmp_path: Path
) -> None:
    first, second = await asyncio.gather(start_backup_process(), start_backup_process())
    answer = await Api(first.url).login(USERNAME, PASSWORD)
    assert (await Api(second.url, answer.json["token"]).status()).json == {
        "status": "online",
        "user_id": 1,
        "username": "admin",
    }


async def test_a_token_of_one_key_is_nothing_to_a_server_with_another(
    start_backup: StartBackup, user: User, login: Login
) -> None:
    one = await start_backup()
    other = await start_backup(JWT_SECRET="x" * 32)
    token = await login(one, USERNAME, PASSWORD)
    assert (await Api(one.address, token).status()).status == 200
    assert (await Api(other.address, token).status()).error == GONE
    # The environment's key signs what that server issues.
    theirs = await login(other, USERNAME, PASSWORD)
    assert jwt.decode(theirs, b"x" * 32, algorithms=["HS256"])["username"] == "admin"
    assert (await Api(one.address, theirs).status()).error == GONE


async def test_a_token_lives_as_long_as_the_setting_says(
    start_backup: StartBackup, user: User, login: Login
) -> None:
    for setting, seconds in ({}, 7 * 86400), ({"TOKEN_TTL": "90m"}, 5400):
        server = await start_backup(**setting)
        token = await login(server, USERNAME, PASSWORD)
        claims = jwt.decode(token, options={"verify_signature": False})
        assert claims["exp"] - claims["iat"] == seconds


async def test_expires_at_has_the_offset_of_the_server(
    tokens: Tokens, anna: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def issue_in(zone: str) -> Token:
        monkeypatch.setenv("TZ", zone)
        time.tzset()
        return await issued(tokens, anna)

    try:
        token = await issue_in("UTC-8")  # as POSIX writes what everybody else calls +08:00
        assert token.expires_at.endswith("+08:00")
        exp = jwt.decode(token.text, KEY, algorithms=["HS256"])["exp"]
        assert datetime.fromisoformat(token.expires_at).timestamp() == exp
        assert (await issue_in("UTC+3:30")).expires_at.endswith("-03:30")
    finally:
        monkeypatch.undo()
        time.tzset()


async def test_a_login_that_a_new_password_overtakes_gets_no_token(
    accounts: Accounts, database: Database
) -> None:
    await accounts.create("anna", "OldPassword1")
    tokens = Tokens(database, bytes(32), 3600)
    verified = await accounts.authenticate("anna", "OldPassword1")
    await accounts.reset_password("anna", "NewPassword1")
    assert await tokens.issue(verified) is None
    gone = await accounts.authenticate("anna", "NewPassword1")
    await accounts.delete("anna")
    assert await tokens.issue(gone) is None
