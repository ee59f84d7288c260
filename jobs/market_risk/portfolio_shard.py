"""One shard of the last stage: the risk engine and the daily back-tests of its firms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jobs.market_risk.daily import DailyBacktest, DayResult, Forecaster, day_starts
from jobs.market_risk.engine import EngineConfig, Evaluation, FillColumns, MarkColumns, RiskEngine
from jobs.market_risk.engine_state import (
    pack_parts,
    restore_engine,
    snapshot_engine,
    unpack_parts,
)
from jobs.market_risk.exposure import BASE_SCALE
from jobs.market_risk.intake import Part, Topic
from jobs.market_risk.limits import Limit
from jobs.market_risk.measures import GroupMeasures
from jobs.market_risk.positions import AppliedFills
from jobs.market_risk.reference import Instrument
from jobs.market_risk.stress import Scenario

__all__ = ["PortfolioShard"]


class PortfolioShard:
    """The state of one shard, a function of the calls made and their order."""

    def __init__(self, config: EngineConfig) -> None:
        self.engine = RiskEngine(config)
        self.daily = DailyBacktest(_forecasters(config))

    def day_starts(self, fills: Part, marks: Mapping[int, MarkColumns]) -> list[tuple[int, int]]:
        """Return the rows of a batch that begin a UTC day, and the event time of each.

        Args:
            fills: the batch's fills, rows ascending.
            marks: the batch's marks by row.
        """
        newest = [
            max(int(one.last_ms.max(initial=-1)), int(one.quote_ms.max(initial=-1)))
            for one in marks.values()
        ]
        rows = np.concatenate([fills.rows, np.fromiter(marks, np.int64, len(marks))])
        times = np.concatenate([fills.integers("event_time_ms"), np.array(newest, np.int64)])
        return day_starts(rows, times, self.daily.day)

    def begin(self, event_time_ms: int) -> list[DayResult]:
        """Judge the day that ended if this event time begins another; call it before the event."""
        if not self.daily.crosses(event_time_ms):
            return []
        measured = self.engine.evaluate()
        if measured is None:
            return self.daily.roll(event_time_ms, {}, {})
        groups, base = measured.groups, 10.0**BASE_SCALE
        pnl, risk = {}, {}
        for place, (firm, scope, _) in enumerate(measured.grouping.names):
            if scope == "firm":
                total = groups.realised[place] + groups.unrealised[place] - groups.fees[place]
                pnl[firm] = int(total) / base
                risk[firm] = self._forecasts(groups, place - measured.grouping.instruments)
        return self.daily.roll(event_time_ms, pnl, risk)

    def add_fills(self, fills: Part) -> tuple[AppliedFills, NDArray[np.bool_]]:
        """Add fills in order; return what became of them and which have a foreign scale."""
        return self.engine.add_fills(
            FillColumns(
                fill_id=fills.text("fill_id"),
                firm_id=fills.text("firm_id"),
                desk_id=fills.text("desk_id"),
                account_id=fills.text("account_id"),
                instrument_id=fills.text("instrument_id"),
                event_time_ms=fills.integers("event_time_ms"),
                quantity=fills.integers("quantity"),
                quantity_scale=fills.integers("quantity_scale"),
                price=fills.integers("price"),
                price_scale=fills.integers("price_scale"),
                fee=fills.integers("fee"),
            )
        )

    def put_marks(self, marks: MarkColumns) -> None:
        """Take the newest market of instruments."""
        self.engine.put_marks(marks)

    def learn(self, topic: Topic, record: Mapping[str, Any]) -> None:
        """Take a reference record.

        Raises:
            RecordError: if it cannot be used; nothing changed.
        """
        if topic is Topic.INSTRUMENT:
            self.engine.put_instrument(Instrument.from_record(record))
        elif topic is Topic.SCENARIO:
            self.engine.put_scenario(
                Scenario(
                    record["scenario_id"], record["kind"], record["event_time_ms"], record["shocks"]
                )
            )
        elif topic is Topic.FX_RATE:
            self.engine.put_rate(
                record["currency"],
                record["base_currency"],
                record["rate"],
                record["event_time_ms"],
            )
        else:
            terms = {name: value for name, value in record.items() if name != "firm_id"}
            self.engine.put_limit(record["firm_id"], Limit(**terms))

    def evaluate(self) -> Evaluation | None:
        """Measure everything if anything moved enough; else None."""
        return self.engine.evaluate() if self.engine.is_material() else None

    def snapshot(self) -> bytes:
        """Return the whole state; `restore` of it continues to the bit."""
        return pack_parts([snapshot_engine(self.engine), self.daily.snapshot()])

    @staticmethod
    def restore(config: EngineConfig, blob: bytes) -> PortfolioShard:
        """Return the shard that `snapshot` described.

        Raises:
            ConfigurationError: if another version wrote the blob.
        """
        engine, daily = unpack_parts(blob)
        shard = PortfolioShard(config)
        shard.engine = restore_engine(config, engine)
        shard.daily = DailyBacktest.restore(_forecasters(config), daily)
        return shard

    def _forecasts(self, groups: GroupMeasures, place: int) -> list[float]:
        found: list[float] = groups.method_var[:, :, place].ravel().tolist()
        return found


def _forecasters(config: EngineConfig) -> tuple[Forecaster, ...]:
    return tuple((method, level) for method in config.methods for level in config.levels)
