"""The scoring engine: which model decides which row, and how that changes safely."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from models.control import ControlRecord, make_control
from models.errors import ModelNotFoundError
from models.export import LinearModel, linear_model
from models.manifest import Golden, Manifest, ModelInput, ModelOutput, sha256_of
from models.routing import hash_of_text, hash_texts
from models.scorer import ModelCache, ScoringEngine
from schemas.columns import StringColumn

NAMES = ("a", "b", "c")


def _made(name: str, weight: float, **changes: object) -> tuple[Manifest, bytes]:
    data = linear_model(LinearModel(np.zeros(2), np.array([weight, -1.0]), 0.25))
    rows = np.array([[0.0, 0.0], [1.0, 2.0], [-1.0, 0.5]])
    scores = 1 / (1 + np.exp(-(rows @ np.array([weight, -1.0]) + 0.25)))
    manifest = Manifest(
        name=name,
        kind="logistic",
        created_at_ms=1,
        sha256=sha256_of(data),
        size_bytes=len(data),
        feature_set_version="1",
        features=("a", "c"),
        input=ModelInput(name="features"),
        output=ModelOutput(name="probability"),
        golden=Golden.of(rows, scores),
    )
    return manifest.model_copy(update=changes), data


class _Source:
    def __init__(self, *made: tuple[Manifest, bytes]) -> None:
        self.models = {manifest.version: (manifest, data) for manifest, data in made}

    def load(self, version: str) -> tuple[Manifest, bytes]:
        if version not in self.models:
            msg = f"no {version}"
            raise ModelNotFoundError(msg)
        return self.models[version]

    def reference(self, manifest: Manifest) -> None:
        return None


def _clock(step_ns: int = 1000):
    ticks = itertools.count(0, step_ns)
    return lambda: next(ticks)


ONE, TWO, THREE = _made("one", 1.0), _made("two", 2.0), _made("three", 3.0)


def _engine(*extra: tuple[Manifest, bytes], step_ns: int = 1000) -> ScoringEngine:
    source = _Source(ONE, TWO, THREE, *extra)
    return ScoringEngine(ModelCache(source, 2000, _clock(step_ns)), NAMES, ONE[0].version)


def _order(kind: str, made: tuple[Manifest, bytes], at: int = 1, **arguments: str) -> ControlRecord:
    return make_control(kind, made[0].version, "tester", at, arguments)


ROWS = np.random.default_rng(3).normal(size=(400, 3))
HASHES = np.random.default_rng(4).integers(0, 2**63, 400).astype(np.uint64)


def _expected(weight: float, rows: np.ndarray = ROWS) -> np.ndarray:
    return 1 / (1 + np.exp(-(rows[:, 0] * weight - rows[:, 2] + 0.25)))


def test_the_champion_scores_its_own_columns_of_the_feature_set() -> None:
    scores = _engine().score(ROWS, HASHES)
    np.testing.assert_allclose(scores.score, _expected(1.0), atol=1e-6)
    assert set(scores.model_index.tolist()) == {0}
    assert scores.unscored == 0


def test_scores_do_not_depend_on_how_batches_are_cut() -> None:
    engine = _engine()
    engine.apply(_order("challenge_model", TWO, share="0.3"))
    whole = engine.score(ROWS, HASHES)
    cuts = [0, 1, 6, 200, 400]
    parts = [
        engine.score(ROWS[low:high], HASHES[low:high]) for low, high in itertools.pairwise(cuts)
    ]
    np.testing.assert_array_equal(np.concatenate([one.score for one in parts]), whole.score)
    np.testing.assert_array_equal(
        np.concatenate([one.model_index for one in parts]), whole.model_index
    )


def test_an_activation_decides_from_the_next_row_on() -> None:
    engine = _engine()
    before = engine.score(ROWS[:10], HASHES[:10])
    outcome = engine.apply(_order("activate_model", TWO))
    after = engine.score(ROWS[10:20], HASHES[10:20])
    assert outcome.accepted
    versions = engine.versions
    assert {versions[index] for index in before.model_index} == {ONE[0].version}
    assert {versions[index] for index in after.model_index} == {TWO[0].version}
    np.testing.assert_allclose(after.score, _expected(2.0, ROWS[10:20]), atol=1e-6)


def test_a_challenger_gets_its_share_and_keeps_its_customers() -> None:
    engine = _engine()
    engine.apply(_order("challenge_model", TWO, share="0.25"))
    first = engine.score(ROWS, HASHES).model_index.copy()
    engine.apply(_order("challenge_model", THREE, share="0.25"))
    second = engine.score(ROWS, HASHES).model_index
    assert 0.15 < (first == 1).mean() < 0.35
    np.testing.assert_array_equal(second[first == 1], first[first == 1])


def test_shares_above_the_whole_are_refused() -> None:
    engine = _engine()
    assert engine.apply(_order("challenge_model", TWO, share="0.7")).accepted
    outcome = engine.apply(_order("challenge_model", THREE, share="0.4"))
    assert (outcome.accepted, outcome.code) == (False, "bad_control")


def test_a_shadow_is_scored_and_never_decides() -> None:
    engine = _engine()
    engine.apply(_order("shadow_model", TWO))
    scores = engine.score(ROWS, HASHES)
    assert set(scores.model_index.tolist()) == {0}
    np.testing.assert_allclose(scores.shadow[TWO[0].version], _expected(2.0), atol=1e-6)


def test_a_route_beats_a_challenger() -> None:
    engine = _engine()
    engine.apply(_order("challenge_model", TWO, share="1.0"))
    engine.apply(_order("activate_model", THREE, route_field="tenant", route_value="acme"))
    tenants = StringColumn.from_texts(["acme" if row % 2 else None for row in range(400)])
    scores = engine.score(ROWS, HASHES, {"tenant": hash_texts(tenants)})
    versions = [engine.versions[index] for index in scores.model_index]
    assert set(versions[1::2]) == {THREE[0].version}
    assert set(versions[0::2]) == {TWO[0].version}


def test_the_hash_of_a_text_is_the_hash_of_the_column() -> None:
    hashes = hash_texts(StringColumn.from_texts(["acme", None, "é"]))
    assert hashes.tolist() == [hash_of_text("acme"), 0, hash_of_text("é")]


def test_rollback_returns_to_the_previous_champion_once_however_often_it_is_repeated() -> None:
    engine = _engine()
    engine.apply(_order("activate_model", TWO))
    engine.apply(_order("activate_model", THREE, at=2))
    back = make_control("rollback_model", "", "tester", 3)
    assert engine.apply(back).accepted
    assert engine.apply(back).reason == "already applied"
    assert engine.active.champion == TWO[0].version


def test_the_champion_cannot_be_retired_and_others_can() -> None:
    engine = _engine()
    engine.apply(_order("shadow_model", TWO))
    assert engine.apply(_order("retire_model", ONE)).code == "bad_control"
    assert engine.apply(_order("retire_model", TWO)).accepted
    assert engine.active.shadows == ()


def test_a_snapshot_restores_every_role() -> None:
    engine = _engine()
    engine.apply(_order("activate_model", TWO))
    engine.apply(_order("challenge_model", THREE, share="0.5"))
    engine.apply(_order("shadow_model", ONE))
    other = _engine()
    other.restore(engine.snapshot())
    assert other.active == engine.active
    assert other.snapshot() == engine.snapshot()
    np.testing.assert_array_equal(other.score(ROWS, HASHES).score, engine.score(ROWS, HASHES).score)


def _broken(code: str) -> tuple[Manifest, bytes]:
    manifest, data = _made(code.replace("_", "-"), 5.0)
    golden = manifest.golden
    changes: dict[str, dict[str, object]] = {
        "unknown_feature": {"features": ("a", "nothing")},
        "wrong_inputs": {"input": ModelInput(name="rows")},
        "wrong_outputs": {"output": ModelOutput(name="label")},
        "golden_mismatch": {"golden": golden.model_copy(update={"outputs": (0.1, 0.2, 0.3)})},
    }
    if code == "corrupt_file":
        return manifest, data[:-7]
    if code == "not_finite":
        data = linear_model(LinearModel(np.zeros(2), np.array([np.nan, 1.0]), 0.0))
        return manifest.model_copy(update={"sha256": sha256_of(data)}), data
    return manifest.model_copy(update=changes[code]), data


@pytest.mark.parametrize(
    "code",
    [
        "corrupt_file",
        "unknown_feature",
        "wrong_inputs",
        "wrong_outputs",
        "golden_mismatch",
        "not_finite",
    ],
)
def test_a_broken_candidate_is_refused_and_the_old_model_stays(code: str) -> None:
    broken = _broken(code)
    engine = _engine(broken)
    before = engine.snapshot()
    outcome = engine.apply(_order("activate_model", broken))
    assert (outcome.accepted, outcome.code) == (False, code)
    assert broken[0].version in outcome.reason
    assert engine.snapshot() == before
    np.testing.assert_allclose(engine.score(ROWS, HASHES).score, _expected(1.0), atol=1e-6)


def test_a_slow_candidate_is_refused() -> None:
    source = _Source(ONE, TWO)
    slow = {"now": False}
    ticks = itertools.count()
    cache = ModelCache(source, 2000, lambda: next(ticks) * (10**9 if slow["now"] else 1))
    engine = ScoringEngine(cache, NAMES, ONE[0].version)
    slow["now"] = True
    outcome = engine.apply(_order("activate_model", TWO))
    assert outcome.code == "too_slow"
    assert "the budget is 2000 us" in outcome.reason


def test_a_version_that_is_nowhere_is_refused() -> None:
    outcome = _engine().apply(make_control("activate_model", "ghost@0", "tester", 1))
    assert (outcome.accepted, outcome.code) == (False, "not_found")


def test_rows_that_cannot_be_scored_are_counted_and_carry_nan() -> None:
    rows = ROWS[:3].copy()
    rows[1, 0], rows[1, 2] = np.inf, np.inf
    scores = _engine().score(rows, HASHES[:3])
    assert scores.unscored == 1
    assert np.isnan(scores.score).tolist() == [False, True, False]


def test_control_ids_follow_from_what_is_asked() -> None:
    assert _order("activate_model", ONE) == _order("activate_model", ONE)
    assert _order("activate_model", ONE).control_id != _order("activate_model", TWO).control_id
    record = _order("challenge_model", ONE, share="0.5")
    assert ControlRecord.from_record(record.to_record()) == record
