"""The command line as an operator types it."""

import asyncio
import os
import re
import sys
from pathlib import Path

import pytest

from immich_bridge import __version__
from immich_bridge.cli import main
from immich_bridge.settings import SETTINGS
from wire import PATIENCE, fetch

FLAGS = [setting for setting in SETTINGS if setting.flag]


def refused(
    capsys: pytest.CaptureFixture[str], *arguments: str, **environment: str
) -> tuple[int | str | None, str]:
    """Exit code and the one line on standard error."""
    code: int | str | None
    try:
        code = main(arguments, environment)
    except SystemExit as exc:
        code = exc.code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.endswith("\n")
    assert captured.err.count("\n") == 1
    return code, captured.err.rstrip("\n")


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("arguments", [[], ["serve"]])
def test_a_bad_setting_is_named_in_one_line(
    capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    code, line = refused(capsys, *arguments, BODY_IDLE_TIMEOUT="soon")
    assert code == 2
    assert line == (
        "immich-bridge: BODY_IDLE_TIMEOUT: 'soon' cannot be used, expected a duration such as 60s"
    )


def test_a_process_says_the_same() -> None:
    async def run() -> tuple[int | None, bytes, bytes]:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "immich_bridge"),
            env={"PATH": os.environ["PATH"], "LOG_FORMAT": "xml"},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await asyncio.wait_for(process.communicate(), PATIENCE)
        return process.returncode, out, err

    line = b"immich-bridge: LOG_FORMAT: 'xml' cannot be used, expected text or json\n"
    assert asyncio.run(run()) == (2, b"", line)


@pytest.mark.parametrize(
    ("flag", "name", "value"),
    [
        ("--port", "PORT", "no-port"),
        ("--host", "HOST", "no host"),
        ("--immich-server-url", "IMMICH_SERVER_URL", "no-url"),
    ],
)
def test_a_flag_wins_over_the_environment(
    capsys: pytest.CaptureFixture[str], flag: str, name: str, value: str
) -> None:
    good = {"PORT": "0", "HOST": "localhost", "IMMICH_SERVER_URL": ""}
    code, line = refused(capsys, flag, value, **good)
    assert (code, line.partition(" cannot")[0]) == (2, f"immich-bridge: {name}: '{value}'")
    # The other way round: what the flag says is in order, so that the next fault is told.
    code, line = refused(capsys, flag, good[name], **{name: value, "LOG_FORMAT": "xml"})
    assert (code, "LOG_FORMAT" in line) == (2, True)


async def test_every_flag_of_a_running_server(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    flags = {
        "--host": "127.0.0.1",
        "--port": "0",
        "--workers": "1",
        "--immich-server-url": "",
        "--db-path": str(tmp_path / "flags" / "app.db"),
        "--storage-dir": str(tmp_path / "flags" / "storage"),
        "--jwt-secret-path": str(tmp_path / "flags" / "jwt.key"),
    }
    assert flags.keys() == {setting.flag for setting in FLAGS}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "immich_bridge"),
        *(part for flag in flags.items() for part in flag),
        env={
            "PATH": os.environ["PATH"],
            "HOST": "192.0.2.1",
            "PORT": "1",
            "WORKERS": "64",
            "IMMICH_SERVER_URL": "http://192.0.2.1",
            **{name: str(elsewhere) for name in ("DB_PATH", "STORAGE_DIR", "JWT_SECRET_PATH")},
        },
        cwd=tmp_path,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stderr is not None
        line = (await asyncio.wait_for(process.stderr.readline(), PATIENCE)).decode()
        listening = re.search(r" INFO listening url=(http://127\.0\.0\.1:\d+) immich=off ", line)
        assert listening, line
        assert (await fetch(listening[1], "GET", "/ready")).status == 200
        assert names_in(tmp_path / "flags") >= {"app.db", "storage", "jwt.key"}
        assert names_in(tmp_path) == {"flags"}
        process.terminate()
        assert await asyncio.wait_for(process.wait(), PATIENCE) == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@pytest.mark.parametrize(
    "arguments",
    [["--nonsense"], ["--por", "80"], ["--port"], ["nonsense"], ["user"], ["user", "nonsense"]],
)
def test_what_cannot_be_understood_is_one_line_too(
    capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    code, line = refused(capsys, *arguments)
    assert code == 2
    assert line.startswith("immich-bridge")
    assert "--help" in line


def test_help_tells_of_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["--help"], {})
    assert exit_.value.code == 0
    text = capsys.readouterr().out
    flags, _, settings = text.partition("Every setting is read from the environment")
    for setting in SETTINGS:
        assert re.search(rf"^  {setting.name} ", settings, re.MULTILINE)
        if setting.default:
            assert f"(default: {setting.default})" in " ".join(settings.split())
        if setting.flag:
            assert f"{setting.flag} {setting.name}" in flags
    assert max(map(len, text.splitlines())) <= 100


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["--version"], {})
    assert exit_.value.code == 0
    assert capsys.readouterr().out == f"immich-bridge {__version__}\n"
