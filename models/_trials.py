"""Raw scores of a row with one or two of its features changed, for every value on offer.

A tree whose path does not test a changed feature gives what it gave before, and where a path does
test it, a range of the values goes one way and the rest the other. So a tree is walked once for all
values together, and a walk splits only where they part.
"""

from __future__ import annotations

from typing import Final

import numba as nb
import numpy as np
from numpy.typing import NDArray

from models._compiled import LINKS
from models._layout import breadth_first, tree_depths
from models._offers import (
    PAIR_STEP,
    SINGLES,
    VALUES,
    Offers,
    nearest,
    pair_groups,
    rising,
    single_groups,
)
from models.explain import TreeReading

__all__ = ["TreeTrials"]

Rows = NDArray[np.float64]
Groups = NDArray[np.int64]

_DOUBT: Final = 1e-5
# Trees are summed in float64 here and in float32 by the model. A score this near the threshold is
# asked of the model itself; float32 sums of some hundred trees differ by about 1e-6.


class TreeTrials:
    """The trials of one model that is its trees."""

    def __init__(self, reading: TreeReading, offers: Offers) -> None:
        """Take the trees and the values on offer."""
        laid = breadth_first(reading.trees)
        inner = np.flatnonzero(laid.feature >= 0)
        values = offers.values.astype(np.float32)[laid.feature[inner]]
        # How many of its feature's values go left at a node: the first ones, as they ascend.
        parts = np.zeros(len(laid.feature), np.int32)
        parts[inner] = (values <= laid.threshold[inner, None]).sum(axis=1)
        self._model = (
            laid.roots,
            laid.feature,
            laid.threshold,
            laid.left,
            laid.missing_left,
            laid.value,
            parts,
            float(laid.base),
            int(tree_depths(laid).max(initial=0)) + 1,
            LINKS.index(reading.scale),
            offers.values,
            offers.ranks,
            offers.known,
            offers.start,
        )

    def nearest(
        self, rows: Rows, contributions: Rows, threshold: float
    ) -> list[tuple[float, float, float, float, float]]:
        """Return what to change in each row: how many features, which, and their new values.

        Scores are sums in float64: a row for which that may decide has -1 features.
        """
        found: list[tuple[float, float, float, float, float]] = _find(
            rows, contributions, threshold, *self._model
        ).tolist()
        return found


_TREES = "int32[::1], int32[::1], float32[::1], int32[::1], boolean[::1], float64[::1], int32[::1]"


@nb.njit(inline="always")
def _child(
    node: int,
    cells: NDArray[np.float32],
    feature: NDArray[np.int32],
    threshold: NDArray[np.float32],
    left: NDArray[np.int32],
    missing_left: NDArray[np.bool_],
) -> int:
    cell = cells[feature[node]]
    goes_left = (cell <= threshold[node]) | ((cell != cell) & missing_left[node])
    child: int = left[node] + 1 - np.int32(goes_left)
    return child


@nb.njit(
    f"float64[:,:,:,::1](float32[:,::1], int64[:,:,::1], {_TREES}, float64, int64)",
    cache=True,
    nogil=True,
)
def _singles(
    rows: NDArray[np.float32],
    groups: Groups,
    roots: NDArray[np.int32],
    feature: NDArray[np.int32],
    threshold: NDArray[np.float32],
    left: NDArray[np.int32],
    missing_left: NDArray[np.bool_],
    value: NDArray[np.float64],
    parts: NDArray[np.int32],
    base: float,
    depth: int,
) -> Rows:
    """Return raw scores, shape (n, c, values, 1), with feature `groups[n, c, 0]` changed."""
    count = groups.shape[1]
    out = np.zeros((len(rows), count, VALUES, 1))
    # Which of the chosen a feature is, -1 for none.
    number = np.full(rows.shape[1], -1, np.int32)
    low, high = np.empty(count, np.int32), np.empty(count, np.int32)
    # Walks put off: at most one a level on the row's own path, and on a walk that left it.
    later = np.empty((2 * depth, 4), np.int32)
    for row in range(len(rows)):
        cells = rows[row]
        for one in range(count):
            if groups[row, one, 0] >= 0:
                number[groups[row, one, 0]] = one
        total = base
        for tree in range(len(roots)):
            for one in range(count):
                low[one], high[one] = 0, VALUES
            waiting = 0
            node = roots[tree]
            while feature[node] >= 0:
                one = number[feature[node]]
                child = _child(node, cells, feature, threshold, left, missing_left)
                if one >= 0:
                    part = parts[node]
                    if child == left[node]:
                        begin, end = max(low[one], part), high[one]
                        high[one] = min(high[one], part)
                    else:
                        begin, end = low[one], min(high[one], part)
                        low[one] = max(low[one], part)
                    if begin < end:
                        other = 2 * left[node] + 1 - child
                        later[waiting, 0], later[waiting, 1] = other, one
                        later[waiting, 2], later[waiting, 3] = begin, end
                        waiting += 1
                node = child
            own = value[node]
            total += own
            while waiting:
                waiting -= 1
                node, one = later[waiting, 0], later[waiting, 1]
                begin, end = later[waiting, 2], later[waiting, 3]
                while feature[node] >= 0:
                    if number[feature[node]] != one:
                        node = _child(node, cells, feature, threshold, left, missing_left)
                        continue
                    part = parts[node]
                    if part <= begin:
                        node = left[node] + 1
                    else:
                        if part < end:
                            later[waiting, 0], later[waiting, 1] = left[node] + 1, one
                            later[waiting, 2], later[waiting, 3] = part, end
                            waiting += 1
                            end = part
                        node = left[node]
                for place in range(begin, end):
                    out[row, one, place, 0] += value[node] - own
        for one in range(count):
            for place in range(VALUES):
                out[row, one, place, 0] += total
            if groups[row, one, 0] >= 0:
                number[groups[row, one, 0]] = -1
    return out


