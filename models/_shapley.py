"""Exact Shapley values of tree ensembles, path-dependent, one leaf at a time.

For one leaf with value v whose path tests m distinct features, the game "which features are known"
is a product: a known feature contributes o (1 if the row satisfies the path's tests on it, else 0),
an unknown one the share z of training rows that do. The Shapley value of feature i is

    v (o_i - z_i) * integral over t in [0, 1] of the product over j != i of (t o_j + (1 - t) z_j)

(Owen's multilinear extension, "Multilinear extensions of games", 1972). The integrand is a
polynomial of degree m - 1, so Gauss-Legendre quadrature with ceil(m / 2) points gives it exactly.
Summed over leaves this equals path-dependent TreeSHAP (Lundberg et al., "From local explanations to
global understanding with explainable AI for trees", 2020).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numba as nb
import numpy as np
from numpy.typing import NDArray

from models.errors import ModelError
from models.trees import LEAF, Trees

__all__ = ["LeafPaths", "leaf_paths", "shapley_values", "warm"]

_MAX_FEATURES: Final = 64
# Distinct features on one path; bounds the kernel's scratch space and the quadrature tables (2 KiB
# and 17 KiB). Deeper trees than this over distinct features do not occur in practice and are
# refused.


@dataclass(frozen=True, slots=True)
class LeafPaths:
    """Every leaf, those with the fewest tests first, with what its path demands of each feature.

    Element e of leaf l (`start[l] <= e < start[l + 1]`) holds when the cell is in `(low, high]`, or
    is NaN and `missing` is set; `share` is z above. `base` is the mean raw score over training
    rows. `gain` holds the part of each integrand that depends on the model alone.
    """

    start: NDArray[np.int32]
    value: NDArray[np.float64]
    feature: NDArray[np.int32]
    low: NDArray[np.float32]
    high: NDArray[np.float32]
    missing: NDArray[np.bool_]
    share: NDArray[np.float64]
    base: float
    gain_start: NDArray[np.int64]
    gain: NDArray[np.float64]
    points: NDArray[np.float64]
    weights: NDArray[np.float64]


def leaf_paths(trees: Trees) -> LeafPaths:
    """Walk every path once.

    Raises:
        ModelError: when covers are unknown, or a path tests more than 64 distinct features.
    """
    if not trees.has_cover:
        msg = "explaining trees: covers are unknown; count them from rows with `with_cover`"
        raise ModelError(msg)
    parents = trees.parents()
    leaves = np.flatnonzero(trees.feature == LEAF).astype(np.int32)
    shape = (parents, trees.feature, trees.threshold, trees.left, trees.missing_left, trees.cover)
    first_walk = _walk(leaves, *shape)
    # Leaves of one size in a row keep the processor's guesses about short loops right.
    leaves = leaves[np.argsort(np.diff(first_walk[0]), kind="stable")]
    start, feature, low, high, missing, share, longest = _walk(leaves, *shape)
    if longest > _MAX_FEATURES:
        msg = f"explaining trees: a path tests {longest} features, at most {_MAX_FEATURES}"
        raise ModelError(msg)
    value = trees.value[leaves]
    # What a row expects before anything is known: every leaf by the share of rows that reach it.
    sizes = np.diff(start)
    logarithm = np.concatenate([[0.0], np.cumsum(np.log(share))])
    reach = np.exp(logarithm[start[1:]] - logarithm[start[:-1]])
    points, weights = _quadrature(int(sizes.max(initial=1)))
    gain_start = np.concatenate([[0], np.cumsum(sizes * ((sizes + 1) // 2), dtype=np.int64)])
    return LeafPaths(
        start=start,
        value=value,
        feature=feature,
        low=low,
        high=high,
        missing=missing,
        share=share,
        base=float(trees.base + np.sum(value * reach)),
        gain_start=gain_start,
        gain=_gains(gain_start, start, share, points),
        points=points,
        weights=weights,
    )


@nb.njit(
    "Tuple((int32[::1], int32[::1], float32[::1], float32[::1], boolean[::1], float64[::1], int64))"
    "(int32[::1], int32[::1], int32[::1], float32[::1], int32[::1], boolean[::1], float64[::1])",
    cache=True,
    nogil=True,
)
def _walk(
    leaves: NDArray[np.int32],
    parents: NDArray[np.int32],
    feature: NDArray[np.int32],
    threshold: NDArray[np.float32],
    left: NDArray[np.int32],
    missing_left: NDArray[np.bool_],
    cover: NDArray[np.float64],
) -> tuple[
    NDArray[np.int32],
    NDArray[np.int32],
    NDArray[np.float32],
    NDArray[np.float32],
    NDArray[np.bool_],
    NDArray[np.float64],
    int,
]:
    """From each leaf up to its root, joining the tests of the same feature."""
    room = 0
    for leaf in leaves:
        node = leaf
        while parents[node] >= 0:
            node = parents[node]
            room += 1
    start = np.zeros(len(leaves) + 1, np.int32)
    names = np.empty(room, np.int32)
    low = np.empty(room, np.float32)
    high = np.empty(room, np.float32)
    missing = np.empty(room, np.bool_)
    share = np.empty(room, np.float64)
    end = 0
    longest = 0
    for number in range(len(leaves)):
        first = end
        child = leaves[number]
        node = parents[child]
        while node >= 0:
            item = first
            while item < end and names[item] != feature[node]:
                item += 1
            if item == end:
                names[item] = feature[node]
                low[item] = -np.inf
                high[item] = np.inf
                missing[item] = True
                share[item] = 1.0
                end += 1
            if left[node] == child:
                high[item] = min(high[item], threshold[node])
                missing[item] = missing[item] and missing_left[node]
            else:
                low[item] = max(low[item], threshold[node])
                missing[item] = missing[item] and not missing_left[node]
            share[item] *= cover[child] / cover[node]
            child = node
            node = parents[child]
        start[number + 1] = end
        longest = max(longest, end - first)
    return (
        start,
        names[:end].copy(),
        low[:end].copy(),
        high[:end].copy(),
        missing[:end].copy(),
        share[:end].copy(),
        longest,
    )


def _quadrature(longest: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    # Row q holds the rule with q points on [0, 1].
    count = (longest + 1) // 2
    points = np.zeros((count + 1, count), np.float64)
    weights = np.zeros((count + 1, count), np.float64)
    for size in range(1, count + 1):
        nodes, share = np.polynomial.legendre.leggauss(size)
        points[size, :size] = (nodes + 1) / 2
        weights[size, :size] = share / 2
    return points, weights


def shapley_values(paths: LeafPaths, rows: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return contributions, shape (n, k); each row and `base` add up to its raw score."""
    return _shapley(
        np.ascontiguousarray(rows, np.float32),
        paths.start,
        paths.value,
        paths.feature,
        paths.low,
        paths.high,
        paths.missing,
        paths.share,
        paths.gain_start,
        paths.gain,
        paths.points,
        paths.weights,
    )


