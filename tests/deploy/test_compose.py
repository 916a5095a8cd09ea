"""`deploy/compose.yaml`: a Compose file, and one that fits the image and the settings."""

import json
import re
from pathlib import Path, PurePosixPath
from typing import Any, Final

import pytest
import yaml
from compose_spec import PyCompose

from immich_bridge.config import Config
from immich_bridge.setting_values import parse_duration
from immich_bridge.settings import SETTINGS

PROJECT: Final = Path(__file__).parents[2]
COMPOSE: Final = (PROJECT / "deploy" / "compose.yaml").read_text()
EXAMPLE: Final = (PROJECT / "deploy" / ".env.example").read_text()
SERVICE: Final = "immich-bridge"

# `${NAME:-default}`, where the default also stands for an empty value, and `${NAME-default}`.
VARIABLE: Final = re.compile(r"\$\{(?P<name>\w+)(?P<colon>:?)-(?P<default>[^}]*)\}")


def interpolated(**variables: str) -> dict[str, Any]:
    """The file as Compose reads it: variables are put into values, after these were parsed."""

    def value(found: re.Match[str]) -> str:
        given = variables.get(found["name"])
        return found["default"] if given is None or (found["colon"] and not given) else given

    def walk(node: Any) -> Any:
        if isinstance(node, dict):
            return {name: walk(child) for name, child in node.items()}
        if isinstance(node, list):
            return [walk(child) for child in node]
        if isinstance(node, str):
            node = VARIABLE.sub(value, node)
            assert "$" not in node
        return node

    tree = walk(yaml.safe_load(COMPOSE))
    assert isinstance(tree, dict)
    return tree


def service(**variables: str) -> dict[str, Any]:
    """The one service of the file."""
    [(name, value)] = interpolated(**variables)["services"].items()
    assert name == SERVICE
    assert isinstance(value, dict)
    return value


def configuration(**variables: str) -> Config:
    """The settings that the server in the container has."""
    environment = service(**variables)["environment"]
    unknown = environment.keys() - {setting.name for setting in SETTINGS}
    assert not unknown
    return Config.from_mapping(environment)


def in_the_example() -> dict[str, str]:
    """The variables of `.env.example`, each of them uncommented."""
    return dict(re.findall(r"^#(\w+)=(.*)$", EXAMPLE, flags=re.MULTILINE))


def of_the_image(keyword: str) -> list[str]:
    """The arguments of all such instructions of the Dockerfile."""
    text = (PROJECT / "Dockerfile").read_text().replace("\\\n", "")
    return re.findall(rf"^{keyword} (.*)$", text, flags=re.MULTILINE)


@pytest.mark.parametrize("variables", [{}, in_the_example()], ids=["defaults", "example"])
class TestFile:
    def test_keeps_to_the_specification(self, variables: dict[str, str]) -> None:
        tree = interpolated(**variables)
        PyCompose.from_json(json.dumps(tree))
        for wrong in ({"read_onyl": True}, {"read_only": "maybe"}, {"networks": 5}):
            services = {SERVICE: {**tree["services"][SERVICE], **wrong}}
            with pytest.raises(ValueError, match=r"read_onyl|invalid type"):
                PyCompose.from_json(json.dumps({**tree, "services": services}))

    def test_leaves_no_upload_behind_when_it_stops(self, variables: dict[str, str]) -> None:
        grace = parse_duration(service(**variables)["stop_grace_period"])
        assert grace >= configuration(**variables).shutdown_grace + 5

    def test_finds_immich_in_its_network(self, variables: dict[str, str]) -> None:
        networks = interpolated(**variables)["networks"]
        assert networks == {"immich": {"external": True, "name": "immich_default"}}
        assert service(**variables)["networks"] == ["immich"]
        assert configuration(**variables).immich_server_url == "http://immich-server:2283"


class TestService:
    def test_may_do_nothing_that_it_need_not(self) -> None:
        told = service()
        assert told["read_only"] is True
        assert told["cap_drop"] == ["ALL"]
        assert told["security_opt"] == ["no-new-privileges:true"]
        assert not told.keys() & {"privileged", "cap_add", "devices", "pid", "user"}

    def test_leaves_to_the_image_what_the_image_knows(self) -> None:
        assert not service().keys() & {"command", "entrypoint", "healthcheck", "working_dir"}
        assert len(of_the_image("HEALTHCHECK")) == len(of_the_image("ENTRYPOINT")) == 1

    def test_keeps_what_the_server_writes(self) -> None:
        targets = [volume.rpartition(":")[2] for volume in service()["volumes"]]
        assert [targets] == [json.loads(volumes) for volumes in of_the_image("VOLUME")]
        [folder] = {path for path in of_the_image("WORKDIR") if path == "/"}
        config = configuration()
        written = (config.db_path, config.jwt_secret_path, config.storage_dir)
        for path in (PurePosixPath(folder) / path for path in written):
            assert any(path.is_relative_to(target) for target in targets), path
        declared = interpolated()["volumes"]
        assert declared == {target.removeprefix("/"): None for target in targets}

    def test_is_published_on_this_machine_alone(self) -> None:
        [port] = service()["ports"]
        address, inside = port.rsplit(":", 1)
        assert address == "127.0.0.1:8080"
        assert of_the_image("EXPOSE") == [inside]
        assert configuration().listen_addr == ("", int(inside))

    def test_can_do_without_immich_or_without_the_backup(self) -> None:
        assert configuration(IMMICH_SERVER_URL="").immich_server_url is None
        assert configuration(BACKUP_ENABLED="false").backup_enabled is False
        storage = service(BRIDGE_STORAGE="/mnt/photos")["volumes"]
        assert "/mnt/photos:/storage" in storage


def test_the_example_names_each_variable_once() -> None:
    used = {found["name"]: found["default"] for found in VARIABLE.finditer(COMPOSE)}
    used.pop("LIKE_THIS")
    shown = in_the_example()
    assert shown.keys() == used.keys()
    # What differs from the default is an example of what cannot have one.
    differing = {name for name, value in shown.items() if value != used[name]}
    assert differing == {"BRIDGE_STORAGE", "TRUSTED_PROXIES", "METRICS_ADDR"}
