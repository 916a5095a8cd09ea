"""`/login`, `/refresh`, `/status` on the wire: what they take, and what they answer to the rest."""

import asyncio
import json
import re
from datetime import datetime
from pathlib import Path

import jwt
import pytest
from argon2 import PasswordHasher

from backup_wing import PASSWORD, USERNAME, Api, MakeUser, StartBackup, rows
from immich_bridge.backup.accounts import Accounts, User
from immich_bridge.serve import Server
from wire import PATIENCE, Message, chunked, connect, fetch, request

INVALID_FORMAT = (400, "bad_request", "Invalid request format")
INVALID_CREDENTIALS = (401, "unauthorized", "invalid credentials")
NO_HEADER = (401, "unauthorized", "Authorization header is required")
BAD_HEADER = (401, "unauthorized", "Invalid authorization header format")
GONE = (401, "unauthorized", "token not found or expired")
TOO_LARGE = (413, "payload_too_large", "the body is larger than 16384 bytes")

LOGIN = json.dumps({"username": USERNAME, "password": PASSWORD}).encode()
JSON = ("Content-Type", "application/json")


@pytest.fixture
def anybody(backup: Server) -> Api:
    """A client that has not logged in."""
    return Api(backup.address)


async def test_login_gives_a_token_and_says_when_it_ends(anybody: Api, user: User) -> None:
    answer = await anybody.login(USERNAME, PASSWORD)
    assert answer.status == 200
    assert set(answer.json) == {"token", "expires_at"}
    claims = jwt.decode(answer.json["token"], options={"verify_signature": False})
    assert (claims["user_id"], claims["username"]) == (user.id, USERNAME)
    assert datetime.fromisoformat(answer.json["expires_at"]).timestamp() == claims["exp"]
    # RFC 6750 5.3: tokens are not for caches.
    assert answer.header("Cache-Control") == "no-store"
    assert re.fullmatch(r"[0-9a-f]{32}", answer.header("X-Request-Id") or "")


WRONG_CREDENTIALS = [
    (USERNAME, "wrong password"),
    ("nobody", PASSWORD),
    (USERNAME, "x"),
    (USERNAME + "\0", PASSWORD),
    (USERNAME, PASSWORD + "\0"),
    (USERNAME.upper(), PASSWORD),
    ("x" * 8000, "x" * 8000),
    ("žofie", "密码"),
]


async def test_whatever_is_wrong_with_the_credentials_the_answer_is_one(
    anybody: Api, db_path: Path, subtests: pytest.Subtests
) -> None:
    for username, password in WRONG_CREDENTIALS:
        with subtests.test(username=username[:20], password=password[:20]):
            answer = await anybody.login(username, password)
            assert answer.error == INVALID_CREDENTIALS
            assert {name.lower() for name, _ in answer.message.headers} == {
                *(b"content-type", b"content-length", b"date", b"server"),
                *(b"x-request-id", b"x-bridge-error", b"www-authenticate"),
            }
    assert rows(db_path, "SELECT * FROM tokens") == []


async def test_credentials_of_any_script_pass(anybody: Api, make_user: MakeUser) -> None:
    user = await make_user("žofie 小明 😀", 'pä"ß\\wort\0\n😀')
    answer = await anybody.login("žofie 小明 😀", 'pä"ß\\wort\0\n😀')
    assert (await Api(anybody.url, answer.json["token"]).status()).json == {
        "status": "online",
        "user_id": user.id,
        "username": "žofie 小明 😀",
    }


