"""Why an event was not approved: the alert record, built for the few rows that need one.

Pure functions of a scored batch. Reasons come in the order a person wants them: the rule that
decided, the other rules that fired (by weight), a missing score, then the features that raised the
score most.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from math import isfinite, isnan
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from jobs.rules.decision import DECISION_NAMES, Cause, Decision, DecisionCode, Thresholds
from jobs.rules.ruleset import Action, RuleColumns, RuleSet
from models.evidence import Evidence
from schemas.columns import NumberColumn, StringColumn

__all__ = ["CONTRIBUTION_ERROR", "FRAUD_CAUSE", "AlertBuilder", "ScoredRows", "alert_id"]

CONTRIBUTION_ERROR: Final = "contribution_error"
"""Attribute of an alert whose contributions are an estimate: their largest standard error."""

FRAUD_CAUSE: Final = "fraud"
"""Cause of every alert of the fraud job: one event raises at most one.

The cause is not the rule or score that decided. After a failure an event may be scored again under
a newer model; its alert then repeats the id, and a subscriber still holds one alert per event.
"""

NO_SCORE: Final = "no_score"


@dataclass(frozen=True, slots=True)
class ScoredRows:
    """A scored batch of n events, as far as alerts show it.

    Attributes:
        columns: Event, profile and feature columns that alerts and rule titles read: at least
            event_id, event_time_ms, customer_id, terminal_id, amount_minor, currency.
        features: float64 (n, k), the model's input; NaN is null.
        score: float64 (n,); NaN or infinite means that there is none.
        fired: bool (n, rules).
        decision: What `decide` made of them.
        topic: Topic of each record.
        partition: Its partition, int (n,).
        offset: Its offset, int (n,).
        published_at_ms: Its Kafka timestamp, int (n,).
        ingested_at_ms: When the job read it, int (n,).
    """

    columns: RuleColumns
    features: NDArray[np.float64]
    score: NDArray[np.float64]
    fired: NDArray[np.bool_]
    decision: Decision
    topic: StringColumn
    partition: NDArray[np.integer[Any]]
    offset: NDArray[np.integer[Any]]
    published_at_ms: NDArray[np.integer[Any]]
    ingested_at_ms: NDArray[np.integer[Any]]


class AlertBuilder:
    """Builds the alerts of one job under one rule set; make a new one when the rules change."""

    def __init__(self, rules: RuleSet, thresholds: Thresholds, feature_set_version: str) -> None:
        """Take what is the same for all alerts."""
        self._rules = rules
        self._thresholds = thresholds
        self._feature_set_version = feature_set_version
        stern = (int(Action.REVIEW), int(Action.BLOCK))
        self._stern = [n for n, action in enumerate(rules.actions.tolist()) if action in stern]
        self._order = rules.order.tolist()

    def only_by_score(self, scored: ScoredRows, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return which of the rows in `rows` alert for their score alone, no rule besides."""
        alone = [
            cause == Cause.SCORE and not any(fired[number] for number in self._stern)
            for cause, fired in zip(
                scored.decision.causes[rows].tolist(), scored.fired[rows].tolist(), strict=True
            )
        ]
        return np.array(alone, np.bool_)

    def build(
        self,
        scored: ScoredRows,
        rows: NDArray[np.int64],
        evidence: Evidence | None,
        model_version: str,
        decided_at_ms: int,
    ) -> list[dict[str, Any]]:
        """Return one record of contract `alert` per row number in `rows`, in that order.

        Args:
            scored: The batch.
            rows: Rows to alert on, as from `Decision.alerts`, all scored by one model.
            evidence: What the model says about each of them; None when it explains nothing.
            model_version: Version of the model that scored.
            decided_at_ms: When the batch was decided, UTC milliseconds since 1970.
        """
        return [
            self._alert(scored, row, evidence, position, model_version, decided_at_ms)
            for position, row in enumerate(rows.tolist())
        ]

    def _alert(
        self,
        scored: ScoredRows,
        row: int,
        evidence: Evidence | None,
        position: int,
        model_version: str,
        decided_at_ms: int,
    ) -> dict[str, Any]:
        decision = scored.decision
        code = int(decision.codes[row])
        blocked = code == DecisionCode.BLOCK
        score = float(scored.score[row])
        has_score = isfinite(score)
        event_id = _text(scored.columns, "event_id", row)
        return {
            "alert_id": alert_id(event_id, FRAUD_CAUSE),
            "kind": "fraud",
            "severity": "critical" if blocked else "warning",
            "entity_type": "customer",
            "entity_id": _text(scored.columns, "customer_id", row),
            "event_id": event_id,
            "event_time_ms": _integer(scored.columns, "event_time_ms", row),
            # JSON has no NaN: a missing score is 0 and says so in reasons and attributes.
            "score": score if has_score else 0.0,
            "threshold": self._thresholds.block if blocked else self._thresholds.review,
            "decision": DECISION_NAMES[code],
            "amount_minor": _integer(scored.columns, "amount_minor", row),
            "currency": _text(scored.columns, "currency", row),
            "reasons": self._reasons(scored, row, evidence, position),
            "model_version": model_version,
            "rule_set_version": self._rules.version,
            "feature_set_version": self._feature_set_version,
            "source": {
                "topic": scored.topic.text_at(row),
                "partition": int(scored.partition[row]),
                "offset": int(scored.offset[row]),
            },
            "published_at_ms": int(scored.published_at_ms[row]),
            "ingested_at_ms": int(scored.ingested_at_ms[row]),
            "decided_at_ms": decided_at_ms,
            "attributes": {
                "cause": self._cause(decision, row),
                "terminal_id": _text(scored.columns, "terminal_id", row),
                **({} if has_score else {NO_SCORE: "true"}),
                **({} if evidence is None else _uncertain(float(evidence.error[position]))),
            },
            **(_explained(evidence, position) if evidence is not None and has_score else _SILENT),
        }

    def _cause(self, decision: Decision, row: int) -> str:
        cause = int(decision.causes[row])
        if cause == Cause.RULE:
            return f"rule:{self._rules.rules[int(decision.rule[row])].id}"
        return {Cause.SCORE: "score", Cause.NO_SCORE: NO_SCORE}.get(Cause(cause), "none")

    def _reasons(
        self, scored: ScoredRows, row: int, evidence: Evidence | None, position: int
    ) -> list[dict[str, Any]]:
        deciding = int(scored.decision.rule[row])
        fired = scored.fired[row].tolist()
        numbers = [n for n in self._order if fired[n] and n != deciding]
        if deciding >= 0:
            numbers.insert(0, deciding)
        reasons = [
            _reason(
                self._rules.rules[number].id,
                "rule",
                self._rules.sentence(number, scored.columns, row),
            )
            for number in numbers
        ]
        if not isfinite(scored.score[row]):
            text = "No model could score this event."
            reasons.append(_reason(NO_SCORE, "rule", text))
        elif evidence is not None:
            reasons += [
                {
                    "code": reason.feature,
                    "kind": "feature",
                    "text": reason.text,
                    "feature": reason.feature,
                    "value": None if isnan(reason.value) else reason.value,
                    "contribution": reason.contribution,
                }
                for reason in evidence.reasons[position]
            ]
        return reasons


