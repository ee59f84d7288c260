"""What `riskstream demo-risk` sends, and how it finds the wait of a tick until a row shows it."""

from __future__ import annotations

import numpy as np
import pytest

from jobs.market_risk import demo
from jobs.market_risk.files import InputFileError
from jobs.market_risk.recording import (
    last_time_ms,
    market_slices,
    recorded_slices,
    times_of,
    write_recording,
)
from jobs.market_risk.simulator import DeskConfig, MarketSimulator


def test_slices_hold_the_whole_market_in_order_and_are_due_at_its_clock():
    slices = list(market_slices(MarketSimulator(3), 4))
    whole = [batch for batch, _ in zip(MarketSimulator(3).batches(), range(2), strict=False)]
    assert [one.due_seconds for one in slices] == sorted(one.due_seconds for one in slices)
    for topic in ("quotes", "ticks", "fills"):
        sent = [
            text
            for one in slices
            if topic in one.columns
            for text in one.columns[topic]["instrument_id"].to_list()
        ]
        drawn = [
            text for batch in whole for text in getattr(batch, topic)["instrument_id"].to_list()
        ]
        assert sent == drawn
    last = slices[-1]
    assert last.due_seconds == 4.0
    assert np.all(last.columns["quotes"]["event_time_ms"].values <= 1_577_836_804_000)


def test_a_tick_waits_until_the_first_row_that_had_seen_it():
    waits = demo.row_latencies(
        handed_over_ms={"A": [100, 110, 120, 130], "B": [100]},
        earlier={"A": 2},
        inserted_ms={"A": {1: 50, 4: 150, 5: 160}},
    )
    # A's events are its third to sixth: rows had seen four and five, none the sixth, B has no row.
    assert waits.tolist() == [50, 40, 40]


def numbers(slices, topic, name):
    return np.concatenate(
        [one.columns[topic][name].values for one in slices if topic in one.columns]
    )


def test_a_recording_read_back_is_what_the_desk_lived_in_order_of_time(tmp_path):
    desk = DeskConfig(instruments=4, fill_share=0.5)
    simulator = MarketSimulator(7, desk)
    files = write_recording(simulator, tmp_path, days=3, seconds=2)
    assert sorted(path.name for _, path in files) == [
        "fills.csv.gz", "quotes.csv.gz", "ticks.csv.gz",
    ]  # fmt: skip
    slices = list(recorded_slices(files, rows=50))
    again = MarketSimulator(7, desk)
    for topic, name in (("quotes", "bid"), ("ticks", "price"), ("fills", "quantity")):
        lived = []
        again = MarketSimulator(7, desk)
        for _ in range(3):
            lived.append(numbers(list(market_slices(again, 2)), topic, name))
            again.next_day()
        assert numbers(slices, topic, name).tolist() == np.concatenate(lived).tolist()
    newest = -1
    for one in slices:
        times = np.concatenate([times_of(columns) for columns in one.columns.values()])
        assert times.min() > newest
        assert len(set(times // 86_400_000)) == 1
        newest = times.max()
    assert last_time_ms(slices) == newest
    # What the simulator goes on with comes after the recording, with ids of its own.
    later = next(simulator.batches())
    assert times_of(later.quotes).min() > newest
    known = {text for one in slices if "fills" in one.columns
             for text in one.columns["fills"]["fill_id"].to_list()}  # fmt: skip
    assert known
    assert not known & set(later.fills["fill_id"].to_list())


def test_the_desk_trades_every_kind_of_instrument_and_bonds_near_their_nominal():
    simulator = MarketSimulator(3, DeskConfig(instruments=70))
    assert {terms.kind for terms in simulator.terms} == {
        "equity", "bond", "future", "option", "fx", "crypto",
    }  # fmt: skip
    bonds = [row for row, terms in enumerate(simulator.terms) if terms.kind == "bond"]
    prices = np.exp(simulator._log_price[bonds])
    assert prices.min() > 90
    assert prices.max() < 111
    assert simulator._volatility[bonds].max() < 0.08
    assert all(simulator.terms[row].expiry_ms for row in bonds)


def test_prices_move_overnight_by_about_a_day_of_volatility():
    simulator = MarketSimulator(3, DeskConfig(instruments=200))
    before = simulator._log_price.copy()
    simulator.next_day()
    moved = (simulator._log_price - before) / (simulator._volatility / np.sqrt(252))
    assert 0.2 < moved.std() < 3


def test_a_file_of_another_kind_than_said_is_refused_by_name(tmp_path):
    quotes = tmp_path / "EURUSD.csv"
    quotes.write_text("timestamp,bid,ask\n2020-01-01T00:00:00Z,1.1,1.2\n", encoding="utf-8")
    with pytest.raises(InputFileError, match=r"EURUSD\.csv.*expected ticks, was a file of quotes"):
        list(recorded_slices([("ticks", quotes)]))
    (one,) = recorded_slices([("any", quotes)])
    assert one.columns["quotes"]["instrument_id"].to_list() == ["EURUSD"]
