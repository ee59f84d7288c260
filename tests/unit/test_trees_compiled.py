"""Trees in compiled kernels: the same scores, contributions and changes as the slow ways."""

from __future__ import annotations

import itertools
import json
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
import pytest

from models import _shapley, session
from models._bitvectors import FEWEST_ROWS, MOST_LEAVES, most_leaves
from models._compiled import CompiledTrees, tree_probes
from models._layout import breadth_first, tree_depths
from models._shapley import shapley_tables, shapley_values
from models.counterfactual import ChangeFinder
from models.explain import TreeReading
from models.export import tree_model
from models.kinds import KINDS, fit
from models.manifest import Golden, Manifest, ModelInput, ModelOutput, sha256_of
from models.session import LoadedModel, open_model, open_session
from models.trees import LEAF, Trees, leaves_reached, raw_scores

WIDTH = 9
GENERATOR = np.random.default_rng(21)
ROWS = GENERATOR.gamma(2.0, 20.0, (6_000, WIDTH)).astype(np.float32)
FRAUD = GENERATOR.random(6_000) < 1 / (1 + np.exp(-(ROWS[:, 0] / 20 + ROWS[:, 3] / 30 - 7)))
NAMES = tuple(f"x{number}" for number in range(WIDTH))
TREE_KINDS = [kind.name for kind in KINDS if kind.name != "logistic"]
LINKS = {"log_odds": "logistic", "path_length": "power_of_two", "probability": "identity"}


def _random_trees(seed: int, trees: int = 5, depth: int = 11, width: int = WIDTH) -> Trees:
    """Return trees that test features again and again on a path, and are as deep as one may be."""
    generator = np.random.default_rng(seed)
    columns: dict[str, list] = {
        name: [] for name in ("feature", "threshold", "left", "right", "missing", "value", "cover")
    }
    roots = []

    def grow(level: int, cover: float) -> int:
        node = len(columns["feature"])
        for name in columns:
            columns[name].append(0)
        columns["cover"][node] = cover
        columns["missing"][node] = bool(generator.random() < 0.5)
        if level == depth or generator.random() < 0.25 * (level > 2):
            columns["feature"][node], columns["value"][node] = LEAF, generator.normal()
            return node
        columns["feature"][node] = int(generator.integers(width))
        columns["threshold"][node] = float(generator.normal())
        share = generator.uniform(0.05, 0.95)
        # Right before left: the layout must not lean on the order of the file.
        columns["right"][node] = grow(level + 1, cover * (1 - share))
        columns["left"][node] = grow(level + 1, cover * share)
        return node

    for _ in range(trees):
        roots.append(grow(0, 100.0))
    return Trees(
        roots=np.array(roots, np.int32),
        feature=np.array(columns["feature"], np.int32),
        threshold=np.array(columns["threshold"], np.float32),
        left=np.array(columns["left"], np.int32),
        right=np.array(columns["right"], np.int32),
        missing_left=np.array(columns["missing"], np.bool_),
        value=np.array(columns["value"]),
        cover=np.array(columns["cover"]),
        base=0.25,
    )


def _random_rows(seed: int, count: int, width: int = WIDTH) -> np.ndarray:
    generator = np.random.default_rng(seed)
    rows = generator.normal(size=(count, width)).astype(np.float32)
    rows[generator.random(rows.shape) < 0.1] = np.nan
    return rows


def _expected_raw(trees: Trees, row: np.ndarray, known: frozenset[int]) -> float:
    """Return the mean raw score of training rows when only some features of a row are known."""

    def below(node: int) -> float:
        feature = int(trees.feature[node])
        if feature == LEAF:
            return float(trees.value[node])
        left, right = int(trees.left[node]), int(trees.right[node])
        if feature in known:
            cell = row[feature]
            goes_left = (
                trees.missing_left[node] if np.isnan(cell) else cell <= trees.threshold[node]
            )
            return below(left if goes_left else right)
        share = trees.cover[left] / trees.cover[node]
        return share * below(left) + (1 - share) * below(right)

    return trees.base + sum(below(int(root)) for root in trees.roots)


