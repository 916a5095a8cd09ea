"""The log as an operator reads it: lines of text, written by the bridge's own formatters."""

import asyncio
import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager

from immich_bridge import logs
from wire import PATIENCE


class WrittenLog(io.StringIO):
    """What was written so far."""

    def __init__(self) -> None:
        super().__init__()
        self._written = asyncio.Event()

    def write(self, text: str) -> int:
        self._written.set()
        return super().write(text)

    @property
    def lines(self) -> list[str]:
        """The lines, without the line ends."""
        return self.getvalue().splitlines()

    async def wait_for(self, part: str) -> str:
        """The first line with `part` in it, now or later."""
        async with asyncio.timeout(PATIENCE):
            while True:
                for line in self.lines:
                    if part in line:
                        return line
                self._written.clear()
                await self._written.wait()


@contextmanager
def written_log(log_format: str = "text", level: str = "info") -> Iterator[WrittenLog]:
    """Set logging up as the bridge does, and keep what it writes."""
    root = logging.getLogger()
    ours = logging.getLogger("immich_bridge")
    handlers_before, levels_before = root.handlers, (root.level, ours.level)
    root.handlers = []
    try:
        logs.set_up(level, log_format)
        log = WrittenLog()
        (handler,) = root.handlers
        assert isinstance(handler, logging.StreamHandler)
        handler.setStream(log)
        # In these tests Immich is in the same process.
        handler.addFilter(lambda record: not record.name.startswith("immich_standin"))
        yield log
    finally:
        root.handlers = handlers_before
        for logger, level_before in zip((root, ours), levels_before, strict=True):
            logger.setLevel(level_before)
