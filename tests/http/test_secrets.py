"""No secret in any line of the log: marked ones are sent every way there is."""

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from backup_wing import Header, multipart, photo
from front import StartBridge, unused_port
from immich_bridge.app import make_app
from immich_bridge.backup.accounts import Accounts
from immich_bridge.backup.database import Database
from immich_bridge.config import Config
from immich_bridge.serve import Server
from immich_standin import StandIn
from log_capture import WrittenLog, written_log
from raw_upload import jpeg
from wire import Message, connect, fetch, request

MARK = "m4rk3d"
"""Is in every secret that a client sends here."""
USERNAME, PASSWORD = "admin", f"{MARK}-Password123"
BASIC = base64.b64encode(f"user:{MARK}".encode()).decode()

QUERY = "&".join(
    f"{name}={MARK}-{name}"
    for name in ("apiKey", "key", "slug", "password", "token", "access_token", "code", "sessionKey")
)
CREDENTIALS: tuple[Header, ...] = (
    ("x-api-key", f"{MARK}-key"),
    ("Proxy-Authorization", f"Basic {BASIC}"),
    ("x-immich-user-token", f"{MARK}-user"),
    ("x-immich-session-token", f"{MARK}-session"),
    ("x-immich-share-key", f"{MARK}-share"),
    ("x-immich-share-slug", f"{MARK}-slug"),
    ("Cookie", f"immich_access_token={MARK}; immich_shared_link_token={MARK}"),
    ("Referer", f"https://photos.example/share/{MARK}?{QUERY}"),
    ("X-Forwarded-For", f"{MARK}, 192.0.2.1"),
    ("Forwarded", f"for={MARK}"),
    ("User-Agent", f"app/{MARK}"),
)
AUTHORIZATIONS: tuple[Header, ...] = (
    ("Authorization", f"Bearer {MARK}"),
    ("Authorization", f"Basic {BASIC}"),
    ("Authorization", MARK),
)
UPGRADE: tuple[Header, ...] = (
    ("Connection", "Upgrade"),
    ("Upgrade", "websocket"),
    ("Sec-WebSocket-Version", "13"),
    ("Sec-WebSocket-Key", base64.b64encode(MARK.ljust(16).encode()).decode()),
    ("Sec-WebSocket-Protocol", MARK),
)
BODIES: tuple[tuple[Header, bytes], ...] = (
    (("Content-Type", "application/json"), json.dumps({"password": MARK, "token": MARK}).encode()),
    (("Content-Type", "application/json"), json.dumps({"username": 1, "password": MARK}).encode()),
    (("Content-Type", "application/json"), f'{{"password": "{MARK}'.encode()),
    (("Content-Type", "image/jpeg"), jpeg(2000) + MARK.encode()),
    multipart(("password", MARK, None), ("file", MARK, "photo.jpg")),
)
MALFORMED = (
    f"GET /a?key={MARK} HTTP/1.1\r\nx-api-key {MARK}\r\n\r\n",
    f"GET /a?key={MARK} {MARK} HTTP/1.1\r\nHost: a\r\n\r\n",
    f"{MARK} / HTTP/1.1\r\nHost: a\r\n\r\n",
    f"GET / HTTP/1.1\r\nAuthorization: Bearer {MARK}\x00\r\n\r\n",
    f"GET / HTTP/9.{MARK}\r\nHost: a\r\n\r\n",
    f"GET http://user:{MARK}@[bad/ HTTP/1.1\r\nHost: a\r\n\r\n",
    f"GET / HTTP/1.1\r\nCookie: {MARK * 8000}\r\n\r\n",
    f"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {MARK}\r\n\r\n",
    f"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: {MARK}\r\n\r\n{MARK}",
    f"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{MARK}\r\n",
    f"CONNECT user:{MARK}@immich:443 HTTP/1.1\r\nHost: a\r\n\r\n",
)


def assert_holds_no_secret(text: str, *more: str) -> None:
    for secret in (MARK, BASIC, quote(BASIC), "$argon2", *more):
        at = text.find(secret)
        assert at < 0, text[max(0, at - 200) : at + 100]


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, str]:
    return {
        "BACKUP_ENABLED": "true",
        "DB_PATH": str(tmp_path / "data" / "app.db"),
        "STORAGE_DIR": str(tmp_path / "storage"),
        "JWT_SECRET": f"{MARK}-{'x' * 32}",
        "RATE_LIMIT_LOGIN": "0",
        "METRICS_ADDR": "127.0.0.1:0",
        "BODY_IDLE_TIMEOUT": "200ms",
        "MAX_STREAM_SIZE": "1MB",
    }


@pytest.fixture
async def user(settings: dict[str, str]) -> None:
    database = Database(Path(settings["DB_PATH"]))
    await database.open()
    accounts = Accounts(database)
    await accounts.create(USERNAME, PASSWORD)
    accounts.close()
    await database.close()


