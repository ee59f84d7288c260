"""The tables of the market risk job and how their rows are packed (connectors/ddl/0101 to 0103)."""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, Final

from connectors.row_binary import RowBinaryLayout
from connectors.tables import CONTROL_TABLE, control_layout
from jobs.row_tables import RowTables, table_rows

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from connectors.row_binary import PackedValue

__all__ = ["LAYOUTS", "MarketRows", "Table", "packed_rows"]


class Table(IntEnum):
    """Numbers of the tables in row packets."""

    BARS = 0
    MARKS = 1
    FILLS = 2
    POSITIONS = 3
    MEASURES = 4
    VAR = 5
    STRESS = 6
    LIMITS = 7
    FORECASTS = 8
    CONTROL = 9


def _columns(numbers: str, kind: str) -> list[tuple[str, str]]:
    return [(name, kind) for name in numbers.split()]


_REAL: Final = "Float64"
_WHOLE: Final = "Int64"

LAYOUTS: Final[dict[Table, tuple[str, RowBinaryLayout]]] = {
    Table.BARS: (
        "risk_bars_raw",
        RowBinaryLayout(
            [
                *_columns("interval_ms start_ms trades", _WHOLE),
                *_columns("open high low close volume vwap moving_average", _REAL),
                *_columns("realised_volatility ewma_volatility", _REAL),
                ("instrument_id", "String"),
            ]
        ),
    ),
    Table.MARKS: (
        "risk_marks_raw",
        RowBinaryLayout(
            [
                *_columns("last bid ask mid spread volatility", _REAL),
                *_columns("last_ms quote_ms revision ingested_at_ms", _WHOLE),
                ("instrument_id", "String"),
            ]
        ),
    ),
    Table.FILLS: (
        "risk_fills_raw",
        RowBinaryLayout(
            [
                *_columns("event_time_ms kafka_offset published_at_ms ingested_at_ms", _WHOLE),
                ("kafka_partition", "Int32"),
                *_columns("quantity price fee", _REAL),
                ("outcome", "Enum8"),
                *_columns("fill_id firm_id desk_id account_id instrument_id", "String"),
                ("kafka_topic", "String"),
            ]
        ),
    ),
    Table.POSITIONS: (
        "risk_positions_raw",
        RowBinaryLayout(
            [
                *_columns("quantity average_price mark value realised unrealised", _REAL),
                *_columns("fifo_realised fifo_unrealised fees component_var", _REAL),
                *_columns("component_es marginal_var delta gamma vega theta rho", _REAL),
                *_columns("mark_ms event_time_ms sequence evaluated_at_ms", _WHOLE),
                ("priced", "Bool"),
                ("stale", "Bool"),
                *_columns("firm_id desk_id account_id instrument_id", "String"),
            ]
        ),
    ),
    Table.MEASURES: (
        "risk_measures_raw",
        RowBinaryLayout(
            [
                *_columns("gross net leverage realised unrealised fees pnl", _REAL),
                *_columns("value_at_risk expected_shortfall margin", _REAL),
                *_columns("delta gamma vega theta rho", _REAL),
                *_columns("bucket_ms positions unpriced stale sequence evaluated_at_ms", _WHOLE),
                *_columns("firm_id scope scope_id", "String"),
            ]
        ),
    ),
    Table.VAR: (
        "risk_var_raw",
        RowBinaryLayout(
            [
                *_columns("level value_at_risk expected_shortfall", _REAL),
                *_columns("bucket_ms evaluated_at_ms", _WHOLE),
                *_columns("firm_id scope scope_id method", "String"),
            ]
        ),
    ),
    Table.STRESS: (
        "risk_stress_raw",
        RowBinaryLayout(
            [
                ("pnl", _REAL),
                ("evaluated_at_ms", _WHOLE),
                *_columns("firm_id scope scope_id scenario_id", "String"),
            ]
        ),
    ),
    Table.LIMITS: (
        "risk_limits_raw",
        RowBinaryLayout(
            [
                *_columns("value warning breach breach_probability", _REAL),
                *_columns("event_time_ms evaluated_at_ms", _WHOLE),
                ("status", "Enum8"),
                ("acknowledged", "Bool"),
                *_columns("firm_id limit_id scope scope_id measure breach_model", "String"),
            ]
        ),
    ),
    Table.FORECASTS: (
        "risk_forecasts_raw",
        RowBinaryLayout(
            [
                *_columns("level forecast pnl kupiec_lr kupiec_p", _REAL),
                *_columns("christoffersen_lr christoffersen_p coverage_lr coverage_p", _REAL),
                ("multiplier_increase", _REAL),
                *_columns("day_ms observations exceptions evaluated_at_ms", _WHOLE),
                ("exception", "Bool"),
                *_columns("firm_id method zone", "String"),
            ]
        ),
    ),
    Table.CONTROL: (CONTROL_TABLE, control_layout()),
}
"""Name and layout of each table."""


def packed_rows(table: Table, columns: Mapping[str, PackedValue], count: int) -> bytes:
    """Return the packet of `count` rows of a table; no rows, no bytes."""
    if count == 0:
        return b""
    return table_rows(table, count, LAYOUTS[table][1].pack(columns, count))


class MarketRows(RowTables):
    """The end of the ClickHouse branch of this job."""

    def tables(self) -> Sequence[tuple[str, RowBinaryLayout]]:
        """Return name and layout of each table, by its number in row packets."""
        return [LAYOUTS[table] for table in Table]
