"""What a second core does while a store is rebuilt: decode chunks and touch memory ahead."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Final

import numpy as np
from numpy.typing import NDArray

from jobs.windows._memory import populate
from jobs.windows.delta import Chunk, decode_chunk

__all__ = ["decoded", "touched_ahead"]

# Chunks decoded before they are needed, 6 MB each.
DECODE_AHEAD: Final = 4


def decoded(chunks: Iterable[bytes]) -> Iterator[Chunk]:
    """Decode chunks in a thread of their own, a few ahead of the one that is yielded."""
    with ThreadPoolExecutor(1, "window-decode") as ahead:
        pending: deque[Future[Chunk]] = deque()
        for data in chunks:
            pending.append(ahead.submit(decode_chunk, data))
            if len(pending) > DECODE_AHEAD:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


@contextmanager
def touched_ahead(arena: NDArray[np.int64], first: int, words: int) -> Iterator[None]:
    """Have the system find the memory of some words in a thread, while they are filled."""
    with ThreadPoolExecutor(1, "window-memory") as ahead:
        ahead.submit(populate, arena[first : first + words])
        yield
