"""How often somebody may ask: logins by address, uploads by user."""

import asyncio
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable
from configparser import ConfigParser
from importlib.util import find_spec
from pathlib import Path

import pytest
from aiohttp.test_utils import make_mocked_request
from limits.aio.storage import Storage

from backup_wing import PASSWORD, USERNAME, Api, settings_in
from backup_wing import photo as new_photo
from immich_bridge.backup.accounts import Accounts
from immich_bridge.backup.database import Database
from immich_bridge.config import ConfigError
from immich_bridge.errors import RateLimited
from immich_bridge.http.rate_limit import RateLimit, RateLimitStorageError, rate_limit_storage
from immich_bridge.serve import Server
from wire import PATIENCE, Message, connect, request

Start = Callable[..., Awaitable[Server]]

LIMIT_HEADERS = ("X-RateLimit-Limit", "X-RateLimit-Remaining", "X-RateLimit-Reset")
MINUTE = 60


@pytest.fixture
def start(start_bridge: Start, tmp_path: Path) -> Start:
    """Start backup servers of this test's folder, with the limits that are the default."""
    settings = settings_in(tmp_path)
    del settings["RATE_LIMIT_LOGIN"]

    async def start_server(**more: str) -> Server:
        return await start_bridge("", **{**settings, **more})

    return start_server


async def make_user(folder: Path, *usernames: str) -> None:
    database = Database(Path(settings_in(folder)["DB_PATH"]))
    await database.open()
    accounts = Accounts(database)
    try:
        for username in usernames:
            await accounts.create(username, PASSWORD)
    finally:
        accounts.close()
        await database.close()


async def log_in(
    url: str,
    *forwarded_for: str,
    peer: str = "127.0.0.1",
    body: bytes = b"",
) -> Message:
    """A login from one of this machine's addresses; without a body it costs no hash."""
    headers = [("X-Forwarded-For", value) for value in forwarded_for]
    async with connect(url, local_addr=(peer, 0)) as client:
        await client.send(request("POST", "/login", *headers, body=body))
        return await client.read_answer()


def limit_of(answer: Message) -> tuple[int, int, int]:
    """Limit, remaining requests, and when the count begins anew (unix seconds)."""
    limit, remaining, reset = (answer.header(name) for name in LIMIT_HEADERS)
    assert limit is not None
    assert remaining is not None
    assert reset is not None
    return int(limit), int(remaining), int(reset)


def refused(answer: Message) -> bool:
    """Whether an answer is a 429, which then is whole."""
    if answer.status != 429:
        assert answer.header("Retry-After") is None
        return False
    wait = int(answer.header("Retry-After") or "")
    assert 1 <= wait <= MINUTE
    assert json.loads(answer.body) == {
        "error": "rate_limited",
        "message": f"too many requests, try again in {wait} s",
    }
    assert answer.header("Content-Type") == "application/json"
    return True


async def test_five_logins_a_minute_and_then_no_more(start: Start, tmp_path: Path) -> None:
    await make_user(tmp_path, USERNAME)
    server = await start()
    good = json.dumps({"username": USERNAME, "password": PASSWORD}).encode()
    wrong = json.dumps({"username": USERNAME, "password": "wrong password"}).encode()
    begun = int(time.time())
    # Each attempt counts, whatever becomes of it.
    bodies = [good, wrong, b"not json", b"x" * 20_000, good]
    answers = [await log_in(server.address, body=body) for body in bodies]
    assert [answer.status for answer in answers] == [200, 401, 400, 413, 200]
    assert [limit_of(answer)[:2] for answer in answers] == [(5, n) for n in (4, 3, 2, 1, 0)]
    # Even the right password is not looked at any more.
    answers += [await log_in(server.address, body=good) for _ in range(2)]
    assert all(refused(answer) for answer in answers[5:])
    assert [limit_of(answer)[:2] for answer in answers[5:]] == [(5, 0)] * 2
    # The minute began with the first attempt, and asking on does not prolong it.
    resets = {limit_of(answer)[2] for answer in answers}
    assert len(resets) == 1
    [reset] = resets
    assert begun + MINUTE <= reset <= begun + MINUTE + 2
    wait = int(answers[-1].header("Retry-After") or "")
    assert abs(time.time() + wait - reset) <= 1.5


