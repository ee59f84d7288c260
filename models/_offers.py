"""The values that a change may propose, and which of the changes that do is nearest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numba as nb
import numpy as np
from numpy.typing import NDArray

__all__ = [
    "PAIR_STEP",
    "SINGLES",
    "VALUES",
    "Offers",
    "nearest",
    "pair_groups",
    "rising",
    "single_groups",
]

Rows = NDArray[np.float64]

VALUES: Final = 8
# Values per feature: quantiles of the reference rows. Fewer make changes larger than they need be,
# more cost rows to score: an alert costs at most 6 x 8 rows, and 3 x 16 more where no single
# feature is enough (pairs try every second value).

SINGLES: Final = 6
PAIRED: Final = 3
PAIR_STEP: Final = 2


@dataclass(frozen=True, slots=True)
class Offers:
    """Values on offer, shape (k, VALUES), ascending, and their ranks among the reference rows.

    `known` holds the reference cells of one feature after another, sorted; those of feature f are
    `known[start[f] : start[f + 1]]`. A feature without any offers NaN.
    """

    values: Rows
    ranks: Rows
    known: Rows
    start: NDArray[np.int64]

    @staticmethod
    def of(reference: NDArray[np.floating[Any]]) -> Offers:
        """Take the values from reference rows, shape (rows, k); NaN is skipped."""
        width = reference.shape[1]
        values, ranks = np.full((width, VALUES), np.nan), np.zeros((width, VALUES))
        known: list[Rows] = []
        wanted = np.linspace(0.0, 1.0, VALUES)
        for column in range(width):
            cells = reference[:, column].astype(np.float64)
            cells = np.sort(cells[~np.isnan(cells)])
            known.append(cells)
            if len(cells):
                # A real value, not one between two: half a payment would explain nothing.
                values[column] = np.quantile(cells, wanted, method="nearest")
                ranks[column] = np.searchsorted(cells, values[column], side="right") / len(cells)
        start = np.cumsum([0, *(len(cells) for cells in known)], dtype=np.int64)
        return Offers(values, ranks, np.concatenate(known), start)


@nb.njit("int64[:,::1](float64[:,:], int64[::1], int64)", cache=True, nogil=True)
def rising(contributions: Rows, start: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """Return the features that raised each row's score most, strongest first; -1 for no more.

    NaN counts as none, and a feature for which nothing is on offer is left out.
    """
    out = np.full((len(contributions), most), -1, np.int64)
    for row in range(len(contributions)):
        for place in range(most):
            best = -1
            for one in range(contributions.shape[1]):
                share = contributions[row, one]
                if not share > 0 or start[one] == start[one + 1]:
                    continue
                if best >= 0 and not share > contributions[row, best]:
                    continue
                taken = False
                for earlier in range(place):
                    taken |= out[row, earlier] == one
                if not taken:
                    best = one
            out[row, place] = best
    return out


@nb.njit("int64[:,:,::1](int64[:,:])", cache=True, nogil=True)
def single_groups(order: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return groups of one feature, shape (n, c, 2), from features in the order of `rising`."""
    groups = np.full((*order.shape, 2), -1, np.int64)
    groups[:, :, 0] = order
    return groups


@nb.njit("int64[:,:,::1](int64[:,:])", cache=True, nogil=True)
def pair_groups(order: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return groups of two of the strongest features, shape (n, c, 2), -1 twice for none."""
    groups = np.full((len(order), PAIRED * (PAIRED - 1) // 2, 2), -1, np.int64)
    for row in range(len(order)):
        place = 0
        for first in range(PAIRED):
            for second in range(first + 1, PAIRED):
                if order[row, second] >= 0:
                    groups[row, place, 0] = order[row, first]
                    groups[row, place, 1] = order[row, second]
                place += 1
    return groups


@nb.njit("float64(float64[::1], float64)", cache=True, nogil=True)
def _rank(known: Rows, value: float) -> float:
    # NaN sorts last, as in NumPy.
    if value != value:
        return 1.0
    return float(np.searchsorted(known, value, side="right") / len(known))


@nb.njit(
    "Tuple((int64[:,::1], boolean[::1]))(float64[:,:], int64[:,:,::1], float64[:,:,:,::1],"
    " float64[:,::1], float64[::1], int64[::1], int64, float64, float64)",
    cache=True,
    nogil=True,
)
def nearest(
    rows: Rows,
    groups: NDArray[np.int64],
    scores: Rows,
    ranks: Rows,
    known: Rows,
    start: NDArray[np.int64],
    step: int,
    threshold: float,
    doubt: float,
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return for each row the nearest change below the threshold, and which rows are in doubt.

    Distances are the shares of reference values in between, added up; of equals the first wins. NaN
    is not below. A row with a score within `doubt` of the threshold is in doubt.

    Args:
        rows: shape (n, k).
        groups: features to change, shape (n, c, 2); -1 in second place changes one, twice nothing.
        scores: with every `step`-th value of the two, shape (n, c, v, v or 1).
        ranks: of the values on offer.
        known: as in `Offers`.
        start: as in `Offers`.
        step: 1 or more.
        threshold: the score from which an alert is raised.
        doubt: how far `scores` may be from the model's own.

    Returns:
        Group and places of the values among those tried, shape (n, 3), -1 where there is none; and
        shape (n,).
    """
    best = np.full((len(rows), 3), -1, np.int64)
    doubtful = np.zeros(len(rows), np.bool_)
    for row in range(len(rows)):
        least = np.inf
        for one in range(groups.shape[1]):
            first, second = groups[row, one, 0], groups[row, one, 1]
            if first < 0:
                continue
            here = _rank(known[start[first] : start[first + 1]], rows[row, first])
            there = 0.0
            if second >= 0:
                there = _rank(known[start[second] : start[second + 1]], rows[row, second])
            for i in range(scores.shape[2]):
                for j in range(scores.shape[3]):
                    score = scores[row, one, i, j]
                    doubtful[row] |= abs(score - threshold) < doubt
                    if not score < threshold:
                        continue
                    cost = abs(ranks[first, i * step] - here)
                    if second >= 0:
                        cost += abs(ranks[second, j * step] - there)
                    if cost < least:
                        least = cost
                        best[row, 0], best[row, 1], best[row, 2] = one, i, j
    return best, doubtful
