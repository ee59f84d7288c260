"""Score tree ensembles without the runtime: at small batches most of its time is the call.

Leaves are added up in float32, tree after tree, as onnxruntime does, so raw scores are the same
bits whichever kernel finds them. Many rows go through `models._bitvectors`. Few, or deep trees, are
walked here: four rows walk a tree side by side, as one waits for its node to arrive; with fewer
rows four trees do. A walk goes on to the tree's full depth, a leaf leading to itself, so that
nothing branches on a row's values.
"""

from __future__ import annotations

from typing import Final

import numba as nb
import numpy as np
from numpy.typing import NDArray

from models._bitvectors import FEWEST_ROWS, MOST_LEAVES, leaf_masks, leaf_sums, most_leaves
from models._layout import breadth_first, tree_depths
from models.explain import TreeReading
from models.trees import Trees

__all__ = ["LINKS", "CompiledTrees", "tree_probes"]

LINKS: Final = ("log_odds", "path_length", "probability")
"""Scales of raw scores, in the order of the numbers by which the kernels know them."""


class CompiledTrees:
    """One model that is its trees, ready to score; safe between threads."""

    def __init__(self, reading: TreeReading, width: int) -> None:
        """Take the trees of a model with `width` features."""
        laid = breadth_first(reading.trees)
        leaf = laid.feature < 0
        own = np.arange(len(leaf), dtype=np.int32)
        # A missing cell is written twice, as NaN, which is not at most anything and goes right, and
        # as minus infinity, which goes left, also from a leaf.
        side = np.where(laid.missing_left, np.int32(width), np.int32(0))
        self._every = np.arange(width, dtype=np.int64)
        tests = np.where(leaf, width, laid.feature + side).astype(np.int32)
        self._masks = leaf_masks(laid, tests) if most_leaves(laid) <= MOST_LEAVES else None
        self._base, self._link = np.float32(laid.base), LINKS.index(reading.scale)
        self._model = (
            laid.roots,
            tree_depths(laid),
            tests,
            np.where(leaf, np.float32(np.inf), laid.threshold).astype(np.float32),
            np.where(leaf, own, laid.left).astype(np.int32),
            laid.value.astype(np.float32),
        )

    def score(
        self, features: NDArray[np.float64], columns: NDArray[np.int64] | None = None
    ) -> NDArray[np.float64]:
        """Return one score for each row.

        `columns` says where the model's features are among the columns; None when they are all.
        """
        columns = self._every if columns is None else columns
        if self._masks is None or len(features) < FEWEST_ROWS:
            raw = _walk(features, columns, *self._model)
        else:
            raw = leaf_sums(features, columns, self._masks)
        return _link(raw, self._base, self._link)


def tree_probes(trees: Trees, rows: NDArray[np.float64], count: int = 256) -> NDArray[np.float64]:
    """Return rows that ask about every side of the tests: cells at, below, above them and missing.

    The other cells are those of `rows`, in turn.
    """
    generator = np.random.default_rng(0)
    probes = np.resize(rows, (count, rows.shape[1])).astype(np.float32)
    for feature in np.unique(trees.feature[trees.feature >= 0]).tolist():
        cuts = trees.threshold[trees.feature == feature]
        chosen = generator.choice(cuts, count)
        toward = generator.choice(np.array([-np.inf, 0.0, np.inf], np.float32), count)
        near = np.where(toward == 0, chosen, np.nextafter(chosen, toward))
        probes[:, feature] = np.where(generator.random(count) < 0.05, np.float32(np.nan), near)
    return probes.astype(np.float64)


_SIGNATURE = nb.types.Array(nb.types.float32, 1, "C")(
    nb.types.Array(nb.types.float64, 2, "A", readonly=True),
    nb.int64[::1],
    nb.int32[::1],
    nb.int64[::1],
    nb.int32[::1],
    nb.float32[::1],
    nb.int32[::1],
    nb.float32[::1],
)


@nb.njit(_SIGNATURE, cache=True, nogil=True, error_model="numpy")
def _walk(
    features: NDArray[np.float64],
    columns: NDArray[np.int64],
    roots: NDArray[np.int32],
    depths: NDArray[np.int64],
    feature: NDArray[np.int32],
    threshold: NDArray[np.float32],
    left: NDArray[np.int32],
    value: NDArray[np.float32],
) -> NDArray[np.float32]:
    # Unsigned indexes: numba then leaves out what negative ones would need.
    u = np.uint64
    rows, width = len(features), len(columns)
    cells = np.empty((rows, 2 * width), np.float32)
    for row in range(rows):
        for column in range(width):
            cell = np.float32(features[row, columns[column]])
            cells[row, column] = cell
            cells[row, width + column] = -np.inf if cell != cell else cell
    raw = np.zeros(rows, np.float32)
    together = rows - rows % 4
    for tree in range(len(roots)):
        root = u(roots[tree])
        for first in range(0, together, 4):
            r0, r1, r2, r3 = u(first), u(first + 1), u(first + 2), u(first + 3)
            n0, n1, n2, n3 = root, root, root, root
            for _ in range(depths[tree]):
                right0 = not cells[r0, u(feature[n0])] <= threshold[n0]
                right1 = not cells[r1, u(feature[n1])] <= threshold[n1]
                right2 = not cells[r2, u(feature[n2])] <= threshold[n2]
                right3 = not cells[r3, u(feature[n3])] <= threshold[n3]
                n0, n1 = u(left[n0] + right0), u(left[n1] + right1)
                n2, n3 = u(left[n2] + right2), u(left[n3] + right3)
            raw[r0] += value[n0]
            raw[r1] += value[n1]
            raw[r2] += value[n2]
            raw[r3] += value[n3]
    for row in range(together, rows):
        r0 = u(row)
        total = np.float32(0)
        four = len(roots) - len(roots) % 4
        for first in range(0, four, 4):
            n0, n1 = u(roots[first]), u(roots[first + 1])
            n2, n3 = u(roots[first + 2]), u(roots[first + 3])
            deepest = max(
                max(depths[first], depths[first + 1]), max(depths[first + 2], depths[first + 3])
            )
            for _ in range(deepest):
                right0 = not cells[r0, u(feature[n0])] <= threshold[n0]
                right1 = not cells[r0, u(feature[n1])] <= threshold[n1]
                right2 = not cells[r0, u(feature[n2])] <= threshold[n2]
                right3 = not cells[r0, u(feature[n3])] <= threshold[n3]
                n0, n1 = u(left[n0] + right0), u(left[n1] + right1)
                n2, n3 = u(left[n2] + right2), u(left[n3] + right3)
            total += value[n0]
            total += value[n1]
            total += value[n2]
            total += value[n3]
        for tree in range(four, len(roots)):
            n0 = u(roots[tree])
            for _ in range(depths[tree]):
                right0 = not cells[r0, u(feature[n0])] <= threshold[n0]
                n0 = u(left[n0] + right0)
            total += value[n0]
        raw[r0] = total
    return raw


@nb.njit("float64[::1](float32[::1], float32, int64)", cache=True, nogil=True, error_model="numpy")
def _link(raw: NDArray[np.float32], base: np.float32, link: int) -> NDArray[np.float64]:
    scores = np.empty(len(raw))
    for row in range(len(raw)):
        score = np.float64(np.float32(raw[row] + base))
        if link == 0:
            score = 1.0 / (1.0 + np.exp(-score))
        elif link == 1:
            score = np.exp2(score)
        scores[row] = np.float32(score)
    return scores
