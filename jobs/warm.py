"""Compile every kernel once, so that no first event waits for a compiler: part of `make setup`.

numba keeps what it compiled beside the sources; on a warm machine this takes about two seconds.
"""

from __future__ import annotations

import time

import click
import numpy as np

from connectors.producers.routes import label_route, transaction_route
from connectors.settings import Settings, load_settings
from jobs.fraud.parts import StageParts
from jobs.market_risk.parts import MarketParts
from jobs.rules.decision import Thresholds, decide
from models.registry import default_version
from models.scorer import ScoringEngine

__all__ = ["main", "warm_jobs"]


def main() -> None:
    """Compile what the jobs and their producers use."""
    began = time.monotonic()
    settings = load_settings()
    warm_jobs(settings)
    transaction_route(settings)
    label_route(settings)
    click.echo(f"kernels ready after {time.monotonic() - began:.1f} s", err=True)


def warm_jobs(settings: Settings) -> None:
    """Compile, or load, what the jobs use."""
    parts = StageParts(settings)
    parts.intake()
    parts.warm()
    market = MarketParts(settings)
    market.intake()
    market.warm()
    rules = parts.rules()
    rules.warm()
    engine = ScoringEngine(parts.models(), parts.features.names, default_version())
    engine.model(default_version()).explainer()
    fired = np.zeros((1, len(rules)), np.bool_)
    decide(np.zeros(1), fired, rules.actions, rules.order, Thresholds(0.5, 0.9))


if __name__ == "__main__":
    main()
