"""Exact Shapley values of tree ensembles, path-dependent, all leaves of a tree at once.

For one leaf with value v whose path tests m distinct features, the game "which features are known"
is a product: a known feature contributes o (1 if the row satisfies the path's tests on it, else 0),
an unknown one the share z of training rows that do. The Shapley value of feature i is

    v (o_i - z_i) * integral over t in [0, 1] of the product over j != i of (t o_j + (1 - t) z_j)

(Owen's multilinear extension, "Multilinear extensions of games", 1972). The integrand is a
polynomial of degree m - 1, so Gauss-Legendre quadrature with ceil(m / 2) points gives it exactly.
Summed over leaves this equals path-dependent TreeSHAP (Lundberg et al., "From local explanations to
global understanding with explainable AI for trees", 2020).

Leaves share the upper part of their paths, so the products are made on the way down the tree, one
factor an edge, and their sums on the way up: an edge costs the same whatever hangs below it. Four
points of the rule go through the tree together.

What a tree gives depends on nothing but which of its tests hold, and alerts resemble each other: so
it is kept by that, and looked up when the same tests hold again. A row's values are the sums of its
trees' in their order, kept or not: the same bits.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any, Final

import numba as nb
import numpy as np
from numba.core import config as _numba_config
from numpy.typing import NDArray

from models._layout import breadth_first
from models.errors import ModelError
from models.trees import Trees

__all__ = ["ShapleyTables", "shapley_tables", "shapley_values"]

LANES: Final = 4
"""Points of the quadrature rule that the kernel carries side by side."""

_KEPT_BYTES: Final = 8 << 20
# What a model may keep of earlier rows: 32,768 trees' values of 15 features each.


class _Kept:
    """Values of trees by which of their tests held: sets of two, the older makes room.

    `keys` holds a tree's number plus one and the bits of its tests, `values` a value for each
    feature up to the last that is tested, `newest` which of a set was written last.
    """

    def __init__(self, tests: int, features: int) -> None:
        """Make room for trees of at most so many tests and features."""
        words = max(1, -(-tests // 64))
        sets = max(1, _KEPT_BYTES // (16 * (1 + words + features)))
        sets = 1 << (sets.bit_length() - 1)
        self.keys = np.zeros((2 * sets, 1 + words), np.uint64)
        self.values = np.zeros((2 * sets, features))
        self.newest = np.zeros(sets, np.uint8)
        self.lock = threading.Lock()


@dataclass(frozen=True, slots=True)
class ShapleyTables:
    """What is the same for every row, packed so that what is read together lies together.

    Each tree has a place for "no earlier test", then one for each of its nodes, breadth first;
    `place` says where a tree begins, and links are counted from there. `base` is the mean raw score
    over training rows.

    Attributes:
        nodes: int32 (inner nodes, 5): place, left child, feature, last edge above that tests the
            same feature (0 for none), and whether a missing cell goes left.
        edges: float64 (places, 4), of the edge into a node: the part of training rows that
            satisfies all tests of its feature on the path so far (z), the value of a leaf (1
            elsewhere), the part of the parent's rows that take it, and room to fill a cache line
            with two siblings.
        chunks: by tree, the lanes' worth of points that its rule needs.
        kept: values of earlier rows.
    """

    place: NDArray[np.int32]
    inner_start: NDArray[np.int32]
    nodes: NDArray[np.int32]
    threshold: NDArray[np.float32]
    edges: NDArray[np.float64]
    chunks: NDArray[np.int32]
    points: NDArray[np.float64]
    weights: NDArray[np.float64]
    base: float
    kept: _Kept


def shapley_tables(trees: Trees) -> ShapleyTables:
    """Prepare the explanation of a model's trees.

    Raises:
        ModelError: when covers are unknown.
    """
    if not trees.has_cover:
        msg = "explaining trees: covers are unknown; count them from rows with `with_cover`"
        raise ModelError(msg)
    laid = breadth_first(trees)
    size = np.diff(np.append(laid.roots, len(laid.feature)))
    tree = np.repeat(np.arange(len(size)), size)
    place = (laid.roots + np.arange(len(size))).astype(np.int32)
    own = np.arange(len(laid.feature)) + tree + 1
    local = own - place[tree]
    earlier, known, share, reach, depth = _edges(
        laid.roots, laid.feature, laid.left, laid.cover, place
    )
    leaf = laid.feature < 0
    inner = np.flatnonzero(~leaf)
    deepest = np.zeros(len(size), np.int64)
    np.maximum.at(deepest, tree, depth)
    chunks = np.maximum(1, -(-((deepest + 1) // 2) // LANES)).astype(np.int32)
    points, weights = _rules(int(chunks.max(initial=1)))
    edges = np.ones((len(known), 4))
    edges[:, 0] = known
    edges[own, 1] = np.where(leaf, laid.value, 1.0)
    edges[:, 2] = share
    inner_start = np.searchsorted(tree[inner], np.arange(len(size) + 1)).astype(np.int32)
    nodes = [local[inner], local[laid.left[inner]], laid.feature[inner], earlier[inner]]
    return ShapleyTables(
        place=place,
        inner_start=inner_start,
        nodes=np.column_stack([*nodes, laid.missing_left[inner]]).astype(np.int32),
        threshold=laid.threshold[inner],
        edges=edges,
        chunks=chunks,
        points=points,
        weights=weights,
        base=float(trees.base + np.sum(laid.value[leaf] * reach[leaf])),
        kept=_Kept(int(np.diff(inner_start).max(initial=0)), int(laid.feature.max(initial=-1)) + 1),
    )


@nb.njit(
    "Tuple((int32[::1], float64[::1], float64[::1], float64[::1], int32[::1]))"
    "(int32[::1], int32[::1], int32[::1], float64[::1], int32[::1])",
    cache=True,
    nogil=True,
)
def _edges(
    roots: NDArray[np.int32],
    feature: NDArray[np.int32],
    left: NDArray[np.int32],
    cover: NDArray[np.float64],
    place: NDArray[np.int32],
) -> tuple[
    NDArray[np.int32],
    NDArray[np.float64],
    NDArray[np.float64],
    NDArray[np.float64],
    NDArray[np.int32],
]:
    """From parents to children: earlier edges, shares, and how many features a path tests."""
    nodes = len(feature)
    earlier = np.zeros(nodes, np.int32)
    reach = np.ones(nodes)
    depth = np.zeros(nodes, np.int32)
    above = np.full(nodes, -1, np.int32)
    known = np.ones(nodes + len(roots))
    share = np.ones(nodes + len(roots))
    for tree in range(len(roots)):
        first = roots[tree]
        end = roots[tree + 1] if tree + 1 < len(roots) else nodes
        for node in range(first, end):
            if feature[node] < 0:
                continue
            child = node
            up = above[node]
            while up >= 0 and feature[up] != feature[node]:
                child = up
                up = above[up]
            if up >= 0:
                earlier[node] = child - first + 1
            for side in range(2):
                one = left[node] + side
                part = cover[one] / cover[node]
                above[one] = node
                reach[one] = reach[node] * part
                depth[one] = depth[node] + (up < 0)
                share[place[tree] + one - first + 1] = part
                known[place[tree] + one - first + 1] = known[place[tree] + earlier[node]] * part
    return earlier, known, share, reach, depth


def _rules(most: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    # Row c holds the rule with c times four points on [0, 1].
    points = np.zeros((most + 1, most * LANES))
    weights = np.zeros((most + 1, most * LANES))
    for chunks in range(1, most + 1):
        nodes, share = np.polynomial.legendre.leggauss(chunks * LANES)
        points[chunks, : chunks * LANES] = (nodes + 1) / 2
        weights[chunks, : chunks * LANES] = share / 2
    return points, weights


def shapley_values(tables: ShapleyTables, rows: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return contributions, shape (n, k); each row and `base` add up to its raw score.

    Threads may call this at once; they take turns.
    """
    kept = tables.kept
    with kept.lock:
        return _shapley(
            np.ascontiguousarray(rows, np.float32),
            tables.place,
            tables.inner_start,
            tables.nodes,
            tables.threshold,
            tables.edges,
            tables.chunks,
            tables.points,
            tables.weights,
            kept.keys,
            kept.values,
            kept.newest,
        )