NO_LOGINS = [
    b"",
    b"not json",
    b"{",
    LOGIN[:-1],
    LOGIN + b"}",
    LOGIN + LOGIN,
    b"null",
    b"[]",
    b'"a string"',
    b"17",
    b"[" + LOGIN + b"]",
    b"{}",
    b'{"username": "admin"}',
    b'{"password": "SecurePassword123"}',
    b'{"Username": "admin", "Password": "SecurePassword123"}',
    b'{"username": "", "password": "SecurePassword123"}',
    b'{"username": "admin", "password": ""}',
    b'{"username": null, "password": null}',
    b'{"username": 1, "password": "SecurePassword123"}',
    b'{"username": "admin", "password": 12345678}',
    b'{"username": true, "password": true}',
    b'{"username": ["admin"], "password": "SecurePassword123"}',
    b'{"username": {"$ne": ""}, "password": {"$ne": ""}}',
    b"username=admin&password=SecurePassword123",
    # No Unicode: a surrogate as an escape, and as the bytes it would have.
    rb'{"username": "\ud800", "password": "SecurePassword123"}',
    rb'{"username": "admin", "password": "\udfff\ud800"}',
    rb'{"username": "admin", "password": "SecurePassword123", "more": "\ud800"}',
    rb'{"username": "admin", "password": "SecurePassword123", "\udc00": 1}',
    b'{"username": "\xed\xa0\x80", "password": "SecurePassword123"}',
    b'{"username": "admin", "password": "\xed\xb0\x80"}',
    # No UTF-8.
    b'{"username": "caf\xe9", "password": "SecurePassword123"}',
    b'{"username": "\xc0\xaf", "password": "SecurePassword123"}',
    LOGIN.decode().encode("utf-16"),
    LOGIN.decode().encode("utf-16-be"),
    LOGIN.decode().encode("utf-32"),
    '{"username": "\ud800", "password": "x"}'.encode("utf-16-le", "surrogatepass"),
    # More than a parser should try.
    b"[" * 8000,
    b'{"a":' * 3000,
    b'{"username": ' + b"9" * 5000 + b"}",
    b'{"username": "admin", "password": "Secure\nPassword123"}',
    b'{"username": "admin", "password": "SecurePassword123",}',
    b"\0" * 100,
]


async def test_a_body_that_is_no_login_is_a_bad_request(
    anybody: Api, db_path: Path, subtests: pytest.Subtests
) -> None:
    for body in NO_LOGINS:
        with subtests.test(body=body[:60]):
            assert (await anybody.post_json("/login", body)).error == INVALID_FORMAT
    assert rows(db_path, "SELECT * FROM tokens") == []


LOGINS = [
    LOGIN,
    b" \r\n\t" + LOGIN + b"\n",
    rb'{"username": "\u0061dmin", "password": "SecurePassword123", "more": [1.5, null]}',
    rb'{"username": "admin", "password": "SecurePassword123", "emoji": "\ud83d\ude00"}',
    b'{"username": "nobody", "username": "admin", "password": "SecurePassword123"}',
]


async def test_a_login_is_understood_by_its_body(anybody: Api, subtests: pytest.Subtests) -> None:
    for body in LOGINS:
        with subtests.test(body=body):
            assert (await anybody.post_json("/login", body)).status == 200
    for content_type in (), (("Content-Type", "text/plain"),):
        assert (await anybody.call("POST", "/login", *content_type, body=LOGIN)).status == 200


async def test_a_login_of_unannounced_length_is_one(backup: Server) -> None:
    headers = (JSON, ("Transfer-Encoding", "chunked"))
    answer = await fetch(
        backup.address, "POST", "/login", *headers, body=chunked(LOGIN[:10], LOGIN[10:])
    )
    assert answer.status == 200


def padded(size: int) -> bytes:
    """A login of `size` bytes."""
    return LOGIN + b" " * (size - len(LOGIN))


async def test_sixteen_kibibytes_of_login_are_enough(anybody: Api, backup: Server) -> None:
    assert (await anybody.post_json("/login", padded(16384))).status == 200
    assert (await anybody.post_json("/login", padded(16385))).error == TOO_LARGE
    headers = (JSON, ("Transfer-Encoding", "chunked"))
    answer = await fetch(backup.address, "POST", "/login", *headers, body=chunked(padded(16385)))
    assert (answer.status, json.loads(answer.body)["error"]) == (413, "payload_too_large")


async def test_a_body_that_announces_too_much_is_refused_unread(backup: Server) -> None:
    async with connect(backup.address) as peer:
        await peer.send(request("POST", "/login", JSON, ("Content-Length", str(10**15))))
        answer = await peer.read_answer()
    assert (answer.status, json.loads(answer.body)["error"]) == (413, "payload_too_large")
    assert answer.header("Connection") == "close"


