"""Exact OHLCV bars for several intervals from trades, in any cut of the stream into batches.

A bar covers `[start, start + interval)` of event time, aligned to the epoch. Prices and sizes are
scaled integers, so high, low, open, close and volume are exact. Definitions:

* open and close are the trades of least and greatest event time; among equals the order of arrival
  decides (first for open, last for close);
* a bar without trades does not exist; `fill_empty` adds flat ones for those who want them;
* a late trade corrects its bar as long as the bar is among the newest `retained` of its instrument
  and interval; the row is sent again with a higher `revision`; an older trade changes nothing and
  is counted in `too_late`.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, fields
from typing import Final

import numba as nb
import numpy as np
from numpy.typing import NDArray

from jobs.market_risk.scaling import unscale
from schemas.errors import ConfigurationError

__all__ = ["BarBuilder", "BarRows", "fill_empty", "merge_bars", "parse_interval", "warm"]

_UNITS: Final = {"s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 7 * 86_400_000}
_SNAPSHOT_VERSION: Final = 1

# Columns of the integer state, one row for each (instrument, interval, slot).
_START, _FIRST, _LAST, _OPEN, _HIGH, _LOW, _CLOSE, _VOLUME, _TRADES, _DIRTY = range(10)
_EMPTY: Final = np.iinfo(np.int64).min
# Bars looked back at for indicators; the ring holds at least as many.
_AVERAGE_BARS: Final = 20
_EWMA_BARS: Final = 60
_EWMA_DECAY: Final = 0.94


@dataclass(frozen=True, slots=True)
class BarRows:
    """Bars as columns of one length, in the order in which they changed.

    `revision` is the number of trades in the bar: a later row of the same bar has a greater one.
    `moving_average` is the mean close of up to 20 bars ending here, `realised_volatility` the root
    of their summed squared log returns, `ewma_volatility` the RiskMetrics one over up to 60 bars
    (both per bar, not annualised; 0 until there are two bars). A bar corrected late uses the bars
    still held.
    """

    instrument: NDArray[np.int32]
    interval_ms: NDArray[np.int64]
    start_ms: NDArray[np.int64]
    open: NDArray[np.int64]
    high: NDArray[np.int64]
    low: NDArray[np.int64]
    close: NDArray[np.int64]
    volume: NDArray[np.int64]
    trades: NDArray[np.int64]
    vwap: NDArray[np.float64]
    moving_average: NDArray[np.float64]
    realised_volatility: NDArray[np.float64]
    ewma_volatility: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.start_ms)

    def take(self, indexes: NDArray[np.intp]) -> BarRows:
        """Return the chosen rows."""
        return BarRows(*(getattr(self, field.name)[indexes] for field in fields(self)))

    def latest(self) -> BarRows:
        """Return the last row of each bar, sorted by instrument, interval and start."""
        order = np.lexsort((np.arange(len(self)), self.start_ms, self.interval_ms, self.instrument))
        keys = np.stack([self.instrument[order], self.interval_ms[order], self.start_ms[order]])
        last = np.ones(len(order), np.bool_)
        last[:-1] = np.any(keys[:, 1:] != keys[:, :-1], axis=0)
        return self.take(order[last])


class BarBuilder:
    """Build bars of each instrument and interval, at most `retained` of each in memory.

    Instruments are small integers from 0. `retained` bars (64 at least, for the indicators) bound
    both memory, 104 bytes a bar, and how late a trade may be.
    """

    def __init__(self, intervals_ms: tuple[int, ...], retained: int = 64) -> None:
        if not intervals_ms or min(intervals_ms) < 1 or retained < _EWMA_BARS:
            msg = (
                f"building bars: expected positive intervals and {_EWMA_BARS} or more retained, "
                f"was {intervals_ms!r} and {retained!r}"
            )
            raise ConfigurationError(msg)
        self._intervals = np.array(intervals_ms, np.int64)
        self._retained = retained
        self._state = self._blank(0)
        self._notional = np.zeros((*self._state.shape[:3], 2))
        self._newest = np.empty((0, len(intervals_ms)), np.int64)
        self.too_late = 0
        """Trades older than every retained bar, since the start; they changed no bar."""

    def update(
        self,
        instrument: NDArray[np.int32],
        time_ms: NDArray[np.int64],
        price: NDArray[np.int64],
        size: NDArray[np.int64],
    ) -> BarRows:
        """Add trades in order of arrival and return every bar that changed, as it now stands.

        A bar that changed twice with a newer bar in between may be returned twice; the last row
        rules.
        """
        if len(instrument):
            self._grow(int(instrument.max()) + 1)
        capacity = 2 * len(instrument) * len(self._intervals)
        whole = np.empty((capacity, 9), np.int64)
        real = np.empty((capacity, 4))
        touched = np.empty(capacity, np.int64)
        count, late = _update(
            self._intervals,
            self._state,
            self._notional,
            self._newest,
            np.array(instrument, np.int32),
            np.array(time_ms, np.int64),
            np.array(price, np.int64),
            np.array(size, np.int64),
            whole,
            real,
            touched,
        )
        self.too_late += late
        whole, real = np.ascontiguousarray(whole[:count].T), np.ascontiguousarray(real[:count].T)
        return BarRows(
            whole[0].astype(np.int32),
            interval_ms=whole[1],
            start_ms=whole[2],
            open=whole[3],
            high=whole[4],
            low=whole[5],
            close=whole[6],
            volume=whole[7],
            trades=whole[8],
            vwap=real[0],
            moving_average=real[1],
            realised_volatility=real[2],
            ewma_volatility=real[3],
        )

    def snapshot(self) -> bytes:
        """Return the whole state; `restore` of it continues to the bit."""
        held = np.flatnonzero(self._state[..., _START].ravel() != _EMPTY)
        # Room kept for instruments to come is not state.
        used = np.flatnonzero(np.any(self._newest != _EMPTY, axis=1)).max(initial=-1) + 1
        buffer = io.BytesIO()
        np.savez(
            buffer,
            version=np.array([_SNAPSHOT_VERSION, self._retained, self.too_late]),
            intervals=self._intervals,
            newest=self._newest[:used],
            held=held,
            state=self._state.reshape(-1, 10)[held],
            notional=self._notional.reshape(-1, 2)[held],
        )
        return buffer.getvalue()

    @staticmethod
    def restore(blob: bytes) -> BarBuilder:
        """Return the builder that `snapshot` described.

        Raises:
            ConfigurationError: if another version wrote the blob.
        """
        with np.load(io.BytesIO(blob), allow_pickle=False) as saved:
            version, retained, late = (int(item) for item in saved["version"])
            if version != _SNAPSHOT_VERSION:
                msg = (
                    f"restoring bars: expected snapshot version {_SNAPSHOT_VERSION}, was {version}"
                )
                raise ConfigurationError(msg)
            builder = BarBuilder(tuple(int(item) for item in saved["intervals"]), retained)
            builder._grow(len(saved["newest"]))
            builder._newest[: len(saved["newest"])] = saved["newest"]
            builder._state.reshape(-1, 10)[saved["held"]] = saved["state"]
            builder._notional.reshape(-1, 2)[saved["held"]] = saved["notional"]
            builder.too_late = late
        return builder

    def _blank(self, instruments: int) -> NDArray[np.int64]:
        state = np.zeros((instruments, len(self._intervals), self._retained, 10), np.int64)
        state[..., _START] = _EMPTY
        return state

    def _grow(self, instruments: int) -> None:
        held = len(self._state)
        if instruments <= held:
            return
        added = max(instruments, 2 * held) - held
        self._state = np.concatenate([self._state, self._blank(added)])
        self._notional = np.concatenate(
            [self._notional, np.zeros((added, *self._notional.shape[1:]))]
        )
        empty = np.full((added, len(self._intervals)), _EMPTY)
        self._newest = np.concatenate([self._newest, empty])


def parse_interval(text: str) -> int:
    """Return milliseconds of `30s`, `1m`, `4h`, `1d`, `1w` (`min` is `m`).

    Raises:
        ConfigurationError: if the text is none of these.
    """
    unit = text.strip().lower().lstrip("0123456789")
    number = text.strip()[: len(text.strip()) - len(unit)] or "1"
    unit = {"min": "m", "t": "m", "sec": "s", "hour": "h", "day": "d"}.get(unit, unit)
    if unit not in _UNITS or int(number) < 1:
        msg = f"reading an interval: expected 30s, 1m, 4h, 1d or 1w, was {text!r}"
        raise ConfigurationError(msg)
    return int(number) * _UNITS[unit]


def fill_empty(rows: BarRows) -> BarRows:
    """Return the rows with flat bars (the close before, volume 0) where a bar had no trade.

    `rows` is as `latest` returns it. Indicators of an added bar repeat those before it.
    """
    if len(rows) == 0:
        return rows
    same = (rows.instrument[1:] == rows.instrument[:-1]) & (
        rows.interval_ms[1:] == rows.interval_ms[:-1]
    )
    steps = np.where(same, np.diff(rows.start_ms) // rows.interval_ms[:-1], 1)
    repeats = np.append(steps, 1)
    source = np.repeat(np.arange(len(rows)), repeats)
    offset = np.arange(len(source)) - np.repeat(np.cumsum(repeats) - repeats, repeats)
    filled = rows.take(source)
    added = offset > 0
    filled.start_ms[:] += offset * filled.interval_ms
    for prices in (filled.open, filled.high, filled.low):
        prices[added] = filled.close[added]
    filled.vwap[added] = filled.close[added]
    filled.volume[added] = 0
    filled.trades[added] = 0
    return filled


def merge_bars(
    start_ms: NDArray[np.int64],
    prices: NDArray[np.int64],
    volume: NDArray[np.int64],
    interval_ms: int,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Merge one instrument's bars into longer ones.

    Args:
        start_ms: starts of the bars, ascending.
        prices: shape (n, 4): open, high, low, close.
        volume: of each bar.
        interval_ms: a multiple of the bars' own interval.

    Returns:
        starts, prices (m, 4), volume and the number of bars merged.
    """
    starts = start_ms // interval_ms * interval_ms
    first = np.flatnonzero(np.append(True, starts[1:] != starts[:-1])) if len(starts) else starts
    if len(first) == 0:
        return first, prices[:0], volume[:0], first
    last = np.append(first[1:], len(starts)) - 1
    merged = np.stack(
        [
            prices[first, 0],
            np.maximum.reduceat(prices[:, 1], first),
            np.minimum.reduceat(prices[:, 2], first),
            prices[last, 3],
        ],
        axis=1,
    )
    return starts[first], merged, np.add.reduceat(volume, first), last - first + 1