@nb.njit(inline="always")
def _same(keys: NDArray[np.uint64], at: np.uint64, key: NDArray[np.uint64]) -> bool:
    different = np.uint64(0)
    for word in range(len(key)):
        different |= keys[at, word] ^ key[word]
    same: bool = different == np.uint64(0)
    return same


# The four lanes are spelled out below and become vector instructions only by LLVM's superword pass,
# which numba leaves out unless told: a fifth less time for this kernel. Whether a cached kernel was
# compiled with it changes nothing but its speed.
_settings: Any = _numba_config
_superword = _settings.SLP_VECTORIZE
_settings.SLP_VECTORIZE = 1


@nb.njit(
    "float64[:,::1](float32[:,::1], int32[::1], int32[::1], int32[:,::1], float32[::1],"
    " float64[:,::1], int32[::1], float64[:,::1], float64[:,::1], uint64[:,::1], float64[:,::1],"
    " uint8[::1])",
    cache=True,
    nogil=True,
    error_model="numpy",
    fastmath={"contract", "reassoc"},
)
def _shapley(
    rows: NDArray[np.float32],
    place: NDArray[np.int32],
    inner_start: NDArray[np.int32],
    nodes: NDArray[np.int32],
    threshold: NDArray[np.float32],
    edges: NDArray[np.float64],
    chunks: NDArray[np.int32],
    points: NDArray[np.float64],
    weights: NDArray[np.float64],
    keys: NDArray[np.uint64],
    values: NDArray[np.float64],
    newest: NDArray[np.uint8],
) -> NDArray[np.float64]:
    # Unsigned indexes: numba then leaves out what negative ones would need.
    u = np.uint64
    one, two, three, four = u(1), u(2), u(3), u(4)
    out = np.zeros(rows.shape, np.float64)
    most, widest = u(0), u(0)
    for tree in range(len(place)):
        end = place[tree + 1] if tree + 1 < len(place) else len(edges)
        most = max(most, u(end - place[tree]))
        widest = max(widest, u(inner_start[tree + 1] - inner_start[tree]))
    product = np.empty(most * four)
    # Whether every test of an edge's feature down to it holds; place 0 is "no earlier test".
    holds = np.empty(most, np.int64)
    holds[0] = 1
    # By inner node, the child whose edge holds; 0 where an earlier test of the feature failed.
    taken = np.empty(widest, np.int64)
    # The key of a tree: its number plus one, then a bit for each of its tests that holds.
    words = u(keys.shape[1])
    key = np.empty(words, np.uint64)
    for row in range(rows.shape[0]):
        cells = rows[row]
        for tree in range(len(place)):
            start, begin = u(place[tree]), u(inner_start[tree])
            inner = u(inner_start[tree + 1]) - begin
            key[0] = u(tree + 1)
            mixed = key[0]
            for word in range(one, words):
                first = (u(word) - one) << u(6)
                bits = u(0)
                for number in range(first, min(first + u(64), inner)):
                    node = begin + u(number)
                    cell = cells[u(nodes[node, two])]
                    left = (cell <= threshold[node]) | ((cell != cell) & (nodes[node, four] != 0))
                    bits |= u(left) << (u(number) - first)
                key[u(word)] = bits
                mixed = (mixed ^ bits) * u(0x9E3779B97F4A7C15)
                mixed ^= mixed >> u(32)
            pair = mixed & u(len(newest) - 1)
            at = two * pair
            if not _same(keys, at, key):
                at += one
            if _same(keys, at, key):
                for feature in range(values.shape[1]):
                    out[row, feature] += values[at, feature]
                continue
            at = two * pair + u(newest[pair] == 0)
            newest[pair] ^= 1
            keys[at] = key
            shares = values[at]
            shares[:] = 0.0
            rule = u(chunks[tree])
            for chunk in range(rule):
                lane = u(chunk) * four
                t0, t1 = points[rule, lane], points[rule, lane + one]
                t2, t3 = points[rule, lane + two], points[rule, lane + three]
                a0, a1, a2, a3 = 1 - t0, 1 - t1, 1 - t2, 1 - t3
                f0, f1, f2, f3 = 1 / a0, 1 / a1, 1 / a2, 1 / a3
                product[4], product[5] = weights[rule, lane], weights[rule, lane + one]
                product[6], product[7] = weights[rule, lane + two], weights[rule, lane + three]
                # Down: a test that holds is t + (1 - t) z, one that fails (1 - t) z, both instead
                # of what an earlier test of the feature gave; once one failed, only z shrinks.
                for number in range(inner):
                    node = begin + u(number)
                    bit = key[one + (u(number) >> u(6))] >> (u(number) & u(63)) & one
                    goes_left = np.int64(bit)
                    low = np.int64(nodes[node, one])
                    good, bad = u(low + 1 - goes_left), u(low + goes_left)
                    before = u(nodes[node, three])
                    ok = holds[before]
                    holds[good] = ok
                    holds[bad] = 0
                    taken[u(number)] = np.int64(good) * ok
                    p = u(nodes[node, 0]) * four
                    p0, p1 = product[p], product[p + one]
                    p2, p3 = product[p + two], product[p + three]
                    g, b = start + good, start + bad
                    good_value, bad_value = edges[g, one], edges[b, one]
                    good *= four
                    bad *= four
                    if ok:
                        if before:
                            old = edges[start + before, 0]
                            d0, d1, d2, d3 = (
                                t0 + a0 * old, t1 + a1 * old, t2 + a2 * old, t3 + a3 * old,
                            )  # fmt: skip
                            p0, p1, p2, p3 = p0 / d0, p1 / d1, p2 / d2, p3 / d3
                        q0, q1, q2, q3 = a0 * p0, a1 * p1, a2 * p2, a3 * p3
                        p0, p1, p2, p3 = t0 * p0, t1 * p1, t2 * p2, t3 * p3
                        new = edges[g, 0]
                        p0, p1, p2, p3 = (
                            p0 + q0 * new, p1 + q1 * new, p2 + q2 * new, p3 + q3 * new,
                        )  # fmt: skip
                        bad_value *= edges[b, 0]
                    else:
                        q0, q1, q2, q3 = p0, p1, p2, p3
                        good_value *= edges[g, two]
                        bad_value *= edges[b, two]
                    product[good], product[good + one] = p0 * good_value, p1 * good_value
                    product[good + two], product[good + three] = p2 * good_value, p3 * good_value
                    product[bad], product[bad + one] = q0 * bad_value, q1 * bad_value
                    product[bad + two], product[bad + three] = q2 * bad_value, q3 * bad_value
                # Up: what lies below an edge, times what knowing its feature adds there, less what
                # the earlier edge of the feature will add for the same leaves.
                for back in range(inner):
                    last = inner - one - u(back)
                    node = begin + last
                    x = u(nodes[node, one]) * four
                    y = x + four
                    s0, s1, s2, s3 = (
                        product[x], product[x + one], product[x + two], product[x + three],
                    )  # fmt: skip
                    r0, r1, r2, r3 = (
                        product[y], product[y + one], product[y + two], product[y + three],
                    )  # fmt: skip
                    s0, s1, s2, s3 = s0 + r0, s1 + r1, s2 + r2, s3 + r3
                    p = u(nodes[node, 0]) * four
                    product[p], product[p + one], product[p + two], product[p + three] = (
                        s0, s1, s2, s3,
                    )  # fmt: skip
                    good = u(taken[last])
                    if good == u(0):
                        continue
                    new = 1.0 - edges[start + good, 0]
                    good *= four
                    h0, h1, h2, h3 = (
                        product[good], product[good + one],
                        product[good + two], product[good + three],
                    )  # fmt: skip
                    d0, d1, d2, d3 = 1 - a0 * new, 1 - a1 * new, 1 - a2 * new, 1 - a3 * new
                    d0, d1, d2, d3 = new / d0 + f0, new / d1 + f1, new / d2 + f2, new / d3 + f3
                    h0, h1, h2, h3 = h0 * d0, h1 * d1, h2 * d2, h3 * d3
                    d0, d1, d2, d3 = f0, f1, f2, f3
                    before = u(nodes[node, three])
                    if before:
                        old = 1.0 - edges[start + before, 0]
                        d0, d1, d2, d3 = 1 - a0 * old, 1 - a1 * old, 1 - a2 * old, 1 - a3 * old
                        d0, d1, d2, d3 = old / d0 + f0, old / d1 + f1, old / d2 + f2, old / d3 + f3
                    h0, h1, h2, h3 = h0 - s0 * d0, h1 - s1 * d1, h2 - s2 * d2, h3 - s3 * d3
                    shares[u(nodes[node, two])] += (h0 + h1) + (h2 + h3)
            for feature in range(values.shape[1]):
                out[row, feature] += shares[feature]
    return out


_settings.SLP_VECTORIZE = _superword
