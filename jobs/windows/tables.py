"""Read recorded events from Parquet or CSV, whatever their columns are called, chunk by chunk."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from jobs.windows.errors import FeatureInputError
from schemas.columns import NumberColumn, StringColumn

__all__ = [
    "ALIASES",
    "names_in_file",
    "normalise",
    "number_column",
    "read_chunks",
    "row_count",
    "string_column",
]

ALIASES: Final[dict[str, tuple[str, ...]]] = {
    "event_id": ("event_id", "TRANSACTION_ID", "transaction_id"),
    "event_time_ms": ("event_time_ms", "TX_DATETIME", "ts_epoch_s", "event_time"),
    "customer_id": ("customer_id", "CUSTOMER_ID"),
    "terminal_id": ("terminal_id", "TERMINAL_ID"),
    "amount_minor": ("amount_minor", "amount_cents", "TX_AMOUNT"),
    "is_fraud": ("is_fraud", "TX_FRAUD", "fraud"),
}
"""Names under which a column of our contract is found in files, best first."""

# How a column that is found under a name in other units becomes ours.
_SECONDS: Final = ("ts_epoch_s",)
_MAJOR_UNITS: Final = ("TX_AMOUNT",)
_ZONE: Final = r"(Z|[+-]\d\d:?\d\d)$"


# What stands for "nothing" in a CSV file, in every column; a shop may well be called `NA`.
_NULLS: Final = ["", "\\N", "NULL", "null"]


def read_chunks(path: Path, texts: Collection[str] = (), rows: int = 131_072) -> Iterator[pa.Table]:
    """Yield the file in order, at most about `rows` rows at a time.

    The columns `texts` of a CSV file are read as they stand: `007` is not `7`.

    Raises:
        FeatureInputError: when the file is neither Parquet nor CSV, or cannot be read.
    """
    try:
        if path.suffix == ".parquet":
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(rows):
                    yield pa.Table.from_batches([batch])
        elif path.suffix in (".csv", ".gz"):
            # About 64 bytes a row; Arrow cuts blocks at line ends.
            options = pyarrow.csv.ReadOptions(block_size=rows * 64)
            convert = pyarrow.csv.ConvertOptions(
                column_types=dict.fromkeys(texts, pa.string()),
                null_values=_NULLS,
                strings_can_be_null=True,
            )
            with pyarrow.csv.open_csv(
                path, read_options=options, convert_options=convert
            ) as reader:
                for batch in reader:
                    yield pa.Table.from_batches([batch])
        else:
            msg = f"reading events from {str(path)!r}: expected a name ending in .parquet or .csv"
            raise FeatureInputError(msg)
    except (OSError, pa.ArrowException) as e:
        msg = f"reading events from {str(path)!r}: {e}"
        raise FeatureInputError(msg) from e


def row_count(path: Path) -> int | None:
    """Return the number of rows when the file says it without being read."""
    if path.suffix != ".parquet":
        return None
    try:
        with pq.ParquetFile(path) as file:
            return int(file.metadata.num_rows)
    except (OSError, pa.ArrowException):
        # Reading it will say why.
        return None


def names_in_file(name: str, renamed: Mapping[str, str]) -> tuple[str, ...]:
    """Return the names under which a column of ours may stand in a file, best first."""
    return (renamed[name],) if name in renamed else ALIASES.get(name, (name,))


def normalise(
    table: pa.Table, wanted: Collection[str], texts: Collection[str], renamed: Mapping[str, str]
) -> dict[str, pa.Array]:
    """Return the wanted columns under our names and units; what the file lacks is left out.

    `renamed` maps our names to the file's (`--map`), without a change of units. Times may be epoch
    milliseconds, `ts_epoch_s` seconds, or timestamps, which count as UTC when they name no zone.
    What is not in `texts` comes out as numbers or booleans; one that is not finite is null.

    Raises:
        FeatureInputError: when a column holds what cannot be understood as that.
    """
    found: dict[str, pa.Array] = {}
    for name in wanted:
        candidates = names_in_file(name, renamed)
        source = next((c for c in candidates if c in table.column_names), None)
        if source is None:
            if name in renamed:
                msg = (
                    f"mapping {name!r}: the file has no column {renamed[name]!r}; it has "
                    f"{', '.join(table.column_names)}"
                )
                raise FeatureInputError(msg)
            continue
        column = table.column(source).combine_chunks()
        if isinstance(column, pa.ChunkedArray):
            column = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([])
        if pa.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        try:
            if name == "event_time_ms":
                column = _milliseconds(source, column)
            elif name not in texts:
                major = source in _MAJOR_UNITS and name not in renamed
                column = _numbers(column, bool_text=name == "is_fraud")
                column = _minor_units(column) if major else column
        except pa.ArrowException as e:
            msg = f"column {source!r}, read as {name}: {e}"
            raise FeatureInputError(msg) from e
        found[name] = column
    return found


def _milliseconds(source: str, column: pa.Array) -> pa.Array:
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        try:
            column = pc.cast(column, pa.timestamp("ms"))
        except pa.ArrowInvalid:
            # All with a zone, or the first complaint stands.
            if not all(pc.match_substring_regex(column.drop_null(), _ZONE).to_pylist()):
                raise
            column = pc.cast(column, pa.timestamp("ms", "UTC"))
    if pa.types.is_timestamp(column.type) or pa.types.is_date(column.type):
        return pc.cast(pc.cast(column, pa.timestamp("ms"), safe=False), pa.int64())
    column = pc.cast(_numbers(column), pa.int64())
    return pc.multiply(column, 1000) if source in _SECONDS else column


def _numbers(column: pa.Array, bool_text: bool = False) -> pa.Array:
    kind = column.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        if bool_text:
            return pc.cast(column, pa.bool_())
        try:
            return pc.cast(column, pa.int64())
        except pa.ArrowInvalid:
            column = pc.cast(column, pa.float64())
    elif pa.types.is_null(kind):
        return pc.cast(column, pa.int64())
    elif pa.types.is_decimal(kind):
        column = pc.cast(column, pa.float64())
    if pa.types.is_floating(column.type):
        return pc.if_else(pc.is_finite(column), column, None)
    if pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        return column
    msg = f"expected numbers, was {kind}"
    raise pa.ArrowInvalid(msg)


def _minor_units(column: pa.Array) -> pa.Array:
    cents = pc.round(pc.multiply(pc.cast(column, pa.float64()), 100.0))
    return pc.cast(cents, pa.int64())


def string_column(array: pa.Array) -> StringColumn:
    """View an Arrow column as strings; numbers become their decimal digits."""
    if not (pa.types.is_string(array.type) or pa.types.is_binary(array.type)):
        array = pc.cast(array, pa.string())
    offsets = np.frombuffer(array.buffers()[1], np.int32)[
        array.offset : array.offset + len(array) + 1
    ]
    data = array.buffers()[2]
    lengths = np.diff(offsets).astype(np.int32)
    if array.null_count:
        lengths[np.asarray(array.is_null())] = -1
    view = np.zeros(0, np.uint8) if data is None else np.frombuffer(data, np.uint8)
    return StringColumn(view, offsets[:-1].astype(np.int64), lengths)


def number_column(array: pa.Array) -> NumberColumn:
    """View an Arrow column as numbers with validity; booleans become 0 and 1."""
    valid = np.asarray(array.is_valid())
    if pa.types.is_boolean(array.type):
        array = pc.cast(array, pa.int8())
    if array.null_count:
        array = pc.fill_null(array, 0)
    return NumberColumn(array.to_numpy(zero_copy_only=False), valid)
