"""What the market risk job needs before it starts: topics, contracts in the registry, tables."""

from __future__ import annotations

from typing import Final

from connectors.clickhouse import ClickHouseClient
from connectors.kafka import ensure_topics
from connectors.migrations import migrate
from connectors.settings import Settings
from jobs.fraud.features import FRAUD_FEATURES
from jobs.market_risk.parts import CONTROL_TOPIC, REFERENCE_TOPICS, STREAM_TOPICS

__all__ = ["prepare"]

# A dead letter holds a whole refused record beside its own fields.
DEAD_LETTER_BYTES: Final = 16 * 1024 * 1024
LIVE_RETENTION_MS: Final = 3_600_000


def prepare(settings: Settings) -> None:
    """Create the topics, tables and columns that are missing; what is there stays as it is.

    Reference records and orders are few and must keep their order: one partition a topic.
    """
    topics = settings.kafka.topics
    letters = topics.name("market_dead_letters")
    ensure_topics(
        settings.kafka,
        [*(topics.name(field) for field in STREAM_TOPICS), topics.name("limit_alerts"), letters],
        configs={letters: {"max.message.bytes": str(DEAD_LETTER_BYTES)}},
    )
    ordered = [topics.name(field) for field in (*REFERENCE_TOPICS, CONTROL_TOPIC)]
    ensure_topics(settings.kafka, ordered, partitions=1)
    # Pages read the newest moments of it; what they show at the start comes from ClickHouse.
    ensure_topics(
        settings.kafka,
        [topics.name("live")],
        partitions=1,
        configs={topics.name("live"): {"retention.ms": str(LIVE_RETENTION_MS)}},
    )
    migrate(ClickHouseClient(settings.clickhouse), FRAUD_FEATURES.names)
