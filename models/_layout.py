"""Number the nodes of trees the way compiled walks read them fastest.

Trees follow one another, each breadth first with siblings side by side: the right child of a node
is the one after its left child, and parents come before their children.
"""

from __future__ import annotations

from dataclasses import replace

import numba as nb
import numpy as np
from numpy.typing import NDArray

from models.trees import Trees

__all__ = ["breadth_first", "tree_depths"]


def breadth_first(trees: Trees) -> Trees:
    """Return the same trees with `right == left + 1` at inner nodes; leaves keep -1 for both."""
    order, roots = _order(trees.roots, trees.left, trees.right, trees.feature)
    place = np.empty(len(order), np.int32)
    place[order] = np.arange(len(order), dtype=np.int32)
    inner = trees.feature[order] >= 0
    left = np.where(inner, place[trees.left[order]], np.int32(-1))
    return replace(
        trees,
        roots=roots,
        feature=trees.feature[order],
        threshold=trees.threshold[order],
        left=left,
        right=np.where(inner, left + 1, np.int32(-1)),
        missing_left=trees.missing_left[order],
        value=trees.value[order],
        cover=trees.cover[order],
    )


def tree_depths(laid: Trees) -> NDArray[np.int64]:
    """Return how many tests the longest path of each tree has, of trees laid breadth first."""
    return _depths(laid.roots, laid.feature, laid.left)


@nb.njit("int64[::1](int32[::1], int32[::1], int32[::1])", cache=True, nogil=True)
def _depths(
    roots: NDArray[np.int32], feature: NDArray[np.int32], left: NDArray[np.int32]
) -> NDArray[np.int64]:
    depths = np.zeros(len(roots), np.int64)
    level = np.zeros(len(feature), np.int64)
    for tree in range(len(roots)):
        end = roots[tree + 1] if tree + 1 < len(roots) else len(feature)
        for node in range(roots[tree], end):
            depths[tree] = max(depths[tree], level[node])
            if feature[node] >= 0:
                level[left[node]] = level[node] + 1
                level[left[node] + 1] = level[node] + 1
    return depths


@nb.njit(
    "Tuple((int32[::1], int32[::1]))(int32[::1], int32[::1], int32[::1], int32[::1])",
    cache=True,
    nogil=True,
)
def _order(
    roots: NDArray[np.int32],
    left: NDArray[np.int32],
    right: NDArray[np.int32],
    feature: NDArray[np.int32],
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    order = np.empty(len(feature), np.int32)
    first = np.empty(len(roots), np.int32)
    end = 0
    for tree in range(len(roots)):
        at = end
        first[tree] = at
        order[end] = roots[tree]
        end += 1
        while at < end:
            node = order[at]
            if feature[node] >= 0:
                order[end] = left[node]
                order[end + 1] = right[node]
                end += 2
            at += 1
    return order[:end].copy(), first
