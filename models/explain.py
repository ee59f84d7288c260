"""Say how much each feature moved a score: exactly for trees and linear models, else by sampling.

Contributions and `base` add up to the raw score, on the scale named by `scale`:

================  ==================================================================================
`log_odds`        log(p / (1 - p)): models with a logistic at the end
`probability`     the score itself: forests that average probabilities, and everything sampled
`margin`          the class' own raw sum before a softmax over several classes
`path_length`     minus the mean path length over its expectation; the anomaly score is 2 to that
power ================
==================================================================================

How a model is read is checked on its golden rows; a graph that is not understood exactly is
sampled.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from models._shapley import shapley_tables, shapley_values
from models.errors import ModelError
from models.manifest import Manifest
from models.trees import Trees, raw_scores, trees_of_node

__all__ = ["Explainer", "Explanation", "Rows", "Scale", "TreeReading", "explainer_of"]

Scale = Literal["log_odds", "probability", "margin", "path_length"]
"""What contributions add up to."""

Method = Literal["tree", "linear", "sampled"]
Rows = NDArray[np.float64]
"""Features, shape (n, k)."""

PERMUTATIONS: Final = 64
# Pairs of opposite orders of the features, so 32 independent draws: the standard error of a
# contribution falls with their root. 64 orders of 15 features are 1,024 rows, a few milliseconds
# for a tree model and well below one for a small network.

_LINK_TOLERANCE: Final = 2e-5


@dataclass(frozen=True, slots=True)
class Explanation:
    """Contributions of n rows, shape (n, k of the model).

    `error` is the standard error of each contribution, zero where exact.
    """

    contributions: NDArray[np.float64]
    base: NDArray[np.float64]
    error: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class TreeReading:
    """A model that is its trees, and the scale of their raw scores, never `margin`."""

    trees: Trees
    scale: Scale


class _Body(Protocol):
    method: Method
    scale: Scale
    reading: TreeReading | None

    def explain(self, rows: Rows) -> Explanation: ...


class Explainer:
    """Explain the scores of one model; safe between threads."""

    def __init__(self, names: tuple[str, ...], body: _Body) -> None:
        """Name the features that a body explains."""
        self.names: Final = names
        self.method: Final = body.method
        self.scale: Final = body.scale
        self.reading: Final = body.reading
        self._body: Final = body

    def explain(self, rows: Rows) -> Explanation:
        """Explain rows that hold exactly the model's own features, in its order."""
        return self._body.explain(rows)


def _logistic(raw: Rows) -> Rows:
    # A score of 0 is right where the exponential is too large for a float64.
    with np.errstate(over="ignore"):
        scores: Rows = 1 / (1 + np.exp(-raw))
    return scores


_LINKS: Final[dict[Scale, Callable[[Rows], Rows]]] = {
    "log_odds": _logistic,
    "path_length": np.exp2,
    "probability": lambda raw: raw,
}


class _TreeBody:
    method: Method = "tree"

    def __init__(self, trees: Trees, scale: Scale) -> None:
        self.scale: Scale = scale
        # After a softmax the score is not a matter of the one class' trees.
        self.reading = None if scale == "margin" else TreeReading(trees, scale)
        self._tables = shapley_tables(trees)

    def explain(self, rows: Rows) -> Explanation:
        shares = shapley_values(self._tables, rows.astype(np.float32))
        return Explanation(shares, np.full(len(rows), self._tables.base), np.zeros_like(shares))


class _LinearBody:
    """Exact for features taken as independent: weight times distance from the training mean."""

    method: Method = "linear"
    scale: Scale = "log_odds"
    reading: TreeReading | None = None

    def __init__(self, mean: Rows, weight: Rows, intercept: float) -> None:
        self._mean, self._weight, self._intercept = mean, weight, intercept

    def explain(self, rows: Rows) -> Explanation:
        shares = (np.nan_to_num(rows) - self._mean) * self._weight
        return Explanation(shares, np.full(len(rows), self._intercept), np.zeros_like(shares))


