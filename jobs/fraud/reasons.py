"""Why an event was not approved: the alert record, built for the few rows that need one.

Pure functions of a scored batch. Reasons come in the order a person wants them: the rule that
decided, the other rules that fired (by weight), a missing score, then the features that raised the
score most.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from jobs.rules.decision import DECISION_NAMES, Cause, Decision, DecisionCode, Thresholds
from jobs.rules.ruleset import RuleColumns, RuleSet
from schemas.columns import NumberColumn, StringColumn

__all__ = ["FRAUD_CAUSE", "AlertBuilder", "ScoredRows", "alert_id"]

FRAUD_CAUSE: Final = "fraud"
"""Cause of every alert of the fraud job: one event raises at most one.

The cause is not the rule or score that decided. After a failure an event may be scored again under
a newer model; its alert then repeats the id, and a subscriber still holds one alert per event.
"""

NO_SCORE: Final = "no_score"
MAX_FEATURES: Final = 3  # more than a person reads; the scored row keeps every feature


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

    def __init__(
        self,
        rules: RuleSet,
        thresholds: Thresholds,
        feature_names: Sequence[str],
        feature_set_version: str,
        feature_texts: Mapping[str, str] | None = None,
    ) -> None:
        """Take what is the same for all alerts.

        `feature_texts` describes features in words, as a sentence's subject; a feature without one
        is shown by its name.
        """
        texts = feature_texts or {}
        self._rules = rules
        self._thresholds = thresholds
        self._names = tuple(feature_names)
        self._subjects = tuple(_subject(texts.get(name, name)) for name in self._names)
        self._feature_set_version = feature_set_version

    def build(
        self,
        scored: ScoredRows,
        rows: NDArray[np.int64],
        contributions: NDArray[np.float64] | None,
        model_versions: Sequence[str],
        decided_at_ms: int,
    ) -> list[dict[str, Any]]:
        """Return one record of contract `alert` per row number in `rows`, in that order.

        Args:
            scored: The batch.
            rows: Rows to alert on, as from `Decision.alerts`.
            contributions: float64 (len(rows), k), each feature's share in the score in the model's
                log-odds; NaN where unknown. None when the model gives none.
            model_versions: Version of the model that scored, one per row in `rows`.
            decided_at_ms: When the batch was decided, UTC milliseconds since 1970.
        """
        return [
            self._alert(
                scored,
                row,
                None if contributions is None else contributions[position],
                model_versions[position],
                decided_at_ms,
            )
            for position, row in enumerate(rows.tolist())
        ]

    def _alert(
        self,
        scored: ScoredRows,
        row: int,
        contributions: NDArray[np.float64] | None,
        model_version: str,
        decided_at_ms: int,
    ) -> dict[str, Any]:
        decision = scored.decision
        code = int(decision.codes[row])
        blocked = code == DecisionCode.BLOCK
        score = float(scored.score[row])
        has_score = bool(np.isfinite(score))
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
            "reasons": self._reasons(scored, row, contributions),
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
            },
        }

    def _cause(self, decision: Decision, row: int) -> str:
        cause = int(decision.causes[row])
        if cause == Cause.RULE:
            return f"rule:{self._rules.rules[int(decision.rule[row])].id}"
        return {Cause.SCORE: "score", Cause.NO_SCORE: NO_SCORE}.get(Cause(cause), "none")

    def _reasons(
        self, scored: ScoredRows, row: int, contributions: NDArray[np.float64] | None
    ) -> list[dict[str, Any]]:
        deciding = int(scored.decision.rule[row])
        numbers = [n for n in self._rules.order.tolist() if scored.fired[row, n] and n != deciding]
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
        if not np.isfinite(scored.score[row]):
            text = "No model could score this event."
            reasons.append(_reason(NO_SCORE, "rule", text))
        elif contributions is not None:
            reasons += self._feature_reasons(scored.features[row], contributions)
        return reasons

    def _feature_reasons(
        self, values: NDArray[np.float64], contributions: NDArray[np.float64]
    ) -> list[dict[str, Any]]:
        known = np.where(np.isnan(contributions), -np.inf, contributions)
        largest = np.argsort(-known, kind="stable")[:MAX_FEATURES]
        reasons = []
        for number in largest.tolist():
            share = float(known[number])
            if share <= 0.0:
                break  # what lowered the score is no reason to alert
            value = float(values[number])
            missing = bool(np.isnan(value))
            shown = "unknown" if missing else _plain(value)
            text = f"{self._subjects[number]} is {shown}, which raised the score."
            reason = _reason(self._names[number], "feature", text)
            reason["feature"] = self._names[number]
            reason["value"] = None if missing else value
            reason["contribution"] = share
            reasons.append(reason)
        return reasons


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


def _subject(text: str) -> str:
    text = text.strip().rstrip(".")
    return text[:1].upper() + text[1:] if " " in text else text


def _plain(value: float) -> str:
    return f"{value:.4f}".rstrip("0").rstrip(".")


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
