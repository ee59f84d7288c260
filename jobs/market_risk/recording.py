"""A market as slices in order of time: recorded in files, or simulated as it goes.

Trades, quotes and fills lie in files of their own; a desk lived them together. Recorded files are
therefore cut into slices of event time that hold a bit of each.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from jobs.market_risk.daily import DAY_MS
from jobs.market_risk.feed import recorded_market
from jobs.market_risk.files import InputFileError, write_table
from jobs.market_risk.simulator import MarketSimulator, SimulatedBatch
from schemas.columns import Column, Columns, NumberColumn, StringColumn

__all__ = [
    "MarketSlice",
    "last_time_ms",
    "market_slices",
    "recorded_slices",
    "times_of",
    "write_recording",
]

_SLICE_MS: Final = 100
_SLICE_ROWS: Final = 2_000


@dataclass(frozen=True, slots=True)
class MarketSlice:
    """Some events: columns by topic, due so long after the start (0 where there is no clock)."""

    due_seconds: float
    columns: dict[str, Columns]


def market_slices(simulator: MarketSimulator, seconds: int) -> Iterator[MarketSlice]:
    """Cut `seconds` of the simulator's batches into steps of its clock, to be sent when due."""
    start_ms = simulator.now_ms
    for batch in simulator.batches():
        topics = _topics(batch)
        first, last = int(times_of(batch.quotes).min()), int(times_of(batch.quotes).max())
        if first > start_ms + seconds * 1000:
            return
        for at in range(first, last + 1, _SLICE_MS):
            yield MarketSlice((at - start_ms) / 1000, _within(topics, at, at + _SLICE_MS))


def recorded_slices(
    recorded: Sequence[tuple[str, Path]], rows: int = _SLICE_ROWS
) -> Iterator[MarketSlice]:
    """Merge files of trades, quotes and fills by event time, about `rows` events a slice.

    No slice holds two UTC days. Events of one millisecond stay together and those of a file keep
    its order. Where a file has no
    column for the instrument, its name up to the first dot is the instrument.

    Args:
        recorded: what each file must hold (`ticks`, `quotes`, `fills`; `any` for whichever it is)
            and where it is.
        rows: events of a slice, more where one millisecond holds more.

    Raises:
        InputFileError: if a file cannot be read or holds something else.
    """
    parts: list[tuple[str, Columns]] = []
    spans: list[tuple[int, int]] = []
    for wanted, path in recorded:
        for topic, read in recorded_market(path, path.name.split(".")[0]):
            columns: Columns = read
            if wanted not in ("any", topic):
                msg = f"reading {path.name!r}: expected {wanted}, was a file of {topic}"
                raise InputFileError(msg)
            if len(times_of(columns)):
                parts.append((topic, columns))
                spans.append((int(times_of(columns)[0]), int(times_of(columns)[-1])))
    if not parts:
        return
    times = np.sort(np.concatenate([times_of(columns) for _, columns in parts]))
    days = times[np.flatnonzero(np.diff(times // DAY_MS, prepend=-1))]
    starts = np.unique(np.concatenate([times[::rows], days])).tolist()
    for start, end in itertools.pairwise([*starts, int(times[-1]) + 1]):
        found: dict[str, Columns] = {}
        for (topic, columns), (first, last) in zip(parts, spans, strict=True):
            if first >= end or last < start:
                continue
            for name, cut in _within({topic: columns}, start, end).items():
                found[name] = _joined(found[name], cut) if name in found else cut
        yield MarketSlice(0.0, found)


def write_recording(
    simulator: MarketSimulator, folder: Path, days: int, seconds: int
) -> list[tuple[str, Path]]:
    """Let the simulator live `days` days, `seconds` of each, and write files as a venue would.

    Afterwards the simulator stands at the beginning of the next day, so that what it goes on with
    continues the recording.

    Returns:
        what each file holds and where it is, as `recorded_slices` takes it.
    """
    parts: dict[str, list[pa.Table]] = {}
    for _ in range(days):
        for one in market_slices(simulator, seconds):
            for topic, columns in one.columns.items():
                parts.setdefault(topic, []).append(_as_table(columns))
        simulator.next_day()
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for topic, tables in parts.items():
        path = folder / f"{topic}.csv.gz"
        write_table(pa.concat_tables(tables), path)
        written.append((topic, path))
    return written


def last_time_ms(slices: Sequence[MarketSlice]) -> int:
    """Return the newest event time of some slices, one or more of them not empty."""
    return max(int(times_of(columns).max()) for one in slices for columns in one.columns.values())


def times_of(columns: Mapping[str, Column]) -> NDArray[np.int64]:
    """Return the event times of columns.

    Raises:
        TypeError: if they are no numbers.
    """
    times = columns["event_time_ms"]
    if not isinstance(times, NumberColumn):
        msg = "reading the times of a batch: expected numbers, was text"
        raise TypeError(msg)
    return times.values.astype(np.int64)


def _topics(batch: SimulatedBatch) -> dict[str, Columns]:
    # A trade follows its quote, and a fill is a trade.
    return {"quotes": batch.quotes, "ticks": batch.ticks, "fills": batch.fills}


def _within(topics: Mapping[str, Columns], start_ms: int, end_ms: int) -> dict[str, Columns]:
    cut: dict[str, Columns] = {}
    for topic, columns in topics.items():
        times = times_of(columns)
        rows = np.flatnonzero((times >= start_ms) & (times < end_ms))
        if len(rows):
            cut[topic] = {
                name: NumberColumn(column.values[rows], column.valid[rows])
                if isinstance(column, NumberColumn)
                else StringColumn(column.data, column.starts[rows], column.lengths[rows])
                for name, column in columns.items()
            }
    return cut


def _joined(first: Columns, second: Columns) -> Columns:
    # Of files of one kind, one after the other: each instrument is in one of them.
    joined: dict[str, Column] = {}
    for name in first:
        one, other = first[name], second[name]
        if isinstance(one, NumberColumn) and isinstance(other, NumberColumn):
            joined[name] = NumberColumn(
                np.concatenate([one.values, other.values]),
                np.concatenate([one.valid, other.valid]),
            )
        elif isinstance(one, StringColumn) and isinstance(other, StringColumn):
            joined[name] = StringColumn.from_texts([*one.to_list(), *other.to_list()])
    return joined


def _as_table(columns: Columns) -> pa.Table:
    # Decimals without scales, as a venue writes them.
    number = {
        name: column.values.astype(np.float64)
        for name, column in columns.items()
        if isinstance(column, NumberColumn)
    }
    price, size = 10.0 ** number["price_scale"], 10.0 ** number["quantity_scale"]
    scales = {"price": price, "bid": price, "ask": price, "size": size, "bid_size": size}
    scales |= {"ask_size": size, "quantity": size, "fee": price * size}
    texts = {
        name: column.to_list()
        for name, column in columns.items()
        if isinstance(column, StringColumn)
    }
    stamps = pa.array(times_of(columns)).cast(pa.timestamp("ms", "UTC"))
    return pa.table(
        {
            "timestamp": stamps,
            **texts,
            **{name: number[name] / scale for name, scale in scales.items() if name in number},
        }
    )
