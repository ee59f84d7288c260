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
    """Every leaf with what its path demands of each distinct feature.

    Element e of leaf l (`start[l] <= e < start[l + 1]`) holds when the cell is in `(low, high]`, or
    is NaN and `missing` is set; `share` is z above. `base` is the mean raw score over training
    rows.
    """

    start: NDArray[np.int32]
    value: NDArray[np.float64]
    feature: NDArray[np.int32]
    low: NDArray[np.float32]
    high: NDArray[np.float32]
    missing: NDArray[np.bool_]
    share: NDArray[np.float64]
    base: float
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
    start, feature, low, high, missing, share, longest = _walk(
        leaves,
        parents,
        trees.feature,
        trees.threshold,
        trees.left,
        trees.missing_left,
        trees.cover,
    )
    if longest > _MAX_FEATURES:
        msg = f"explaining trees: a path tests {longest} features, at most {_MAX_FEATURES}"
        raise ModelError(msg)
    value = trees.value[leaves]
    # What a row expects before anything is known: every leaf by the share of rows that reach it.
    sizes = np.diff(start)
    logarithm = np.concatenate([[0.0], np.cumsum(np.log(share))])
    reach = np.exp(logarithm[start[1:]] - logarithm[start[:-1]])
    points, weights = _quadrature(int(sizes.max(initial=1)))
    return LeafPaths(
        start=start,
        value=value,
        feature=feature,
        low=low,
        high=high,
        missing=missing,
        share=share,
        base=float(trees.base + np.sum(value * reach)),
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
        paths.points,
        paths.weights,
    )


@nb.njit(
    "float64[:,::1](float32[:,::1], int32[::1], float64[::1], int32[::1], float32[::1],"
    " float32[::1], boolean[::1], float64[::1], float64[:,::1], float64[:,::1])",
    cache=True,
    nogil=True,
    error_model="numpy",
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
    points: NDArray[np.float64],
    weights: NDArray[np.float64],
) -> NDArray[np.float64]:
    out = np.zeros(rows.shape, np.float64)
    shares = np.empty(64, np.float64)
    named = np.empty(64, np.int32)
    total = np.empty(64, np.float64)
    factor = np.empty(64, np.float64)
    for row in range(rows.shape[0]):
        for leaf in range(len(value)):
            first = start[leaf]
            size = start[leaf + 1] - first
            # Satisfied tests are written from the front of the scratch arrays, the others from the
            # end.
            met = 0
            rest = 1.0
            for item in range(first, first + size):
                cell = rows[row, feature[item]]
                if missing[item] if np.isnan(cell) else (low[item] < cell <= high[item]):
                    shares[met] = share[item]
                    named[met] = feature[item]
                    total[met] = 0.0
                    met += 1
                else:
                    rest *= share[item]
                    named[63 - (item - first - met)] = feature[item]
            failed = size - met
            common = 0.0
            count = (size + 1) // 2
            for point in range(count):
                at = points[count, point]
                away = 1.0 - at
                product = weights[count, point] * rest
                for _ in range(failed):
                    product *= away
                for item in range(met):
                    one = at + away * shares[item]
                    factor[item] = one
                    product *= one
                for item in range(met):
                    total[item] += product / factor[item]
                # -z over the factor (1 - t) z is the same for every failed test of the leaf.
                common += product / away
            for item in range(met):
                out[row, named[item]] += value[leaf] * (1.0 - shares[item]) * total[item]
            for item in range(failed):
                out[row, named[63 - item]] -= value[leaf] * common
    return out


def warm() -> None:
    """Load the kernel before the first alert."""
    none, number = np.zeros(0, np.int32), np.zeros(0, np.float64)
    _shapley(
        np.zeros((1, 1), np.float32),
        np.zeros(1, np.int32),
        number,
        none,
        np.zeros(0, np.float32),
        np.zeros(0, np.float32),
        np.zeros(0, np.bool_),
        number,
        np.zeros((2, 1)),
        np.zeros((2, 1)),
    )
