"""Memory that is reserved at once and taken from the system page by page as it is touched."""

from __future__ import annotations

import ctypes
import mmap
import sys
from typing import Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["populate", "reserve_words"]

# 64 GiB of addresses per shard: more than any machine in sight holds, nothing until touched.
# Growing by copying instead would stop a shard of 10 million events for about a second.
RESERVE_WORDS: Final = 8 << 30
# Where addresses are rationed (`vm.overcommit_memory=2`) ever less is tried, down to 64 MiB.
SMALLEST_WORDS: Final = 8 << 20
# Python names the flag from 3.13 on; this is its value on Linux. Without it the addresses count as
# promised memory: 64 GiB are refused, and a process that holds a few stores can no longer fork.
_NO_RESERVE: Final = getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)


def reserve_words(words: int = RESERVE_WORDS) -> NDArray[np.int64]:
    """Return a zeroed int64 array of `words`, or as much as the system lets us reserve.

    Raises:
        MemoryError: when not even 64 MiB can be reserved.
    """
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NO_RESERVE
    while True:
        try:
            memory = mmap.mmap(-1, words * 8, flags=flags)
            if hasattr(mmap, "MADV_HUGEPAGE"):
                # Logs are read at random: with 4 KiB pages half of the time goes to the TLB.
                memory.madvise(mmap.MADV_HUGEPAGE)
            return np.frombuffer(memory, np.int64)
        except OSError as e:
            if words <= SMALLEST_WORDS:
                msg = f"reserving {words * 8} bytes of addresses for a window store failed: {e}"
                raise MemoryError(msg) from e
            words //= 4


def populate(words: NDArray[np.int64]) -> None:
    """Take the memory of an array from the system now; do nothing where it has no word for that.

    What is written there meanwhile stays.
    """
    first = -(-words.ctypes.data // mmap.PAGESIZE) * mmap.PAGESIZE
    size = words.ctypes.data + words.nbytes - first
    if sys.platform == "linux" and size > 0:
        _MADVISE(first, size, _POPULATE_WRITE)


_MADVISE: Final = ctypes.CDLL(None).madvise
_MADVISE.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
# Linux 5.14; before that the call fails, and pages come one by one as ever.
_POPULATE_WRITE: Final = 23
