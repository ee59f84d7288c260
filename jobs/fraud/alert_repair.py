"""Raise the alerts that an account found missing: read what is left of them, build, publish."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Final

from confluent_kafka import Producer

from connectors.clickhouse import ClickHouseClient
from connectors.evidence import OffsetRange, read_range
from connectors.frames import FrameBatch, write_frame
from connectors.kafka import librdkafka_config
from connectors.settings import Settings
from connectors.tables import CONTROL_TABLE, SCORED_VIEW
from jobs.audit import Coordinate
from jobs.fraud.in_force import control_records
from jobs.fraud.parts import StageParts
from jobs.fraud.raised_again import InForceThen, RaisedAgain, StoredRow, raise_again
from jobs.fraud.rule_columns import PROFILE_KINDS, rule_catalogue
from jobs.rules.decision import Thresholds
from jobs.rules.errors import RuleSetError
from jobs.rules.ruleset import RuleSet
from schemas.errors import RetryableError

__all__ = ["publish_again", "rebuild_missing"]

# The broker looks for transactions that ran out every ten seconds.
EXPIRY_MARGIN_MS: Final = 30_000
FLUSH_SECONDS: Final = 60.0
PLACES_AT_ONCE: Final = 500


class _NoMetrics:
    def count(self, name: str, by: int = 1) -> None: ...

    def observe_ms(self, name: str, milliseconds: float, times: int = 1) -> None: ...

    def gauge(self, name: str, value: int) -> None: ...


def rebuild_missing(settings: Settings, missing: Sequence[Coordinate], now_ms: int) -> RaisedAgain:
    """Build the missing alerts, and say of the others why they cannot be built.

    An alert that was decided less than a transaction's time ago may still be on its way and is left
    alone: raised again it would be there twice.

    Raises:
        RetryableError: Kafka or ClickHouse does not answer.
    """
    # A profile that cannot be read leaves a gap in a sentence and holds nothing up.
    redis = settings.redis.model_copy(update={"when_down": "score_without"})
    parts = StageParts(settings.model_copy(update={"redis": redis}))
    client = ClickHouseClient(settings.clickhouse)
    rows = _rows(client, parts.features.names, missing)
    on_its_way_ms = now_ms - EXPIRY_MARGIN_MS
    if settings.flink.delivery == "exactly-once":
        on_its_way_ms -= settings.flink.transaction_timeout_ms
    profiles = {kind: parts.profiles(kind, _NoMetrics()) for kind in PROFILE_KINDS}
    settled = [row for row in rows if row.decided_at_ms <= on_its_way_ms]
    then = _in_force_then(settings, parts, client)
    done = raise_again(parts, then, settled, _records(settings, settled), profiles)
    young = {row.at for row in rows} - {row.at for row in settled}
    for at in missing:
        if at in young:
            done.refused[at] = "it was decided so lately that it may still be on its way"
        elif at not in done.frames and at not in done.refused:
            done.refused[at] = "its row is gone"
    return done


def publish_again(settings: Settings, done: RaisedAgain) -> None:
    """Publish what was built.

    Raises:
        RetryableError: Kafka did not confirm every alert; the same command may be given again.
    """
    producer = Producer({**librdkafka_config(settings.kafka), "enable.idempotence": True})
    for frame in done.frames.values():
        record = FrameBatch.parse(frame).record_at(0)
        producer.produce(record.topic, record.value, record.key, headers=list(record.headers))
    left = producer.flush(FLUSH_SECONDS)
    if left:
        msg = f"publishing {len(done.frames)} alerts: Kafka did not confirm {left}; try again"
        raise RetryableError(msg)


def _rows(
    client: ClickHouseClient, features: Sequence[str], places: Sequence[Coordinate]
) -> list[StoredRow]:
    names = ", ".join(f"`{name}`" for name in features)
    found = []
    for topic, partition, offsets in _by_partition(places):
        for low in range(0, len(offsets), PLACES_AT_ONCE):
            some = ",".join(map(str, offsets[low : low + PLACES_AT_ONCE]))
            rows = client.rows(
                "SELECT kafka_offset, decision, score, rules_fired, model_version, "  # noqa: S608 - our own names
                f"rule_set_version, ingested_at_ms, decided_at_ms, [{names}] AS features "
                f"FROM {SCORED_VIEW} WHERE kafka_topic = {{topic:String}} "
                "AND kafka_partition = {partition:Int32} "
                "AND kafka_offset IN {offsets:Array(Int64)}",
                {"topic": topic, "partition": partition, "offsets": f"[{some}]"},
            )
            found += [_row(topic, partition, row) for row in rows]
    return found


def _row(topic: str, partition: int, row: dict[str, Any]) -> StoredRow:
    return StoredRow(
        at=Coordinate(topic, partition, row["kafka_offset"]),
        decision=row["decision"],
        score=_number(row["score"]),
        features=[_number(value) for value in row["features"]],
        rules_fired=row["rules_fired"],
        model_version=row["model_version"],
        rule_set_version=row["rule_set_version"],
        ingested_at_ms=row["ingested_at_ms"],
        decided_at_ms=row["decided_at_ms"],
    )


def _number(value: float | None) -> float:
    # JSON has no NaN.
    return math.nan if value is None else float(value)


def _records(settings: Settings, rows: Sequence[StoredRow]) -> dict[Coordinate, bytes]:
    wanted = {row.at for row in rows}
    ranges = [
        OffsetRange(topic, partition, offsets[0], offsets[-1] + 1)
        for topic, partition, offsets in _by_partition([row.at for row in rows])
    ]
    found = {}
    for message in read_range(settings.kafka, ranges):
        record: Any = message
        at = Coordinate(record.topic(), record.partition(), record.offset())
        if at in wanted:
            found[at] = write_frame(
                at.topic,
                record.key(),
                record.value(),
                headers=record.headers() or (),
                partition=at.partition,
                offset=at.offset,
                timestamp_ms=record.timestamp()[1],
            )
    return found


def _by_partition(places: Sequence[Coordinate]) -> list[tuple[str, int, list[int]]]:
    grouped: dict[tuple[str, int], list[int]] = defaultdict(list)
    for at in sorted(places):
        grouped[at.topic, at.partition].append(at.offset)
    return [(topic, partition, offsets) for (topic, partition), offsets in grouped.items()]


def _in_force_then(settings: Settings, parts: StageParts, client: ClickHouseClient) -> InForceThen:
    applied = {
        row["control_id"]: int(row["at_ms"])
        for row in client.rows(
            "SELECT control_id, min(applied_at_ms) AS at_ms "  # noqa: S608 - our own name
            f"FROM {CONTROL_TABLE} WHERE outcome = 'applied' GROUP BY control_id"
        )
    }
    own = parts.rules()
    rules = {own.version: own}
    thresholds = []
    for record in control_records(settings):
        if record.control_id not in applied:
            continue
        if record.kind == "activate_rules":
            try:
                told = RuleSet.from_text(record.arguments.get("rules", ""), rule_catalogue())
            except RuleSetError:
                # An earlier release took it; what it decided is refused by its version.
                continue
            rules[told.version] = told
        elif record.kind == "set_thresholds":
            chosen = Thresholds(*(float(record.arguments[name]) for name in ("review", "block")))
            thresholds.append((applied[record.control_id], chosen))
    return InForceThen(rules, thresholds[::-1])
