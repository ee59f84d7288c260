"""The market risk job driven by hand: both stages, no Flink, no Kafka, no ClickHouse."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from connectors.frames import FrameBatch, write_frame
from connectors.producers.publisher import RecordLog
from connectors.settings import Settings
from jobs.market_risk.engine import RiskEngine
from jobs.market_risk.feed import MarketFeed
from jobs.market_risk.instrument_stage import InstrumentStage
from jobs.market_risk.parts import REFERENCE_TOPICS, MarketParts
from jobs.market_risk.portfolio_stage import PortfolioStage
from jobs.market_risk.simulator import DeskConfig, MarketSimulator
from jobs.market_risk.tables import LAYOUTS, Table
from schemas.avro import RecordDecoder
from schemas.contract import contract
from schemas.registry import open_registry
from tests.support.fraud import Row, read_rows
from tests.support.pipeline import Counts, DictState, packets

__all__ = ["MarketJob", "ShardFrame", "market_stream", "reference_frames"]

ShardFrame = tuple[int | None, bytes]
"""A frame and the shard it goes to; None is every shard."""


class MarketJob:
    """Two shards of two stages, wired as the graph wires them."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.states = {(stage, shard): DictState() for stage in range(2) for shard in range(2)}
        self.kafka: list[FrameBatch] = []
        self.payloads: list[bytes] = []
        self.start()

    def start(self) -> None:
        """Begin anew with what Flink holds."""
        parts = MarketParts(self.settings)
        self.metrics = Counts()
        self.stages = (InstrumentStage(parts), PortfolioStage(parts))
        for stage in self.stages:
            stage.open(self.metrics)

    def feed(self, frames: Iterable[ShardFrame]) -> None:
        """Run one batch of each shard through both stages."""
        onward = {0: b"", 1: b""}
        listed = list(frames)
        for shard in range(2):
            batch = b"".join(frame for target, frame in listed if target in (shard, None))
            if batch:
                data = self.stages[0].process(shard, batch, self.states[0, shard])
                self._take(data, onward)
        for shard in range(2):
            if onward[shard]:
                data = self.stages[1].process(shard, onward[shard], self.states[1, shard])
                self._take(data, {})

    def _take(self, data: bytes, onward: dict[int, bytes]) -> None:
        for route, shard, payload in packets(data):
            if route == 0:
                onward[shard] += payload
            elif route == 1:
                self.kafka.append(FrameBatch.parse(payload))
            else:
                self.payloads.append(payload)

    def engine(self, shard: int) -> RiskEngine:
        """Return the engine of a shard of the second stage."""
        return self.stages[1]._shards[shard][0].engine

    @property
    def shards(self) -> Sequence[int]:
        """Return the shards of the second stage that had a batch."""
        return sorted(self.stages[1]._shards)

    def rows(self, table: Table) -> list[Row]:
        """Return every row that was written to a table, in order."""
        return read_rows(self.payloads, table, LAYOUTS[table][1])

    def counts(self) -> Counter[Table]:
        """Return how many rows each table got."""
        return Counter({table: len(self.rows(table)) for table in Table})

    def records(self, topic: str, name: str) -> list[dict[str, Any]]:
        """Return the records written to a topic, by its field in the settings and contract."""
        decoder = RecordDecoder(open_registry(self.settings.schemas), contract(name))
        wanted = self.settings.kafka.topics.name(topic)
        return [
            decoder.decode(batch.value.bytes_at(row))
            for batch in self.kafka
            for row in range(len(batch))
            if batch.topic.text_at(row) == wanted
        ]


def market_stream(
    settings: Settings, batches: int = 15, seed: int = 5, overnight: bool = False
) -> list[list[ShardFrame]]:
    """Return a simulator's records: first the reference, then one list for each batch.

    With `overnight` every batch lies in a UTC day of its own.
    """
    simulator = MarketSimulator(seed, DeskConfig(instruments=12, fill_share=0.5))
    log = RecordLog()
    feed = MarketFeed(settings, log)
    parts = [reference_frames(settings, simulator.reference(60))]
    offset = len(parts[0])
    source = simulator.batches()
    for _ in range(batches):
        batch = next(source)
        if overnight:
            simulator.next_day()
        for topic in ("quotes", "ticks", "fills"):
            feed.publish(topic, getattr(batch, topic))
        parts.append(_frames(settings, log, offset))
        offset += len(parts[-1])
    return parts


def reference_frames(
    settings: Settings, records: dict[str, list[dict[str, Any]]]
) -> list[ShardFrame]:
    """Return reference records, by topic field, as frames for every shard."""
    log = RecordLog()
    feed = MarketFeed(settings, log)
    for topic, listed in records.items():
        feed.publish_records(topic, listed)
    return _frames(settings, log, 0)


def _frames(settings: Settings, log: RecordLog, offset: int) -> list[ShardFrame]:
    control = [settings.kafka.topics.name(topic) for topic in REFERENCE_TOPICS]
    frames = []
    for place, (topic, key, value, time_ms) in enumerate(log.records):
        target = None if topic in control else sum(key) % 2
        frame = write_frame(
            topic,
            key,
            value,
            partition=0,
            offset=offset + place,
            timestamp_ms=time_ms,
            ingested_at_ms=time_ms + 3,
            control=topic in control,
        )
        frames.append((target, frame))
    log.records.clear()
    return frames
