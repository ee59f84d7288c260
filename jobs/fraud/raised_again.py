"""Build an alert once more from what was kept: its record in Kafka and its row in ClickHouse.

For alerts that were decided and stored and then lost on their way, as in a transaction that Kafka
ended. The row says what was decided and by which versions; the record holds the event; the rules
that were in force come from the control topic, the model from the registry. What comes out is the
alert that was lost, under its own id, marked in its attributes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from connectors.frames import write_frame
from connectors.profiles import ProfileBatch, ProfileKind
from jobs.audit import Coordinate
from jobs.fraud.parts import StageParts
from jobs.fraud.reasons import AlertBuilder, ScoredRows
from jobs.fraud.rule_columns import PROFILE_KINDS, RuleColumnSource
from jobs.fraud.shard import thresholds_of
from jobs.rules.decision import DECISION_NAMES, Decision, Thresholds, decide
from jobs.rules.ruleset import RuleSet
from models.errors import ModelError
from models.scorer import ModelCache

__all__ = ["MARK", "InForceThen", "RaisedAgain", "StoredRow", "raise_again"]

MARK: Final = "raised_again"
"""Attribute of an alert that was built once more."""


@dataclass(frozen=True, slots=True)
class StoredRow:
    """One scored row, as far as its alert needs it; `features` in the order of the feature set."""

    at: Coordinate
    decision: str
    score: float
    features: Sequence[float]
    rules_fired: Sequence[str]
    model_version: str
    rule_set_version: str
    ingested_at_ms: int
    decided_at_ms: int


@dataclass(frozen=True, slots=True)
class InForceThen:
    """Every rule set that was ever in force by version, and thresholds set, newest first."""

    rules: Mapping[str, RuleSet]
    thresholds: Sequence[tuple[int, Thresholds]]


@dataclass(frozen=True, slots=True)
class RaisedAgain:
    """Frames for Kafka by place, and why others cannot be built."""

    frames: dict[Coordinate, bytes]
    refused: dict[Coordinate, str]


def raise_again(
    parts: StageParts,
    then: InForceThen,
    rows: Sequence[StoredRow],
    records: Mapping[Coordinate, bytes],
    profiles: Mapping[ProfileKind, Any],
) -> RaisedAgain:
    """Build the alerts of `rows`.

    Args:
        parts: of the job.
        then: rules and thresholds.
        rows: what was decided.
        records: the frame of each row's record.
        profiles: a lookup a kind; a rule's sentence may show what the profile says by now.
    """
    builder = _Builder(parts, then, profiles)
    done = RaisedAgain({}, {})
    for row in rows:
        frame = records.get(row.at)
        if frame is None:
            done.refused[row.at] = "Kafka no longer holds its record"
            continue
        try:
            done.frames[row.at] = builder.alert(row, frame)
        except (_CannotBuildError, ModelError) as e:
            done.refused[row.at] = str(e)
    return done


class _CannotBuildError(Exception):
    pass


class _Builder:
    def __init__(
        self, parts: StageParts, then: InForceThen, profiles: Mapping[ProfileKind, Any]
    ) -> None:
        self._parts = parts
        self._then = then
        self._profiles = profiles
        self._intake = parts.intake()
        self._encoder = parts.encoder("alerts", "alert")
        self._models: ModelCache = parts.models()

    def alert(self, row: StoredRow, frame: bytes) -> bytes:
        """Return the frame of a row's alert."""
        intake = self._intake.read(frame)
        if not len(intake.transactions):
            msg = "its record in Kafka is not a payment that can be read"
            raise _CannotBuildError(msg)
        rules = self._then.rules.get(row.rule_set_version)
        if rules is None:
            msg = f"rule set {row.rule_set_version!r} is neither in the release nor on the topic"
            raise _CannotBuildError(msg)
        model = self._models.get(row.model_version, self._parts.features.names)
        features = np.array([row.features], np.float64)
        score = np.array([row.score], np.float64)
        fired = np.array([[rule.id in row.rules_fired for rule in rules.rules]], np.bool_)
        own = model.manifest.thresholds
        thresholds, decision = self._decided(row, rules, fired, score, own)
        event = intake.columns
        found: dict[ProfileKind, ProfileBatch] = {
            kind: self._profiles[kind].lookup(intake.text(f"{kind}_id")) for kind in PROFILE_KINDS
        }
        columns = RuleColumnSource(rules.columns_needed).columns(event, features, score, found)
        frames = intake.frames
        scored = ScoredRows(
            {**event, **columns},
            features,
            score,
            fired,
            decision,
            frames.topic,
            frames.partition,
            frames.offset,
            frames.timestamp_ms,
            np.array([row.ingested_at_ms]),
        )
        first = np.zeros(1, np.int64)
        alerts = AlertBuilder(rules, thresholds, self._parts.features.version)
        evidence = model.evidence().of(
            features, alerts.only_by_score(scored, first), thresholds.review
        )
        (alert,) = alerts.build(scored, first, evidence, row.model_version, row.decided_at_ms)
        alert["attributes"] = {**alert["attributes"], MARK: "true"}
        return write_frame(
            self._parts.settings.kafka.topics.name("alerts"),
            alert["entity_id"].encode(),
            self._encoder.encode(alert),
            headers=(("alert_id", alert["alert_id"].encode()),),
        )

    def _decided(
        self,
        row: StoredRow,
        rules: RuleSet,
        fired: NDArray[np.bool_],
        score: NDArray[np.float64],
        own: Any,
    ) -> tuple[Thresholds, Decision]:
        """Decide once more, by the thresholds that were in force; the answer must be the row's."""
        mine = None if own is None else (own.review, own.block)
        candidates = [t for at_ms, t in self._then.thresholds if at_ms <= row.decided_at_ms]
        candidates.append(thresholds_of(self._parts.settings, mine))
        for thresholds in candidates:
            decision = decide(score, fired, rules.actions, rules.order, thresholds)
            if DECISION_NAMES[int(decision.codes[0])] == row.decision:
                return thresholds, decision
        msg = f"no thresholds that were in force give {row.decision!r} for score {row.score}"
        raise _CannotBuildError(msg)
