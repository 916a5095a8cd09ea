"""How the text of a setting becomes a value. Each parser raises `ValueError` for anything else."""

import ipaddress
import math
import re
from collections.abc import Callable
from typing import Any, Final
from urllib.parse import urlsplit

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_SIZE_UNITS: Final = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_DURATION_UNITS: Final = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400, "": 1}
_CENTURY: Final = 100 * 365 * 86400
MIN_SECRET_LENGTH: Final = 32


def parse_address(text: str) -> tuple[str, int]:
    """`host:port`, `:port` (host is then empty) or `[v6]:port`."""
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.%]+)\]|([^:\[\]]*)):([0-9]{1,5})", text)
    if match is None or int(match[3]) > 65535:
        raise ValueError
    return match[1] or match[2] or "", int(match[3])


def parse_port(text: str) -> int:
    """A TCP port; 0 lets the system choose."""
    if not re.fullmatch(r"[0-9]{1,5}", text) or int(text) > 65535:
        raise ValueError
    return int(text)


def parse_host(text: str) -> str:
    """A host name or an address, IPv6 with or without brackets."""
    if not re.fullmatch(r"[A-Za-z0-9_.:%-]+|\[[0-9A-Fa-f:.%]+\]", text):
        raise ValueError
    return text.strip("[]")


def parse_http_url(text: str) -> str:
    """An http or https URL, without its trailing slash."""
    url = urlsplit(text)
    if url.scheme not in ("http", "https") or not url.hostname:
        raise ValueError
    # Credentials belong to the client's own request; a query or fragment has no place in
    # front of the paths that are appended.
    if url.username or url.password or url.query or url.fragment or re.search(r"[\s\x00]", text):
        raise ValueError
    _ = url.port  # raises ValueError when it is no port
    url.hostname.encode("idna")  # raises UnicodeError, a ValueError, when it is no host name
    return text.rstrip("/")


def parse_whole_number(least: int, most: int) -> Callable[[str], int]:
    """A parser for a number from `least` to `most`."""

    def parse(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,9}", text) or not least <= int(text) <= most:
            raise ValueError
        return int(text)

    return parse


def parse_bool(text: str) -> bool:
    """true/false, yes/no, on/off, 1/0."""
    if text.lower() in ("true", "yes", "on", "1"):
        return True
    if text.lower() in ("false", "no", "off", "0"):
        return False
    raise ValueError


def parse_size(text: str) -> int:
    """Bytes, with K, M, G or T counting 1024: `50MB` and `50MiB` are the same."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)i?(b?)", text.lower())
    if match is None:
        raise ValueError
    return int(float(match[1]) * _SIZE_UNITS[match[2]])


def parse_positive_size(text: str) -> int:
    """A size above zero."""
    if (size := parse_size(text)) <= 0:
        raise ValueError
    return size


def parse_duration(text: str) -> float:
    """Seconds, from `60s`, `1h30m`, `500ms`; a bare number is seconds."""
    parts = re.findall(r"(\d+(?:\.\d+)?)(ms|[smhd]|)", text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise ValueError
    if len(parts) > 1 and not all(unit for _, unit in parts):
        raise ValueError
    seconds = sum(float(number) * _DURATION_UNITS[unit] for number, unit in parts)
    if not math.isfinite(seconds) or not text.isascii():
        raise ValueError
    return seconds


def parse_positive_duration(text: str) -> float:
    """A duration above zero."""
    if (seconds := parse_duration(text)) <= 0:
        raise ValueError
    return seconds


def parse_lifetime(text: str) -> float:
    """A duration from a second to a century."""
    if not 1 <= (seconds := parse_duration(text)) <= _CENTURY:
        raise ValueError
    return seconds


def parse_rate(text: str) -> str | None:
    """A rate as the `limits` library writes it, None for `0`."""
    if text == "0":
        return None
    match = re.fullmatch(r"(\d+)\s*(?:/|per)\s*(?:\d+\s*)?(?:second|minute|hour|day)s?", text)
    if match is None or int(match[1]) == 0:
        raise ValueError
    return text


def parse_storage_url(text: str) -> str:
    """Anything with a scheme: which ones exist is the `limits` library's to say."""
    if not re.fullmatch(r"[a-z][a-z0-9+.-]*://\S*", text):
        raise ValueError
    return text


def parse_networks(text: str) -> tuple[Network, ...]:
    """CIDR networks, separated by commas or spaces."""
    return tuple(
        ipaddress.ip_network(part, strict=False) for part in re.split(r"[,\s]+", text) if part
    )


def parse_secret(text: str) -> str:
    """A key long enough for HS256."""
    if len(text) < MIN_SECRET_LENGTH:
        raise ValueError
    return text


def parse_choice(*choices: str) -> Callable[[str], str]:
    """A parser that takes one of `choices`, in any case."""

    def parse(text: str) -> str:
        if text.lower() not in choices:
            raise ValueError
        return text.lower()

    return parse


def optional(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    """`parse`, with None for an empty text."""
    return lambda text: parse(text) if text else None
