"""Every setting of the server can be reached through values, and a wrong one is refused early."""

import functools
import json
import re
from typing import Any, Final

import jsonschema
import pytest
import yaml

from deploy.helm.helm_engine import CHART, HelmEngine, RefusedError, Release
from deploy.helm.helm_library import DOWNLOAD_SECONDS
from immich_bridge.config import Config
from immich_bridge.setting_values import parse_duration
from immich_bridge.settings import SETTINGS

# Helm may have to be fetched first.
pytestmark = pytest.mark.timeout(DOWNLOAD_SECONDS + 60)

NAMES: Final = {setting.name for setting in SETTINGS}

# What `config` does not hold: the one is secret, the other opens a port of its own.
FROM_ELSEWHERE: Final = {"JWT_SECRET", "METRICS_ADDR"}

# Where a container differs from a shell: another machine, and volumes instead of a folder.
IN_A_CONTAINER: Final = {
    "IMMICH_SERVER_URL": "http://immich-server:2283",
    "DB_PATH": "/data/app.db",
    "JWT_SECRET_PATH": "/data/jwt_secret.key",
    "STORAGE_DIR": "/storage",
}

# A value for each key of `config` that is not its default, and what the server has to be given.
OTHER_VALUES: Final[dict[str, tuple[Any, str]]] = {
    "immichServerURL": ("https://immich.internal/prefix", "https://immich.internal/prefix"),
    "workers": (4, "4"),
    "backupEnabled": (False, "false"),
    "listenAddr": ("[::]:9000", "[::]:9000"),
    "host": ("0.0.0.0", "0.0.0.0"),
    "port": (9001, "9001"),
    "dbPath": ("/data/other.db", "/data/other.db"),
    "jwtSecretPath": ("/data/other.key", "/data/other.key"),
    "storageDir": ("/storage/photos", "/storage/photos"),
    "tokenTTL": ("12h", "12h"),
    "maxUploadSize": (5_000_000_000, "5000000000"),
    "maxStreamSize": ("1.5GiB", "1.5GiB"),
    "rateLimitLogin": (0, "0"),
    "rateLimitUpload": ("10 per 5 minutes", "10 per 5 minutes"),
    "rateLimitStorage": ("redis://redis:6379", "redis://redis:6379"),
    "trustedProxies": (["10.0.0.0/8", "fd00::/8"], "10.0.0.0/8,fd00::/8"),
    "bodyIdleTimeout": (90, "90"),
    "upstreamConnectTimeout": ("500ms", "500ms"),
    "upstreamResponseTimeout": ("1h30m", "1h30m"),
    "resumable": ("on", "on"),
    "resumableHold": ("30m", "30m"),
    "fastPath": ("off", "off"),
    "mallocTuning": ("off", "off"),
    "shutdownGrace": ("2m", "2m"),
    "tlsCertFile": ("/pki/cert.pem", "/pki/cert.pem"),
    "tlsKeyFile": ("/pki/key.pem", "/pki/key.pem"),
    "immichCAFile": ("/pki/ca.pem", "/pki/ca.pem"),
    "readyRequiresImmich": (True, "true"),
    "logLevel": ("debug", "debug"),
    "logFormat": ("json", "json"),
}

# Texts that one setting or another takes, and some that none does.
TEXTS: Final = (
    *("", "0", "00", "1", "-1", "64", "65", "1.5", ".5", "5x", "80,90", "true", "no", "nothing"),
    *("0s", "10s", "500ms", "1h30m", "1h30", "1 h", "7d", "40000d", "0h0m", "60S", "6e1"),
    *("0MB", "50MB", "50 mb", "1.5GiB", "5PB", "50M B", "1e9"),
    *("5/minute", "5 per 2 hours", "0/minute", "5/fortnight", "minute", "5/", "05/second"),
    *("memory://", "redis://:pw@host:6379/0", "redis", "://host", "Redis://host", "redis://a b"),
    *(":8080", ":0", "host:8080", "[::1]:8080", "::1:8080", ":80808", ":", "8080", "[::1]", "::"),
    *("http://immich:2283", "https://immich/a/b", "http://", "immich:2283", "ftp://immich"),
    *("http://u:p@immich", "http://immich/?a=b", "http://immich/#a", "http://im mich", "http://?"),
    *("10.0.0.0/8", "10.0.0.0/8,fd00::/8", "10.0.0.0/8 fd00::/8", "example.com", "10.0.0.0/8;"),
    *("info", "debug", "warning", "error", "trace", "auto", "off", "json", "text", "xml"),
)


