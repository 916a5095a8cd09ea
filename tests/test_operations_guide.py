"""`docs/operations.md` is true: what it names exists, and what it tells to do works."""

import asyncio
import os
import re
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from backup_wing import PASSWORD, Api, photo, settings_in
from front import unused_port
from immich_bridge import errors
from immich_bridge.backup import integrity
from immich_bridge.errors import BridgeError
from immich_bridge.settings import SETTINGS
from immich_standin import StandIn
from raw_upload import jpeg, upload
from wire import PATIENCE, fetch

if TYPE_CHECKING:
    from conftest import BridgeProcess

StartProcess = Callable[..., Awaitable["BridgeProcess"]]

PROJECT: Final = Path(__file__).parents[1]
GUIDE: Final = PROJECT / "docs" / "operations.md"
TEXT: Final = GUIDE.read_text()
FENCED: Final = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PROSE: Final = FENCED.sub("", TEXT)
CODE: Final = re.findall(r"`([^`\n]+)`", PROSE)
"""Everything in backticks."""

NOT_SETTINGS: Final = {"BACKUP", "IMMICH_API_KEY", "IMG_0001"}
"""Variables of the commands in the guide, and the name of a photo."""

DAY: Final = "2025-12-10"


def block(name: str) -> str:
    """The commands that begin with a comment of that name."""
    [found] = (body for kind, body in FENCED.findall(TEXT) if body.startswith(f"# {name}"))
    return str(found)


