"""The engine's risk mathematics over files: what the `riskstream risk` commands compute."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from jobs.market_risk import files
from jobs.market_risk.bars import BarBuilder, fill_empty, merge_bars
from jobs.market_risk.files import InputFileError
from jobs.market_risk.scaling import infer_scale, to_scaled, unscale

__all__ = ["INSTRUMENT_NAMES", "PriceHistory", "bars_table", "price_history", "read_hits"]

_NUMBER: Final = re.compile(r"[+-]?[\d.,]+([eE][+-]?\d+)?")

INSTRUMENT_NAMES: Final = (
    *("instrument", "instrument_id", "symbol", "ticker", "asset", "isin", "security", "pair"),
    "product",
)
PRICE_NAMES: Final = ("price", "trade_price", "last", "mid", "px", "rate", "close", "value", "nav")
SIZE_NAMES: Final = (
    "size",
    "quantity",
    "qty",
    "amount",
    "volume",
    "vol",
    "shares",
    "units",
    "base_volume",
)
HELD_NAMES: Final = ("position", "positions", "holding", "holdings", "units_held")
# These may be sizes of trades as well: they are holdings where an instrument has one value.
STEADY_NAMES: Final = ("quantity", "qty", "units", "shares")
CLOSE_NAMES: Final = ("adj_close", "adjusted_close", "adjclose", "close", "close_price", "settle")
BID_NAMES: Final = ("bid", "bid_price", "best_bid", "bidprice")
ASK_NAMES: Final = ("ask", "ask_price", "best_ask", "offer", "askprice")


@dataclass(frozen=True, slots=True)
class PriceHistory:
    """Prices of shape (times, instruments), oldest first, without gaps.

    `dropped` counts the times at which an instrument had no price; they are left out. `repeated`
    counts the rows that a later row of the same time replaced. `held` are the units of each
    instrument now, where the file has a column of them (`held_column`).
    """

    instruments: tuple[str, ...]
    times_ms: NDArray[np.int64] | None
    prices: NDArray[np.float64]
    dropped: int
    repeated: int = 0
    held: NDArray[np.float64] | None = None
    held_column: str | None = None

    def returns(self, kind: str = "simple") -> NDArray[np.float64]:
        """Return one-period `simple` or `log` returns, shape (times - 1, instruments).

        Raises:
            InputFileError: if a price is not positive; simple returns allow the last to be 0.
        """
        low = float(np.min(self.prices)) if self.prices.size else 1.0
        if low < 0 or np.any(self.prices[: None if kind == "log" else -1] == 0):
            msg = (
                f"computing returns: expected positive prices, was {low!r}; of what may be "
                "negative give changes instead (--returns given)"
            )
            raise InputFileError(msg)
        if kind == "log":
            return np.diff(np.log(self.prices), axis=0)
        result: NDArray[np.float64] = np.divide(self.prices[1:], self.prices[:-1]) - 1.0
        return result


def price_history(path: Path, columns: Sequence[str] = (), time_zone: str = "UTC") -> PriceHistory:
    """Read prices: wide (a column each), long (time, instrument, price), candles or one column.

    Of candles (open, high, low, close) the adjusted close, else the close, is taken. `columns`
    chooses columns (or instruments, of a long file) by name. Rows are sorted by time when there is
    a time; of several at one time the last in the file counts. Holdings are those of the newest row
    of each instrument, from a column named position or holding, or from one named quantity, units
    or shares that has one value for each instrument.

    Raises:
        InputFileError: if the file has no price, a chosen column is absent, or most rows repeat a
            time.
    """
    table = files.read_table(path)
    if not table.num_rows:
        msg = (
            f"reading prices from {path.name!r}: expected rows of prices, was "
            f"{', '.join(table.column_names)!r} and no row"
        )
        raise InputFileError(msg)
    time_name = files.find_time(table)
    repeated = 0
    times = None if time_name is None else files.times_ms(table[time_name], time_zone)
    name = files.find_column(table, INSTRUMENT_NAMES)
    held: NDArray[np.float64] | None = None
    held_column = None
    if name is not None and times is not None:
        codes, _ = files.texts(table, name)
        held, held_column = _holdings(table, codes, times)
        repeated = len(times) - len(np.unique(np.stack([times, codes]), axis=1).T)
        instruments, times, prices = _pivot(table, name, times)
    else:
        instruments, prices = _wide(table, time_name, columns)
        if len(instruments) == 1:
            rows = np.arange(len(prices)) if times is None else times
            held, held_column = _holdings(table, np.zeros(len(prices), np.int32), rows)
    if columns:
        absent = [column for column in columns if column not in instruments]
        if absent:
            msg = f"choosing columns: expected some of {', '.join(instruments)}, was {absent!r}"
            raise InputFileError(msg)
        chosen = [instruments.index(column) for column in columns]
        prices, held = prices[:, chosen], None if held is None else held[chosen]
        instruments = list(columns)
    if times is not None:
        order = np.argsort(times, kind="stable")
        last = order[np.diff(times[order], append=times.max() + 1) != 0]
        repeated += len(times) - len(last)
        if repeated > table.num_rows / 2:
            msg = (
                f"reading prices from {path.name!r}: expected a row for each time in "
                f"{time_name!r}, was {repeated} of {table.num_rows} rows at a time that another "
                "row has; write whole times, or name the column of instruments 'symbol'"
            )
            raise InputFileError(msg)
        times, prices = times[last], prices[last]
    whole = np.all(np.isfinite(prices), axis=1)
    return PriceHistory(
        tuple(instruments),
        None if times is None else times[whole],
        prices[whole],
        int(np.sum(~whole)),
        repeated,
        held,
        held_column,
    )


def bars_table(
    table: pa.Table,
    intervals: Mapping[str, int],
    *,
    empty: bool = False,
    price: str = "mid",
    time_zone: str = "UTC",
) -> pa.Table:
    """Build bars from a table of trades, quotes or shorter bars.

    Trades need a time, a price and (unless every trade counts 1) a size; a size below zero is a
    sale and counts by its amount. Of quotes `price` chooses mid, bid or ask and the volume is 0;
    candles are merged. Rows are sorted by time first, the order of the file deciding among equals;
    rows without a price are left out, every other row counts once.

    Args:
        table: as read by `files.read_table`.
        intervals: name to milliseconds, as in {"1m": 60000}.
        empty: add flat bars where there was no trade.
        price: which side of a quote.
        time_zone: of times without an offset.

    Returns:
        date (UTC), open, high, low, close, volume, trades, vwap, start_ms; with an instrument
        column first when the input has one, and an interval column when there are several.

    Raises:
        InputFileError: if a needed column is absent.
    """
    time_name = files.find_time(table)
    if time_name is None:
        msg = (
            f"building bars: expected a time column, as {', '.join(files.TIME_NAMES[:8])}, was "
            f"{', '.join(table.column_names)}"
        )
        raise InputFileError(msg)
    times = files.times_ms(table[time_name], time_zone)
    code_name = files.find_column(table, INSTRUMENT_NAMES)
    codes, instruments = np.zeros(len(times), np.int32), [""]
    if code_name is not None:
        codes, instruments = files.texts(table, code_name)
    if all(files.find_column(table, (name,)) for name in ("open", "high", "low", "close")):
        result = _merged(table, times, codes, instruments, intervals)
    else:
        result = _from_ticks(table, times, codes, instruments, intervals, price, empty=empty)
    drop = [] if code_name is not None else ["instrument"]
    drop += [] if len(intervals) > 1 else ["interval"]
    return result.drop_columns(drop) if drop else result


def read_hits(path: Path) -> NDArray[np.bool_]:
    """Read a sequence of exceptions in order of time: a column of 0/1, or pnl and var columns.

    Raises:
        InputFileError: if it holds neither.
    """
    table = files.read_table(path)
    pnl = files.find_column(table, ("pnl", "profit", "return", "returns", "p&l"))
    var = files.find_column(table, ("var", "value_at_risk", "forecast"))
    if pnl is not None and var is not None:
        return np.asarray(-files.numbers(table, pnl) > np.abs(files.numbers(table, var)))
    name = files.find_column(
        table, ("hit", "hits", "exception", "exceptions", "violation", "breach")
    )
    if name is None:
        # A bare column of digits has its first value taken for a name.
        values = [str(table.column_names[-1]), *table.column(table.num_columns - 1).to_pylist()]
    else:
        values = table[name].to_pylist()
    known = {"1": True, "0": False, "true": True, "false": False, "1.0": True, "0.0": False}
    try:
        return np.array([known[str(value).lower()] for value in values], np.bool_)
    except KeyError as e:
        msg = (
            f"reading hits from {path.name!r}: expected 0 or 1 in a column 'hit', was {e.args[0]!r}"
        )
        raise InputFileError(msg) from e


def _pivot(
    table: pa.Table, name: str, times: NDArray[np.int64]
) -> tuple[list[str], NDArray[np.int64], NDArray[np.float64]]:
    codes, instruments = files.texts(table, name)
    price = files.require_column(table, (*CLOSE_NAMES, *PRICE_NAMES), "price")
    unique, row = np.unique(times, return_inverse=True)
    prices = np.full((len(unique), len(instruments)), np.nan)
    prices[row, codes] = files.numbers(table, price)
    return instruments, unique, prices


def _holdings(
    table: pa.Table, codes: NDArray[np.int32], times: NDArray[np.int64]
) -> tuple[NDArray[np.float64] | None, str | None]:
    """Return the units of each instrument in its newest row, and the column; None without one."""
    named = files.find_column(table, HELD_NAMES)
    name = named or files.find_column(table, STEADY_NAMES)
    if name is None:
        return None, None
    units = files.numbers(table, name)
    order = np.lexsort((times, codes))
    last = order[np.diff(codes[order], append=-1) != 0]
    held = units[last]
    steady = bool(np.all(units == held[codes]))
    if not np.all(np.isfinite(held)) or not (named or steady):
        return None, None
    return held, name


def _wide(
    table: pa.Table, time_name: str | None, columns: Sequence[str]
) -> tuple[list[str], NDArray[np.float64]]:
    candles = all(files.find_column(table, (name,)) for name in ("open", "high", "low", "close"))
    if columns:
        names = [name for name in table.column_names if name in columns]
    elif candles:
        names = [files.require_column(table, CLOSE_NAMES, "close")]
    else:
        names = [
            str(field.name)
            for field in table.schema
            if field.name not in ("", time_name)
            and not str(field.name).lower().startswith(("unnamed", "volume"))
            and str(field.name).strip().lower() not in (*HELD_NAMES, *SIZE_NAMES)
            and (pa.types.is_floating(field.type) or pa.types.is_integer(field.type))
        ]
        _check_texts(table, time_name)
    if not names:
        msg = f"finding prices: expected a column of numbers, was {', '.join(table.column_names)}"
        raise InputFileError(msg)
    return names, np.stack([files.numbers(table, name) for name in names], axis=1)


def _check_texts(table: pa.Table, time_name: str | None) -> None:
    # A price that cannot be read makes text of its column; leaving it out would hide an instrument.
    for field in table.schema:
        if field.name == time_name or not pa.types.is_string(field.type):
            continue
        texts = [text for text in table[field.name].to_pylist() if text is not None]
        odd = [text for text in texts if not _NUMBER.fullmatch(text)]
        if odd and len(odd) < len(texts) / 2:
            msg = f"reading column {field.name!r}: expected numbers, was {odd[0]!r} among them"
            raise InputFileError(msg)


def _tick_prices(table: pa.Table, price: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    bid, ask = files.find_column(table, BID_NAMES), files.find_column(table, ASK_NAMES)
    traded = files.find_column(table, PRICE_NAMES)
    if traded is None and bid is not None and ask is not None:
        sides = {"bid": files.numbers(table, bid), "ask": files.numbers(table, ask)}
        # Half of a sum of two decimals is a decimal again; the plain mean would carry dust.
        sides["mid"] = np.round((sides["bid"] + sides["ask"]) / 2, 12)
        return sides[price], np.zeros(table.num_rows)
    name = files.require_column(table, PRICE_NAMES, "price")
    size = files.find_column(table, SIZE_NAMES)
    sizes = np.ones(table.num_rows) if size is None else files.numbers(table, size)
    return files.numbers(table, name), np.abs(np.nan_to_num(sizes))


def _from_ticks(
    table: pa.Table,
    times: NDArray[np.int64],
    codes: NDArray[np.int32],
    instruments: list[str],
    intervals: Mapping[str, int],
    price: str,
    *,
    empty: bool,
) -> pa.Table:
    prices, sizes = _tick_prices(table, price)
    order = np.argsort(times, kind="stable")
    order = order[np.isfinite(prices[order])]
    price_scale, size_scale = infer_scale(prices[order]), infer_scale(sizes[order])
    builder = BarBuilder(tuple(intervals.values()))
    rows = builder.update(
        codes[order],
        times[order],
        to_scaled(prices[order], price_scale),
        to_scaled(sizes[order], size_scale),
    ).latest()
    rows = fill_empty(rows) if empty else rows
    names = {value: name for name, value in intervals.items()}
    return _bars(
        [instruments[code] for code in rows.instrument],
        [names[int(interval)] for interval in rows.interval_ms],
        rows.start_ms,
        [unscale(side, price_scale) for side in (rows.open, rows.high, rows.low, rows.close)],
        unscale(rows.volume, size_scale),
        rows.trades,
        rows.vwap / 10.0**price_scale,
    )


def _merged(
    table: pa.Table,
    times: NDArray[np.int64],
    codes: NDArray[np.int32],
    instruments: list[str],
    intervals: Mapping[str, int],
) -> pa.Table:
    names = [
        files.require_column(table, (name,), name) for name in ("open", "high", "low", "close")
    ]
    prices = np.stack([files.numbers(table, name) for name in names], axis=1)
    size = files.find_column(table, SIZE_NAMES)
    sizes = np.zeros(len(times)) if size is None else np.nan_to_num(files.numbers(table, size))
    whole = np.all(np.isfinite(prices), axis=1)
    price_scale, size_scale = infer_scale(prices[whole]), infer_scale(sizes)
    parts = []
    for code, instrument in enumerate(instruments):
        for name, interval in intervals.items():
            chosen = np.flatnonzero(whole & (codes == code))
            chosen = chosen[np.argsort(times[chosen], kind="stable")]
            scaled = to_scaled(prices[chosen].ravel(), price_scale).reshape(-1, 4)
            starts, merged, volume, count = merge_bars(
                times[chosen], scaled, to_scaled(sizes[chosen], size_scale), interval
            )
            sides = [unscale(merged[:, side], price_scale) for side in range(4)]
            parts.append(
                _bars(
                    [instrument] * len(starts),
                    [name] * len(starts),
                    starts,
                    sides,
                    unscale(volume, size_scale),
                    count,
                    # Candles do not say at what average they traded; their typical price stands in.
                    (sides[1] + sides[2] + sides[3]) / 3,
                )
            )
    return pa.concat_tables(parts)


def _bars(
    instrument: list[str],
    interval: list[str],
    start_ms: NDArray[np.int64],
    sides: list[NDArray[np.float64]],
    volume: NDArray[np.float64],
    trades: NDArray[np.int64],
    vwap: NDArray[np.float64],
) -> pa.Table:
    seconds = np.all(start_ms % 1000 == 0)
    stamps = pa.array(start_ms).cast(pa.timestamp("ms", "UTC"))
    return pa.table(
        {
            "instrument": pa.array(instrument, pa.string()),
            "interval": pa.array(interval, pa.string()),
            "date": stamps.cast(pa.timestamp("s", "UTC")) if seconds else stamps,
            **dict(zip(("open", "high", "low", "close"), sides, strict=True)),
            "volume": volume,
            "trades": trades,
            "vwap": vwap,
            "start_ms": start_ms,
        }
    )
