"""The container image: all of it that can be checked without building it."""

import asyncio
import configparser
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import pytest

from immich_bridge import __version__
from immich_bridge.config import Config
from immich_bridge.serve import Server
from test_serve import make_identity
from wire import PATIENCE

if TYPE_CHECKING:
    from conftest import BridgeProcess

StartBridge = Callable[..., Awaitable[Server]]
StartProcess = Callable[..., Awaitable["BridgeProcess"]]

PROJECT = Path(__file__).parents[2]
PACKAGE = Path("src/immich_bridge")
BIN = Path(sys.executable).parent


def instructions(text: str) -> Iterator[tuple[str, str]]:
    """The instructions of a Dockerfile, each as its keyword and its arguments."""
    text = re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE)
    for line in text.replace("\\\n", "").splitlines():
        if line.strip():
            keyword, _, arguments = line.strip().partition(" ")
            yield keyword, arguments.strip()


DOCKERFILE = list(instructions((PROJECT / "Dockerfile").read_text()))
FINAL_STAGE = DOCKERFILE[max(i for i, (keyword, _) in enumerate(DOCKERFILE) if keyword == "FROM") :]


def final(keyword: str) -> str:
    """The arguments of the one such instruction in the final stage."""
    (found,) = (arguments for word, arguments in FINAL_STAGE if word == keyword)
    return found


def pairs(keyword: str) -> dict[str, str]:
    """The names and values of LABEL or ENV."""
    return dict(word.split("=", 1) for word in shlex.split(final(keyword)))


def copies_from_the_context() -> dict[PurePosixPath, str]:
    """Every path that is copied from the build context, and where it goes."""
    copies: dict[PurePosixPath, str] = {}
    for keyword, arguments in DOCKERFILE:
        if keyword == "COPY" and not arguments.startswith("--from="):
            *sources, target = arguments.split()
            copies |= {PurePosixPath(source): target for source in sources}
    return copies


def manifest() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(PROJECT / "setup.cfg")
    return parser