async def test_a_client_that_waits_to_be_invited_is(backup: Server) -> None:
    async with connect(backup.address) as peer:
        expect = ("Expect", "100-continue")
        await peer.send(request("POST", "/login", expect, ("Content-Length", str(len(LOGIN)))))
        assert (await peer.read_head()).first_line == b"HTTP/1.1 100 Continue"
        await peer.send(LOGIN)
        assert (await peer.read_answer()).status == 200
    async with connect(backup.address) as peer:
        await peer.send(request("POST", "/login", expect, ("Content-Length", "16385")))
        answer = await peer.read_answer()
        assert (answer.status, answer.interim) == (413, [])


async def test_status_and_refresh_of_one_token(api: Api, user: User) -> None:
    online = {"status": "online", "user_id": user.id, "username": USERNAME}
    assert (await api.status()).json == online
    assert (await api.status()).json == online
    refreshed = await api.refresh()
    assert refreshed.status == 200
    assert set(refreshed.json) == {"token", "expires_at"}
    assert refreshed.header("Cache-Control") == "no-store"
    assert (await api.status()).error == GONE
    assert (await api.refresh()).error == GONE
    renewed = Api(api.url, refreshed.json["token"])
    assert (await renewed.status()).json == online


async def test_a_refresh_asks_nothing_of_its_body(api: Api) -> None:
    for body in b"", b"{}", b"null", b"not json", b'{"token": "x"}':
        answer = await api.post_json("/refresh", body)
        assert answer.status == 200, body
        api = Api(api.url, answer.json["token"])


ROUTES = [("GET", "/status"), ("POST", "/refresh")]


NO_TOKENS = [
    (None, NO_HEADER),
    ("Bearer", BAD_HEADER),
    ("Bearer ", BAD_HEADER),
    ("Bearer    ", BAD_HEADER),
    ("{token}", BAD_HEADER),
    ("Basic YWRtaW46eA==", BAD_HEADER),
    ("Basic {token}", BAD_HEADER),
    ("Token {token}", BAD_HEADER),
    ("JWT {token}", BAD_HEADER),
    ("Bearer{token}", BAD_HEADER),
    ("Bearer:{token}", BAD_HEADER),
    ("Bearer\t{token}", BAD_HEADER),
    ("Bearer {token} more", BAD_HEADER),
    ("Bearer {token} {token}", BAD_HEADER),
    ("Bearer Bearer {token}", BAD_HEADER),
    ("Bearer x", GONE),
    ("Bearer {token}x", GONE),
    ("Bearer {token},", GONE),
    ('Bearer "{token}"', GONE),
    ("Bearer žeton", GONE),
    ("Bearer \udce9\udcff", GONE),
    ("Bearer " + "x" * 20_000, GONE),
]


async def test_what_is_no_token_of_ours_is_refused(api: Api, subtests: pytest.Subtests) -> None:
    for method, target in ROUTES:
        for form, error in NO_TOKENS:
            with subtests.test(target=target, form=form and form[:30]):
                value = form and form.replace("{token}", api.token or "")
                headers = [("Authorization", value)] if value else []
                answer = await Api(api.url).call(method, target, *headers)
                assert answer.error == error
                assert answer.header("WWW-Authenticate") == "Bearer"
    # The token itself is still what it was.
    assert (await api.status()).status == 200


async def test_the_scheme_may_be_written_in_any_case(api: Api, subtests: pytest.Subtests) -> None:
    for form in "Bearer {}", "bearer {}", "BEARER {}", "bEaReR {}", "Bearer   {}", "  Bearer {}  ":
        with subtests.test(form=form):
            header = ("authorization", form.format(api.token))
            assert (await Api(api.url).call("GET", "/status", header)).status == 200


async def test_a_token_counts_nowhere_but_in_its_header(api: Api) -> None:
    anybody = Api(api.url)
    for target in (f"/status?token={api.token}", f"/status?access_token={api.token}"):
        assert (await anybody.call("GET", target)).error == NO_HEADER
    cookie = ("Cookie", f"token={api.token}; Authorization=Bearer {api.token}")
    assert (await anybody.call("GET", "/status", cookie)).error == NO_HEADER


