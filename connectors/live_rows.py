"""Labelled rows of the running job, for training on what it saw and judging who scored better."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from connectors.clickhouse import ClickHouseClient
from connectors.settings import ClickHouseSettings

__all__ = ["LiveRows", "ScoredPairs", "live_rows", "scored_pairs"]


@dataclass(frozen=True, slots=True)
class LiveRows:
    """Scored transactions, oldest first; all of length n, `features` (n, k), exactly as scored.

    `customer` is a 64-bit hash of the customer; `is_fraud` is False where no label came.
    """

    event_time_ms: NDArray[np.int64]
    amount_minor: NDArray[np.int64]
    customer: NDArray[np.uint64]
    is_fraud: NDArray[np.bool_]
    features: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class ScoredPairs:
    """Rows that a champion decided and a shadow scored too; all of length n."""

    champion: NDArray[np.float64]
    shadow: NDArray[np.float64]
    customer: NDArray[np.uint64]
    is_fraud: NDArray[np.bool_]


def live_rows(
    settings: ClickHouseSettings, features: Sequence[str], feature_set_version: str, since_ms: int
) -> LiveRows:
    """Read every transaction from event time `since_ms` on that was scored with these features.

    The stored features are those of the moment of scoring, so nothing that came later is in them.
    """
    columns = "".join(f", `{name}`" for name in features)
    query = (
        f"SELECT event_time_ms, amount_minor, cityHash64(customer_id), "  # noqa: S608 - feature names
        f"toUInt8(event_id IN (SELECT event_id FROM labels WHERE is_fraud)){columns} "
        "FROM scored_transactions WHERE event_time_ms >= {since:Int64} "
        "AND feature_set_version = {version:String} ORDER BY event_time_ms, event_id"
    )
    with closing(ClickHouseClient(settings)) as client:
        rows = client.table(
            query,
            [
                ("time", "<i8"),
                ("amount", "<i8"),
                ("customer", "<u8"),
                ("fraud", "u1"),
                ("features", "<f8", (len(features),)),
            ],
            {"since": since_ms, "version": feature_set_version},
        )
    return LiveRows(
        rows["time"].copy(),
        rows["amount"].copy(),
        rows["customer"].copy(),
        rows["fraud"].astype(np.bool_),
        rows["features"].copy(),
    )


def scored_pairs(
    settings: ClickHouseSettings, champion: str, shadow: str, label_delay_ms: int
) -> ScoredPairs:
    """Read the rows that both scored and whose labels are in.

    A row's label is in when the newest event is `label_delay_ms` past it; a row without one is
    genuine then. Rows that either could not score are left out.
    """
    query = (
        "SELECT t.score, s.score, cityHash64(t.customer_id), "
        "toUInt8(t.event_id IN (SELECT event_id FROM labels WHERE is_fraud)) "
        "FROM scored_transactions AS t JOIN shadow_scores AS s ON t.event_id = s.event_id "
        "AND t.kafka_topic = s.kafka_topic AND t.kafka_partition = s.kafka_partition "
        "AND t.kafka_offset = s.kafka_offset "
        "WHERE t.model_version = {champion:String} AND s.model_version = {shadow:String} "
        "AND isFinite(t.score) AND isFinite(s.score) AND t.event_time_ms <= "
        "(SELECT max(event_time_ms) FROM scored_transactions_raw) - {delay:Int64} "
        "ORDER BY t.event_time_ms, t.event_id"
    )
    with closing(ClickHouseClient(settings)) as client:
        rows = client.table(
            query,
            [("champion", "<f8"), ("shadow", "<f8"), ("customer", "<u8"), ("fraud", "u1")],
            {"champion": champion, "shadow": shadow, "delay": label_delay_ms},
        )
    return ScoredPairs(
        rows["champion"].copy(),
        rows["shadow"].copy(),
        rows["customer"].copy(),
        rows["fraud"].astype(np.bool_),
    )
