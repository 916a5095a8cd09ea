"""Promise 9: a login cannot be guessed, timed, forged or flooded."""

import hashlib
import statistics
import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import pytest
from argon2 import PasswordHasher, extract_parameters

from backup_uploads import DAY, MemoryGrowth
from backup_wing import PASSWORD, USERNAME, Api, StartBackupProcess, photo, rows, settings_in
from immich_bridge.backup.accounts import Accounts
from immich_bridge.errors import Unauthorized
from torture.effort import Effort
from torture.login_flood import (
    LOGINS_A_SECOND,
    ROUTES,
    Flood,
    latencies,
    percentile_99,
    trimmed,
    welch_t,
)
from torture.login_server import open_accounts, start_with_user
from torture.login_tokens import Forger, Forgery
from torture.names_caller import Caller, shared_out
from wire import recording_upstream, request

_PROTECTED = (
    ("GET", "/status"),
    ("POST", "/refresh"),
    ("POST", "/photos/index"),
    ("POST", "/photos/upload"),
    ("POST", "/photos/upload/stream?local_id=x&file_type=jpg"),
    ("POST", "/photos/upload/chunk"),
)
_SPELLINGS = ("Bearer {}", "bearer {}", "BEARER {}", "Bearer  {}", " Bearer {} ")
_MIB = 2**20
_WEAKER = PasswordHasher(time_cost=1, memory_cost=8 * 1024, parallelism=1)
_MAX_T = 4.5
"""Beyond it a difference in time is taken for real, by those who look for such leaks."""


async def test_no_forged_token_is_taken(
    effort: Effort, start_process: StartBackupProcess, tmp_path: Path
) -> None:
    settings = settings_in(tmp_path)
    server, api = await start_with_user(start_process, settings)
    genuine = api.token or ""
    forger = Forger(genuine, _key(settings), effort.chance("tokens"))
    forgeries = [*forger.all(), *forger.flipped(effort.amount(1, 8))]
    assert genuine not in {forgery.text for forgery in forgeries}
    _list(settings["DB_PATH"], [forgery for forgery in forgeries if forgery.listed])
    tries = [
        (forgery, _PROTECTED[(number + turn) % len(_PROTECTED)], number % len(_SPELLINGS))
        for turn in range(effort.amount(1, len(_PROTECTED)))
        for number, forgery in enumerate(forgeries)
    ]
    taken: list[str] = []

    async def present(caller: Caller, attempt: tuple[Forgery, tuple[str, str], int]) -> None:
        forgery, (method, target), spelling = attempt
        header = ("Authorization", _SPELLINGS[spelling].format(forgery.text))
        answer = await caller.ask(request(method, target, header, ("Content-Length", "0")))
        if answer.error[:2] != (401, "unauthorized"):
            taken.append(f"{forgery.what} at {target}: {answer}")

    await shared_out(server.url, tries, present)
    assert taken == []
    assert (await api.status()).status == 200
    assert not [line for line in server.log if "Traceback" in line or "unexpected error" in line]
    effort.figure(
        "9 login",
        f"{len(forgeries)} forged tokens, presented {len(tries)} times on {len(_PROTECTED)} "
        f"routes: {len(taken)} accepted",
    )


def _key(settings: Mapping[str, str]) -> bytes:
    return bytes.fromhex(Path(settings["JWT_SECRET_PATH"]).read_text())


def _list(database: str, forgeries: list[Forgery]) -> None:
    """Put tokens into the list of those that count, as if they had been issued."""
    for forgery in forgeries:
        digest = hashlib.sha256(forgery.text.encode()).digest()
        rows(database, "INSERT OR IGNORE INTO tokens VALUES (?, 1, 4000000000, '')", digest)


async def test_tokens_that_ended_are_not_taken(
    start_process: StartBackupProcess, tmp_path: Path
) -> None:
    settings = settings_in(tmp_path)
    server, api = await start_with_user(start_process, settings)
    refreshed = Api(server.url, (await api.refresh()).json["token"])
    async with open_accounts(settings) as accounts:
        await accounts.create("second", PASSWORD)
        deleted = Api(server.url, (await api.login("second", PASSWORD)).json["token"])
        reset = Api(server.url, (await api.login(USERNAME, PASSWORD)).json["token"])
        assert (await deleted.status()).status == 200
        await accounts.delete("second")
        await accounts.reset_password(USERNAME, "another password")
    for ended in (api, deleted, reset, refreshed):
        for method, target in _PROTECTED:
            assert (await ended.call(method, target)).error[:2] == (401, "unauthorized"), target


async def test_names_that_nobody_has_cost_what_others_cost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    verified: list[str] = []
    verify = PasswordHasher.verify

    def noted(self: PasswordHasher, stored: str | bytes, password: str | bytes) -> bool:
        verified.append(str(stored))
        return verify(self, stored, password)

    monkeypatch.setattr(PasswordHasher, "verify", noted)
    settings = settings_in(tmp_path)
    async with open_accounts(settings) as accounts:

        async def costs(*usernames: str) -> list[str]:
            verified.clear()
            for username in usernames:
                with pytest.raises(Unauthorized):
                    await accounts.authenticate(username, PASSWORD + " wrong")
            assert len(verified) == len(usernames)
            return [str(extract_parameters(stored)) for stored in verified]

        nobody = [f"nobody {number}" for number in range(12)]
        (todays,) = set(await costs(*nobody[:2]))
        await _store_weaker_hash(accounts, settings, "old")
        (weaker,) = set(await costs("old"))
        assert weaker != todays
        assert set(await costs(*nobody[:3])) == {weaker}
        # Nobody's names are of both kinds where users are, and stay of the kind they are of.
        for number in range(3):
            await accounts.create(f"new {number}", PASSWORD)
            await _store_weaker_hash(accounts, settings, f"old {number}")
        first = await costs(*nobody)
        assert set(first) == {weaker, todays}
        assert await costs(*nobody) == first