def warm() -> None:
    """Compile the kernels of this module, so that no event waits for the compiler."""
    one = np.ones(1, np.int64)
    rows = BarBuilder((1,)).update(np.zeros(1, np.int32), one, one, one)
    unscale(rows.close, 0)


@nb.njit(
    "void(i8, i8, i8, i8[::1], i8[:,:,:,::1], f8[:,:,:,::1], i8[:,::1], f8[:,::1], i8)",
    cache=True,
    nogil=True,
)
def _emit(
    instrument: int,
    which: int,
    slot: int,
    intervals: NDArray[np.int64],
    state: NDArray[np.int64],
    notional: NDArray[np.float64],
    whole: NDArray[np.int64],
    real: NDArray[np.float64],
    count: int,
) -> None:
    bar = state[instrument, which, slot]
    bar[_DIRTY] = 0
    interval = intervals[which]
    retained = state.shape[2]
    whole[count, 0] = instrument
    whole[count, 1] = interval
    whole[count, 2] = bar[_START]
    whole[count, 3:7] = bar[_OPEN : _CLOSE + 1]
    whole[count, 7] = bar[_VOLUME]
    whole[count, 8] = bar[_TRADES]
    paid = notional[instrument, which, slot, 0] + notional[instrument, which, slot, 1]
    # A bar of zero-size trades (some venues print them) has no average price; its close stands in.
    real[count, 0] = paid / bar[_VOLUME] if bar[_VOLUME] != 0 else float(bar[_CLOSE])
    total = float(bar[_CLOSE])
    number = 1
    squares = 0.0
    weighted = 0.0
    weights = 0.0
    weight = 1.0
    after = float(bar[_CLOSE])
    for back in range(1, min(retained, _EWMA_BARS)):
        start = bar[_START] - back * interval
        other = state[instrument, which, (start // interval) % retained]
        if other[_START] != start:
            continue
        before = float(other[_CLOSE])
        if before > 0.0 and after > 0.0:
            change = np.log(after / before)
            weighted += weight * change * change
            weights += weight
            weight *= _EWMA_DECAY
            if number < _AVERAGE_BARS:
                squares += change * change
        if number < _AVERAGE_BARS:
            total += before
            number += 1
        after = before
    real[count, 1] = total / number
    real[count, 2] = np.sqrt(squares)
    real[count, 3] = np.sqrt(weighted / weights) if weights > 0.0 else 0.0


@nb.njit(
    "UniTuple(i8, 2)(i8[::1], i8[:,:,:,::1], f8[:,:,:,::1], i8[:,::1], i4[::1], i8[::1], i8[::1],"
    " i8[::1], i8[:,::1], f8[:,::1], i8[::1])",
    cache=True,
    nogil=True,
)
def _update(
    intervals: NDArray[np.int64],
    state: NDArray[np.int64],
    notional: NDArray[np.float64],
    newest: NDArray[np.int64],
    instruments: NDArray[np.int32],
    times: NDArray[np.int64],
    prices: NDArray[np.int64],
    sizes: NDArray[np.int64],
    whole: NDArray[np.int64],
    real: NDArray[np.float64],
    touched: NDArray[np.int64],
) -> tuple[int, int]:
    retained = state.shape[2]
    count = 0
    late = 0
    marks = 0
    for index in range(len(instruments)):
        instrument = instruments[index]
        time = times[index]
        price = prices[index]
        size = sizes[index]
        missed = False
        for which in range(len(intervals)):
            interval = intervals[which]
            start = time // interval * interval
            slot = (start // interval) % retained
            bar = state[instrument, which, slot]
            latest = newest[instrument, which]
            if bar[_START] > start or (latest != _EMPTY and start <= latest - retained * interval):
                missed = True
                continue
            if start > latest:
                if latest != _EMPTY:
                    previous = (latest // interval) % retained
                    if state[instrument, which, previous, _DIRTY]:
                        _emit(
                            instrument, which, previous, intervals, state, notional,
                            whole, real, count,
                        )  # fmt: skip
                        count += 1
                newest[instrument, which] = start
            if bar[_START] < start:
                if bar[_DIRTY]:
                    _emit(instrument, which, slot, intervals, state, notional, whole, real, count)
                    count += 1
                bar[_START] = start
                bar[_FIRST] = time
                bar[_LAST] = time
                bar[_OPEN : _CLOSE + 1] = price
                bar[_VOLUME] = 0
                bar[_TRADES] = 0
                notional[instrument, which, slot, :] = 0.0
            if time < bar[_FIRST]:
                bar[_FIRST] = time
                bar[_OPEN] = price
            if time >= bar[_LAST]:
                bar[_LAST] = time
                bar[_CLOSE] = price
            bar[_HIGH] = max(bar[_HIGH], price)
            bar[_LOW] = min(bar[_LOW], price)
            bar[_VOLUME] += size
            bar[_TRADES] += 1
            # Neumaier's compensated sum: price x size may exceed 64 bits, its sum must not drift.
            paid = float(price) * float(size)
            held = notional[instrument, which, slot, 0]
            total = held + paid
            if abs(held) >= abs(paid):
                notional[instrument, which, slot, 1] += (held - total) + paid
            else:
                notional[instrument, which, slot, 1] += (paid - total) + held
            notional[instrument, which, slot, 0] = total
            if not bar[_DIRTY]:
                bar[_DIRTY] = 1
                touched[marks] = (instrument * len(intervals) + which) * retained + slot
                marks += 1
        if missed:
            late += 1
    for mark in range(marks):
        place = touched[mark]
        slot = place % retained
        which = (place // retained) % len(intervals)
        instrument = place // retained // len(intervals)
        if state[instrument, which, slot, _DIRTY]:
            _emit(instrument, which, slot, intervals, state, notional, whole, real, count)
            count += 1
    return count, late