def section(title: str) -> str:
    """The prose under a heading."""
    return PROSE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def anchors(document: Path) -> set[str]:
    """What links into a document may name."""
    headings = re.findall(r"^#+ (.+)$", FENCED.sub("", document.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


class TestNames:
    def test_of_files_lead_somewhere(self) -> None:
        links = re.findall(r"\]\(([^)]+)\)", PROSE)
        assert len(links) > 20
        for link in links:
            path, _, anchor = link.partition("#")
            target = (GUIDE.parent / path).resolve() if path else GUIDE
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link

    def test_of_settings_are_settings_and_their_values_can_be_used(self) -> None:
        settings = {setting.name: setting for setting in SETTINGS}
        named = [re.fullmatch(r"([A-Z][A-Z0-9]*_[A-Z0-9_]+)(?:=(\S*))?", code) for code in CODE]
        found = [(match[1], match[2]) for match in named if match]
        assert len({name for name, _ in found}) > 15
        for name, value in found:
            assert name in settings.keys() | NOT_SETTINGS, name
            if value:
                settings[name].parse(value)
        commands = "".join(body for _, body in FENCED.findall(TEXT))
        assert set(re.findall(r"\$\{?([A-Z_]+)", commands)) <= settings.keys() | NOT_SETTINGS

    def test_of_errors_are_those_of_the_server(self) -> None:
        told = re.findall(r"^\| (\d{3}) `(?!immich_)(\w+)`", section("Troubleshooting"), re.M)
        told += re.findall(r"\| (499) in the log \| `(\w+)`", TEXT)
        assert {(int(status), code) for status, code in told} == {
            (each.status, each.code) for each in BridgeError.__subclasses__()
        }
        assert errors.BridgeError.code == "internal_error"

    def test_of_findings_are_those_of_the_check(self) -> None:
        told = re.findall(r"^\| `([a-z -]+)` \| .* \| .* \|$", section("Commands"), re.MULTILINE)
        kinds = (integrity.FILE_MISSING, integrity.WRONG_SIZE, integrity.UNKNOWN_FILE)
        assert set(told) == {*kinds, integrity.LEFT_OVER}

    def test_of_messages_are_in_the_source(self) -> None:
        source = "".join(path.read_text() for path in sorted((PROJECT / "src").rglob("*.py")))
        # A message may stand in two pieces.
        source = re.sub(r'"\s*\n\s*f?"', "", source)
        rows = [line.split(" | ") for line in section("Troubleshooting").splitlines()]
        outcomes = [re.findall(r"`([^`]+)`", row[1]) for row in rows if len(row) == 4]
        messages = [message for found in outcomes for message in found if " " in message]
        messages += [code for code in CODE if code.startswith("the database has")]
        assert len(messages) > 10
        for message in messages:
            for piece in message.split("..."):
                assert piece.strip(" ,") in source, message


class TestMetricsAndLogs:
    async def test_are_there(
        self, immich: StandIn, start_process: StartProcess, tmp_path: Path
    ) -> None:
        port = unused_port()
        settings = {
            **settings_in(tmp_path),
            "IMMICH_SERVER_URL": immich.url,
            "METRICS_ADDR": f"127.0.0.1:{port}",
        }
        server = await start_process(**settings)
        assert (await upload(server.url, jpeg(1000), ("X-Filename", "a.jpg"))).status == 201
        assert (await upload(server.url, jpeg(1000), key="")).status == 401
        page = (await fetch(f"http://127.0.0.1:{port}", "GET", "/metrics")).body.decode()
        exposed = set(re.findall(r"^# TYPE (\S+) ", page, re.MULTILINE))
        told = set(re.findall(r"immich_bridge_\w+", TEXT))
        assert len(told) > 8
        assert told <= exposed
        server.process.terminate()
        await asyncio.wait_for(server.process.wait(), PATIENCE)

        lines = "".join(line for line in server.log if " INFO request " in line)
        logged = set(re.findall(r" ([a-z_]+)=", lines))
        paragraph = section("Metrics and logs").partition("A request is one line")[2]
        fields = paragraph.partition("(the outcome")[0] + "`error` and `outcome`"
        for field in re.findall(r"`([a-z_]+)`", fields):
            assert field in logged, field


class Installation:
    """A server's folder, with the environment in which an operator types commands."""

    def __init__(self, folder: Path, copy: Path) -> None:
        self.settings = settings_in(folder)
        self.storage = Path(self.settings["STORAGE_DIR"])
        path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
        self._environment = {"PATH": path, "BACKUP": str(copy), **self.settings}

    async def run(self, commands: str) -> tuple[int | None, str]:
        """Run shell commands, to the first that fails; exit code and output."""
        shell = await asyncio.create_subprocess_exec(
            *("sh", "-euc", commands),
            env=self._environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await asyncio.wait_for(shell.communicate(), PATIENCE)
        return shell.returncode, output.decode()


class TestBackup:
    """The commands of the guide, on a server that runs and receives photos meanwhile."""

    @pytest.fixture
    async def live(self, tmp_path: Path) -> Installation:
        live = Installation(tmp_path / "live", tmp_path / "copy")
        made = await live.run(f"immich-bridge user create --username admin --password {PASSWORD}")
        assert made[0] == 0, made
        return live

    @pytest.fixture
    async def token(self, live: Installation, start_process: StartProcess) -> str:
        """Of a client that had its photos stored before and after the database was copied."""
        server = await start_process(**live.settings)
        api = Api(server.url)
        api.token = str((await api.login("admin", PASSWORD)).json["token"])
        await api.index(DAY, [photo("before"), photo("meanwhile")])
        await api.upload_stream(b"before", local_id="before", file_type="jpg")
        assert await live.run(block("backup")) == (0, "")
        await api.upload_stream(b"meanwhile", local_id="meanwhile", file_type="jpg")
        await api.index(DAY, [photo("indexed meanwhile")])
        await api.upload_stream(b"too", local_id="indexed meanwhile", file_type="jpg")
        assert await live.run('cp -a "$STORAGE_DIR/." "$BACKUP/storage/"') == (0, "")
        server.process.terminate()
        assert await asyncio.wait_for(server.process.wait(), PATIENCE) == 0
        return api.token

    async def test_can_be_restored(
        self, token: str, start_process: StartProcess, tmp_path: Path
    ) -> None:
        restored = Installation(tmp_path / "restored", tmp_path / "copy")
        code, output = await restored.run(block("restore"))
        photos = restored.storage / "photo" / "1" / "2025" / "12" / "10"
        assert code == 1
        assert set(output.splitlines()) == {
            f"file without its row: {photos}/IMG_0002.jpg (photo 'meanwhile' of user 1):"
            " entered into the photo's row",
            f"file without its row: {photos}/IMG_0003.jpg (no photo of that name was ever indexed):"
            " left for you to decide",
            "immich-bridge: 1 of 2 findings are left",
        }
        assert (photos / "IMG_0001.jpg").read_bytes() == b"before"
        server = await start_process(**restored.settings)
        api = Api(server.url, token)
        assert (await api.status()).json["username"] == "admin"
        assigned = (await api.index(DAY, [photo("before"), photo("meanwhile")])).json
        assert [each["uploaded_extensions"] for each in assigned["assigned_files"]] == [["jpg"]] * 2

    async def test_without_the_key_ends_the_logins(
        self, token: str, start_process: StartProcess, tmp_path: Path
    ) -> None:
        restored = Installation(tmp_path / "restored", tmp_path / "copy")
        await restored.run(block("restore"))
        await restored.run('rm "$JWT_SECRET_PATH"')
        server = await start_process(**restored.settings)
        api = Api(server.url, token)
        assert (await api.status()).status == 401
        assert (await api.login("admin", PASSWORD)).status == 200

    async def test_without_the_photos_has_them_sent_again(
        self, token: str, start_process: StartProcess, tmp_path: Path
    ) -> None:
        restored = Installation(tmp_path / "restored", tmp_path / "copy")
        await restored.run(block("restore"))
        code, output = await restored.run(
            'rm -r "$STORAGE_DIR/photo"; immich-bridge storage check --repair'
        )
        assert (code, "no such folder" in output) == (1, True)
        code, output = await restored.run(
            'mkdir "$STORAGE_DIR/photo"; immich-bridge storage check --repair'
        )
        assert (code, "all mended" in output) == (0, True)
        server = await start_process(**restored.settings)
        assigned = (await Api(server.url, token).index(DAY, [photo("before")])).json
        assert assigned["assigned_files"][0]["uploaded_extensions"] == []
