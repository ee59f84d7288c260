"""Training: honest splits, measures that equal scikit-learn's, exports that equal the library."""

from __future__ import annotations

import dataclasses
import datetime as dt
from types import SimpleNamespace

import lightgbm
import numpy as np
import pytest
from sklearn.metrics import average_precision_score, brier_score_loss, roc_auc_score

from models._libraries import trees_of_lightgbm
from models._shapley import shapley_tables, shapley_values
from models.errors import ModelError
from models.evaluate import Labelled, at_threshold, evaluate
from models.kinds import KINDS, fit, kind_named
from models.manifest import Manifest
from models.metrics import at_budget, auc_roc, average_precision, brier_score, card_precision_by_day
from models.package import package
from models.protocol import DAY_MS, Period, folds_of, split_by_time
from models.registry import Registry, default_version
from models.report import report_html
from models.resampling import Budgets
from models.session import open_model, open_session
from models.training import Plan, prepare, train
from models.trees import raw_scores

EPOCH = dt.date(1970, 1, 1)


def _history(rows: int = 16_000, days: int = 16):
    generator = np.random.default_rng(11)
    times = np.sort(generator.integers(0, days * DAY_MS, rows))
    matrix = np.column_stack(
        [
            generator.gamma(2.0, 30.0, rows),
            generator.poisson(3.0, rows),
            generator.random(rows),
            generator.normal(size=rows),
        ]
    )
    odds = matrix[:, 0] / 25 + matrix[:, 1] / 2 - 9
    fraud = generator.random(rows) < 1 / (1 + np.exp(-odds))
    table = SimpleNamespace(
        names=("amount", "count", "share", "noise"),
        matrix=matrix,
        event_time_ms=times,
        amount_minor=np.round(matrix[:, 0] * 100).astype(np.int64),
    )
    return prepare(table, generator.integers(0, 800, rows), fraud)


DATA = _history()
PERIOD = Period(EPOCH + dt.timedelta(days=4), 4, 3, 4)
SMALL = {
    "logistic": {},
    "lightgbm": {"n_estimators": 20},
    "xgboost": {"n_estimators": 20},
    "random_forest": {"n_estimators": 10},
    "isolation_forest": {"n_estimators": 20},
}


def _plan(kind: str, **options: object) -> Plan:
    return Plan(kind_named(kind), PERIOD, 5, parameters=SMALL[kind], **options)


def test_measures_equal_scikit_learn() -> None:
    generator = np.random.default_rng(0)
    fraud = generator.random(3000) < 0.1
    scores = np.round(generator.random(3000) * 0.7 + fraud * 0.2, 2)
    assert auc_roc(fraud, scores) == pytest.approx(roc_auc_score(fraud, scores))
    assert average_precision(fraud, scores) == pytest.approx(average_precision_score(fraud, scores))
    assert brier_score(fraud, scores) == pytest.approx(brier_score_loss(fraud, scores))


def test_known_compromised_cards_leave_the_test_when_their_label_is_known() -> None:
    # Cards 0..3 have a fraud on day 0 (training), 4 (delay), 5 (first test day) and never.
    days = np.array([0, 1, 4, 5, 7, 7, 7, 7, 8, 8, 8, 8, 9, 9, 9, 9])
    cards = np.array([0, 3, 1, 2, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3])
    fraud = np.zeros(16, np.bool_)
    fraud[[0, 2, 3]] = True
    split = split_by_time(days * DAY_MS, cards, fraud, Period(EPOCH, 4, 3, 3))
    kept = [(int(days[row]), int(cards[row])) for row in split.test]
    # On day 7 labels up to day 3 are known, on day 8 up to day 4, on day 9 up to day 5.
    assert kept == [(7, 1), (7, 2), (7, 3), (8, 2), (8, 3), (9, 3)]
    assert split.removed == 6


def test_a_card_found_compromised_leaves_the_following_days() -> None:
    fraud = np.array([True, False, True, False])
    scores = np.array([0.9, 0.8, 0.9, 0.7])
    cards = np.array([0, 1, 0, 1])
    precision, recall = card_precision_by_day(fraud, scores, cards, np.array([0, 0, 1, 1]), top=1)
    assert precision.tolist() == [1.0, 0.0]
    assert recall[0] == 1.0


def test_folds_do_not_share_test_days() -> None:
    folds = folds_of(Period(dt.date(2018, 7, 4), 7, 7, 7), 3)
    assert [fold.start.isoformat() for fold in folds] == ["2018-06-20", "2018-06-27", "2018-07-04"]


def test_empty_periods_say_which_side_is_empty() -> None:
    with pytest.raises(ModelError, match="no test rows"):
        split_by_time(
            np.arange(4) * DAY_MS, np.arange(4), np.array([True, False] * 2), Period(EPOCH, 4, 3, 1)
        )


