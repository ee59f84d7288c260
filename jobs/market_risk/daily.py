"""Daily VaR forecasts against what came: hits, back-tests and traffic light of each firm.

When the event time of a shard first reaches a new UTC day, the day that ended is judged: its P&L
against the VaR that was forecast when it began, by every method and level; then the VaR of the last
evaluation becomes the forecast of the new day. The newest `WINDOW` days are kept.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from jobs.market_risk.backtest import BacktestReport, backtest

__all__ = ["DAY_MS", "WINDOW", "DailyBacktest", "DayResult", "Forecaster", "day_starts"]

Forecaster: TypeAlias = tuple[str, float]
"""What forecasts: a method of VaR and a level."""

DAY_MS: Final = 86_400_000
"""Length of a day."""

WINDOW: Final = 250
"""Days in a back-test: Basel's year."""


def day_starts(
    rows: NDArray[np.integer[Any]], times_ms: NDArray[np.int64], day: int
) -> list[tuple[int, int]]:
    """Return the rows that begin a UTC day later than any before, and the event time of each.

    Args:
        rows: places of events in their batch, in any order.
        times_ms: event time of each.
        day: the newest day before the batch, counted from 1970.
    """
    order = np.argsort(rows, kind="stable")
    rows, times_ms = rows[order], times_ms[order]
    days = np.maximum.accumulate(np.append(day, times_ms // DAY_MS))
    return [(int(rows[at]), int(times_ms[at])) for at in np.flatnonzero(np.diff(days) > 0)]


@dataclass(frozen=True, slots=True)
class DayResult:
    """One day of one firm by one method at one level.

    Money is in base units, P&L positive for a gain; `day` counts from 1970.
    """

    firm: str
    day: int
    method: str
    level: float
    forecast: float
    pnl: float
    exception: bool
    report: BacktestReport


class DailyBacktest:
    """Forecasts and hits of the firms of a shard."""

    def __init__(self, forecasters: tuple[Forecaster, ...]) -> None:
        self._forecasters = forecasters
        self._day = -1
        self._forecasts: dict[str, tuple[float, list[float]]] = {}
        self._hits: dict[str, list[list[int]]] = {}

    @property
    def day(self) -> int:
        """The current day, counted from 1970; -1 before the first event."""
        return self._day

    def crosses(self, event_time_ms: int) -> bool:
        """Return whether this event time begins a day after the current one."""
        return event_time_ms // DAY_MS > self._day

    def roll(
        self, event_time_ms: int, pnl: dict[str, float], value_at_risk: dict[str, list[float]]
    ) -> list[DayResult]:
        """End the current day and begin that of `event_time_ms`.

        Args:
            event_time_ms: of the event that begins the day.
            pnl: total P&L of each firm since its beginning, as of now.
            value_at_risk: of each firm, one number for each forecaster; empty when there is none.
        """
        ended, self._day = self._day, event_time_ms // DAY_MS
        results = []
        for firm in sorted(pnl):
            began = self._forecasts.get(firm)
            if began is not None and ended >= 0:
                change = pnl[firm] - began[0]
                hits = [int(-change > forecast) for forecast in began[1]]
                history = self._hits.setdefault(firm, [])
                history.append(hits)
                del history[:-WINDOW]
                table = np.array(history, np.bool_)
                for place, (method, level) in enumerate(self._forecasters):
                    column = table[:, place]
                    report = backtest(len(column), int(column.sum()), level, column)
                    forecast, hit = began[1][place], bool(hits[place])
                    results.append(
                        DayResult(firm, ended, method, level, forecast, change, hit, report)
                    )
            risk = value_at_risk.get(firm, [])
            if risk:
                self._forecasts[firm] = (pnl[firm], risk)
            else:
                self._forecasts.pop(firm, None)
        return results

    def snapshot(self) -> bytes:
        """Return the whole state; `restore` of it continues to the bit."""
        return json.dumps(
            {
                "forecasters": self._forecasters,
                "day": self._day,
                "forecasts": self._forecasts,
                "hits": self._hits,
            }
        ).encode()

    @staticmethod
    def restore(forecasters: tuple[Forecaster, ...], blob: bytes) -> DailyBacktest:
        """Return what `snapshot` described; with other forecasters the history begins anew."""
        saved = json.loads(blob)
        daily = DailyBacktest(forecasters)
        daily._day = saved["day"]
        # A snapshot from before there were methods has `levels` in its place.
        if [tuple(one) for one in saved.get("forecasters", [])] == list(forecasters):
            daily._forecasts = {
                firm: (pnl, risk) for firm, (pnl, risk) in saved["forecasts"].items()
            }
            daily._hits = saved["hits"]
        return daily
