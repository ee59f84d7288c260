"""Find the smallest change of one or two features that would not have alerted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["Change", "smallest_change"]

_VALUES: Final = 12
# Candidate values per feature: quantiles of genuine rows. One feature is 12 rows to score, a pair
# 144; with four features paired that is under 1,100 rows an alert.

_PAIRED: Final = 4


@dataclass(frozen=True, slots=True)
class Change:
    """New values of one or two features and the score they give."""

    features: tuple[str, ...]
    before: tuple[float, ...]
    after: tuple[float, ...]
    score: float


def smallest_change(
    row: NDArray[np.float64],
    names: tuple[str, ...],
    contributions: NDArray[np.float64],
    reference: NDArray[np.float64],
    score: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    threshold: float,
) -> Change | None:
    """Return the change of fewest, then nearest, features that brings the score below `threshold`.

    Only features that raised the score are changed, and only to values that rows of the reference
    sample, shape (rows, k), really have. Nearness is the distance in ranks among the reference. One
    feature is always preferred to two. None when no such change exists.
    """
    rising = [int(one) for one in np.argsort(-contributions) if contributions[one] > 0]
    values = {one: _values(reference[:, one]) for one in rising}
    singles = [(one,) for one in rising]
    pairs = [
        (first, second)
        for place, first in enumerate(rising[:_PAIRED])
        for second in rising[place + 1 : _PAIRED]
    ]
    for group in (singles, pairs):
        best: tuple[float, Change] | None = None
        for chosen in group:
            grid = np.array(np.meshgrid(*(values[one] for one in chosen))).reshape(len(chosen), -1)
            trial = np.repeat(row[None, :], grid.shape[1], axis=0)
            for place, one in enumerate(chosen):
                trial[:, one] = grid[place]
            scores = score(trial)
            for number in np.flatnonzero(scores < threshold):
                cost = sum(
                    _rank_distance(reference[:, one], row[one], trial[number, one])
                    for one in chosen
                )
                if best is None or cost < best[0]:
                    best = (
                        cost,
                        Change(
                            tuple(names[one] for one in chosen),
                            tuple(float(row[one]) for one in chosen),
                            tuple(float(trial[number, one]) for one in chosen),
                            float(scores[number]),
                        ),
                    )
        if best is not None:
            return best[1]
    return None


def _values(column: NDArray[np.float64]) -> NDArray[np.float64]:
    known: NDArray[np.float64] = column[~np.isnan(column)]
    # A real value, not one between two: half a payment would explain nothing.
    wanted = np.linspace(0.0, 1.0, _VALUES)
    if len(known) == 0:
        return known
    chosen: NDArray[np.float64] = np.unique(np.quantile(known, wanted, method="nearest"))
    return chosen


def _rank_distance(column: NDArray[np.float64], before: float, after: float) -> float:
    return abs(float(np.mean(column <= before)) - float(np.mean(column <= after)))
