"""Settings: from text to values, from whatever was given to one line that says what is wrong."""

import ipaddress
import re
from pathlib import Path
from typing import Any

import pytest

from immich_bridge.config import Config, ConfigError
from immich_bridge.errors import StartError
from immich_bridge.settings import SETTINGS

README = Path(__file__).parent.parent / "README.md"

MB = 1024 * 1024


def value_of(name: str, text: str) -> Any:
    return getattr(Config.from_mapping({name: text}), name.lower())


def test_defaults() -> None:
    config = Config.from_mapping({})
    assert config.listen_addr == ("", 8080)
    assert config.immich_server_url == "http://localhost:2283"
    assert config.backup_enabled is True
    assert config.workers == 1
    assert config.max_upload_size == 52_428_800
    assert config.max_stream_size == 0
    assert config.trusted_proxies == ()
    assert config.shutdown_grace == 30
    assert config.upstream_response_timeout == 300
    assert config.tls_cert_file is config.tls_key_file is config.immich_ca_file is None
    assert (config.log_level, config.log_format) == ("info", "text")


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("LISTEN_ADDR", "127.0.0.1:80", ("127.0.0.1", 80)),
        ("LISTEN_ADDR", ":0", ("", 0)),
        ("LISTEN_ADDR", "[::1]:8080", ("::1", 8080)),
        ("LISTEN_ADDR", "bridge.example:65535", ("bridge.example", 65535)),
        ("IMMICH_SERVER_URL", "http://immich:2283/", "http://immich:2283"),
        ("IMMICH_SERVER_URL", "https://example/immich/", "https://example/immich"),
        ("IMMICH_SERVER_URL", "http://[::1]:2283", "http://[::1]:2283"),
        ("WORKERS", "1", 1),
        ("BACKUP_ENABLED", "No", False),
        ("READY_REQUIRES_IMMICH", "ON", True),
        ("READY_REQUIRES_IMMICH", "1", True),
        ("DB_PATH", "a/b.db", Path("a/b.db")),
        ("TOKEN_TTL", "7d", 7 * 86400),
        ("BODY_IDLE_TIMEOUT", "500ms", 0.5),
        ("BODY_IDLE_TIMEOUT", "90", 90),
        ("BODY_IDLE_TIMEOUT", "1h30m1.5s", 5401.5),
        ("SHUTDOWN_GRACE", "0", 0),
        ("MAX_UPLOAD_SIZE", "50MB", 50 * MB),
        ("MAX_UPLOAD_SIZE", "50 MiB", 50 * MB),
        ("MAX_UPLOAD_SIZE", "1.5g", 1536 * MB),
        ("MAX_STREAM_SIZE", "1234", 1234),
        ("MAX_STREAM_SIZE", "2TiB", 2 * MB * MB),
        ("RATE_LIMIT_LOGIN", "0", None),
        ("RATE_LIMIT_LOGIN", "10 per 5 minutes", "10 per 5 minutes"),
        ("RATE_LIMIT_STORAGE", "redis://cache:6379/1", "redis://cache:6379/1"),
        ("METRICS_ADDR", ":9100", ("", 9100)),
        ("LOG_LEVEL", "WARNING", "warning"),
        ("LOG_FORMAT", " json ", "json"),
        (
            "TRUSTED_PROXIES",
            "10.0.0.0/8, 192.168.1.7 fd00::/8",
            tuple(map(ipaddress.ip_network, ("10.0.0.0/8", "192.168.1.7", "fd00::/8"))),
        ),
        ("TRUSTED_PROXIES", "10.1.2.3/8", (ipaddress.ip_network("10.0.0.0/8"),)),
    ],
)
def test_values(name: str, text: str, value: object) -> None:
    assert value_of(name, text) == value