async def test_each_address_has_a_count_of_its_own(start: Start) -> None:
    server = await start(RATE_LIMIT_LOGIN="2/minute")
    for peer in "127.0.0.1", "127.0.0.2", "127.0.0.3":
        answers = [await log_in(server.address, peer=peer) for _ in range(3)]
        assert [answer.status for answer in answers] == [400, 400, 429]


async def test_a_stranger_gets_no_more_by_what_they_say_of_themselves(start: Start) -> None:
    server = await start(RATE_LIMIT_LOGIN="2/minute", TRUSTED_PROXIES="127.0.0.9, 10.0.0.0/8")
    answers = [
        await log_in(server.address, "198.51.100.1"),
        await log_in(server.address, "198.51.100.2"),
        await log_in(server.address, "198.51.100.3", "127.0.0.9"),
    ]
    assert [answer.status for answer in answers] == [400, 400, 429]


async def test_behind_a_trusted_proxy_each_client_has_a_count_of_its_own(start: Start) -> None:
    server = await start(RATE_LIMIT_LOGIN="1/minute", TRUSTED_PROXIES="127.0.0.9, 10.0.0.0/8")

    async def through_proxy(*forwarded_for: str) -> int:
        return (await log_in(server.address, *forwarded_for, peer="127.0.0.9")).status

    assert await through_proxy("198.51.100.1") == 400
    assert await through_proxy("198.51.100.2") == 400
    assert await through_proxy("198.51.100.1") == 429
    # What the client itself put in front has no say, and a second proxy adds nothing.
    assert await through_proxy("192.0.2.7, 198.51.100.1") == 429
    assert await through_proxy("198.51.100.1, 10.0.0.2") == 429
    assert await through_proxy("198.51.100.1", "10.0.0.2") == 429
    # One address has many spellings.
    assert await through_proxy("2001:db8::1") == 400
    assert await through_proxy("2001:DB8:0:0:0:0:0:1") == 429
    assert await through_proxy("[2001:db8::1]") == 429
    # Without the header it is the proxy that asks.
    assert await through_proxy() == 400
    assert await through_proxy("") == 429
    assert await through_proxy("unknown") == 429


async def test_of_many_logins_at_once_no_more_than_the_limit_pass(start: Start) -> None:
    server = await start()
    answers = await asyncio.gather(*(log_in(server.address) for _ in range(30)))
    assert sorted(answer.status for answer in answers) == [400] * 5 + [429] * 25
    assert sorted(limit_of(a)[1] for a in answers if a.status == 400) == [0, 1, 2, 3, 4]


async def test_nothing_but_logins_is_limited(start: Start) -> None:
    server = await start(RATE_LIMIT_LOGIN="1/minute")
    assert (await log_in(server.address)).status == 400
    assert (await log_in(server.address)).status == 429
    api = Api(server.address, "no token")
    for method, target in [
        ("GET", "/health"),
        ("GET", "/ready"),
        ("GET", "/status"),
        ("POST", "/refresh"),
        ("GET", "/login"),
        ("POST", "/photos/index"),
        ("POST", "/photos/upload"),
    ]:
        answer = await api.call(method, target)
        assert answer.status in (200, 401, 404), target
        assert not any(answer.header(name) for name in LIMIT_HEADERS), target


async def test_no_limit_says_nothing_of_one(start: Start) -> None:
    server = await start(RATE_LIMIT_LOGIN="0")
    for _ in range(10):
        answer = await log_in(server.address)
        assert answer.status == 400
        assert [answer.header(name) for name in LIMIT_HEADERS] == [None, None, None]


