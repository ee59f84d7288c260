"""What every contestant must find: the workload computed in order, one payment at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.contestants.payments import (
    Decoder,
    Job,
    Log,
    RedisClient,
    Scorer,
    add_to_customer,
    add_to_terminal,
    event_inputs,
    new_log,
)
from benchmarks.workload import Record

__all__ = ["Expected", "Reference"]

BATCH = 1_000


@dataclass(frozen=True, slots=True)
class Expected:
    """One scored payment."""

    features: list[float]
    score: float
    decision: str
    fired: list[str]


class Reference:
    """Windows, profiles, model and rules from `contestants.payments`, for one job file."""

    def __init__(self, job: Job, client: RedisClient) -> None:
        self._decoder = Decoder(job.transaction_schema)
        self._scorer = Scorer(job, client)

    def expect(self, records: Sequence[Record]) -> dict[str, Expected]:
        """Return event id -> what must be found; records in order of event time, none before."""
        customers: dict[str, Log] = {}
        terminals: dict[str, Log] = {}
        found: dict[str, Expected] = {}
        waiting: list[dict[str, Any]] = []
        for record in records:
            payment = self._decoder.decode(record.value)
            time_ms = payment["event_time_ms"]
            customer = customers.setdefault(payment["customer_id"], new_log())
            terminal = terminals.setdefault(payment["terminal_id"], new_log())
            payment["features"] = [
                *event_inputs(payment),
                *add_to_customer(customer, time_ms, payment["amount_minor"]),
                *add_to_terminal(terminal, time_ms),
            ]
            payment.update(partition=0, offset=0, published_at_ms=0, ingested_at_ms=0)
            waiting.append(payment)
            if len(waiting) == BATCH:
                self._score(waiting, found)
                waiting = []
        if waiting:
            self._score(waiting, found)
        return found

    def _score(self, payments: list[dict[str, Any]], found: dict[str, Expected]) -> None:
        for row, payment in zip(self._scorer.score(payments), payments, strict=True):
            found[row["event_id"]] = Expected(
                payment["features"], row["score"], row["decision"], sorted(row["rules_fired"])
            )