@nb.njit(
    "float64[::1](int64[::1], int32[::1], float64[::1], float64[:,::1])",
    cache=True,
    nogil=True,
    error_model="numpy",
)
def _gains(
    gain_start: NDArray[np.int64],
    start: NDArray[np.int32],
    share: NDArray[np.float64],
    points: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Return what a test that holds adds at each point over one that fails, point by point."""
    gain = np.empty(gain_start[-1], np.float64)
    for leaf in range(len(start) - 1):
        first, size = start[leaf], start[leaf + 1] - start[leaf]
        count = (size + 1) // 2
        for point in range(count):
            at = points[count, point]
            for item in range(size):
                z = share[first + item]
                place = gain_start[leaf] + point * size + item
                gain[place] = (1.0 - z) / (at + (1.0 - at) * z) + 1.0 / (1.0 - at)
    return gain


@nb.njit(
    "float64[:,::1](float32[:,::1], int32[::1], float64[::1], int32[::1], float32[::1],"
    " float32[::1], boolean[::1], float64[::1], int64[::1], float64[::1], float64[:,::1],"
    " float64[:,::1])",
    cache=True,
    nogil=True,
    fastmath={"contract"},
)
def _shapley(
    rows: NDArray[np.float32],
    start: NDArray[np.int32],
    value: NDArray[np.float64],
    feature: NDArray[np.int32],
    low: NDArray[np.float32],
    high: NDArray[np.float32],
    missing: NDArray[np.bool_],
    share: NDArray[np.float64],
    gain_start: NDArray[np.int64],
    gain: NDArray[np.float64],
    points: NDArray[np.float64],
    weights: NDArray[np.float64],
) -> NDArray[np.float64]:
    # No branch depends on the row: a test that holds is the number 1.0 in the products below, one
    # that fails 0.0. With m tests the integrand of a failed one is -1 / (1 - t) times the product.
    out = np.zeros(rows.shape, np.float64)
    inverse = 1.0 / (1.0 - points)
    holds = np.empty(64, np.float64)
    total = np.empty(64, np.float64)
    for row in range(rows.shape[0]):
        for leaf in range(len(value)):
            first = start[leaf]
            size = start[leaf + 1] - first
            for item in range(size):
                at_item = first + item
                cell = rows[row, feature[at_item]]
                inside = (cell > low[at_item]) & (cell <= high[at_item])
                holds[item] = inside | ((cell != cell) & missing[at_item])
                total[item] = 0.0
            count = (size + 1) // 2
            for point in range(count):
                at = points[count, point]
                away = 1.0 - at
                product = weights[count, point] * value[leaf]
                for item in range(size):
                    product *= away * share[first + item] + at * holds[item]
                place = gain_start[leaf] + point * size
                failed = inverse[count, point]
                for item in range(size):
                    total[item] += product * (holds[item] * gain[place + item] - failed)
            for item in range(size):
                out[row, feature[first + item]] += total[item]
    return out


def warm() -> None:
    """Load the kernels before the first alert."""
    none, number = np.zeros(0, np.int32), np.zeros(0, np.float64)
    start, rule = np.zeros(1, np.int32), np.zeros((2, 1))
    bound, places = np.zeros(0, np.float32), np.zeros(1, np.int64)
    gain = _gains(places, start, number, rule)
    _shapley(
        np.zeros((1, 1), np.float32),
        start,
        number,
        none,
        bound,
        bound,
        np.zeros(0, np.bool_),
        number,
        places,
        gain,
        rule,
        rule,
    )
