"""Train a candidate on the newest days and hold it against the champion on the same test days."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.errors import ModelError
from models.kinds import KINDS, kind_named
from models.metrics import paired_difference
from models.package import package
from models.protocol import DAY_MS, Period
from models.registry import Registry
from models.session import open_model
from models.training import Plan, Progress, TrainingData, train

__all__ = ["Comparison", "Retrained", "compare", "newest_period", "retrain"]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Average precision of both on the same rows, and the 95 % interval of the difference."""

    candidate: float
    champion: float
    low: float
    high: float

    @property
    def better(self) -> bool:
        """Whether the candidate beats the champion beyond chance."""
        return self.low > 0


@dataclass(frozen=True, slots=True)
class Retrained:
    """A registered candidate and how it compares."""

    version: str
    champion: str
    period: Mapping[str, Any]
    comparison: Comparison

    def to_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        return {**asdict(self), "better": self.comparison.better}


def newest_period(
    event_time_ms: NDArray[np.int64], train_days: int, delay_days: int, test_days: int
) -> Period:
    """Return the period whose last test day is the last whole day of the data."""
    last = int(event_time_ms.max()) // DAY_MS
    start = last + 1 - train_days - delay_days - test_days
    return Period(dt.date(1970, 1, 1) + dt.timedelta(days=start), train_days, delay_days, test_days)


def compare(
    is_fraud: NDArray[np.bool_],
    candidate: NDArray[np.float64],
    champion: NDArray[np.float64],
    customer_codes: NDArray[np.int64],
    seed: int,
) -> Comparison:
    """Compare two models' scores of the same rows."""
    one, other, interval = paired_difference(
        is_fraud, candidate, champion, customer_codes, np.random.default_rng(seed)
    )
    return Comparison(one, other, interval.low, interval.high)


def retrain(
    data: TrainingData,
    registry: Registry,
    champion: str,
    feature_set_version: str,
    *,
    days: tuple[int, int, int],
    seed: int,
    trials: int,
    created_at_ms: int,
    source: str,
    progress: Progress | None = None,
) -> Retrained:
    """Train, register and compare; `days` are training, delay and test.

    The candidate takes the champion's kind and parameters (LightGBM's when the champion came from
    elsewhere) and its name.

    Raises:
        ModelError: when the champion cannot score the data, or the data are too few.
    """
    manifest, file = registry.load(champion)
    known = manifest.kind in {kind.name for kind in KINDS}
    kind = kind_named(manifest.kind if known else "lightgbm")
    parameters = manifest.training.get("parameters") if known else None
    period = newest_period(data.event_time_ms, *days)
    plan = Plan(kind=kind, period=period, seed=seed, trials=trials, parameters=parameters)
    run = train(data, plan, progress)
    rows = data.rows[run.split.test].astype(np.float64)
    champion_scores = open_model(manifest, file, data.names).score(rows)
    if not np.isfinite(champion_scores).all():
        msg = f"comparing with {champion!r}: it gave scores that are not finite"
        raise ModelError(msg)
    comparison = compare(
        run.test_labels,
        run.scores,
        champion_scores,
        data.customer_codes[run.split.test],
        seed,
    )
    name = manifest.name if known else f"{manifest.name}-{kind.name.replace('_', '-')}"
    folder = package(run, data, name, feature_set_version, created_at_ms, source=source)
    version = registry.register(folder)
    return Retrained(version, champion, period.describe(), comparison)
