"""Account for every offset: compare Kafka with ClickHouse and the dead letters.

Pure: takes coordinates, returns a verdict. Nothing here asks the job what it did.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

__all__ = ["Audit", "Coordinate", "Ledger", "PartitionAudit", "reconcile"]

LISTED = 100
"""How many gaps, doubles and wrong alerts a report lists; the counts are always complete, and so is
`Audit.alerts_missing`, from which alerts are raised again."""


@dataclass(frozen=True, slots=True, order=True)
class Coordinate:
    """Where a record is in Kafka."""

    topic: str
    partition: int
    offset: int


@dataclass(slots=True)
class Ledger:
    """What was found about one partition, as offsets; an offset found twice is given twice.

    `published` is what Kafka holds in the range. `stored` comes from the deduplicating view (or the
    view of labels or control outcomes), `dead` from the dead-letter topic, each letter's source
    offset once. `kind` says what `stored` counts as: ``scored`` or ``control``.
    """

    topic: str
    partition: int
    kind: str
    published: NDArray[np.int64]
    stored: NDArray[np.int64]
    dead: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class PartitionAudit:
    """The account of one partition."""

    topic: str
    partition: int
    offsets_in: int
    scored: int
    control: int
    dead_lettered: int
    missing: int
    doubled: int
    first_offset: int | None
    last_offset: int | None


@dataclass(slots=True)
class Audit:
    """The verdict; `clean` only when nothing is missing, doubled, unexpected or wrongly alerted."""

    partitions: list[PartitionAudit] = field(default_factory=list)
    missing_at: list[Coordinate] = field(default_factory=list)
    doubled_at: list[Coordinate] = field(default_factory=list)
    unexpected: int = 0
    unexpected_at: list[Coordinate] = field(default_factory=list)
    alerts_expected: int = 0
    alerts_found: int = 0
    alerts_missing: list[Coordinate] = field(default_factory=list)
    alerts_unexpected: list[Coordinate] = field(default_factory=list)
    alerts_misnamed: list[Coordinate] = field(default_factory=list)
    alerts_wrong: int = 0
    superseded_alerts: int = 0
    redelivered_alerts: int = 0
    redelivered_dead_letters: int = 0

    def total(self, name: str) -> int:
        """Return the sum of a count over all partitions."""
        return sum(getattr(partition, name) for partition in self.partitions)

    @property
    def clean(self) -> bool:
        """Whether every offset and every alert is accounted for exactly once."""
        return not (
            self.total("missing") or self.total("doubled") or self.unexpected or self.alerts_wrong
        )


def reconcile(
    ledgers: Iterable[Ledger],
    alerting: Sequence[tuple[Coordinate, str]],
    alerts: Sequence[tuple[Coordinate, str]],
    superseded: Collection[Coordinate] = (),
    strays: Iterable[Coordinate] = (),
) -> Audit:
    """Account for every published offset and every alert.

    Args:
        ledgers: one per partition.
        alerting: (source, alert id) of each row whose decision says that there must be an alert,
            the id computed from the row.
        alerts: (source, alert id) of each alert on the topic, redeliveries included: with
            at-least-once delivery a replay publishes the same id again, which is counted but is not
            a double.
        superseded: sources whose row does not alert, though alerts were published, because the
            event was decided again, after a failure, by another model or other rules than those
            that the alerts name. A published alert cannot be called back; it is counted apart.
        strays: rows and records of nothing that Kafka ever held.

    An alert under another id than its row gives is misnamed, and the row's own is missing unless it
    is there too.
    """
    audit = Audit()
    for ledger in ledgers:
        _account(ledger, audit)
    for stray in strays:
        audit.unexpected += 1
        if len(audit.unexpected_at) < LISTED:
            audit.unexpected_at.append(stray)
    expected = dict(alerting)
    ids: dict[Coordinate, set[str]] = {}
    for source, alert_id in alerts:
        ids.setdefault(source, set()).add(alert_id)
    distinct = sum(len(found) for found in ids.values())
    audit.alerts_expected = len(expected)
    audit.alerts_found = distinct
    audit.redelivered_alerts = len(alerts) - distinct
    audit.superseded_alerts = len((ids.keys() - expected.keys()) & set(superseded))
    audit.alerts_missing = sorted(
        at for at, name in expected.items() if name not in ids.get(at, ())
    )
    unexpected = sorted(ids.keys() - expected.keys() - set(superseded))
    misnamed = sorted(at for at, found in ids.items() if found - {expected.get(at, min(found))})
    audit.alerts_unexpected = unexpected[:LISTED]
    audit.alerts_misnamed = misnamed[:LISTED]
    others = sum(len(found - {expected.get(at, min(found))}) for at, found in ids.items())
    audit.alerts_wrong = len(audit.alerts_missing) + len(unexpected) + others
    return audit


def _account(ledger: Ledger, audit: Audit) -> None:
    published = np.unique(ledger.published)
    dead, dead_counts = np.unique(ledger.dead, return_counts=True)
    audit.redelivered_dead_letters += int((dead_counts - 1).sum())
    accounted = np.concatenate([ledger.stored, dead])
    offsets, counts = np.unique(accounted, return_counts=True)
    missing = np.setdiff1d(published, offsets, assume_unique=True)
    doubled = offsets[counts > 1]
    unexpected = np.setdiff1d(offsets, published, assume_unique=True)
    audit.unexpected += len(unexpected)
    stored = len(np.unique(ledger.stored))
    audit.partitions.append(
        PartitionAudit(
            topic=ledger.topic,
            partition=ledger.partition,
            offsets_in=len(published),
            scored=stored if ledger.kind == "scored" else 0,
            control=stored if ledger.kind == "control" else 0,
            dead_lettered=len(dead),
            missing=len(missing),
            doubled=len(doubled),
            first_offset=int(published[0]) if len(published) else None,
            last_offset=int(published[-1]) if len(published) else None,
        )
    )
    for found, listed in (
        (missing, audit.missing_at),
        (doubled, audit.doubled_at),
        (unexpected, audit.unexpected_at),
    ):
        room = LISTED - len(listed)
        listed += [
            Coordinate(ledger.topic, ledger.partition, int(offset)) for offset in found[:room]
        ]
