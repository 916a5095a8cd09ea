"""Log lines: one event a line, as text for people or as JSON for machines.

An event has a message and named fields. Secrets never get here: whoever logs a request
passes its path through `loggable_path`.
"""

import json
import logging
import re
import time
from collections.abc import Mapping
from typing import Any, Final

_ORIGIN: Final = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]*://[^/]*")
_USERINFO: Final = re.compile(r"^[^/].*@", re.DOTALL)
_RESERVED_PATH_PARTS: Final = re.compile(r"^(/+(?:share|s)/+)[^/]+")
# Of the name of a resumable upload as much as tells it from others.
_UPLOAD_NAME: Final = re.compile(r"^(/+uploads/+[^/]{8})[^/]+")
_UNPRINTABLE: Final = re.compile(r"[^\x21-\x7e]")
_MAX_PATH_LENGTH: Final = 300
_NEEDS_QUOTES: Final = re.compile(r'[\s"=]|^$')


def loggable_path(target: str) -> str:
    """The path of a request target, fit for a log line.

    The query is left out, since Immich takes keys in it (`?apiKey=`, `?key=`); so are the key of
    a shared link, which is part of the path, most of the name of an upload that can be resumed,
    and what precedes the path of an absolute target, or the host of a CONNECT, which may hold a
    password. What is not printable ASCII is escaped, so that a request cannot forge a line.
    """
    path = _ORIGIN.sub("", re.split(r"[?#]", target, maxsplit=1)[0])
    path = _USERINFO.sub("", path)
    path = _RESERVED_PATH_PARTS.sub(r"\1***", path)
    path = _UPLOAD_NAME.sub(r"\1...", path)
    path = _UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), path)
    return path if len(path) <= _MAX_PATH_LENGTH else path[:_MAX_PATH_LENGTH] + "..."


def log_event(logger: logging.Logger, level: int, message: str, **fields: Any) -> None:
    """Write one event; fields that are None are left out."""
    if logger.isEnabledFor(level):
        present = {name: value for name, value in fields.items() if value is not None}
        logger.log(level, message, extra={"fields": present})


class _TextFormatter(logging.Formatter):
    """`2026-11-21T08:00:00.123Z INFO message name=value ...`."""

    converter = staticmethod(time.gmtime)
    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03dZ"

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        line = super().formatMessage(record)
        for name, value in getattr(record, "fields", {}).items():
            text = str(value)
            line += f" {name}={json.dumps(text) if _NEEDS_QUOTES.search(text) else text}"
        return line


class _JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, and the event's fields."""

    def format(self, record: logging.LogRecord) -> str:
        seconds, milliseconds = int(record.created), int(record.msecs)
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
        event: dict[str, Any] = {
            "time": f"{stamp}.{milliseconds:03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            event["exception"] = self.formatException(record.exc_info)
        return json.dumps(event, ensure_ascii=False, default=str)


class _Added(logging.Filter):
    """Lets every line pass, with the same fields behind its own."""

    def __init__(self, fields: Mapping[str, Any]) -> None:
        super().__init__()
        self._fields = fields

    def filter(self, record: logging.LogRecord) -> bool:
        record.fields = {**getattr(record, "fields", {}), **self._fields}
        return True


def add_to_every_line(**fields: Any) -> None:
    """From now on each line of this process bears these fields too."""
    for handler in logging.getLogger().handlers:
        handler.addFilter(_Added(fields))


def set_up(level: str, log_format: str) -> None:
    """Send all log lines to standard error, as `LOG_LEVEL` and `LOG_FORMAT` ask.

    `debug` is for this program alone: nobody here can vouch for what libraries write then.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(_JsonFormatter() if log_format == "json" else _TextFormatter())
    logging.basicConfig(
        level=max(logging.INFO, logging.getLevelName(level.upper())), handlers=[handler], force=True
    )
    logging.getLogger("immich_bridge").setLevel(level.upper())