async def test_uploads_are_counted_by_user(start: Start, tmp_path: Path) -> None:
    await make_user(tmp_path, "anna", "bert")
    server = await start(RATE_LIMIT_UPLOAD="3/minute")
    apis = []
    for username in "anna", "bert":
        answer = await Api(server.address).login(username, PASSWORD)
        apis.append(Api(server.address, answer.json["token"]))
        await apis[-1].index("2025-12-10", [new_photo("a")])
    anna, bert = apis
    fields = {"local_id": "a", "file_type": "image/jpeg"}
    chunk = {**fields, "chunk_number": "0", "total_chunks": "2"}
    # The three ways in share one count.
    answers = [
        await anna.upload_form(fields, b"anna's"),
        await anna.upload_stream(b"anna's", **fields),
        await anna.upload_chunk(chunk, b"anna's"),
    ]
    assert [answer.status for answer in answers] == [200, 200, 200]
    assert [limit_of(answer.message)[:2] for answer in answers] == [(3, 2), (3, 1), (3, 0)]
    stored = tmp_path / "storage" / "photo" / "1" / "2025" / "12" / "10" / "IMG_0001.jpg"
    for answer in [
        await anna.upload_form(fields, b"too much"),
        await anna.upload_stream(b"too much", **fields),
        await anna.upload_chunk({**chunk, "chunk_number": "1"}, b"too much"),
    ]:
        assert refused(answer.message)
        assert limit_of(answer.message)[:2] == (3, 0)
    assert stored.read_bytes() == b"anna's"
    # It is her count, not her token's; and not his.
    token = (await anna.refresh()).json["token"]
    assert (await Api(server.address, token).upload_form(fields, b"too much")).status == 429
    assert (await bert.upload_form(fields, b"bert's")).status == 200
    # Indexing is not uploading, and a failed login no upload.
    index = await Api(server.address, token).index("2025-12-10", [new_photo("a")])
    assert index.status == 200
    assert index.header("X-RateLimit-Limit") is None
    stranger = await Api(server.address, "no token").upload_form(fields, b"x")
    assert stranger.status == 401
    assert stranger.header("X-RateLimit-Limit") is None


async def test_an_upload_above_the_limit_is_not_waited_for(start: Start, tmp_path: Path) -> None:
    await make_user(tmp_path, USERNAME)
    server = await start(RATE_LIMIT_UPLOAD="1/minute")
    token = (await Api(server.address).login(USERNAME, PASSWORD)).json["token"]
    await Api(server.address, token).upload_form({}, b"x")
    target = "/photos/upload/stream?local_id=a&file_type=jpg"
    async with connect(server.address) as client:
        authorization = ("Authorization", f"Bearer {token}")
        await client.send(request("POST", target, authorization, ("Content-Length", "1000000")))
        assert refused(await client.read_answer())


async def test_uploads_are_not_limited_by_default(start: Start, tmp_path: Path) -> None:
    await make_user(tmp_path, USERNAME)
    server = await start()
    api = Api(server.address, (await Api(server.address).login(USERNAME, PASSWORD)).json["token"])
    await api.index("2025-12-10", [new_photo("a")])
    for n in range(12):
        answer = await api.upload_stream(b"%d" % n, local_id="a", file_type="jpg")
        assert answer.status == 200
        assert answer.header("X-RateLimit-Limit") is None


async def test_two_servers_do_not_share_counts_in_memory(start: Start) -> None:
    for _ in range(2):
        server = await start(RATE_LIMIT_LOGIN="1/minute")
        assert (await log_in(server.address)).status == 400
        assert (await log_in(server.address)).status == 429


async def test_limits_of_different_scope_do_not_count_together() -> None:
    counts = rate_limit_storage("memory://")
    request = make_mocked_request("POST", "/")
    for scope in "login", "upload":
        limit = RateLimit(counts, "1/minute", scope)
        await limit.hit(request, "7")
        with pytest.raises(RateLimited):
            await limit.hit(request, "7")


def test_counts_in_memory_need_nothing() -> None:
    assert rate_limit_storage("memory://") is not None
    assert rate_limit_storage("async+memory://") is not None


