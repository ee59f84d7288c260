"""What the fraud job needs before it starts: topics, contracts in the registry, tables."""

from __future__ import annotations

from typing import Final

from connectors.clickhouse import ClickHouseClient
from connectors.kafka import ensure_topics
from connectors.migrations import migrate
from connectors.settings import Settings
from jobs.fraud.features import FRAUD_FEATURES

__all__ = ["prepare"]

# A dead letter holds a whole refused record beside its own fields, so its topic takes larger
# messages than any source topic may hold.
DEAD_LETTER_BYTES: Final = 16 * 1024 * 1024


def prepare(settings: Settings) -> None:
    """Create the topics, tables and columns that are missing; what is there stays as it is.

    Control records are few and must keep their order, so their topic has one partition.
    """
    topics = settings.kafka.topics
    ensure_topics(
        settings.kafka,
        [topics.name(topic) for topic in ("transactions", "labels", "alerts", "dead_letters")],
        configs={topics.name("dead_letters"): {"max.message.bytes": str(DEAD_LETTER_BYTES)}},
    )
    ensure_topics(
        settings.kafka, [topics.name("control"), topics.name("drift_alerts")], partitions=1
    )
    migrate(ClickHouseClient(settings.clickhouse), FRAUD_FEATURES.names)