@pytest.mark.parametrize(
    ("name", "text"),
    [
        *(("LISTEN_ADDR", text) for text in ("8080", "host", ":65536", "::1:80", "a:b", "[]:1")),
        *(("HOST", text) for text in ("a b", "a/b", "[::1", "http://a")),
        *(("PORT", text) for text in ("http", "-1", "65536", "80.0", "0x50")),
        *(("IMMICH_SERVER_URL", text) for text in ("immich:2283", "ftp://immich", "http://")),
        *(("IMMICH_SERVER_URL", text) for text in ("http://a?b", "http://a#b", "http://a b")),
        *(("IMMICH_SERVER_URL", text) for text in ("http://a:99999", "http://[::1", "//immich")),
        *(("WORKERS", text) for text in ("0", "65", "-1", "two", "1.5", "auto", "1" * 5000)),
        *(("BACKUP_ENABLED", text) for text in ("maybe", "2", "truee")),
        *(("TOKEN_TTL", text) for text in ("0", "0s", "-1s", "7 days", "d", "1h30", "1s,", "1w")),
        *(("MAX_UPLOAD_SIZE", text) for text in ("0", "-1", "50XB", "MB", "1,5MB", "9" * 400)),
        *(("RATE_LIMIT_LOGIN", text) for text in ("5", "0/minute", "5/fortnight", "5/", "a/day")),
        ("RATE_LIMIT_STORAGE", "memory"),
        *(("TRUSTED_PROXIES", text) for text in ("10.0.0.0/33", "proxy", "10.0.0.0/8;fd00::/8")),
        *(("LOG_LEVEL", text) for text in ("verbose", "10", "trace")),
        ("LOG_FORMAT", "xml"),
        ("JWT_SECRET", "x" * 31),
    ],
)
def test_malformed_values_are_named(name: str, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        value_of(name, text)
    message = str(caught.value)
    expected = next(setting.expected for setting in SETTINGS if setting.name == name)
    assert message.startswith(f"{name}: ")
    assert message.endswith(f" cannot be used, expected {expected}")
    assert "\n" not in message


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("JWT_SECRET", "hunter2"),
        ("IMMICH_SERVER_URL", "http://admin:hunter2@immich"),
        ("RATE_LIMIT_STORAGE", "x redis://:hunter2@cache"),
    ],
)
def test_secrets_are_not_repeated(name: str, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        value_of(name, text)
    assert str(caught.value).startswith(f"{name}: the value given cannot be used")
    assert "hunter2" not in str(caught.value)


def test_is_an_error_of_the_start_that_may_say_why() -> None:
    error = ConfigError.of("PORT", "'x'", "it is no number")
    assert isinstance(error, StartError)
    assert str(error) == (
        "PORT: 'x' cannot be used: it is no number, expected a number from 0 to 65535"
    )


def test_the_key_is_not_shown_with_the_other_settings() -> None:
    secret = "hunter2" * 10
    config = Config.from_mapping({"JWT_SECRET": secret})
    assert config.jwt_secret == secret
    assert "hunter2" not in repr(config)


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
@pytest.mark.parametrize("empty", ["", "  "])
def test_empty_values_count_as_absent(setting: Any, empty: str) -> None:
    if setting.name == "IMMICH_SERVER_URL":
        assert value_of(setting.name, empty) is None  # there it says: no bridge
    else:
        assert Config.from_mapping({setting.name: empty}) == Config.from_mapping({})


@pytest.mark.parametrize(
    ("values", "address"),
    [
        ({"HOST": "localhost"}, ("localhost", 8080)),
        ({"PORT": "0"}, ("", 0)),
        ({"HOST": "[::1]", "PORT": "81", "LISTEN_ADDR": "a:80"}, ("::1", 81)),
        ({"PORT": "81", "LISTEN_ADDR": "a:80"}, ("a", 81)),
        ({"HOST": "b", "LISTEN_ADDR": "a:80"}, ("b", 80)),
    ],
)
def test_host_and_port_override_the_halves_of_the_address(
    values: dict[str, str], address: tuple[str, int]
) -> None:
    assert Config.from_mapping(values).listen_addr == address


@pytest.mark.parametrize("name", ["TLS_CERT_FILE", "TLS_KEY_FILE"])
def test_certificate_and_key_belong_together(name: str) -> None:
    with pytest.raises(ConfigError, match="TLS_CERT_FILE and TLS_KEY_FILE: expected both"):
        value_of(name, "a.pem")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "WORKERS: 2 cannot be used with the photo backup, .*, expected 1 or BACKUP_ENABLED=f"),
        (
            {"BACKUP_ENABLED": "false", "IMMICH_SERVER_URL": ""},
            "WORKERS: 2 cannot be used without the bridge, expected 1 or an IMMICH_SERVER_URL",
        ),
    ],
)
def test_several_workers_are_for_the_bridge_alone(values: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{message}"):
        Config.from_mapping({"WORKERS": "2", **values})
    alone = {"BACKUP_ENABLED": "false"}
    assert Config.from_mapping({"WORKERS": "64", **alone}).workers == 64


def test_what_is_no_setting_is_left_alone() -> None:
    assert Config.from_mapping({"PATH": "/bin", "MAX_UPLOAD": "x"}) == Config.from_mapping({})


def test_the_readme_lists_them_all() -> None:
    section = README.read_text().partition("\n## Settings\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `([A-Z_]+)` \|([^|]*)\|([^|]*)\|.*\|$", section, re.MULTILINE)
    listed = [(name, flag.strip(" `"), default.strip(" `")) for name, flag, default in rows]
    assert listed == [(each.name, each.flag or "", each.default) for each in SETTINGS]
