"""The fraud job's stages without Flink, Kafka, Redis or ClickHouse: events in, decoded rows out."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np

from connectors.frames import FrameRecord, event_time_header
from connectors.row_binary import RowBinaryLayout
from connectors.settings import Settings, load_settings
from connectors.tables import control_layout, label_layout, scored_layout
from jobs.fraud.customer_stage import CustomerStage
from jobs.fraud.decision_stage import DecisionStage
from jobs.fraud.features import FRAUD_FEATURES
from jobs.fraud.parts import StageParts
from models.registry import default_version
from schemas.avro import RecordDecoder, RecordEncoder
from schemas.contract import contract
from schemas.reasons import Limits
from schemas.registry import open_registry, stable_schema_id
from tests.support.pipeline import DictState, Pipeline, frame

__all__ = [
    "Fraud",
    "Row",
    "control",
    "encode",
    "label",
    "offline_settings",
    "payment",
    "read_rows",
]

Row = dict[str, Any]
Place = tuple[str, int, int]
START_MS: Final = 1_577_836_800_000
DAY_MS: Final = 86_400_000
_BLOCK: Final = struct.Struct("<III")
_TYPES: Final = {"i1": "b", "u1": "B", "<i2": "<h", "<u2": "<H", "<i4": "<i", "<i8": "<q"}
_LETTERS: Final = Limits(max_record_bytes=64 << 20, max_string_bytes=64 << 20)


def offline_settings(home: Path, *overrides: str) -> Settings:
    """Return settings whose Redis is away and does not hold anything up."""
    return load_settings(
        environment={},
        overrides=[
            f"home={home}",
            "redis.url=redis://127.0.0.1:1",
            "redis.timeout_ms=50",
            "redis.when_down=score_without",
            f"models.registry=file:{home}/models",
            *overrides,
        ],
    )


@cache
def encoder(name: str) -> RecordEncoder:
    """Return the writer of a contract under its committed id."""
    text = contract(name)
    return RecordEncoder(text, stable_schema_id(text))


def encode(name: str, record: Mapping[str, object]) -> bytes:
    """Return a record of a contract with its wire header."""
    return encoder(name).encode(record)


def payment(
    offset: int,
    customer: str = "C1",
    terminal: str = "T1",
    *,
    at_ms: int | None = None,
    amount_minor: int = 1_000,
    event_id: str | None = None,
    partition: int = 0,
    key: str | bytes | None = "",
    timestamp_ms: int | None = None,
    topic: str = "card-transactions",
    **fields: object,
) -> bytes:
    """Return the frame of one payment; the key is the customer unless told otherwise."""
    event_time_ms = START_MS + offset * 60_000 if at_ms is None else at_ms
    value = encode(
        "card_transaction",
        {
            "event_id": f"e{partition}-{offset}" if event_id is None else event_id,
            "event_time_ms": event_time_ms,
            "customer_id": customer,
            "terminal_id": terminal,
            "amount_minor": amount_minor,
            "currency": "EUR",
            **fields,
        },
    )
    return frame(
        topic,
        customer if key == "" else key,
        value,
        offset,
        partition=partition,
        timestamp_ms=event_time_ms if timestamp_ms is None else timestamp_ms,
        headers=(event_time_header(event_time_ms),),
    )


def label(
    offset: int,
    event_id: str,
    customer: str,
    terminal: str,
    event_time_ms: int,
    *,
    is_fraud: bool = True,
    partition: int = 0,
) -> bytes:
    """Return the frame of one label."""
    value = encode(
        "label",
        {
            "event_id": event_id,
            "event_time_ms": event_time_ms,
            "customer_id": customer,
            "terminal_id": terminal,
            "is_fraud": is_fraud,
            "labelled_at_ms": event_time_ms + 6 * DAY_MS,
            "source": "chargeback",
            "revision": 0,
        },
    )
    published = event_time_ms + 6 * DAY_MS
    return frame(
        "card-labels", customer, value, offset, partition=partition, timestamp_ms=published
    )


def control(offset: int, kind: str, subject: str = "", **arguments: str) -> bytes:
    """Return the frame of one control record."""
    value = encode(
        "control",
        {
            "control_id": f"control-{offset}-{kind}",
            "kind": kind,
            "subject": subject,
            "arguments": arguments,
            "issued_by": "test",
            "issued_at_ms": START_MS,
        },
    )
    return frame("fraud-control", subject, value, offset, control=True)


class Fraud:
    """Both stages over `shards` shards; `restart` leaves them their state alone."""

    def __init__(self, settings: Settings, shards: int = 4) -> None:
        tree = settings.model_dump()
        tree["flink"] |= {"shards": shards, "parallelism": 1}
        self.settings = Settings.model_validate(tree)
        self._names = FRAUD_FEATURES.names
        self._registry = open_registry(settings.schemas)
        parts = StageParts(self.settings)
        decision = DecisionStage(parts, default_version())
        self.pipeline = Pipeline(CustomerStage(parts), decision, self.settings.flink.shards)

    def send(self, frames: Sequence[bytes], cut: Sequence[int] = ()) -> None:
        """Run frames through both stages, batches ending before the positions in `cut`."""
        self.pipeline.send(frames, cut)

    def restart(self) -> None:
        """Throw away what the stages remember; keep what Flink would have kept, copied."""
        for stage in self.pipeline.stages:
            stage._shards.clear()
        for kept in self.pipeline.state:
            for shard, state in list(kept.items()):
                kept[shard] = DictState()
                kept[shard].entries = dict(state.entries)

    def reset(self) -> Fraud:
        """Forget everything, state and output too: opening the stages anew would take seconds."""
        self.restart()
        self.pipeline.state = ({}, {})
        self.pipeline.rows, self.pipeline.records = [], []
        return self

    def rows(self) -> list[Row]:
        """Return the scored transactions so far."""
        return read_rows(self.pipeline.rows, 0, scored_layout(self._names))

    def label_rows(self) -> list[Row]:
        """Return the stored labels so far."""
        return read_rows(self.pipeline.rows, 1, label_layout())

    def control_rows(self) -> list[Row]:
        """Return what the shards made of control records."""
        return read_rows(self.pipeline.rows, 2, control_layout())

    def by_place(self, *ignored: str) -> dict[Place, Row]:
        """Return scored rows by coordinates, without the clock's columns and those named."""
        return {
            (row["kafka_topic"], row["kafka_partition"], row["kafka_offset"]): {
                name: value
                for name, value in row.items()
                if name not in {"decided_at_ms", "ingested_at_ms", "seen_order", *ignored}
            }
            for row in self.rows()
        }

    def alerts(self) -> list[dict[str, Any]]:
        """Return the alerts so far."""
        return self._decoded("fraud-alerts", "alert")

    def letters(self) -> list[dict[str, Any]]:
        """Return the dead letters so far."""
        return self._decoded("fraud-dead-letters", "dead_letter")

    def _decoded(self, topic: str, name: str) -> list[dict[str, Any]]:
        decoder = RecordDecoder(self._registry, contract(name), _LETTERS)
        return [decoder.decode(record.value) for record in self.records(topic)]

    def records(self, topic: str) -> list[FrameRecord]:
        """Return what was addressed to a topic of Kafka."""
        return [record for record in self.pipeline.records if record.topic == topic]


