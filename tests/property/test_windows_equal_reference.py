"""The kernels against the naive reference, over streams that are as unpleasant as possible."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from jobs.windows import spec, state_log
from jobs.windows import store as store_module
from jobs.windows.batch import Kind, RowFlag
from jobs.windows.spec import (
    Entity,
    FeatureSet,
    count,
    decayed_count,
    decayed_sum,
    distance,
    distinct,
    first_seen,
    last_value,
    maximum,
    mean,
    minimum,
    rate_of_change,
    ratio,
    since_first,
    since_last,
    speed,
    std,
    total,
    zscore,
)
from jobs.windows.state_log import MemoryLog, StateLog
from jobs.windows.store import ShardStore
from tests.reference.windows_reference import Reference, Row
from tests.reference.windows_sets import EVERYTHING, FIELDS, FILTERS, TILED, batch_of

CALM = settings(
    deadline=None,
    max_examples=40,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
KEYS = st.sampled_from(["k1", "k2", None, ""])
VALUES = st.fixed_dictionaries(
    {
        "amount_minor": st.one_of(st.none(), st.integers(0, 1500), st.integers(-(10**12), 10**12)),
        "risk": st.one_of(st.none(), st.integers(-4000, 4000).map(lambda v: v / 8)),
        "terminal_id": st.sampled_from([None, "a", "b", "c", ""]),
        "latitude": st.one_of(st.none(), st.floats(-90, 90)),
        "longitude": st.one_of(st.none(), st.floats(-180, 180)),
    }
)


@st.composite
def streams(
    draw: st.DrawFn, longest: int = 60, drift: int = 3_000, names: int = 30, label_ahead: int = 0
) -> list[Row]:
    """Draw rows whose time wanders forwards, with stragglers, repeats and labels between them.

    With few `names` ids come again long after, and some labels claim to be `label_ahead` ms ahead.
    """
    rows: list[Row] = []
    events: list[Row] = []
    now = 100_000
    for _ in range(draw(st.integers(1, longest))):
        now += draw(st.sampled_from([0, 0, 500, 1_000, drift]))
        late = draw(st.sampled_from([0, 0, 0, 0, 500, 4_000, 12_000, 40_000, 90_000]))
        kind = draw(st.sampled_from([Kind.EVENT] * 5 + [Kind.LABEL] * 2 + [Kind.IGNORE]))
        key, event_id = draw(KEYS), draw(st.one_of(st.none(), st.integers(0, names).map(str)))
        if kind is Kind.LABEL and events and draw(st.integers(0, 3)):
            # Of one of the last events, so that labels are found, repeated and corrected.
            labelled = draw(st.sampled_from(events[-4:]))
            key, event_id = labelled.key, labelled.event_id
        if kind is Kind.LABEL and label_ahead:
            late -= draw(st.sampled_from([0, 0, label_ahead]))
        fields = draw(VALUES) if kind is Kind.EVENT else {}
        fraud, revision = draw(st.booleans()), draw(st.integers(0, 3))
        rows.append(Row(kind, key, now - late, event_id, fields, fraud, revision))
        if kind is Kind.EVENT:
            events.append(rows[-1])
        elif kind is Kind.LABEL and draw(st.booleans()):
            # The word of somebody who knows better, at once.
            rows.append(replace(rows[-1], is_fraud=not fraud, revision=revision + 1))
    return rows


def cut_up(rows: Sequence[Row], cuts: Sequence[int]) -> list[Sequence[Row]]:
    """Cut rows into batches at the given places."""
    places = sorted({0, len(rows), *(c % (len(rows) + 1) for c in cuts)})
    return [rows[a:b] for a, b in itertools.pairwise(places)]


def scores(store: ShardStore, batches: Sequence[Sequence[Row]]) -> tuple[np.ndarray, np.ndarray]:
    """Return features and flags over several batches."""
    done = [store.process(batch_of(batch)) for batch in batches]
    return np.concatenate([d.features for d in done]), np.concatenate([d.flags for d in done])


def check_against_reference(feature_set: FeatureSet, rows: list[Row], cuts: list[int]) -> None:
    reference = Reference(feature_set, "customer")
    features, flags = scores(ShardStore(feature_set, "customer"), cut_up(rows, cuts))
    names = feature_set.names_of("customer")
    for i, row in enumerate(rows):
        expected, expected_flags = reference.process(row)
        assert flags[i] == expected_flags, (i, row, flags[i], expected_flags)
        for name, got, want in zip(names, features[i], expected, strict=True):
            same = (math.isnan(got) and math.isnan(want)) or math.isclose(
                got, want, rel_tol=1e-9, abs_tol=1e-6 if "distance" in name else 1e-9
            )
            if "speed" in name:
                same = same or math.isclose(got, want, abs_tol=0.1)
            assert same, (i, name, got, want, row)


@CALM
@given(streams(), st.lists(st.integers(0, 1000), max_size=6))
def test_every_aggregation_equals_the_reference(rows: list[Row], cuts: list[int]) -> None:
    check_against_reference(EVERYTHING, rows, cuts)


WORDS = (
    lambda w, d: count(w, delay=d),
    lambda w, d: count(w, field="amount", delay=d),
    lambda w, d: count(w, filter="large", delay=d),
    lambda w, d: total("amount", w, delay=d),
    lambda w, d: total("risk", w, filter="fraud", delay=d),
    lambda w, d: mean("risk", w, delay=d),
    lambda w, d: mean("amount", w, filter="fraud", delay=d),
    lambda w, d: minimum("amount", w, delay=d),
    lambda w, d: maximum("risk", w, delay=d),
    lambda w, d: std("amount", w, delay=d),
    lambda w, d: distinct("shop", w, delay=d),
    lambda w, d: ratio("fraud", w, delay=d),
    lambda w, d: ratio("at_a", w, delay=d),
    lambda w, d: last_value("amount", w, delay=d),
    lambda w, d: decayed_count("3s", w, delay=d),
    lambda w, d: decayed_sum("risk", "1s", w, delay=d),
    lambda w, _: zscore("risk", w),
    lambda w, _: since_last(w),
    lambda w, _: since_first(w),
    lambda w, _: rate_of_change("risk", w),
    lambda w, _: first_seen(w),
    lambda w, _: first_seen(w, field="shop"),
    lambda w, _: distance(w),
    lambda w, _: speed(w),
)


@st.composite
def feature_sets(draw: st.DrawFn) -> FeatureSet:
    """Draw a declaration: some words of the language, each over windows of its own."""
    seconds = st.sampled_from(["1s", "2s", "5s", "13s", "60s", "2d"])
    windows = st.lists(seconds, min_size=1, max_size=2, unique=True).map(tuple)
    delays = st.sampled_from([None, "1s", "7s"])
    chosen = draw(st.lists(st.sampled_from(WORDS), min_size=1, max_size=8, unique=True))
    features = tuple(word(draw(windows), draw(delays)) for word in chosen)
    lateness = draw(st.sampled_from(["1s", "5s", "1h"]))
    entity = Entity("customer", "customer_id", features)
    return FeatureSet("drawn", FIELDS, (entity,), filters=FILTERS, allowed_lateness=lateness)


@CALM
@given(feature_sets(), streams(), st.lists(st.integers(0, 1000), max_size=6))
def test_every_declaration_equals_the_reference(
    drawn: FeatureSet, rows: list[Row], cuts: list[int]
) -> None:
    check_against_reference(drawn, rows, cuts)


def test_every_word_of_the_language_is_held_against_the_reference() -> None:
    words = [
        name
        for name, word in vars(spec).items()
        if getattr(word, "__annotations__", {}).get("return") == "Aggregation"
        and not name.startswith("_")
    ]
    drawn = {word(("1s",), None).operation for word in WORDS}
    assert {a.operation for a in EVERYTHING.entity("customer").features} == drawn
    # Each word is an operation of its own.
    assert len(drawn) == len(words) == 18


def test_the_streams_hold_every_unpleasantness() -> None:
    seen = RowFlag(0)
    corrected = equal_times = 0

    @settings(deadline=None, max_examples=300, derandomize=True, database=None)
    @given(streams())
    def look(rows: list[Row]) -> None:
        nonlocal seen, corrected, equal_times
        _, flags = scores(ShardStore(EVERYTHING, "customer"), [rows])
        for flag in flags:
            seen |= RowFlag(int(flag))
        taken: dict[tuple[str | None, str | None], bool] = {}
        for row, flag in zip(rows, flags, strict=True):
            if row.kind is Kind.LABEL and not flag:
                place = (row.key, row.event_id)
                corrected += taken.get(place, row.is_fraud) != row.is_fraud
                taken[place] = row.is_fraud
        times = [(row.key, row.time) for row in rows if row.kind is Kind.EVENT]
        equal_times += len(times) - len(set(times))

    look()
    everything = RowFlag(0)
    for flag in RowFlag:
        everything |= flag
    assert seen == everything & ~RowFlag.TILED
    assert corrected > 0, "no label was ever corrected"
    assert equal_times > 0


def hot_stream(seed: int) -> list[Row]:
    """Return a long stream of one key, too long to be drawn piece by piece."""
    dice, rows, now = random.Random(seed), [], 100_000
    for number in range(dice.randint(150, 400)):
        now += dice.choice([0, 0, 50, 100, 300])
        late = dice.choice([0] * 9 + [500, 4_000, 12_000, 40_000])
        fields = {
            "amount_minor": dice.choice([None, dice.randint(0, 1500)]),
            "risk": dice.randint(-4000, 4000) / 8,
            "terminal_id": dice.choice([None, "a", "b", "c"]),
        }
        event_id = str(number if dice.random() < 0.9 else dice.randint(0, number))
        rows.append(Row(Kind.EVENT, "k", now - late, event_id, fields))
    return rows


@CALM
@given(st.integers(0, 1 << 32), st.lists(st.integers(0, 1000), max_size=6))
def test_tiles_of_hot_keys_equal_the_reference(seed: int, cuts: list[int]) -> None:
    check_against_reference(TILED, hot_stream(seed), cuts)


def test_the_streams_of_hot_keys_reach_the_tiles() -> None:
    _, flags = scores(ShardStore(TILED, "customer"), [hot_stream(1)])
    assert {RowFlag.TILED, RowFlag.DUPLICATE, RowFlag.LATE} <= {
        flag for flag in RowFlag if (flags & flag).any()
    }


@CALM
@given(streams(), st.lists(st.integers(0, 1000), max_size=6))
def test_batch_cuts_cannot_be_seen(rows: list[Row], cuts: list[int]) -> None:
    whole = scores(ShardStore(EVERYTHING, "customer"), [rows])
    parts = scores(ShardStore(EVERYTHING, "customer"), cut_up(rows, cuts))
    for one, other in zip(whole, parts, strict=True):
        assert one.tobytes() == other.tobytes()


@CALM
@given(
    streams(),
    st.lists(st.integers(0, 1000), min_size=1, max_size=8),
    st.sampled_from([2, 32]),
    st.sampled_from([1, 5, store_module.RESTORE_ROWS]),
)
def test_restarts_cannot_be_seen(
    rows: list[Row], cuts: list[int], fanout: int, at_once: int
) -> None:
    check_restarts(EVERYTHING, rows, cuts, fanout, at_once)


@CALM
@given(st.integers(0, 1 << 32), st.lists(st.integers(0, 1000), min_size=1, max_size=8))
def test_restarts_cannot_be_seen_by_hot_keys(seed: int, cuts: list[int]) -> None:
    check_restarts(TILED, hot_stream(seed), cuts, 2, 50)


def ev(time: int, event_id: str | None) -> Row:
    return Row(Kind.EVENT, "k1", time, event_id)


def mark(event_id: str, time: int, revision: int = 0) -> Row:
    return Row(Kind.LABEL, "k1", time, event_id, is_fraud=True, revision=revision)


@CALM
@given(
    streams(drift=25_000, names=2, label_ahead=70_000),
    st.lists(st.integers(0, 1000), min_size=1, max_size=12),
    st.sampled_from([1, 400, state_log.SEGMENT_BYTES]),
)
@example([ev(10_000, "0"), mark("0", 100_000), mark("0", 100_000, 1), ev(100_000, None),
          ev(100_000, "0")], [2], state_log.SEGMENT_BYTES)  # fmt: skip
@example([ev(10_000, "0"), mark("0", 100_000), mark("0", 100_000, 1), ev(100_000, None),
          ev(100_000, "0")], [3], state_log.SEGMENT_BYTES)  # fmt: skip
def test_restarts_cannot_be_seen_when_ids_come_again_and_labels_outlive_events(
    rows: list[Row], cuts: list[int], segment_bytes: int
) -> None:
    """Horizon 30 s: here a log loses its beginning every other row, in segments of a row."""
    check_restarts(EVERYTHING, rows, cuts, 2, 5, segment_bytes)


def check_restarts(
    feature_set: FeatureSet,
    rows: list[Row],
    cuts: list[int],
    fanout: int,
    at_once: int,
    segment_bytes: int = state_log.SEGMENT_BYTES,
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(state_log, "FANOUT", fanout)
        patch.setattr(state_log, "SEGMENT_BYTES", segment_bytes)
        patch.setattr(store_module, "RESTORE_ROWS", at_once)
        whole = scores(ShardStore(feature_set, "customer"), [rows])
        kept = MemoryLog()
        features, flags = [], []
        for batch in cut_up(rows, cuts):
            store = ShardStore(feature_set, "customer")
            log = StateLog(kept, store.horizon_ms)
            store.restore(log.chunks())
            for rows_of_one in (batch[: len(batch) // 2], batch[len(batch) // 2 :]):
                done = store.process(batch_of(rows_of_one))
                log.append(done.delta, store.clock_ms)
                features.append(done.features)
                flags.append(done.flags)
        assert np.concatenate(features).tobytes() == whole[0].tobytes()
        assert np.concatenate(flags).tobytes() == whole[1].tobytes()


def within_a_horizon(rows: Sequence[Row], horizon_ms: int) -> list[Row]:
    """Leave out what arrives more than a horizon behind the newest event of all keys."""
    kept, newest = [], rows[0].time
    for row in rows:
        if row.time >= newest - horizon_ms:
            kept.append(row)
            if row.kind is Kind.EVENT and row.key is not None:
                newest = max(newest, row.time)
    return kept


@CALM
@given(streams(), st.integers(2, 5))
def test_the_number_of_shards_cannot_be_seen(rows: list[Row], shards: int) -> None:
    stores = [ShardStore(EVERYTHING, "customer") for _ in range(shards)]
    rows = within_a_horizon(rows, stores[0].horizon_ms)
    whole = scores(ShardStore(EVERYTHING, "customer"), [rows])
    for i, row in enumerate(rows):
        done = stores[sum((row.key or "").encode()) % shards].process(batch_of([row]))
        assert done.features[0].tobytes() == whole[0][i].tobytes(), (i, row)
        # A label of an event two horizons old finds it or not, and changes no feature either way.
        if row.kind is Kind.EVENT:
            assert done.flags[0] == whole[1][i], (i, row)


def test_only_what_is_a_horizon_behind_the_stream_is_judged_by_its_shard() -> None:
    alone, shared = (ShardStore(EVERYTHING, "customer") for _ in range(2))
    horizon, now = alone.horizon_ms, 1_000_000

    def event(key: str, time: int) -> Row:
        return Row(Kind.EVENT, key, time, f"{key}{time}", {"amount_minor": 100})

    shared.process(batch_of([event("elsewhere", now)]))
    for time in (now - horizon, now - 2 * horizon + 1):
        rows = batch_of([event(f"k{time}", time)])
        assert alone.process(rows).flags[0] == shared.process(rows).flags[0] == 0
    rows = batch_of([event("k", now - 2 * horizon)])
    assert alone.process(rows).flags[0] == 0
    assert shared.process(rows).flags[0] == RowFlag.TOO_LATE


@CALM
@given(streams(), st.lists(st.integers(0, 1000), max_size=6))
def test_pruning_cannot_be_seen(rows: list[Row], cuts: list[int]) -> None:
    whole = scores(ShardStore(EVERYTHING, "customer"), [rows])
    store = ShardStore(EVERYTHING, "customer")
    features = []
    for batch in cut_up(rows, cuts):
        features.append(store.process(batch_of(batch)).features)
        store.prune()
    assert np.concatenate(features).tobytes() == whole[0].tobytes()