def test_a_test_without_a_fraud_measures_nothing() -> None:
    quiet = DATA.is_fraud & (DATA.event_time_ms < PERIOD.test_start * DAY_MS)
    with pytest.raises(ModelError, match="test rows is a fraud, so nothing can be measured"):
        train(dataclasses.replace(DATA, is_fraud=quiet), _plan("logistic"))


@pytest.mark.parametrize("kind", [one.name for one in KINDS])
@pytest.mark.parametrize("missing", [False, True])
def test_every_kind_exports_what_its_library_says(kind: str, missing: bool) -> None:
    fitted = fit(kind_named(kind), DATA.rows[:4000], DATA.is_fraud[:4000], 3, SMALL[kind])
    rows = DATA.rows[4000:7000].copy()
    if missing and kind != "random_forest":
        rows[::5, 1] = np.nan
    scores = open_session(fitted.onnx).run(None, {"features": rows})[0].reshape(-1)
    np.testing.assert_allclose(scores, fitted.library_scores(rows), atol=1e-5)
    assert (
        fit(kind_named(kind), DATA.rows[:4000], DATA.is_fraud[:4000], 3, SMALL[kind]).onnx
        == fitted.onnx
    )


@pytest.mark.parametrize(("amounts", "labels"), [(None, np.zeros(1)), (np.zeros(1), None)])
def test_a_file_without_amounts_or_labels_cannot_be_trained_on(amounts, labels) -> None:
    table = SimpleNamespace(
        names=("amount",), matrix=np.zeros((1, 1)), event_time_ms=np.zeros(1), amount_minor=amounts
    )
    missing = "amounts" if amounts is None else "labels"
    with pytest.raises(ModelError, match=f"the file has no .*{missing}"):
        prepare(table, np.zeros(1), labels)


@pytest.mark.parametrize("kind", ["logistic", "lightgbm", "xgboost", "random_forest"])
def test_weighting_frauds_keeps_probabilities_near_the_fraud_rate(kind: str) -> None:
    rows, fraud = DATA.rows[:6000], DATA.is_fraud[:6000]
    fitted = fit(kind_named(kind), rows, fraud, 3, SMALL[kind], imbalance="weights")
    mean = fitted.library_scores(DATA.rows[6000:]).mean()
    assert mean == pytest.approx(DATA.is_fraud[6000:].mean(), rel=0.35)
    assert fitted.calibration != "none"
    plain = fit(kind_named(kind), rows, fraud, 3, SMALL[kind])
    assert fitted.onnx != plain.onnx, "the weights must have been used"
    scores = open_session(fitted.onnx).run(None, {"features": DATA.rows[6000:]})[0].reshape(-1)
    np.testing.assert_allclose(scores, fitted.library_scores(DATA.rows[6000:]), atol=1e-5)


@pytest.mark.parametrize("kind", [one.name for one in KINDS])
def test_a_trained_model_is_packaged_registered_and_explained(kind: str, tmp_path) -> None:
    run = train(DATA, _plan(kind, folds=2 if kind == "logistic" else 1))
    folder = package(run, DATA, f"test-{kind.replace('_', '-')}", "v1", 123)
    registry = Registry(str(tmp_path))
    version = registry.register(folder)
    assert registry.register(folder) == version
    manifest, data = registry.load(version)
    assert manifest == Manifest.from_json(manifest.to_json())
    reference = registry.reference(registry.manifest(version))
    assert reference.shape == (2048, 5)
    model = open_model(manifest, data, DATA.names)
    rows = manifest.golden.input_matrix()
    explainer = model.explainer()
    explained = explainer.explain(rows)
    raw = explained.contributions.sum(axis=1) + explained.base
    back = {
        "log_odds": lambda one: 1 / (1 + np.exp(-one)),
        "probability": lambda one: one,
        "path_length": np.exp2,
    }[explainer.scale]
    np.testing.assert_allclose(back(raw), model.score_rows(rows), atol=1e-5)
    assert explainer.method == ("linear" if kind == "logistic" else "tree")
    html = report_html(run, manifest)
    assert "<svg" in html
    assert "src=" not in html


def test_tuning_never_ends_below_the_defaults() -> None:
    run = train(DATA, Plan(kind_named("logistic"), PERIOD, 5, trials=3))
    assert len(run.trials) == 3
    default = {"C": pytest.approx(1.0)}
    assert run.trials[0][0] >= next(value for value, tried in run.trials if tried == default)


