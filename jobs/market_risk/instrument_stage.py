"""First stage: bars, marks and market alerts by instrument; fills are checked and sent on.

In: frames of ticks and quotes (by instrument), fills (by account) and reference records (in every
shard). Out: fills to the shard of their firm, the changed marks to every shard, reference records
to the shard of the same number; alerts and dead letters for Kafka; bars and marks for ClickHouse.
"""

from __future__ import annotations

import struct
import time
from typing import TYPE_CHECKING, Final

import numpy as np

from connectors.frames import kafka_packet, route_frames, shard_of, write_frame
from jobs.market_risk.alerts import Origin, market_alert
from jobs.market_risk.instrument_shard import InstrumentShard, ShardUpdate, pack_marks
from jobs.market_risk.intake import MARKS_TOPIC, MarketBatch, Refusal, Topic, describe
from jobs.market_risk.market import (
    CROSSED,
    MARKET_FLAGS,
    NO_PRICE,
    PRICE_JUMP,
    STALE_BEGINS,
    VOLUME_SPIKE,
)
from jobs.market_risk.parts import now_ms
from jobs.market_risk.replay_log import ReplayLog
from jobs.market_risk.tables import Table, packed_rows

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from connectors.frames import FrameBatch
    from jobs.market_risk.bars import BarRows
    from jobs.market_risk.parts import MarketParts
    from jobs.stage import Metrics, StateMap

__all__ = ["InstrumentStage"]

_PACKET: Final = struct.Struct("<BBHII")
_ALERTING: Final = PRICE_JUMP | VOLUME_SPIKE | CROSSED | STALE_BEGINS
# A feed gone mad raises an alert for every record; a person needs the first ones.
_MAX_ALERTS: Final = 20


