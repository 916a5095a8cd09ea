"""Promise 6: names stay what they are, and inside. None of them ever becomes part of a path."""

import asyncio
import io
import re
import sys
from pathlib import Path

import pytest
from argon2 import PasswordHasher

from backup_uploads import DAY
from backup_wing import (
    PASSWORD,
    Api,
    StartBackupProcess,
    photo,
    rows,
    settings_in,
)
from immich_bridge.backup.accounts import AccountError, Accounts, User
from immich_bridge.cli import main
from torture.effort import Effort
from torture.login_server import open_accounts, start_with_user
from torture.names_caller import Caller, shared_out
from torture.names_forwarded import CREATED, Forwarded
from torture.names_hostile import hostile_names
from torture.names_house import House
from torture.names_ways import Ways, is_local_id
from wire import Message, recording_upstream

_BATCH = 500
"""Photos of one index call."""
_LOGINS_AT_ONCE = 4
"""As many passwords as are hashed or wait without a pause."""
_PASSES, _KIB = 1, 8
"""Of a cheap hash. What becomes of a name does not depend on what a password's hash costs, and
thousands of the usual ones took most of the time."""


@pytest.fixture
def house(tmp_path: Path) -> House:
    """Everything around the server's folders."""
    return House.build(tmp_path / "house")


