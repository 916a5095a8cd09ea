"""The command line: `python -m immich_bridge`, also installed as `immich-bridge`."""

import argparse
import asyncio
import os
import sys
import textwrap
from collections.abc import Mapping, Sequence
from typing import NoReturn

from immich_bridge import __version__, logs
from immich_bridge.config import Config, ConfigError
from immich_bridge.errors import StartError
from immich_bridge.serve import event_loop_factory, serve
from immich_bridge.settings import SETTINGS

EXIT_REFUSED = 1
EXIT_USAGE = 2


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, as every error at start."""

    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_USAGE, f"{self.prog}: {message} (see {self.prog} --help)\n")


def main(
    arguments: Sequence[str] | None = None, environment: Mapping[str, str] = os.environ
) -> int:
    """Run the command line; returns the exit code (0 done, 1 refused, 2 usage)."""
    options = _parser().parse_args(arguments)
    flags = {
        setting.name: value
        for setting in SETTINGS
        if setting.flag and (value := getattr(options, setting.field_name)) is not None
    }
    try:
        config = Config.from_mapping({**environment, **flags})
    except ConfigError as exc:
        return _complain(str(exc), EXIT_USAGE)
    logs.set_up(config.log_level, config.log_format)
    try:
        with asyncio.Runner(loop_factory=event_loop_factory()) as runner:
            runner.run(serve(config))
    except StartError as exc:
        return _complain(str(exc), EXIT_REFUSED)
    return 0


def _complain(message: str, exit_code: int) -> int:
    print(f"immich-bridge: {message}", file=sys.stderr)  # noqa: T201 - for the operator
    return exit_code


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="immich-bridge",
        description="Streams raw photo uploads from iOS background jobs into Immich, "
        "and passes everything else on to it unchanged.",
        epilog=_settings_help(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    for setting in SETTINGS:
        if setting.flag:
            parser.add_argument(
                setting.flag,
                dest=setting.field_name,
                metavar=setting.name,
                help=setting.meaning.replace("`", ""),
            )
    return parser


def _settings_help() -> str:
    lines = ["Every setting is read from the environment; a flag wins over it.", ""]
    for setting in SETTINGS:
        default = f" (default: {setting.default})" if setting.default else ""
        text = setting.meaning.replace("`", "") + default
        lines += textwrap.wrap(
            f"{setting.name:<27}{text}", 96, initial_indent="  ", subsequent_indent=" " * 29
        )
    return "\n".join(lines)
