"""Gather the fraud job's evidence from Kafka and ClickHouse and account for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

import numpy as np

from connectors.clickhouse import ClickHouseClient
from connectors.evidence import (
    OffsetRange,
    ranges_of,
    read_range,
    stored_offsets,
    stored_texts,
)
from connectors.settings import Settings
from connectors.tables import CONTROL_TABLE, LABELS_TABLE, SCORED_VIEW
from jobs.audit import Audit, Coordinate, Ledger, reconcile
from schemas.avro import RecordDecoder
from schemas.contract import contract
from schemas.reasons import Limits
from schemas.registry import open_registry

__all__ = ["audit_fraud"]

# Our own records about others' records: they hold what was refused as too large or too long.
DEAD_LETTER_LIMITS: Final = Limits(
    max_record_bytes=32 * 1024 * 1024, max_string_bytes=16 * 1024 * 1024
)

VERSIONS: Final = "concat(model_version, ' ', rule_set_version)"
"""What decided a row, as an alert names it too."""


def audit_fraud(
    settings: Settings,
    *,
    since_ms: int | None = None,
    until_ms: int | None = None,
    from_offset: int | None = None,
    to_offset: int | None = None,
    progress: Callable[[int], None] = lambda count: None,
) -> Audit:
    """Account for the job's topics over a range of time or offsets; everything by default.

    Labels and control records count as `control`: they change decisions and are not scored.
    """
    topics = settings.kafka.topics
    views = {
        topics.name("transactions"): (SCORED_VIEW, "scored"),
        # Each label is kept under its coordinates; the view over it shows the latest one only.
        topics.name("labels"): (f"{LABELS_TABLE} FINAL", "control"),
        topics.name("control"): (
            f"(SELECT DISTINCT kafka_topic, kafka_partition, kafka_offset FROM {CONTROL_TABLE})",  # noqa: S608 - our own names
            "control",
        ),
    }
    client = ClickHouseClient(settings.clickhouse)
    ranges = {
        topic: [
            _clip(found, from_offset, to_offset)
            for found in ranges_of(settings.kafka, topic, since_ms=since_ms, until_ms=until_ms)
        ]
        for topic in views
    }
    wanted = {(r.topic, r.partition): r for each in ranges.values() for r in each}
    dead = _dead_letters(settings, wanted, progress)
    ledgers = []
    for topic, (view, kind) in views.items():
        published: dict[int, list[int]] = {r.partition: [] for r in ranges[topic]}
        for message in read_range(settings.kafka, ranges[topic], progress):
            published[message.partition()].append(message.offset())  # type: ignore[index, arg-type]
        stored = stored_offsets(client, view, ranges[topic])
        ledgers += [
            Ledger(
                topic,
                r.partition,
                kind,
                np.array(published[r.partition], np.int64),
                stored[topic, r.partition],
                np.array(dead.get((topic, r.partition), []), np.int64),
            )
            for r in ranges[topic]
        ]
    scored = ranges[topics.name("transactions")]
    alerting = [
        (Coordinate(topic, partition, int(offset)), "")
        for (topic, partition), offsets in stored_offsets(
            client, SCORED_VIEW, scored, "decision != 'approve'"
        ).items()
        for offset in offsets
    ]
    alerts = _alerts(settings, wanted, progress)
    return reconcile(
        ledgers,
        alerting,
        [(at, alert_id) for at, alert_id, _ in alerts],
        _superseded(client, {at for at, _ in alerting}, alerts),
    )


def _superseded(
    client: ClickHouseClient,
    alerting: set[Coordinate],
    alerts: list[tuple[Coordinate, str, str]],
) -> set[Coordinate]:
    """Return the sources that were decided last by other versions than all of their alerts name."""
    named: dict[Coordinate, set[str]] = {}
    for at, _, versions in alerts:
        if at not in alerting:
            named.setdefault(at, set()).add(versions)
    stored = stored_texts(
        client, SCORED_VIEW, [(at.topic, at.partition, at.offset) for at in named], VERSIONS
    )
    return {
        at
        for at, versions in named.items()
        if stored.get((at.topic, at.partition, at.offset), "") not in {"", *versions}
    }


def _clip(found: OffsetRange, first: int | None, last: int | None) -> OffsetRange:
    low = found.first if first is None else max(found.first, first)
    high = found.last if last is None else min(found.last, last)
    return replace(found, first=low, last=max(low, high))


def _dead_letters(
    settings: Settings,
    wanted: dict[tuple[str, int], OffsetRange],
    progress: Callable[[int], None],
) -> dict[tuple[str, int], list[int]]:
    found: dict[tuple[str, int], list[int]] = {}
    for letter in _records(settings, "dead_letters", "dead_letter", progress):
        place = (letter["topic"], letter["partition"])
        within = wanted.get(place)
        if within is not None and within.first <= letter["offset"] < within.last:
            found.setdefault(place, []).append(letter["offset"])
    return found


def _alerts(
    settings: Settings,
    wanted: dict[tuple[str, int], OffsetRange],
    progress: Callable[[int], None],
) -> list[tuple[Coordinate, str, str]]:
    found = []
    for alert in _records(settings, "alerts", "alert", progress):
        source = alert["source"]
        within = wanted.get((source["topic"], source["partition"]))
        if within is not None and within.first <= source["offset"] < within.last:
            at = Coordinate(source["topic"], source["partition"], source["offset"])
            versions = f"{alert['model_version']} {alert['rule_set_version']}"
            found.append((at, alert["alert_id"], versions))
    return found


def _records(
    settings: Settings, topic: str, name: str, progress: Callable[[int], None]
) -> list[dict[str, Any]]:
    reader = RecordDecoder(open_registry(settings.schemas), contract(name), DEAD_LETTER_LIMITS)
    ranges = ranges_of(settings.kafka, settings.kafka.topics.name(topic))
    messages = read_range(settings.kafka, ranges, progress)
    return [reader.decode(message.value()) for message in messages]
