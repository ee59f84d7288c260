"""What drift is computed from and where it is kept: ClickHouse, read in windows of event time.

Nothing here touches the job: the scored rows hold the features that the model saw, bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from connectors.clickhouse import ClickHouseClient, ClickHouseWriter
from connectors.row_binary import RowBinaryLayout
from connectors.settings import ClickHouseSettings
from schemas.columns import StringColumn

__all__ = ["DRIFT_TABLE", "QUALITY_TABLE", "DriftStore", "WindowCount", "WindowSample"]

DRIFT_TABLE: Final = "drift"
"""One row a model, feature, measure and window."""

QUALITY_TABLE: Final = "model_quality"
"""One row a model and window."""

_DRIFT: Final = RowBinaryLayout(
    [
        ("window_start", "DateTime64(3)"),
        ("window_end", "DateTime64(3)"),
        ("value", "Float64"),
        ("threshold", "Float64"),
        ("breached", "Bool"),
        ("events", "UInt64"),
        ("model_version", "LowCardinality(String)"),
        ("feature", "LowCardinality(String)"),
        ("measure", "LowCardinality(String)"),
    ]
)
_QUALITY: Final = RowBinaryLayout(
    [
        ("window_start", "DateTime64(3)"),
        ("window_end", "DateTime64(3)"),
        ("as_of", "DateTime64(3)"),
        ("events", "UInt64"),
        ("mature", "UInt64"),
        ("flagged", "UInt64"),
        ("precision", "Float64"),
        ("recall", "Float64"),
        ("precision_corrected", "Float64"),
        ("recall_corrected", "Float64"),
        ("model_version", "LowCardinality(String)"),
    ]
)


@dataclass(frozen=True, slots=True)
class WindowCount:
    """How many rows a model decided in one window; `window` is its start over its length."""

    window: int
    model_version: str
    rows: int


@dataclass(frozen=True, slots=True)
class WindowSample:
    """Rows of one model, at most as many a window as were asked for.

    `features` is float64 (n, k), `window` and `score` of length n.
    """

    window: NDArray[np.int64]
    score: NDArray[np.float64]
    features: NDArray[np.float64]


class DriftStore:
    """Reads scored rows and labels by window and writes what was found. One thread at a time."""

    def __init__(self, settings: ClickHouseSettings) -> None:
        self._client = ClickHouseClient(settings)
        self._writer = ClickHouseWriter(settings, give_up_after=5)

    def newest_event_ms(self) -> int | None:
        """Return the latest event time scored, None when there is no row."""
        row = self._client.rows(
            "SELECT max(event_time_ms) AS newest, count() AS n FROM scored_transactions_raw"
        )[0]
        return int(row["newest"]) if int(row["n"]) else None

    def compared_until_ms(self, window_ms: int) -> int | None:
        """Return the end of the newest window of that length compared, None when none was."""
        row = self._client.rows(
            "SELECT toUnixTimestamp64Milli(max(window_end)) AS end, count() AS n FROM drift "
            "WHERE date_diff('millisecond', window_start, window_end) = {length:Int64}",
            {"length": window_ms},
        )[0]
        return int(row["end"]) if int(row["n"]) else None

    def counts(self, window_ms: int, first_ms: int, end_ms: int) -> list[WindowCount]:
        """Return the rows a window and model, of event times from `first_ms` to below `end_ms`."""
        found = self._client.rows(
            "SELECT intDiv(event_time_ms, {length:Int64}) AS window, model_version, count() AS n "
            "FROM scored_transactions "
            "WHERE event_time_ms >= {first:Int64} AND event_time_ms < {end:Int64} "
            "GROUP BY window, model_version ORDER BY window, model_version",
            {"length": window_ms, "first": first_ms, "end": end_ms},
        )
        return [WindowCount(int(r["window"]), r["model_version"], int(r["n"])) for r in found]

    def sample(
        self,
        model_version: str,
        features: Sequence[str],
        window_ms: int,
        first_ms: int,
        end_ms: int,
        most: int,
    ) -> WindowSample:
        """Return at most `most` rows a window, those whose event ids hash lowest.

        The choice depends on the events alone, so comparing a window again finds the same.
        """
        columns = ", ".join(f"`{name}`" for name in features)
        query = (
            f"SELECT toInt64(intDiv(event_time_ms, {{length:Int64}})) AS window, score, {columns} "  # noqa: S608 - names of the feature set
            "FROM scored_transactions "
            "WHERE event_time_ms >= {first:Int64} AND event_time_ms < {end:Int64} "
            "AND model_version = {model:String} "
            "ORDER BY cityHash64(event_id) LIMIT {most:UInt64} BY window"
        )
        rows = self._client.table(
            query,
            [("window", "<i8"), ("score", "<f8"), ("features", "<f8", (len(features),))],
            {
                "length": window_ms,
                "first": first_ms,
                "end": end_ms,
                "model": model_version,
                "most": most,
            },
        )
        return WindowSample(rows["window"].copy(), rows["score"].copy(), rows["features"].copy())

    def judged(self, first_ms: int, end_ms: int) -> list[dict[str, Any]]:
        """Return what decides about quality: rows that were flagged or have a label of fraud.

        Each with `model_version`, `event_time_ms`, `flagged`, `is_fraud` and `labelled_at_ms` (-1
        without a label).
        """
        return self._client.rows(
            "SELECT s.model_version AS model_version, s.event_time_ms AS event_time_ms, "
            "s.decision != 'approve' AS flagged, l.is_fraud AS is_fraud, "
            "if(l.event_id = '', -1, l.labelled_at_ms) AS labelled_at_ms "
            "FROM (SELECT model_version, event_time_ms, decision, event_id FROM "
            "scored_transactions WHERE event_time_ms >= {first:Int64} "
            "AND event_time_ms < {end:Int64}) AS s "
            "LEFT JOIN (SELECT event_id, is_fraud, labelled_at_ms FROM labels "
            "WHERE event_time_ms >= {first:Int64} AND event_time_ms < {end:Int64}) AS l "
            "ON s.event_id = l.event_id WHERE flagged OR is_fraud",
            {"first": first_ms, "end": end_ms},
        )

    def write_drift(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Keep the rows of `models.drift.drift_rows`; writing a window again replaces it."""
        self._write(DRIFT_TABLE, _DRIFT, rows, ("model_version", "feature", "measure"))

    def write_quality(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Keep rows of table `model_quality`."""
        self._write(QUALITY_TABLE, _QUALITY, rows, ("model_version",))

    def _write(
        self,
        table: str,
        layout: RowBinaryLayout,
        rows: Sequence[Mapping[str, Any]],
        texts: tuple[str, ...],
    ) -> None:
        if not rows:
            return
        columns = {
            name: StringColumn.from_texts([row[name] for row in rows])
            if name in texts
            else np.array([row[name] for row in rows])
            for name in rows[0]
        }
        self._writer.insert(table, layout, len(rows), layout.pack(columns, len(rows)))

    def close(self) -> None:
        """Close the connections."""
        self._client.close()
        self._writer.close()
