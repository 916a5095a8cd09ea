"""The configuration as values, read once at start from the environment and the flags."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from immich_bridge.errors import StartError
from immich_bridge.setting_values import Network
from immich_bridge.settings import SETTINGS


class ConfigError(StartError):
    """A setting that cannot be used; the message names it and says what is expected."""

    @classmethod
    def of(cls, name: str, shown: str, reason: str | None = None) -> "ConfigError":
        """The error of the setting `name`, whose value may be shown as `shown`."""
        expected = next(setting.expected for setting in SETTINGS if setting.name == name)
        why = f": {reason}" if reason else ""
        return cls(f"{name}: {shown} cannot be used{why}, expected {expected}")


@dataclass(frozen=True, kw_only=True)
class Config:
    """The settings as values: durations in seconds, sizes in bytes."""

    listen_addr: tuple[str, int]
    host: str | None
    port: int | None
    immich_server_url: str | None
    workers: int
    backup_enabled: bool
    db_path: Path
    storage_dir: Path
    jwt_secret_path: Path
    jwt_secret: str | None = field(repr=False)
    token_ttl: float
    max_upload_size: int
    max_stream_size: int
    rate_limit_login: str | None
    rate_limit_upload: str | None
    rate_limit_storage: str
    trusted_proxies: tuple[Network, ...]
    body_idle_timeout: float
    upstream_connect_timeout: float
    upstream_response_timeout: float
    resumable: str
    resumable_hold: float
    fast_path: str
    malloc_tuning: str
    shutdown_grace: float
    tls_cert_file: Path | None
    tls_key_file: Path | None
    immich_ca_file: Path | None
    ready_requires_immich: bool
    metrics_addr: tuple[str, int] | None
    log_level: str
    log_format: str

    @classmethod
    def from_mapping(cls, values: Mapping[str, str]) -> "Config":
        """Read the settings from `values` (names as in the environment).

        Raises `ConfigError` for the first one that cannot be used. An empty value counts
        as absent, except where it means something of its own.
        """
        parsed: dict[str, Any] = {}
        for setting in SETTINGS:
            text = values.get(setting.name, setting.default).strip()
            if not text and not setting.empty_counts:
                text = setting.default
            try:
                parsed[setting.field_name] = setting.parse(text)
            except (ValueError, OverflowError):
                # A key, or a URL with a password in it, is not for the log.
                secret = setting.name == "JWT_SECRET" or "@" in text
                shown = "the value given" if secret else repr(text)
                raise ConfigError.of(setting.name, shown) from None
        host, port = parsed["listen_addr"]
        if parsed["host"] is not None:
            host = parsed["host"]
        if parsed["port"] is not None:
            port = parsed["port"]
        parsed["listen_addr"] = (host, port)
        config = cls(**parsed)
        if (config.tls_cert_file is None) != (config.tls_key_file is None):
            raise ConfigError("TLS_CERT_FILE and TLS_KEY_FILE: expected both or neither")
        if config.workers > 1 and config.backup_enabled:
            raise ConfigError(
                f"WORKERS: {config.workers} cannot be used with the photo backup, which is the "
                "work of one process, expected 1 or BACKUP_ENABLED=false"
            )
        if config.workers > 1 and config.immich_server_url is None:
            raise ConfigError(
                f"WORKERS: {config.workers} cannot be used without the bridge, expected 1 or an "
                "IMMICH_SERVER_URL"
            )
        return config


if {field.name for field in fields(Config)} != {setting.field_name for setting in SETTINGS}:
    raise AssertionError("Config and SETTINGS differ")
