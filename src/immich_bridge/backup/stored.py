"""What was stored since the start: files and bytes, by the way in which they came."""

from typing import Literal, get_args

from immich_bridge.http.metrics import Metrics

Way = Literal["form", "raw", "chunk"]


class Stored:
    """Counts files that are in their place for good."""

    def __init__(self) -> None:
        self._files: dict[Way, int] = dict.fromkeys(get_args(Way), 0)
        self._bytes: dict[Way, int] = dict.fromkeys(get_args(Way), 0)

    def add(self, way: Way, size: int) -> None:
        """Count one file of `size` bytes."""
        self._files[way] += 1
        self._bytes[way] += size

    def expose(self, metrics: Metrics) -> None:
        """Let `metrics` tell of them."""
        metrics.counter(
            "immich_bridge_stored_files",
            "Files that were stored, by the way in which they came.",
            lambda: (((way,), count) for way, count in self._files.items()),
            labels=["way"],
        )
        metrics.counter(
            "immich_bridge_stored_bytes",
            "Bytes of files that were stored, by the way in which they came.",
            lambda: (((way,), count) for way, count in self._bytes.items()),
            labels=["way"],
        )
