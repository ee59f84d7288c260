"""Read prices, trades, quotes and fills from CSV (plain or compressed) and Parquet files.

Columns are found by name, whatever the case: vendors write `timestamp`, `ts`, `date`; `amount`,
`size`, `qty`. Times are recognised by type and magnitude (seconds to nanoseconds) or as ISO and
compact text, by one form for the whole column. Fields are separated by commas, semicolons, tabs or
bars, whichever the first line has most of; behind semicolons a comma may be the decimal point.
Numbers may have commas between thousands. A column of dates beside one of times of day is one time.
A file without a header (its first line starts with a
time) is read as time, bid, ask, volume when it has four columns and as time, price, size with
three; a first line of numbers alone is no header either.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet
from numpy.typing import NDArray

from schemas.errors import FatalError

__all__ = [
    "InputFileError",
    "find_column",
    "find_time",
    "numbers",
    "read_table",
    "require_column",
    "texts",
    "times_ms",
    "write_table",
]

TIME_NAMES: Final = (
    *("event_time_ms", "timestamp", "timestamp_ms", "time_ms", "time", "ts", "date", "datetime"),
    *("date_time", "executed_at", "trade_time", "day", "start_ms", "open_time"),
)
_TEXT_FORMATS: Final = (
    *("%Y%m%d %H%M%S%f", "%Y%m%d %H:%M:%S.%f", "%Y%m%d %H:%M:%S", "%Y%m%d", "%Y-%m-%d %H:%M:%S %z"),
    *("%d-%b-%Y", "%d %b %Y"),
)
_SLASHED_FORMS: Final = (
    *("%d/%m/%Y", "%m/%d/%Y", "%d/%m/%Y %H:%M:%S", "%m/%d/%Y %H:%M:%S"),
    *("%d/%m/%Y %H:%M", "%m/%d/%Y %H:%M"),
)
_TIME_OF_DAY: Final = r"^\d{1,2}:\d{2}(:\d{2}(\.\d+)?)?$"
_SLASHED: Final = re.compile(r"\d{1,2}/\d{1,2}/\d{4}")
_DECIMAL_COMMA: Final = re.compile(r"(^|;)\s*-?\d+,\d+\s*(;|$)")
_THOUSANDS: Final = r"^[+-]?\d{1,3}(,\d{3})*(\.\d*)?$"


class InputFileError(FatalError):
    """A data file cannot be read, or lacks a column that the command needs."""


def read_table(path: Path) -> pa.Table:
    """Read a Parquet file, or a CSV file that may be compressed (.gz, .bz2, .zst, .lz4).

    Raises:
        InputFileError: if the file is absent or is neither.
    """
    try:
        if ".parquet" in path.suffixes or ".pq" in path.suffixes:
            return _joined_day(_without_decimals(pa.parquet.read_table(path)))
        separator, point = _form(path)
        names = _names_without_header(path, separator)
        convert = pa.csv.ConvertOptions(
            strings_can_be_null=True,
            null_values=["", "NA", "NaN", "nan", "null", "None", "N/A"],
            decimal_point=point,
        )
        with pa.input_stream(str(path), compression="detect") as stream:
            table = pa.csv.read_csv(
                stream,
                read_options=pa.csv.ReadOptions(column_names=names),
                parse_options=pa.csv.ParseOptions(delimiter=separator),
                convert_options=convert,
            )
    except (OSError, pa.ArrowException) as e:
        msg = f"reading {path.name!r}: expected CSV (plain or compressed) or Parquet: {e}"
        raise InputFileError(msg) from e
    again = sorted({name for name in table.column_names if table.column_names.count(name) > 1})
    if again:
        msg = (
            f"reading {path.name!r}: expected one header line that names each column once, was "
            f"{again!r} more than once; of two header lines keep one, as date,AAPL,MSFT"
        )
        raise InputFileError(msg)
    return _joined_day(
        pa.table(
            {
                name: _trimmed(column)
                for name, column in zip(table.column_names, table.columns, strict=True)
            }
        )
    )


def write_table(table: pa.Table, path: Path) -> None:
    """Write a table as Parquet or CSV (compressed if the name says so), by the file's name.

    Raises:
        InputFileError: if the file cannot be written.
    """
    try:
        if path.suffix in (".parquet", ".pq"):
            pa.parquet.write_table(table, path)
            return
        compression = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}.get(path.suffix)
        with pa.output_stream(str(path), compression=compression) as stream:
            pa.csv.write_csv(table, stream, pa.csv.WriteOptions(quoting_style="needed"))
    except (OSError, pa.ArrowException) as e:
        msg = f"writing {str(path)!r}: {e}"
        raise InputFileError(msg) from e


def find_column(table: pa.Table, names: Sequence[str]) -> str | None:
    """Return the first column whose name, lower-cased with spaces as `_`, is one of `names`."""
    known = {name.strip().lower().replace(" ", "_"): name for name in reversed(table.column_names)}
    return next((known[name] for name in names if name in known), None)


def require_column(table: pa.Table, names: Sequence[str], purpose: str) -> str:
    """Return the column as `find_column` does.

    Raises:
        InputFileError: naming what was looked for and what there is.
    """
    found = find_column(table, names)
    if found is None:
        msg = (
            f"finding the {purpose}: expected a column named {', '.join(names)}, "
            f"was {', '.join(table.column_names)}"
        )
        raise InputFileError(msg)
    return found


def find_time(table: pa.Table) -> str | None:
    """Return the time column: by name, else by type, else the first if it reads as times."""
    found = find_column(table, TIME_NAMES)
    if found is not None:
        return found
    for field in table.schema:
        if pa.types.is_temporal(field.type):
            return str(field.name)
    first = table.schema.field(0)
    if pa.types.is_string(first.type) and table.num_rows and table[0][0].is_valid:
        try:
            if not _SLASHED.match(table[0][0].as_py()):
                _parse(table[0][0].as_py(), dt.UTC)
        except ValueError:
            return None
        return str(first.name)
    return None


def times_ms(column: pa.ChunkedArray, time_zone: str = "UTC") -> NDArray[np.int64]:
    """Return a time column as UTC epoch milliseconds.

    Integers are taken for seconds, milli-, micro- or nanoseconds by magnitude (eight digits that
    make a date are a date); text without an offset is in `time_zone`. Sub-millisecond parts are
    floored.

    Raises:
        InputFileError: if a value is null or is no time.
    """
    if column.null_count:
        msg = f"reading times: expected a time in every row, was null in {column.null_count} row(s)"
        raise InputFileError(msg)
    kind = column.type
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return _from_numbers(column)
    try:
        zone = dt.UTC if time_zone == "UTC" else ZoneInfo(time_zone)
        if pa.types.is_timestamp(kind):
            if kind.tz is None and time_zone != "UTC":
                column = pc.assume_timezone(column, time_zone)
            column = pc.floor_temporal(column.cast(pa.timestamp("ns", kind.tz)), unit="millisecond")
            return _flat(column.cast(pa.timestamp("ms", column.type.tz)).cast(pa.int64()))
        if pa.types.is_date(kind):
            return _flat(column.cast(pa.timestamp("ms")).cast(pa.int64()))
        return np.array(_parse_all(column.to_pylist(), zone), np.int64)
    except (ValueError, AttributeError, ZoneInfoNotFoundError, pa.ArrowException) as e:
        msg = f"reading times: expected epoch numbers or ISO text: {e}"
        raise InputFileError(msg) from e


def numbers(table: pa.Table, name: str) -> NDArray[np.float64]:
    """Return a column as float64, nulls as NaN.

    Raises:
        InputFileError: if it holds something else than numbers.
    """
    try:
        column = table[name].cast(pa.float64())
    except pa.ArrowException as e:
        msg = f"reading column {name!r}: expected numbers: {e}"
        raise InputFileError(msg) from e
    result: NDArray[np.float64] = column.to_numpy().astype(np.float64)
    return result


def texts(table: pa.Table, name: str) -> tuple[NDArray[np.int32], list[str]]:
    """Return a column as codes and the distinct texts they stand for, in order of appearance."""
    encoded = pc.fill_null(table[name].cast(pa.string()), "").combine_chunks().dictionary_encode()
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.combine_chunks()
    return encoded.indices.to_numpy().astype(np.int32), encoded.dictionary.to_pylist()


def _first_lines(path: Path) -> list[str]:
    with pa.input_stream(str(path), compression="detect") as stream:
        lines: list[str] = stream.read(65_536).decode("utf-8", "replace").splitlines()
    return lines[:2]


def _form(path: Path) -> tuple[str, str]:
    # The separator of fields, and the decimal point.
    lines = _first_lines(path)
    bare = re.sub(r'"[^"]*"', "", lines[0]) if lines else ""
    separator = max(",;\t|", key=lambda one: (bare.count(one), one == ","))
    comma = separator == ";" and any(_DECIMAL_COMMA.search(line) for line in lines)
    return separator, "," if comma else "."


def _names_without_header(path: Path, separator: str) -> list[str] | None:
    lines = _first_lines(path)
    fields = [field.strip().strip('"') for field in lines[0].split(separator)] if lines else []
    if fields and all(_is_number(field) for field in fields) and len(fields) < 3:
        return ["price"] if len(fields) == 1 else ["timestamp", "price"]
    try:
        lead = fields[0]
        if not (lead.isdecimal() and len(lead) >= 9):
            _parse(lead, dt.UTC)
        float(fields[1])
    except (ValueError, IndexError):
        return None
    if len(fields) == 4:
        return ["timestamp", "bid", "ask", "volume"]
    return ["timestamp", "price", "size", *[f"column_{index}" for index in range(3, len(fields))]][
        : len(fields)
    ]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _without_decimals(table: pa.Table) -> pa.Table:
    # Databases export money so; everything here reckons from the shortest decimal of a float.
    for place, field in enumerate(table.schema):
        if pa.types.is_decimal(field.type):
            table = table.set_column(place, field.name, table[field.name].cast(pa.float64()))
    return table


def _joined_day(table: pa.Table) -> pa.Table:
    # Terminals write the day and the time of day as two columns.
    day, hour = find_column(table, ("date", "day")), find_column(table, ("time",))
    if day is None or hour is None or not table.num_rows:
        return table
    days, hours = table[day].cast(pa.string()), table[hour].cast(pa.string())
    if not pc.all(pc.match_substring_regex(hours, _TIME_OF_DAY)).as_py():
        return table
    days = pc.replace_substring_regex(days, r"^(\d{4})[./](\d{2})[./](\d{2})$", r"\1-\2-\3")
    joined = pc.binary_join_element_wise(days, hours, " ")
    return table.set_column(table.column_names.index(day), day, joined).drop_columns([hour])


def _trimmed(column: pa.ChunkedArray) -> pa.ChunkedArray:
    # Some vendors pad their fields; the CSV reader then sees text where there are numbers.
    if not pa.types.is_string(column.type):
        return column
    trimmed = pc.utf8_trim_whitespace(column)
    for kind in (pa.int64(), pa.float64()):
        try:
            return trimmed.cast(kind)
        except pa.ArrowInvalid:
            continue
    grouped = pc.match_substring_regex(trimmed, _THOUSANDS)
    if pc.all(grouped).as_py():
        return pc.replace_substring(trimmed, ",", "").cast(pa.float64())
    return trimmed


def _from_numbers(column: pa.ChunkedArray) -> NDArray[np.int64]:
    values = column.to_numpy()
    if len(values) == 0:
        return np.empty(0, np.int64)
    largest = float(np.abs(values).max())
    if float(values.min()) >= 19_000_101 and largest <= 21_001_231:
        days = [_parse(str(int(value)), dt.UTC) for value in values]
        return np.array(days, np.int64)
    units = ((1e11, 1e-3), (1e14, 1.0), (1e17, 1e3))
    per_ms = next((unit for limit, unit in units if largest < limit), 1e6)
    if pa.types.is_floating(column.type):
        floored: NDArray[np.int64] = np.floor(np.round(values / per_ms, 3)).astype(np.int64)
        return floored
    whole: NDArray[np.int64] = values.astype(np.int64)
    return whole * 1000 if per_ms < 1 else whole // int(per_ms)


def _parse(text: str, zone: dt.tzinfo) -> int:
    try:
        stamp = dt.datetime.fromisoformat(text)
    except ValueError:
        for form in _TEXT_FORMATS:
            try:
                stamp = dt.datetime.strptime(text, form)  # noqa: DTZ007 - the zone is set below
                break
            except ValueError:
                continue
        else:
            msg = f"{text!r} is no known form of time"
            raise ValueError(msg) from None
    if stamp.tzinfo is None:
        stamp = stamp.replace(tzinfo=zone)
    return (stamp - dt.datetime(1970, 1, 1, tzinfo=dt.UTC)) // dt.timedelta(milliseconds=1)


def _parse_all(texts: Sequence[str], zone: dt.tzinfo) -> list[int]:
    # One form for the whole column: 01/02/2024 alone is two dates, a column of days is one.
    if not texts or not _SLASHED.match(texts[0]):
        return [_parse(text, zone) for text in texts]
    found: list[list[int]] = []
    for form in _SLASHED_FORMS:
        try:
            found.append([_in_form(text, form, zone) for text in texts])
        except ValueError:
            continue
    if not found:
        msg = f"{texts[0]!r} and what follows are no dates of one form"
        raise ValueError(msg)
    rising = [one for one in found if one == sorted(one) or one == sorted(one, reverse=True)]
    if len(rising) == 1 or (len(found) > 1 and rising and found[0] == found[1]):
        return rising[0]
    if len(found) == 1:
        return found[0]
    msg = f"{texts[0]!r} may be day or month first; write dates as 2024-02-01"
    raise ValueError(msg)


def _in_form(text: str, form: str, zone: dt.tzinfo) -> int:
    stamp = dt.datetime.strptime(text, form).replace(tzinfo=zone)
    return (stamp - dt.datetime(1970, 1, 1, tzinfo=dt.UTC)) // dt.timedelta(milliseconds=1)


def _flat(column: pa.ChunkedArray) -> NDArray[np.int64]:
    result: NDArray[np.int64] = column.to_numpy().astype(np.int64)
    return result
