"""Alerts of the market risk job, in the envelope that fraud alerts have."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from jobs.market_risk.limits import Status, Transition

__all__ = ["Origin", "limit_alert", "market_alert"]

LIMIT_SET_VERSION: Final = "limits-1"
"""Version of the rules by which limits warn, breach and clear."""

_DECISIONS: Final = {Status.WITHIN: "within", Status.NEAR: "near", Status.BREACH: "breach"}
_PLACES: Final = {Status.WITHIN: "within", Status.NEAR: "near", Status.BREACH: "over"}
_SEVERITIES: Final = {
    Status.WITHIN: "info",
    Status.NEAR: "warning",
    Status.BREACH: "critical",
}
_TEXTS: Final = {
    "price_jump": "The price moved by {value:.4%} from one trade to the next.",
    "volume_spike": "A trade of {value:g} is far above the usual size.",
    "crossed_market": "The bid is above the ask by {value:g}.",
    "stale_price": "Trades go on, but the newest quote is {value:g} s old.",
}


@dataclass(frozen=True, slots=True)
class Origin:
    """Where an alert comes from: coordinates and times of the record that raised it."""

    topic: str
    partition: int
    offset: int
    published_at_ms: int
    ingested_at_ms: int
    decided_at_ms: int


def limit_alert(firm: str, transition: Transition, currency: str, origin: Origin) -> dict[str, Any]:
    """Return the alert of a limit that changed its status.

    Its id is a pure function of limit, revision and count of transitions.
    """
    limit, after = transition.limit, transition.after
    level = limit.warning if after is Status.NEAR else limit.breach
    amount = limit.measure not in ("leverage", "quantity")
    text = (
        f"{limit.measure} of {limit.scope} {limit.scope_id} is {transition.value:,.2f}, "
        f"{_PLACES[after]} its limit (warning {limit.warning:,.2f}, breach {limit.breach:,.2f})."
    )
    reason = f"limit_{limit.measure}"
    return {
        "alert_id": _identity(firm, f"{transition.transition_id}:{limit.revision}"),
        "kind": "limit",
        "severity": "info" if transition.acknowledged else _SEVERITIES[after],
        "entity_type": limit.scope,
        "entity_id": limit.scope_id,
        "event_id": None,
        "event_time_ms": transition.event_time_ms,
        "score": transition.value,
        "threshold": level,
        "decision": _DECISIONS[after],
        "amount_minor": round(transition.value * 100) if amount else None,
        "currency": currency if amount else None,
        "reasons": [_reason(reason, text, limit.measure, transition.value)],
        "attributes": {
            "firm_id": firm,
            "limit_id": limit.limit_id,
            "before": _DECISIONS[transition.before],
            "acknowledged_by": limit.acknowledged_by or "",
        },
        **_common(origin),
    }


def market_alert(
    flag: str,
    instrument: str,
    event_id: str,
    event_time_ms: int,
    value: float,
    threshold: float,
    origin: Origin,
) -> dict[str, Any]:
    """Return the alert of a price jump, a volume spike, a crossed market or a stale price.

    Its decision names which, and the attribute `cause` is `market`. Its kind is `limit`, a bound on
    what the market does: the kinds are an enum that readers of every version must know, so the
    contract cannot gain one.
    """
    text = _TEXTS[flag].format(value=value)
    return {
        "alert_id": _identity(instrument, f"{flag}:{event_id}"),
        "kind": "limit",
        "severity": "warning",
        "entity_type": "instrument",
        "entity_id": instrument,
        "event_id": event_id,
        "event_time_ms": event_time_ms,
        "score": abs(value),
        "threshold": threshold,
        "decision": flag,
        "amount_minor": None,
        "currency": None,
        "reasons": [_reason(flag, text, flag, value)],
        "attributes": {"cause": "market"},
        **_common(origin),
    }


def _common(origin: Origin) -> Mapping[str, Any]:
    return {
        "model_version": "",
        "rule_set_version": LIMIT_SET_VERSION,
        "feature_set_version": None,
        "source": {
            "topic": origin.topic,
            "partition": origin.partition,
            "offset": origin.offset,
        },
        "published_at_ms": origin.published_at_ms,
        "ingested_at_ms": origin.ingested_at_ms,
        "decided_at_ms": origin.decided_at_ms,
    }


def _reason(code: str, text: str, feature: str, value: float) -> dict[str, Any]:
    return {
        "code": code,
        "kind": "limit",
        "text": text,
        "feature": feature,
        "value": value,
        "contribution": None,
    }


def _identity(subject: str, cause: str) -> str:
    # The length keeps ("ab", "c") and ("a", "bc") apart.
    source = f"{len(subject)}:{subject}{cause}".encode()
    return hashlib.blake2b(source, digest_size=16).hexdigest()
