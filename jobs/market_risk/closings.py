"""What the firms of a shard held, and at which prices, as each UTC day ended.

A day ends with the fills and prices whose event time lies in it or before, in whatever order and
batches they came: an event of a day that is already over changes how that day, and every later one
that is over, ended. The newest `OPEN_DAYS` days that are over can change; what is older than they
are counts in the oldest of them.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from jobs.market_risk.daily import DAY_MS, OPEN_DAYS, DayEnd
from jobs.market_risk.engine import FillOutcome, RiskEngine
from jobs.market_risk.exposure import BASE_SCALE, to_base, values_in_base
from jobs.market_risk.measures import PositionMoney, measure_groups
from jobs.market_risk.prices import BLANK_MARK, MarkColumns, mark_prices, put_newest, twice_price
from schemas.errors import ConfigurationError

__all__ = ["Closings"]

_RATE_DAYS: Final = 400
_VERSION: Final = 1
_QUANTITY, _CASH, _FILLS = range(3)


@dataclass(slots=True)
class _Closing:
    # The end of one day: the newest event time in it, prices by instrument as in `prices`, and
    # quantity, cash and number of fills of each position.
    as_of_ms: int
    marks: NDArray[np.int64]
    held: NDArray[np.int64]


class Closings:
    """The ends of the days that can still change."""

    def __init__(self) -> None:
        self._day = -1  # the newest day with an event
        self._dropped = -1  # the newest day that can no longer change
        self._open: dict[int, _Closing] = {}
        self._dirty: set[int] = set()
        # Newest FX rate of each day by currency: (rate, event time).
        self._rates: dict[str, dict[int, tuple[int, int]]] = {}

    @staticmethod
    def of(engine: RiskEngine) -> Closings:
        """Return the closings of a shard that kept none: its current day is the first to end."""
        closings = Closings()
        closings._day = engine.event_time_ms // DAY_MS
        closings._dropped = closings._day - 1
        for currency, (rate, event_time_ms) in engine.fx.state().items():
            closings.put_rate(currency, rate, event_time_ms)
        return closings

    def reach(self, times_ms: NDArray[np.int64], engine: RiskEngine) -> None:
        """Close days that these events are past; call it before the engine takes them."""
        if not len(times_ms) or int(times_ms.min()) // DAY_MS == self._day == (
            int(times_ms.max()) // DAY_MS
        ):
            return
        for day in np.unique(times_ms[times_ms >= 0] // DAY_MS).tolist():
            if day > self._day:
                if self._day >= 0:
                    self._close(self._day, _now(engine))
                self._day = day
            elif day < self._day and day not in self._open and day > self._dropped:
                before = max((one for one in self._open if one < day), default=None)
                self._close(day, _nothing() if before is None else _copy(self._open[before]))

    def add_fills(self, outcome: FillOutcome, positions: int) -> None:
        """Count fills of days that are over, after the engine took them.

        Args:
            outcome: what the engine made of each.
            positions: how many positions it has now.
        """
        fills = outcome.fills
        late = np.flatnonzero(outcome.counted & (fills.event_time_ms < self._day * DAY_MS))
        if not len(late):
            return
        quantity, times_ms = fills.quantity[late], fills.event_time_ms[late]
        cash = -quantity * fills.price[late] * outcome.multiplier[late] - fills.fee[late]
        change = np.stack([quantity, cash, np.ones(len(late), np.int64)], axis=1)
        for day, closing in self._open.items():
            mine = times_ms < (day + 1) * DAY_MS
            if mine.any():
                closing.held = _padded(closing.held, positions, (0, 0, 0))
                np.add.at(closing.held, outcome.position[late][mine], change[mine])
                closing.as_of_ms = max(closing.as_of_ms, int(times_ms[mine].max()))
                self._dirty.add(day)

    def put_marks(
        self, instrument: NDArray[np.int32], marks: MarkColumns, instruments: int
    ) -> None:
        """Take prices of days that are over.

        Args:
            instrument: the engine's number of each row's instrument.
            marks: the prices.
            instruments: how many the engine knows.
        """
        times = np.stack([marks.last_ms, marks.quote_ms])
        if not self._open or not np.any((times >= 0) & (times < self._day * DAY_MS)):
            return
        for day, closing in self._open.items():
            end_ms = (day + 1) * DAY_MS
            closing.marks = _padded(closing.marks, instruments, BLANK_MARK)
            if put_newest(closing.marks, instrument, marks, end_ms):
                closing.as_of_ms = max(closing.as_of_ms, int(times[times < end_ms].max()))
                self._dirty.add(day)

    def put_rate(self, currency: str, rate: int, event_time_ms: int) -> None:
        """Take an FX rate; days end at the newest of theirs or before, or the first there is."""
        rates = self._rates.setdefault(currency, {})
        day = event_time_ms // DAY_MS
        if event_time_ms < rates.get(day, (0, -1))[1]:
            return
        rates[day] = (rate, event_time_ms)
        if len(rates) > _RATE_DAYS:
            del rates[min(rates)]
        # With a first rate even earlier days can be converted.
        self._dirty |= {one for one in self._open if one >= day or len(rates) == 1}

    def ends(self, engine: RiskEngine) -> dict[int, dict[str, DayEnd]]:
        """Return how days ended that changed since the last call, by day and firm.

        Afterwards only the newest `OPEN_DAYS` can change.
        """
        found = {day: self._measure(day, engine) for day in sorted(self._dirty)}
        self._dirty.clear()
        for day in sorted(self._open)[:-OPEN_DAYS]:
            del self._open[day]
            self._dropped = day
        return found

    def snapshot(self) -> bytes:
        """Return the whole state; `restore` of it continues to the bit."""
        days = sorted(self._open)
        arrays = {
            f"{name}_{day}": getattr(self._open[day], name)
            for day in days
            for name in ("marks", "held")
        }
        buffer = io.BytesIO()
        np.savez(
            buffer,
            version=np.array([_VERSION]),
            days=np.array([[day, self._open[day].as_of_ms] for day in days], np.int64),
            reached=np.array([self._day, self._dropped]),
            dirty=np.array(sorted(self._dirty), np.int64),
            rates=np.frombuffer(
                json.dumps({name: list(one.items()) for name, one in self._rates.items()}).encode(),
                np.uint8,
            ),
            **arrays,
        )
        return buffer.getvalue()

    @staticmethod
    def restore(blob: bytes) -> Closings:
        """Return the closings that `snapshot` described.

        Raises:
            ConfigurationError: if another version wrote the blob.
        """
        closings = Closings()
        with np.load(io.BytesIO(blob), allow_pickle=False) as saved:
            version = int(saved["version"][0])
            if version != _VERSION:
                msg = f"restoring closings: expected version {_VERSION}, was {version}"
                raise ConfigurationError(msg)
            closings._day, closings._dropped = saved["reached"].tolist()
            closings._dirty = set(saved["dirty"].tolist())
            for day, as_of_ms in saved["days"].reshape(-1, 2).tolist():
                closings._open[day] = _Closing(
                    as_of_ms, saved[f"marks_{day}"], saved[f"held_{day}"]
                )
            for currency, rates in json.loads(saved["rates"].tobytes()).items():
                closings._rates[currency] = {day: (rate, at) for day, (rate, at) in rates}
        return closings

    def _close(self, day: int, closing: _Closing) -> None:
        self._open[day] = closing
        self._dirty.add(day)

    def _rate(self, currency: str, day: int) -> int:
        rates = self._rates.get(currency)
        if not rates:
            return 0
        known = [one for one in rates if one <= day]
        return rates[max(known) if known else min(rates)][0]

    def _measure(self, day: int, engine: RiskEngine) -> dict[str, DayEnd]:
        closing = self._open[day]
        if not closing.held[:, _FILLS].any():
            return {}
        keys, grouping = engine.grouped()
        held = _padded(closing.held, len(keys), (0, 0, 0))
        marks = _padded(closing.marks, len(engine.instruments), BLANK_MARK)
        described = engine.described()
        currencies = [item.currency or engine.fx.base for item in described.terms]
        known = {name: self._rate(name, day) for name in set(currencies)}
        known[engine.fx.base] = engine.fx.rate(engine.fx.base)
        described = replace(
            described, rates=np.array([known[name] for name in currencies], np.int64)
        )
        instrument = keys[:, 3]
        rate, multiplier = described.rates[instrument], described.multiplier[instrument]
        scale = engine.scales[instrument].sum(axis=1)
        price, _ = mark_prices(marks, engine.config.mark_at)
        twice = twice_price(marks, engine.config.mark_at)[instrument]
        flat = held[:, _QUANTITY] == 0
        money = np.maximum(rate, 1)
        value, fits = values_in_base(held[:, _QUANTITY], twice, multiplier, scale, money)
        priced = ((np.isfinite(price)[instrument] & fits) | flat) & (rate > 0)
        value = np.where(priced, value, 0)
        equity = value + to_base(np.where(priced, held[:, _CASH], 0), scale, money)
        nothing = np.zeros(len(keys), np.int64)
        quantity = held[:, _QUANTITY] / np.power(10.0, engine.scales[instrument, 1])
        spot = price / np.power(10.0, np.maximum(engine.scales[:, 0], 0))
        measures, _ = measure_groups(
            grouping,
            PositionMoney(instrument, quantity, value, nothing, nothing, nothing, priced),
            engine.market(described, spot, closing.as_of_ms),
            engine.config.levels,
            engine.config.methods,
        )
        equities = grouping.total(equity)
        fills = grouping.total(held[:, _FILLS])
        return {
            firm: DayEnd(
                int(equities[place]) / 10.0**BASE_SCALE,
                tuple(measures.method_var[:, :, place - grouping.instruments].ravel().tolist()),
            )
            for place, (firm, scope, _) in enumerate(grouping.names)
            if scope == "firm" and fills[place]
        }


def _now(engine: RiskEngine) -> _Closing:
    rows = engine.book.rows()
    held = np.stack([rows.quantity, rows.cash, rows.fills], axis=1)
    return _Closing(engine.event_time_ms, engine.marks.copy(), held)


def _nothing() -> _Closing:
    return _Closing(-1, np.empty((0, 4), np.int64), np.empty((0, 3), np.int64))


def _copy(closing: _Closing) -> _Closing:
    return _Closing(closing.as_of_ms, closing.marks.copy(), closing.held.copy())


def _padded(rows: NDArray[np.int64], count: int, blank: tuple[int, ...]) -> NDArray[np.int64]:
    if len(rows) >= count:
        return rows
    return np.concatenate([rows, np.tile(np.array(blank, np.int64), (count - len(rows), 1))])
