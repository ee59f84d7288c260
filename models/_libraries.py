"""Read the fitted trees of LightGBM, XGBoost and scikit-learn into flat arrays.

Every reader reproduces the library's decision for float32 input exactly (see `models.trees`).
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np

from models.errors import ModelError
from models.trees import LEAF, Trees, below, join_trees, round_down

__all__ = [
    "trees_of_forest",
    "trees_of_isolation_forest",
    "trees_of_lightgbm",
    "trees_of_xgboost",
    "unweighted_shares",
]


def trees_of_lightgbm(booster: Any) -> Trees:
    """Read a LightGBM booster; covers are row counts, as its own contributions use."""
    parts = []
    for info in booster.dump_model()["tree_info"]:
        nodes: list[tuple[int, float, int, int, bool, float, float]] = []
        _walk_lightgbm(info["tree_structure"], nodes)
        feature, threshold, left, right, missing, value, cover = zip(*nodes, strict=True)
        parts.append(
            Trees(
                roots=np.zeros(1, np.int32),
                feature=np.array(feature, np.int32),
                threshold=round_down(np.array(threshold, np.float64)),
                left=np.array(left, np.int32),
                right=np.array(right, np.int32),
                missing_left=np.array(missing, np.bool_),
                value=np.array(value, np.float64),
                cover=np.array(cover, np.float64),
            )
        )
    return join_trees(parts)


def _walk_lightgbm(node: dict[str, Any], nodes: list[Any]) -> int:
    index = len(nodes)
    if "split_feature" not in node:
        nodes.append((LEAF, 0.0, LEAF, LEAF, False, node["leaf_value"], node.get("leaf_count", 1)))
        return index
    if node["decision_type"] != "<=":
        msg = (
            f"reading a LightGBM tree: decision {node['decision_type']!r}; train without categories"
        )
        raise ModelError(msg)
    # missing_type None turns NaN into 0 before comparing.
    missing = node["default_left"] if node["missing_type"] == "NaN" else node["threshold"] >= 0
    nodes.append(None)
    left = _walk_lightgbm(node["left_child"], nodes)
    right = _walk_lightgbm(node["right_child"], nodes)
    nodes[index] = (
        node["split_feature"],
        node["threshold"],
        left,
        right,
        missing,
        0.0,
        node["internal_count"],
    )
    return index


def trees_of_xgboost(booster: Any) -> Trees:
    """Read an XGBoost booster of objective binary:logistic; covers are sums of hessians."""
    model = json.loads(bytes(booster.save_raw("json")))["learner"]
    base_text = model["learner_model_param"]["base_score"].strip("[]")
    base_probability = float(base_text.split(",")[0])
    parts = []
    for tree in model["gradient_booster"]["model"]["trees"]:
        left = np.array(tree["left_children"], np.int32)
        leaf = left == -1
        conditions = np.array(tree["split_conditions"], np.float32)
        parts.append(
            Trees(
                roots=np.zeros(1, np.int32),
                feature=np.where(leaf, LEAF, np.array(tree["split_indices"])).astype(np.int32),
                threshold=below(conditions),
                left=left,
                right=np.array(tree["right_children"], np.int32),
                missing_left=np.array(tree["default_left"]).astype(np.bool_),
                value=np.where(leaf, conditions.astype(np.float64), 0.0),
                cover=np.array(tree["sum_hessian"], np.float64),
            )
        )
    return join_trees(parts, base=float(np.log(base_probability / (1 - base_probability))))


def _trees_of_sklearn(tree: Any, value: Any) -> Trees:
    leaf = tree.children_left == -1
    missing = getattr(tree, "missing_go_to_left", np.zeros(tree.node_count, np.uint8))
    return Trees(
        roots=np.zeros(1, np.int32),
        feature=np.where(leaf, LEAF, tree.feature).astype(np.int32),
        threshold=round_down(np.array(tree.threshold, np.float64)),
        left=tree.children_left.astype(np.int32),
        right=tree.children_right.astype(np.int32),
        missing_left=np.array(missing).astype(np.bool_) & ~leaf,
        value=np.where(leaf, value, 0.0).astype(np.float64),
        cover=np.array(tree.weighted_n_node_samples, np.float64),
    )


def trees_of_forest(forest: Any, weight: float = 1.0) -> Trees:
    """Read a RandomForestClassifier: the raw score is the mean share of class 1.

    Where class 1 weighed `weight` in training, each leaf's share is that of its unweighted rows.
    """
    parts = [
        _trees_of_sklearn(estimator.tree_, unweighted_shares(estimator.tree_, weight))
        for estimator in forest.estimators_
    ]
    return join_trees(parts).scaled(1.0 / len(parts))


def unweighted_shares(tree: Any, weight: float) -> Any:
    """Return the share of class 1 among the rows of each node of one scikit-learn tree."""
    other, fraud = tree.value[:, 0, 0], tree.value[:, 0, 1] / weight
    return fraud / (other + fraud)


def trees_of_isolation_forest(forest: Any) -> Trees:
    """Read an IsolationForest: the raw score is minus the mean path length over its expectation.

    The anomaly score is `2 ** raw` (Liu, Ting, Zhou, "Isolation Forest", 2008, equation 2).
    """
    if forest._max_features != forest.n_features_in_:  # noqa: SLF001 - no public name for it
        msg = "reading an isolation forest: train it with max_features=1.0"
        raise ModelError(msg)
    parts = []
    for estimator in forest.estimators_:
        tree = estimator.tree_
        depth = np.zeros(tree.node_count)
        for node in range(tree.node_count):
            if tree.children_left[node] != -1:
                depth[tree.children_left[node]] = depth[node] + 1
                depth[tree.children_right[node]] = depth[node] + 1
        part = _trees_of_sklearn(tree, depth + _expected_path(tree.n_node_samples))
        # Training fills NaN with 0, so NaN goes where 0 goes.
        parts.append(replace(part, missing_left=(part.feature != LEAF) & (part.threshold >= 0)))
    expected = float(_expected_path(np.array([forest.max_samples_]))[0])
    return join_trees(parts).scaled(-1.0 / (len(parts) * expected))


def _expected_path(samples: Any) -> Any:
    # Mean depth of an unsuccessful search in a binary tree of that many points (equation 1 there).
    count = np.asarray(samples, np.float64)
    large = np.maximum(count, 3.0)
    mean = 2.0 * (np.log(large - 1.0) + np.euler_gamma) - 2.0 * (large - 1.0) / large
    return np.where(count <= 1, 0.0, np.where(count == 2, 1.0, mean))
