"""What `riskstream demo-risk` sends, and how it finds the wait of a tick until a row shows it."""

from __future__ import annotations

import numpy as np

from jobs.market_risk import demo
from jobs.market_risk.simulator import MarketSimulator


def test_slices_hold_the_whole_market_in_order_and_are_due_at_its_clock():
    slices = list(demo.market_slices(MarketSimulator(3), 4))
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