class InstrumentStage:
    """Bars and marks; bad records end here."""

    def __init__(self, parts: MarketParts) -> None:
        self._parts = parts

    def open(self, metrics: Metrics) -> None:
        """Read the contracts, compile and warm the kernels."""
        self._metrics = metrics
        self._intake = self._parts.intake()
        self._dead_letters = self._parts.dead_letters("instrument")
        self._alerts = self._parts.encoder("limit_alerts", "alert")
        self._alert_topic = self._parts.settings.kafka.topics.name("limit_alerts")
        self._config = self._parts.shard_config()
        self._shard_count = self._parts.settings.flink.shards
        self._shards: dict[int, tuple[InstrumentShard, ReplayLog]] = {}
        self._parts.warm()

    def process(self, shard: int, batch: bytes, state: StateMap) -> bytes:
        """Return packets: fills, marks, references, alerts, dead letters, rows."""
        began = time.perf_counter()
        if shard not in self._shards:
            self._shards[shard] = self._open_shard(state)
        unit, log = self._shards[shard]
        read = self._intake.read(batch)
        update = self._apply(unit, read)
        if len(update.rows):
            log.append(batch, unit.snapshot)
        packets = [
            self._onward(read, shard),
            self._marks(unit, update),
            self._bar_rows(unit, update.bars),
            self._mark_rows(unit, update, read),
            kafka_packet([*self._market_alerts(unit, update, read), *self._letters(read)]),
        ]
        self._metrics.count("events_in", len(read))
        self._metrics.count("batches")
        self._metrics.gauge("batch_size", len(read))
        self._metrics.observe_ms("instrument_stage_ms", (time.perf_counter() - began) * 1000)
        return b"".join(packets)

    def forget(self, shard: int) -> None:
        """Drop what memory holds of a shard."""
        self._shards.pop(shard, None)

    def letter(self, frames: FrameBatch, row: int, reason: str, detail: str) -> bytes:
        """Return the frame of a dead letter."""
        return self._dead_letters.frame(frames, row, reason, detail)

    def _open_shard(self, state: StateMap) -> tuple[InstrumentShard, ReplayLog]:
        log = ReplayLog(state)
        snapshot = log.snapshot()
        unit = (
            InstrumentShard(self._config)
            if snapshot is None
            else InstrumentShard.restore(self._config, snapshot)
        )
        for batch in log.batches():
            self._apply(unit, self._intake.read(batch))
        return unit, log

    def _apply(self, unit: InstrumentShard, read: MarketBatch) -> ShardUpdate:
        update = unit.update(read.parts[Topic.TICK], read.parts[Topic.QUOTE])
        read.refuse(update.foreign, Refusal.BAD_SCALE)
        return update

    def _onward(self, read: MarketBatch, shard: int) -> bytes:
        fills = read.parts[Topic.FILL]
        targets = np.full(len(read), shard, np.int32)
        keep = (read.topic >= Topic.INSTRUMENT) & (read.topic < Topic.MARKS)
        if len(fills):
            targets[fills.rows] = shard_of(fills.text("firm_id"), self._shard_count)
            keep[fills.rows] = True
        return route_frames(read.frames, targets, self._shard_count, keep)

    def _marks(self, unit: InstrumentShard, update: ShardUpdate) -> bytes:
        if not len(update.changed):
            return b""
        payload = pack_marks(unit.marks(update))
        frame = write_frame(MARKS_TOPIC, b"", payload)
        return b"".join(
            _PACKET.pack(0, 0, 0, target, len(frame)) + frame for target in range(self._shard_count)
        )

    def _bar_rows(self, unit: InstrumentShard, bars: BarRows) -> bytes:
        price = np.power(10.0, unit.scales[bars.instrument, 0])
        size = np.power(10.0, unit.scales[bars.instrument, 1])
        return packed_rows(
            Table.BARS,
            {
                "instrument_id": unit.names.column(bars.instrument),
                "interval_ms": bars.interval_ms,
                "start_ms": bars.start_ms,
                "trades": bars.trades,
                "open": bars.open / price,
                "high": bars.high / price,
                "low": bars.low / price,
                "close": bars.close / price,
                "volume": bars.volume / size,
                "vwap": bars.vwap / price,
                "moving_average": bars.moving_average / price,
                "realised_volatility": bars.realised_volatility,
                "ewma_volatility": bars.ewma_volatility,
            },
            len(bars),
        )

    def _mark_rows(self, unit: InstrumentShard, update: ShardUpdate, read: MarketBatch) -> bytes:
        changed = update.changed
        if not len(changed):
            return b""
        marks = unit.market.marks(changed)
        scale = np.power(10.0, unit.scales[changed, 0])
        bid, ask = _shown(marks.bid) / scale, _shown(marks.ask) / scale
        return packed_rows(
            Table.MARKS,
            {
                "instrument_id": unit.names.column(changed),
                "last": _shown(marks.last) / scale,
                "bid": bid,
                "ask": ask,
                "mid": _shown(marks.twice_mid) / 2 / scale,
                "spread": ask - bid,
                "volatility": unit.market.volatility(changed),
                "last_ms": marks.last_ms,
                "quote_ms": marks.quote_ms,
                "revision": unit.market.seen(changed),
                "ingested_at_ms": int(read.frames.ingest_ms.max()),
            },
            len(changed),
        )

    def _market_alerts(
        self, unit: InstrumentShard, update: ShardUpdate, read: MarketBatch
    ) -> list[bytes]:
        flagged = np.flatnonzero(update.events.flags & _ALERTING)
        frames = []
        for place in flagged[:_MAX_ALERTS].tolist():
            row = int(update.rows[place])
            names = [
                (bit, name)
                for bit, name in MARKET_FLAGS.items()
                if int(update.events.flags[place]) & bit & _ALERTING
            ]
            frames += [
                self._market_alert(unit, update, read, place, row, bit, name) for bit, name in names
            ]
        self._metrics.count("market_alerts", len(flagged))
        return frames

    def _market_alert(
        self,
        unit: InstrumentShard,
        update: ShardUpdate,
        read: MarketBatch,
        place: int,
        row: int,
        bit: int,
        name: str,
    ) -> bytes:
        source = read.frames
        code = int(update.instrument[place])
        topic = source.topic.text_at(row) or ""
        origin = Origin(
            topic,
            int(source.partition[row]),
            int(source.offset[row]),
            int(source.timestamp_ms[row]),
            int(source.ingest_ms[row]),
            now_ms(),
        )
        scale = 10.0 ** int(unit.scales[code, 0])
        events = update.events
        value, threshold = float(events.change[place]), self._config.jump_sigmas
        if bit == CROSSED:
            value, threshold = (int(events.bid[place]) - int(events.ask[place])) / scale, 0.0
        elif bit == VOLUME_SPIKE:
            value = float(events.size[place]) / 10.0 ** int(unit.scales[code, 1])
            threshold = self._config.spike_multiple
        elif bit == STALE_BEGINS:
            value, threshold = events.quote_age_ms[place] / 1000, self._config.stale_ms / 1000
        alert = market_alert(
            name,
            unit.names.texts[code],
            f"{topic}/{origin.partition}/{origin.offset}",
            int(events.time_ms[place]),
            value,
            threshold,
            origin,
        )
        return write_frame(
            self._alert_topic,
            alert["entity_id"].encode(),
            self._alerts.encode(alert),
            headers=(("alert_id", alert["alert_id"].encode()),),
            timestamp_ms=origin.decided_at_ms,
        )

    def _letters(self, read: MarketBatch) -> list[bytes]:
        letters = []
        for row in np.flatnonzero(read.reason).tolist():
            code, detail = describe(int(read.reason[row]))
            self._metrics.count(f"dead_letters_{code}")
            letters.append(self._dead_letters.frame(read.frames, row, code, detail))
        self._metrics.count("dead_letters", len(letters))
        return letters


def _shown(price: NDArray[np.int64]) -> NDArray[np.float64]:
    return np.where(price == NO_PRICE, np.nan, price.astype(np.float64))
