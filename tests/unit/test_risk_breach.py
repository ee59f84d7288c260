"""The breach model: what it sees of a limit, how it is trained, how the stream scores with it."""

from __future__ import annotations

import json
from functools import partial

import numpy as np
import pytest
from click.testing import CliRunner

from connectors.frames import write_frame
from connectors.settings import load_settings
from jobs.cli import _models_registry as models_commands
from jobs.cli.main import cli
from jobs.market_risk.breach import BREACH_FEATURES, STEP_MS, UsageHistory
from jobs.market_risk.breach_scorer import BreachScorer
from jobs.market_risk.breach_training import BreachRecipe, train_breach_model
from jobs.market_risk.limits import Limit, LimitBook, Status
from jobs.market_risk.parts import CONTROL_TOPIC, JOB, MarketParts
from jobs.market_risk.tables import Table
from models.control import ControlRecord
from models.errors import ModelNotFoundError, ModelRefusedError
from models.gate import admit
from models.metrics import auc_roc
from models.registry import Registry, default_version
from tests.support.market import MarketJob, market_stream


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

    def scorer(*overrides):
        made = parts(*overrides)
        return BreachScorer(made.models(), made.breach_champion())

    model = scorer()
    calm = np.array([[0.2, 0.8, 0.0, 0.0, 0.2, 0.001, 20.0, 5.0, 0.0, 0.0]])
    wild = np.array([[0.95, 0.8, 0.2, 0.4, 0.97, 0.1, 0.3, 5.0, 0.0, 0.0]])
    assert model.score(calm)[0] < 0.2 < 0.5 < model.score(wild)[0]
    assert np.isnan(scorer("market_risk.breach_model=").score(calm)).all()
    with pytest.raises(ModelNotFoundError, match="no-such"):
        scorer("market_risk.breach_model=no-such")


def order(kind, subject, control_id, **arguments):
    return ControlRecord(control_id, kind, subject, arguments, "someone", 1)


def test_a_scorer_without_a_model_takes_the_first_that_passes_the_gate(tmp_path):
    parts = MarketParts(load_settings(None, {}, [f"models.registry=file:{tmp_path}"]))
    shipped = parts.breach_champion()
    calm = np.array([[0.2, 0.8, 0.0, 0.0, 0.2, 0.001, 20.0, 5.0, 0.0, 0.0]])
    scorer = BreachScorer(parts.models(), "")
    assert (scorer.version, scorer.snapshot()) == ("", None)
    refused = scorer.apply(order("rollback_model", shipped, "1"))
    assert (refused.accepted, refused.code) == (False, "bad_control")
    unknown = scorer.apply(order("activate_model", "breach-other@0", "2"))
    assert (unknown.accepted, unknown.code) == (False, "not_found")
    other_job = scorer.apply(order("activate_model", default_version(), "3"))
    assert (other_job.accepted, other_job.code) == (False, "unknown_feature")
    assert scorer.apply(order("activate_model", shipped, "4")).accepted
    for kind in ("shadow_model", "challenge_model", "retire_model", "activate_rules"):
        assert not scorer.apply(order(kind, shipped, f"5-{kind}")).accepted
    routed = order("activate_model", shipped, "6", route_field="firm", route_value="f")
    assert not scorer.apply(routed).accepted
    again = BreachScorer(parts.models(), "")
    again.restore(scorer.snapshot())
    assert again.version == shipped
    assert np.array_equal(again.score(calm), scorer.score(calm))


@pytest.fixture
def market(tmp_path, trained):
    """A job at work on half of a stream, the rest of it, and a model to change to."""
    chosen = [
        f"schemas.registry=file:{tmp_path}/schemas",
        f"models.registry=file:{tmp_path}/models",
        "flink.shards=2",
        "flink.parallelism=1",
    ]
    shipped = MarketParts(load_settings(None, {}, chosen)).breach_champion()
    settings = load_settings(None, {}, [*chosen, f"market_risk.breach_model={shipped}"])
    other = Registry(settings.models.registry).register(trained.folder)
    job, parts = MarketJob(settings), market_stream(settings, batches=12)
    for frames in parts[:7]:
        job.feed(frames)
    return job, parts[7:], other


