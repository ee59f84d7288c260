"""Gather the fraud job's evidence from Kafka and ClickHouse and account for it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

import numpy as np

from connectors.clickhouse import ClickHouseClient
from connectors.evidence import (
    OffsetRange,
    ends_of,
    ranges_of,
    read_range,
    stored_offsets,
    stored_texts,
    texts_where,
)
from connectors.settings import Settings
from connectors.tables import CONTROL_TABLE, LABELS_TABLE, SCORED_VIEW
from jobs.audit import Audit, Coordinate, Ledger, reconcile
from jobs.fraud.reasons import FRAUD_CAUSE, alert_id
from schemas.avro import RecordDecoder
from schemas.contract import contract
from schemas.reasons import AvroRecordError, Limits
from schemas.registry import open_registry

__all__ = ["DEAD_LETTER_LIMITS", "audit_fraud"]

# Our own records about others' records: they hold what was refused as too large or too long.
DEAD_LETTER_LIMITS: Final = Limits(
    max_record_bytes=32 * 1024 * 1024, max_string_bytes=16 * 1024 * 1024
)

JOB: Final = "fraud"
ALERTING: Final = "decision != 'approve'"

CLOCKS_APART_MS: Final = 10 * 60_000
"""An event bears its producer's time, its alert the job's: so far apart they may be at first."""

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
    What came of events since a time is looked for from a little before that time on, so that an
    account of an hour does not read the alerts of a year. Should anything be wrong then, it is
    looked for from the beginning before it is told. Only an account of everything finds an alert
    that is older than the event it names.
    """
    account = partial(
        _account,
        settings,
        since_ms=since_ms,
        until_ms=until_ms,
        from_offset=from_offset,
        to_offset=to_offset,
        progress=progress,
    )
    if since_ms is not None:
        audit = account(outcomes_since_ms=max(0, since_ms - CLOCKS_APART_MS))
        if audit.clean:
            return audit
    # All of it again, not the outcomes only: what was on its way a moment ago may have come.
    return account(outcomes_since_ms=None)


def _account(
    settings: Settings,
    *,
    since_ms: int | None,
    until_ms: int | None,
    from_offset: int | None,
    to_offset: int | None,
    progress: Callable[[int], None],
    outcomes_since_ms: int | None,
) -> Audit:
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
    whole = (since_ms, until_ms, from_offset, to_offset) == (None,) * 4
    ranges = {
        topic: [
            _clip(found, from_offset, to_offset)
            for found in ranges_of(settings.kafka, topic, since_ms=since_ms, until_ms=until_ms)
        ]
        for topic in views
    }
    wanted = {(r.topic, r.partition): r for each in ranges.values() for r in each}
    strays: list[Coordinate] = []
    outcomes = _Outcomes(settings, outcomes_since_ms, strays, progress)
    dead, of_dead = _dead_letters(outcomes, wanted)
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
    alerting = [
        (Coordinate(*place), alert_id(event_id, FRAUD_CAUSE))
        for place, event_id in texts_where(
            client, SCORED_VIEW, ranges[topics.name("transactions")], ALERTING, "event_id"
        )
    ]
    alerts, of_alerts = _alerts(outcomes, wanted)
    if whole:
        rows = [
            Coordinate(*at)
            for topic, (view, _) in views.items()
            for at in ends_of(client, view)
            if at[0] == topic
        ]
        strays += _beyond(settings, views, [*rows, *of_dead, *of_alerts])
    return reconcile(
        ledgers,
        alerting,
        [(at, name) for at, name, _ in alerts],
        _superseded(client, {at for at, _ in alerting}, alerts),
        strays if whole else (),
    )


def _beyond(
    settings: Settings, topics: Collection[str], claimed: Iterable[Coordinate]
) -> list[Coordinate]:
    """Return the places that no partition of the topics has reached by now, each once.

    Asked after everything else was read: what came in meanwhile was not there when we began.
    """
    ends = {
        (r.topic, r.partition): r.last for topic in topics for r in ranges_of(settings.kafka, topic)
    }
    return sorted({at for at in claimed if at.offset >= ends.get((at.topic, at.partition), 0)})


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
    outcomes: _Outcomes, wanted: dict[tuple[str, int], OffsetRange]
) -> tuple[dict[tuple[str, int], list[int]], set[Coordinate]]:
    """Return the sources of dead letters within the ranges by partition, and all of them."""
    found: dict[tuple[str, int], list[int]] = {}
    claimed = set()
    for letter in outcomes.records("dead_letters", "dead_letter"):
        place = (letter["topic"], letter["partition"])
        # Other jobs may share the topic.
        if letter["job"] == JOB:
            claimed.add(Coordinate(*place, letter["offset"]))
        within = wanted.get(place)
        if within is not None and within.first <= letter["offset"] < within.last:
            found.setdefault(place, []).append(letter["offset"])
    return found, claimed


def _alerts(
    outcomes: _Outcomes, wanted: dict[tuple[str, int], OffsetRange]
) -> tuple[list[tuple[Coordinate, str, str]], set[Coordinate]]:
    """Return (source, id, versions) of alerts within the ranges, and the sources of all."""
    found = []
    claimed = set()
    for alert in outcomes.records("alerts", "alert"):
        source = alert["source"]
        at = Coordinate(source["topic"], source["partition"], source["offset"])
        claimed.add(at)
        within = wanted.get((at.topic, at.partition))
        if within is not None and within.first <= at.offset < within.last:
            versions = f"{alert['model_version']} {alert['rule_set_version']}"
            found.append((at, alert["alert_id"], versions))
    return found, claimed


@dataclass(frozen=True, slots=True)
class _Outcomes:
    """Topics of ours, from a time on; what cannot be read there is a stray."""

    settings: Settings
    since_ms: int | None
    strays: list[Coordinate]
    progress: Callable[[int], None]

    def records(self, topic: str, name: str) -> Iterator[dict[str, Any]]:
        """Yield the records of a topic, as the contract of that name has them."""
        settings = self.settings
        reader = RecordDecoder(open_registry(settings.schemas), contract(name), DEAD_LETTER_LIMITS)
        kafka = settings.kafka
        ranges = ranges_of(kafka, kafka.topics.name(topic), since_ms=self.since_ms)
        for message in read_range(kafka, ranges, self.progress):
            try:
                yield reader.decode(message.value())
            except AvroRecordError:
                place: Any = (message.topic(), message.partition(), message.offset())
                self.strays.append(Coordinate(*place))
