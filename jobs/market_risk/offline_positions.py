"""Positions, P&L and exposure from a file of fills and a file of prices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from jobs.market_risk import files
from jobs.market_risk.files import InputFileError
from jobs.market_risk.offline import (
    ASK_NAMES,
    BID_NAMES,
    CLOSE_NAMES,
    INSTRUMENT_NAMES,
    PRICE_NAMES,
    SIZE_NAMES,
)
from jobs.market_risk.positions import PositionBook
from jobs.market_risk.scaling import AmountOverflowError, infer_scale, to_scaled
from schemas.columns import StringColumn

__all__ = ["PositionLine", "last_prices", "position_lines", "recorded_fills"]

_ID_NAMES: Final = (
    *("fill_id", "execution_id", "exec_id", "trade_id", "id", "deal_id", "transaction_id"),
)
_FEE_NAMES: Final = ("fee", "fees", "commission", "cost_fee")
_SIDES: Final = {
    **dict.fromkeys(("buy", "b", "bot", "bought", "long", "bid", "1", "+1", "1.0", "cover"), 1),
    **dict.fromkeys(("sell", "s", "sld", "sold", "short", "ask", "-1", "-1.0", "sell_short"), -1),
}


@dataclass(frozen=True, slots=True)
class PositionLine:
    """One position, money in the instrument's currency; None where there is no price."""

    account: str
    desk: str
    instrument: str
    currency: str
    quantity: float
    average_price: float | None
    fifo_price: float | None
    mark: float | None
    market_value: float | None
    realised_average: float
    unrealised_average: float | None
    realised_fifo: float
    unrealised_fifo: float | None
    fees: float
    cash: float
    fills: int
    bought: float
    sold: float


def last_prices(path: Path, time_zone: str = "UTC") -> dict[str, float]:
    """Return the newest price of each instrument, from a long or a wide file; of quotes the mid.

    A file with one price and no instrument gives that price under the empty name.

    Raises:
        InputFileError: if the file has no price.
    """
    table = files.read_table(path)
    time_name = files.find_time(table)
    if time_name is not None:
        times = files.times_ms(table[time_name], time_zone)
        table = table.take(pa.array(np.argsort(times, kind="stable")))
    name = files.find_column(table, INSTRUMENT_NAMES)
    price = files.find_column(table, ("mark", *CLOSE_NAMES, *PRICE_NAMES))
    bid, ask = files.find_column(table, BID_NAMES), files.find_column(table, ASK_NAMES)
    columns: dict[str, NDArray[np.float64]] = {}
    if price is not None:
        columns = {"": files.numbers(table, price)}
    elif bid is not None and ask is not None:
        middle = (files.numbers(table, bid) + files.numbers(table, ask)) / 2
        columns = {"": np.round(middle, 12)}
    elif name is None:
        columns = {
            str(field.name): files.numbers(table, field.name)
            for field in table.schema
            if field.name not in ("", time_name)
            and (pa.types.is_floating(field.type) or pa.types.is_integer(field.type))
        }
    if not columns:
        msg = f"finding prices in {path.name!r}: was {', '.join(table.column_names)}"
        raise InputFileError(msg)
    found: dict[str, float] = {}
    if name is not None:
        codes, instruments = files.texts(table, name)
        for code, value in zip(codes.tolist(), columns[""].tolist(), strict=True):
            if np.isfinite(value):
                found[instruments[code]] = value
        return found
    for column, values in columns.items():
        finite = values[np.isfinite(values)]
        if len(finite):
            found[column] = float(finite[-1])
    return found