def obey(job, control, offset):
    topic = job.settings.kafka.topics.name("market_control")
    value = (
        MarketParts(job.settings).encoder("market_control", "control").encode(control.to_record())
    )
    key = control.subject.encode()
    return (None, write_frame(topic, key, value, offset=offset, control=True))


def limit_models(job):
    return [row["breach_model"] for row in job.rows(Table.LIMITS)]


def test_orders_change_the_model_of_a_running_job_in_every_shard(market):
    job, parts, other = market
    shipped = MarketParts(job.settings).breach_champion()
    assert set(limit_models(job)) == {shipped}
    before = len(limit_models(job))
    activate = order("activate_model", other, "one")
    # In the middle of a batch: its evaluation comes after all of it.
    job.feed([*parts[0][:50], obey(job, activate, 90_000), *parts[0][50:]])
    job.feed([*parts[1], obey(job, activate, 90_001)])
    assert set(limit_models(job)[before:]) == {other}
    outcomes = job.rows(Table.CONTROL)
    assert {(row["shard"], row["outcome"], row["subject"]) for row in outcomes} == {
        (shard, "applied", other) for shard in range(2)
    }
    assert sorted(row["kafka_offset"] for row in outcomes) == [90_000, 90_000, 90_001, 90_001]
    job.start()  # forgets everything but what Flink holds
    restarted = len(limit_models(job))
    job.feed(parts[2])
    assert set(limit_models(job)[restarted:]) == {other}
    back = len(limit_models(job))
    job.feed([obey(job, order("rollback_model", shipped, "two"), 90_002)])
    # Nothing in the market moved; limits show the other model's chances all the same.
    assert set(limit_models(job)[back:]) == {shipped}


def test_an_order_that_cannot_be_obeyed_changes_nothing_and_says_so(market):
    job, parts, _ = market
    before = len(limit_models(job))
    topic = job.settings.kafka.topics.name("market_control")
    missing = obey(job, order("activate_model", "breach-none@123", "one"), 90_000)
    broken = (None, write_frame(topic, b"k", b"\x00nonsense", offset=90_001, control=True))
    job.feed([missing, broken, *parts[0]])
    assert {row["outcome"] for row in job.rows(Table.CONTROL)} == {"refused"}
    assert len(set(limit_models(job)[before:])) == 1
    (letter,) = job.records("market_dead_letters", "dead_letter")
    assert (letter["offset"], letter["reason"]) == (90_001, "bad_control")


def test_verbs_about_a_breach_model_speak_to_the_market_risk_job(tmp_path):
    assert (models_commands.JOB, models_commands.CONTROL_TOPIC) == (JOB, CONTROL_TOPIC)
    run = partial(CliRunner().invoke, cli, env={"RISKSTREAM_MODELS__REGISTRY": f"file:{tmp_path}"})
    told = run(["models", "activate", "breach-default", "--dry-run", "--json"])
    assert told.exit_code == 0, told.output
    record = json.loads(told.stdout)
    assert record["subject"].startswith("breach-default@")
    assert record["arguments"] == {"job": "market_risk"}
    registry = Registry(f"file:{tmp_path}")
    fraud, breach = default_version(), record["subject"]
    for number, (kind, subject, arguments) in enumerate(
        [("activate_model", "b@1", {"job": JOB}), ("activate_model", "f@1", {})]
    ):
        registry.remember(ControlRecord(str(number), kind, subject, arguments, "x", number))
    assert registry.champion() == "f@1"
    assert registry.previous_champion() == fraud
    assert registry.champion(JOB, breach) == "b@1"
    assert registry.previous_champion(JOB, breach) == breach
    back = run(["models", "rollback", "--job", JOB, "--dry-run", "--json"])
    assert json.loads(back.stdout)["subject"] == breach