def _slow_shapley(trees: Trees, row: np.ndarray) -> np.ndarray:
    """Return Shapley values from their definition: every subset of the features."""
    width = len(row)
    worth = {
        frozenset(subset): _expected_raw(trees, row, frozenset(subset))
        for size in range(width + 1)
        for subset in itertools.combinations(range(width), size)
    }
    shares = np.zeros(width)
    for feature in range(width):
        others = [one for one in range(width) if one != feature]
        for size in range(width):
            weight = 1 / (width * _choose(width - 1, size))
            for subset in itertools.combinations(others, size):
                before = frozenset(subset)
                shares[feature] += weight * (worth[before | {feature}] - worth[before])
    return shares


def _choose(n: int, k: int) -> int:
    return int(np.prod([(n - i) / (i + 1) for i in range(k)]).round())


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_contributions_are_shapley_values_by_their_definition(seed: int) -> None:
    trees = _random_trees(seed, trees=3, depth=6, width=5)
    tables = shapley_tables(trees)
    rows = _random_rows(seed, 6, width=5)
    shares = shapley_values(tables, rows)
    for row, share in zip(rows, shares, strict=True):
        np.testing.assert_allclose(share, _slow_shapley(trees, row), atol=1e-9)
    assert tables.base == pytest.approx(_expected_raw(trees, rows[0], frozenset()), abs=1e-9)


@pytest.mark.parametrize(("width", "depth"), [(4, 9), (9, 12), (30, 16)])
def test_contributions_add_up_on_deep_trees_that_repeat_features(width: int, depth: int) -> None:
    trees = _random_trees(4, trees=4, depth=depth, width=width)
    rows = _random_rows(5, 400, width=width)
    tables = shapley_tables(trees)
    total = shapley_values(tables, rows).sum(axis=1) + tables.base
    np.testing.assert_allclose(total, raw_scores(trees, rows), atol=1e-9)


@pytest.mark.parametrize("kept_bytes", [1, 4_000, 8 << 20])
@pytest.mark.parametrize("depth", [4, 9])
def test_contributions_do_not_depend_on_the_rows_before(
    monkeypatch: pytest.MonkeyPatch, kept_bytes: int, depth: int
) -> None:
    # With one byte each tree makes the one before it forgotten.
    monkeypatch.setattr(_shapley, "_KEPT_BYTES", kept_bytes)
    trees = _random_trees(7, trees=6, depth=depth)
    rows = _random_rows(8, 60)
    alone = np.vstack([shapley_values(shapley_tables(trees), row[None, :]) for row in rows])
    tables = shapley_tables(trees)
    order = np.random.default_rng(9).integers(0, len(rows), 900)
    for at in range(0, len(order), 45):
        some = order[at : at + 45]
        np.testing.assert_array_equal(shapley_values(tables, rows[some]), alone[some])


def test_threads_that_explain_at_once_get_their_own_rows_values() -> None:
    trees = _random_trees(7, trees=6, depth=9)
    rows = _random_rows(8, 40)
    expected = shapley_values(shapley_tables(trees), rows)
    tables = shapley_tables(trees)
    with ThreadPoolExecutor(4) as pool:
        turns = [np.roll(np.arange(40), shift) for shift in range(200)]
        found = pool.map(lambda turn: shapley_values(tables, rows[turn]), turns)
        for turn, values in zip(turns, found, strict=True):
            np.testing.assert_array_equal(values, expected[turn])


def test_a_tree_that_is_one_leaf_contributes_nothing() -> None:
    leaf = Trees(
        roots=np.zeros(1, np.int32),
        feature=np.array([LEAF], np.int32),
        threshold=np.zeros(1, np.float32),
        left=np.zeros(1, np.int32),
        right=np.zeros(1, np.int32),
        missing_left=np.zeros(1, np.bool_),
        value=np.array([1.5]),
        cover=np.ones(1),
        base=0.5,
    )
    tables = shapley_tables(leaf)
    assert shapley_values(tables, _random_rows(1, 3)).tolist() == np.zeros((3, WIDTH)).tolist()
    assert tables.base == 2.0
    compiled = CompiledTrees(TreeReading(leaf, "probability"), WIDTH)
    assert compiled.score(_random_rows(1, 5).astype(np.float64)).tolist() == [2.0] * 5


