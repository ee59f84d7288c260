"""Where transactions come from: a Protocol, and files in Parquet or CSV.

Three ways to name the columns are known; the first that fits the file is taken, field by field:

=================  ===========================  ==============================================
field              contract                     fraud handbook (its names, and a packed form)
=================  ===========================  ==============================================
`event_id`         event_id                     TRANSACTION_ID, transaction_id
`event_time_ms`    event_time_ms (int, ms)      TX_DATETIME (timestamp), ts_epoch_s (int, seconds)
`customer_id`      customer_id                  CUSTOMER_ID
`terminal_id`      terminal_id                  TERMINAL_ID
`amount_minor`     amount_minor (int)           TX_AMOUNT (decimal, major units), amount_cents (int)
`is_fraud`         is_fraud                     TX_FRAUD, fraud
=================  ===========================  ==============================================

The optional fields of the contract (currency, merchant_id, channel, country, latitude, longitude,
...) are read under their own names.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from connectors.producers.strings import from_arrow, repeat
from schemas.columns import Column, NumberColumn, StringColumn
from schemas.errors import ConfigurationError

__all__ = ["CHANNELS", "FileSource", "TransactionBatch", "TransactionSource", "amounts_to_minor"]

CHANNELS: Final = ("unknown", "card_present", "contactless", "ecommerce", "atm")
"""Symbols of the contract's enum `channel`, in its order; the code is the position."""

_ALIASES: Final[dict[str, tuple[str, ...]]] = {
    "event_id": ("event_id", "TRANSACTION_ID", "transaction_id"),
    "event_time_ms": ("event_time_ms", "TX_DATETIME", "tx_datetime", "ts_epoch_s"),
    "customer_id": ("customer_id", "CUSTOMER_ID"),
    "terminal_id": ("terminal_id", "TERMINAL_ID"),
    "amount_minor": ("amount_minor", "TX_AMOUNT", "tx_amount", "amount_cents"),
    "is_fraud": ("is_fraud", "TX_FRAUD", "tx_fraud", "fraud"),
}
_OPTIONAL_TEXT: Final = (
    "merchant_id", "country", "card_number", "merchant_category", "tenant",
)  # fmt: skip
_OPTIONAL_NUMBERS: Final = ("latitude", "longitude")
# Large enough that the fixed cost of a batch (about 0.2 ms) vanishes, small enough that a batch of
# the widest record stays below 10 MB.
_BATCH_ROWS: Final = 16_384


@dataclass(frozen=True, slots=True)
class TransactionBatch:
    """Transactions in the order of their source, as columns of the card transaction contract.

    `is_fraud` is None where the source has no labels.
    """

    columns: Mapping[str, Column]
    is_fraud: NDArray[np.bool_] | None

    def __len__(self) -> int:
        return len(self.event_time_ms)

    @property
    def event_time_ms(self) -> NDArray[np.int64]:
        """Event times, milliseconds since the epoch, UTC."""
        return self._integers("event_time_ms")

    @property
    def amount_minor(self) -> NDArray[np.int64]:
        """Amounts in minor units."""
        return self._integers("amount_minor")

    def text(self, field: str) -> StringColumn:
        """Return a text field of the batch."""
        column = self.columns[field]
        if not isinstance(column, StringColumn):
            msg = f"reading field {field!r}: expected text, was {type(column).__name__!r}"
            raise ConfigurationError(msg)
        return column

    def _integers(self, field: str) -> NDArray[np.int64]:
        column = self.columns[field]
        if not isinstance(column, NumberColumn):
            msg = f"reading field {field!r}: expected numbers, was {type(column).__name__!r}"
            raise ConfigurationError(msg)
        values: NDArray[np.int64] = column.values.astype(np.int64, copy=False)
        return values

    def rows(self, start: int, stop: int) -> TransactionBatch:
        """Return rows `start` to `stop` (exclusive); nothing is copied."""
        part = slice(start, stop)
        columns: dict[str, Column] = {
            name: column.take(part)
            if isinstance(column, StringColumn)
            else NumberColumn(column.values[part], column.valid[part])
            for name, column in self.columns.items()
        }
        return TransactionBatch(columns, None if self.is_fraud is None else self.is_fraud[part])