_SILENT: Final[dict[str, Any]] = {
    "contributions": None,
    "contribution_base": None,
    "contribution_scale": None,
    "smallest_change": None,
}


def _uncertain(error: float) -> dict[str, str]:
    # Shapley values of trees are exact; of other models they are sampled, and say how well.
    return {CONTRIBUTION_ERROR: f"{error:.3g}"} if error else {}


def _explained(evidence: Evidence, position: int) -> dict[str, Any]:
    change = evidence.changes[position]
    shares = evidence.contributions[position].tolist()
    return {
        "contributions": dict(zip(evidence.names, shares, strict=True)),
        "contribution_base": float(evidence.base[position]),
        "contribution_scale": evidence.scale,
        "smallest_change": None
        if change is None
        else {
            "text": evidence.change_texts[position],
            "score": change.score,
            "features": [
                {"feature": name, "before": None if isnan(before) else before, "after": after}
                for name, before, after in zip(
                    change.features, change.before, change.after, strict=True
                )
            ],
        },
    }


def alert_id(event_id: str, cause: str) -> str:
    """Return the id of an alert: 32 hexadecimal digits, a pure function of event id and cause.

    128 bits of BLAKE2b: at 10^12 alerts the odds of any two colliding are below 10^-14.
    """
    # The length keeps ("ab", "c") and ("a", "bc") apart.
    source = f"{len(event_id)}:{event_id}{cause}".encode()
    return hashlib.blake2b(source, digest_size=16).hexdigest()


def _reason(code: str, kind: str, text: str) -> dict[str, Any]:
    return {
        "code": code,
        "kind": kind,
        "text": text,
        "feature": None,
        "value": None,
        "contribution": None,
    }


def _text(columns: RuleColumns, name: str, row: int) -> str:
    column = columns[name]
    if not isinstance(column, StringColumn):
        msg = f"building an alert needs texts in column {name!r}, was numbers"
        raise TypeError(msg)
    return column.text_at(row) or ""


def _integer(columns: RuleColumns, name: str, row: int) -> int | None:
    column = columns[name]
    if not isinstance(column, NumberColumn):
        msg = f"building an alert needs integers in column {name!r}, was {type(column).__name__}"
        raise TypeError(msg)
    return int(column.values[row]) if column.valid[row] else None
