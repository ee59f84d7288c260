"""Write alerts and dead letters as lines that people read."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

__all__ = ["DECISION_COLOURS", "alert_line", "amount_text", "time_text"]

DECISION_COLOURS: Final[dict[str, str]] = {
    "block": "red",
    "breach": "red",
    "near": "yellow",
    "review": "yellow",
}
"""Colour of a decision on a terminal; others have none."""


def time_text(epoch_ms: int) -> str:
    """Return a time in UTC, to the millisecond.

    >>> time_text(1_522_540_831_123)
    '2018-04-01 00:00:31.123'
    """
    moment = datetime.fromtimestamp(epoch_ms // 1000, tz=UTC)
    return f"{moment:%Y-%m-%d %H:%M:%S}.{epoch_ms % 1000:03d}"


def amount_text(amount_minor: int | None, currency: str | None) -> str:
    """Return an amount with its currency.

    >>> amount_text(-571_605, "EUR")
    '-5,716.05 EUR'
    """
    if amount_minor is None:
        return "-"
    sign = "-" if amount_minor < 0 else ""
    major, minor = divmod(abs(amount_minor), 100)
    return f"{sign}{major:,}.{minor:02d} {currency or ''}".rstrip()


def alert_line(alert: Mapping[str, Any]) -> str:
    """Return one line: event time, decision, score, entity, amount, latency, and why."""
    reasons = "; ".join(str(reason["text"]) for reason in alert["reasons"]) or "no reason given"
    latency = alert["decided_at_ms"] - alert["published_at_ms"]
    return (
        f"{time_text(alert['event_time_ms'])}  {alert['decision']:<7} {alert['score']:.3f}  "
        f"{alert['entity_type']} {alert['entity_id']}  "
        f"{amount_text(alert['amount_minor'], alert['currency'])}  {latency} ms  {reasons}"
    )
