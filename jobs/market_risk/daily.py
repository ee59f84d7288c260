"""Daily VaR forecasts against what came: hits, back-tests and traffic light of each firm.

The VaR of a firm as one of its UTC days ends is the forecast for its next one, whose P&L is the
change of what the firm is worth from end to end. A day that turns out to have ended otherwise is
judged anew, and so are those after it. A back-test looks at the newest `WINDOW` days.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, TypeAlias

import numpy as np

from jobs.market_risk.backtest import BacktestReport, backtest

__all__ = [
    "DAY_MS",
    "OPEN_DAYS",
    "WINDOW",
    "DailyBacktest",
    "DayEnd",
    "DayResult",
    "Forecaster",
]

Forecaster: TypeAlias = tuple[str, float]
"""What forecasts: a method of VaR and a level."""

DAY_MS: Final = 86_400_000
"""Length of a day."""

WINDOW: Final = 250
"""Days in a back-test: Basel's year."""

OPEN_DAYS: Final = 8
"""Days that are over and can still change: in a replay partitions run some quiet days apart."""


@dataclass(frozen=True, slots=True)
class DayEnd:
    """A firm as a day ended: what all its trading was worth, in base units, and its VaR.

    `worth` is cash and positions since the firm's first fill, fees paid. `value_at_risk` has one
    number for each forecaster; it is empty when there is none.
    """

    worth: float
    value_at_risk: tuple[float, ...]


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
        self._ends: dict[str, dict[int, DayEnd]] = {}
        self._hits: dict[str, dict[int, list[int]]] = {}
        # What was last told of each day that can change; after a restart it is told again.
        self._told: dict[tuple[str, int], tuple[object, ...]] = {}

    def put(self, ends: Mapping[int, Mapping[str, DayEnd]]) -> list[DayResult]:
        """Learn how days ended, by day and firm, and return what changed of their judgement.

        Args:
            ends: days that are new, or ended otherwise than known before.
        """
        since: dict[str, int] = {}
        for day in sorted(ends):
            for firm, end in ends[day].items():
                self._ends.setdefault(firm, {})[day] = end
                since.setdefault(firm, day)
        return [result for firm, day in sorted(since.items()) for result in self._judge(firm, day)]

    def snapshot(self) -> bytes:
        """Return the whole state; `restore` of it continues to the bit."""
        return json.dumps(
            {
                "forecasters": self._forecasters,
                "ends": {
                    firm: [[day, end.worth, end.value_at_risk] for day, end in ends.items()]
                    for firm, ends in self._ends.items()
                },
                "hits": {firm: list(hits.items()) for firm, hits in self._hits.items()},
            }
        ).encode()

    @staticmethod
    def restore(forecasters: tuple[Forecaster, ...], blob: bytes) -> DailyBacktest:
        """Return what `snapshot` described; with other forecasters the history begins anew."""
        saved = json.loads(blob)
        daily = DailyBacktest(forecasters)
        # A snapshot from before there were methods has `levels` in its place.
        if [tuple(one) for one in saved.get("forecasters", [])] != list(forecasters):
            return daily
        if "ends" not in saved:
            return daily._restore_undated(saved["day"], saved["forecasts"], saved["hits"])
        daily._ends = {
            firm: {day: DayEnd(worth, tuple(risk)) for day, worth, risk in ends}
            for firm, ends in saved["ends"].items()
        }
        daily._hits = {firm: dict(hits) for firm, hits in saved["hits"].items()}
        return daily

    def _restore_undated(
        self,
        day: int,
        forecasts: Mapping[str, tuple[float, list[float]]],
        hits: Mapping[str, list[list[int]]],
    ) -> DailyBacktest:
        # Before days could change, hits were kept without their days and only the newest end was.
        self._ends = {
            firm: {day - 1: DayEnd(worth, tuple(risk))} for firm, (worth, risk) in forecasts.items()
        }
        self._hits = {
            firm: {day - len(known) + place: one for place, one in enumerate(known)}
            for firm, known in hits.items()
        }
        return self

    def _judge(self, firm: str, since: int) -> Iterator[DayResult]:
        ends, hits = self._ends[firm], self._hits.setdefault(firm, {})
        judged: list[tuple[int, float, tuple[float, ...]]] = []
        for before, day in pairwise(sorted(ends)):
            forecast = ends[before].value_at_risk
            if day < since:
                continue
            if forecast:
                pnl = ends[day].worth - ends[before].worth
                hits[day] = [int(-pnl > one) for one in forecast]
                judged.append((day, pnl, forecast))
            else:
                hits.pop(day, None)
        # Every day that can change needs its own window before it.
        for day in sorted(hits)[: -WINDOW - OPEN_DAYS]:
            del hits[day]
        for day in sorted(ends)[: -OPEN_DAYS - 2]:
            del ends[day]
            self._told.pop((firm, day), None)
        for day, pnl, forecast in judged:
            if day not in hits:
                continue
            window = [one for one in sorted(hits) if one <= day][-WINDOW:]
            table = np.array([hits[one] for one in window], np.bool_)
            told = (pnl, forecast, table.tobytes())
            if self._told.get((firm, day)) != told:
                self._told[firm, day] = told
                for place, (method, level) in enumerate(self._forecasters):
                    column = table[:, place]
                    report = backtest(len(column), int(column.sum()), level, column)
                    hit = bool(column[-1])
                    yield DayResult(firm, day, method, level, forecast[place], pnl, hit, report)