class TransactionSource(Protocol):
    """Gives transactions batch by batch."""

    @property
    def total(self) -> int | None:
        """How many transactions there will be, or None when nobody knows."""

    def batches(self) -> Iterator[TransactionBatch]:
        """Yield the transactions in publishing order."""


def amounts_to_minor(amounts: pa.Array | pa.ChunkedArray) -> NDArray[np.int64]:
    """Turn amounts in major units into integer minor units (hundredths).

    Text and decimals are exact, halves rounded to even; floats take the nearest integer of
    100 times the value, which undoes any float that came from a decimal with two places.

    Raises:
        ConfigurationError: when text is no decimal number.
    """
    if pa.types.is_integer(amounts.type):
        return np.asarray(pc.multiply(amounts, 100)).astype(np.int64)
    if pa.types.is_floating(amounts.type):
        majors: NDArray[np.float64] = np.asarray(amounts, np.float64)
        nearest: NDArray[np.int64] = np.rint(majors * 100.0).astype(np.int64)
        return nearest
    try:
        exact = pc.cast(amounts, pa.decimal128(30, 10))
        hundredths = pc.round(
            pc.multiply(exact, pa.scalar(100, pa.decimal128(3, 0))), 0, "half_to_even"
        )
        return np.asarray(pc.cast(hundredths, pa.int64(), safe=False))
    except pa.ArrowInvalid as e:
        msg = f"reading amounts: {e}; expected decimal numbers in major units"
        raise ConfigurationError(msg) from e


