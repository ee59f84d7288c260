"""Partitions are read within half a day of each other; within that, arrival decides nothing."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest

from connectors.producers.simulator import Population, Simulation
from connectors.settings import FlinkSettings
from jobs.fraud.features import FRAUD_FEATURES
from tests.support.fraud import DAY_MS, Fraud, label, offline_settings, payment

HOUR_MS = 3_600_000
DAYS = 12
HOURS = FlinkSettings().max_event_time_drift_ms // HOUR_MS
LABEL_MS = 6 * DAY_MS
Entry = tuple[int, str, bytes]


@cache
def entries() -> list[Entry]:
    """Return twelve days as (source time, where from, frame): two partitions and their labels."""
    found: list[Entry] = []
    offsets = {"p0": 0, "p1": 0}
    population = Population(seed=11, customers=100, terminals=150)
    first = None
    for batch in Simulation(population).batches():
        names = {n: batch.text(n).to_list() for n in ("event_id", "customer_id", "terminal_id")}
        frauds = [] if batch.is_fraud is None else batch.is_fraud.tolist()
        amounts = batch.amount_minor.tolist()
        for row, at_ms in enumerate(batch.event_time_ms.tolist()):
            first = at_ms if first is None else first
            if at_ms - first > DAYS * DAY_MS:
                return found
            event, customer, terminal = (names[n][row] for n in names)
            partition = int(customer.removeprefix("c")) % 2
            offset = offsets[f"p{partition}"]
            offsets[f"p{partition}"] += 1
            paid = payment(
                offset,
                customer,
                terminal,
                at_ms=at_ms,
                amount_minor=amounts[row],
                event_id=event,
                partition=partition,
            )
            verdict = label(
                offset,
                event,
                customer,
                terminal,
                at_ms,
                is_fraud=bool(frauds[row]),
                partition=partition,
            )
            found += [(at_ms, f"p{partition}", paid), (at_ms + LABEL_MS, "labels", verdict)]
    return found


@cache
def answers(behind: str, hours: int) -> tuple[dict[Any, Any], frozenset[Any]]:
    """Return rows and alerts when one part of the records comes some hours of event time later."""

    def arrival(entry: Entry) -> int:
        return entry[0] + (hours * HOUR_MS if entry[1] == behind else 0)

    fraud = Fraud(offline_settings(Path(mkdtemp(prefix="riskstream-arrival-"))), 4)
    frames = [frame for _, _, frame in sorted(entries(), key=arrival)]
    for low in range(0, len(frames), 100):
        fraud.send(frames[low : low + 100])
    rows = {
        place: (row["decision"], row["score"], *(row[name] for name in FRAUD_FEATURES.names))
        for place, row in fraud.by_place().items()
    }
    sources = (alert["source"] for alert in fraud.alerts())
    return rows, frozenset((source["partition"], source["offset"]) for source in sources)


@pytest.mark.parametrize("behind", ["p1", "labels"])
def test_what_comes_half_a_day_later_is_decided_alike(behind: str) -> None:
    assert answers(behind, HOURS) == answers("", 0)
    rows, alerts = answers("", 0)
    assert len(rows) > 1_500
    assert len(alerts) > 20


def test_labels_that_come_two_days_later_are_missed_by_some_payments() -> None:
    """The other side of the bound: a label comes after six days and counts after seven."""
    rows, _ = answers("", 0)
    late, _ = answers("labels", 48)
    assert rows.keys() == late.keys()
    assert any(rows[place] != late[place] for place in rows)
