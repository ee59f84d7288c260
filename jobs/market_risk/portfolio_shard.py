"""One shard of the last stage: the risk engine and the daily back-tests of its firms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from jobs.market_risk.closings import Closings
from jobs.market_risk.daily import DailyBacktest, DayResult, Forecaster
from jobs.market_risk.engine import EngineConfig, Evaluation, FillColumns, FillOutcome, RiskEngine
from jobs.market_risk.engine_state import (
    pack_parts,
    restore_engine,
    snapshot_engine,
    unpack_parts,
)
from jobs.market_risk.intake import Part, Topic
from jobs.market_risk.limits import Limit
from jobs.market_risk.prices import MarkColumns
from jobs.market_risk.reference import Instrument
from jobs.market_risk.stress import Scenario

__all__ = ["PortfolioShard"]


class PortfolioShard:
    """The state of one shard, a function of the calls made and their order."""

    def __init__(self, config: EngineConfig) -> None:
        self.engine = RiskEngine(config)
        self.daily = DailyBacktest(_forecasters(config))
        self.closings = Closings()

    def judge(self) -> list[DayResult]:
        """Judge the days that ended, or ended otherwise than known; call it after each batch."""
        return self.daily.put(self.closings.ends(self.engine))

    def add_fills(self, fills: Part) -> FillOutcome:
        """Add fills in order and return what became of them."""
        columns = FillColumns(
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
        self.closings.reach(columns.event_time_ms, self.engine)
        outcome = self.engine.add_fills(columns)
        self.closings.add_fills(outcome, len(self.engine.keys))
        return outcome

    def put_marks(self, marks: MarkColumns) -> None:
        """Take prices of instruments, in any order of event time."""
        times = np.concatenate([marks.last_ms, marks.quote_ms])
        self.closings.reach(times[times >= 0], self.engine)
        instrument, taken = self.engine.put_marks(marks)
        self.closings.put_marks(instrument, taken, len(self.engine.instruments))

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
            currency, rate, at_ms = record["currency"], record["rate"], record["event_time_ms"]
            self.engine.put_rate(currency, record["base_currency"], rate, at_ms)
            self.closings.put_rate(currency, rate, at_ms)
        else:
            terms = {name: value for name, value in record.items() if name != "firm_id"}
            self.engine.put_limit(record["firm_id"], Limit(**terms))

    def evaluate(self) -> Evaluation | None:
        """Measure everything if anything moved enough; else None."""
        return self.engine.evaluate() if self.engine.is_material() else None

    def snapshot(self) -> bytes:
        """Return the whole state; `restore` of it continues to the bit."""
        return pack_parts(
            [snapshot_engine(self.engine), self.daily.snapshot(), self.closings.snapshot()]
        )

    @staticmethod
    def restore(config: EngineConfig, blob: bytes) -> PortfolioShard:
        """Return the shard that `snapshot` described.

        Raises:
            ConfigurationError: if another version wrote the blob.
        """
        engine, daily, *closings = unpack_parts(blob)
        shard = PortfolioShard(config)
        shard.engine = restore_engine(config, engine)
        shard.daily = DailyBacktest.restore(_forecasters(config), daily)
        # A snapshot from before days could change has no closings.
        shard.closings = Closings.restore(closings[0]) if closings else Closings.of(shard.engine)
        return shard


def _forecasters(config: EngineConfig) -> tuple[Forecaster, ...]:
    return tuple((method, level) for method in config.methods for level in config.levels)