def test_hadolint_finds_nothing() -> None:
    done = subprocess.run(
        [BIN / "hadolint", "--no-color", "Dockerfile"],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


class TestStages:
    def test_share_one_base_of_an_exact_version(self) -> None:
        (base,) = (arguments for keyword, arguments in DOCKERFILE[:1] if keyword == "ARG")
        pinned = re.fullmatch(r"BASE=python:(3\.\d+)\.\d+-slim-[a-z]+", base)
        assert pinned is not None
        assert f"Python :: {pinned[1]}\n" in manifest()["metadata"]["classifiers"] + "\n"
        stages = [arguments for keyword, arguments in DOCKERFILE if keyword == "FROM"]
        assert stages == ["${BASE} AS build", "${BASE}"]

    def test_hand_on_one_environment(self) -> None:
        (built,) = re.findall(r"-m venv \S+ (\S+)", " ".join(words for _, words in DOCKERFILE))
        assert f"--from=build {built} {built}" in [words for _, words in FINAL_STAGE]
        assert pairs("ENV")["PATH"] == f"{built}/bin:$PATH"

    def test_build_with_extras_that_exist(self) -> None:
        (wheels,) = (words for _, words in DOCKERFILE if "pip wheel" in words)
        extras = set(re.findall(r"\w+", wheels.partition("[")[2]))
        assert "fast" in extras
        assert extras <= manifest()["options.extras_require"].keys()


class TestFinalStage:
    def test_runs_as_a_number_that_owns_the_volumes_and_nothing_else(self) -> None:
        user, group = map(int, final("USER").split(":"))
        assert user >= 10_000 <= group
        prepared = final("RUN")
        assert f"groupadd --gid {group} " in prepared
        assert f"useradd --uid {user} --gid {group} " in prepared
        volumes = " ".join(json.loads(final("VOLUME")))
        assert f"install -d -o {user} -g {group} -m 0750 {volumes} &&" in prepared
        assert "chown" not in " ".join(words for _, words in FINAL_STAGE)

    def test_keeps_everything_in_its_volumes(self) -> None:
        config = Config.from_mapping(pairs("ENV"))
        root = Path(final("WORKDIR"))
        assert json.loads(final("VOLUME")) == ["/data", "/storage"]
        assert root / config.db_path == Path("/data/app.db")
        assert root / config.jwt_secret_path == Path("/data/jwt_secret.key")
        assert root / config.storage_dir == Path("/storage")
        assert pairs("ENV")["SQLITE_TMPDIR"] == "/data"

    def test_exposes_the_port_that_it_listens_on(self) -> None:
        assert final("EXPOSE") == str(Config.from_mapping(pairs("ENV")).listen_addr[1])

    def test_is_labelled_with_what_the_manifest_says(self) -> None:
        labels = {
            name.removeprefix("org.opencontainers.image."): value
            for name, value in pairs("LABEL").items()
        }
        metadata = manifest()["metadata"]
        assert labels == {
            "title": metadata["name"],
            "description": metadata["description"],
            "version": __version__,
            "licenses": metadata["license"],
            "base.name": "${BASE}",
        }

    def test_takes_commands_as_the_command_line_does(self, tmp_path: Path) -> None:
        (program,) = json.loads(final("ENTRYPOINT"))
        assert "CMD" not in [keyword for keyword, _ in FINAL_STAGE]
        done = subprocess.run(
            [BIN / program, "user", "create", "--username", "ada", "--password-stdin"],
            cwd=tmp_path,
            env={"PATH": os.environ["PATH"]},
            input="SecurePass123\n",
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert (tmp_path / "data" / "app.db").is_file()


class Ignore:
    """What a `.dockerignore` holds back: of all patterns that match, the last one decides."""

    def __init__(self, text: str) -> None:
        lines = [line for line in text.splitlines() if line and not line.startswith("#")]
        self._rules = [(self._regex(line.lstrip("!")), line.startswith("!")) for line in lines]
        self._exceptions = [line.removeprefix("!") for line in lines if line.startswith("!")]

    @staticmethod
    def _regex(pattern: str) -> re.Pattern[str]:
        tokens = {"**/": "(?:.*/)?", "*": "[^/]*"}
        parts = re.split(r"(\*\*/|\*)", pattern)
        # What matches a folder matches all in it.
        return re.compile("".join(tokens.get(part, re.escape(part)) for part in parts) + "(?:/.*)?")

    def __call__(self, path: str) -> bool:
        verdicts = [kept for regex, kept in self._rules if regex.fullmatch(path)]
        return bool(verdicts) and not verdicts[-1]

    def context(self, root: Path) -> set[PurePosixPath]:
        """All files below `root` that are let through."""
        found: set[PurePosixPath] = set()
        for folder, folders, files in os.walk(root):
            here = Path(folder).relative_to(root)
            names = {(here / name).as_posix() for name in files}
            found |= {PurePosixPath(name) for name in names if not self(name)}
            folders[:] = [name for name in folders if self._may_hold((here / name).as_posix())]
        return found

    def _may_hold(self, folder: str) -> bool:
        return not self(folder) or any(e.startswith(f"{folder}/") for e in self._exceptions)


@pytest.fixture(scope="module")
def ignore() -> Ignore:
    return Ignore((PROJECT / ".dockerignore").read_text())


@pytest.fixture(scope="module")
def context(ignore: Ignore) -> set[PurePosixPath]:
    return ignore.context(PROJECT)


def package_files() -> set[PurePosixPath]:
    files = (path for path in (PROJECT / PACKAGE).rglob("*") if path.is_file())
    return {
        PurePosixPath(path.relative_to(PROJECT))
        for path in files
        if "__pycache__" not in path.parts
    }


class TestContext:
    def test_is_what_the_dockerfile_copies(self, context: set[PurePosixPath]) -> None:
        copied = copies_from_the_context().keys() - {PurePosixPath(PACKAGE)}
        assert context == copied | package_files()

    @pytest.mark.parametrize(
        "path",
        [
            *("data/jwt_secret.key", "storage/photo/1/IMG_0001.jpg", ".git/config", ".env"),
            *("src/immich_bridge/backup/__pycache__/naming.pyc", "src/a.egg-info/PKG-INFO"),
        ],
    )
    def test_is_none_of_what_may_lie_around(self, ignore: Ignore, path: str) -> None:
        assert ignore(path)

    def test_makes_a_whole_wheel(self, context: set[PurePosixPath], tmp_path: Path) -> None:
        for path in context:
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(PROJECT / path, tmp_path / path)
        command = "-m pip wheel --quiet --no-deps --no-index --no-build-isolation ."
        subprocess.run([sys.executable, *command.split()], cwd=tmp_path, check=True)
        (wheel,) = tmp_path.glob("*.whl")
        packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
        assert packed == {path.relative_to("src").as_posix() for path in package_files()}


def healthcheck_command() -> list[str]:
    """The command of HEALTHCHECK, as it runs here."""
    python, script = json.loads(final("HEALTHCHECK").partition(" CMD ")[2])
    assert python == "python"
    (source,) = (path for path, to in copies_from_the_context().items() if to == script)
    return [sys.executable, str(PROJECT / source)]


async def healthcheck(**environment: str) -> tuple[int | None, str]:
    """Run the health check; its exit code and what it wrote."""
    process = await asyncio.create_subprocess_exec(
        *healthcheck_command(),
        env={"PATH": os.environ["PATH"], **environment},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    written, _ = await asyncio.wait_for(process.communicate(), PATIENCE)
    return process.returncode, written.decode().strip()


def port_of(url: str) -> str:
    return url.rpartition(":")[2]


class TestHealthcheck:
    async def test_follows_the_life_of_the_server(self, start_process: StartProcess) -> None:
        bridge = await start_process(IMMICH_SERVER_URL="")
        address = f":{port_of(bridge.url)}"
        assert await healthcheck(LISTEN_ADDR=address) == (0, "")
        bridge.process.terminate()
        assert await asyncio.wait_for(bridge.process.wait(), PATIENCE) == 0
        code, complaint = await healthcheck(LISTEN_ADDR=address)
        assert code == 1
        assert complaint.startswith(f"no answer from port {address[1:]}: ")

    @pytest.mark.parametrize("host", ["", "0.0.0.0", "127.0.0.1", "localhost", "[::]", "[::1]"])
    async def test_knocks_where_the_server_listens(
        self, start_bridge: StartBridge, host: str
    ) -> None:
        if host.startswith("[") and not socket.has_dualstack_ipv6():
            pytest.skip("there is no IPv6 here")
        bridge = await start_bridge("", LISTEN_ADDR=f"{host}:0")
        port = port_of(bridge.address)
        assert await healthcheck(LISTEN_ADDR=f"{host}:{port}") == (0, "")
        assert await healthcheck(LISTEN_ADDR=":9", HOST=host, PORT=port) == (0, "")

    async def test_does_not_mind_whose_name_the_certificate_bears(
        self, start_bridge: StartBridge, tmp_path: Path
    ) -> None:
        if shutil.which("openssl") is None:
            pytest.skip("there is no openssl to make keys with")
        identity = make_identity(tmp_path, "DNS:photos.example.com")
        tls = {"TLS_CERT_FILE": str(identity.certificate), "TLS_KEY_FILE": str(identity.key)}
        bridge = await start_bridge("", **tls)
        address = f":{port_of(bridge.address)}"
        assert await healthcheck(LISTEN_ADDR=address, **tls) == (0, "")
        assert (await healthcheck(LISTEN_ADDR=address))[0] == 1

    @pytest.mark.parametrize(
        ("answer", "complaint"),
        [
            (b"HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n", "/health answered 503"),
            (b"220 mail.example.com ESMTP\r\n", "no answer from port "),
            (b"", "no answer from port "),
        ],
        ids=["refusal", "not HTTP", "silence"],
    )
    async def test_is_satisfied_with_nothing_less(self, answer: bytes, complaint: str) -> None:
        told = asyncio.Event()

        async def reply(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"GET /health HTTP/1.1\r\n")
            writer.write(answer)
            await told.wait()
            writer.close()

        limit = re.search(r"--timeout=(\d+)s", final("HEALTHCHECK"))
        assert limit is not None
        async with await asyncio.start_server(reply, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            begun = time.monotonic()
            code, said = await healthcheck(PORT=str(port))
            assert time.monotonic() - begun < int(limit[1])
            told.set()
        assert code == 1
        assert said.startswith(complaint)

    async def test_names_a_setting_that_cannot_be_used(self) -> None:
        code, complaint = await healthcheck(PORT="http")
        assert code == 1
        assert complaint.startswith("PORT: 'http' cannot be used")


class TestMakeImage:
    """`make image` with builders that only say how they were called."""

    def make_image(self, tmp_path: Path, *builders: str) -> "subprocess.CompletedProcess[str]":
        for name in ("make", "sh", "sed"):
            program = shutil.which(name)
            assert program is not None
            (tmp_path / name).symlink_to(program)
        for name in ("docker", "podman", "buildah"):
            # Installed they all are; a docker without its daemon fails at `info`.
            state = 0 if name in builders else 1
            script = f'#!/bin/sh\n[ "$1" = build ] || exit {state}\necho "{name} $*"\n'
            (tmp_path / name).write_text(script)
            (tmp_path / name).chmod(0o755)
        return subprocess.run(
            [tmp_path / "make", "--no-print-directory", "image", "ARGS=--pull"],
            cwd=PROJECT,
            env={"PATH": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
        )

    @pytest.mark.parametrize(
        ("there", "command"),
        [
            (("docker", "podman"), "docker build"),
            (("podman", "buildah"), "podman build --format docker"),
            (("buildah",), "buildah build --format docker"),
        ],
    )
    def test_takes_the_first_builder_that_works(
        self, tmp_path: Path, there: tuple[str, ...], command: str
    ) -> None:
        done = self.make_image(tmp_path, *there)
        tags = f"--tag immich-bridge:{__version__} --tag immich-bridge:latest"
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.splitlines()[1:] == [f"{command} {tags} --pull ."]

    def test_says_what_is_missing(self, tmp_path: Path) -> None:
        done = self.make_image(tmp_path)
        assert done.returncode == 2
        assert done.stdout == ""
        assert done.stderr.startswith("make: building the image takes a running docker, podman")
