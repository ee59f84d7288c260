"""The state of each instrument's market: last, bid, ask, mid, spread, and what is wrong with it.

Trades and quotes of one batch are read in order of arrival, so the result does not depend on where
batches were cut. A trade is joined with the newest quote at or before its event time among the last
`QUOTES_HELD` quotes of its instrument. Prices and sizes are integers at the instrument's scale.

=============  =====================================================================================
flag           raised when
=============  =====================================================================================
price_jump     a trade's log return from the trade before exceeds `jump_sigmas` EWMA volatilities
volume_spike   a trade's size exceeds `spike_multiple` times the EWMA of the sizes before it
crossed        a quote's bid is above its ask, and was not in the quote before
stale_quote    a trade's quote is older than `stale_ms`
stale_price    the same, and the instrument's trade before did not meet a stale quote
=============  =====================================================================================

The first two need `WARM_UP` trades, so that a new instrument does not cry wolf.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Final

import numba as nb
import numpy as np
from numpy.typing import NDArray

from schemas.errors import ConfigurationError

__all__ = [
    "CROSSED",
    "MARKET_FLAGS",
    "NO_PRICE",
    "PRICE_JUMP",
    "QUOTES_HELD",
    "STALE_BEGINS",
    "STALE_QUOTE",
    "VOLUME_SPIKE",
    "WARM_UP",
    "EndedMarks",
    "MarketEvents",
    "MarketState",
    "Marks",
    "asof_join",
    "warm",
]

PRICE_JUMP: Final = 1
VOLUME_SPIKE: Final = 2
CROSSED: Final = 4
STALE_QUOTE: Final = 8
STALE_BEGINS: Final = 16
MARKET_FLAGS: Final = {
    PRICE_JUMP: "price_jump",
    VOLUME_SPIKE: "volume_spike",
    CROSSED: "crossed_market",
    STALE_QUOTE: "stale_quote",
    STALE_BEGINS: "stale_price",
}
"""Bits of `MarketEvents.flags` and their names."""

NO_PRICE: Final = int(np.iinfo(np.int64).min)
"""Stands for a price that is not known."""

QUOTES_HELD: Final = 16
"""Quotes held for the join: a trade may arrive this many quotes late and still find its own."""

WARM_UP: Final = 30
"""Trades before jumps and spikes are judged: the EWMA's first values are noise."""

_DECAY: Final = 0.97
_SNAPSHOT_VERSION: Final = 1

_DAY_MS: Final = 86_400_000

# Columns of the integer state of one instrument.
_LAST, _LAST_MS, _BID, _ASK, _QUOTE_MS, _TRADES, _QUOTES = range(7)


@dataclass(frozen=True, slots=True)
class MarketEvents:
    """What each row of a batch met, as columns of the batch's length.

    For trades `bid` and `ask` are those of the joined quote (`NO_PRICE` without one, then
    `quote_age_ms` is -1); for quotes their own. `flags` has the bits of `MARKET_FLAGS`. `change` is
    the log return from the trade before, 0 for quotes. `size` is that of a trade, 0 for quotes.
    """

    bid: NDArray[np.int64]
    ask: NDArray[np.int64]
    quote_age_ms: NDArray[np.int64]
    flags: NDArray[np.uint8]
    change: NDArray[np.float64]
    time_ms: NDArray[np.int64]
    size: NDArray[np.int64]
    ended: EndedMarks