class _SampledBody:
    """Shapley values by random orders against background rows (Castro et al., 2009)."""

    method: Method = "sampled"
    scale: Scale = "probability"
    reading: TreeReading | None = None

    def __init__(self, score: Callable[[Rows], Rows], background: Rows, seed: int = 0) -> None:
        self._score = score
        generator = np.random.default_rng(seed)
        width = background.shape[1]
        half = [generator.permutation(width) for _ in range(PERMUTATIONS // 2)]
        # Each order and its reverse share one background row: what they overstate cancels out.
        self._orders = np.array(list(itertools.chain(*((one, one[::-1]) for one in half))))
        drawn = np.resize(generator.permutation(len(background)), PERMUTATIONS // 2)
        self._background = background[np.repeat(drawn, 2)]

    def explain(self, rows: Rows) -> Explanation:
        width = rows.shape[1]
        shares = np.empty(rows.shape)
        error = np.empty(rows.shape)
        base = np.empty(len(rows))
        for number, row in enumerate(rows):
            # Step s of an order has its first s features from the row, the others from background.
            steps = np.repeat(self._background[:, None, :], width + 1, axis=1)
            rank = np.argsort(self._orders, axis=1)
            taken = rank[:, None, :] < np.arange(width + 1)[None, :, None]
            steps[taken] = np.broadcast_to(row, steps.shape)[taken]
            scores = self._score(steps.reshape(-1, width)).reshape(-1, width + 1)
            gains = np.empty((len(scores), width))
            np.put_along_axis(gains, self._orders, np.diff(scores, axis=1), axis=1)
            pairs = gains.reshape(-1, 2, width).mean(axis=1)
            shares[number] = pairs.mean(axis=0)
            error[number] = pairs.std(axis=0, ddof=1) / np.sqrt(len(pairs))
            base[number] = scores[:, 0].mean()
        return Explanation(shares, base, error)


def explainer_of(
    manifest: Manifest,
    data: bytes,
    score: Callable[[Rows], Rows],
) -> Explainer:
    """Return the best explainer there is for a model.

    Args:
        manifest: the model's manifest; golden rows are the background of samples.
        data: the ONNX file.
        score: scores rows of the model's own features, shape (n, k) to (n,).
    """
    body: _Body | None = None
    try:
        body = _exact_body(manifest, data)
    except (ModelError, ImportError, KeyError, IndexError, ValueError):
        # An operator that this reader does not know is no reason to refuse a model: sample it.
        body = None
    if body is None:
        body = _SampledBody(score, manifest.golden.input_matrix())
    return Explainer(manifest.features, body)


def _exact_body(manifest: Manifest, data: bytes) -> _Body | None:
    import onnx

    graph = onnx.load_from_string(data).graph
    trees = [node for node in graph.node if node.op_type.startswith("TreeEnsemble")]
    if len(trees) == 1:
        return _tree_body(manifest, graph, trees[0])
    operators = [node.op_type for node in graph.node]
    if operators == ["IsNaN", "Where", "Sub", "Gemm", "Sigmoid"]:
        constants = {one.name: onnx.numpy_helper.to_array(one) for one in graph.initializer}
        return _LinearBody(
            constants["mean"].astype(np.float64),
            constants["weight"].reshape(-1).astype(np.float64),
            float(constants["intercept"][0]),
        )
    return None


def _tree_body(manifest: Manifest, graph: Any, node: Any) -> _Body | None:
    golden = manifest.golden.input_matrix().astype(np.float32)
    expected = np.array(manifest.golden.outputs)
    chosen = manifest.output.class_index or 0
    after = [one.op_type for one in graph.node if one.op_type not in ("Cast", "Identity", "ZipMap")]
    if node.op_type == "TreeEnsembleRegressor":
        trees = trees_of_node(node)
        raw = raw_scores(trees, golden)
        scales: dict[str, Scale] = {
            "Sigmoid": "log_odds",
            "Pow": "path_length",
            "TreeEnsembleRegressor": "probability",
        }
        scale = scales[after[-1]]
        if len(after) > 2 or np.abs(_LINKS[scale](raw) - expected).max() > _LINK_TOLERANCE:
            return None
    else:
        if after != ["TreeEnsembleClassifier"]:
            return None
        labels = next(
            len(one.ints or one.strings)
            for one in node.attribute
            if one.name.startswith("classlabels")
        )
        every = [trees_of_node(node, label) for label in range(labels)]
        found = _classifier_scale(
            np.column_stack([raw_scores(one, golden) for one in every]), expected, chosen
        )
        if found is None:
            return None
        trees, scale = every[chosen], found
    if not trees.has_cover:
        trees = trees.with_cover(golden)
    return _TreeBody(trees, scale)


def _classifier_scale(raw: Rows, expected: Rows, chosen: int) -> Scale | None:
    """Find which transform turns raw sums into the published scores, by trying them."""
    powers = np.exp(raw - raw.max(axis=1, keepdims=True))
    candidates: tuple[tuple[Scale, Rows], ...] = (
        ("probability", raw[:, chosen]),
        ("log_odds", _logistic(raw[:, chosen])),
        ("margin", powers[:, chosen] / powers.sum(axis=1)),
    )
    for scale, scores in candidates:
        if np.abs(scores - expected).max() <= _LINK_TOLERANCE:
            return scale
    return None
