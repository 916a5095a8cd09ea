"""`deploy/systemd/immich-bridge.service`: systemd takes it, and the server works in its cage."""

import asyncio
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from backup_wing import PASSWORD, Api, photo
from debian_tools import program
from immich_bridge.config import Config
from immich_bridge.settings import SETTINGS
from immich_standin import StandIn
from raw_upload import jpeg, upload
from wire import PATIENCE

if TYPE_CHECKING:
    from conftest import BridgeProcess

StartProcess = Callable[..., Awaitable["BridgeProcess"]]

# systemd may have to be installed first.
pytestmark = pytest.mark.timeout(400)

UNIT: Final = Path(__file__).parents[2] / "deploy" / "systemd" / "immich-bridge.service"
BINARY: Final = "/opt/immich-bridge/bin/immich-bridge"

EXPOSURE: Final = 1.5
"""The most that `systemd-analyze security` may find, of 10; below 2 it says OK."""

# Read by Python at its start, before anything of the server is imported.
CAGE: Final = """
import ctypes, json, os, socket
from pyseccomp import ALLOW, EQ, ERRNO, Arg, SyscallFilter

rules = json.loads(os.environ["CAGE"])
calls = SyscallFilter(ERRNO(rules["errno"]))
for name in rules["calls"]:
    try:
        calls.add_rule(ALLOW, name)
    except (OSError, ValueError):
        pass  # of another architecture
for family in rules["families"]:
    calls.add_rule(ALLOW, "socket", Arg(0, EQ, family))
PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN = 65, 1
ctypes.CDLL(None).prctl(PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN, 0, 0, 0)
calls.load()
"""

FORBIDDEN: Final = """
import ctypes, mmap, os, socket

attempts = [
    lambda: os.chroot("/"),
    lambda: os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0)),
    lambda: socket.socket(socket.AF_NETLINK),
]
PR_GET_MDWE = 66
if ctypes.CDLL(None).prctl(PR_GET_MDWE, 0, 0, 0, 0) == 1:  # Linux 6.3 and later
    attempts.append(lambda: mmap.mmap(-1, 4096, prot=mmap.PROT_WRITE | mmap.PROT_EXEC))
for attempt in attempts:
    try:
        attempt()
    except PermissionError:
        continue
    raise SystemExit("something forbidden was done")
"""


def directives() -> list[tuple[str, str]]:
    """What the unit says, in its order."""
    lines = (line.strip() for line in UNIT.read_text().splitlines())
    return [
        (name, value)
        for name, _, value in (line.partition("=") for line in lines if not line.startswith("#"))
        if value or name.endswith(("Set", "Capabilities"))
    ]


def values(name: str) -> list[str]:
    return [value for directive, value in directives() if directive == name]


def value(name: str) -> str:
    [only] = values(name)
    return only


def environment(state: Path) -> dict[str, str]:
    """The environment of the server, were its state in `state`."""
    pairs = (pair.partition("=") for pair in values("Environment"))
    return {name: text.replace("%S/immich-bridge", str(state)) for name, _, text in pairs}


def analyze(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [program("systemd-analyze", "systemd"), "--no-pager", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": os.environ["PATH"], "LANG": "C.UTF-8"},
    )


class TestUnit:
    def test_is_verified_by_systemd(self, tmp_path: Path) -> None:
        def verify(text: str) -> str:
            unit = tmp_path / UNIT.name
            unit.write_text(text)
            # Warnings of an unknown directive do not change the exit code.
            return analyze("verify", "--man=no", unit).stderr

        # Nothing is installed in /opt here.
        text = UNIT.read_text().replace(f"ExecStart={BINARY}", "ExecStart=/bin/true")
        assert verify(text) == ""
        assert "ProtectSytem" in verify(text.replace("ProtectSystem=", "ProtectSytem="))

    def test_exposes_next_to_nothing(self) -> None:
        report = analyze("security", "--offline=true", UNIT).stdout
        found = re.search(r"Overall exposure level for \S+: ([\d.]+) ", report)
        assert found is not None, report
        assert float(found[1]) <= EXPOSURE, report

    def test_gives_uploads_the_time_that_the_server_gives_them(self) -> None:
        [grace] = (setting.default for setting in SETTINGS if setting.name == "SHUTDOWN_GRACE")
        assert int(value("TimeoutStopSec").removesuffix("s")) >= int(grace.removesuffix("s")) + 5

    def test_keeps_everything_in_the_state_directory(self) -> None:
        assert value("StateDirectory") == "immich-bridge"
        assert value("WorkingDirectory") == "%S/immich-bridge"
        config = Config.from_mapping(environment(Path("/var/lib/immich-bridge")))
        for path in (config.db_path, config.jwt_secret_path, config.storage_dir):
            assert path.parent == Path("/var/lib/immich-bridge")

    def test_does_not_repeat_what_a_wrong_setting_makes_fail(self) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "immich_bridge"],
            env={"LISTEN_ADDR": "nowhere"},
            capture_output=True,
            check=False,
        )
        assert value("RestartPreventExitStatus") == str(done.returncode)


