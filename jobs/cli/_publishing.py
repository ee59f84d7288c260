"""What `replay` and `simulate` share: publishing a source of transactions to the job's topics."""

from __future__ import annotations

from typing import TYPE_CHECKING

from connectors.kafka import ensure_topics, librdkafka_config
from connectors.producers.pace import Pace, SystemClock
from connectors.producers.publisher import bulk_publisher
from connectors.producers.replay import replay as run_replay
from connectors.producers.routes import label_route, transaction_route
from jobs.cli.progress import progress_bar

if TYPE_CHECKING:
    from connectors.producers.labels import LabelPolicy
    from connectors.producers.replay import ReplaySummary
    from connectors.producers.source import TransactionSource
    from connectors.settings import Settings

__all__ = ["publish_source"]


def publish_source(
    settings: Settings, source: TransactionSource, title: str, pace: Pace, labels: LabelPolicy
) -> ReplaySummary:
    """Publish every transaction and its label, with a progress bar; topics are made if missing."""
    transactions, label_topic = transaction_route(settings), label_route(settings)
    ensure_topics(settings.kafka, [transactions.topic, label_topic.topic])
    publisher = bulk_publisher(librdkafka_config(settings.kafka))
    with progress_bar(title, source.total) as advance:
        summary = run_replay(
            source,
            publisher,
            pace,
            labels,
            SystemClock(),
            advance,
            transactions=transactions,
            label_route=label_topic,
        )
    publisher.close()
    return summary
