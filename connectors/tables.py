"""The tables of the fraud job: how their rows are packed, and what the flags mean."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from connectors.row_binary import RowBinaryLayout

__all__ = [
    "CONTROL_TABLE",
    "DECISIONS",
    "LABELS_TABLE",
    "ONE_ROW_A_KEY",
    "SCORED_TABLE",
    "SCORED_VIEW",
    "SCORE_FLAGS",
    "SHADOW_TABLE",
    "control_layout",
    "label_layout",
    "scored_layout",
    "shadow_layout",
]

SCORED_TABLE: Final = "scored_transactions_raw"
"""Where scored transactions are inserted; read them through `SCORED_VIEW`."""

SCORED_VIEW: Final = "scored_transactions"
"""Scored transactions, each Kafka record once."""

LABELS_TABLE: Final = "labels_raw"
"""Where labels are inserted; read them through the view `labels`."""

CONTROL_TABLE: Final = "control_outcomes"
"""What each shard made of each control record."""

SHADOW_TABLE: Final = "shadow_scores_raw"
"""Scores of models that do not decide; read them through the view `shadow_scores`."""

ONE_ROW_A_KEY: Final = frozenset({SCORED_TABLE, LABELS_TABLE, SHADOW_TABLE})
"""Tables whose key is a Kafka record: the rows of one insert have nothing to replace each other."""

DECISIONS: Final = ("approve", "review", "block")
"""Decisions; the code in the table is the position."""

SCORE_FLAGS: Final[dict[str, int]] = {
    "duplicate": 1,
    "late": 2,
    "too_late": 4,
    "truncated": 32,
    "tiled": 64,
    "profile_missing": 512,
    "scored_without_profile": 1024,
    "scored_without_model": 2048,
    "amount_suspicious": 4096,
    "time_suspicious": 8192,
}
"""Bits of column `flags`. The low byte is the window store's (`RowFlag`)."""


def scored_layout(feature_names: Sequence[str]) -> RowBinaryLayout:
    """Return how a scored transaction is packed; the features are the matrix `features`."""
    return RowBinaryLayout(
        [
            ("event_time_ms", "Int64"),
            ("amount_minor", "Int64"),
            ("channel", "Enum8"),
            ("score", "Float64"),
            ("decision", "Enum8"),
            ("flags", "UInt16"),
            ("kafka_partition", "Int32"),
            ("kafka_offset", "Int64"),
            ("published_at_ms", "Int64"),
            ("ingested_at_ms", "Int64"),
            ("decided_at_ms", "Int64"),
            ("seen_order", "Int64"),
            ("event_id", "String"),
            ("customer_id", "String"),
            ("terminal_id", "String"),
            ("merchant_id", "String"),
            ("currency", "LowCardinality(String)"),
            ("country", "LowCardinality(String)"),
            ("tenant", "LowCardinality(String)"),
            ("model_version", "LowCardinality(String)"),
            ("rule_set_version", "LowCardinality(String)"),
            ("feature_set_version", "LowCardinality(String)"),
            ("kafka_topic", "LowCardinality(String)"),
            ("rules_fired", "Array(String)"),
        ],
        group=feature_names,
    )


def label_layout() -> RowBinaryLayout:
    """Return how a label is packed."""
    return RowBinaryLayout(
        [
            ("event_time_ms", "Int64"),
            ("is_fraud", "Bool"),
            ("labelled_at_ms", "Int64"),
            ("source", "Enum8"),
            ("revision", "Int32"),
            ("kafka_partition", "Int32"),
            ("kafka_offset", "Int64"),
            ("seen_order", "Int64"),
            ("event_id", "String"),
            ("customer_id", "String"),
            ("terminal_id", "String"),
            ("kafka_topic", "LowCardinality(String)"),
        ]
    )


def control_layout() -> RowBinaryLayout:
    """Return how the outcome of a control record is packed."""
    return RowBinaryLayout(
        [
            ("issued_at_ms", "Int64"),
            ("shard", "Int32"),
            ("applied_at_ms", "Int64"),
            ("kafka_partition", "Int32"),
            ("kafka_offset", "Int64"),
            ("control_id", "String"),
            ("kind", "LowCardinality(String)"),
            ("subject", "String"),
            ("issued_by", "String"),
            ("outcome", "LowCardinality(String)"),
            ("detail", "String"),
            ("kafka_topic", "LowCardinality(String)"),
        ]
    )


def shadow_layout() -> RowBinaryLayout:
    """Return how the score of a model that does not decide is packed."""
    return RowBinaryLayout(
        [
            ("event_time_ms", "Int64"),
            ("score", "Float64"),
            ("kafka_partition", "Int32"),
            ("kafka_offset", "Int64"),
            ("decided_at_ms", "Int64"),
            ("event_id", "String"),
            ("model_version", "LowCardinality(String)"),
            ("kafka_topic", "LowCardinality(String)"),
        ]
    )
