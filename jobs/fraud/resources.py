"""What the fraud job needs before it starts: topics, contracts in the registry, tables."""

from __future__ import annotations

from typing import Final

from connectors.clickhouse import ClickHouseClient
from connectors.deployments import deployed_facts, remember_deployment
from connectors.kafka import broker_number, ensure_topics
from connectors.migrations import migrate
from connectors.settings import Settings
from jobs.fraud.features import FRAUD_FEATURES
from jobs.fraud.in_force import memory_findings
from jobs.plan import Facts, compare, facts_of
from schemas.errors import ConfigurationError

__all__ = ["check_resume", "facts", "prepare", "remember"]

MAX_TRANSACTION: Final = "transaction.max.timeout.ms"

# A dead letter holds a whole refused record beside its own fields, so its topic takes larger
# messages than any source topic may hold.
DEAD_LETTER_BYTES: Final = 16 * 1024 * 1024


def prepare(settings: Settings) -> None:
    """Create the topics, tables and columns that are missing; what is there stays as it is.

    Control records are few and must keep their order, so their topic has one partition.
    """
    _check_transactions(settings)
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


def _check_transactions(settings: Settings) -> None:
    """Refuse a transaction timeout that the brokers would refuse, again and again, in the job.

    Raises:
        ConfigurationError: with the way out.
    """
    if settings.flink.delivery != "exactly-once":
        return
    wanted = settings.flink.transaction_timeout_ms
    most = broker_number(settings.kafka, MAX_TRANSACTION)
    if most is not None and wanted > most:
        msg = (
            f"flink.transaction_timeout_ms was {wanted}, and the brokers allow at most {most} "
            f"({MAX_TRANSACTION}); lower the one or raise the other"
        )
        raise ConfigurationError(msg)


def facts(settings: Settings) -> Facts:
    """Return what the state of the job depends on, as these settings would submit it."""
    flink = settings.flink
    return facts_of(
        FRAUD_FEATURES,
        shards=flink.shards,
        max_parallelism=flink.max_parallelism,
        parallelism=flink.parallelism,
        delivery=flink.delivery,
    )


def check_resume(settings: Settings) -> None:
    """Refuse to resume state that the last submission wrote and this one would lose.

    Raises:
        ConfigurationError: with each reason and the way back.
    """
    known = deployed_facts(ClickHouseClient(settings.clickhouse), "fraud")
    if known is None:
        return
    findings = [*compare(Facts.from_dict(known), facts(settings)), *memory_findings(settings)]
    refused = [finding.text for finding in findings if finding.level == "refused"]
    if refused:
        listed = "\n".join(f"  - {reason}" for reason in refused)
        msg = f"resuming the fraud job would lose state:\n{listed}"
        raise ConfigurationError(msg)


def remember(settings: Settings) -> None:
    """Write down what the job was submitted with, for `riskstream plan` and `check_resume`."""
    remember_deployment(ClickHouseClient(settings.clickhouse), "fraud", facts(settings).as_dict())