@pytest.fixture(params=["text", "json"])
def log_format(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def log(log_format: str) -> Iterator[WrittenLog]:
    """The log at its most talkative."""
    with written_log(log_format, level="debug") as log:
        yield log


@pytest.fixture
async def server(
    log_format: str,
    log: WrittenLog,
    user: None,
    immich: StandIn,
    start_bridge: StartBridge,
    settings: dict[str, str],
) -> Server:
    """A server with both wings; in front of an Immich that answers, or is away."""
    away = f"http://127.0.0.1:{unused_port()}"
    return await start_bridge(immich.url if log_format == "json" else away, **settings)


def put_a_file_in_place_of(folder: Path) -> None:
    folder.rename(folder.with_name("gone"))
    folder.touch()


def routes(settings: dict[str, str]) -> list[str]:
    """Every route of the application, whichever there are."""
    app = make_app(Config.from_mapping(settings))
    return sorted({resource.canonical for resource in app.router.resources()})


async def test_of_requests_on_every_route(
    server: Server, settings: dict[str, str], log: WrittenLog, capfd: pytest.CaptureFixture[str]
) -> None:
    paths = routes(settings)
    assert {"/", "/login", "/photos/upload/chunk", "/api/assets/background"} <= {*paths}
    targets = [f"{path}?{QUERY}" for path in paths]
    targets += [
        f"/share/{MARK}",
        f"/s/{MARK}/photos/1?{QUERY}",
        f"http://user:{MARK}@immich/share/{MARK}?{QUERY}#{MARK}",
        f"//share//{MARK}",
    ]
    sent = 0
    for target in targets:
        for authorization in AUTHORIZATIONS:
            await fetch(server.address, "GET", target, authorization, *CREDENTIALS)
            sent += 1
        await fetch(server.address, "GET", target, AUTHORIZATIONS[0], *CREDENTIALS, *UPGRADE)
        sent += 1
        for content_type, body in BODIES:
            fields = AUTHORIZATIONS[0], *CREDENTIALS, content_type
            await fetch(server.address, "POST", target, *fields, body=body)
            sent += 1
    lines = [line for line in log.lines if "request_id" in line]
    assert len(lines) == sent
    assert_holds_no_secret(log.getvalue())
    assert_holds_no_secret("".join(capfd.readouterr()))


async def test_of_a_life_with_the_photo_backup(
    server: Server, settings: dict[str, str], log: WrittenLog, capfd: pytest.CaptureFixture[str]
) -> None:
    tokens: list[str] = []

    async def post(
        target: str, body: bytes, content_type: Header = ("Content-Type", "application/json")
    ) -> Message:
        bearer = [("Authorization", f"Bearer {tokens[-1]}")] if tokens else []
        return await fetch(server.address, "POST", target, *bearer, content_type, body=body)

    wrong = json.dumps({"username": USERNAME, "password": f"{MARK}-wrong"}).encode()
    assert (await post("/login", wrong)).status == 401
    right = json.dumps({"username": USERNAME, "password": PASSWORD}).encode()
    for target, body in (("/login", right), ("/refresh", b"{}")):
        told = await post(target, body)
        assert told.status == 200
        tokens.append(json.loads(told.body)["token"])
    batch = {"date": "2025-12-10", "photos": [photo("a")]}
    assert (await post("/photos/index", json.dumps(batch).encode())).status == 200
    target = "/photos/upload/stream?local_id=a&file_type=jpg"
    assert (await post(target, jpeg(5000))).status == 200
    form_type, form = multipart(("local_id", "a", None), ("file_type", "jpg", None))
    assert (await post("/photos/upload", form, form_type)).status == 400
    put_a_file_in_place_of(Path(settings["STORAGE_DIR"]))
    assert (await post(target, jpeg(6000))).status == 500
    assert "cannot write" in log.getvalue()
    assert_holds_no_secret(log.getvalue(), *tokens, *(t.rpartition(".")[2] for t in tokens))
    assert_holds_no_secret("".join(capfd.readouterr()), *tokens)


async def test_of_uploads_that_fail(
    server: Server, log: WrittenLog, capfd: pytest.CaptureFixture[str]
) -> None:
    lengths = {"silent": 9000, "gone": 9000, "too large": 9_000_000}
    for fate, length in lengths.items():
        fields = *CREDENTIALS, ("X-Filename", "a.jpg"), ("Content-Length", str(length))
        for target in (f"/api/assets/background?{QUERY}", f"/any?{QUERY}"):
            async with connect(server.address) as peer:
                await peer.send(request("POST", target, *fields) + jpeg(2000) + MARK.encode())
                if fate == "gone":
                    peer.reset()
                else:
                    await peer.read_answer()
    await log.wait_for("client_gone")
    bad = ("X-File-Created-At", "yesterday"), ("X-Latitude", "north")
    for field in bad:
        await fetch(
            server.address, "POST", "/api/assets/background", *CREDENTIALS, field, body=b"x"
        )
    assert_holds_no_secret(log.getvalue())
    assert_holds_no_secret("".join(capfd.readouterr()))


@pytest.mark.parametrize("listener", ["clients", "metrics"])
async def test_of_what_is_no_http(
    server: Server, log: WrittenLog, capfd: pytest.CaptureFixture[str], listener: str
) -> None:
    url = server.address if listener == "clients" else server.metrics_address
    assert url is not None
    before = len(log.lines)
    for raw in MALFORMED:
        async with connect(url) as peer:
            await peer.send(raw.encode())
            peer.writer.write_eof()
            await peer.read_to_end()
    assert_holds_no_secret(log.getvalue())
    assert_holds_no_secret("".join(capfd.readouterr()))
    if listener == "clients":
        assert len(log.lines) - before == len(MALFORMED)
