"""The content of all files of a benchmark: a block of bytes in memory, again and again."""

import hashlib
import os
import random
from pathlib import Path
from typing import Final

_SIZE: Final = 64 * 1024 * 1024


class Block:
    """64 MiB without a pattern, like any compressed photo, the same on every run."""

    def __init__(self) -> None:
        self._bytes = random.Random(1).randbytes(_SIZE)
        self._descriptor = os.memfd_create("benchmark")
        os.write(self._descriptor, self._bytes)
        # Other processes open it so, as long as this one lives.
        self.path = Path(f"/proc/{os.getpid()}/fd/{self._descriptor}")

    def close(self) -> None:
        """Give the memory back."""
        os.close(self._descriptor)

    def sha1(self, size: int) -> str:
        """The digest of a file of `size` bytes, in hex."""
        digest = hashlib.sha1(usedforsecurity=False)
        for start in range(0, size, _SIZE):
            digest.update(memoryview(self._bytes)[: size - start])
        return digest.hexdigest()