def test_training_twice_gives_the_same_measures() -> None:
    first, second = train(DATA, _plan("lightgbm")), train(DATA, _plan("lightgbm"))
    assert first.fitted.onnx == second.fitted.onnx
    assert first.evaluation == second.evaluation


def _events(count: int) -> np.ndarray:
    generator = np.random.default_rng(8)
    rows = DATA.rows[generator.integers(0, len(DATA.rows), count)]
    rows = (rows * generator.uniform(0.5, 1.5, rows.shape)).astype(np.float32)
    rows[generator.random(rows.shape) < 0.02] = np.nan
    return rows


@pytest.mark.parametrize("kind", [one.name for one in KINDS])
def test_contributions_add_up_to_the_score_on_ten_thousand_random_events(kind: str) -> None:
    run = train(DATA, _plan(kind))
    folder = package(run, DATA, "adding", "v1", 123)
    model = open_model(folder.manifest, folder.model, DATA.names)
    rows = _events(10_000).astype(np.float64)
    explained = model.explainer().explain(rows)
    raw = explained.contributions.sum(axis=1) + explained.base
    score = {
        "log_odds": lambda one: 1 / (1 + np.exp(-one)),
        "probability": lambda one: one,
        "path_length": np.exp2,
    }[model.explainer().scale](raw)
    np.testing.assert_allclose(score, model.score_rows(rows), atol=2e-6)
    assert not explained.error.any()


def test_contributions_equal_lightgbm() -> None:
    model = lightgbm.LGBMClassifier(n_estimators=40, num_leaves=31, verbose=-1, n_jobs=1)
    model.fit(DATA.rows, DATA.is_fraud)
    trees = trees_of_lightgbm(model.booster_)
    rows = np.nan_to_num(_events(2_000))
    tables = shapley_tables(trees)
    shares = shapley_values(tables, rows)
    np.testing.assert_allclose(shares.sum(axis=1) + tables.base, raw_scores(trees, rows), atol=1e-9)
    theirs = model.booster_.predict(rows, pred_contrib=True)
    np.testing.assert_allclose(shares, theirs[:, :-1], atol=1e-9)
    assert tables.base == pytest.approx(theirs[0, -1], abs=1e-9)


def test_every_measure_has_an_interval_from_resampled_customers() -> None:
    generator = np.random.default_rng(4)
    scores = np.clip(DATA.is_fraud * 0.3 + generator.random(len(DATA.is_fraud)) * 0.6, 0, 1)
    rows = Labelled(
        DATA.is_fraud, scores, DATA.customer_codes, DATA.event_time_ms, DATA.amount_minor
    )
    result = evaluate(rows, 500, generator, alert_budget=30)
    assert [one.budget for one in result.budgets] == [30, 50, 100, 200]
    for one in result.budgets:
        assert one.precision_interval.low <= one.precision <= one.precision_interval.high
        assert one.recall_interval.low < one.recall < one.recall_interval.high
    for one in result.calibration:
        assert one.observed_interval.low <= one.observed <= one.observed_interval.high
    assert result.brier_interval.low < result.brier < result.brier_interval.high
    kept = at_threshold(rows, 0.5, 500, generator)
    for name in ("precision", "recall", "money_saved_minor"):
        low, high = kept[f"{name}_interval"]
        assert low < kept[name] < high


def test_a_budget_of_resampled_rows_is_that_of_rows_written_out() -> None:
    generator = np.random.default_rng(6)
    fraud, day = generator.random(400) < 0.2, generator.integers(0, 3, 400)
    scores = generator.random(400)
    weights = generator.integers(0, 3, 400)
    written = np.repeat(np.arange(400), weights)
    expected = at_budget(fraud[written], scores[written], day[written], 25)
    (found,) = Budgets(fraud, scores, day).measure(weights.astype(np.float64), [25])
    assert found == pytest.approx((expected.precision, expected.recall))


def test_equal_scores_give_no_better_than_chance() -> None:
    rows = Labelled(
        DATA.is_fraud,
        np.full(len(DATA.is_fraud), 0.5),
        DATA.customer_codes,
        DATA.event_time_ms,
        DATA.amount_minor,
    )
    result = evaluate(rows, 500, np.random.default_rng(0))
    assert result.auc_roc == pytest.approx(0.5)
    assert result.average_precision == pytest.approx(DATA.is_fraud.mean())


def test_the_default_model_reproduces_its_golden_vectors(tmp_path) -> None:
    registry = Registry(str(tmp_path))
    version = registry.resolve("default")
    assert version == default_version()
    manifest, data = registry.load(version)
    scores = open_model(manifest, data, manifest.features).score(manifest.golden.input_matrix())
    np.testing.assert_allclose(scores, manifest.golden.outputs, atol=manifest.golden.tolerance)
    assert len(data) < 1_000_000
