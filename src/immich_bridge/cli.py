"""The command line: `python -m immich_bridge`, also installed as `immich-bridge`."""

import argparse
import asyncio
import io
import os
import sys
import textwrap
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, NoReturn

from immich_bridge import __version__, commands, logs
from immich_bridge.commands import Refused
from immich_bridge.config import Config, ConfigError
from immich_bridge.errors import StartError
from immich_bridge.serve import event_loop_factory, serve
from immich_bridge.settings import SETTINGS
from immich_bridge.tls import check_tls_files
from immich_bridge.workers import serve_with_workers

EXIT_REFUSED = 1
EXIT_USAGE = 2

Command = Callable[[Config, argparse.Namespace], Awaitable[None]]


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, as every error at start; a flag is never abbreviated."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_USAGE, f"{self.prog}: {message} (see {self.prog} --help)\n")


def main(
    arguments: Sequence[str] | None = None, environment: Mapping[str, str] = os.environ
) -> int:
    """Run the command line; returns the exit code (0 done, 1 refused, 2 usage)."""
    options = _parser().parse_args(arguments)
    for name, value in vars(options).items():
        if value == []:  # what some releases of Python make of `--username=--`
            setattr(options, name, "--")
    flags = {
        setting.name: getattr(options, setting.field_name)
        for setting in SETTINGS
        if hasattr(options, setting.field_name)
    }
    try:
        config = Config.from_mapping({**environment, **flags})
    except ConfigError as exc:
        return _complain(str(exc), EXIT_USAGE)
    logs.set_up(config.log_level, config.log_format)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Names are of any script, and what an output cannot show has to be said all the same.
        sys.stdout.reconfigure(errors="backslashreplace")
    command: Command = options.command
    try:
        if command is _serve:
            check_tls_files(config)
        if command is _serve and config.workers > 1:
            serve_with_workers(config)
        else:
            with asyncio.Runner(loop_factory=event_loop_factory()) as runner:
                runner.run(_run(command, config, options))
    except ConfigError as exc:
        return _complain(str(exc), EXIT_USAGE)
    except (StartError, Refused) as exc:
        return _complain(str(exc), EXIT_REFUSED)
    except KeyboardInterrupt:
        return _complain("interrupted", EXIT_REFUSED)
    return 0


async def _run(command: Command, config: Config, options: argparse.Namespace) -> None:
    await command(config, options)


async def _serve(config: Config, options: argparse.Namespace) -> None:
    await serve(config)


def _complain(message: str, exit_code: int) -> int:
    print(f"immich-bridge: {message}", file=sys.stderr)
    return exit_code


def _parser() -> _Parser:
    settings = _settings_parser()
    parser = _Parser(
        prog="immich-bridge",
        description=textwrap.fill(
            "Streams raw photo uploads from iOS background jobs into Immich, passes everything "
            "else on to it unchanged, and keeps a photo backup of its own. Without a command it "
            "serves.",
            96,
        ),
        epilog=_settings_help(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[settings],
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    parser.set_defaults(command=_serve)
    groups = parser.add_subparsers(metavar="command", title="commands")
    serving = groups.add_parser("serve", parents=[settings], help="run the server (the default)")
    serving.set_defaults(command=_serve)
    _add_user_commands(groups, settings)
    _add_storage_commands(groups, settings)
    return parser


def _add_user_commands(groups: "argparse._SubParsersAction[_Parser]", settings: _Parser) -> None:
    user = groups.add_parser("user", help="accounts of the photo backup")
    actions = user.add_subparsers(metavar="action", required=True)

    def add(name: str, command: Command, summary: str, *, password: bool = False) -> None:
        action = actions.add_parser(name, parents=[settings], help=summary, description=summary)
        action.set_defaults(command=command)
        if name != "list":
            action.add_argument("--username", required=True)
        if password:
            given = action.add_mutually_exclusive_group()
            given.add_argument("--password", help="8 characters or more; asked for if not given")
            given.add_argument(
                "--password-stdin", action="store_true", help="read it from standard input"
            )

    add("create", commands.create_user, "Make an account.", password=True)
    add("list", commands.list_users, "List the accounts.")
    add(
        "reset-password",
        commands.reset_password,
        "Set a new password and end the user's tokens.",
        password=True,
    )
    add("delete", commands.delete_user, "Remove an account; its photos stay on disk.")


def _add_storage_commands(groups: "argparse._SubParsersAction[_Parser]", settings: _Parser) -> None:
    storage = groups.add_parser("storage", help="photos on disk and their rows")
    actions = storage.add_subparsers(metavar="action", required=True)
    summary = "Compare disk and database both ways."
    check = actions.add_parser("check", parents=[settings], help=summary, description=summary)
    check.add_argument(
        "--repair", action="store_true", help="mend what can be mended without losing a byte"
    )
    check.set_defaults(command=commands.check_storage)
    summary = "Set the time of each file to the creation time of its photo."
    times = actions.add_parser("fix-times", parents=[settings], help=summary, description=summary)
    times.add_argument("--user", metavar="USERNAME", help="only this user's files")
    times.add_argument("--dry-run", action="store_true", help="only say which files would change")
    times.set_defaults(command=commands.fix_times)


def _settings_parser() -> _Parser:
    """The flags that any command takes, before or after its name."""
    parser = _Parser(add_help=False, argument_default=argparse.SUPPRESS)
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
