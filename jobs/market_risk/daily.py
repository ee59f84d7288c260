"""Daily VaR forecasts against what came: hits, back-tests and traffic light of each firm.

When the event time of a shard first reaches a new UTC day, the day that ended is judged: its P&L
against the VaR that was forecast when it began; then the VaR of the last evaluation becomes the
forecast of the new day. The newest `WINDOW` days are kept.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Final

import numpy as np

from jobs.market_risk.backtest import BacktestReport, backtest

__all__ = ["DAY_MS", "WINDOW", "DailyBacktest", "DayResult"]

DAY_MS: Final = 86_400_000
"""Length of a day."""

WINDOW: Final = 250
"""Days in a back-test: Basel's year."""


@dataclass(frozen=True, slots=True)
class DayResult:
    """One day of one firm at one level; money in base units, P&L positive for a gain."""

    firm: str
    day: int
    level: float
    forecast: float
    pnl: float
    exception: bool
    report: BacktestReport


class DailyBacktest:
    """Forecasts and hits of the firms of a shard."""

    def __init__(self, levels: tuple[float, ...]) -> None:
        self._levels = levels
        self._day = -1
        self._forecasts: dict[str, tuple[float, list[float]]] = {}
        self._hits: dict[str, list[list[int]]] = {}

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
            value_at_risk: of each firm, one number for each level; empty when there is none yet.
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
                for place, (level, forecast) in enumerate(zip(self._levels, began[1], strict=True)):
                    column = np.array([row[place] for row in history], np.bool_)
                    report = backtest(len(column), int(column.sum()), level, column)
                    results.append(
                        DayResult(firm, ended, level, forecast, change, bool(hits[place]), report)
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
                "levels": self._levels,
                "day": self._day,
                "forecasts": self._forecasts,
                "hits": self._hits,
            }
        ).encode()

    @staticmethod
    def restore(levels: tuple[float, ...], blob: bytes) -> DailyBacktest:
        """Return what `snapshot` described; other levels than then begin their history anew."""
        saved = json.loads(blob)
        daily = DailyBacktest(levels)
        daily._day = saved["day"]
        if tuple(saved["levels"]) == levels:
            daily._forecasts = {
                firm: (pnl, risk) for firm, (pnl, risk) in saved["forecasts"].items()
            }
            daily._hits = saved["hits"]
        return daily
