"""The market of the instruments of one shard: bars, marks and alerts, in memory."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from jobs.market_risk.bars import BarBuilder, BarRows
from jobs.market_risk.engine_state import pack_parts, unpack_parts
from jobs.market_risk.intake import Part
from jobs.market_risk.market import NO_PRICE, MarketEvents, MarketState
from jobs.market_risk.names import Names
from jobs.market_risk.prices import MarkColumns, rescaled_prices
from schemas.columns import StringColumn
from schemas.errors import ConfigurationError

__all__ = ["InstrumentShard", "ShardConfig", "ShardUpdate", "pack_marks", "unpack_marks"]

_VERSION: Final = 1
_MARK_COUNT: Final = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class ShardConfig:
    """Settings of bars and alerts."""

    bar_intervals_ms: tuple[int, ...] = (1_000, 60_000, 300_000)
    retained_bars: int = 64
    stale_ms: int = 5_000
    jump_sigmas: float = 8.0
    spike_multiple: float = 20.0


@dataclass(frozen=True, slots=True)
class ShardUpdate:
    """What a batch changed.

    `rows` are the batch rows of trades and quotes, merged in order of arrival; `events` and
    `instrument` belong to them. `foreign` are rows that do not fit their instrument's scale: they
    changed nothing. `changed` are the instruments whose market moved, ascending.
    """

    rows: NDArray[np.intp]
    instrument: NDArray[np.int32]
    events: MarketEvents
    bars: BarRows
    foreign: NDArray[np.intp]
    changed: NDArray[np.int64]


class InstrumentShard:
    """The state of one shard of the first stage."""

    def __init__(self, config: ShardConfig) -> None:
        self._config = config
        self.names = Names()
        self.scales = np.empty((0, 2), np.int64)
        self.bars = BarBuilder(config.bar_intervals_ms, config.retained_bars)
        self.market = MarketState(config.stale_ms, config.jump_sigmas, config.spike_multiple)

    def update(self, ticks: Part, quotes: Part) -> ShardUpdate:
        """Read a batch of trades and quotes; the first record of an instrument sets its scales."""
        rows = np.concatenate([ticks.rows, quotes.rows])
        order = np.argsort(rows, kind="stable")
        # Numbered in order of arrival, so that numbers do not depend on where batches are cut.
        instrument = self.names.codes(
            _merged(ticks.text("instrument_id"), quotes.text("instrument_id"), order)
        )
        scales = np.stack(
            [
                np.concatenate([part.integers(name) for part in (ticks, quotes)])[order]
                for name in ("price_scale", "quantity_scale")
            ],
            axis=1,
        )
        self._learn(instrument, scales)
        is_quote = np.repeat([False, True], [len(ticks), len(quotes)])[order]
        first = np.concatenate([ticks.integers("price"), quotes.optional("bid", NO_PRICE)])[order]
        second = np.concatenate([ticks.integers("size"), quotes.optional("ask", NO_PRICE)])[order]
        time_ms = np.concatenate(
            [ticks.integers("event_time_ms"), quotes.integers("event_time_ms")]
        )[order]
        first, second, sound = self._at_own_scale(instrument, scales, is_quote, first, second)
        rows = rows[order]
        foreign = rows[~sound]
        rows, instrument, is_quote = rows[sound], instrument[sound], is_quote[sound]
        first, second, time_ms = first[sound], second[sound], time_ms[sound]
        events = self.market.update(is_quote, instrument, time_ms, first, second)
        trades = ~is_quote
        bars = self.bars.update(instrument[trades], time_ms[trades], first[trades], second[trades])
        return ShardUpdate(
            rows, instrument, events, bars, foreign, np.unique(instrument).astype(np.int64)
        )

    def marks(self, update: ShardUpdate) -> MarkColumns:
        """Return the prices that an update is news of, as the second stage takes them.

        First those of days that it is past, then the newest of every instrument that changed.
        """
        newest, ended = self.market.marks(update.changed), update.events.ended
        instruments = np.concatenate([ended.instrument, update.changed])
        return MarkColumns(
            self.names.column(instruments),
            self.scales[instruments, 0],
            np.concatenate([ended.last, newest.last]),
            np.concatenate([ended.last_ms, newest.last_ms]),
            np.concatenate([ended.twice_mid, newest.twice_mid]),
            np.concatenate([ended.quote_ms, newest.quote_ms]),
        )

    def snapshot(self) -> bytes:
        """Return the whole state; `restore` of it continues to the bit."""
        head = {
            "version": _VERSION,
            "names": self.names.texts,
            "scales": self.scales.tolist(),
            "intervals": self._config.bar_intervals_ms,
            "retained": self._config.retained_bars,
        }
        return pack_parts([json.dumps(head).encode(), self.bars.snapshot(), self.market.snapshot()])

    @staticmethod
    def restore(config: ShardConfig, blob: bytes) -> InstrumentShard:
        """Return the shard that `snapshot` described.

        Bars of other intervals than before begin anew; so do thresholds that changed.

        Raises:
            ConfigurationError: if another version wrote the blob.
        """
        packed, bars, market = unpack_parts(blob)
        head = json.loads(packed)
        if head["version"] != _VERSION:
            msg = f"restoring a market shard: expected version {_VERSION}, was {head['version']!r}"
            raise ConfigurationError(msg)
        shard = InstrumentShard(config)
        shard.names = Names(head["names"])
        shard.scales = np.array(head["scales"], np.int64).reshape(-1, 2)
        same = (tuple(head["intervals"]), head["retained"]) == (
            config.bar_intervals_ms,
            config.retained_bars,
        )
        if same:
            shard.bars = BarBuilder.restore(bars)
        shard.market = MarketState.restore(market)
        return shard

    def _learn(self, instrument: NDArray[np.int32], scales: NDArray[np.int64]) -> None:
        added = len(self.names) - len(self.scales)
        if added > 0:
            self.scales = np.concatenate([self.scales, np.full((added, 2), -1)])
            known, first = np.unique(instrument, return_index=True)
            blank = self.scales[known, 0] < 0
            self.scales[known[blank]] = scales[first[blank]]

    def _at_own_scale(
        self,
        instrument: NDArray[np.int32],
        scales: NDArray[np.int64],
        is_quote: NDArray[np.bool_],
        first: NDArray[np.int64],
        second: NDArray[np.int64],
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
        # Both numbers at the scales of their instruments, and which rows lost nothing by that.
        own = self.scales[instrument]
        # The second number is the ask of a quote and the size of a trade.
        column = np.where(is_quote, 0, 1)
        row = np.arange(len(own))
        first, whole = rescaled_prices(first, scales[:, 0], own[:, 0])
        second, fits = rescaled_prices(second, scales[row, column], own[row, column])
        return first, second, whole & fits


def _merged(first: StringColumn, second: StringColumn, order: NDArray[np.intp]) -> StringColumn:
    data, shift = first.data, 0
    if second.data is not data:
        data, shift = np.concatenate([data, second.data]), len(data)
    return StringColumn(
        data,
        np.concatenate([first.starts, second.starts + shift])[order],
        np.concatenate([first.lengths, second.lengths])[order],
    )


def pack_marks(marks: MarkColumns) -> bytes:
    """Return marks as bytes, for the frame that takes them to the second stage."""
    names = marks.instrument_id
    texts = [names.bytes_at(row) or b"" for row in range(len(names))]
    numbers = np.stack(
        [marks.price_scale, marks.last, marks.last_ms, marks.twice_mid, marks.quote_ms]
    ).astype("<i8")
    lengths = np.array([len(text) for text in texts], "<i4")
    head = _MARK_COUNT.pack(len(texts))
    return head + numbers.tobytes() + lengths.tobytes() + b"".join(texts)


def unpack_marks(payload: bytes) -> MarkColumns:
    """Return the marks that `pack_marks` packed."""
    (count,) = _MARK_COUNT.unpack_from(payload)
    at = _MARK_COUNT.size
    numbers = np.frombuffer(payload, "<i8", 5 * count, at).reshape(5, count).astype(np.int64)
    lengths = np.frombuffer(payload, "<i4", count, at + 40 * count).astype(np.int32)
    data = np.frombuffer(payload, np.uint8, offset=at + 44 * count)
    starts = np.cumsum(lengths, dtype=np.int64) - lengths
    return MarkColumns(StringColumn(data, starts, lengths), *numbers)
