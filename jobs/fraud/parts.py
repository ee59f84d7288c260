"""What both stages of the fraud job are built from, made in the task from the settings.

A stage travels to the cluster as its settings and names; contracts, kernels, models and connections
are opened where it runs.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from connectors import frames, row_binary, source_time
from connectors.profiles import ProfileKind, ProfileLookup, redis_client
from connectors.profiles import warm as warm_profiles
from connectors.settings import Settings
from jobs.dead_letters import DeadLetterWriter
from jobs.fraud.features import FRAUD_FEATURES
from jobs.fraud.intake import IntakeLimits, TransactionIntake
from jobs.fraud.rule_columns import rule_catalogue
from jobs.rules.ruleset import RuleSet
from jobs.stage import Metrics
from jobs.windows.spec import FeatureSet
from jobs.windows.store import warm as warm_windows
from models.registry import Registry
from models.routing import warm as warm_routing
from models.scorer import ModelCache
from schemas.avro import RecordDecoder, RecordEncoder
from schemas.contract import contract
from schemas.decoder import ColumnarDecoder
from schemas.reasons import Limits
from schemas.registry import SchemaRegistry, open_registry, value_subject

__all__ = ["StageParts", "now_ms"]

JOB: Final = "fraud"
ROOT: Final = Path(__file__).resolve().parents[2]


def now_ms() -> int:
    """Return the wall clock, for stamping what leaves; no decision depends on it."""
    return time.time_ns() // 1_000_000


@dataclass(frozen=True, slots=True)
class StageParts:
    """Makes the parts of a stage."""

    settings: Settings
    features: FeatureSet = FRAUD_FEATURES

    def registry(self) -> SchemaRegistry:
        """Open the schema registry."""
        return open_registry(self.settings.schemas)

    def limits(self) -> Limits:
        """Return what one record may cost."""
        fraud = self.settings.fraud
        return Limits(
            max_record_bytes=fraud.max_record_bytes, max_string_bytes=fraud.max_string_bytes
        )

    def intake(self) -> TransactionIntake:
        """Make the reader of transactions, labels and control frames."""
        registry, topics, fraud = self.registry(), self.settings.kafka.topics, self.settings.fraud
        transactions = ColumnarDecoder(contract("card_transaction"), registry, self.limits())
        labels = ColumnarDecoder(contract("label"), registry, self.limits())
        transactions.warm()
        labels.warm()
        return TransactionIntake(
            transactions,
            labels,
            [topics.name(topic) for topic in ("transactions", "labels", "control")],
            IntakeLimits(fraud.max_amount_minor, fraud.max_future_ms),
        )

    def encoder(self, topic: str, name: str) -> RecordEncoder:
        """Make the writer of a contract's records for a topic, under the registered schema."""
        text = contract(name)
        schema_id = self.registry().register(
            value_subject(getattr(self.settings.kafka.topics, topic)), text
        )
        return RecordEncoder(text, schema_id)

    def control_decoder(self) -> RecordDecoder:
        """Make the reader of control records."""
        return RecordDecoder(self.registry(), contract("control"))

    def dead_letters(self, stage: str) -> DeadLetterWriter:
        """Make the writer of a stage's dead letters."""
        return DeadLetterWriter(
            topic=self.settings.kafka.topics.name("dead_letters"),
            job=JOB,
            stage=stage,
            encoder=self.encoder("dead_letters", "dead_letter"),
            now_ms=now_ms,
        )

    def profiles(self, kind: ProfileKind, metrics: Metrics) -> ProfileLookup:
        """Make the lookup of one kind of profile, with the policy of the settings."""
        redis = self.settings.redis
        return ProfileLookup(
            lambda: redis_client(redis),
            kind,
            redis.when_down,
            redis.cache_entries,
            redis.cache_ttl_ms,
            on_wait=lambda attempt, error: metrics.count("profile_retries"),
        )

    def models(self) -> ModelCache:
        """Make the cache of models that passed the gate."""
        models = self.settings.models
        return ModelCache(Registry(models.registry), models.latency_budget_us, time.perf_counter_ns)

    def rules(self) -> RuleSet:
        """Read the rule set that holds until a control record brings another."""
        return RuleSet.load(ROOT / self.settings.fraud.rules_file, rule_catalogue())

    def warm(self) -> None:
        """Compile kernels or load them from numba's cache, so that no event waits for it."""
        for module in (frames, row_binary, source_time):
            module.warm()
        warm_windows(self.features)
        warm_profiles()
        warm_routing()
