"""The fraud job, whole: read it like the diagram in docs/architecture.md.

transactions, labels, control -> customer stage -> decision stage -> alerts and dead letters (Kafka)
|-> scored transactions (ClickHouse)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from jobs.fraud.clickhouse_rows import ClickHouseRows
from jobs.fraud.customer_stage import CustomerStage
from jobs.fraud.decision_stage import DecisionStage
from jobs.fraud.parts import StageParts
from models.registry import Registry

if TYPE_CHECKING:
    from connectors.settings import Settings
    from jobs.runtime.graph import JobGraph

__all__ = ["build"]


def build(graph: JobGraph, settings: Settings) -> None:
    """Wire the job into `graph`."""
    topics = settings.kafka.topics
    parts = StageParts(settings)
    champion = Registry(settings.models.registry).champion()

    events = graph.kafka_source(
        "card events",
        topics=[topics.name("transactions"), topics.name("labels")],
        control_topics=[topics.name("control")],
    )
    customers = graph.stage("customer windows", events, CustomerStage(parts))
    decisions = graph.stage(
        "terminal windows, score, decide", customers.to_next, DecisionStage(parts, champion)
    )
    graph.kafka_sink("alerts and dead letters", [customers, decisions])
    graph.writer(
        "scored transactions",
        [decisions],
        ClickHouseRows(settings.clickhouse, parts.features.names),
    )
