"""Publish ticks, quotes, fills and reference records: what feeds the market risk job."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from connectors.settings import Settings
from jobs.market_risk import files
from jobs.market_risk.offline import ASK_NAMES, BID_NAMES, INSTRUMENT_NAMES, PRICE_NAMES, SIZE_NAMES
from jobs.market_risk.offline_positions import recorded_fills
from jobs.market_risk.scaling import infer_scale, to_scaled
from schemas.avro import RecordEncoder
from schemas.columns import Column, NumberColumn, StringColumn
from schemas.contract import contract
from schemas.encoder import ColumnarEncoder
from schemas.registry import open_registry, value_subject

if TYPE_CHECKING:
    from connectors.producers.publisher import Publisher

__all__ = [
    "CONTRACTS",
    "KEYS",
    "MarketFeed",
    "recorded_market",
]

CONTRACTS: Final = {
    "ticks": "tick",
    "quotes": "quote",
    "fills": "fill",
    "instruments": "instrument",
    "limits": "limit",
    "scenarios": "scenario",
    "fx_rates": "fx_rate",
}
"""Contract of each topic, by its field in the settings."""

KEYS: Final = {
    "ticks": "instrument_id",
    "quotes": "instrument_id",
    "fills": "account_id",
    "instruments": "instrument_id",
    "limits": "limit_id",
    "scenarios": "scenario_id",
    "fx_rates": "currency",
}
"""Field that is the message key, by topic."""

_CHUNK: Final = 10_000


class MarketFeed:
    """Encode under the registered contracts and hand over to a publisher."""

    def __init__(self, settings: Settings, publisher: Publisher) -> None:
        self._topics = settings.kafka.topics
        self._registry = open_registry(settings.schemas)
        self._publisher = publisher
        self._columnar: dict[str, ColumnarEncoder] = {}
        self._single: dict[str, RecordEncoder] = {}

    def publish(self, topic: str, columns: Mapping[str, Column]) -> int:
        """Publish columns of `ticks`, `quotes` or `fills` in order and return how many."""
        encoder = self._columnar.get(topic)
        if encoder is None:
            text = contract(CONTRACTS[topic])
            encoder = self._columnar[topic] = ColumnarEncoder(text, self._register(topic, text))
        times = columns["event_time_ms"]
        keys = columns[KEYS[topic]]
        if not isinstance(times, NumberColumn) or not isinstance(keys, StringColumn):
            msg = f"publishing {topic}: expected numbers as times and text as keys"
            raise TypeError(msg)
        if len(times):
            self._publisher.publish(
                self._topics.name(topic),
                keys,
                encoder.encode(columns),
                times.values.astype(np.int64),
            )
        return len(times)

    def publish_records(self, topic: str, records: Sequence[Mapping[str, Any]]) -> int:
        """Publish reference records in order and return how many."""
        encoder = self._single.get(topic)
        if encoder is None:
            text = contract(CONTRACTS[topic])
            encoder = self._single[topic] = RecordEncoder(text, self._register(topic, text))
        values = [encoder.encode(record) for record in records]
        self._publisher.publish(
            self._topics.name(topic),
            StringColumn.from_texts([str(record[KEYS[topic]]) for record in records]),
            StringColumn.from_bytes(values),
            # Reference records have no place in event time: they must not hold back the stream.
            np.array([int(record.get("event_time_ms") or 0) for record in records], np.int64),
        )
        return len(values)

    def flush(self) -> None:
        """Return when everything handed over is confirmed."""
        self._publisher.flush()

    def _register(self, topic: str, text: str) -> int:
        return self._registry.register(value_subject(self._topics.name(topic)), text)


def recorded_market(
    path: Path, instrument: str, time_zone: str = "UTC"
) -> Iterator[tuple[str, dict[str, Column]]]:
    """Yield a recorded file of trades, quotes or fills as columns of its contract.

    CSV and Parquet files with a fill_id are fills, with bid and ask quotes, others trades; trades
    without a price are left out. Scales are the fewest decimal places that hold the file. Rows come
    in order of time, `_CHUNK` at a time.

    Args:
        path: the file.
        instrument: name of the instrument where the file has no column for it.
        time_zone: of times without an offset.

    Raises:
        InputFileError: if a needed column is absent.
    """
    table = files.read_table(path)
    time_name = files.find_time(table)
    if time_name is None:
        msg = f"replaying {path.name!r}: expected a time column, was {table.column_names}"
        raise files.InputFileError(msg)
    times = files.times_ms(table[time_name], time_zone)
    order = np.argsort(times, kind="stable")
    name = files.find_column(table, INSTRUMENT_NAMES)
    codes, names = np.zeros(len(times), np.int32), [instrument]
    if name is not None:
        codes, names = files.texts(table, name)
    bid, ask = files.find_column(table, BID_NAMES), files.find_column(table, ASK_NAMES)
    numbers: dict[str, NDArray[np.float64]]
    fee = np.zeros(len(times))
    labels: dict[str, list[str]] = {}
    if files.find_column(table, ("fill_id",)) is not None:
        topic = "fills"
        sizes: tuple[str, ...] = ("quantity",)
        price, quantity, fee, labels = recorded_fills(table)
        numbers = {"price": price, "quantity": quantity}
    elif bid is not None and ask is not None and files.find_column(table, PRICE_NAMES) is None:
        topic = "quotes"
        numbers = {"bid": files.numbers(table, bid), "ask": files.numbers(table, ask)}
        sizes = ("bid_size", "ask_size")
        for side in sizes:
            found = files.find_column(table, (side,))
            numbers[side] = np.zeros(len(times)) if found is None else files.numbers(table, found)
    else:
        topic, sizes = "ticks", ("size",)
        numbers = {
            "price": files.numbers(table, files.require_column(table, PRICE_NAMES, "price")),
            "size": files.numbers(table, files.require_column(table, SIZE_NAMES, "size")),
        }
        order = order[np.isfinite(numbers["price"][order])]
    prices = [side for side in numbers if side not in sizes]
    price_scale = infer_scale(np.concatenate([numbers[side] for side in prices]))
    size_scale = infer_scale(np.concatenate([numbers[side] for side in sizes]))
    for start in range(0, len(order), _CHUNK):
        rows = order[start : start + _CHUNK]
        whole = np.ones(len(rows), np.bool_)
        columns: dict[str, Column] = {
            "instrument_id": StringColumn.from_texts([names[code] for code in codes[rows]]),
            "event_time_ms": NumberColumn(times[rows], whole),
            "price_scale": NumberColumn(np.full(len(rows), price_scale, np.int32), whole),
            "quantity_scale": NumberColumn(np.full(len(rows), size_scale, np.int32), whole),
        }
        for label, texts in labels.items():
            columns[label] = StringColumn.from_texts([texts[row] for row in rows.tolist()])
        if topic == "fills":
            scaled = to_scaled(fee[rows], price_scale + size_scale)
            columns["fee"] = NumberColumn(scaled, whole)
        for side, values in numbers.items():
            valid = np.isfinite(values[rows])
            scale = price_scale if side in prices else size_scale
            scaled = to_scaled(np.where(valid, values[rows], 0.0), scale)
            columns[side] = NumberColumn(scaled, valid if topic == "quotes" else whole)
        yield topic, columns