def system_calls() -> list[str]:
    """The system calls that the unit leaves, but `socket`, which it narrows down."""
    sets: dict[str, list[str]] = {}
    name = ""
    for line in analyze("syscall-filter").stdout.splitlines():
        if line.startswith("@"):
            name = line.strip()
            sets[name] = []
        elif line.startswith("    ") and not line.strip().startswith("#"):
            sets.setdefault(name, []).append(line.strip())

    def expanded(names: list[str]) -> set[str]:
        calls = {name for name in names if not name.startswith("@")}
        inner = (expanded(sets[name]) for name in names if name.startswith("@"))
        return calls.union(*inner)

    allowed, denied, again = values("SystemCallFilter")
    assert denied.startswith("~")
    left = expanded([*allowed.split(), "@default"]) - expanded(denied[1:].split())
    left |= expanded(again.split())
    assert "read" in left
    assert "socket" in left
    assert "chroot" not in left
    return sorted(left - {"socket"})


@pytest.fixture
def cage(tmp_path: Path) -> dict[str, str]:
    """An environment in which Python does to itself what systemd would do by the unit."""
    assert value("MemoryDenyWriteExecute") == "yes"
    assert value("SystemCallErrorNumber") == "EPERM"
    families = [getattr(socket, name) for name in value("RestrictAddressFamilies").split()]
    rules = {"errno": 1, "calls": system_calls(), "families": families}
    folder = tmp_path / "cage"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(CAGE)
    return {"PYTHONPATH": str(folder), "CAGE": json.dumps(rules)}


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has such a cage")
class TestCage:
    async def test_holds(self, cage: dict[str, str]) -> None:
        """What the unit forbids is refused: the test below is worth something."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", FORBIDDEN), env={"PATH": os.environ["PATH"], **cage}
        )
        assert await asyncio.wait_for(process.wait(), PATIENCE) == 0

    async def test_leaves_the_server_what_it_needs(
        self, immich: StandIn, start_process: StartProcess, tmp_path: Path, cage: dict[str, str]
    ) -> None:
        state = tmp_path / "state"
        settings = {
            "IMMICH_SERVER_URL": immich.url.replace("127.0.0.1", "localhost"),
            "BACKUP_ENABLED": "true",
            **environment(state),
            **cage,
        }
        command = [sys.executable, "-m", "immich_bridge", "user", "create", "--username", "admin"]
        made = await asyncio.create_subprocess_exec(
            *command, "--password", PASSWORD, env={"PATH": os.environ["PATH"], **settings}
        )
        assert await asyncio.wait_for(made.wait(), PATIENCE) == 0
        server = await start_process(**settings)

        told = await upload(server.url, jpeg(1_000_000), ("X-Filename", "IMG_0001.jpg"))
        assert told.status == 201
        assert len(immich.assets) == 1

        api = Api(server.url)
        api.token = (await api.login("admin", PASSWORD)).json["token"]
        assert (await api.index("2025-12-10", [photo()])).status == 200
        target = "/photos/upload/stream?local_id=IMG_1234&file_type=image/jpeg"
        assert (await api.call("POST", target, body=jpeg(1_000_000))).status == 200
        stored = state / "storage" / "photo" / "1" / "2025" / "12" / "10" / "IMG_0001.jpg"
        assert (stored.read_bytes() == jpeg(1_000_000)) is True

        server.process.terminate()
        assert await asyncio.wait_for(server.process.wait(), PATIENCE) == 0
        # The state apart, nothing was written where the server was started.
        assert names_in(tmp_path) == {"state", "cage", "immich"}
