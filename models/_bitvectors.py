"""Find the leaves that many rows reach by what their tests rule out, for trees of few leaves.

A set bit is a leaf, from left to right, that a row may still reach. A test that fails clears the
bits of the leaves below its left child, whatever the other tests say; when all have been asked, the
lowest bit left is the row's leaf (Lucchese et al., "QuickScorer: a fast algorithm to rank documents
with additive ensembles of regression trees", 2015). Every test is asked, but of all rows of a block
in vector instructions (their "Exploiting CPU SIMD extensions to speed-up document scoring with
tree ensembles", 2016), which takes a fifth of the time of walks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numba as nb
import numpy as np
from numba.cpython.unsafe.numbers import trailing_zeros
from numpy.typing import NDArray

from models.trees import Trees

__all__ = ["FEWEST_ROWS", "MOST_LEAVES", "LeafMasks", "leaf_masks", "leaf_sums", "most_leaves"]

MOST_LEAVES: Final = 64
"""Leaves of a tree that a word has bits for."""

FEWEST_ROWS: Final = 12
"""With fewer rows a walk is as fast."""

_BLOCK: Final = 128
# Rows whose cells and leaves stay in the first cache while all trees pass.

_TOGETHER: Final = 32
# Rows that compiled code takes at once, with AVX2: a block is filled up to a multiple of them.

# Typed as what it is inside a kernel.
_lowest_bit: Any = trailing_zeros


@dataclass(frozen=True, slots=True)
class LeafMasks:
    """Trees as tests and leaves, both tree after tree.

    Attributes:
        first_test: int32 (trees + 1), where the tests of each tree begin.
        tests: int32 (tests), the cell that is asked.
        threshold: float32 (tests); a cell at most this passes.
        kept: uint32 or uint64 (tests), the leaves that remain when the test fails.
        first_leaf: int32 (trees).
        value: float32 (leaves).
    """

    first_test: NDArray[np.int32]
    tests: NDArray[np.int32]
    threshold: NDArray[np.float32]
    kept: NDArray[Any]
    first_leaf: NDArray[np.int32]
    value: NDArray[np.float32]


def most_leaves(laid: Trees) -> int:
    """Return the number of leaves of the largest tree."""
    size = np.diff(np.append(laid.roots, len(laid.feature)))
    return int(size.max(initial=0) + 1) // 2


def leaf_masks(laid: Trees, tests: NDArray[np.int32]) -> LeafMasks:
    """Prepare trees laid breadth first, of at most `MOST_LEAVES` leaves each.

    `tests` is the number of the cell that each node asks; those of leaves are ignored.
    """
    words = np.uint32 if most_leaves(laid) <= 32 else np.uint64
    is_leaf = laid.feature < 0
    ends = np.append(laid.roots[1:], len(is_leaf))
    below = np.zeros(len(is_leaf), np.uint64)
    leaves: list[int] = []
    for root, end in zip(laid.roots.tolist(), ends.tolist(), strict=True):
        begin = len(leaves)
        waiting = [root]
        while waiting:
            node = waiting.pop()
            if is_leaf[node]:
                below[node] = 1 << (len(leaves) - begin)
                leaves.append(node)
            else:
                # The right child, beside the left one, waits longer: leaves come left to right.
                waiting += [laid.left[node] + 1, laid.left[node]]
        for node in reversed(range(root, end)):
            if not is_leaf[node]:
                below[node] = below[laid.left[node]] | below[laid.left[node] + 1]
    inner = np.flatnonzero(~is_leaf)
    return LeafMasks(
        first_test=np.searchsorted(inner, np.append(laid.roots, len(is_leaf))).astype(np.int32),
        tests=tests[inner],
        threshold=laid.threshold[inner],
        kept=(~below[laid.left[inner]]).astype(words),
        first_leaf=np.searchsorted(np.sort(leaves), laid.roots).astype(np.int32),
        value=laid.value[leaves].astype(np.float32),
    )


def leaf_sums(
    features: NDArray[np.float64], columns: NDArray[np.int64], masks: LeafMasks
) -> NDArray[np.float32]:
    """Return the sum of the leaves that each row reaches, added up in the order of the trees.

    A row's cells are those of `columns`, then the same with minus infinity for NaN.
    """
    return _raw(
        features,
        columns,
        masks.first_test,
        masks.tests,
        masks.threshold,
        masks.kept,
        masks.first_leaf,
        masks.value,
    )


def _signature(word: Any) -> Any:
    rows = nb.types.Array(nb.types.float64, 2, "A", readonly=True)
    return nb.float32[::1](
        rows,
        nb.int64[::1],
        nb.int32[::1],
        nb.int32[::1],
        nb.float32[::1],
        word[::1],
        nb.int32[::1],
        nb.float32[::1],
    )


@nb.njit(
    [_signature(nb.uint32), _signature(nb.uint64)], cache=True, nogil=True, error_model="numpy"
)
def _raw(
    features: NDArray[np.float64],
    columns: NDArray[np.int64],
    first_test: NDArray[np.int32],
    tests: NDArray[np.int32],
    threshold: NDArray[np.float32],
    kept: NDArray[Any],
    first_leaf: NDArray[np.int32],
    value: NDArray[np.float32],
) -> NDArray[np.float32]:
    # Unsigned indexes: numba then leaves out what negative ones would need.
    u = np.uint64
    rows, width = len(features), len(columns)
    raw = np.zeros(rows, np.float32)
    size = min(_BLOCK, (rows + _TOGETHER - 1) // _TOGETHER * _TOGETHER)
    cells = np.zeros((2 * width, size), np.float32)
    reached = np.empty(size, kept.dtype)
    none, all_leaves = kept.dtype.type(0), ~kept.dtype.type(0)
    for begin in range(0, rows, _BLOCK):
        count = min(size, rows - begin)
        filled = (count + _TOGETHER - 1) // _TOGETHER * _TOGETHER
        for column in range(width):
            for row in range(count):
                cell = np.float32(features[begin + row, columns[column]])
                cells[column, row] = cell
                cells[width + column, row] = -np.inf if cell != cell else cell
        for tree in range(len(first_leaf)):
            reached[:filled] = all_leaves
            for test in range(u(first_test[tree]), u(first_test[tree + 1])):
                asked, cut, keep = cells[u(tests[test])], threshold[test], kept[test]
                for row in range(filled):
                    # Without a branch: all ones where the test passes.
                    passed = none - kept.dtype.type(asked[row] <= cut)
                    reached[row] &= keep | passed
            leaf = u(first_leaf[tree])
            for row in range(count):
                raw[begin + row] += value[leaf + u(_lowest_bit(reached[row]))]
    return raw
