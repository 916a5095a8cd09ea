"""What the works are sent through: nothing, other proxies, and the bridge in each of its modes."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from string import Template
from typing import Final

from process_stats import ProcessStats
from processes import (
    NotStarted,
    bridge_command,
    clean_environment,
    free_port,
    running_process,
    wait_until_healthy,
)
from programs import Missing, program

from immich_bridge.settings import SETTINGS

_PEERS: Final = Path(__file__).parent / "peers"
_BRIDGE_SETTINGS: Final = {"BACKUP_ENABLED": "false", "LOG_LEVEL": "warning"}
DIRECT: Final = "direct"
NGINX: Final = "nginx"
READ_ALL: Final = "read-all"


class Kind(Enum):
    """What a target is to the bridge."""

    DIRECT = "direct"
    PEER = "peer"
    BASELINE = "baseline"
    BRIDGE = "bridge"


@dataclass(frozen=True)
class Target:
    """A way to the upstream: a command that serves on `$port` and passes on to `$upstream`.

    `config` is a template that is written to `$folder/config`; `copies` is how often the bytes
    of all requests under way are held in memory.
    """

    name: str
    kind: Kind
    command: Sequence[str] = ()
    config: Path | None = None
    settings: dict[str, str] = field(default_factory=dict)
    copies: int = 0


@dataclass(frozen=True)
class Mode:
    """Settings that the bridge is measured with beside its defaults."""

    name: str
    settings: dict[str, str] = field(default_factory=dict)
    event_loop: str = "auto"


MODES: Final = (
    Mode("bridge"),
    Mode("bridge, FAST_PATH=off", {"FAST_PATH": "off"}),
    Mode("bridge, asyncio", event_loop="asyncio"),
    Mode("bridge, asyncio, FAST_PATH=off", {"FAST_PATH": "off"}, event_loop="asyncio"),
    Mode("bridge, WORKERS=2", {"WORKERS": "2"}),
)


@dataclass(frozen=True)
class RunningTarget:
    """A target that takes requests; without `stats` it is no process but the upstream itself."""

    target: Target
    port: int
    stats: ProcessStats | None = None
    idle_rss: int = 0


def parse_mode(text: str) -> Mode:
    """Read `asyncio,FAST_PATH=off`; raises ValueError for a setting that the bridge has not."""
    settings = {}
    event_loop = "auto"
    for part in text.split(","):
        name, equals, value = part.partition("=")
        if part == "asyncio":
            event_loop = "asyncio"
        elif equals and _exists(name):
            settings[name] = value
        else:
            raise ValueError(f"{part!r} is neither asyncio nor NAME=VALUE of a setting")
    return Mode(f"bridge, {text.replace(',', ', ')}", settings, event_loop)


def bridges(modes: Sequence[Mode] = MODES) -> list[Target]:
    """The bridge in each mode whose settings this version of it has."""
    return [
        Target(
            mode.name,
            Kind.BRIDGE,
            bridge_command(mode.event_loop),
            settings={
                **_BRIDGE_SETTINGS,
                "LISTEN_ADDR": "127.0.0.1:$port",
                "IMMICH_SERVER_URL": "http://127.0.0.1:$upstream",
                **mode.settings,
            },
        )
        for mode in modes
        if all(_exists(name) for name in mode.settings)
    ]


class Peers:
    """The other proxies that can be had on this machine, and why the rest is missing."""

    def __init__(self) -> None:
        self.targets: list[Target] = []
        self.programs: dict[str, Path] = {}
        self.missing: dict[str, str] = {}
        nginx = ["-c", "$folder/config", "-p", "$folder", "-e", "stderr"]
        self._add(NGINX, "nginx", nginx, "nginx.conf")
        self._add("nginx tuned", "nginx", nginx, "nginx_tuned.conf")
        self._add("haproxy", "haproxy", ["-db", "-f", "$folder/config"], "haproxy.cfg")
        caddy = ["run", "--adapter", "caddyfile", "--config", "$folder/config"]
        self._add("caddy", None, caddy, "Caddyfile")
        read_all = [sys.executable, str(_PEERS / "read_all.py"), "$port", "$upstream"]
        self.targets.append(Target(READ_ALL, Kind.BASELINE, read_all, copies=3))

    def _add(self, name: str, package: str | None, arguments: list[str], config: str) -> None:
        """Without a package it is a program that pip has put beside this Python."""
        try:
            path = program(package or name, *([package] if package else []))
        except Missing as exc:
            self.missing[name] = str(exc)
            return
        self.targets.append(Target(name, Kind.PEER, [str(path), *arguments], _PEERS / config))
        if package:
            self.programs[package] = path


@contextmanager
def running_targets(
    targets: Sequence[Target], upstream: int, folder: Path
) -> Iterator[tuple[list[RunningTarget], dict[str, str]]]:
    """All `targets` at once, fresh, and by name why some of them do not run."""
    with ExitStack() as stack:
        starting = []
        running = []
        failed: dict[str, str] = {}
        for number, target in enumerate(targets):
            if target.kind is Kind.DIRECT:
                running.append(RunningTarget(target, upstream))
                continue
            port = free_port()
            home = folder / str(number)
            home.mkdir()
            # Some give up root's rights and must still reach what is theirs in there.
            home.chmod(0o755)
            names = {"port": str(port), "upstream": str(upstream), "folder": str(home)}
            if target.config:
                text = Template(target.config.read_text()).substitute(names)
                (home / "config").write_text(text)
            environment = _substituted(target.settings, names)
            process = stack.enter_context(
                running_process(
                    [Template(part).substitute(names) for part in target.command],
                    environment=clean_environment({"HOME": str(home), **environment}),
                    folder=home,
                )
            )
            starting.append((target, process, port))
        for target, process, port in starting:
            try:
                wait_until_healthy(target.name, process, port)
            except NotStarted as exc:
                failed[target.name] = str(exc)
                continue
            stats = ProcessStats(process.pid)
            running.append(RunningTarget(target, port, stats, stats.rss()))
        yield running, failed


def _substituted(settings: dict[str, str], names: dict[str, str]) -> dict[str, str]:
    return {name: Template(value).substitute(names) for name, value in settings.items()}


def _exists(setting: str) -> bool:
    return any(each.name == setting for each in SETTINGS)