@pytest.fixture
def cheap_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Passwords are hashed cheaply in this process."""
    monkeypatch.setattr("immich_bridge.backup.accounts._TIME_COST", _PASSES)
    monkeypatch.setattr("immich_bridge.backup.accounts._MEMORY_KIB", _KIB)


def settings_of(house: House) -> dict[str, str]:
    """Settings of a server in the house, next to what it must not touch."""
    return settings_in(house.storage.parent)


async def test_no_name_leads_outside(
    effort: Effort,
    house: House,
    start_process: StartBackupProcess,
) -> None:
    names = hostile_names(effort, effort.amount(300, 10_000), house.absolute)
    local_ids = [name for name in names if is_local_id(name)]
    seen: list[Message] = []
    async with recording_upstream(seen, CREATED) as immich:
        server, api = await start_with_user(
            start_process, settings_of(house), IMMICH_SERVER_URL=immich.url
        )
        ways = Ways(api.token or "")
        forwarded = Forwarded(seen)
        turns = [
            *ways.all().values(),
            *(forwarded.in_headers, forwarded.in_query, forwarded.as_type),
        ]

        async def bring_in(caller: Caller, numbered: tuple[int, str]) -> None:
            number, name = numbered
            if not is_local_id(name):
                await ways.refuse_id(caller, name)
            await turns[number % len(turns)](caller, name, number)
            effort.progress("names", number, len(names))

        _make_logins_cheap(house)
        await _index(server.url, ways, local_ids)
        before = house.outside()
        await shared_out(server.url, enumerate(names), bring_in)
        given = dict(ways.indexed)
        await _index(server.url, ways, local_ids)

    assert house.outside() == before
    assert house.photos() == ways.stored
    assert ways.indexed == given
    known = {row["local_id"] for row in rows(house.database, "SELECT local_id FROM photos_user_1")}
    assert set(local_ids) <= known
    _assert_only_our_tables(house)
    forwarded.assert_forms_hold_just_the_names()
    assert not [line for line in server.log if "Traceback" in line or "unexpected error" in line]
    effort.figure(
        "6 names",
        f"{len(names)} names in {len(turns)} ways: {len(ways.stored)} photos stored, "
        f"{forwarded.taken} forms passed on, 0 writes outside",
    )


def _make_logins_cheap(house: House) -> None:
    """A name that nobody has is verified against the hash of somebody; have that one cost little.

    To be called after the only login: it would bring the hash up to date.
    """
    cheap = PasswordHasher(time_cost=_PASSES, memory_cost=_KIB, parallelism=1)
    rows(house.database, "UPDATE users SET password_hash = ?", cheap.hash(PASSWORD))


async def _index(url: str, ways: Ways, local_ids: list[str]) -> None:
    async with Caller(url) as caller:
        for at in range(0, len(local_ids), _BATCH):
            await ways.index_all(caller, local_ids[at : at + _BATCH])


async def test_a_link_in_the_place_of_a_photo_is_replaced_and_not_followed(
    house: House, start_process: StartBackupProcess
) -> None:
    _, api = await start_with_user(start_process, settings_of(house))
    [file] = (await api.index(DAY, [photo()])).json["assigned_files"]
    before = house.outside()
    place = house.day / file["filename"]
    place.symlink_to(house.root / "elsewhere" / "canary.txt")
    assert (await api.upload_stream(b"photo", local_id="IMG_1234", file_type="jpg")).status == 200
    assert not place.is_symlink()
    assert place.read_bytes() == b"photo"
    assert house.outside() == before


async def test_ids_that_are_no_utf_8_are_not_taken_for_others(
    house: House, start_process: StartBackupProcess
) -> None:
    # What stands for undecodable bytes is a character that an id may hold.
    _, api = await start_with_user(start_process, settings_of(house))
    ids = ["\ufffd", "\ufffd\ufffd", "a\ufffd", "%FF"]
    assert (await api.index(DAY, [photo(local_id) for local_id in ids])).status == 200
    for query in "%FF", "%c0%af", "a%E9", "%ed%a0%80":
        for target in (f"local_id={query}&file_type=jpg", f"local_id=%25FF&file_type={query}"):
            answer = await api.call("POST", f"/photos/upload/stream?{target}", body=b"photo")
            assert answer.error[:2] == (400, "bad_request"), target
    assert not rows(house.database, "SELECT * FROM files")


@pytest.mark.usefixtures("cheap_hashes")
async def test_usernames_are_taken_as_they_are_or_refused(
    effort: Effort, house: House, start_process: StartBackupProcess
) -> None:
    server = await start_process(**settings_of(house))
    names = hostile_names(effort, effort.amount(25, 1500), house.absolute)
    before = house.outside()
    async with open_accounts(settings_of(house)) as accounts:
        made = [user for name in names if (user := await _created(accounts, name))]
        assert [user.username for user in await accounts.all()] == [u.username for u in made]
    some = effort.chance("logins").sample(made, effort.amount(4, 100))
    for at in range(0, len(some), _LOGINS_AT_ONCE):
        logins = (_log_in(server.url, user) for user in some[at : at + _LOGINS_AT_ONCE])
        await asyncio.gather(*logins)
    assert house.outside() == before
    _assert_only_our_tables(house)
    effort.figure(
        "6 names", f"{len(names)} usernames: {len(made)} taken, each listed as it was given"
    )


async def _log_in(url: str, user: User) -> None:
    answer = await Api(url).login(user.username, PASSWORD)
    assert answer.status == 200, user
    online = await Api(url, answer.json["token"]).status()
    assert (online.json["user_id"], online.json["username"]) == (user.id, user.username)


async def _created(accounts: Accounts, name: str) -> User | None:
    try:
        user = await accounts.create(name, PASSWORD)
    except AccountError:
        # 1 to 64 characters that can be seen, with no space around them.
        assert not name.isprintable() or len(name) > 64 or name != name.strip(), ascii(name)
        return None
    assert user.username == name
    return user


@pytest.mark.usefixtures("cheap_hashes")
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_the_command_line_takes_a_name_or_refuses_it_in_one_line(
    effort: Effort, house: House, encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = hostile_names(effort, effort.amount(4, 150), house.absolute)
    before = house.outside()

    def user(action: str, name: str, *options: str) -> int:
        streams = {
            stream: io.TextIOWrapper(io.BytesIO(), encoding) for stream in ("stdout", "stderr")
        }
        streams["stderr"].reconfigure(errors="backslashreplace")  # as it is in every process
        with monkeypatch.context() as patch:
            for stream, written in streams.items():
                patch.setattr(sys, stream, written)
            code = main(["user", action, f"--username={name}", *options], settings_of(house))
        said, complaint = (_lines(written) for written in streams.values())
        assert (code, said, complaint) in ((0, 1, 0), (1, 0, 1)), ascii(name)
        return code

    # Of these one has every command succeed, and one is no text in any encoding.
    for name in ("žofie", "\udcff", "--", *names):
        made = user("create", name, "--password", PASSWORD)
        assert user("reset-password", name, "--password", PASSWORD) == made
        assert user("delete", name) == made
    assert rows(house.database, "SELECT * FROM users") == []
    after = house.outside()
    del before[str(house.data.parent)], after[str(house.data.parent)]  # now the data is there
    assert after == before


def _lines(written: io.TextIOWrapper) -> int:
    written.flush()
    assert isinstance(written.buffer, io.BytesIO)
    return written.buffer.getvalue().count(b"\n")


def _assert_only_our_tables(house: House) -> None:
    tables = {row["name"] for row in rows(house.database, "SELECT name FROM sqlite_schema")}
    users = {row["id"] for row in rows(house.database, "SELECT id FROM users")}
    of_users = {name for name in tables if re.fullmatch(r"photos_user_\d+", name)}
    assert of_users == {f"photos_user_{user_id}" for user_id in users}
    others = {name for name in tables - of_users if not name.startswith("sqlite_")}
    assert others == {
        *("users", "tokens", "files", "schema_version", "tokens_by_user", "tokens_by_expiry")
    }
