"""Profile lookups: right for every key, cached for a while, and honest when Redis is away."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pytest
import redis
from hypothesis import given, settings
from hypothesis import strategies as st

from connectors.producers.simulator import Population, Simulation
from connectors.profile_loading import Profiles, derive_profiles, load_profiles, profiles_from_table
from connectors.profiles import ProfileLookup, ProfilesRefused, ProfilesUnavailable, profile_key
from connectors.settings import RedisSettings
from schemas.columns import StringColumn
from schemas.errors import ConfigurationError


class _Store:
    """Redis without Redis: a dict, and errors to raise first."""

    def __init__(self, values: dict[bytes, bytes] | None = None) -> None:
        self.values: dict[bytes, bytes] = dict(values or {})
        self.asked: list[list[bytes]] = []
        self.errors: list[Exception] = []

    def mget(self, keys: Sequence[bytes]) -> list[bytes | None]:
        self.asked.append(list(keys))
        if self.errors:
            raise self.errors.pop(0)
        return [self.values.get(key) for key in keys]

    def mset(self, values: dict[bytes, bytes]) -> None:
        self.values.update(values)


class _Clock:
    now_ms = 1_000

    def __call__(self) -> int:
        return self.now_ms


def _loaded(amounts: dict[str, int]) -> _Store:
    store = _Store()
    usual = np.array(list(amounts.values()), np.int64)
    ids = StringColumn.from_texts(list(amounts))
    load_profiles(store, Profiles("customer", ids, {"usual_amount_minor": usual}))  # type: ignore[arg-type]
    return store


def _amounts(lookup: ProfileLookup, keys: list[str | None]) -> list[int | None]:
    batch = lookup.lookup(StringColumn.from_texts(keys))
    values = batch.columns["usual_amount_minor"]
    return [int(v) if found else None for v, found in zip(values, batch.found, strict=True)]


def test_profiles_are_found_and_missing_ones_are_a_value() -> None:
    store = _loaded({"a": 5, "b": 7})
    lookup = ProfileLookup(lambda: store, "customer", cache_entries=16)
    assert _amounts(lookup, ["b", "x", None, "a", "b", ""]) == [7, None, None, 5, 7, None]
    assert (lookup.counts.rows, lookup.counts.missing) == (6, 3)


def test_a_batch_asks_once_for_its_distinct_keys_and_then_the_cache_answers() -> None:
    store, clock = _loaded({"a": 5}), _Clock()
    lookup = ProfileLookup(lambda: store, "customer", "wait", 16, 60_000, clock)
    for _ in range(3):
        assert _amounts(lookup, ["a", "x", "a", "x"]) == [5, None, 5, None]
    assert store.asked == [[b"profile:customer:a", b"profile:customer:x"]]
    clock.now_ms += 60_000
    store.values.clear()
    assert _amounts(lookup, ["a", "x"]) == [None, None]
    assert len(store.asked) == 2


def test_keys_longer_than_the_cache_holds_are_right_and_asked_each_time() -> None:
    long = "k" * 300
    store = _loaded({long: 3})
    lookup = ProfileLookup(lambda: store, "customer", cache_entries=16)
    assert _amounts(lookup, [long, long]) == [3, 3]
    assert _amounts(lookup, [long]) == [3]
    assert len(store.asked) == 2


@settings(deadline=None, max_examples=80)
@given(
    st.lists(st.lists(st.integers(0, 40), max_size=30), max_size=12),
    st.dictionaries(st.integers(0, 40), st.integers(-(2**63), 2**63 - 1)),
)
def test_a_tiny_cache_gives_the_same_answers_as_none(
    batches: list[list[int]], amounts: dict[int, int]
) -> None:
    store = _loaded({f"id{key}": amount for key, amount in amounts.items()})
    lookup = ProfileLookup(lambda: store, "customer", cache_entries=4)
    for keys in batches:
        assert _amounts(lookup, [f"id{key}" for key in keys]) == [amounts.get(k) for k in keys]


def test_more_keys_than_one_command_takes_are_asked_in_parts() -> None:
    store = _loaded({str(i): i for i in range(2_500)})
    lookup = ProfileLookup(lambda: store, "customer", cache_entries=4_096)
    assert _amounts(lookup, [str(i) for i in range(2_500)]) == list(range(2_500))
    assert [len(keys) for keys in store.asked] == [1_000, 1_000, 500]


def test_waiting_tries_again_until_redis_is_back() -> None:
    store, waits, seen = _loaded({"a": 5}), list[float](), list[int]()
    store.errors = [redis.ConnectionError("gone"), redis.TimeoutError("slow")] * 4
    lookup = ProfileLookup(
        lambda: store, "customer", cache_entries=16, sleep=waits.append,
        on_wait=lambda attempt, _: seen.append(attempt),
    )  # fmt: skip
    assert _amounts(lookup, ["a"]) == [5]
    assert seen == list(range(1, 9))
    assert waits == sorted(waits)
    assert max(waits) <= 2.0


def test_waiting_ends_when_told_to_give_up() -> None:
    store = _Store()
    store.errors = [redis.ConnectionError("gone")] * 3
    lookup = ProfileLookup(
        lambda: store, "customer", sleep=lambda _: None, give_up_after=3, cache_entries=16
    )
    with pytest.raises(ProfilesUnavailable):
        _amounts(lookup, ["a"])


def test_scoring_without_marks_the_rows_and_leaves_redis_alone_for_a_second() -> None:
    store, clock = _loaded({"a": 5, "b": 6}), _Clock()
    lookup = ProfileLookup(lambda: store, "customer", "score_without", 16, 60_000, clock)
    assert _amounts(lookup, ["a"]) == [5]
    store.errors = [redis.TimeoutError("slow")]
    for _ in range(3):
        batch = lookup.lookup(StringColumn.from_texts(["a", "b", None]))
        assert batch.found.tolist() == [True, False, False]
        assert batch.unavailable.tolist() == [False, True, False]
    assert len(store.asked) == 2
    clock.now_ms += 1_000
    assert _amounts(lookup, ["b"]) == [6]


def test_a_refusal_is_not_waited_out() -> None:
    for error in (redis.AuthenticationError("no"), redis.ResponseError("WRONGTYPE")):
        store = _Store()
        store.errors = [error]
        with pytest.raises(ProfilesRefused):
            _amounts(ProfileLookup(lambda store=store: store, "customer", cache_entries=16), ["a"])


def test_values_of_later_versions_are_read_and_broken_ones_count_as_missing() -> None:
    store = _loaded({"a": 5})
    good = store.values[profile_key("customer", b"a")]
    store.values[profile_key("customer", b"later")] = b"\x02" + good[1:] + b"more fields"
    store.values[profile_key("customer", b"short")] = good[:-1]
    store.values[profile_key("customer", b"blank")] = bytes(len(good))
    lookup = ProfileLookup(lambda: store, "customer", cache_entries=16)
    assert _amounts(lookup, ["later", "short", "blank", "a"]) == [5, None, None, 5]
    assert lookup.counts.malformed == 2


def test_the_packed_form_is_what_version_1_says() -> None:
    store = _loaded({"a": 0x0102})
    packed = store.values[b"profile:customer:a"]
    assert packed == bytes([1, 0, 0, 0, 0, 0, 0, 0, 2, 1]) + bytes(30)


def test_profiles_are_read_from_a_table_with_nulls_as_zero() -> None:
    table = pa.table({"terminal_id": [7, 8], "latitude": [1.5, None], "risk_tier": [2, 3]})
    made = profiles_from_table("terminal", table)
    assert made.ids.to_list() == ["7", "8"]
    assert made.packed["latitude"].tolist() == [1.5, 0.0]
    assert made.packed["risk_tier"].tolist() == [2, 3]
    with pytest.raises(ConfigurationError, match="merchant_id"):
        profiles_from_table("merchant", table)


def test_profiles_derived_from_transactions_equal_a_plain_count() -> None:
    simulation = Simulation(Population(3, 50, 200, 20.0), days=4)
    spent: dict[str, list[int]] = {}
    frauds: dict[str, int] = {}
    for batch in simulation.batches():
        assert batch.is_fraud is not None
        for row in range(len(batch)):
            customer = str(batch.text("customer_id").text_at(row))
            terminal = str(batch.text("terminal_id").text_at(row))
            spent.setdefault(customer, []).append(int(batch.amount_minor[row]))
            frauds[terminal] = frauds.get(terminal, 0) + int(batch.is_fraud[row])
    made = {item.kind: item for item in derive_profiles(simulation)}
    usual = dict(
        zip(
            made["customer"].ids.to_list(),
            made["customer"].packed["usual_amount_minor"],
            strict=True,
        )
    )
    assert usual == {name: round(sum(all_) / len(all_)) for name, all_ in spent.items()}
    counted = dict(
        zip(made["terminal"].ids.to_list(), made["terminal"].packed["chargebacks"], strict=True)
    )
    assert counted == frauds


def test_without_an_address_there_is_no_client() -> None:
    from connectors.profiles import redis_client

    with pytest.raises(ConfigurationError, match=r"redis\.url"):
        redis_client(RedisSettings())
