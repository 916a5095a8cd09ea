"""The commands beside serving: accounts, and the state of the storage.

Whatever depends on standard input, a terminal or another process runs as a process of its
own, as an operator runs it; the rest calls the same entry point, which is ten times as fast.
"""

import asyncio
import logging
import os
import pty
import re
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest

from backup_wing import PASSWORD, USERNAME, Api, photo, rows, settings_in
from immich_bridge.backup.accounts import Accounts
from immich_bridge.backup.database import Database
from immich_bridge.cli import main
from immich_bridge.serve import Server
from wire import PATIENCE

StartBridge = Callable[..., Awaitable[Server]]

CREATE = ("user", "create", "--username", USERNAME)
RESET = ("user", "reset-password", "--username", USERNAME)
DAY = "2025-12-10"
TAKEN = datetime(2025, 12, 10, 10, tzinfo=UTC).timestamp()


@dataclass(frozen=True)
class Outcome:
    """What a command left behind."""

    code: int | str | None
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        """What a command that was carried out has said, and only where it should."""
        assert (self.code, self.err) == (0, ""), self
        assert self.out.endswith("\n") or not self.out
        return self.out.splitlines()

    @property
    def refusal(self) -> str:
        """The one line of a command that was not carried out."""
        assert self.code == 1, self
        assert self.err.count("\n") == 1, self
        assert self.err.startswith("immich-bridge: "), self
        return self.err.removeprefix("immich-bridge: ").rstrip("\n")


def environment(folder: Path, **more: str) -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "LANG": "C.UTF-8", **settings_in(folder), **more}


class Shell:
    """Runs commands as processes, with the settings of this test's server."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def __call__(self, *arguments: str | bytes, stdin: bytes = b"", **more: str) -> Outcome:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "immich_bridge", *arguments),
            cwd=self._folder,
            env=environment(self._folder, **more),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await asyncio.wait_for(process.communicate(stdin), PATIENCE)
        return Outcome(process.returncode, out.decode(), err.decode())


class Call:
    """Runs commands in this process, with the settings of this test's server."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self._folder = folder
        self._capsys = capsys

    async def beside_a_server(self, *arguments: str, **more: str) -> Outcome:
        """In a thread, while the event loop has a server of this process to run."""
        return await asyncio.to_thread(self, *arguments, **more)

    def __call__(self, *arguments: str, **more: str) -> Outcome:
        code: int | str | None
        root = logging.getLogger()
        handlers, level = root.handlers[:], root.level
        try:
            code = main(arguments, environment(self._folder, **more))
        except SystemExit as exc:
            code = exc.code
        finally:
            root.handlers[:] = handlers
            root.setLevel(level)
        return Outcome(code, *self._capsys.readouterr())


class Terminal:
    """A command that has a terminal to itself."""

    def __init__(self, process: asyncio.subprocess.Process, descriptor: int) -> None:
        self.process = process
        self.shown = b""
        self._descriptor = descriptor
        self._more = asyncio.Event()
        self._ended = False
        asyncio.get_running_loop().add_reader(descriptor, self._read)

    def _read(self) -> None:
        piece = b""
        with suppress(OSError):  # EIO is how a terminal says that nobody is left on it
            piece = os.read(self._descriptor, 65536)
        self.shown += piece
        if not piece:
            self._ended = True
            asyncio.get_running_loop().remove_reader(self._descriptor)
        self._more.set()

    async def wait_for(self, text: bytes) -> None:
        """Return once `text` is shown."""
        async with asyncio.timeout(PATIENCE):
            while text not in self.shown:
                assert not self._ended, self.shown
                self._more.clear()
                await self._more.wait()

    def type(self, keys: bytes) -> None:
        """Press keys."""
        os.write(self._descriptor, keys)

    async def end(self) -> Outcome:
        """The exit code, and all that was shown."""
        async with asyncio.timeout(PATIENCE):
            await self.process.wait()
            while not self._ended:
                self._more.clear()
                await self._more.wait()
        return Outcome(self.process.returncode, self.shown.decode().replace("\r\n", "\n"), "")


# Makes the terminal the one that Ctrl-C and getpass's /dev/tty belong to.
TAKE_TERMINAL = """
import fcntl, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
from immich_bridge.cli import main
sys.exit(main())
"""


@asynccontextmanager
async def terminal(folder: Path, *arguments: str) -> AsyncIterator[Terminal]:
    """A command on a terminal of its own, in a session of its own: Ctrl-C reaches it alone."""
    ours, theirs = pty.openpty()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", TAKE_TERMINAL, *arguments),
        cwd=folder,
        env=environment(folder, TERM="xterm", COLUMNS="100"),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    try:
        yield Terminal(process, ours)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        asyncio.get_running_loop().remove_reader(ours)
        os.close(ours)


