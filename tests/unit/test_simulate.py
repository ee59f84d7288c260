"""The simulated stream: seeded, complete, and with every kind of fraud in it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from connectors.producers.files import write_transactions
from connectors.producers.labels import DAY_MS
from connectors.producers.simulator import DEFAULT_START_MS, Population, SimulatedDay, Simulation
from connectors.producers.source import FileSource, TransactionBatch
from schemas.columns import NumberColumn, StringColumn
from schemas.errors import ConfigurationError

SMALL = Population(seed=3, customers=400, terminals=900, radius=8.0)


@pytest.fixture(scope="module")
def days() -> list[SimulatedDay]:
    return list(Simulation(SMALL, days=30).simulated_days())


def _plain(batch: TransactionBatch) -> dict[str, list[object]]:
    return {
        name: list(column.to_list())
        if isinstance(column, StringColumn)
        else list(zip(column.values.tolist(), column.valid.tolist(), strict=True))
        for name, column in batch.columns.items()
    }


def test_the_same_seed_gives_the_same_stream_and_another_seed_another() -> None:
    first, again = (Simulation(SMALL).day(5) for _ in range(2))
    assert _plain(first.batch) == _plain(again.batch)
    assert np.array_equal(first.scenario, again.scenario)
    other = Simulation(Population(4, 400, 900, 8.0)).day(5)
    assert _plain(first.batch)["customer_id"] != _plain(other.batch)["customer_id"]


def test_a_day_does_not_depend_on_the_days_made_before(days: list[SimulatedDay]) -> None:
    assert _plain(Simulation(SMALL).day(12).batch) == _plain(days[12].batch)


def test_event_ids_are_unique_and_times_are_ordered_within_their_day(
    days: list[SimulatedDay],
) -> None:
    ids = [name for day in days for name in day.batch.text("event_id").to_list()]
    assert len(set(ids)) == len(ids)
    for number, day in enumerate(days):
        times = day.batch.event_time_ms - DEFAULT_START_MS - number * DAY_MS
        assert np.all(np.diff(times) >= 0)
        assert times.min() >= 0
        assert times.max() < DAY_MS


def test_every_kind_of_fraud_happens_and_labels_agree_with_scenarios(
    days: list[SimulatedDay],
) -> None:
    kinds = np.concatenate([day.scenario for day in days])
    assert set(kinds.tolist()) == {0, 1, 2, 3, 4, 5}
    for day in days:
        assert day.batch.is_fraud is not None
        assert np.array_equal(day.batch.is_fraud, day.scenario > 0)
        large = day.batch.amount_minor > 220_00
        assert np.all(day.scenario[large] > 0)


def test_spending_follows_the_published_description() -> None:
    batches = [
        day.batch for day in Simulation(Population(1, 2_000, 4_000), days=5).simulated_days()
    ]
    amounts = np.concatenate([batch.amount_minor for batch in batches])
    seconds = np.concatenate([batch.event_time_ms % DAY_MS for batch in batches]) / 1000
    # Two transactions a day a customer, about 3 % of them outside the day; mean of U(5, 100) is
    # 52.5.
    assert len(amounts) / (5 * 2_000) == pytest.approx(1.94, rel=0.1)
    assert np.mean(amounts) / 100 == pytest.approx(54, rel=0.1)
    assert np.mean(seconds) == pytest.approx(43_200, rel=0.03)
    assert np.min(amounts) >= 0


def test_a_burst_is_many_small_payments_of_one_customer_within_minutes(
    days: list[SimulatedDay],
) -> None:
    day = days[2]
    rows = np.flatnonzero(day.scenario == 4)
    customers = {day.batch.text("customer_id").text_at(int(row)) for row in rows}
    assert len(customers) == 1
    assert len(rows) >= 10
    assert np.ptp(day.batch.event_time_ms[rows]) <= 300_000
    assert day.batch.amount_minor[rows].max() < 500


def test_an_impossible_travel_is_far_from_the_payment_before(days: list[SimulatedDay]) -> None:
    speeds = []
    for day in days:
        latitude, longitude = day.batch.columns["latitude"], day.batch.columns["longitude"]
        assert isinstance(latitude, NumberColumn)
        assert isinstance(longitude, NumberColumn)
        customer = np.array(day.batch.text("customer_id").to_list())
        for row in np.flatnonzero(day.scenario == 5):
            before = np.flatnonzero((customer[:row] == customer[row]) & latitude.valid[:row])
            if len(before):
                last = before[-1]
                north = 111.2 * (latitude.values[row] - latitude.values[last])
                east = 78.0 * (longitude.values[row] - longitude.values[last])
                hours = (day.batch.event_time_ms[row] - day.batch.event_time_ms[last]) / 3.6e6
                speeds.append(float(np.hypot(north, east)) / hours)
    assert len(speeds) > 5
    assert np.median(speeds) > 900


def test_a_limit_ends_the_stream_inside_a_day() -> None:
    source = Simulation(SMALL, limit=1_000)
    assert sum(len(batch) for batch in source.batches()) == source.total == 1_000


def test_profiles_cover_every_entity_of_the_stream(days: list[SimulatedDay]) -> None:
    known = {item.kind: set(item.ids.to_list()) for item in Simulation(SMALL).profiles()}
    for day in days[:3]:
        for kind in ("customer", "terminal", "merchant"):
            assert set(day.batch.text(f"{kind}_id").to_list()) <= known[kind]  # type: ignore[index]


def test_a_written_file_replays_the_same_stream(tmp_path: Path) -> None:
    file = tmp_path / "simulated.parquet"
    assert write_transactions(file, Simulation(SMALL, days=3), 1_500) == 1_500
    read = [_plain(batch) for batch in FileSource(file).batches()]
    want = [_plain(batch) for batch in Simulation(SMALL, limit=1_500).batches()]
    for name in want[0]:
        assert [v for part in read for v in part[name]] == [v for part in want for v in part[name]]
    assert [path.name for path in tmp_path.iterdir()] == ["simulated.parquet"]


def test_a_population_without_people_is_refused() -> None:
    with pytest.raises(ConfigurationError):
        Population(1, 0, 10)