@functools.cache
def defaults() -> dict[str, Any]:
    """The values of the chart as it is."""
    values: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text())
    return values


@functools.cache
def schema() -> dict[str, Any]:
    """The schema that Helm checks values against."""
    document: dict[str, Any] = json.loads((CHART / "values.schema.json").read_text())
    return document


def setting_name(key: str) -> str:
    """tokenTTL -> TOKEN_TTL, immichCAFile -> IMMICH_CA_FILE"""
    return re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", key).upper()


def test_config_has_every_setting_and_no_other() -> None:
    assert {setting_name(key) for key in defaults()["config"]} | FROM_ELSEWHERE == NAMES
    assert set(schema()["properties"]["config"]["properties"]) == set(defaults()["config"])


def test_defaults_are_those_of_the_server(helm: HelmEngine) -> None:
    wanted = {each.name: each.default for each in SETTINGS} | IN_A_CONTAINER
    for name in FROM_ELSEWHERE:
        del wanted[name]
    assert helm.upgrade({}).environment == wanted


def test_null_leaves_a_setting_to_the_server(helm: HelmEngine) -> None:
    keys = set(OTHER_VALUES) - {"immichServerURL", "backupEnabled"}
    release = helm.upgrade({"config": dict.fromkeys(keys)})
    assert set(release.environment) == {"IMMICH_SERVER_URL", "BACKUP_ENABLED"}
    assert release.container["ports"][0]["containerPort"] == 8080
    assert release.pod["terminationGracePeriodSeconds"] == 45


def test_every_setting_of_config_reaches_the_server(helm: HelmEngine) -> None:
    assert set(OTHER_VALUES) == set(defaults()["config"])
    values = {key: value for key, (value, _) in OTHER_VALUES.items()}
    release = helm.upgrade({"config": values})
    environment = release.environment
    assert environment == {setting_name(key): text for key, (_, text) in OTHER_VALUES.items()}
    # And all of them are others than before, as the server reads them.
    before = Config.from_mapping({**IN_A_CONTAINER})
    after = Config.from_mapping(environment)
    same = {name for name in vars(before) if getattr(before, name) == getattr(after, name)}
    assert same == {name.lower() for name in FROM_ELSEWHERE}
    assert release.container["envFrom"] == [{"configMapRef": {"name": "immich-bridge"}}]
    assert release.container["ports"][0]["containerPort"] == 9001


def test_the_metrics_address_is_off_until_asked_for(helm: HelmEngine) -> None:
    assert "METRICS_ADDR" not in helm.upgrade({}).environment
    release = helm.upgrade({"metrics": {"enabled": True, "port": 9100}})
    assert Config.from_mapping(release.environment).metrics_addr == ("", 9100)


def test_the_key_of_the_tokens_is_never_in_the_config_map(helm: HelmEngine) -> None:
    key = "k" * 32
    release = helm.upgrade({"jwtSecret": {"value": key}})
    assert "JWT_SECRET" not in release.environment
    assert release.container["env"] == [
        {
            "name": "JWT_SECRET",
            "valueFrom": {"secretKeyRef": {"name": "immich-bridge", "key": "jwt-secret"}},
        }
    ]
    another = helm.upgrade({"jwtSecret": {"value": "l" * 32}})
    assert _annotations(another)["checksum/secret"] != _annotations(release)["checksum/secret"]
    without_backup = helm.upgrade({"jwtSecret": {"value": key}, "config": {"backupEnabled": False}})
    assert "Secret" not in without_backup.kinds
    assert "env" not in without_backup.container


def _annotations(release: Release) -> dict[str, str]:
    template = release.find("Deployment")["spec"]["template"]
    return dict(template["metadata"]["annotations"])


# Port 0 is whichever is free, which no service could lead to. The rest no pattern can tell: there
# the server says it, at its start.
DIFFERENCES: Final = {
    "PORT": {"0", "00"},
    "LISTEN_ADDR": {":0", ":80808"},
    "TOKEN_TTL": {"500ms", "40000d"},
}

TEXT_KEYS: Final = sorted(set(OTHER_VALUES) - {"backupEnabled", "readyRequiresImmich"})


