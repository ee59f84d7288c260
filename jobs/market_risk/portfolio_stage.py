"""Last stage: positions, P&L, exposure, VaR, limits and back-tests by firm.

In: fills, marks and reference records from the first stage. Out: limit alerts and dead letters for
Kafka; fills, positions, measures, VaR, stress, limits and forecasts for ClickHouse.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

from connectors.frames import kafka_packet, write_frame
from jobs.market_risk.alerts import Origin, limit_alert
from jobs.market_risk.instrument_shard import unpack_marks
from jobs.market_risk.intake import MarketBatch, Refusal, Topic, describe
from jobs.market_risk.limits import Status
from jobs.market_risk.parts import now_ms
from jobs.market_risk.portfolio_rows import EvaluationRows, fill_rows, forecast_rows
from jobs.market_risk.portfolio_shard import PortfolioShard
from jobs.market_risk.replay_log import ReplayLog
from schemas.errors import RecordError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from jobs.market_risk.daily import DayResult
    from jobs.market_risk.engine import Evaluation, MarkColumns
    from jobs.market_risk.parts import MarketParts
    from jobs.stage import Metrics, StateMap

__all__ = ["PortfolioStage"]


class PortfolioStage:
    """Everything that is measured of a firm."""

    def __init__(self, parts: MarketParts) -> None:
        self._parts = parts

    def open(self, metrics: Metrics) -> None:
        """Read the contracts, compile and warm the kernels."""
        self._metrics = metrics
        self._intake = self._parts.intake()
        self._decoders = self._parts.reference_decoders()
        self._dead_letters = self._parts.dead_letters("portfolio")
        self._alerts = self._parts.encoder("limit_alerts", "alert")
        self._alert_topic = self._parts.settings.kafka.topics.name("limit_alerts")
        self._config = self._parts.engine_config()
        self._shards: dict[int, tuple[PortfolioShard, ReplayLog]] = {}
        self._rows: dict[int, EvaluationRows] = {}
        self._breach_model = self._parts.breach_model()
        self._parts.warm()

    def process(self, shard: int, batch: bytes, state: StateMap) -> bytes:
        """Return packets: alerts, dead letters and rows."""
        began = time.perf_counter()
        if shard not in self._shards:
            self._shards[shard] = self._open_shard(state)
        unit, log = self._shards[shard]
        read, repeated, days = self._apply(unit, batch, shard)
        evaluation = unit.evaluate()
        log.append(batch, unit.snapshot)
        stamp = now_ms()
        packets = [
            fill_rows(read, repeated),
            forecast_rows(days, stamp),
            self._rows.setdefault(shard, EvaluationRows()).pack(
                unit.engine, evaluation, self._breach_chances(unit, evaluation), stamp
            ),
            kafka_packet([*self._limit_alerts(read, evaluation, stamp), *self._letters(read)]),
        ]
        self._count(read, evaluation, stamp, began)
        return b"".join(packets)

    def _open_shard(self, state: StateMap) -> tuple[PortfolioShard, ReplayLog]:
        log = ReplayLog(state)
        snapshot = log.snapshot()
        unit = (
            PortfolioShard(self._config)
            if snapshot is None
            else PortfolioShard.restore(self._config, snapshot)
        )
        for batch in log.batches():
            # An evaluation moves limits, so it is part of what is replayed.
            self._apply(unit, batch, -1)
            unit.evaluate()
        return unit, log

    def _apply(
        self, unit: PortfolioShard, batch: bytes, shard: int
    ) -> tuple[MarketBatch, set[int], list[DayResult]]:
        read = self._intake.read(batch)
        marks = {
            row: unpack_marks(read.frames.value.bytes_at(row) or b"")
            for row in np.flatnonzero(read.topic == Topic.MARKS).tolist()
        }
        days: list[DayResult] = []
        repeated: set[int] = set()
        done = 0
        # A batch may hold several days: each is judged where it ends, however batches are cut.
        for row, time_ms in unit.day_starts(read.parts[Topic.FILL], marks):
            repeated |= self._apply_rows(unit, read, marks, range(done, row), shard)
            days += unit.begin(time_ms)
            done = row
        repeated |= self._apply_rows(unit, read, marks, range(done, len(read)), shard)
        return read, repeated, days

    def _apply_rows(
        self,
        unit: PortfolioShard,
        read: MarketBatch,
        marks: Mapping[int, MarkColumns],
        rows: range,
        shard: int,
    ) -> set[int]:
        fills = read.parts[Topic.FILL].within(rows)
        repeated: set[int] = set()
        done = rows.start
        topic = read.topic[rows.start : rows.stop]
        references = rows.start + np.flatnonzero(
            (topic >= Topic.INSTRUMENT) & (topic < Topic.MARKS)
        )
        for row in [*references.tolist(), rows.stop]:
            part = fills.within(range(done, row))
            if len(part):
                applied, foreign = unit.add_fills(part)
                read.refuse(part.rows[foreign], Refusal.BAD_SCALE)
                read.refuse(part.rows[applied.rejected], Refusal.AMOUNT_OVERFLOW)
                repeated |= set(part.rows[~applied.fresh & ~foreign & ~applied.rejected].tolist())
            if row < rows.stop:
                kind = Topic(int(read.topic[row]))
                try:
                    record = self._decoders[kind].decode(read.frames.value.bytes_at(row))
                    unit.learn(kind, record)
                except RecordError:
                    # Every shard has a copy of a reference record; the first writes the dead
                    # letter.
                    if shard <= 0:
                        read.reason[row] = Refusal.BAD_REFERENCE
            done = row + 1
        for row, mark in marks.items():
            if row in rows:
                unit.put_marks(mark)
        return repeated

    def _breach_chances(
        self, unit: PortfolioShard, evaluation: Evaluation | None
    ) -> NDArray[np.float64]:
        # The model's chance of a breach for each limit, in order of firm and limit id.
        books = [book for _, book in sorted(unit.engine.limits.items())]
        if evaluation is None or self._breach_model is None or not books:
            return np.empty(0)
        features = np.concatenate([book.breach_features() for book in books])
        chances = np.full(len(features), np.nan)
        known = np.isfinite(features).all(axis=1)
        chances[known] = self._breach_model.score(features[known])
        # What is breached is no longer to be foreseen.
        status = [row[1] for book in books for row in book.rows()]
        chances[known & (np.array(status, np.int64) == Status.BREACH)] = 1.0
        return chances

    def _limit_alerts(
        self, read: MarketBatch, evaluation: Evaluation | None, stamp: int
    ) -> list[bytes]:
        if evaluation is None or not evaluation.transitions:
            return []
        source = read.frames
        # What the batch held last is what the evaluation was made for.
        origin = Origin(
            source.topic.text_at(len(read) - 1) or "",
            int(source.partition[-1]),
            int(source.offset[-1]),
            int(source.timestamp_ms.max()),
            int(source.ingest_ms.max()),
            stamp,
        )
        frames = []
        for firm, transition in evaluation.transitions:
            alert = limit_alert(firm, transition, self._config.base_currency, origin)
            frames.append(
                write_frame(
                    self._alert_topic,
                    alert["entity_id"].encode(),
                    self._alerts.encode(alert),
                    headers=(("alert_id", alert["alert_id"].encode()),),
                    timestamp_ms=stamp,
                )
            )
        self._metrics.count("limit_alerts", len(frames))
        return frames

    def _letters(self, read: MarketBatch) -> list[bytes]:
        letters = []
        for row in np.flatnonzero(read.reason).tolist():
            code, detail = describe(int(read.reason[row]))
            self._metrics.count(f"dead_letters_{code}")
            letters.append(self._dead_letters.frame(read.frames, row, code, detail))
        self._metrics.count("dead_letters", len(letters))
        return letters

    def _count(
        self, read: MarketBatch, evaluation: Evaluation | None, stamp: int, began: float
    ) -> None:
        metrics = self._metrics
        fills = read.parts[Topic.FILL].rows
        metrics.count("fills", len(fills))
        metrics.count("batches")
        if evaluation is not None:
            metrics.count("evaluations")
            metrics.gauge("positions", len(evaluation.firm))
            metrics.gauge("unpriced", int((~evaluation.positions.priced).sum()))
        if len(fills):
            oldest = int(read.frames.timestamp_ms[fills].min())
            if oldest >= 0:
                metrics.observe_ms("publish_to_position_ms", stamp - oldest, len(fills))
        metrics.observe_ms("portfolio_stage_ms", (time.perf_counter() - began) * 1000)
