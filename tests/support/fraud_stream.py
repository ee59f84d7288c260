"""A stream of payments with labels and bad records among them, and what must come of each."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from confluent_kafka import Producer

from connectors.kafka import librdkafka_config
from connectors.producers.simulator import Population, Simulation
from connectors.settings import Settings
from jobs.fraud.features import FRAUD_FEATURES
from jobs.windows.batch import Kind
from schemas.avro import RecordEncoder
from schemas.contract import contract
from schemas.reasons import Limits
from schemas.registry import open_registry, value_subject
from tests.reference.windows_reference import Reference, Row

DAY_MS = 86_400_000
LABEL_DELAY_MS = 6 * DAY_MS


@dataclass(frozen=True)
class Record:
    """One Kafka record to send; `reason` is the dead letter it must become, None if it is good."""

    topic: str
    key: bytes | None
    value: bytes | None
    source_time_ms: int
    payment: dict[str, Any] | None = None
    label: dict[str, Any] | None = None
    reason: str | None = None


class FraudStream:
    """Makes and sends records, and knows the features that the sent payments must have."""

    def __init__(self, settings: Settings, *, customers: int, limit: int, seed: int = 3) -> None:
        self.settings = settings
        topics = settings.kafka.topics
        self.transactions = topics.name("transactions")
        self.labels = topics.name("labels")
        registry = open_registry(settings.schemas)
        self._payment = self._encoder(registry, topics.transactions, "card_transaction")
        self._label = self._encoder(registry, topics.labels, "label")
        self.records = self._simulate(customers, limit, seed)

    @staticmethod
    def _encoder(registry: Any, topic: str, name: str) -> RecordEncoder:
        text = contract(name)
        return RecordEncoder(text, registry.register(value_subject(topic), text))

    def payment(self, **fields: Any) -> Record:
        """Return a payment's record, keyed by its customer."""
        record = {"currency": "EUR", **fields}
        return Record(
            self.transactions,
            record["customer_id"].encode(),
            self._payment.encode(record),
            record["event_time_ms"],
            payment=record,
        )

    def fraud(self, payment: Mapping[str, Any], labelled_at_ms: int) -> Record:
        """Return the record that calls a payment a fraud, keyed by its customer."""
        names = ("event_id", "customer_id", "terminal_id", "event_time_ms")
        label = {name: payment[name] for name in names}
        label |= {"is_fraud": True, "labelled_at_ms": labelled_at_ms, "source": "simulator"}
        key = str(payment["customer_id"]).encode()
        return Record(self.labels, key, self._label.encode(label), labelled_at_ms, label=label)

    def _simulate(self, customers: int, limit: int, seed: int) -> list[Record]:
        population = Population(seed=seed, customers=customers, terminals=customers)
        timed: list[tuple[int, int, Record]] = []
        for batch in Simulation(population, limit=limit).batches():
            ids = {
                name: batch.text(name).to_list()
                for name in ("event_id", "customer_id", "terminal_id")
            }
            amounts = batch.amount_minor.tolist()
            frauds = [] if batch.is_fraud is None else batch.is_fraud.tolist()
            for row, time_ms in enumerate(batch.event_time_ms.tolist()):
                names = {name: column[row] for name, column in ids.items()}
                payment = self.payment(**names, event_time_ms=time_ms, amount_minor=amounts[row])
                timed.append((time_ms, 1, payment))
                if frauds and frauds[row]:
                    at = time_ms + LABEL_DELAY_MS
                    label = {**names, "event_time_ms": time_ms, "is_fraud": True}
                    label |= {"labelled_at_ms": at, "source": "simulator"}
                    value = self._label.encode(label)
                    key = names["customer_id"].encode()
                    timed.append((at, 0, Record(self.labels, key, value, at, label=label)))
        last = max(time_ms for time_ms, order, _ in timed if order == 1)
        return [record for at, _, record in sorted(timed, key=lambda item: item[:2]) if at <= last]

    def bad_records(self) -> list[Record]:
        """Return one record of every kind that must become a dead letter."""
        good = next(record for record in self.records if record.payment is not None)
        payment, value, key = dict(good.payment or {}), good.value or b"", good.key
        now = good.source_time_ms

        def variant(reason: str, **changes: Any) -> Record:
            changed = self.payment(**{**payment, "event_id": f"bad-{reason}", **changes})
            return Record(self.transactions, changed.key, changed.value, now, reason=reason)

        def raw(reason: str, value: bytes | None, key: bytes | None = key) -> Record:
            return Record(self.transactions, key, value, now, reason=reason)

        # event_id is the first field, one length byte and its text: the text begins at byte 6.
        broken_text = value[:6] + b"\xff" + value[7:]
        return [
            *self._over_limits(value, key, now),
            variant("string_too_long", event_id="x" * 5_000),
            raw("truncated", value[:-3]),
            raw("trailing_bytes", value + b"\0"),
            raw("not_avro", b'{"json": true}'),
            raw("unknown_schema_id", b"\0" + struct.pack(">I", 12345) + value[5:]),
            raw("invalid_utf8", broken_text),
            raw("null_value", None),
            raw("missing_key", variant("missing_key").value, None),
            raw("key_mismatch", variant("key_mismatch").value, b"somebody-else"),
            raw("oversized", value + bytes(100_000)),
            variant("negative_amount", amount_minor=-1),
            variant("absurd_amount", amount_minor=1 << 60),
            variant("event_time_out_of_range", event_time_ms=now // 1000),
            variant("event_time_in_future", event_time_ms=now + 400 * DAY_MS),
            variant("empty_id", terminal_id=""),
            variant("bad_location", latitude=float("nan"), longitude=0.0),
        ]

    def _over_limits(self, value: bytes, key: bytes | None, now: int) -> list[Record]:
        """Return what a registry without limits lets producers send: too deep, and too large."""
        registry = open_registry(self.settings.schemas, Limits(max_schema_bytes=1 << 20))

        def written_with(field: dict[str, Any], tail: bytes, reason: str) -> Record:
            schema = json.loads(contract("card_transaction"))
            schema["fields"].append({"name": f"for_{reason}", **field})
            schema_id = registry.register(f"{reason}-of-others-value", json.dumps(schema))
            head = b"\0" + struct.pack(">I", schema_id)
            return Record(self.transactions, key, head + value[5:] + tail, now, reason=reason)

        link = {"name": "next", "type": ["null", "Link"], "default": None}
        chain = {"type": "record", "name": "Link", "fields": [link]}
        number = {"type": "int", "default": 0, "doc": "x" * 300_000}
        return [
            written_with({"type": ["null", chain], "default": None}, b"\2" * 40 + b"\0", "nesting"),
            written_with(number, b"\0", "bad_schema"),
        ]

    def send(self, records: Iterable[Record]) -> None:
        """Publish in order and wait until Kafka has everything."""
        producer = Producer(
            {**librdkafka_config(self.settings.kafka), "partitioner": "murmur2_random"}
        )
        for record in records:
            header = struct.pack("<q", record.source_time_ms)
            producer.produce(
                record.topic,
                key=record.key,
                value=record.value,
                headers=[("event_time_ms", header)],
            )
            producer.poll(0)
        left = producer.flush(30)
        assert left == 0


def expected_features(records: Sequence[Record]) -> dict[str, dict[str, float]]:
    """Return every payment's window features by event id, from the quadratic reference."""
    references = {
        entity.name: (Reference(FRAUD_FEATURES, entity.name), FRAUD_FEATURES.names_of(entity.name))
        for entity in FRAUD_FEATURES.entities
    }
    found: dict[str, dict[str, float]] = {}
    for record in records:
        source = record.payment or record.label
        if source is None or record.reason is not None:
            continue
        for entity, (reference, names) in references.items():
            row = Row(
                Kind.EVENT if record.payment is not None else Kind.LABEL,
                source[f"{entity}_id"],
                source["event_time_ms"],
                source["event_id"],
                {"amount_minor": source.get("amount_minor")},
                bool(source.get("is_fraud", False)),
            )
            values, _ = reference.process(row)
            if record.payment is not None:
                found.setdefault(source["event_id"], {}).update(zip(names, values, strict=True))
    return found