async def _store_weaker_hash(
    accounts: Accounts, settings: Mapping[str, str], username: str
) -> None:
    """Make a user whose password was hashed by an older release."""
    await accounts.create(username, PASSWORD)
    update = "UPDATE users SET password_hash = ? WHERE username = ?"
    rows(settings["DB_PATH"], update, _WEAKER.hash(PASSWORD), username)


async def test_time_does_not_tell_who_is_a_user(
    effort: Effort, start_process: StartBackupProcess, tmp_path: Path
) -> None:
    server, _ = await start_with_user(start_process, settings_in(tmp_path))
    count = effort.amount(4, 500)
    kinds = ["known", "unknown"] * count
    effort.chance("order").shuffle(kinds)
    taken: dict[str, list[float]] = defaultdict(list)
    async with Caller(server.url) as caller:
        for number, kind in enumerate(kinds):
            username = USERNAME if kind == "known" else f"user{number}"
            body = f'{{"username": "{username}", "password": "wrong password {number}"}}'.encode()
            began = time.perf_counter()
            answer = await caller.ask(request("POST", "/login", body=body))
            taken[kind].append(time.perf_counter() - began)
            assert answer.error == (401, "unauthorized", "invalid credentials")
            effort.progress("timed logins", number, len(kinds))
    t = welch_t(trimmed(taken["known"]), trimmed(taken["unknown"]))
    medians = {kind: statistics.median(times) for kind, times in taken.items()}
    effort.figure(
        "9 login",
        f"{count} logins of a known and {count} of unknown users: t = {t:.1f}, medians of "
        f"{medians['known'] * 1e3:.1f} ms differ by "
        f"{abs(medians['known'] - medians['unknown']) * 1e6:.0f} microseconds",
    )
    if effort.full:  # a handful tells nothing
        assert abs(t) < _MAX_T


async def test_a_flood_from_one_address_is_refused(
    effort: Effort, start_process: StartBackupProcess, tmp_path: Path
) -> None:
    settings = settings_in(tmp_path)
    del settings["RATE_LIMIT_LOGIN"]  # it is on unless somebody turns it off
    server, api = await start_with_user(start_process, settings)
    flood = Flood(server.url)
    async with flood.running():
        waits = await latencies(
            server.url, api.token or "", effort.amount(0.5, 5.0), ["GET /status"]
        )
    assert flood.statuses[429] > 0.9 * flood.statuses.total() - 5
    assert flood.statuses[200] + flood.statuses[401] <= 5
    assert flood.without_retry_after == 0
    assert waits["GET /status"]
    effort.figure(
        "9 login",
        f"{flood.statuses.total()} logins of one address at {LOGINS_A_SECOND} a second: "
        f"{flood.statuses[429]} refused with 429",
    )


async def test_a_burst_of_logins_is_bounded(
    effort: Effort, start_process: StartBackupProcess, tmp_path: Path
) -> None:
    server, api = await start_with_user(start_process, settings_in(tmp_path))
    memory = MemoryGrowth(server.process.pid)
    flood = Flood(server.url)
    await flood.burst(effort.amount(60, 1000))
    # Two hashes of 19 MiB at once, what waits for them, and the rest is refused.
    assert memory.peak < (2 * 19 + 32) * _MIB
    assert flood.statuses[503] > 0
    assert flood.statuses.keys() <= {200, 401, 503}
    assert flood.without_retry_after == 0
    assert (await api.login(USERNAME, PASSWORD)).status == 200
    effort.figure(
        "9 login",
        f"{flood.statuses.total()} logins at once: {flood.statuses[503]} refused with 503, "
        f"memory grew by {memory.peak / _MIB:.0f} MiB",
    )


@pytest.mark.alone
async def test_others_do_not_wait_for_logins(
    effort: Effort, start_process: StartBackupProcess, tmp_path: Path
) -> None:
    seconds = effort.amount(0.2, 6.0)
    async with recording_upstream([]) as immich:
        server, api = await start_with_user(
            start_process, settings_in(tmp_path), IMMICH_SERVER_URL=immich.url
        )
        await api.index(DAY, [photo("uploaded"), photo("indexed")])
        alone: dict[str, list[float]] = defaultdict(list)
        beside: dict[str, list[float]] = defaultdict(list)
        flood = Flood(server.url)
        # In turns, so that what else the machine does is in both.
        for turn in range(effort.amount(1, 4)):
            for route, times in (await latencies(server.url, api.token or "", seconds)).items():
                alone[route] += times
            async with flood.running():
                for route, times in (await latencies(server.url, api.token or "", seconds)).items():
                    beside[route] += times
            effort.progress("turns of a flood", turn + 1, 4)
    assert flood.statuses[401] > 0
    assert flood.statuses.keys() <= {200, 401, 503}
    if not effort.full:
        return  # that every request was answered is all that so few can tell
    ratios = {route: percentile_99(beside[route]) / percentile_99(alone[route]) for route in ROUTES}
    for route, ratio in ratios.items():
        effort.figure(
            "9 login",
            f"{route} beside {LOGINS_A_SECOND} logins a second: p99 {ratio:.1f} times that without "
            f"({percentile_99(beside[route]) * 1e3:.1f} ms)",
        )
    assert max(ratios.values()) <= 2, ratios