def read_rows(payloads: Iterable[bytes], table: int, layout: RowBinaryLayout) -> list[Row]:
    """Decode the rows of one table from row packets, by the definition of RowBinary."""
    rows: list[Row] = []
    for payload in payloads:
        at = 4
        while at < len(payload):
            number, count, length = _BLOCK.unpack_from(payload, at)
            at += _BLOCK.size
            if number == table:
                rows += _block(payload[at : at + length], count, layout)
            at += length
    return rows


def _block(data: bytes, count: int, layout: RowBinaryLayout) -> list[Row]:
    features = [("*", "<f8", (len(layout._group),))] if layout._group else []
    fixed = np.dtype([*layout._fixed, *features])
    texts = [*layout._strings, *layout._sets]
    rows, at = [], 0
    for _ in range(count):
        row: Row = {}
        for name, (kind, offset, *_) in fixed.fields.items():
            if name.startswith("*"):
                width = kind.itemsize // 8
                values = struct.unpack_from(f"<{width}d", data, at + offset)
                # Bits, so that NaN equals NaN.
                row |= {
                    feature: struct.pack("<d", value).hex()
                    for feature, value in zip(layout._group, values, strict=True)
                }
            elif kind.kind == "f":
                row[name] = struct.unpack_from("<d", data, at + offset)[0]
            else:
                row[name] = struct.unpack_from(_TYPES[_code(kind)], data, at + offset)[0]
        at += fixed.itemsize
        for name in texts:
            if name in layout._sets:
                items, at = _varint(data, at)
                found = []
                for _ in range(items):
                    text, at = _text(data, at)
                    found.append(text)
                row[name] = found
            else:
                row[name], at = _text(data, at)
        rows.append(row)
    assert at == len(data)
    return rows


def _code(kind: Any) -> str:
    return f"{'' if kind.itemsize == 1 else '<'}{kind.kind}{kind.itemsize}"


def _text(data: bytes, at: int) -> tuple[str, int]:
    length, at = _varint(data, at)
    return data[at : at + length].decode(), at + length


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, at