@pytest.mark.parametrize("key", TEXT_KEYS)
def test_the_schema_takes_what_the_server_takes(key: str) -> None:
    part = schema()["properties"]["config"]["properties"][key]
    validator = jsonschema.Draft7Validator({**part, "definitions": schema()["definitions"]})
    name = setting_name(key)
    differing = {text for text in TEXTS if validator.is_valid(text) != _server_takes(name, text)}
    assert differing == DIFFERENCES.get(name, set())


def _server_takes(name: str, text: str) -> bool:
    setting = next(each for each in SETTINGS if each.name == name)
    try:
        setting.parse(text.strip() or setting.default)
    except (ValueError, OverflowError):
        return False
    return True


WRONG_VALUES: Final[tuple[tuple[str, Any, str, str], ...]] = (
    ("config.immichServerUrl", "http://immich", "at '/config': ", "'immichServerUrl' not allowed"),
    (
        "config.immichServerURL",
        "immich:2283",
        "at '/config/immichServerURL': ",
        "does not match pattern",
    ),
    ("config.backupEnabled", "yes", "at '/config/backupEnabled': ", "want boolean"),
    ("config.port", 0, "at '/config/port': ", "minimum"),
    ("config.workers", 65, "at '/config/workers': ", "maximum"),
    ("config.shutdownGrace", "soon", "at '/config/shutdownGrace': ", "does not match pattern"),
    ("config.tokenTTL", 0, "at '/config/tokenTTL': ", "minimum"),
    ("config.maxUploadSize", "50 apples", "at '/config/maxUploadSize': ", "does not match pattern"),
    ("config.rateLimitLogin", 5, "at '/config/rateLimitLogin': ", "maximum"),
    ("config.logLevel", "trace", "at '/config/logLevel': ", "value must be one of"),
    (
        "config.trustedProxies",
        ["ingress"],
        "at '/config/trustedProxies/0': ",
        "does not match pattern",
    ),
    ("jwtSecret.value", "too short", "at '/jwtSecret/value': ", "does not match pattern"),
    ("replicaCount", "2", "at '/replicaCount': ", "want integer"),
    ("image.digest", "latest", "at '/image/digest': ", "does not match pattern"),
    ("image.pullPolicy", "Sometimes", "at '/image/pullPolicy': ", "value must be one of"),
    ("persistence.data.size", "lots", "at '/persistence/data/size': ", "does not match pattern"),
    ("persistence.data.accessModes", [], "at '/persistence/data/accessModes': ", "minItems"),
    ("persistence.photos.size", "1Gi", "at '/persistence': ", "'photos' not allowed"),
    ("service.type", "ExternalName", "at '/service/type': ", "value must be one of"),
    ("service.port", 70000, "at '/service/port': ", "maximum"),
    (
        "ingress.hosts",
        [{"host": "a.example.com"}],
        "at '/ingress/hosts/0': ",
        "missing property 'paths'",
    ),
    (
        "ingress.annotations",
        {"proxy-body-size": 0},
        "at '/ingress/annotations/proxy-body-size': ",
        "want string",
    ),
    ("httpRoute.rules", [], "at '/httpRoute/rules': ", "minItems"),
    ("httpRoute.enabled", True, "at '/httpRoute/parentRefs': ", "minItems"),
    (
        "metrics.serviceMonitor.interval",
        "half a minute",
        "at '/metrics/serviceMonitor/interval': ",
        "does not match pattern",
    ),
    (
        "podDisruptionBudget.minAvailable",
        "half",
        "at '/podDisruptionBudget/minAvailable': ",
        "does not match pattern",
    ),
    ("replicas", 2, "at '': ", "'replicas' not allowed"),
)


@pytest.mark.parametrize(("path", "value", "place", "complaint"), WRONG_VALUES)
def test_wrong_values_are_refused_where_they_stand(
    helm: HelmEngine, path: str, value: object, place: str, complaint: str
) -> None:
    values = value
    for part in reversed(path.split(".")):
        values = {part: values}
    assert isinstance(values, dict)
    with pytest.raises(RefusedError, match="values don't meet the specifications") as refused:
        helm.upgrade(values)
    assert re.search(f"{place}.*{complaint}", str(refused.value)), refused.value


def test_the_grace_is_read_as_the_server_reads_it(helm: HelmEngine) -> None:
    for text in ("0", "45", "1h30m", "500ms", "1.5m", "2d", "1m1s1ms", 90, "0.2s"):
        release = helm.upgrade({"config": {"shutdownGrace": text}, "preStopSeconds": 7})
        spare = release.pod["terminationGracePeriodSeconds"] - 7 - parse_duration(str(text))
        assert 10 <= spare < 11, text