def test_a_layout_changes_no_score_and_puts_siblings_together() -> None:
    trees = _random_trees(6)
    laid = breadth_first(trees)
    inner = np.flatnonzero(laid.feature != LEAF)
    np.testing.assert_array_equal(laid.right[inner], laid.left[inner] + 1)
    assert (laid.left[inner] > inner).all()
    rows = _random_rows(7, 200)
    np.testing.assert_array_equal(
        laid.value[leaves_reached(laid, rows)], trees.value[leaves_reached(trees, rows)]
    )
    assert tree_depths(laid).max() == 11


@cache
def _model(kind: str) -> LoadedModel:
    chosen = next(one for one in KINDS if one.name == kind)
    data = fit(chosen, ROWS, FRAUD, 3).onnx
    return _opened(data, chosen.score_kind, kind.replace("_", "-"))


def _opened(data: bytes, score_kind: str, name: str) -> LoadedModel:
    golden = ROWS[:8]
    outputs = open_session(data).run(None, {"features": golden})[0].reshape(-1)
    manifest = Manifest(
        name=name,
        kind=name,
        created_at_ms=0,
        sha256=sha256_of(data),
        size_bytes=len(data),
        feature_set_version="v",
        features=NAMES,
        input=ModelInput(name="features"),
        output=ModelOutput(name="probability"),
        score_kind=score_kind,
        golden=Golden.of(golden.astype(np.float64), outputs.astype(np.float64)),
    )
    return open_model(manifest, data, ("first", *NAMES, "last"))


def _features(rows: np.ndarray) -> np.ndarray:
    return np.column_stack([rows[:, 0] * 0 - 1, rows, rows[:, 0] * 0 + 9]).astype(np.float64)


@pytest.mark.parametrize("kind", TREE_KINDS)
def test_compiled_scores_are_the_runtime_s(kind: str) -> None:
    model = _model(kind)
    trees = model.explainer().reading.trees
    rows = np.vstack([ROWS[:300], tree_probes(trees, ROWS[:50].astype(np.float64), 2_000)])
    theirs = model.score(_features(rows))
    assert model.compile_trees()
    ours = model.score(_features(rows))
    assert not np.array_equal(ours, np.zeros_like(ours))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=2.5e-7)
    np.testing.assert_array_equal(model.score_rows(rows), ours)


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("scale", LINKS)
@pytest.mark.parametrize("depth", [0, 1, 5, 6, 11])
def test_raw_sums_are_the_same_bits_as_the_runtime_s(seed: int, scale: str, depth: int) -> None:
    # At most 1, 2, 32 and 64 leaves a tree, and more than a word has bits for.
    trees = _random_trees(seed, trees=7, depth=depth)
    leaves = most_leaves(breadth_first(trees))
    assert (leaves > MOST_LEAVES) == (depth == 11)
    assert (leaves > 32) == (depth > 5)
    data = tree_model(trees, "identity")
    rows = _random_rows(seed, 3_001)
    rows[:1000] = tree_probes(trees, rows[:20].astype(np.float64), 1_000)
    theirs = open_session(data).run(None, {"features": rows})[0].reshape(-1)
    ours = CompiledTrees(TreeReading(trees, "probability"), WIDTH).score(rows.astype(np.float64))
    np.testing.assert_array_equal(ours, theirs.astype(np.float64))
    scores = CompiledTrees(TreeReading(trees, scale), WIDTH).score(rows.astype(np.float64))
    linked = open_session(tree_model(trees, LINKS[scale])).run(None, {"features": rows})[0]
    np.testing.assert_allclose(scores, linked.reshape(-1), rtol=2e-7, atol=2e-7)


