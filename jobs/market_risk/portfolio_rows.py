"""Rows for ClickHouse from what the last stage found."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from jobs.market_risk.exposure import BASE_SCALE
from jobs.market_risk.intake import Topic, rows_of
from jobs.market_risk.tables import Table, packed_rows
from schemas.columns import StringColumn

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jobs.market_risk.daily import DayResult
    from jobs.market_risk.engine import Evaluation, RiskEngine
    from jobs.market_risk.intake import MarketBatch

__all__ = ["evaluation_rows", "fill_rows", "forecast_rows"]

_BUCKET_MS: Final = 1_000
_BASE: Final = 10.0**BASE_SCALE


def fill_rows(read: MarketBatch, repeated: set[int]) -> bytes:
    """Return the packet of the blotter: every fill that was not refused."""
    fills = read.parts[Topic.FILL]
    fills = fills.take(read.reason[fills.rows] == 0)
    rows, frames = fills.rows, read.frames
    price = np.power(10.0, fills.integers("price_scale"))
    quantity = np.power(10.0, fills.integers("quantity_scale"))
    return packed_rows(
        Table.FILLS,
        {
            **{
                name: fills.text(name)
                for name in ("fill_id", "firm_id", "desk_id", "account_id", "instrument_id")
            },
            "event_time_ms": fills.integers("event_time_ms"),
            "quantity": fills.integers("quantity") / quantity,
            "price": fills.integers("price") / price,
            "fee": fills.integers("fee") / (price * quantity),
            "outcome": np.array([row in repeated for row in rows.tolist()], np.int8),
            "kafka_topic": rows_of(frames.topic, rows),  # type: ignore[dict-item]
            "kafka_partition": frames.partition[rows],
            "kafka_offset": frames.offset[rows],
            "published_at_ms": frames.timestamp_ms[rows],
            "ingested_at_ms": frames.ingest_ms[rows],
        },
        len(rows),
    )


def forecast_rows(days: Sequence[DayResult], stamp: int) -> bytes:
    """Return the packet of days that were judged."""
    text = StringColumn.from_texts
    reports = [day.report for day in days]
    independence = [report.independence for report in reports]
    return packed_rows(
        Table.FORECASTS,
        {
            "firm_id": text([day.firm for day in days]),
            "level": np.array([day.level for day in days]),
            "day_ms": np.array([day.day * 86_400_000 for day in days]),
            "forecast": np.array([day.forecast for day in days]),
            "pnl": np.array([day.pnl for day in days]),
            "exception": np.array([day.exception for day in days]),
            "observations": np.array([report.observations for report in reports]),
            "exceptions": np.array([report.exceptions for report in reports]),
            "kupiec_lr": np.array([report.kupiec.statistic for report in reports]),
            "kupiec_p": np.array([report.kupiec.p_value for report in reports]),
            "christoffersen_lr": np.array([one.statistic if one else 0.0 for one in independence]),
            "christoffersen_p": np.array([one.p_value if one else 1.0 for one in independence]),
            "zone": text([report.traffic_light.zone for report in reports]),
            "evaluated_at_ms": stamp,
        },
        len(days),
    )


def evaluation_rows(engine: RiskEngine, found: Evaluation | None, stamp: int) -> bytes:
    """Return the packets of positions, measures, VaR, stress and limits; none, no bytes."""
    if found is None:
        return b""
    return b"".join(
        [
            _positions(engine, found, stamp),
            _measures(engine, found, stamp),
            _limits(engine, found, stamp),
        ]
    )


def _positions(engine: RiskEngine, found: Evaluation, stamp: int) -> bytes:
    money = found.positions
    return packed_rows(
        Table.POSITIONS,
        {
            "firm_id": engine.firms.column(found.firm),
            "desk_id": engine.desks.column(found.desk),
            "account_id": engine.accounts.column(found.account),
            "instrument_id": engine.instruments.column(money.instrument),
            "quantity": money.quantity,
            "average_price": found.average_price,
            "mark": found.mark,
            "mark_ms": found.mark_ms,
            "value": money.value / _BASE,
            "realised": money.realised / _BASE,
            "unrealised": money.unrealised / _BASE,
            "fifo_realised": found.fifo_realised / _BASE,
            "fifo_unrealised": found.fifo_unrealised / _BASE,
            "fees": money.fees / _BASE,
            "component_var": found.component_var,
            "priced": money.priced,
            "event_time_ms": found.event_time_ms,
            "sequence": found.sequence,
            "evaluated_at_ms": stamp,
        },
        len(found.firm),
    )


def _measures(engine: RiskEngine, found: Evaluation, stamp: int) -> bytes:
    groups, names = found.groups, found.grouping.names
    count = len(names)
    firm, scope, scope_id = (
        StringColumn.from_texts([name[part] for name in names]) for part in range(3)
    )
    bucket = found.event_time_ms // _BUCKET_MS * _BUCKET_MS
    who = {"firm_id": firm, "scope": scope, "scope_id": scope_id}
    unknown = np.full(count, np.nan)
    packets = [
        packed_rows(
            Table.MEASURES,
            {
                **who,
                "bucket_ms": bucket,
                "gross": groups.gross / _BASE,
                "net": groups.net / _BASE,
                "leverage": groups.gross / _BASE / engine.config.equity,
                "realised": groups.realised / _BASE,
                "unrealised": groups.unrealised / _BASE,
                "fees": groups.fees / _BASE,
                "pnl": (groups.realised + groups.unrealised - groups.fees) / _BASE,
                "value_at_risk": groups.var[-1] if len(groups.var) else unknown,
                "expected_shortfall": (
                    groups.expected_shortfall[-1] if len(groups.var) else unknown
                ),
                "margin": groups.margin,
                "positions": groups.positions,
                "unpriced": groups.unpriced,
                "sequence": found.sequence,
                "evaluated_at_ms": stamp,
            },
            count,
        )
    ]
    # Of single instruments the measures hold what matters; the rest would be a thousand rows a
    # batch.
    wide = slice(found.grouping.instruments, count)
    who = {
        name: StringColumn(column.data, column.starts[wide], column.lengths[wide])
        for name, column in who.items()
    }
    rows = count - found.grouping.instruments
    packets += [
        packed_rows(
            Table.VAR,
            {
                **who,
                "level": level,
                "bucket_ms": bucket,
                "value_at_risk": groups.var[place, wide],
                "expected_shortfall": groups.expected_shortfall[place, wide],
                "evaluated_at_ms": stamp,
            },
            rows,
        )
        for place, level in enumerate(engine.config.levels[: len(groups.var)])
    ]
    packets += [
        packed_rows(
            Table.STRESS,
            {
                **who,
                "scenario_id": scenario,
                "pnl": groups.stress[place, wide],
                "evaluated_at_ms": stamp,
            },
            rows,
        )
        for place, scenario in enumerate(found.stress_ids)
    ]
    return b"".join(packets)


def _limits(engine: RiskEngine, found: Evaluation, stamp: int) -> bytes:
    rows = [(firm, *row) for firm, book in sorted(engine.limits.items()) for row in book.rows()]
    text = StringColumn.from_texts
    limits = [row[1] for row in rows]
    return packed_rows(
        Table.LIMITS,
        {
            "firm_id": text([row[0] for row in rows]),
            "limit_id": text([limit.limit_id for limit in limits]),
            "scope": text([limit.scope for limit in limits]),
            "scope_id": text([limit.scope_id for limit in limits]),
            "measure": text([limit.measure for limit in limits]),
            "value": np.array([row[3] for row in rows], np.float64),
            "warning": np.array([limit.warning for limit in limits], np.float64),
            "breach": np.array([limit.breach for limit in limits], np.float64),
            "breach_probability": np.full(len(rows), np.nan),
            "status": np.array([int(row[2]) for row in rows], np.int8),
            "acknowledged": np.array([row[4] for row in rows], np.bool_),
            "event_time_ms": found.event_time_ms,
            "evaluated_at_ms": stamp,
        },
        len(rows),
    )
