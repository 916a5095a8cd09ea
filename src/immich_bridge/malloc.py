"""The C library's allocator, told to keep the blocks that bodies come in.

glibc gives freed blocks of some hundred kilobytes back to the kernel and has them faulted in
again for the next piece of a body: hundreds of page faults a megabyte (mallopt(3)).
"""

import ctypes
import sys
from typing import Final

_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_LARGEST_KEPT: Final = 32 * 1024 * 1024
"""Bytes; blocks above this are rare. The most that glibc takes here."""
_FREE_KEPT: Final = 16 * 1024 * 1024
"""Bytes of free memory that the process keeps at its top."""


def keep_blocks() -> bool:
    """Set the thresholds; whether there was an allocator that knows them."""
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is None:
        return False
    settings = ((_M_MMAP_THRESHOLD, _LARGEST_KEPT), (_M_TRIM_THRESHOLD, _FREE_KEPT))
    return all(mallopt(parameter, size) == 1 for parameter, size in settings)
