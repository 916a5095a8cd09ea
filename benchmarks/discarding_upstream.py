"""An Immich that keeps nothing: `native/upstream.c`, as a benchmark sees it."""

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.request import urlopen

from block import Block


@dataclass(frozen=True)
class Receipts:
    """What came in since the last look: `file_bytes` is without what a form adds.

    `first_byte` is when the first upload began to come in (seconds of CLOCK_MONOTONIC, which
    all processes share); `fault` is what was wrong with the first of the `faults`.
    """

    uploads: int
    file_bytes: int
    faults: int
    fault: str
    first_byte: float


class DiscardingUpstream:
    """A running upstream on `port`."""

    def __init__(self, port: int) -> None:
        self.port = port

    def receipts(self) -> Receipts:
        """What came in since the last call."""
        with urlopen(f"http://127.0.0.1:{self.port}/stats", timeout=30) as answer:
            return Receipts(**json.load(answer))


@contextmanager
def running_upstream(
    program: Path, block: Block, *, verify: bool = False
) -> Iterator[DiscardingUpstream]:
    """An upstream for as long as the context lasts; `verify` compares every byte (slow)."""
    command = [str(program), str(block.path), *(["--verify"] if verify else [])]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield DiscardingUpstream(int(process.stdout.readline()))
        finally:
            process.kill()
