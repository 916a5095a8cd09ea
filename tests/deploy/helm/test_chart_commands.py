"""The commands of the chart's README, the chart as a package, and what `helm test` runs."""

import asyncio
import re
import shlex
import subprocess
import sys
from typing import Any

import pytest
import yaml

from deploy.helm.helm_engine import CHART, HelmEngine, Render
from deploy.helm.helm_library import DOWNLOAD_SECONDS
from front import StartBridge
from immich_bridge import __version__
from immich_bridge.serve import Server
from wire import PATIENCE

# Helm may have to be fetched first.
pytestmark = pytest.mark.timeout(DOWNLOAD_SECONDS + 60)

README = (CHART / "README.md").read_text()


def test_the_chart_installs_the_version_beside_it() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["name"] == CHART.name
    assert chart["appVersion"] == __version__


def test_helm_finds_no_fault_with_the_chart(helm: HelmEngine) -> None:
    # An icon is what it would like to have.
    assert [path for path, severity in helm.lint() if severity != "info"] == []


def _commands() -> list[list[str]]:
    blocks = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(line) for line in lines if line.startswith("helm ")]


def _values_file() -> dict[str, Any]:
    match = re.search(r"cat > my-values.yaml << EOF\n(.*?)^EOF$", README, re.DOTALL | re.MULTILINE)
    assert match is not None
    values: dict[str, Any] = yaml.safe_load(match[1])
    return values


def _inline_values(settings: list[str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for setting in settings:
        path, _, text = setting.partition("=")
        *parents, name = path.split(".")
        place = values
        for parent in parents:
            place = place.setdefault(parent, {})
        place[name] = yaml.safe_load(text)
    return values


@pytest.mark.parametrize("command", _commands(), ids=" ".join)
def test_the_commands_of_the_readme_install(helm: HelmEngine, command: list[str]) -> None:
    assert command[:3] == ["helm", "upgrade", "-i"]
    release, chart, *options = command[3:]
    assert (CHART.parents[2] / chart).resolve() == CHART
    if options[0] == "-f":
        assert options == ["-f", "my-values.yaml"]
        values = _values_file()
    else:
        assert options[::2] == ["--set"] * len(options[1::2])
        values = _inline_values(options[1::2])
    installed = helm.upgrade(values, release=release)
    assert installed.environment["IMMICH_SERVER_URL"] == "http://immich-server:2283"
    assert ("Ingress" in installed.kinds) == ("ingress" in values)
    assert ("HorizontalPodAutoscaler" in installed.kinds) == ("autoscaling" in values)


def test_the_readme_has_all_ways_to_install() -> None:
    assert len(_commands()) == 3


@pytest.mark.parametrize("example", re.findall(r"```yaml\n(.*?)```", README, re.DOTALL))
def test_the_examples_of_the_readme_are_values(helm: HelmEngine, example: str) -> None:
    assert helm.upgrade(yaml.safe_load(example)).kinds


def test_releases_are_named_after_themselves(helm: HelmEngine) -> None:
    assert helm.upgrade({}, release="phones").find("Deployment")["metadata"]["name"] == (
        "phones-immich-bridge"
    )
    named = helm.upgrade({}, release="immich-bridge-2").find("Deployment")
    assert named["metadata"]["name"] == "immich-bridge-2"


async def _run_helm_test(render: Render, url: str) -> tuple[int | None, str]:
    """What the pod of `helm test` does, with `url` instead of the service: exit code, output."""
    (pod,) = render("default").hooks
    (container,) = pod["spec"]["containers"]
    interpreter, *arguments = container["command"]
    assert interpreter == "python"
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *arguments,
        env={"URL": url},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    output, _ = await asyncio.wait_for(process.communicate(), PATIENCE)
    return process.returncode, output.decode()


async def test_helm_test_passes_on_a_server_that_is_ready(render: Render, bridge: Server) -> None:
    status, output = await _run_helm_test(render, bridge.address)
    assert status == 0, output
    assert f"{bridge.address}/health 200" in output
    assert f"{bridge.address}/ready 200" in output


async def test_helm_test_fails_on_a_server_that_is_not(
    render: Render, start_bridge: StartBridge
) -> None:
    # Nobody listens on the discard port.
    bridge = await start_bridge("http://127.0.0.1:9", READY_REQUIRES_IMMICH="true")
    status, output = await _run_helm_test(render, bridge.address)
    assert status == 1
    assert "/health 200" in output
    assert "503" in output
