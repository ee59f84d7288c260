"""The newest price of each instrument by event time, and what positions are marked at.

`marks` are rows (last, its time, twice mid, its time) by instrument; `NO_PRICE` and a time of -1
where nothing is known.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from jobs.market_risk.market import NO_PRICE
from jobs.market_risk.names import text_rows
from jobs.market_risk.scaling import rescaled
from schemas.columns import StringColumn

__all__ = [
    "BLANK_MARK",
    "MarkColumns",
    "mark_prices",
    "put_newest",
    "rescaled_prices",
    "twice_price",
    "uses_mid",
]

BLANK_MARK: Final = (NO_PRICE, -1, NO_PRICE, -1)
"""The row of an instrument of which nothing is known."""


@dataclass(frozen=True, slots=True)
class MarkColumns:
    """Prices of some instruments, in order of arrival; `NO_PRICE` and -1 where nothing is known."""

    instrument_id: StringColumn
    price_scale: NDArray[np.int64]
    last: NDArray[np.int64]
    last_ms: NDArray[np.int64]
    twice_mid: NDArray[np.int64]
    quote_ms: NDArray[np.int64]

    def at_scale(self, own: NDArray[np.int64]) -> tuple[MarkColumns, NDArray[np.bool_]]:
        """Return the prices at other scales, and which rows lose nothing by that."""
        last, whole = rescaled_prices(self.last, self.price_scale, own)
        twice_mid, fits = rescaled_prices(self.twice_mid, self.price_scale, own)
        changed = replace(self, price_scale=own, last=last, twice_mid=twice_mid)
        return changed, whole & fits

    def take(self, rows: NDArray[np.bool_] | NDArray[np.intp]) -> MarkColumns:
        """Return some of the rows."""
        return MarkColumns(
            text_rows(self.instrument_id, rows),
            self.price_scale[rows],
            self.last[rows],
            self.last_ms[rows],
            self.twice_mid[rows],
            self.quote_ms[rows],
        )


def rescaled_prices(
    values: NDArray[np.int64], scale: NDArray[np.int64], wanted: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return what `rescaled` does; no price (`NO_PRICE`) stays none at every scale."""
    changed, exact = rescaled(values, scale, wanted)
    none = values == NO_PRICE
    return np.where(none, NO_PRICE, changed), exact | none


def put_newest(
    marks: NDArray[np.int64],
    instrument: NDArray[np.int32],
    news: MarkColumns,
    until_ms: int | None = None,
) -> bool:
    """Write prices that are no older than what is held; of equal times the later row counts.

    The trade and the quote of a row are taken each by its own time, so the order in which rows came
    does not matter unless their times are equal.

    Args:
        marks: what to write to.
        instrument: row of `marks` that each row of `news` belongs to.
        news: the prices.
        until_ms: times from this on are not taken.

    Returns:
        whether anything was written.
    """
    written = False
    for column, value, time_ms in (
        (0, news.last, news.last_ms),
        (2, news.twice_mid, news.quote_ms),
    ):
        rows = np.flatnonzero(
            (time_ms >= 0) if until_ms is None else (time_ms >= 0) & (time_ms < until_ms)
        )
        # The last of each instrument by time and then arrival.
        rows = rows[np.lexsort((rows, time_ms[rows], instrument[rows]))]
        rows = rows[np.diff(instrument[rows], append=-1) != 0]
        rows = rows[time_ms[rows] >= marks[instrument[rows], column + 1]]
        marks[instrument[rows], column] = value[rows]
        marks[instrument[rows], column + 1] = time_ms[rows]
        written |= bool(len(rows))
    return written


def uses_mid(marks: NDArray[np.int64], mark_at: str) -> NDArray[np.bool_]:
    """Return which instruments are marked at mid, the others at last.

    `mid` falls back to last where there is no sound quote, `last` to mid where nothing traded.
    """
    quoted, traded = marks[:, 2] != NO_PRICE, marks[:, 0] != NO_PRICE
    result: NDArray[np.bool_] = quoted if mark_at == "mid" else quoted & ~traded
    return result


def twice_price(marks: NDArray[np.int64], mark_at: str) -> NDArray[np.int64]:
    """Return twice the price that each instrument is marked at, exact; `NO_PRICE` unknown."""
    last = marks[:, 0]
    doubled = np.where(last == NO_PRICE, NO_PRICE, 2 * np.where(last == NO_PRICE, 0, last))
    return np.where(uses_mid(marks, mark_at), marks[:, 2], doubled)


def mark_prices(
    marks: NDArray[np.int64], mark_at: str
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return prices at their scale, NaN unknown, and the event time each is from."""
    twice = twice_price(marks, mark_at)
    price = np.where(twice == NO_PRICE, np.nan, twice / 2.0)
    return price, np.where(uses_mid(marks, mark_at), marks[:, 3], marks[:, 1])