class FileSource:
    """Transactions of a Parquet or CSV file, in file order, a bounded number of rows in memory.

    Args:
        path: the file; `.csv` and `.csv.gz` are read as CSV with a header, all else as Parquet.
        limit: at most this many transactions.
        currency: for files without a currency column.

    Raises:
        ConfigurationError: when the file cannot be read, a required column is missing, or a
            required value is null; the message names the column and the row.
    """

    def __init__(self, path: Path, *, limit: int | None = None, currency: str = "EUR") -> None:
        self._path = path
        self._limit = limit
        self._currency = currency
        self._is_csv = path.name.lower().endswith((".csv", ".csv.gz"))
        try:
            rows = None if self._is_csv else pq.ParquetFile(path).metadata.num_rows
        except (OSError, pa.ArrowException) as e:
            msg = f"opening transactions file {str(path)!r}: {e}; expected Parquet or CSV"
            raise ConfigurationError(msg) from e
        self._total = limit if rows is None else rows if limit is None else min(rows, limit)

    @property
    def total(self) -> int | None:
        """Rows that will come; for CSV only the limit is known."""
        return self._total

    def batches(self) -> Iterator[TransactionBatch]:
        """Yield the rows of the file in order."""
        done = 0
        for record_batch in self._record_batches():
            batch = record_batch
            if self._limit is not None:
                batch = batch.slice(0, min(len(batch), self._limit - done))
            if len(batch):
                yield self._convert(batch, done)
            done += len(batch)
            if self._limit is not None and done >= self._limit:
                return

    def _record_batches(self) -> Iterator[pa.RecordBatch]:
        try:
            if not self._is_csv:
                yield from pq.ParquetFile(self._path).iter_batches(_BATCH_ROWS)
                return
            as_text = {
                name: pa.string()
                for field in ("event_id", "customer_id", "terminal_id", "amount_minor")
                for name in _ALIASES[field]
            }
            with pyarrow.csv.open_csv(
                self._path,
                convert_options=pyarrow.csv.ConvertOptions(column_types=as_text),
            ) as reader:
                for batch in reader:
                    for start in range(0, len(batch), _BATCH_ROWS):
                        yield batch.slice(start, _BATCH_ROWS)
        except (OSError, pa.ArrowException) as e:
            msg = f"reading transactions file {str(self._path)!r}: {e}"
            raise ConfigurationError(msg) from e

    def _convert(self, batch: pa.RecordBatch, first_row: int) -> TransactionBatch:
        names = {
            field: next((alias for alias in aliases if alias in batch.schema.names), None)
            for field, aliases in _ALIASES.items()
        }
        missing = [field for field, name in names.items() if name is None and field != "is_fraud"]
        if missing:
            wanted = "; ".join(
                f"{field} (one of {', '.join(_ALIASES[field])})" for field in missing
            )
            msg = f"reading {str(self._path)!r}: no column for {wanted}"
            raise ConfigurationError(msg)
        found = {field: batch.column(name) for field, name in names.items() if name is not None}
        for field, array in found.items():
            if array.null_count:
                row = first_row + int(np.argmax(np.asarray(pc.is_null(array))))
                msg = f"reading {str(self._path)!r}: {names[field]!r} is null in row {row}"
                raise ConfigurationError(msg)
        n = len(batch)
        present = np.ones(n, np.bool_)
        times = _times_ms(found["event_time_ms"], str(names["event_time_ms"]))
        amounts = found["amount_minor"]
        minor = (
            np.asarray(pc.cast(amounts, pa.int64()))
            if names["amount_minor"] in ("amount_minor", "amount_cents")
            else amounts_to_minor(amounts)
        )
        columns: dict[str, Column] = {
            "event_id": from_arrow(found["event_id"]),
            "event_time_ms": NumberColumn(times, present),
            "customer_id": from_arrow(found["customer_id"]),
            "terminal_id": from_arrow(found["terminal_id"]),
            "amount_minor": NumberColumn(minor, present),
            "currency": from_arrow(batch.column("currency"))
            if "currency" in batch.schema.names
            else repeat(self._currency, n),
        }
        if "channel" in batch.schema.names:
            columns["channel"] = _channel_codes(batch.column("channel"))
        for name in _OPTIONAL_TEXT:
            if name in batch.schema.names:
                columns[name] = from_arrow(batch.column(name))
        for name in _OPTIONAL_NUMBERS:
            if name in batch.schema.names:
                numbers = pc.cast(batch.column(name), pa.float64())
                valid = np.asarray(pc.is_valid(numbers))
                columns[name] = NumberColumn(np.asarray(pc.fill_null(numbers, 0.0)), valid)
        fraud = found.get("is_fraud")
        labels = None if fraud is None else np.asarray(pc.cast(fraud, pa.int64())) != 0
        return TransactionBatch(columns, labels)


def _times_ms(array: pa.Array, name: str) -> NDArray[np.int64]:
    if name == "ts_epoch_s":
        return np.asarray(pc.cast(array, pa.int64())) * 1000
    if pa.types.is_integer(array.type):
        return np.asarray(pc.cast(array, pa.int64()))
    try:
        if pa.types.is_string(array.type) or pa.types.is_large_string(array.type):
            array = pc.cast(array, pa.timestamp("ms"))
        # Finer units are cut to whole milliseconds; a time zone only says how to print.
        return np.asarray(pc.cast(pc.cast(array, pa.timestamp("ms"), safe=False), pa.int64()))
    except pa.ArrowException as e:
        msg = f"reading column {name!r}: {e}; expected timestamps or integer milliseconds"
        raise ConfigurationError(msg) from e


def _channel_codes(array: pa.Array) -> NumberColumn:
    codes = pc.index_in(pc.cast(array, pa.string()), value_set=pa.array(CHANNELS))
    # What the contract does not know is "unknown", which is what a reader would make of it.
    values = np.asarray(pc.fill_null(codes, 0)).astype(np.int32)
    return NumberColumn(values, np.ones(len(values), np.bool_))