@dataclass(frozen=True, slots=True)
class EndedMarks:
    """Prices of UTC days that a batch is past, which the newest market no longer shows.

    One row for each: the last trade or quote before the first of a later day, and every one that
    came after a later day had begun. A row has a trade (`last`) or a quote (`twice_mid`); the other
    is `NO_PRICE` with a time of -1.
    """

    instrument: NDArray[np.int64]
    last: NDArray[np.int64]
    last_ms: NDArray[np.int64]
    twice_mid: NDArray[np.int64]
    quote_ms: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Marks:
    """The market of some instruments now; `NO_PRICE` and a time of -1 where nothing is known.

    `twice_mid` is bid + ask, an exact integer; it is known when both sides are and do not cross.
    """

    last: NDArray[np.int64]
    last_ms: NDArray[np.int64]
    bid: NDArray[np.int64]
    ask: NDArray[np.int64]
    quote_ms: NDArray[np.int64]
    twice_mid: NDArray[np.int64]

    def price(self, prefer: str = "mid") -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Return prices (NaN unknown) to mark at, and the event time each is from.

        `mid` falls back to last where there is no sound quote, `last` to mid where nothing traded.
        """
        quoted, traded = self.twice_mid != NO_PRICE, self.last != NO_PRICE
        use_mid = quoted if prefer == "mid" else quoted & ~traded
        price = np.where(traded, self.last, 0).astype(np.float64)
        price[~traded] = np.nan
        price = np.where(use_mid, self.twice_mid / 2.0, price)
        return price, np.where(use_mid, self.quote_ms, self.last_ms)


class MarketState:
    """Hold the market of every instrument (small integers from 0); bounded by their number."""

    def __init__(
        self, stale_ms: int = 5_000, jump_sigmas: float = 8.0, spike_multiple: float = 20.0
    ) -> None:
        if stale_ms < 1 or jump_sigmas <= 0 or spike_multiple <= 1:
            msg = (
                "watching a market: expected a positive staleness, positive sigmas and a multiple "
                f"over 1, was {stale_ms!r}, {jump_sigmas!r}, {spike_multiple!r}"
            )
            raise ConfigurationError(msg)
        self._settings = np.array([stale_ms, jump_sigmas, spike_multiple])
        self._whole = np.empty((0, 7), np.int64)
        self._real = np.empty((0, 2))  # EWMA of squared log returns, of sizes
        self._ring = np.empty((0, QUOTES_HELD, 3), np.int64)  # time, bid, ask

    def __len__(self) -> int:
        return len(self._whole)

    def update(
        self,
        is_quote: NDArray[np.bool_],
        instrument: NDArray[np.int32],
        time_ms: NDArray[np.int64],
        first: NDArray[np.int64],
        second: NDArray[np.int64],
    ) -> MarketEvents:
        """Read trades and quotes in order of arrival.

        Args:
            is_quote: True for a quote.
            instrument: which instrument.
            time_ms: event time.
            first: price of a trade, bid of a quote (`NO_PRICE`: that side is empty).
            second: size of a trade, ask of a quote.
        """
        count = len(instrument)
        if count:
            self._grow(int(instrument.max()) + 1)
        out = np.empty((count, 3), np.int64)
        flags = np.zeros(count, np.uint8)
        change = np.zeros(count)
        ended = np.empty((count, 5), np.int64)
        endings = _read(
            self._settings,
            self._whole,
            self._real,
            self._ring,
            np.array(is_quote, np.bool_),
            np.array(instrument, np.int32),
            np.array(time_ms, np.int64),
            np.array(first, np.int64),
            np.array(second, np.int64),
            out,
            flags,
            change,
            ended,
        )
        return MarketEvents(
            out[:, 0],
            out[:, 1],
            out[:, 2],
            flags,
            change,
            np.array(time_ms, np.int64),
            np.where(is_quote, 0, second),
            _ended_marks(ended[:endings]),
        )

    def marks(self, instruments: NDArray[np.int64]) -> Marks:
        """Return the market of the chosen instruments now."""
        state = self._whole[instruments]
        bid, ask = state[:, _BID], state[:, _ASK]
        twice = _twice_mid(bid, ask)
        return Marks(state[:, _LAST], state[:, _LAST_MS], bid, ask, state[:, _QUOTE_MS], twice)

    def volatility(self, instruments: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the EWMA volatility per trade of the chosen instruments."""
        result: NDArray[np.float64] = np.sqrt(self._real[instruments, 0])
        return result

    def seen(self, instruments: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return how many trades and quotes each of the chosen instruments had."""
        counts: NDArray[np.int64] = self._whole[instruments][:, [_TRADES, _QUOTES]].sum(axis=1)
        return counts

    def snapshot(self) -> bytes:
        """Return the whole state; `restore` of it continues to the bit."""
        buffer = io.BytesIO()
        np.savez(
            buffer,
            version=np.array([_SNAPSHOT_VERSION]),
            settings=self._settings,
            whole=self._whole,
            real=self._real,
            ring=self._ring,
        )
        return buffer.getvalue()

    @staticmethod
    def restore(blob: bytes) -> MarketState:
        """Return the state that `snapshot` described.

        Raises:
            ConfigurationError: if another version wrote the blob.
        """
        with np.load(io.BytesIO(blob), allow_pickle=False) as saved:
            version = int(saved["version"][0])
            if version != _SNAPSHOT_VERSION:
                msg = f"restoring a market: expected version {_SNAPSHOT_VERSION}, was {version}"
                raise ConfigurationError(msg)
            state = MarketState()
            state._settings = saved["settings"]
            state._whole, state._real, state._ring = saved["whole"], saved["real"], saved["ring"]
        return state

    def _grow(self, instruments: int) -> None:
        added = instruments - len(self._whole)
        if added <= 0:
            return
        whole = np.zeros((added, 7), np.int64)
        whole[:, [_LAST, _BID, _ASK]] = NO_PRICE
        whole[:, [_LAST_MS, _QUOTE_MS]] = -1
        ring = np.full((added, QUOTES_HELD, 3), NO_PRICE)
        self._whole = np.concatenate([self._whole, whole])
        self._real = np.concatenate([self._real, np.zeros((added, 2))])
        self._ring = np.concatenate([self._ring, ring])


def asof_join(trade_ms: NDArray[np.int64], quote_ms: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return, for each trade, the index of the newest quote at or before it, -1 without one.

    Both are event times of one instrument; quotes are in ascending order, of equal ones the last is
    taken. This is what `MarketState` does online, for whole files.
    """
    return np.searchsorted(quote_ms, trade_ms, side="right").astype(np.int64) - 1


def warm() -> None:
    """Compile the kernels of this module, so that no event waits for the compiler."""
    one = np.ones(1, np.int64)
    MarketState().update(np.zeros(1, np.bool_), np.zeros(1, np.int32), one, one, one)


def _twice_mid(bid: NDArray[np.int64], ask: NDArray[np.int64]) -> NDArray[np.int64]:
    sound = (bid != NO_PRICE) & (ask != NO_PRICE) & (bid <= ask)
    return np.where(sound, np.where(sound, bid, 0) + np.where(sound, ask, 0), NO_PRICE)


def _ended_marks(rows: NDArray[np.int64]) -> EndedMarks:
    instrument, quoted, first, second, time_ms = rows.T
    is_quote = quoted == 1
    return EndedMarks(
        instrument,
        np.where(is_quote, NO_PRICE, first),
        np.where(is_quote, -1, time_ms),
        np.where(is_quote, _twice_mid(first, second), NO_PRICE),
        np.where(is_quote, time_ms, -1),
    )


@nb.njit(
    "void(i8[:,::1], i8, i8, i8, i8, i8, i8)",
    cache=True,
    nogil=True,
)
def _end(
    ended: NDArray[np.int64],
    place: int,
    instrument: int,
    quoted: int,
    first: int,
    second: int,
    time: int,
) -> None:
    row = ended[place]
    row[0], row[1], row[2], row[3], row[4] = instrument, quoted, first, second, time


@nb.njit(
    "i8(f8[::1], i8[:,::1], f8[:,::1], i8[:,:,::1], b1[::1], i4[::1], i8[::1], i8[::1], i8[::1],"
    " i8[:,::1], u1[::1], f8[::1], i8[:,::1])",
    cache=True,
    nogil=True,
)
def _read(
    settings: NDArray[np.float64],
    whole: NDArray[np.int64],
    real: NDArray[np.float64],
    ring: NDArray[np.int64],
    is_quote: NDArray[np.bool_],
    instruments: NDArray[np.int32],
    times: NDArray[np.int64],
    first: NDArray[np.int64],
    second: NDArray[np.int64],
    out: NDArray[np.int64],
    flags: NDArray[np.uint8],
    changes: NDArray[np.float64],
    ended: NDArray[np.int64],
) -> int:
    endings = 0
    for index in range(len(instruments)):
        state = whole[instruments[index]]
        averages = real[instruments[index]]
        quotes = ring[instruments[index]]
        time = times[index]
        flag = 0
        if is_quote[index]:
            bid, ask = first[index], second[index]
            place = quotes[state[_QUOTES] % QUOTES_HELD]
            place[0], place[1], place[2] = time, bid, ask
            state[_QUOTES] += 1
            held_bid, held_ask = state[_BID], state[_ASK]
            was_crossed = held_bid != NO_PRICE and held_ask != NO_PRICE and held_bid > held_ask
            if bid != NO_PRICE and ask != NO_PRICE and bid > ask and not was_crossed:
                flag |= CROSSED
            day, held_ms = time // _DAY_MS, state[_QUOTE_MS]
            if held_ms >= 0 and day > held_ms // _DAY_MS:
                _end(ended, endings, instruments[index], 1, held_bid, held_ask, held_ms)
                endings += 1
            elif day < held_ms // _DAY_MS:
                _end(ended, endings, instruments[index], 1, bid, ask, time)
                endings += 1
            if time >= held_ms:
                state[_QUOTE_MS], state[_BID], state[_ASK] = time, bid, ask
            out[index, 0], out[index, 1], out[index, 2] = bid, ask, 0
            flags[index] = flag
            continue
        price, size = first[index], float(second[index])
        best = -1
        for back in range(1, min(state[_QUOTES], QUOTES_HELD) + 1):
            slot = (state[_QUOTES] - back) % QUOTES_HELD
            # Strictly newer wins: of equal times the quote that arrived last is met first.
            if quotes[slot, 0] <= time and (best < 0 or quotes[slot, 0] > quotes[best, 0]):
                best = slot
        if best >= 0:
            out[index, 0], out[index, 1] = quotes[best, 1], quotes[best, 2]
            out[index, 2] = time - quotes[best, 0]
            if float(out[index, 2]) > settings[0]:
                flag |= STALE_QUOTE
                if float(state[_LAST_MS] - quotes[best, 0]) <= settings[0]:
                    flag |= STALE_BEGINS
        else:
            out[index, 0], out[index, 1], out[index, 2] = NO_PRICE, NO_PRICE, -1
        before = state[_LAST]
        if before != NO_PRICE and before > 0 and price > 0:
            change = np.log(price / before)
            changes[index] = change
            if state[_TRADES] >= WARM_UP:
                if averages[0] > 0.0 and abs(change) > settings[1] * np.sqrt(averages[0]):
                    flag |= PRICE_JUMP
                if averages[1] > 0.0 and size > settings[2] * averages[1]:
                    flag |= VOLUME_SPIKE
            averages[0] = _DECAY * averages[0] + (1.0 - _DECAY) * change * change
        if state[_TRADES] == 0:
            averages[1] = size
        else:
            averages[1] = _DECAY * averages[1] + (1.0 - _DECAY) * size
        state[_TRADES] += 1
        day, held_ms = time // _DAY_MS, state[_LAST_MS]
        if held_ms >= 0 and day > held_ms // _DAY_MS:
            _end(ended, endings, instruments[index], 0, before, 0, held_ms)
            endings += 1
        elif day < held_ms // _DAY_MS:
            _end(ended, endings, instruments[index], 0, price, 0, time)
            endings += 1
        if time >= held_ms:
            state[_LAST], state[_LAST_MS] = price, time
        flags[index] = flag
    return endings
