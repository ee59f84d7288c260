"""What other cores do while a store is rebuilt: work on chunks and touch memory ahead."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from jobs.windows._memory import populate

__all__ = ["ahead", "touched_ahead"]

_Result = TypeVar("_Result")
"""What a thread makes of a chunk."""

# Results that wait to be taken: each holds a chunk, of about 6 MB.
WAITING: Final = 4
# More would only help a process that has more than two cores to itself.
THREADS: Final = 2


def ahead(work: Callable[[bytes], _Result], chunks: Iterable[bytes]) -> Iterator[_Result]:
    """Do some work on every chunk in threads, a few ahead of the one whose result is yielded."""
    with ThreadPoolExecutor(THREADS, "window-restore") as pool:
        pending: deque[Future[_Result]] = deque()
        for data in chunks:
            pending.append(pool.submit(work, data))
            if len(pending) > WAITING:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


@contextmanager
def touched_ahead(arena: NDArray[np.int64], first: int, words: int) -> Iterator[None]:
    """Have the system find the memory of some words in a thread, while they are filled."""
    with ThreadPoolExecutor(1, "window-memory") as pool:
        pool.submit(populate, arena[first : first + words])
        yield
