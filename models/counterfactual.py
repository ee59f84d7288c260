"""Find the smallest change of one or two features that would not have alerted."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["Change", "ChangeFinder"]

Rows = NDArray[np.float64]

_VALUES: Final = 8
_PAIR_VALUES: Final = 4
# Candidate values per feature: quantiles of the reference rows. Fewer make changes larger than they
# need be, more cost rows to score: an alert costs at most 6 x 8 rows, and 3 x 16 more where no
# single feature is enough.

_SINGLES: Final = 6
_PAIRED: Final = 3


@dataclass(frozen=True, slots=True)
class Change:
    """New values of one or two features and the score they give."""

    features: tuple[str, ...]
    before: tuple[float, ...]
    after: tuple[float, ...]
    score: float


class ChangeFinder:
    """Finds changes for the alerts of one model; safe between threads."""

    def __init__(
        self,
        names: tuple[str, ...],
        reference: NDArray[np.floating[Any]],
        score: Callable[[Rows], Rows],
    ) -> None:
        """Take the features in the model's order.

        Args:
            names: k names.
            reference: shape (rows, k), the rows whose values may be proposed; NaN is skipped.
            score: scores rows of shape (n, k).
        """
        self._names = names
        self._score = score
        self._sorted: list[Rows] = []
        self._values = np.full((len(names), _VALUES), np.nan)
        self._ranks = np.zeros((len(names), _VALUES))
        wanted = np.linspace(0.0, 1.0, _VALUES)
        for column in range(len(names)):
            cells = reference[:, column].astype(np.float64)
            known = np.sort(cells[~np.isnan(cells)])
            self._sorted.append(known)
            if len(known):
                # A real value, not one between two: half a payment would explain nothing.
                self._values[column] = np.quantile(known, wanted, method="nearest")
                self._ranks[column] = _ranks(known, self._values[column])

    def find(self, rows: Rows, contributions: Rows, threshold: float) -> list[Change | None]:
        """Return for each row the change that brings its score below `threshold`, None without one.

        One feature is always preferred to two, then the change nearest in ranks among the
        reference. Only the features that raised the score most are changed (6 alone, 3 in pairs),
        and only to values that reference rows really have. All rows are scored in two calls.

        Args:
            rows: shape (n, k).
            contributions: shape (n, k), which features raised the score; NaN counts as none.
            threshold: the score from which an alert is raised.
        """
        found: list[Change | None] = [None] * len(rows)
        rising = np.argsort(-np.nan_to_num(contributions, nan=-np.inf), axis=1, kind="stable")
        raised = np.take_along_axis(np.nan_to_num(contributions), rising, axis=1) > 0
        for size, most in ((1, _SINGLES), (2, _PAIRED)):
            left = [row for row in range(len(rows)) if found[row] is None]
            groups = [
                (row, chosen)
                for row in left
                for chosen in itertools.combinations(
                    rising[row, :most][raised[row, :most]].tolist(), size
                )
            ]
            if groups:
                self._try(rows, groups, threshold, found)
        return found

    def _try(
        self,
        rows: Rows,
        groups: list[tuple[int, tuple[int, ...]]],
        threshold: float,
        found: list[Change | None],
    ) -> None:
        size = len(groups[0][1])
        step = 1 if size == 1 else _VALUES // _PAIR_VALUES
        values = self._values[:, ::step]
        each = values.shape[1] ** size
        trial = np.repeat(rows[[row for row, _ in groups]], each, axis=0)
        for number, (_, chosen) in enumerate(groups):
            place = slice(number * each, (number + 1) * each)
            if size == 1:
                trial[place, chosen[0]] = values[chosen[0]]
            else:
                trial[place, chosen[0]] = np.repeat(values[chosen[0]], values.shape[1])
                trial[place, chosen[1]] = np.tile(values[chosen[1]], values.shape[1])
        scores = self._score(trial).reshape(len(groups), each)
        best: dict[int, float] = {}
        # NaN, of a feature without known values or a model that cannot score it, is not below.
        below = scores < threshold
        for number in np.flatnonzero(below.any(axis=1)).tolist():
            row, chosen = groups[number]
            cost = np.where(below[number], self._costs(rows[row], chosen, step), np.inf)
            at = int(cost.argmin())
            if cost[at] < best.get(row, np.inf):
                best[row] = float(cost[at])
                after = trial[number * each + at]
                found[row] = Change(
                    tuple(self._names[one] for one in chosen),
                    tuple(float(rows[row, one]) for one in chosen),
                    tuple(float(after[one]) for one in chosen),
                    float(scores[number, at]),
                )

    def _costs(self, row: Rows, chosen: tuple[int, ...], step: int) -> Rows:
        steps = [
            np.abs(self._ranks[one][::step] - _ranks(self._sorted[one], row[one : one + 1]))
            for one in chosen
        ]
        costs: Rows = steps[0] if len(steps) == 1 else np.add.outer(*steps).ravel()
        return costs


def _ranks(known: Rows, values: Rows) -> Rows:
    places: Rows = np.searchsorted(known, values, side="right") / max(1, len(known))
    return places
