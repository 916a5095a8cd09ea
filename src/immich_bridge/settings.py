"""The one list of settings: name, flag, default and meaning. `--help` and the README follow it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from immich_bridge.setting_values import (
    MIN_SECRET_LENGTH,
    optional,
    parse_address,
    parse_bool,
    parse_choice,
    parse_duration,
    parse_host,
    parse_http_url,
    parse_lifetime,
    parse_networks,
    parse_port,
    parse_positive_duration,
    parse_positive_size,
    parse_rate,
    parse_secret,
    parse_size,
    parse_storage_url,
    parse_whole_number,
)

MOST_WORKERS: Final = 64
"""More than one a core gain nothing, and their numbers are a part of the names of uploads."""


@dataclass(frozen=True)
class Setting:
    """One line of the settings table; the `Config` field bears the lower-cased name."""

    name: str
    default: str
    parse: Callable[[str], Any]
    expected: str
    meaning: str
    flag: str | None = None
    empty_counts: bool = False
    """Whether an empty value means something of its own instead of the default."""

    @property
    def field_name(self) -> str:
        """The name of the `Config` field that holds the value."""
        return self.name.lower()


SETTINGS: Final = (
    Setting(
        "LISTEN_ADDR",
        ":8080",
        parse_address,
        "host:port, :port or [v6]:port",
        "where to listen: `host:port`, `:port` (every address) or `[v6]:port`",
    ),
    Setting(
        "HOST",
        "",
        optional(parse_host),
        "a host name or an address",
        "overrides the host of `LISTEN_ADDR`",
        "--host",
    ),
    Setting(
        "PORT",
        "",
        optional(parse_port),
        "a number from 0 to 65535",
        "overrides the port of `LISTEN_ADDR`",
        "--port",
    ),
    Setting(
        "IMMICH_SERVER_URL",
        "http://localhost:2283",
        optional(parse_http_url),
        "an http:// or https:// URL without credentials, query or fragment",
        "the Immich server, with a path prefix if it has one; empty: no bridge",
        "--immich-server-url",
        empty_counts=True,
    ),
    Setting(
        "WORKERS",
        "1",
        parse_whole_number(1, MOST_WORKERS),
        f"a number from 1 to {MOST_WORKERS}",
        "processes that serve the bridge on one port; more than one only without the photo backup",
        "--workers",
    ),
    Setting(
        "BACKUP_ENABLED",
        "true",
        parse_bool,
        "true or false",
        "the photo backup server; `false`: its routes go to Immich too",
    ),
    Setting(
        "DB_PATH",
        "./data/app.db",
        Path,
        "a path",
        "SQLite file of the photo backup; folders are made",
        "--db-path",
    ),
    Setting(
        "STORAGE_DIR",
        "./storage",
        Path,
        "a path",
        "the photo backup's photos lie in `STORAGE_DIR/photo/`",
        "--storage-dir",
    ),
    Setting(
        "JWT_SECRET_PATH",
        "./data/jwt_secret.key",
        Path,
        "a path",
        "key of the login tokens, made at first start with mode 0600",
        "--jwt-secret-path",
    ),
    Setting(
        "JWT_SECRET",
        "",
        optional(parse_secret),
        f"at least {MIN_SECRET_LENGTH} characters",
        "the key itself, for containers; wins over `JWT_SECRET_PATH`",
    ),
    Setting(
        "TOKEN_TTL",
        "7d",
        parse_lifetime,
        "a duration from 1s to 36500d, such as 7d or 12h",
        "life of a login token",
    ),
    Setting(
        "MAX_UPLOAD_SIZE",
        "50MB",
        parse_positive_size,
        "a size such as 50MB or 1GiB",
        "largest file of a form upload, and largest chunk; MB and MiB both count 1,048,576 bytes",
    ),
    Setting(
        "MAX_STREAM_SIZE",
        "0",
        parse_size,
        "a size such as 4GB, or 0 for none",
        "largest raw body, also of a background upload; `0`: no limit",
    ),
    Setting(
        "RATE_LIMIT_LOGIN",
        "5/minute",
        parse_rate,
        "a rate such as 5/minute, or 0 for none",
        "logins per client address; `0`: no limit",
    ),
    Setting(
        "RATE_LIMIT_UPLOAD",
        "0",
        parse_rate,
        "a rate such as 10/minute, or 0 for none",
        "photo backup uploads per user; `0`: no limit",
    ),
    Setting(
        "RATE_LIMIT_STORAGE",
        "memory://",
        parse_storage_url,
        "a URL such as memory:// or redis://host:6379",
        "where the counts live; Redis when several replicas share them",
    ),
    Setting(
        "TRUSTED_PROXIES",
        "",
        parse_networks,
        "CIDR networks such as 10.0.0.0/8, separated by commas",
        "networks whose `X-Forwarded-*` headers are believed",
    ),
    Setting(
        "BODY_IDLE_TIMEOUT",
        "60s",
        parse_positive_duration,
        "a duration such as 60s",
        "a sender that is silent this long in mid-body is cut off",
    ),
    Setting(
        "UPSTREAM_CONNECT_TIMEOUT",
        "10s",
        parse_positive_duration,
        "a duration such as 10s",
        "how long connecting to Immich may take",
    ),
    Setting(
        "UPSTREAM_RESPONSE_TIMEOUT",
        "300s",
        parse_positive_duration,
        "a duration such as 300s",
        "how long Immich may be silent after it has the whole request",
    ),
    Setting(
        "RESUMABLE",
        "auto",
        parse_choice("auto", "on", "off"),
        "auto, on or off",
        "uploads that go on where they were cut off; `auto`: unless an unknown proxy is in between",
    ),
    Setting(
        "RESUMABLE_HOLD",
        "1h",
        parse_positive_duration,
        "a duration such as 1h",
        "how long an interrupted upload to Immich is kept open",
    ),
    Setting(
        "FAST_PATH",
        "auto",
        parse_choice("auto", "off"),
        "auto or off",
        "`auto`: on Linux large bodies go from socket to socket inside the kernel where they can",
    ),
    Setting(
        "MALLOC_TUNING",
        "auto",
        parse_choice("auto", "off"),
        "auto or off",
        "`auto`: glibc keeps up to 16 MiB of freed memory for the next pieces of bodies",
    ),
    Setting(
        "SHUTDOWN_GRACE",
        "30s",
        parse_duration,
        "a duration such as 30s",
        "how long running requests may finish after SIGTERM",
    ),
    Setting(
        "TLS_CERT_FILE",
        "",
        optional(Path),
        "a PEM file with a certificate chain",
        "certificate chain (PEM); with `TLS_KEY_FILE`: serve HTTPS",
    ),
    Setting(
        "TLS_KEY_FILE",
        "",
        optional(Path),
        "a PEM file with the private key of TLS_CERT_FILE, without a passphrase",
        "private key (PEM) of `TLS_CERT_FILE`",
    ),
    Setting(
        "IMMICH_CA_FILE",
        "",
        optional(Path),
        "a PEM file with certificates",
        "certificate authority (PEM) of an https Immich; empty: the system's",
    ),
    Setting(
        "READY_REQUIRES_IMMICH",
        "false",
        parse_bool,
        "true or false",
        "`true`: `/ready` fails while Immich is away",
    ),
    Setting(
        "METRICS_ADDR",
        "",
        optional(parse_address),
        "host:port or :port",
        "where to serve Prometheus metrics; empty: nowhere",
    ),
    Setting(
        "LOG_LEVEL",
        "info",
        parse_choice("debug", "info", "warning", "error"),
        "debug, info, warning or error",
        "the least important lines that are written",
    ),
    Setting(
        "LOG_FORMAT",
        "text",
        parse_choice("text", "json"),
        "text or json",
        "`text` for people, `json` (an object a line) for machines",
    ),
)
