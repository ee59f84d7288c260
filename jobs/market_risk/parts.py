"""What the stages of the market risk job are built from, made in the task from the settings."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Final

from connectors import frames, row_binary, source_time
from connectors.settings import Settings
from jobs.dead_letters import DeadLetterWriter
from jobs.market_risk import bars, exposure, market, positions, scaling
from jobs.market_risk.engine import EngineConfig
from jobs.market_risk.instrument_shard import ShardConfig
from jobs.market_risk.intake import MarketIntake, Topic
from jobs.market_risk.live import LiveRows
from models.registry import Registry
from models.scorer import ModelCache
from schemas.avro import RecordDecoder, RecordEncoder
from schemas.columns import StringColumn
from schemas.contract import contract
from schemas.decoder import ColumnarDecoder
from schemas.reasons import Limits
from schemas.registry import SchemaRegistry, open_registry, value_subject
from schemas.strings import equal_rows, hash64

__all__ = ["CONTROL_TOPIC", "JOB", "REFERENCE_TOPICS", "STREAM_TOPICS", "MarketParts", "now_ms"]

JOB: Final = "market_risk"
"""Name of the job, also in orders about its model."""

CONTROL_TOPIC: Final = "market_control"
"""Settings field of the topic of orders to this job."""

STREAM_TOPICS: Final = {"ticks": "tick", "quotes": "quote", "fills": "fill"}
"""Settings field of each stream's topic, and its contract."""

REFERENCE_TOPICS: Final = {
    "instruments": "instrument",
    "limits": "limit",
    "scenarios": "scenario",
    "fx_rates": "fx_rate",
}
"""The same for what every shard needs to know."""


def now_ms() -> int:
    """Return the wall clock, for stamping what leaves; no number depends on it."""
    return time.time_ns() // 1_000_000


@dataclass(frozen=True, slots=True)
class MarketParts:
    """Makes the parts of a stage."""

    settings: Settings

    def registry(self) -> SchemaRegistry:
        """Open the schema registry."""
        return open_registry(self.settings.schemas)

    def intake(self) -> MarketIntake:
        """Make the reader of ticks, quotes and fills."""
        registry, topics = self.registry(), self.settings.kafka.topics
        fraud = self.settings.fraud
        limits = Limits(
            max_record_bytes=fraud.max_record_bytes, max_string_bytes=fraud.max_string_bytes
        )
        decoders = [
            ColumnarDecoder(contract(name), registry, limits) for name in STREAM_TOPICS.values()
        ]
        for decoder in decoders:
            decoder.warm()
        fields = (*STREAM_TOPICS, *REFERENCE_TOPICS, CONTROL_TOPIC)
        names = [topics.name(field) for field in fields]
        return MarketIntake(decoders, names, fraud.max_future_ms)

    def reference_decoders(self) -> dict[Topic, RecordDecoder]:
        """Make the readers of reference records."""
        registry = self.registry()
        kinds = (Topic.INSTRUMENT, Topic.LIMIT, Topic.SCENARIO, Topic.FX_RATE)
        return {
            kind: RecordDecoder(registry, contract(name))
            for kind, name in zip(kinds, REFERENCE_TOPICS.values(), strict=True)
        }

    def encoder(self, topic: str, name: str) -> RecordEncoder:
        """Make the writer of a contract's records for a topic, under the registered schema."""
        text = contract(name)
        subject = value_subject(self.settings.kafka.topics.name(topic))
        return RecordEncoder(text, self.registry().register(subject, text))

    def dead_letters(self, stage: str) -> DeadLetterWriter:
        """Make the writer of a stage's dead letters."""
        return DeadLetterWriter(
            topic=self.settings.kafka.topics.name("market_dead_letters"),
            job=JOB,
            stage=stage,
            encoder=self.encoder("market_dead_letters", "dead_letter"),
            now_ms=now_ms,
        )

    def live_rows(self) -> LiveRows | None:
        """Make the writer of rows for live pages; None where the settings want none."""
        if not self.settings.market_risk.live:
            return None
        return LiveRows(self.settings.kafka.topics.name("live"))

    def shard_config(self) -> ShardConfig:
        """Return the settings of the first stage."""
        chosen = self.settings.market_risk
        return ShardConfig(
            chosen.bar_intervals_ms,
            chosen.retained_bars,
            chosen.stale_ms,
            chosen.jump_sigmas,
            chosen.spike_multiple,
        )

    def engine_config(self) -> EngineConfig:
        """Return the settings of the second stage."""
        chosen = self.settings.market_risk
        return EngineConfig(
            chosen.base_currency,
            chosen.mark_at,
            tuple(sorted(chosen.levels)),
            chosen.history,
            chosen.material_move,
            chosen.equity_minor / 100,
            chosen.retained_fill_ids,
            chosen.stale_ms,
            chosen.var_methods,
            chosen.monte_carlo_scenarios,
        )

    def models(self) -> ModelCache:
        """Make the cache of models that passed the gate."""
        models = self.settings.models
        return ModelCache(Registry(models.registry), models.latency_budget_us, time.perf_counter_ns)

    def breach_champion(self) -> str:
        """Return the breach model that scores where no order was given, empty for none.

        It is what was last asked for through the registry, else what the settings name.

        Raises:
            ModelNotFoundError: when the registry has no such model.
        """
        name = self.settings.market_risk.breach_model
        registry = Registry(self.settings.models.registry)
        return registry.champion(JOB, registry.resolve(name) if name else "")

    def control_decoder(self) -> RecordDecoder:
        """Make the reader of control records."""
        return RecordDecoder(self.registry(), contract("control"))

    def warm(self) -> None:
        """Compile kernels or load them from numba's cache, so that no event waits for it."""
        for module in (frames, row_binary, source_time, scaling, bars, market, positions, exposure):
            module.warm()
        hash64(StringColumn.from_texts([""]))
        equal_rows(StringColumn.from_texts([""]), StringColumn.from_texts([""]))
