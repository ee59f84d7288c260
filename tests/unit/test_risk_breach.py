"""The breach model: what it sees of a limit, how it is trained, how the stream scores with it."""

from __future__ import annotations

import json

import numpy as np
import pytest

from connectors.settings import load_settings
from jobs.market_risk.breach import BREACH_FEATURES, STEP_MS, UsageHistory
from jobs.market_risk.breach_training import BreachRecipe, train_breach_model
from jobs.market_risk.limits import Limit, LimitBook, Status
from jobs.market_risk.parts import MarketParts
from models.errors import ModelNotFoundError, ModelRefusedError
from models.gate import admit
from models.metrics import auc_roc


def seen(history, name="a", warning=0.8):
    row = history.features(
        [name], np.array([warning]), np.array([True]), np.array([False])
    )[0]  # fmt: skip
    return dict(zip(BREACH_FEATURES, row.tolist(), strict=True))


def put(history, use, at_ms, name="a"):
    history.put([name], np.array([use]), at_ms)


def test_features_are_what_happened_in_the_last_five_minutes():
    history = UsageHistory()
    for step in range(40):
        put(history, 0.01 * step, step * STEP_MS)
    found = seen(history)
    assert found["use"] == pytest.approx(0.39)
    assert found["use_change_1m"] == pytest.approx(0.06)
    assert found["use_change_5m"] == pytest.approx(0.30)
    assert found["use_highest_5m"] == pytest.approx(0.39)
    assert found["use_volatility"] == pytest.approx(0.01 * np.sqrt(6))
    assert found["headroom"] == pytest.approx(0.61 / (0.01 * np.sqrt(30)))
    assert found["known_minutes"] == 5
    assert (found["is_loss"], found["is_tail_risk"], found["warning_level"]) == (1, 0, 0.8)


def test_the_last_use_of_a_step_counts_and_a_silent_step_repeats_it():
    history = UsageHistory()
    put(history, 0.1, 0)
    put(history, 0.5, 9_999)
    put(history, 0.2, 35_000)
    found = seen(history)
    # 0.5, 0.5, 0.5, 0.2: the jump between is one step's change.
    assert found["use_change_5m"] == pytest.approx(-0.3)
    assert found["use_highest_5m"] == 0.5
    assert found["use_volatility"] == pytest.approx(0.3 * np.sqrt(6 / 3))


def test_a_still_limit_has_the_most_headroom_and_an_unknown_one_no_features():
    history = UsageHistory()
    put(history, 0.4, 0)
    put(history, 0.4, 60_000)
    assert seen(history)["headroom"] == 20.0
    put(history, np.nan, 70_000, "b")
    assert np.isnan(list(seen(history, "b").values())).all()
    put(history, np.nan, 80_000)
    assert seen(history)["use"] == 0.4


def test_after_a_pause_nothing_of_before_is_left_but_the_use():
    history = UsageHistory()
    put(history, 0.9, 0)
    put(history, 0.4, 10_000)
    put(history, 0.4, 10_000_000)
    found = seen(history)
    assert (found["use_highest_5m"], found["use_volatility"]) == (0.4, 0.0)


def test_a_book_continues_to_the_bit_and_one_of_before_begins_anew():
    def book():
        made = LimitBook()
        made.put(Limit("a", "account", "x", "loss", 50, 100))
        made.put(Limit("b", "firm", "f", "var", 80, 100))
        return made

    straight, cut = book(), book()
    for step in range(20):
        value = 3.0 * step + 0.1
        for one in (straight, cut):
            one.check(lambda limit, v=value: v if limit.measure == "loss" else None, step * 7_000)
        if step == 9:
            cut = LimitBook.restore(cut.snapshot())
    assert straight.snapshot() == cut.snapshot()
    assert np.array_equal(straight.breach_features(), cut.breach_features(), equal_nan=True)
    assert np.isnan(cut.breach_features()[1]).all()
    saved = json.loads(cut.snapshot())
    del saved["history"]
    old = LimitBook.restore(json.dumps(saved | {"version": 1}).encode())
    assert [row[1] for row in old.rows()] == [Status.NEAR, Status.WITHIN]
    assert np.isnan(old.breach_features()).all()


@pytest.fixture(scope="module")
def trained():
    return train_breach_model(BreachRecipe(runs=4, minutes=10, seed=5))


def test_the_recipe_is_repeatable_and_its_model_passes_the_gate(trained):
    again = train_breach_model(BreachRecipe(runs=4, minutes=10, seed=5))
    assert again.folder.model == trained.folder.model
    manifest = trained.folder.manifest
    assert again.folder.manifest == manifest
    card = trained.folder.extra["card.md"].decode()
    assert manifest.version in card
    assert "fraud" not in card + manifest.description
    admit(manifest, trained.folder.model, BREACH_FEATURES, 1_000_000, lambda: 0)
    with pytest.raises(ModelRefusedError):
        admit(manifest, trained.folder.model + b"x", BREACH_FEATURES, 1_000_000, lambda: 0)


def test_the_model_ranks_breaches_better_than_the_use_alone(trained):
    test = trained.run.split.test
    assert trained.run.test_labels.any()
    assert auc_roc(trained.run.test_labels, trained.run.scores) > trained.use_auc
    assert len(test) == len(trained.run.scores)


def test_the_job_scores_with_the_shipped_model_or_none_and_refuses_an_unknown_one(tmp_path):
    def parts(*overrides):
        chosen = [f"schemas.registry=file:{tmp_path}", f"models.registry=file:{tmp_path}/m"]
        return MarketParts(load_settings(None, {}, [*chosen, *overrides]))

    model = parts().breach_model()
    calm = np.array([[0.2, 0.8, 0.0, 0.0, 0.2, 0.001, 20.0, 5.0, 0.0, 0.0]])
    wild = np.array([[0.95, 0.8, 0.2, 0.4, 0.97, 0.1, 0.3, 5.0, 0.0, 0.0]])
    assert model.score(calm)[0] < 0.2 < 0.5 < model.score(wild)[0]
    assert parts("market_risk.breach_model=").breach_model() is None
    with pytest.raises(ModelNotFoundError, match="no-such"):
        parts("market_risk.breach_model=no-such").breach_model()
