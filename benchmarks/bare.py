"""The bare cost of each part of an event's way, measured alone, and the per-record floor beside it.

Each part works on batches of `rows` and reports the fastest of `repeats` in microseconds of this
thread's CPU per event. What a part reads is made before its clock starts.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

import numpy as np

from benchmarks.contestants.payments import (
    Decoder,
    Log,
    Model,
    Profiles,
    RedisClient,
    add_to_customer,
    add_to_terminal,
    event_inputs,
    new_log,
)
from benchmarks.services import plain_schema
from benchmarks.workload import Workload
from connectors.frames import FrameBatch
from connectors.settings import load_settings
from jobs.fraud.customer_stage import event_batch
from jobs.fraud.features import FRAUD_FEATURES
from jobs.fraud.parts import StageParts
from jobs.windows.store import ShardStore
from models.registry import Registry, default_version
from models.session import open_model
from schemas.contract import contract

__all__ = ["bare_costs", "fastest_us", "per_record_costs"]

TOPIC: Final = "card-transactions"


def fastest_us(work: Callable[[int], object], repeats: int, rows: int) -> float:
    """Return the fastest CPU microseconds per event of `work(repeat)`, after one run to warm up."""
    work(0)
    best = float("inf")
    for repeat in range(1, repeats + 1):
        began = time.thread_time_ns()
        work(repeat)
        best = min(best, time.thread_time_ns() - began)
    return round(best / 1000 / rows, 4)


def bare_costs(workload: Workload, rows: int = 500, repeats: int = 20) -> dict[str, float]:
    """Return microseconds per event of the parts that need no server.

    `workload` must hold `rows * (repeats + 1)` payments.
    """
    frames = workload.frames(TOPIC)
    cuts = [b"".join(frames[at : at + rows]) for at in range(0, rows * (repeats + 1), rows)]
    parts = StageParts(load_settings(environment={}))
    intake = parts.intake()
    parts.warm()
    taken = [intake.read(cut) for cut in cuts]
    stores = {entity: ShardStore(FRAUD_FEATURES, entity) for entity in ("customer", "terminal")}
    manifest, data = Registry(parts.settings.models.registry).load(default_version())
    model = open_model(manifest, data, FRAUD_FEATURES.names)
    width = len(FRAUD_FEATURES.names)
    matrix = np.random.default_rng(1).uniform(0, 30, (rows, width))
    client = workload.profile_client()
    lookup = parts.profiles("customer", _NoMetrics())
    lookup._client_factory = lambda: client  # noqa: SLF001 - no server in this measurement
    for one in taken:
        lookup.lookup(one.text("customer_id"))
    costs = {
        "frames_us": fastest_us(lambda at: FrameBatch.parse(cuts[at]), repeats, rows),
        "decode_us": fastest_us(lambda at: intake.read(cuts[at]), repeats, rows),
        "model_us": fastest_us(lambda at: model.score(matrix), repeats, rows),
        "profile_cache_us": fastest_us(
            lambda at: lookup.lookup(taken[at].text("customer_id")), repeats, rows
        ),
    }
    for entity, store in stores.items():
        batches = [event_batch(one, entity) for one in taken]
        costs[f"{entity}_windows_us"] = fastest_us(
            lambda at, store=store, batches=batches: store.process(batches[at]),  # type: ignore[misc]
            repeats,
            rows,
        )
    return costs


class _NoMetrics:
    def count(self, name: str, by: int = 1) -> None:
        """Forget."""

    def observe_ms(self, name: str, milliseconds: float, times: int = 1) -> None:
        """Forget."""

    def gauge(self, name: str, value: int) -> None:
        """Forget."""


def per_record_costs(workload: Workload, repeats: int = 3) -> dict[str, float]:
    """Return microseconds per event of the plain loop, whole and by part."""
    decoder = Decoder(plain_schema(contract("card_transaction")))
    manifest, data = Registry(load_settings(environment={}).models.registry).load(default_version())
    model = Model(data, manifest.input.name, manifest.output.name)
    client = workload.profile_client()
    records = workload.records
    rows = len(records)
    payments = [decoder.decode(record.value) for record in records]
    sample = [[1.0] * len(FRAUD_FEATURES.names)]
    return {
        "decode_us": fastest_us(
            lambda _: [decoder.decode(record.value) for record in records], repeats, rows
        ),
        "profiles_us": fastest_us(
            lambda _: [_lookup(client, payment) for payment in payments], repeats, rows
        ),
        "windows_us": fastest_us(lambda _: _windows(payments), repeats, rows),
        "model_us": fastest_us(lambda _: [model.score(sample) for _ in range(200)], repeats, 200),
    }


def _lookup(client: RedisClient, payment: dict[str, Any]) -> object:
    return Profiles(client, 2, 1).get([payment])


def _windows(payments: list[dict[str, Any]]) -> None:
    customers: dict[str, Log] = {}
    terminals: dict[str, Log] = {}
    for payment in payments:
        time_ms = payment["event_time_ms"]
        customer = customers.setdefault(payment["customer_id"], new_log())
        terminal = terminals.setdefault(payment["terminal_id"], new_log())
        event_inputs(payment)
        add_to_customer(customer, time_ms, payment["amount_minor"])
        add_to_terminal(terminal, time_ms)