def test_compiled_scores_do_not_depend_on_how_batches_are_cut() -> None:
    reading = _model("lightgbm").explainer().reading
    compiled = CompiledTrees(reading, WIDTH)
    rows = ROWS[:211].astype(np.float64)
    whole = compiled.score(rows)
    sizes = (1, 2, 3, 4, 5, 7, FEWEST_ROWS - 1, FEWEST_ROWS, 31, 32, 33, 64, 127, 128, 129)
    for size in sizes:
        parts = [compiled.score(rows[at : at + size]) for at in range(0, len(rows), size)]
        np.testing.assert_array_equal(np.concatenate(parts), whole)
    assert compiled.score(rows[:0]).shape == (0,)


def test_a_model_whose_trees_score_otherwise_keeps_the_runtime(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = _opened(tree_model(_random_trees(1), "logistic"), "probability", "kept")
    before = model.score(_features(ROWS[:50]))
    monkeypatch.setattr(
        session.CompiledTrees, "score", lambda self, rows, columns=None: np.full(len(rows), 0.5)
    )
    assert not model.compile_trees()
    np.testing.assert_array_equal(model.score(_features(ROWS[:50])), before)


def test_a_model_that_is_no_trees_keeps_the_runtime() -> None:
    assert not _model("logistic").compile_trees()


@pytest.mark.parametrize("kind", TREE_KINDS)
def test_changes_are_those_found_by_asking_the_model_about_every_one(kind: str) -> None:
    model = _model(kind)
    explainer = model.explainer()
    reference = ROWS[1_000:3_000].copy()
    reference[:, 8] = np.nan
    fast = ChangeFinder(NAMES, reference, model.score_rows, explainer.reading)
    slow = ChangeFinder(NAMES, reference, model.score_rows)
    rows = ROWS[np.argsort(-model.score_rows(ROWS))[:150]].astype(np.float64)
    shares = explainer.explain(rows).contributions
    every = np.quantile(model.score_rows(ROWS), [0.0, 0.02, 0.1, 0.3, 0.6, 0.9])
    kinds_of_answer = set()
    for threshold in [*every.tolist(), float(model.score_rows(rows).min()), 0.0]:
        found = fast.find(rows, shares, threshold)
        assert found == slow.find(rows, shares, threshold)
        kinds_of_answer |= {0 if one is None else len(one.features) for one in found}
    assert kinds_of_answer == {0, 1, 2}


def test_a_change_is_never_one_that_the_model_would_still_alert_on() -> None:
    model = _model("random_forest")
    reading = model.explainer().reading
    # Trees that say the opposite of the model: every change they find is refused by it.
    opposite = TreeReading(reading.trees.scaled(-1.0, 1.0), reading.scale)
    finder = ChangeFinder(NAMES, ROWS[:500], model.score_rows, opposite)
    truth = ChangeFinder(NAMES, ROWS[:500], model.score_rows)
    rows = ROWS[np.argsort(-model.score_rows(ROWS))[:20]].astype(np.float64)
    shares = model.explainer().explain(rows).contributions
    for found, right in zip(
        finder.find(rows, shares, 0.3), truth.find(rows, shares, 0.3), strict=True
    ):
        assert found is None or found == right
        assert found is None or found.score < 0.3


def test_what_is_told_can_be_written() -> None:
    # NaN has no place in JSON or in the contract: nothing is offered where nothing is known.
    model = _model("lightgbm")
    reference = ROWS[:500].copy()
    reference[:, :4] = np.nan
    finder = ChangeFinder(NAMES, reference, model.score_rows, model.explainer().reading)
    rows = ROWS[np.argsort(-model.score_rows(ROWS))[:50]].astype(np.float64)
    changes = finder.find(rows, model.explainer().explain(rows).contributions, 0.9)
    for change in changes:
        if change is not None:
            json.dumps([change.after, change.score], allow_nan=False)
            assert not set(change.features) & set(NAMES[:4])
