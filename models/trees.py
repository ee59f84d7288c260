"""Tree ensembles as flat arrays: the one form between training libraries, ONNX and explanations.

A row goes left at a node when its float32 feature is at most the float32 threshold; NaN goes left
where `missing_left` is set. The raw score of a row is `base` plus the values of the leaves it
reaches.

Libraries compare with float64 thresholds or with `<`; both become "at most" on float32 without
changing any decision on float32 input: a float64 threshold is rounded down, and `x < t` is `x <=
below(t)`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from models.errors import ModelError

__all__ = [
    "ML_DOMAIN",
    "Trees",
    "below",
    "join_trees",
    "leaves_reached",
    "raw_scores",
    "regressor_node",
    "round_down",
    "trees_of_node",
]

ML_DOMAIN: Final = "ai.onnx.ml"
"""Operator domain of tree ensembles."""

LEAF: Final = -1


@dataclass(frozen=True, slots=True)
class Trees:
    """All nodes of all trees in one set of arrays of length n_nodes; child numbers are global.

    `feature` is -1 at leaves; `value` is 0 at inner nodes; `cover` is how many training rows
    reached the node (any positive measure that adds up over children), or all zero where unknown.
    """

    roots: NDArray[np.int32]
    feature: NDArray[np.int32]
    threshold: NDArray[np.float32]
    left: NDArray[np.int32]
    right: NDArray[np.int32]
    missing_left: NDArray[np.bool_]
    value: NDArray[np.float64]
    cover: NDArray[np.float64]
    base: float = 0.0

    @property
    def has_cover(self) -> bool:
        """Whether covers are known, as explanations need."""
        return bool(np.all(self.cover > 0))

    def scaled(self, factor: float, shift: float = 0.0) -> Trees:
        """Return trees whose raw score is `factor * raw + shift`."""
        return replace(self, value=self.value * factor, base=self.base * factor + shift)

    def parents(self) -> NDArray[np.int32]:
        """Return the parent of each node, -1 at roots."""
        parents = np.full(len(self.feature), LEAF, np.int32)
        inner = np.flatnonzero(self.feature != LEAF).astype(np.int32)
        parents[self.left[inner]] = inner
        parents[self.right[inner]] = inner
        return parents

    def with_cover(self, rows: NDArray[np.float32]) -> Trees:
        """Return trees whose covers are counted from rows, plus one a leaf so that none is zero."""
        cover = np.where(self.feature == LEAF, 1.0, 0.0)
        reached = leaves_reached(self, rows)
        np.add.at(cover, reached.reshape(-1), 1.0)
        parents = self.parents()
        node = np.flatnonzero(self.feature == LEAF)
        share = cover[node]
        while len(node):
            above = parents[node]
            node, share = above[above >= 0], share[above >= 0]
            np.add.at(cover, node, share)
        return replace(self, cover=cover)


def _step(trees: Trees, node: NDArray[np.int32], rows: NDArray[np.float32]) -> NDArray[np.int32]:
    cell = rows[np.arange(len(rows)), trees.feature[node]]
    goes_left = np.where(np.isnan(cell), trees.missing_left[node], cell <= trees.threshold[node])
    child: NDArray[np.int32] = np.where(goes_left, trees.left[node], trees.right[node])
    return child


def leaves_reached(trees: Trees, rows: NDArray[np.float32]) -> Any:
    """Return the leaf each row reaches in each tree, shape (rows, trees) (tests and tools)."""
    reached: NDArray[np.int32] = np.empty((len(rows), len(trees.roots)), np.int32)
    for column, root in enumerate(trees.roots):
        node = np.full(len(rows), root, np.int32)
        active = np.flatnonzero(trees.feature[node] != LEAF)
        while len(active):
            node[active] = _step(trees, node[active], rows[active])
            active = active[trees.feature[node[active]] != LEAF]
        reached[:, column] = node
    return reached


def raw_scores(trees: Trees, rows: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return base plus leaf values for each row, summed in float64 (tests and tools)."""
    scores: NDArray[np.float64] = trees.base + trees.value[leaves_reached(trees, rows)].sum(axis=1)
    return scores