def position_lines(
    fills: Path, prices: Mapping[str, float], time_zone: str = "UTC"
) -> tuple[list[PositionLine], int]:
    """Return positions by account, desk and instrument, and how many fills were repeats.

    Fills need a price and a quantity (signed, or unsigned with a side); time, fill id, account,
    desk, instrument, currency, fee and multiplier are used when present. They are applied in order
    of time, the order of the file deciding among equals; a repeated id counts once.

    Raises:
        InputFileError: if a needed column is absent or a row cannot be read.
        AmountOverflowError: if an amount does not fit 64 bits.
    """
    table = files.read_table(fills)
    time_name = files.find_time(table)
    if time_name is not None:
        times = files.times_ms(table[time_name], time_zone)
        table = table.take(pa.array(np.argsort(times, kind="stable")))
    count = table.num_rows
    quantity = _signed(table)
    price = _required(table, ("fill_price", "exec_price", *PRICE_NAMES), "price")
    fee = np.nan_to_num(_optional(table, _FEE_NAMES, 0.0))
    multiplier = _optional(table, ("multiplier", "contract_size", "contract_multiplier"), 1.0)
    names = [
        _labels(table, ("account", "account_id", "portfolio", "book")),
        _labels(table, ("desk", "desk_id", "strategy")),
        _labels(table, INSTRUMENT_NAMES),
    ]
    currency_code, currencies = _labels(table, ("currency", "ccy", "quote_currency"))
    keys = np.stack([codes for codes, _ in names], axis=1)
    distinct, position = np.unique(keys, axis=0, return_inverse=True)
    marks = np.array([_mark(prices, names[2][1][row[2]], names[2][1]) for row in distinct])
    known = np.isfinite(marks)
    quantity_scale, multiplier_scale = infer_scale(quantity), infer_scale(multiplier)
    price_scale = infer_scale(np.concatenate([price, marks[known]]))
    price_scale = max(price_scale, infer_scale(fee) - quantity_scale - multiplier_scale)
    scale = price_scale + quantity_scale + multiplier_scale
    id_name = files.find_column(table, _ID_NAMES)
    ids = None
    if id_name is not None:
        ids = StringColumn.from_texts(table[id_name].cast(pa.string()).to_pylist())
    book = PositionBook(max(count, 1))
    applied = book.apply(
        position.ravel().astype(np.int32),
        to_scaled(quantity, quantity_scale),
        to_scaled(price, price_scale),
        to_scaled(multiplier, multiplier_scale),
        to_scaled(fee, scale),
        ids,
    )
    if applied.rejected.any():
        row = int(np.flatnonzero(applied.rejected)[0])
        msg = (
            f"adding fills: {float(quantity[row])!r} at {float(price[row])!r} with {scale} decimal "
            "places exceeds 64 bits; round prices or quantities"
        )
        raise AmountOverflowError(msg)
    rows = book.rows()
    multipliers = np.ones(len(distinct))
    multipliers[position.ravel()] = multiplier
    currency_of = np.zeros(len(distinct), np.int64)
    currency_of[position.ravel()] = currency_code
    value = rows.market_value(
        to_scaled(np.where(known, marks, 0.0), price_scale),
        to_scaled(multipliers, multiplier_scale),
    )
    money, units = 10.0**scale, 10.0**quantity_scale
    lines = []
    for index in range(len(distinct)):
        held = int(rows.quantity[index])
        size = held / units * multipliers[index]
        priced = bool(known[index])
        lines.append(
            PositionLine(
                account=names[0][1][distinct[index, 0]],
                desk=names[1][1][distinct[index, 1]],
                instrument=names[2][1][distinct[index, 2]],
                currency=currencies[int(currency_of[index])],
                quantity=held / units,
                average_price=int(rows.cost[index]) / money / size if held else None,
                fifo_price=int(rows.fifo_cost[index]) / money / size if held else None,
                mark=float(marks[index]) if priced else None,
                market_value=int(value[index]) / money if priced or not held else None,
                realised_average=int(rows.realised[index]) / money,
                unrealised_average=_unrealised(value, rows.cost, index, held, money, priced),
                realised_fifo=int(rows.fifo_realised[index]) / money,
                unrealised_fifo=_unrealised(value, rows.fifo_cost, index, held, money, priced),
                fees=int(rows.fees[index]) / money,
                cash=int(rows.cash[index]) / money,
                fills=int(rows.fills[index]),
                bought=int(rows.bought[index]) / units,
                sold=int(rows.sold[index]) / units,
            )
        )
    lines.sort(key=lambda line: (line.account, line.desk, line.instrument))
    return lines, int(np.sum(~applied.fresh))