@pytest.mark.parametrize(
    ("url", "named"),
    [
        ("reddis://:s3cr3t@redis.example:6379/0", "reddis"),
        ("http://user:s3cr3t@redis.example", "http"),
        ("async+nothing://user:s3cr3t@redis.example", "nothing"),
    ],
)
def test_an_unknown_storage_is_named_without_its_password(url: str, named: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        rate_limit_storage(url)
    assert str(refusal.value) == (
        f"RATE_LIMIT_STORAGE: {named}://... cannot be used, expected a URL such as memory:// or "
        "redis://host:6379"
    )


@pytest.mark.parametrize(
    ("scheme", "module", "package"),
    [
        ("redis", "coredis", "immich-bridge[redis]"),
        ("rediss", "coredis", "immich-bridge[redis]"),
        ("redis+cluster", "coredis", "immich-bridge[redis]"),
        ("valkey", "valkey", "limits[async-valkey]"),
        ("memcached", "memcachio", "limits[async-memcached]"),
        ("mongodb+srv", "motor", "limits[async-mongodb]"),
    ],
)
def test_what_is_not_installed_is_named_with_the_command_that_installs_it(
    scheme: str, module: str, package: str
) -> None:
    if find_spec(module) is not None:
        pytest.skip("it is installed")
    with pytest.raises(RateLimitStorageError) as refusal:
        rate_limit_storage(f"{scheme}://:s3cr3t@cache.example:6379")
    assert str(refusal.value) == (
        f"RATE_LIMIT_STORAGE: {scheme}://... needs {module}, which is not installed "
        f"(pip install '{package}')"
    )


def test_the_command_names_an_extra_that_exists() -> None:
    manifest = ConfigParser()
    manifest.read(Path(__file__).parents[2] / "setup.cfg")
    assert "async-redis" in manifest["options.extras_require"]["redis"]


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("reddis://:s3cr3t@redis.example:6379/0", 2),
        # Known, but what it needs is not installed with this server.
        pytest.param(
            *("redis+sentinel://:s3cr3t@redis.example:26379", 1),
            marks=pytest.mark.skipif(find_spec("coredis") is not None, reason="it is"),
        ),
        ("no URL at all", 2),
    ],
)
async def test_a_server_with_a_bad_storage_does_not_start(
    tmp_path: Path, url: str, code: int
) -> None:
    environment = {**settings_in(tmp_path), "LISTEN_ADDR": "127.0.0.1:0"}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "immich_bridge"),
        env={"PATH": os.environ["PATH"], **environment, "RATE_LIMIT_STORAGE": url},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(process.communicate(), PATIENCE)
    assert (process.returncode, out) == (code, b"")
    assert err.startswith(b"immich-bridge: RATE_LIMIT_STORAGE: ")
    assert err.count(b"\n") == 1
    assert b"s3cr3t" not in err


class BrokenStorage(Storage):
    """A storage whose server is away. `limits` finds it by its scheme, as any other."""

    STORAGE_SCHEME = ["async+broken"]  # noqa: RUF012 - as `limits` declares it

    @property
    def base_exceptions(self) -> type[Exception]:
        return ConnectionError

    async def incr(self, key: str, expiry: float, amount: int = 1) -> int:
        raise ConnectionError("redis://:s3cr3t@redis.example is away")

    async def get(self, key: str) -> int:
        raise ConnectionError

    async def get_expiry(self, key: str) -> float:
        raise ConnectionError

    async def check(self) -> bool:
        raise ConnectionError

    async def reset(self) -> int | None:
        raise ConnectionError

    async def clear(self, key: str) -> None:
        raise ConnectionError


async def test_while_nothing_can_be_counted_nobody_logs_in(start: Start) -> None:
    server = await start(RATE_LIMIT_STORAGE="broken://")
    answer = await log_in(server.address)
    assert (answer.status, answer.header("Retry-After")) == (503, "5")
    assert json.loads(answer.body) == {
        "error": "unavailable",
        "message": "requests cannot be counted at the moment",
    }
    # What is not limited does not depend on it.
    server = await start(RATE_LIMIT_STORAGE="broken://", RATE_LIMIT_LOGIN="0")
    assert (await log_in(server.address)).status == 400