@nb.njit(
    f"float64[:,:,:,::1](float32[:,::1], int64[:,:,::1], {_TREES}, float64, int64, int64)",
    cache=True,
    nogil=True,
)
def _pairs(
    rows: NDArray[np.float32],
    groups: Groups,
    roots: NDArray[np.int32],
    feature: NDArray[np.int32],
    threshold: NDArray[np.float32],
    left: NDArray[np.int32],
    missing_left: NDArray[np.bool_],
    value: NDArray[np.float64],
    parts: NDArray[np.int32],
    base: float,
    depth: int,
    step: int,
) -> Rows:
    """Return raw scores, shape (n, c, v, v), with both features of `groups[n, c]` changed.

    Every `step`-th value is tried, the first feature's along the third axis.
    """
    count = groups.shape[1]
    width = (VALUES + step - 1) // step
    out = np.full((len(rows), count, width, width), base)
    later = np.empty((depth, 5), np.int32)
    for row in range(len(rows)):
        cells = rows[row]
        for one in range(count):
            first, second = groups[row, one, 0], groups[row, one, 1]
            if first < 0:
                continue
            for tree in range(len(roots)):
                later[0, 0] = roots[tree]
                later[0, 1], later[0, 2], later[0, 3], later[0, 4] = 0, width, 0, width
                waiting = 1
                while waiting:
                    waiting -= 1
                    node = later[waiting, 0]
                    top, bottom = later[waiting, 1], later[waiting, 2]
                    begin, end = later[waiting, 3], later[waiting, 4]
                    while feature[node] >= 0:
                        if feature[node] != first and feature[node] != second:
                            node = _child(node, cells, feature, threshold, left, missing_left)
                            continue
                        # Of every `step`-th value, those that go left.
                        part = (parts[node] + step - 1) // step
                        low, high = (top, bottom) if feature[node] == first else (begin, end)
                        if part <= low:
                            node = left[node] + 1
                            continue
                        if part < high:
                            later[waiting, 0] = left[node] + 1
                            later[waiting, 1], later[waiting, 2] = top, bottom
                            later[waiting, 3], later[waiting, 4] = begin, end
                            if feature[node] == first:
                                later[waiting, 1] = part
                                bottom = part
                            else:
                                later[waiting, 3] = part
                                end = part
                            waiting += 1
                        node = left[node]
                    for i in range(top, bottom):
                        for j in range(begin, end):
                            out[row, one, i, j] += value[node]
    return out


_OFFERS = "float64[:,::1], float64[:,::1], float64[::1], int64[::1]"


@nb.njit("void(float64[:,:,:,::1], int64)", cache=True, nogil=True)
def _link(raw: Rows, link: int) -> None:
    cells = raw.reshape(-1)
    for place in range(len(cells)):
        if link == 0:
            cells[place] = 1.0 / (1.0 + np.exp(-cells[place]))
        elif link == 1:
            cells[place] = np.exp2(cells[place])


@nb.njit(
    f"float64[:,::1](float64[:,:], float64[:,:], float64, {_TREES}, float64, int64, int64,"
    f" {_OFFERS})",
    cache=True,
    nogil=True,
)
def _find(
    rows: Rows,
    contributions: Rows,
    threshold: float,
    roots: NDArray[np.int32],
    feature: NDArray[np.int32],
    cut: NDArray[np.float32],
    left: NDArray[np.int32],
    missing_left: NDArray[np.bool_],
    value: NDArray[np.float64],
    parts: NDArray[np.int32],
    base: float,
    depth: int,
    link: int,
    values: Rows,
    ranks: Rows,
    known: Rows,
    start: NDArray[np.int64],
) -> Rows:
    found = np.zeros((len(rows), 5))
    order = rising(contributions, start, SINGLES)
    for row in range(len(rows)):
        one = rows[row : row + 1]
        cells = np.ascontiguousarray(one.astype(np.float32))
        for size in range(1, 3):
            groups = single_groups(order[row : row + 1])
            step = 1
            if size == 1:
                scores = _singles(
                    cells, groups, roots, feature, cut, left, missing_left, value, parts, base,
                    depth,
                )  # fmt: skip
            else:
                groups, step = pair_groups(order[row : row + 1]), PAIR_STEP
                scores = _pairs(
                    cells, groups, roots, feature, cut, left, missing_left, value, parts, base,
                    depth, step,
                )  # fmt: skip
            _link(scores, link)
            best, doubtful = nearest(
                one, groups, scores, ranks, known, start, step, threshold, _DOUBT
            )
            if doubtful[0]:
                found[row, 0] = -1
                break
            group, i, j = best[0]
            if group >= 0:
                found[row, 0] = size
                for place in range(size):
                    changed = groups[0, group, place]
                    found[row, 1 + place] = changed
                    found[row, 3 + place] = values[changed, (i if place == 0 else j) * step]
                break
    return found