@pytest.fixture
def run(tmp_path: Path) -> Shell:
    """Run a command as a process: `await run("user", "list")`."""
    return Shell(tmp_path)


@pytest.fixture
def call(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Call:
    """Run a command: `call("user", "list")`."""
    return Call(tmp_path, capsys)


@pytest.fixture
def db_path(tmp_path: Path) -> Path:
    """The database file."""
    return Path(settings_in(tmp_path)["DB_PATH"])


@pytest.fixture
def day(tmp_path: Path) -> Path:
    """The folder of the photos of user 1."""
    return tmp_path / "storage" / "photo" / "1" / "2025" / "12" / "10"


@asynccontextmanager
async def opened(db_path: Path) -> AsyncIterator[Accounts]:
    database = Database(db_path)
    await database.open()
    accounts = Accounts(database)
    try:
        yield accounts
    finally:
        accounts.close()
        await database.close()


async def check_login(db_path: Path, password: str) -> None:
    async with opened(db_path) as accounts:
        assert (await accounts.authenticate(USERNAME, password)).username == USERNAME


@pytest.fixture
async def server(start_bridge: StartBridge, db_path: Path, tmp_path: Path) -> Server:
    """A server with the user `admin` that runs beside the commands."""
    async with opened(db_path) as accounts:
        await accounts.create(USERNAME, PASSWORD)
    return await start_bridge("", **settings_in(tmp_path))


@pytest.fixture
async def api(server: Server) -> Api:
    """A client of `server` with three photos: `a` as jpg and heic, `b` as jpg, `c` to come."""
    answer = await Api(server.address).login(USERNAME, PASSWORD)
    api = Api(server.address, answer.json["token"])
    await api.index(DAY, [photo("a"), photo("b"), photo("c")])
    for local_id, file_type in ("a", "jpg"), ("a", "heic"), ("b", "jpg"):
        content = f"{local_id} as {file_type}".encode()
        answer = await api.upload_stream(content, local_id=local_id, file_type=file_type)
        assert answer.status == 200
    return api


def users_in(db_path: Path) -> list[str]:
    found = rows(db_path, "SELECT username FROM users") if db_path.exists() else []
    return [row["username"] for row in found]


def put(path: Path, content: bytes, age: float = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    os.utime(path, (time.time() - age,) * 2)
    return path


def test_the_life_of_an_account(call: Call, db_path: Path, tmp_path: Path) -> None:
    made = call(*CREATE, "--password", PASSWORD)
    assert made.lines == ["created user admin with id 1"]
    made = call("user", "create", "--username", "žofie", "--password", "密码密码密码密码")
    assert made.lines == ["created user žofie with id 2"]
    dates = [row["created_at"] for row in rows(db_path, "SELECT created_at FROM users")]
    listed = call("user", "list")
    assert listed.lines == [f"1\tadmin\t{dates[0]}", f"2\tžofie\t{dates[1]}"]
    reset = call(*RESET, "--password", "a new password")
    assert reset.lines == ["admin has a new password; their tokens are no longer valid"]
    deleted = call("user", "delete", "--username", USERNAME)
    photos = tmp_path / "storage" / "photo" / "1"
    assert deleted.lines == [f"deleted user admin; their photos, if any, stay in {photos}"]
    assert call("user", "list").lines == [f"2\tžofie\t{dates[1]}"]


async def test_accounts_change_under_a_running_server(run: Shell, server: Server) -> None:
    anybody = Api(server.address)
    old = await anybody.login(USERNAME, PASSWORD)
    assert (await run(*RESET, "--password", "a new password")).lines
    assert (await Api(server.address, old.json["token"]).status()).status == 401
    assert (await anybody.login(USERNAME, PASSWORD)).status == 401
    new = await anybody.login(USERNAME, "a new password")
    made = await run("user", "create", "--username", "b", "--password", PASSWORD)
    assert made.lines == ["created user b with id 2"]
    assert (await anybody.login("b", PASSWORD)).status == 200
    assert (await run("user", "delete", "--username", USERNAME)).lines
    assert (await Api(server.address, new.json["token"]).status()).status == 401
    assert (await anybody.login(USERNAME, "a new password")).status == 401


async def test_neither_the_server_nor_a_command_finds_the_database_locked(
    run: Shell, api: Api, db_path: Path
) -> None:
    stop = asyncio.Event()
    statuses: set[int] = set()

    async def work(n: int) -> None:
        sent = 0
        while not stop.is_set():
            sent += 1
            local_id = f"{n} {sent}"
            statuses.add((await api.index(DAY, [photo(local_id)])).status)
            answer = await api.upload_stream(b"x" * sent, local_id=local_id, file_type="jpg")
            statuses.add(answer.status)

    workers = [asyncio.create_task(work(n)) for n in range(4)]
    names = [f"user {n}" for n in range(3)]
    made = await asyncio.gather(
        *(run("user", "create", "--username", name, "--password", PASSWORD) for name in names)
    )
    stop.set()
    await asyncio.gather(*workers)
    assert sorted(outcome.lines[0].partition(" with")[0] for outcome in made) == [
        f"created user {name}" for name in names
    ]
    assert statuses == {200}
    assert sorted(users_in(db_path)) == [USERNAME, *names]


def test_settings_are_flags_too(call: Call, tmp_path: Path) -> None:
    flags = ("--db-path", str(tmp_path / "elsewhere" / "app.db"))
    # They stand before the command or after it.
    assert call(*flags, *CREATE, "--password", PASSWORD).lines
    assert len(call("user", "list", *flags).lines) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["elsewhere"]


async def test_a_password_comes_from_the_first_line_of_standard_input(
    run: Shell, db_path: Path
) -> None:
    password = "  päss\0wörd with spaces  "
    stdin = password.encode() + b"\r\nanother line\n"
    made = await run(*CREATE, "--password-stdin", stdin=stdin)
    assert made.lines == ["created user admin with id 1"]
    await check_login(db_path, password)
    # A last line may lack its end.
    assert (await run(*RESET, "--password-stdin", stdin=b"no newline")).lines
    await check_login(db_path, "no newline")


REFUSED = [
    ((*CREATE, "--password", PASSWORD), "there is a user 'admin' already"),
    (
        ("user", "create", "--username", "b", "--password", "short"),
        "a password has 8 to 1024 characters",
    ),
    ((*RESET, "--password", ""), "a password has 8 to 1024 characters"),
    (
        (*RESET, "--password", "caf\udce9 caf\udce9"),
        "a password is text in the encoding of the locale",
    ),
    (
        ("user", "create", "--username", "", "--password", PASSWORD),
        "a username has 1 to 64 printable characters",
    ),
    (
        ("user", "create", "--username", "caf\udce9", "--password", PASSWORD),
        "a username has 1 to 64 printable characters",
    ),
    (
        ("user", "create", "--username", " b", "--password", PASSWORD),
        "a username neither begins nor ends with a space",
    ),
    (
        ("user", "reset-password", "--username", "b", "--password", PASSWORD),
        "there is no user 'b'",
    ),
    (("user", "delete", "--username", "b"), "there is no user 'b'"),
    (("user", "delete", "--username", "b\nc"), "there is no user 'b\\nc'"),
    (("storage", "fix-times", "--user", "b"), "there is no user 'b'"),
]


def test_what_cannot_be_done_is_refused_in_one_line(
    call: Call, db_path: Path, subtests: pytest.Subtests
) -> None:
    assert call(*CREATE, "--password", PASSWORD).lines
    before = rows(db_path, "SELECT * FROM users")
    for arguments, line in REFUSED:
        with subtests.test(arguments=ascii(arguments)):
            outcome = call(*arguments)
            assert outcome.refusal == line
            assert outcome.out == ""
    assert rows(db_path, "SELECT * FROM users") == before


async def test_a_process_without_a_password_refuses_in_one_line(run: Shell, db_path: Path) -> None:
    latin = b"caf\xe9 caf\xe9"
    outcomes = await asyncio.gather(
        run(*CREATE, stdin=b"from a pipe\n"),
        run(*CREATE, "--password-stdin", stdin=b""),
        run(*CREATE, "--password", latin),
        # As most locales do it, while C.UTF-8 would let it pass.
        run(*CREATE, "--password-stdin", stdin=latin, PYTHONIOENCODING="utf-8:strict"),
    )
    no_text = "a password is text in the encoding of the locale"
    assert [outcome.refusal for outcome in outcomes] == [
        "no password: give --password or --password-stdin, or use a terminal",
        "a password has 8 to 1024 characters",
        no_text,
        no_text,
    ]
    assert users_in(db_path) == []


NO_COMMANDS: list[tuple[str, ...]] = [
    ("user",),
    ("users", "list"),
    ("user", "rename"),
    ("user", "create", "--password", PASSWORD),
    (*CREATE, "--password", PASSWORD, "--password-stdin"),
    ("user", "create", "--user", "x", "--password", PASSWORD),
    ("user", "list", "--username", "x"),
    ("user", "delete", "--username", "x", "--password", PASSWORD),
    ("storage",),
    ("storage", "check", "--fix"),
    ("storage", "fix-times", "--user"),
    ("user", "list", "surplus"),
]


def test_what_is_no_command_is_a_usage_error(
    call: Call, tmp_path: Path, subtests: pytest.Subtests
) -> None:
    for arguments in NO_COMMANDS:
        with subtests.test(arguments=arguments):
            outcome = call(*arguments)
            assert (outcome.code, outcome.out) == (2, "")
            assert outcome.err.count("\n") == 1
    bad_setting = call("user", "list", MAX_UPLOAD_SIZE="much")
    assert bad_setting.code == 2
    assert bad_setting.err.startswith("immich-bridge: MAX_UPLOAD_SIZE: 'much' cannot be used")
    assert list(tmp_path.iterdir()) == []


def test_a_database_that_cannot_be_used_refuses_every_command(
    call: Call, db_path: Path, subtests: pytest.Subtests
) -> None:
    assert call(*CREATE, "--password", PASSWORD).lines
    newer, maimed = db_path.with_name("newer.db"), db_path.with_name("maimed.db")
    for copy in newer, maimed:
        rows(db_path, "VACUUM INTO ?", str(copy))
    rows(newer, "UPDATE schema_version SET version = 9")
    for table in "files", "tokens", "users":
        rows(maimed, f"DROP TABLE {table}")
    broken = put(db_path.with_name("broken.db"), b"no database " * 100)
    reasons = {
        newer: r"the database has schema version 9, this program knows up to 1: .* newer release",
        broken: r".*/broken\.db cannot be used: file is not a database",
        maimed: r".*/maimed\.db: database error: no such table: (main\.)?(users|files|tokens)",
        db_path.parent: r".*/data cannot be opened: unable to open database file",
    }
    for command in [
        (*RESET, "--password", PASSWORD),
        ("user", "list"),
        ("user", "delete", "--username", USERNAME),
        ("storage", "check"),
        ("storage", "fix-times"),
    ]:
        for path, reason in reasons.items():
            with subtests.test(command=command, path=path.name):
                refusal = call(*command, DB_PATH=str(path)).refusal
                assert re.fullmatch(f"DB_PATH: {reason}", refusal), refusal


async def test_a_password_is_asked_for_twice_and_never_shown(tmp_path: Path, db_path: Path) -> None:
    async with terminal(tmp_path, *CREATE) as screen:
        await screen.wait_for(b"Password: ")
        screen.type("hidden pässword\n".encode())
        await screen.wait_for(b"Again: ")
        screen.type("hidden pässword\n".encode())
        outcome = await screen.end()
    assert (outcome.code, outcome.out) == (
        0,
        "Password: \nAgain: \ncreated user admin with id 1\n",
    )
    await check_login(db_path, "hidden pässword")


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        ([b"hidden password\n", b"another password\n"], "the two passwords differ"),
        # Ctrl-D and Ctrl-C.
        ([b"\x04"], "no password was given"),
        ([b"hidden password\n", b"\x03"], "interrupted"),
        ([b"caf\xe9 caf\xe9\n"], "a password is text in the encoding of the locale"),
    ],
)
async def test_without_a_password_nothing_happens(
    tmp_path: Path, db_path: Path, keys: list[bytes], line: str
) -> None:
    async with terminal(tmp_path, *CREATE) as screen:
        for prompt, typed in zip((b"Password: ", b"Again: "), keys, strict=False):
            await screen.wait_for(prompt)
            screen.type(typed)
        outcome = await screen.end()
    assert outcome.code == 1
    assert outcome.out.splitlines()[-1].endswith(f"immich-bridge: {line}")
    assert "hidden" not in outcome.out
    assert "Traceback" not in outcome.out
    assert users_in(db_path) == []


