"""Split labelled history the way it will be lived: by time, with labels that come late.

Days are UTC days. With training from day s for `train_days`, a delay of `delay_days` and a test of
`test_days`, the test begins on day s + train_days + delay_days. On test day T the labels of days up
to T - delay_days - 1 are known, so a card with a known fraud from day s on is already blocked and
its payments leave the test (the protocol of the fraud detection handbook, chapter "Validation
strategies").
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from models.errors import ModelError

__all__ = ["DAY_MS", "Period", "Split", "TrainingTable", "folds_of", "split_by_time"]

DAY_MS: Final = 86_400_000
"""Milliseconds of a UTC day."""


class TrainingTable(Protocol):
    """Point-in-time features with labels, one row per event, as the offline path builds them."""

    @property
    def names(self) -> tuple[str, ...]:
        """Feature names, in the order of the matrix' columns."""
        ...

    @property
    def matrix(self) -> NDArray[np.float64]:
        """Features, shape (n, k)."""
        ...

    @property
    def event_time_ms(self) -> NDArray[np.int64]:
        """Event times, UTC epoch."""
        ...

    @property
    def amount_minor(self) -> NDArray[np.int64] | None:
        """Amounts in minor units; None when unknown, with which nothing can be trained."""
        ...


@dataclass(frozen=True, slots=True)
class Period:
    """One train/delay/test period; `start` is the first training day, UTC."""

    start: dt.date
    train_days: int
    delay_days: int
    test_days: int

    def __post_init__(self) -> None:
        if self.train_days < 1 or self.test_days < 1 or self.delay_days < 0:
            msg = (
                "a period needs at least one training and one test day and no negative delay, was "
                f"{self.train_days}/{self.delay_days}/{self.test_days} days"
            )
            raise ModelError(msg)

    @property
    def first_day(self) -> int:
        """Days from 1970-01-01 to the first training day."""
        return (self.start - dt.date(1970, 1, 1)).days

    @property
    def test_start(self) -> int:
        """Days from 1970-01-01 to the first test day."""
        return self.first_day + self.train_days + self.delay_days

    def describe(self) -> dict[str, object]:
        """Return the dates as ISO text."""
        day = dt.timedelta(days=1)
        train_end = self.start + day * (self.train_days - 1)
        test_start = train_end + day * (self.delay_days + 1)
        return {
            "train_start": self.start.isoformat(),
            "train_end": train_end.isoformat(),
            "delay_days": self.delay_days,
            "test_start": test_start.isoformat(),
            "test_end": (test_start + day * (self.test_days - 1)).isoformat(),
        }


@dataclass(frozen=True, slots=True)
class Split:
    """Row numbers of a period; `removed` counts test rows of cards known compromised."""

    period: Period
    train: NDArray[np.int64]
    test: NDArray[np.int64]
    removed: int


def split_by_time(
    event_time_ms: NDArray[np.int64],
    customer_codes: NDArray[np.int64],
    is_fraud: NDArray[np.bool_],
    period: Period,
) -> Split:
    """Choose the rows of one period; row order is kept.

    Raises:
        ModelError: when a side is empty or the training rows hold only one class.
    """
    day = event_time_ms // DAY_MS
    first = period.first_day
    train = np.flatnonzero((day >= first) & (day < first + period.train_days))
    n_customers = int(customer_codes.max(initial=-1)) + 1
    # The first day, from the start of training on, at which each card had a fraud.
    first_fraud = np.full(n_customers, np.iinfo(np.int64).max)
    frauds = np.flatnonzero(is_fraud & (day >= first))
    np.minimum.at(first_fraud, customer_codes[frauds], day[frauds])
    in_test = np.flatnonzero(
        (day >= period.test_start) & (day < period.test_start + period.test_days)
    )
    known_until = day[in_test] - period.delay_days - 1
    keep = first_fraud[customer_codes[in_test]] > known_until
    test = in_test[keep]
    for side, rows in (("training", train), ("test", test)):
        if len(rows) == 0:
            msg = f"splitting {period.describe()}: no {side} rows in the file; choose other dates"
            raise ModelError(msg)
    positives = int(is_fraud[train].sum())
    if positives in (0, len(train)):
        msg = f"splitting {period.describe()}: {positives} of {len(train)} training rows are fraud"
        raise ModelError(msg)
    return Split(period, train, test, int(len(in_test) - len(test)))


def folds_of(period: Period, count: int) -> list[Period]:
    """Return `count` prequential periods, oldest first; the last is `period` itself.

    Each fold is the whole period moved back by the length of the test, so test weeks do not
    overlap.
    """
    step = dt.timedelta(days=period.test_days)
    return [
        Period(period.start - step * back, period.train_days, period.delay_days, period.test_days)
        for back in range(count - 1, -1, -1)
    ]
