"""The market risk job, whole: the same engine as fraud, with other stages.

ticks, quotes, fills, reference, orders -> instrument stage -> portfolio stage -> alerts (Kafka)
                                         |-> bars, marks     |-> positions, P&L, VaR, limits
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from jobs.market_risk.instrument_stage import InstrumentStage
from jobs.market_risk.parts import CONTROL_TOPIC, REFERENCE_TOPICS, STREAM_TOPICS, MarketParts
from jobs.market_risk.portfolio_stage import PortfolioStage
from jobs.market_risk.tables import MarketRows

if TYPE_CHECKING:
    from connectors.settings import Settings
    from jobs.runtime.graph import JobGraph

__all__ = ["build"]


def build(graph: JobGraph, settings: Settings) -> None:
    """Wire the job into `graph`."""
    topics = settings.kafka.topics
    parts = MarketParts(settings)
    events = graph.kafka_source(
        "market events",
        topics=[topics.name(field) for field in STREAM_TOPICS],
        control_topics=[topics.name(field) for field in (*REFERENCE_TOPICS, CONTROL_TOPIC)],
    )
    instruments = graph.stage("bars and marks", events, InstrumentStage(parts))
    portfolios = graph.stage("positions and risk", instruments.to_next, PortfolioStage(parts))
    graph.kafka_sink("limit alerts and dead letters", [instruments, portfolios])
    graph.writer("market risk rows", [instruments, portfolios], MarketRows(settings.clickhouse))