def round_down(thresholds: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return the greatest float32 at most each float64: `x <= t` is unchanged for float32 x."""
    rounded = thresholds.astype(np.float32)
    above = rounded.astype(np.float64) > thresholds
    rounded[above] = np.nextafter(rounded[above], np.float32(-np.inf))
    return rounded


def below(thresholds: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the float32 next to each on the low side.

    For float32 x, `x < t` is `x <= below(t)`.
    """
    lower: NDArray[np.float32] = np.nextafter(thresholds, np.float32(-np.inf), dtype=np.float32)
    return lower


def join_trees(parts: Sequence[Trees], base: float = 0.0) -> Trees:
    """Return one ensemble of all trees of the parts."""
    offsets = np.cumsum([0] + [len(part.feature) for part in parts[:-1]])

    def moved(name: str) -> NDArray[np.int32]:
        columns = []
        for part, offset in zip(parts, offsets, strict=True):
            children: NDArray[np.int32] = getattr(part, name)
            columns.append(np.where(part.feature == LEAF, LEAF, children + offset))
        joined: NDArray[np.int32] = np.concatenate(columns).astype(np.int32)
        return joined

    roots = [part.roots + offset for part, offset in zip(parts, offsets, strict=True)]
    return Trees(
        roots=np.concatenate(roots).astype(np.int32),
        feature=np.concatenate([part.feature for part in parts]),
        threshold=np.concatenate([part.threshold for part in parts]),
        left=moved("left"),
        right=moved("right"),
        missing_left=np.concatenate([part.missing_left for part in parts]),
        value=np.concatenate([part.value for part in parts]),
        cover=np.concatenate([part.cover for part in parts]),
        base=base + sum(part.base for part in parts),
    )


def regressor_node(trees: Trees, source: str, target: str) -> onnx.NodeProto:
    """Return a TreeEnsembleRegressor with one target; covers travel as hit rates."""
    n_nodes = len(trees.feature)
    tree_of = np.searchsorted(trees.roots, np.arange(n_nodes), side="right") - 1
    # Node ids are numbered within each tree.
    local = np.arange(n_nodes) - trees.roots[tree_of]
    inner = trees.feature != LEAF
    left = np.where(inner, trees.left - trees.roots[tree_of], 0)
    right = np.where(inner, trees.right - trees.roots[tree_of], 0)
    leaves = np.flatnonzero(~inner)
    return helper.make_node(
        "TreeEnsembleRegressor",
        [source],
        [target],
        domain=ML_DOMAIN,
        n_targets=1,
        aggregate_function="SUM",
        post_transform="NONE",
        base_values=[float(np.float32(trees.base))],
        nodes_treeids=tree_of.tolist(),
        nodes_nodeids=local.tolist(),
        nodes_featureids=np.where(inner, trees.feature, 0).tolist(),
        nodes_values=np.where(inner, trees.threshold, np.float32(0)).astype(float).tolist(),
        nodes_modes=np.where(inner, "BRANCH_LEQ", "LEAF").tolist(),
        nodes_truenodeids=left.tolist(),
        nodes_falsenodeids=right.tolist(),
        nodes_missing_value_tracks_true=(inner & trees.missing_left).astype(int).tolist(),
        nodes_hitrates=trees.cover.tolist(),
        target_treeids=tree_of[leaves].tolist(),
        target_nodeids=local[leaves].tolist(),
        target_ids=[0] * len(leaves),
        target_weights=trees.value[leaves].tolist(),
    )


class _Positions:
    """Find nodes by tree and number within the tree, whatever order the file lists them in."""

    def __init__(self, tree_ids: NDArray[np.int64], node_ids: NDArray[np.int64]) -> None:
        self._width = int(node_ids.max(initial=0)) + 1
        keys = tree_ids * self._width + node_ids
        self._order = np.argsort(keys, kind="stable")
        self._keys = keys[self._order]

    def of(self, tree_ids: NDArray[np.int64], node_ids: NDArray[np.int64]) -> NDArray[np.intp]:
        wanted = tree_ids * self._width + node_ids
        at = np.minimum(np.searchsorted(self._keys, wanted), len(self._keys) - 1)
        if not np.array_equal(self._keys[at], wanted):
            msg = "reading trees: a node names a child that is not there"
            raise ModelError(msg)
        found: NDArray[np.intp] = self._order[at]
        return found


def trees_of_node(node: onnx.NodeProto, class_index: int = 0) -> Trees:
    """Read a TreeEnsembleRegressor or TreeEnsembleClassifier (attribute form, ai.onnx.ml 1-3).

    `class_index` is the target, or the class whose raw score is wanted. A binary classifier that
    stores one weight a leaf stores it for the positive class; class 0 is then its negative.

    Raises:
        ModelError: for a comparison other than <=, <, >=, > or an aggregate other than sum or mean.
    """
    got: dict[str, Any] = {
        attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute
    }
    classifier = node.op_type == "TreeEnsembleClassifier"
    if not classifier and node.op_type != "TreeEnsembleRegressor":
        msg = f"reading trees from operator {node.op_type!r}: expected a TreeEnsemble operator"
        raise ModelError(msg)
    tree_ids = np.array(got["nodes_treeids"], np.int64)
    node_ids = np.array(got["nodes_nodeids"], np.int64)
    n_nodes = len(tree_ids)
    modes = [mode.decode() for mode in got["nodes_modes"]]
    unknown = set(modes) - {"LEAF", "BRANCH_LEQ", "BRANCH_LT", "BRANCH_GT", "BRANCH_GTE"}
    aggregate = got.get("aggregate_function", b"SUM").decode()
    if unknown or aggregate not in ("SUM", "AVERAGE"):
        msg = f"reading trees: modes {sorted(unknown)} or aggregate {aggregate!r} are not supported"
        raise ModelError(msg)
    mode_array = np.array(modes)
    inner = mode_array != "LEAF"
    position = _Positions(tree_ids, node_ids)
    true_child = np.full(n_nodes, LEAF, np.int32)
    false_child = np.full(n_nodes, LEAF, np.int32)
    for child, name in ((true_child, "nodes_truenodeids"), (false_child, "nodes_falsenodeids")):
        numbers = np.array(got[name], np.int64)
        child[inner] = position.of(tree_ids[inner], numbers[inner])
    threshold = np.array(got["nodes_values"], np.float32)
    strict = (mode_array == "BRANCH_LT") | (mode_array == "BRANCH_GTE")
    threshold = np.where(strict, below(threshold), threshold)
    turned = (mode_array == "BRANCH_GT") | (mode_array == "BRANCH_GTE")
    tracks_true = np.array(
        got.get("nodes_missing_value_tracks_true") or [0] * n_nodes, np.int64
    ).astype(np.bool_)
    prefix, wanted = ("class", class_index) if classifier else ("target", class_index)
    ids = np.array(got[f"{prefix}_ids"], np.int64)
    sign = 1.0
    labels = len(got.get("classlabels_int64s") or got.get("classlabels_strings") or [])
    if classifier and labels == 2 and len(set(ids.tolist())) == 1:
        sign = 1.0 if class_index == 1 else -1.0
        wanted = int(ids[0])
    value = np.zeros(n_nodes, np.float64)
    weights = np.array(got[f"{prefix}_weights"], np.float64)
    at = position.of(
        np.array(got[f"{prefix}_treeids"], np.int64), np.array(got[f"{prefix}_nodeids"], np.int64)
    )
    np.add.at(value, at[ids == wanted], sign * weights[ids == wanted])
    base_values = got.get("base_values") or []
    base = 0.0
    if base_values:
        base = sign * base_values[wanted if len(base_values) > 1 else 0]
    first = np.flatnonzero(np.append(True, tree_ids[1:] != tree_ids[:-1]))
    hit_rates = np.array(got.get("nodes_hitrates") or [0.0] * n_nodes, np.float64)
    trees = Trees(
        roots=first.astype(np.int32),
        feature=np.where(inner, np.array(got["nodes_featureids"]), LEAF).astype(np.int32),
        threshold=threshold,
        left=np.where(turned, false_child, true_child).astype(np.int32),
        right=np.where(turned, true_child, false_child).astype(np.int32),
        missing_left=np.where(inner, tracks_true != turned, False),
        value=value,
        cover=hit_rates,
        base=base,
    )
    if aggregate == "AVERAGE":
        trees = replace(trees, value=trees.value / len(first))
    # Exporters that know no counts write 1 everywhere; children must add up to their parent.
    sums = hit_rates[trees.left] + hit_rates[trees.right]
    if not np.allclose(sums[inner], hit_rates[inner], rtol=1e-3):
        trees = replace(trees, cover=np.zeros(n_nodes, np.float64))
    return trees