def recorded_fills(
    table: pa.Table,
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], dict[str, list[str]]]:
    """Return price, signed quantity and fee of each fill of a table, and its ids by contract field.

    Account, desk and firm are called `account`, `desk` and `firm` where the table has none.

    Raises:
        InputFileError: if price or quantity is missing.
    """
    price = _required(table, ("fill_price", "exec_price", *PRICE_NAMES), "price")
    quantity = _signed(table)
    fee = np.nan_to_num(_optional(table, _FEE_NAMES, 0.0))
    labels = {"fill_id": table["fill_id"].cast(pa.string()).to_pylist()}
    for name in ("account", "desk", "firm"):
        codes, known = _labels(table, (f"{name}_id", name))
        labels[f"{name}_id"] = [known[code] or name for code in codes.tolist()]
    return price, quantity, fee, labels


def _unrealised(
    value: NDArray[np.int64],
    cost: NDArray[np.int64],
    index: int,
    held: int,
    money: float,
    priced: bool,
) -> float | None:
    if not held:
        return 0.0
    return (int(value[index]) - int(cost[index])) / money if priced else None


def _mark(prices: Mapping[str, float], instrument: str, instruments: list[str]) -> float:
    if instrument in prices:
        return prices[instrument]
    # One price for one instrument needs no name.
    if len(instruments) == 1 and len(prices) == 1:
        return next(iter(prices.values()))
    return float("nan")


def _signed(table: pa.Table) -> NDArray[np.float64]:
    # Beside a side a quantity is an amount, but some write every sale below zero as well.
    quantity, sides = _required(table, SIZE_NAMES, "quantity"), _signs(table)
    if sides is None:
        return quantity
    below = quantity < 0
    sold = (sides < 0) & (quantity != 0)
    if np.any(below & ~sold) or (below.any() and not below[sold].all()):
        row = int(np.flatnonzero(below)[0])
        msg = (
            "reading quantities: expected amounts beside the sides, or every sale and nothing else "
            f"below zero, was {float(quantity[row])!r} in row {row + 1}; write a reversal as a "
            "fill of the other side"
        )
        raise InputFileError(msg)
    return np.abs(quantity) * sides


def _signs(table: pa.Table) -> NDArray[np.float64] | None:
    name = files.find_column(table, ("side", "direction", "buy_sell", "action", "way"))
    if name is None:
        maker = files.find_column(table, ("buyer_maker", "is_buyer_maker"))
        if maker is None:
            return None
        # The buyer rested in the book, so the trade was a sale by the one who came.
        sold = pc.equal(pc.utf8_lower(table[maker].cast(pa.string())), "true")
        return np.where(sold.to_numpy(), -1.0, 1.0)
    codes, sides = files.texts(table, name)
    try:
        signs = [_SIDES[side.strip().lower().replace(" ", "_")] for side in sides]
    except KeyError as e:
        msg = f"reading sides: expected buy or sell, was {e.args[0]!r}"
        raise InputFileError(msg) from e
    return np.array(signs, np.float64)[codes]


def _required(table: pa.Table, names: tuple[str, ...], purpose: str) -> NDArray[np.float64]:
    values = files.numbers(table, files.require_column(table, names, purpose))
    if not np.all(np.isfinite(values)):
        row = int(np.flatnonzero(~np.isfinite(values))[0])
        msg = f"reading fills: expected a {purpose} in every row, was none in row {row + 1}"
        raise InputFileError(msg)
    return values


def _optional(table: pa.Table, names: tuple[str, ...], default: float) -> NDArray[np.float64]:
    name = files.find_column(table, names)
    if name is None:
        return np.full(table.num_rows, default)
    values = files.numbers(table, name)
    return np.where(np.isfinite(values), values, default)


def _labels(table: pa.Table, names: tuple[str, ...]) -> tuple[NDArray[np.int32], list[str]]:
    name = files.find_column(table, names)
    if name is None:
        return np.zeros(table.num_rows, np.int32), [""]
    return files.texts(table, name)
