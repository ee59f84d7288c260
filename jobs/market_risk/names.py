"""Number names as they appear: instruments, accounts and desks become small integers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from schemas.columns import StringColumn
from schemas.strings import hash64

__all__ = ["Names", "text_rows"]


def text_rows(column: StringColumn, chosen: NDArray[np.bool_] | NDArray[np.intp]) -> StringColumn:
    """Return some rows of a column of texts."""
    return StringColumn(column.data, column.starts[chosen], column.lengths[chosen])


class Names:
    """A growing list of names; code i is the i-th name that appeared.

    Found by 64-bit hash: among a million names two collide with a probability below 1 in 10**7. Per
    batch the cost in Python is one lookup per distinct name.
    """

    def __init__(self, texts: Sequence[str] = ()) -> None:
        self._codes: dict[int, int] = {}
        self._texts: list[str] = []
        self._packed = StringColumn.from_texts([])
        if texts:
            self.codes(StringColumn.from_texts(list(texts)))

    def __len__(self) -> int:
        return len(self._texts)

    @property
    def texts(self) -> tuple[str, ...]:
        """Return the names in order of their codes."""
        return tuple(self._texts)

    def codes(self, column: StringColumn) -> NDArray[np.int32]:
        """Return the code of each row's name, numbering new ones; null counts as empty."""
        if len(column) == 0:
            return np.empty(0, np.int32)
        hashes, first, inverse = np.unique(hash64(column), return_index=True, return_inverse=True)
        found = np.array([self._codes.get(value, -1) for value in hashes.tolist()], np.int32)
        # New names are numbered in order of appearance, so that numbers do not depend on hashes.
        unknown = np.flatnonzero(found < 0)
        for place in unknown[np.argsort(first[unknown])].tolist():
            found[place] = self._codes[int(hashes[place])] = len(self._texts)
            self._texts.append(column.text_at(int(first[place])) or "")
        if len(unknown):
            self._packed = StringColumn.from_texts(self._texts)
        codes: NDArray[np.int32] = found[inverse]
        return codes

    def code(self, text: str) -> int:
        """Return the code of one name, numbering it if it is new."""
        return int(self.codes(StringColumn.from_texts([text]))[0])

    def column(self, codes: NDArray[np.int64] | NDArray[np.int32]) -> StringColumn:
        """Return the names of the codes."""
        packed = self._packed
        return StringColumn(packed.data, packed.starts[codes], packed.lengths[codes])
