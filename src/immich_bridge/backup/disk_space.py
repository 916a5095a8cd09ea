"""How much room the disks have, asked when a scrape wants to know."""

import asyncio
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from immich_bridge.http.metrics import Metrics

_PATIENCE: Final = 2.0
"""Seconds; a network disk that hangs must not keep a scrape from all other numbers."""


class DiskSpace:
    """The disks on which `folders` lie, by what the folders are for."""

    def __init__(self, folders: Mapping[str, Path]) -> None:
        self._folders = folders
        self._asking: dict[str, asyncio.Future[Any]] = {}
        self._free: dict[str, int] = {}
        self._size: dict[str, int] = {}

    def expose(self, metrics: Metrics) -> None:
        """Let `metrics` tell of them."""
        metrics.before_scrape.append(self._refresh)
        metrics.gauge(
            "immich_bridge_disk_free_bytes",
            "Room left to this process on the disk of the folder.",
            lambda: (((folder,), free) for folder, free in self._free.items()),
            labels=["folder"],
        )
        metrics.gauge(
            "immich_bridge_disk_size_bytes",
            "Size of the disk of the folder.",
            lambda: (((folder,), size) for folder, size in self._size.items()),
            labels=["folder"],
        )

    async def _refresh(self) -> None:
        """Ask every disk; one that does not answer has no numbers in this scrape."""
        loop = asyncio.get_running_loop()
        for name, folder in self._folders.items():
            # A disk that has not answered yet is not asked again: that would take a thread
            # a scrape, until none is left.
            if name not in self._asking:
                self._asking[name] = loop.run_in_executor(None, shutil.disk_usage, folder)
        self._free.clear()
        self._size.clear()
        answered, _ = await asyncio.wait(self._asking.values(), timeout=_PATIENCE)
        for name, question in list(self._asking.items()):
            if question not in answered:
                continue
            del self._asking[name]
            if question.exception() is None:
                usage = question.result()
                self._free[name], self._size[name] = usage.free, usage.total
