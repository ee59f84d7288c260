"""What the page on windows promises about state that another declaration wrote, and about sums."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from jobs.windows._restore_kernels import find_known
from jobs.windows.batch import Kind
from jobs.windows.raw import hash_strings
from jobs.windows.spec import Entity, FeatureSet, count, distinct, mean, number, std, total
from jobs.windows.state_log import MemoryLog, StateLog
from jobs.windows.store import ShardStore
from schemas.columns import StringColumn
from tests.property.test_windows_equal_reference import CALM, cut_up, scores, streams
from tests.reference.windows_reference import Row
from tests.reference.windows_sets import EVERY_AGGREGATION, EVERYTHING, batch_of

MORE = replace(
    EVERYTHING,
    entities=(
        Entity(
            "customer",
            "customer_id",
            (
                mean("risk", ("2s",)),
                *EVERY_AGGREGATION,
                total("amount", ("7s",), filter="at_a"),
                std("risk", ("13s",)),
                distinct("shop", ("1s",), delay="1s"),
            ),
        ),
    ),
)


@CALM
@given(streams(), streams(longest=20), st.lists(st.integers(0, 1000), max_size=5), st.booleans())
def test_a_savepoint_taken_under_other_features_gives_what_a_job_that_always_had_them_gives(
    before: list[Row], after: list[Row], cuts: list[int], fewer: bool
) -> None:
    """Features come and go; those of the new declaration are right at once, old ones unchanged."""
    old, new = (MORE, EVERYTHING) if fewer else (EVERYTHING, MORE)
    earlier = ShardStore(old, "customer")
    kept = MemoryLog()
    log = StateLog(kept, earlier.horizon_ms)
    list(log.chunks())
    for batch in cut_up(before, cuts):
        log.append(earlier.process(batch_of(batch)).delta, earlier.clock_ms)
    always, upgraded = ShardStore(new, "customer"), ShardStore(new, "customer")
    always.process(batch_of(before))
    upgraded.restore(StateLog(kept, upgraded.horizon_ms).chunks())
    expected, found = (scores(store, [after]) for store in (always, upgraded))
    assert found[0].tobytes() == expected[0].tobytes()
    assert found[1].tobytes() == expected[1].tobytes()


@CALM
@given(st.lists(st.integers(-(2**53), 2**53), min_size=4, max_size=40), st.integers(1, 9))
def test_sums_are_exact_when_the_sums_below_them_have_wrapped(
    values: list[int], seconds: int
) -> None:
    """A prefix sum outgrows 64 bits after a thousand of the largest values; no window does."""
    declared = FeatureSet(
        "wrapped",
        (number("value"),),
        (Entity("k", "k", (total("value", (f"{seconds}s",)), count((f"{seconds}s",)))),),
    )
    largest = np.full(1_500, 2**53)
    whole = np.concatenate([largest, np.array(values)])
    rows = [
        Row(Kind.EVENT, "k", 1_000 * i, str(i), {"risk": int(value)})
        for i, value in enumerate(whole)
    ]
    batch = batch_of(rows)
    fields = {"value": replace_values(batch.fields["risk"], whole)}
    got = ShardStore(declared, "k").process(replace(batch, fields=fields)).features
    for i in range(len(largest), len(whole)):
        inside = whole[max(0, i - seconds + 1) : i + 1].tolist()
        assert got[i].tolist() == [float(Fraction(sum(inside))), float(len(inside))]


def replace_values(column: object, values: np.ndarray) -> object:
    """Return a column of numbers with other values, as integers."""
    return replace(column, values=values.astype(np.int64))  # type: ignore[type-var]


@CALM
@given(st.integers(0, 1_200), st.integers(0, 4_000))
def test_a_look_up_in_arrays_that_were_outgrown_finds_a_key_or_leaves_it(
    slots: int, key_bytes: int
) -> None:
    """While a log is restored, keys are looked up in one thread and added in another."""
    keys = [f"k{i}" for i in range(1_000)]
    store = ShardStore(EVERYTHING, "customer")
    store.process(batch_of([Row(Kind.EVENT, key, 1_000, None) for key in keys]))
    asked = StringColumn.from_texts(keys)
    hashes = hash_strings(asked)

    def look(known_slots: np.ndarray, known_bytes: np.ndarray) -> np.ndarray:
        found = np.full(len(keys), -1, np.int32)
        columns = (asked.data, asked.starts, asked.lengths)
        find_known(*columns, hashes, found, store._table, known_slots, known_bytes)
        return found

    whole = look(store._slots, store._key_bytes)
    assert sorted(whole.tolist()) == list(range(1, 1_001))
    part = look(store._slots[: max(1, slots)], store._key_bytes[: max(1, key_bytes)])
    assert ((part == 0) | (part == whole)).all()
    assert part.max(initial=0) < max(1, slots)