def test_nothing_is_in_its_place(call: Call, tmp_path: Path) -> None:
    assert call("storage", "check").lines == ["everything is in its place"]
    assert call("storage", "check", "--repair").lines == ["everything is in its place"]
    assert call("storage", "fix-times").lines == ["0 files got their creation time"]
    assert not (tmp_path / "storage").exists()


async def test_a_check_names_every_kind_of_finding_and_mends_what_it_can(
    run: Shell, call: Call, api: Api, day: Path
) -> None:
    assert (await call.beside_a_server("storage", "check")).lines == ["everything is in its place"]
    missing, damaged = day / "IMG_0001.heic", day / "IMG_0002.jpg"
    missing.unlink()
    damaged.write_bytes(b"damaged")
    unrecorded = put(day / "IMG_0003.jpg", b"c as jpg")
    nobodys = put(day / "two\nlines \udce9 \x1b[2J.jpg", b"nobody's")
    shown = f"{day}/two\\nlines \\udce9 \\x1b[2J.jpg"
    old = put(day / ".upload-0123456789abcdef.part", b"half", age=7200)
    young = put(day / ".upload-fedcba9876543210.part", b"half", age=60)

    wait = "(less than an hour old, an upload may be under way)"
    found = [
        f"row without its file: {missing} (photo 'a' of user 1)",
        f"wrong size: {damaged} (photo 'b' of user 1: 7 bytes, stored were 8)",
        f"left-over temporary file: {old} (of an interrupted upload)",
        f"left-over temporary file: {young} {wait}: left for you to decide",
        f"file without its row: {unrecorded} (photo 'c' of user 1)",
        f"file without its row: {shown} (no photo of that name was ever indexed): "
        "left for you to decide",
    ]
    checked = await run("storage", "check")
    assert checked.out.splitlines() == found
    assert checked.refusal == (
        "6 of 6 findings are left; --repair mends what can be mended without loss"
    )
    again = "marked as not uploaded: its client will send it again"
    repaired = await run("storage", "check", "--repair")
    assert repaired.out.splitlines() == [
        f"{found[0]}: {again}",
        f"{found[1]}: {again}",
        f"{found[2]}: removed",
        found[3],
        f"{found[4]}: entered into the photo's row",
        found[5],
    ]
    assert repaired.refusal == "2 of 6 findings are left"
    # Nothing was lost but the temporary file that nobody writes to.
    assert not old.exists()
    assert [path.read_bytes() for path in (young, damaged, unrecorded, nobodys)] == [
        *(b"half", b"damaged", b"c as jpg", b"nobody's")
    ]
    answer = await api.index(DAY, [photo("a"), photo("b"), photo("c")])
    uploaded = [file["uploaded_extensions"] for file in answer.json["assigned_files"]]
    assert uploaded == [["jpg"], [], ["jpg"]]
    # Once all of it is settled, so is the storage.
    nobodys.unlink()
    young.unlink()
    assert (await api.upload_stream(b"b anew", local_id="b", file_type="jpg")).status == 200
    (day / "IMG_0001.jpg").unlink()
    mended = (await call.beside_a_server("storage", "check", "--repair")).lines
    assert len(mended) == 2
    assert mended[-1] == "1 findings, all mended"
    assert (await call.beside_a_server("storage", "check")).lines == ["everything is in its place"]


