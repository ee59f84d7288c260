"""Why an event was not approved: the alert record, built for the few rows that need one.

Pure functions of a scored batch. Reasons come in the order a person wants them: the rule that
decided, the other rules that fired (by weight), a missing score, then the features that raised the
score most.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from math import isfinite, isnan
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jobs.rules.decision import DECISION_NAMES, Cause, Decision, DecisionCode, Thresholds
from jobs.rules.ruleset import Action, RuleColumns, RuleSet
from models.counterfactual import Change
from models.evidence import Evidence
from models.reasons import Reason
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
        ruled: NDArray[np.bool_] = scored.fired[rows][:, self._stern].any(axis=1)
        alone: NDArray[np.bool_] = (scored.decision.causes[rows] == int(Cause.SCORE)) & ~ruled
        return alone

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
        told = [None] * len(rows) if evidence is None else _told(evidence)
        return [
            self._alert(scored, one, about, model_version, decided_at_ms)
            for one, about in zip(_chosen(scored, rows), told, strict=True)
        ]

    def _alert(
        self,
        scored: ScoredRows,
        one: _Chosen,
        told: _Told | None,
        model_version: str,
        decided_at_ms: int,
    ) -> dict[str, Any]:
        blocked = one.code == DecisionCode.BLOCK
        has_score = isfinite(one.score)
        attributes = {"cause": self._cause(one), "terminal_id": one.terminal_id}
        if not has_score:
            attributes[NO_SCORE] = "true"
        if told is not None and told.error:
            # Shapley values of trees are exact; of other models they are sampled, and say how well.
            attributes[CONTRIBUTION_ERROR] = f"{told.error:.3g}"
        return {
            "alert_id": alert_id(one.event_id, FRAUD_CAUSE),
            "kind": "fraud",
            "severity": "critical" if blocked else "warning",
            "entity_type": "customer",
            "entity_id": one.customer_id,
            "event_id": one.event_id,
            "event_time_ms": one.event_time_ms,
            # JSON has no NaN: a missing score is 0 and says so in reasons and attributes.
            "score": one.score if has_score else 0.0,
            "threshold": self._thresholds.block if blocked else self._thresholds.review,
            "decision": DECISION_NAMES[one.code],
            "amount_minor": one.amount_minor,
            "currency": one.currency,
            "reasons": self._reasons(scored, one, told),
            "model_version": model_version,
            "rule_set_version": self._rules.version,
            "feature_set_version": self._feature_set_version,
            "source": {"topic": one.topic, "partition": one.partition, "offset": one.offset},
            "published_at_ms": one.published_at_ms,
            "ingested_at_ms": one.ingested_at_ms,
            "decided_at_ms": decided_at_ms,
            "attributes": attributes,
            **(told.fields if told is not None and has_score else _SILENT),
        }

    def _cause(self, one: _Chosen) -> str:
        if one.cause == Cause.SCORE:
            return "score"
        if one.cause == Cause.RULE:
            return f"rule:{self._rules.rules[one.rule].id}"
        return NO_SCORE if one.cause == Cause.NO_SCORE else "none"

    def _reasons(
        self, scored: ScoredRows, one: _Chosen, told: _Told | None
    ) -> list[dict[str, Any]]:
        fired = one.fired
        numbers = [n for n in self._order if fired[n] and n != one.rule]
        if one.rule >= 0:
            numbers.insert(0, one.rule)
        reasons = [
            _reason(
                self._rules.rules[number].id,
                "rule",
                self._rules.sentence(number, scored.columns, one.row),
            )
            for number in numbers
        ]
        if not isfinite(one.score):
            text = "No model could score this event."
            reasons.append(_reason(NO_SCORE, "rule", text))
        elif told is not None:
            reasons += [
                {
                    "code": feature,
                    "kind": "feature",
                    "text": text,
                    "feature": feature,
                    "value": None if isnan(value) else value,
                    "contribution": contribution,
                }
                for feature, value, contribution, text in told.reasons
            ]
        return reasons


class _Chosen(NamedTuple):
    """One row that alerts, as Python values."""

    row: int
    event_id: str
    customer_id: str
    terminal_id: str
    currency: str
    event_time_ms: int | None
    amount_minor: int | None
    score: float
    fired: list[bool]
    code: int
    cause: int
    rule: int
    topic: str
    partition: int
    offset: int
    published_at_ms: int
    ingested_at_ms: int


_TEXTS: Final = ("event_id", "customer_id", "terminal_id", "currency")


def _chosen(scored: ScoredRows, rows: NDArray[np.int64]) -> Iterator[_Chosen]:
    # Column by column: a look at one cell of an array costs as much as twenty of a list.
    columns, decision = scored.columns, scored.decision
    return map(
        _Chosen,
        rows.tolist(),
        *(_texts(columns, name, rows) for name in _TEXTS),
        *(_integers(columns, name, rows) for name in ("event_time_ms", "amount_minor")),
        scored.score[rows].tolist(),
        scored.fired[rows].tolist(),
        decision.codes[rows].tolist(),
        decision.causes[rows].tolist(),
        decision.rule[rows].tolist(),
        scored.topic.take(rows).to_list(),
        scored.partition[rows].tolist(),
        scored.offset[rows].tolist(),
        scored.published_at_ms[rows].tolist(),
        scored.ingested_at_ms[rows].tolist(),
    )


_SILENT: Final[dict[str, Any]] = {
    "contributions": None,
    "contribution_base": None,
    "contribution_scale": None,
    "smallest_change": None,
}


class _Told(NamedTuple):
    """What the model says about one alert; `fields` are those of the contract."""

    reasons: list[Reason]
    error: float
    fields: dict[str, Any]


def _told(evidence: Evidence) -> list[_Told]:
    return [
        _Told(
            reasons,
            error,
            {
                "contributions": dict(zip(evidence.names, shares, strict=True)),
                "contribution_base": base,
                "contribution_scale": evidence.scale,
                "smallest_change": None if change is None else _smallest_change(change, text),
            },
        )
        for reasons, error, shares, base, change, text in zip(
            evidence.reasons,
            evidence.error.tolist(),
            evidence.contributions.tolist(),
            evidence.base.tolist(),
            evidence.changes,
            evidence.change_texts,
            strict=True,
        )
    ]


def _smallest_change(change: Change, text: str) -> dict[str, Any]:
    return {
        "text": text,
        "score": change.score,
        "features": [
            {"feature": name, "before": None if isnan(before) else before, "after": after}
            for name, before, after in zip(
                change.features, change.before, change.after, strict=True
            )
        ],
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


def _texts(columns: RuleColumns, name: str, rows: NDArray[np.int64]) -> list[str]:
    column = columns[name]
    if not isinstance(column, StringColumn):
        msg = f"building an alert needs texts in column {name!r}, was numbers"
        raise TypeError(msg)
    return [text or "" for text in column.take(rows).to_list()]


def _integers(columns: RuleColumns, name: str, rows: NDArray[np.int64]) -> list[int | None]:
    column = columns[name]
    if not isinstance(column, NumberColumn):
        msg = f"building an alert needs integers in column {name!r}, was {type(column).__name__}"
        raise TypeError(msg)
    return [
        int(value) if valid else None
        for value, valid in zip(
            column.values[rows].tolist(), column.valid[rows].tolist(), strict=True
        )
    ]
