"""Last stage: positions, P&L, exposure, VaR, limits and back-tests by firm.

In: fills, marks and reference records from the first stage. Out: limit alerts and dead letters for
Kafka; fills, positions, measures, VaR, stress, limits and forecasts for ClickHouse.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

import numpy as np

from connectors.frames import kafka_packet, write_frame
from jobs.control_rows import control_columns
from jobs.market_risk.alerts import Origin, limit_alert
from jobs.market_risk.breach_scorer import BreachScorer
from jobs.market_risk.instrument_shard import unpack_marks
from jobs.market_risk.intake import MarketBatch, Part, Refusal, Topic, describe
from jobs.market_risk.limits import Status
from jobs.market_risk.parts import now_ms
from jobs.market_risk.portfolio_rows import EvaluationRows, fill_rows, forecast_rows
from jobs.market_risk.portfolio_shard import PortfolioShard
from jobs.market_risk.replay_log import ReplayLog
from jobs.market_risk.tables import Table, packed_rows
from models.control import ControlRecord
from schemas.errors import RecordError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from connectors.frames import FrameBatch
    from jobs.market_risk.daily import DayResult
    from jobs.market_risk.engine import Evaluation
    from jobs.market_risk.live import LiveRows
    from jobs.market_risk.parts import MarketParts
    from jobs.market_risk.prices import MarkColumns
    from jobs.stage import Metrics, StateMap

__all__ = ["PortfolioStage"]

# The replay log owns the numbers from 0 up.
_MODEL_KEY: Final = -1


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
        self._control = self._parts.control_decoder()
        self._models = self._parts.models()
        self._champion = self._parts.breach_champion()
        self._shards: dict[int, tuple[PortfolioShard, ReplayLog]] = {}
        self._scorers: dict[int, BreachScorer] = {}
        self._rows: dict[int, tuple[EvaluationRows, LiveRows | None]] = {}
        # An unknown or refused model ends the job here, not at the first limit.
        BreachScorer(self._models, self._champion)
        self._parts.warm()

    def process(self, shard: int, batch: bytes, state: StateMap) -> bytes:
        """Return packets: alerts, dead letters and rows."""
        began = time.perf_counter()
        if shard not in self._shards:
            self._shards[shard] = self._open_shard(state)
            self._scorers[shard] = self._open_scorer(state)
        unit, log = self._shards[shard]
        read, repeated, days = self._apply(unit, batch, shard)
        orders = self._obey(unit, read, shard, state)
        evaluation = unit.evaluate()
        log.append(batch, unit.snapshot)
        stamp = now_ms()
        rows, live = self._rows.setdefault(shard, (EvaluationRows(), self._parts.live_rows()))
        scorer = self._scorers[shard]
        chances = _breach_chances(scorer, unit, evaluation)
        written = rows.pack(unit.engine, evaluation, chances, scorer.version, stamp)
        frames = self._limit_alerts(read, evaluation, stamp) + self._letters(read)
        if live is not None:
            frames += live.fills(_applied(read, repeated), stamp)
            if evaluation is not None:
                frames += live.positions(unit.engine, evaluation, written.positions, stamp)
                frames += live.firms(unit.engine, evaluation, written.groups, stamp)
        packets = [
            # What people wait for leaves first.
            kafka_packet(frames),
            fill_rows(read, repeated),
            forecast_rows(days, stamp),
            written.packets,
            orders,
        ]
        self._count(read, evaluation, stamp, began)
        return b"".join(packets)

    def forget(self, shard: int) -> None:
        """Drop what memory holds of a shard."""
        self._shards.pop(shard, None)
        self._rows.pop(shard, None)

    def letter(self, frames: FrameBatch, row: int, reason: str, detail: str) -> bytes:
        """Return the frame of a dead letter."""
        return self._dead_letters.frame(frames, row, reason, detail)

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
        marks = [
            unpack_marks(read.frames.value.bytes_at(row) or b"")
            for row in np.flatnonzero(read.topic == Topic.MARKS).tolist()
        ]
        repeated = self._apply_rows(unit, read, marks, shard)
        return read, repeated, unit.judge()

    def _apply_rows(
        self,
        unit: PortfolioShard,
        read: MarketBatch,
        marks: Sequence[MarkColumns],
        shard: int,
    ) -> set[int]:
        fills = read.parts[Topic.FILL]
        repeated: set[int] = set()
        done = 0
        references = np.flatnonzero((read.topic >= Topic.INSTRUMENT) & (read.topic < Topic.CONTROL))
        for row in [*references.tolist(), len(read)]:
            part = fills.within(range(done, row))
            if len(part):
                outcome = unit.add_fills(part)
                read.refuse(part.rows[outcome.foreign], Refusal.BAD_SCALE)
                read.refuse(part.rows[outcome.rejected], Refusal.AMOUNT_OVERFLOW)
                repeated |= set(part.rows[outcome.repeated].tolist())
            if row < len(read):
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
        for mark in marks:
            unit.put_marks(mark)
        return repeated

    def _open_scorer(self, state: StateMap) -> BreachScorer:
        scorer = BreachScorer(self._models, self._champion)
        saved = state.get(_MODEL_KEY)
        if saved is not None:
            scorer.restore(saved)
        return scorer

    def _obey(self, unit: PortfolioShard, read: MarketBatch, shard: int, state: StateMap) -> bytes:
        # An evaluation is made once for a whole batch, after all that the batch holds: its orders
        # count for it, whatever came behind them.
        scorer = self._scorers[shard]
        packets = []
        for row in np.flatnonzero(read.topic == Topic.CONTROL).tolist():
            try:
                record = self._control.decode(read.frames.value.bytes_at(row))
            except RecordError:
                # Every shard has a copy of an order; the first writes the dead letter.
                if shard == 0:
                    read.reason[row] = Refusal.BAD_CONTROL
                continue
            control, before = ControlRecord.from_record(record), scorer.version
            outcome = scorer.apply(control)
            saved = scorer.snapshot()
            if outcome.accepted and saved is not None:
                state.put(_MODEL_KEY, saved)
            # Limits show what the new model says at once, not when the next price moves.
            unit.engine.dirty |= scorer.version != before
            self._metrics.count("control_applied" if outcome.accepted else "control_refused")
            columns = control_columns(read.frames, row, shard, control, outcome, now_ms())
            packets.append(packed_rows(Table.CONTROL, columns, 1))
        return b"".join(packets)

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


def _applied(read: MarketBatch, repeated: set[int]) -> Part:
    fills = read.parts[Topic.FILL]
    applied = read.reason[fills.rows] == 0
    if repeated:
        applied &= ~np.isin(fills.rows, list(repeated))
    return fills.take(applied)


def _breach_chances(
    scorer: BreachScorer, unit: PortfolioShard, evaluation: Evaluation | None
) -> NDArray[np.float64]:
    # The model's chance of a breach for each limit, in order of firm and limit id.
    books = [book for _, book in sorted(unit.engine.limits.items())]
    if evaluation is None or not scorer.version or not books:
        return np.empty(0)
    features = np.concatenate([book.breach_features() for book in books])
    chances = np.full(len(features), np.nan)
    known = np.isfinite(features).all(axis=1)
    chances[known] = scorer.score(features[known])
    # What is breached is no longer to be foreseen.
    status = [row[1] for book in books for row in book.rows()]
    chances[known & (np.array(status, np.int64) == Status.BREACH)] = 1.0
    return chances
