"""Rows for ClickHouse from what the last stage found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from jobs.market_risk.backtest import LikelihoodRatio
from jobs.market_risk.exposure import BASE_SCALE
from jobs.market_risk.intake import Topic, rows_of
from jobs.market_risk.revaluation import GREEKS
from jobs.market_risk.tables import Table, packed_rows
from schemas.columns import StringColumn

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from jobs.market_risk.daily import DayResult
    from jobs.market_risk.engine import Evaluation, RiskEngine
    from jobs.market_risk.grouping import GroupName
    from jobs.market_risk.intake import MarketBatch
    from jobs.market_risk.limits import Limit, Status
    from jobs.market_risk.revaluation import UnitGreeks

__all__ = ["EvaluationRows", "WrittenRows", "fill_rows", "forecast_rows"]

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
    unknown = LikelihoodRatio(0.0, 0, 1.0)
    independence = [report.independence or unknown for report in reports]
    coverage = [report.conditional_coverage or unknown for report in reports]
    lights = [report.traffic_light for report in reports]
    return packed_rows(
        Table.FORECASTS,
        {
            "firm_id": text([day.firm for day in days]),
            "method": text([day.method for day in days]),
            "level": np.array([day.level for day in days]),
            "day_ms": np.array([day.day * 86_400_000 for day in days]),
            "forecast": np.array([day.forecast for day in days]),
            "pnl": np.array([day.pnl for day in days]),
            "exception": np.array([day.exception for day in days]),
            "observations": np.array([report.observations for report in reports]),
            "exceptions": np.array([report.exceptions for report in reports]),
            "kupiec_lr": np.array([report.kupiec.statistic for report in reports]),
            "kupiec_p": np.array([report.kupiec.p_value for report in reports]),
            "christoffersen_lr": np.array([one.statistic for one in independence]),
            "christoffersen_p": np.array([one.p_value for one in independence]),
            "coverage_lr": np.array([one.statistic for one in coverage]),
            "coverage_p": np.array([one.p_value for one in coverage]),
            "zone": text([light.zone for light in lights]),
            "multiplier_increase": np.array(
                [light.multiplier_increase for light in lights], np.float64
            ),
            "evaluated_at_ms": stamp,
        },
        len(days),
    )


@dataclass(frozen=True, slots=True)
class WrittenRows:
    """Packets of an evaluation, and the positions and groups that they have rows of."""

    packets: bytes
    positions: NDArray[np.intp]
    groups: NDArray[np.intp]


class EvaluationRows:
    """Makes the packets of positions, measures, VaR, stress and limits, of what changed only.

    What was written before is remembered here and nowhere else: after a restart everything is
    written once more, under the same keys.
    """

    def __init__(self) -> None:
        self._written: dict[str, tuple[object, NDArray[np.float64]]] = {}

    def pack(
        self,
        engine: RiskEngine,
        found: Evaluation | None,
        breach_chances: NDArray[np.float64],
        breach_model: str,
        stamp: int,
    ) -> WrittenRows:
        """Return the packets of an evaluation and which rows are in them; none, no bytes.

        Args:
            engine: that was evaluated.
            found: what it found.
            breach_chances: of each limit, in order of firm and limit id; empty for unknown.
            breach_model: the version that they are from.
            stamp: wall clock, ms.
        """
        if found is None:
            nothing = np.empty(0, np.intp)
            return WrittenRows(b"", nothing, nothing)
        money, groups = found.positions, found.groups
        positions = self._changed(
            "positions",
            None,
            [
                *(money.quantity, money.value, money.realised, money.unrealised, money.fees),
                found.stale,
            ],
        )
        stale = found.grouping.total(found.stale.astype(np.int64))
        measured = self._changed(
            "measures",
            # Groups are numbered anew when a position is opened.
            found.grouping,
            [
                groups.gross,
                groups.net,
                groups.realised,
                groups.unrealised,
                groups.fees,
                stale,
                *groups.var,
            ],
        )
        packets = [
            _positions(engine, found, stamp, positions),
            _measures(engine, found, stale, stamp, measured),
            self._limits(engine, found, breach_chances, breach_model, stamp),
        ]
        return WrittenRows(b"".join(packets), positions, measured)

    def _changed(
        self, name: str, version: object, columns: Sequence[NDArray[np.generic]]
    ) -> NDArray[np.intp]:
        now = np.stack([column.astype(np.float64) for column in columns], axis=1)
        held, before = self._written.get(name, (None, now[:0]))
        self._written[name] = (version, now)
        if held is not version or before.shape[1:] != now.shape[1:]:
            before = now[:0]
        changed = np.ones(len(now), np.bool_)
        changed[: len(before)] = np.any(now[: len(before)] != before, axis=1)
        return np.flatnonzero(changed)

    def _limits(
        self,
        engine: RiskEngine,
        found: Evaluation,
        chances: NDArray[np.float64],
        model: str,
        stamp: int,
    ) -> bytes:
        rows = [(firm, *row) for firm, book in sorted(engine.limits.items()) for row in book.rows()]
        names = (model, *((row[0], row[1].limit_id, row[1].revision) for row in rows))
        held = self._written.get("limits", ((), np.empty(0)))[0]
        values = np.array([[row[3], int(row[2]), row[4]] for row in rows], np.float64).reshape(
            -1, 3
        )
        if len(chances) != len(rows):
            chances = np.full(len(rows), np.nan)
        changed = self._changed(
            "limits",
            held if held == names else names,
            # An unknown chance is no change from an unknown one.
            [*(values[:, k] for k in range(3)), np.nan_to_num(chances, nan=-1.0)],
        )
        chosen = [rows[place] for place in changed.tolist()]
        return _limits(chosen, chances[changed], model, found, stamp)


def _positions(engine: RiskEngine, found: Evaluation, stamp: int, rows: NDArray[np.intp]) -> bytes:
    money = found.positions
    return packed_rows(
        Table.POSITIONS,
        {
            "firm_id": engine.firms.column(found.firm[rows]),
            "desk_id": engine.desks.column(found.desk[rows]),
            "account_id": engine.accounts.column(found.account[rows]),
            "instrument_id": engine.instruments.column(money.instrument[rows]),
            "quantity": money.quantity[rows],
            "average_price": found.average_price[rows],
            "mark": found.mark[rows],
            "mark_ms": found.mark_ms[rows],
            "value": money.value[rows] / _BASE,
            "realised": money.realised[rows] / _BASE,
            "unrealised": money.unrealised[rows] / _BASE,
            "fifo_realised": found.fifo_realised[rows] / _BASE,
            "fifo_unrealised": found.fifo_unrealised[rows] / _BASE,
            "fees": money.fees[rows] / _BASE,
            "component_var": found.component_var[rows],
            "component_es": found.component_es[rows],
            "marginal_var": _marginal(found, rows),
            **_greeks(found.greeks, rows),
            "priced": money.priced[rows],
            "stale": found.stale[rows],
            "event_time_ms": found.event_time_ms,
            "sequence": found.sequence,
            "evaluated_at_ms": stamp,
        },
        len(rows),
    )


def _measures(
    engine: RiskEngine,
    found: Evaluation,
    stale: NDArray[np.int64],
    stamp: int,
    rows: NDArray[np.intp],
) -> bytes:
    groups, names = found.groups, found.grouping.names
    bucket = found.event_time_ms // _BUCKET_MS * _BUCKET_MS
    unknown = np.full(len(names), np.nan)
    var = groups.var[-1] if len(groups.var) else unknown
    shortfall = groups.expected_shortfall[-1] if len(groups.var) else unknown
    packets = [
        packed_rows(
            Table.MEASURES,
            {
                **_who(names, rows),
                "bucket_ms": bucket,
                "gross": groups.gross[rows] / _BASE,
                "net": groups.net[rows] / _BASE,
                "leverage": groups.gross[rows] / _BASE / engine.config.equity,
                "realised": groups.realised[rows] / _BASE,
                "unrealised": groups.unrealised[rows] / _BASE,
                "fees": groups.fees[rows] / _BASE,
                "pnl": (groups.realised + groups.unrealised - groups.fees)[rows] / _BASE,
                "value_at_risk": var[rows],
                "expected_shortfall": shortfall[rows],
                "margin": groups.margin[rows],
                **_greeks(found.group_greeks, rows),
                "positions": groups.positions[rows],
                "unpriced": groups.unpriced[rows],
                "stale": stale[rows],
                "sequence": found.sequence,
                "evaluated_at_ms": stamp,
            },
            len(rows),
        )
    ]
    # Of single instruments the measures hold what matters; the rest would be a thousand rows a
    # batch.
    wide = rows[rows >= found.grouping.instruments]
    who = _who(names, wide)
    packets.append(_var(engine, found, stamp, wide))
    packets += [
        packed_rows(
            Table.STRESS,
            {
                **who,
                "scenario_id": scenario,
                "pnl": groups.stress[place, wide],
                "evaluated_at_ms": stamp,
            },
            len(wide),
        )
        for place, scenario in enumerate(found.stress_ids)
    ]
    return b"".join(packets)


def _var(engine: RiskEngine, found: Evaluation, stamp: int, wide: NDArray[np.intp]) -> bytes:
    # Method, level, group: the order in which the arrays are laid out.
    place = wide - found.grouping.instruments
    groups, levels = found.groups, engine.config.levels[: len(found.groups.var)]
    if not levels:
        return b""
    methods = engine.config.methods
    each, count = len(levels) * len(wide), len(methods) * len(levels) * len(wide)
    column = np.tile(np.repeat(levels, len(wide)), len(methods))
    return packed_rows(
        Table.VAR,
        {
            **_who(found.grouping.names, np.tile(wide, len(methods) * len(levels))),
            "method": StringColumn.from_texts([name for name in methods for _ in range(each)]),
            "level": column,
            "bucket_ms": found.event_time_ms // _BUCKET_MS * _BUCKET_MS,
            "value_at_risk": groups.method_var[:, :, place].ravel(),
            "expected_shortfall": groups.method_shortfall[:, :, place].ravel(),
            "evaluated_at_ms": stamp,
        },
        count,
    )


def _marginal(found: Evaluation, rows: NDArray[np.intp]) -> NDArray[np.float64]:
    value = found.positions.value[rows] / _BASE
    blank = np.full(len(rows), np.nan)
    return np.divide(found.component_var[rows], value, out=blank, where=value != 0)


def _greeks(greeks: UnitGreeks, rows: NDArray[np.intp]) -> dict[str, NDArray[np.float64]]:
    return {name: getattr(greeks, name)[rows] for name in GREEKS}


def _who(names: Sequence[GroupName], rows: NDArray[np.intp]) -> dict[str, StringColumn]:
    chosen = [names[row] for row in rows.tolist()]
    return {
        key: StringColumn.from_texts([name[part] for name in chosen])
        for part, key in enumerate(("firm_id", "scope", "scope_id"))
    }


def _limits(
    rows: Sequence[tuple[str, Limit, Status, float, bool]],
    chances: NDArray[np.float64],
    model: str,
    found: Evaluation,
    stamp: int,
) -> bytes:
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
            "breach_probability": chances,
            "breach_model": text([model] * len(rows)),
            "status": np.array([int(row[2]) for row in rows], np.int8),
            "acknowledged": np.array([row[4] for row in rows], np.bool_),
            "event_time_ms": found.event_time_ms,
            "evaluated_at_ms": stamp,
        },
        len(rows),
    )
