"""Find the smallest change of one or two features that would not have alerted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from models._offers import (
    PAIR_STEP,
    SINGLES,
    Offers,
    nearest,
    pair_groups,
    rising,
    single_groups,
)
from models._trials import TreeTrials
from models.explain import TreeReading

__all__ = ["Change", "ChangeFinder"]

Rows = NDArray[np.float64]
Groups = NDArray[np.int64]


class Change(NamedTuple):
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
        reading: TreeReading | None = None,
    ) -> None:
        """Take the features in the model's order.

        Args:
            names: k names.
            reference: shape (rows, k), the rows whose values may be proposed; NaN is skipped.
            score: scores rows of shape (n, k).
            reading: the model's trees; None has every trial scored by `score`.
        """
        self._names = names
        self._score = score
        self._offers = Offers.of(reference)
        self._trials = None if reading is None else TreeTrials(reading, self._offers)

    def find(self, rows: Rows, contributions: Rows, threshold: float) -> list[Change | None]:
        """Return for each row the change that brings its score below `threshold`, None without one.

        One feature is always preferred to two, then the change nearest in ranks among the
        reference. Only the features that raised the score most are changed (6 alone, 3 in pairs),
        and only to values that reference rows really have.

        Args:
            rows: shape (n, k).
            contributions: shape (n, k), which features raised the score; NaN counts as none.
            threshold: the score from which an alert is raised.
        """
        found: list[Change | None] = [None] * len(rows)
        asked = list(range(len(rows)))
        if self._trials is not None:
            asked = self._find_by_trees(rows, contributions, threshold, found)
        if asked:
            order = rising(contributions[asked], self._offers.start, SINGLES)
            for groups, step in ((single_groups(order), 1), (pair_groups(order), PAIR_STEP)):
                left = [place for place, row in enumerate(asked) if found[row] is None]
                if left:
                    again = [asked[place] for place in left]
                    changes = self._search(rows[again], groups[left], step, threshold)
                    for row, change in zip(again, changes, strict=True):
                        found[row] = change
        return found

    def _find_by_trees(
        self, rows: Rows, contributions: Rows, threshold: float, found: list[Change | None]
    ) -> list[int]:
        """Fill `found` and return the rows for which the model has to be asked everything."""
        if self._trials is None:
            return []
        asked, changed = [], []
        plans = self._trials.nearest(rows, contributions, threshold)
        for row, plan in enumerate(plans):
            if plan[0] < 0:
                asked.append(row)
            elif plan[0]:
                changed.append(row)
        if not changed:
            return asked
        trial = rows[changed]
        for place, row in enumerate(changed):
            size, first, second, one, two = plans[row]
            trial[place, int(first)] = one
            if size > 1:
                trial[place, int(second)] = two
        # What is told is the model's own word; where it disagrees, it is asked everything.
        for row, score in zip(changed, self._score(trial).tolist(), strict=True):
            if score < threshold:
                size, first, second, one, two = plans[row]
                features = (int(first), int(second))[: int(size)]
                found[row] = Change(
                    tuple([self._names[feature] for feature in features]),
                    tuple([float(rows[row, feature]) for feature in features]),
                    (one, two)[: int(size)],
                    score,
                )
            else:
                asked.append(row)
        return asked

    def _search(
        self, rows: Rows, groups: Groups, step: int, threshold: float
    ) -> list[Change | None]:
        """Ask the model about groups of features, shape (n, c, 2) as of `single_groups`."""
        offered = self._offers.values[:, ::step]
        count, width = groups.shape[1], offered.shape[1]
        shape = (len(rows), count, width, width if step > 1 else 1)
        trial = np.broadcast_to(rows[:, None, None, None, :], (*shape, rows.shape[1])).copy()
        for row, one in np.ndindex(len(rows), count):
            first, second = groups[row, one].tolist()
            if first >= 0:
                trial[row, one, :, :, first] = offered[first][:, None]
            if second >= 0:
                trial[row, one, :, :, second] = offered[second][None, :]
        scores = self._score(trial.reshape(-1, rows.shape[1])).reshape(shape)
        offers = self._offers
        best, _ = nearest(
            rows, groups, scores, offers.ranks, offers.known, offers.start, step, threshold, 0.0
        )
        return [
            None
            if one < 0
            else self._change(
                rows[row], trial[row, one, i, j], groups[row, one], float(scores[row, one, i, j])
            )
            for row, (one, i, j) in enumerate(best.tolist())
        ]

    def _change(self, row: Rows, after: Rows, group: NDArray[np.int64], score: float) -> Change:
        chosen = [one for one in group.tolist() if one >= 0]
        return Change(
            tuple(self._names[one] for one in chosen),
            tuple(float(row[one]) for one in chosen),
            tuple(float(after[one]) for one in chosen),
            score,
        )