async def test_the_photo_routes_have_words_of_their_own_for_a_token_that_is_gone(
    api: Api,
) -> None:
    gone = Api(api.url, "x")
    for target in ("index", "upload", "upload/stream", "upload/chunk"):
        path = f"/photos/{target}"
        assert (await gone.post_json(path, {})).error == (401, "unauthorized", "Token not found")
        assert (await Api(api.url).post_json(path, {})).error == NO_HEADER
        basic = ("Authorization", "Basic eDp5")
        assert (await Api(api.url).post_json(path, {}, basic)).error == BAD_HEADER


NOT_OURS = [
    ("GET", "/login"),
    ("PUT", "/login"),
    ("OPTIONS", "/login"),
    ("POST", "/login/"),
    ("POST", "//login"),
    ("POST", "/Login"),
    ("POST", "/api/login"),
    ("GET", "/refresh"),
    ("POST", "/status"),
    ("DELETE", "/status"),
    ("GET", "/status/"),
    ("GET", "/photos"),
    ("GET", "/photos/index"),
    ("GET", "/photos/upload"),
    ("GET", "/"),
]


async def test_without_immich_everything_else_is_not_found(
    api: Api, subtests: pytest.Subtests
) -> None:
    for method, target in NOT_OURS:
        with subtests.test(method=method, target=target):
            answer = await api.call(method, target, body=LOGIN if method == "POST" else b"")
            assert answer.error[:2] == (404, "not_found")


async def test_a_reset_while_a_login_is_under_way_leaves_no_token(
    anybody: Api,
    accounts: Accounts,
    db_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    verified = asyncio.Event()
    reset = asyncio.Event()
    loop = asyncio.get_running_loop()
    verify = PasswordHasher.verify

    def held(self: PasswordHasher, stored: str | bytes, password: str | bytes) -> bool:
        # The library's work is done; its result is on its way while the password changes.
        result = verify(self, stored, password)
        loop.call_soon_threadsafe(verified.set)
        asyncio.run_coroutine_threadsafe(reset.wait(), loop).result(PATIENCE)
        return result

    monkeypatch.setattr(PasswordHasher, "verify", held)
    login = asyncio.create_task(anybody.login(USERNAME, PASSWORD))
    await verified.wait()
    await accounts.reset_password(USERNAME, "a new password")
    reset.set()
    assert (await login).error == INVALID_CREDENTIALS
    assert rows(db_path, "SELECT * FROM tokens") == []
    assert (await anybody.login(USERNAME, "a new password")).status == 200


async def test_no_secret_is_in_a_log_line_or_an_error(
    anybody: Api, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    token = (await anybody.login(USERNAME, PASSWORD)).json["token"]
    answers: list[Message] = [
        (await anybody.login(USERNAME, "another password")).message,
        (await anybody.login("another password", PASSWORD)).message,
        (await anybody.post_json("/login", b'{"password": "another password"')).message,
        (await Api(anybody.url, token + "x").status()).message,
        (await Api(anybody.url, token).call("GET", f"/status?token={token}")).message,
    ]
    said = "\n".join(
        f"{record.getMessage()} {vars(record).get('fields')}" for record in caplog.records
    ) + "".join(repr(answer.body) for answer in answers)
    assert "/login" in said
    for secret in (PASSWORD, "another password", *token.split(".")):
        assert secret not in said


@pytest.mark.parametrize("bridged", [True, False])
async def test_with_the_wing_off_its_routes_are_not_ours(
    start_backup: StartBackup, db_path: Path, bridged: bool
) -> None:
    # Immich is away, and asked all the same.
    immich = {"IMMICH_SERVER_URL": "http://127.0.0.1:1"} if bridged else {}
    server = await start_backup(BACKUP_ENABLED="false", **immich)
    expected = {502, 503} if bridged else {404}
    for method, target in [*ROUTES, ("POST", "/login"), ("POST", "/photos/index")]:
        assert (await Api(server.address).call(method, target)).status in expected
    assert not db_path.parent.exists()