async def test_a_storage_that_cannot_be_read_is_refused_unrepaired(
    call: Call, api: Api, db_path: Path, tmp_path: Path
) -> None:
    before = rows(db_path, "SELECT * FROM photos_user_1")
    elsewhere = str(tmp_path / "not mounted")
    refused = await call.beside_a_server("storage", "check", "--repair", STORAGE_DIR=elsewhere)
    assert refused.refusal.startswith("STORAGE_DIR: ")
    assert elsewhere in refused.refusal
    assert rows(db_path, "SELECT * FROM photos_user_1") == before


async def test_times_are_set_and_told(call: Call, api: Api, db_path: Path, day: Path) -> None:
    paths = [day / "IMG_0001.jpg", day / "IMG_0002.jpg"]
    for path in paths:
        os.utime(path, (0, 0))
    async with opened(db_path) as accounts:
        await accounts.create("bert", PASSWORD)
    others = await call.beside_a_server("storage", "fix-times", "--user", "bert")
    assert others.lines == ["0 files got their creation time"]
    would = await call.beside_a_server("storage", "fix-times", "--dry-run")
    assert would.lines == [*map(str, paths), "2 files would get their creation time"]
    assert [path.stat().st_mtime for path in paths] == [0, 0]
    done = await call.beside_a_server("storage", "fix-times", "--user", USERNAME)
    assert done.lines == [*map(str, paths), "2 files got their creation time"]
    assert [path.stat().st_mtime for path in paths] == [TAKEN, TAKEN]


async def test_a_bar_is_for_terminals(run: Shell, api: Api, day: Path, tmp_path: Path) -> None:
    (day / "IMG_0001.heic").unlink()
    async with terminal(tmp_path, "storage", "check") as screen:
        on_terminal = await screen.end()
    assert on_terminal.code == 1
    assert re.search(r"rows .*3/3", on_terminal.out)
    piped = await run("storage", "check", TERM="xterm")
    assert piped.out == f"row without its file: {day}/IMG_0001.heic (photo 'a' of user 1)\n"
    assert piped.refusal
    # The findings themselves are the same, and stand behind the bar.
    assert on_terminal.out.endswith(piped.out + piped.err)
