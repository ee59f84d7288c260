"""Turn contributions into sentences that an analyst reads, from the names of the features.

A window feature is told beside its usual value: the same measure over the longest window of the
same kind in the row, counts scaled to the shorter window.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["Reason", "sentences"]

_WINDOW: Final = re.compile(r"^(?P<stem>.+?)_(?P<size>\d+)(?P<unit>[smhd])(?P<rest>(_.*)?)$")
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_UNITS: Final = {"s": "s", "m": "min", "h": "h", "d": "days"}


@dataclass(frozen=True, slots=True)
class Reason:
    """One sentence, the feature it is about, its value and its contribution."""

    feature: str
    value: float
    contribution: float
    text: str


def sentences(
    names: Sequence[str],
    values: NDArray[np.float64],
    contributions: NDArray[np.float64],
    limit: int = 3,
) -> list[Reason]:
    """Return the features that raised the score most, highest first; NaN is left out."""
    row = dict(zip(names, values.tolist(), strict=True))
    raised = [
        int(one)
        for one in np.argsort(-np.nan_to_num(contributions, nan=-np.inf), kind="stable")
        if contributions[one] > 0
    ]
    return [
        Reason(
            names[one],
            float(values[one]),
            float(contributions[one]),
            _sentence(names[one], float(values[one]), row),
        )
        for one in raised[:limit]
    ]


def _sentence(name: str, value: float, row: dict[str, float]) -> str:
    match = _WINDOW.match(name)
    if match is None:
        if name in ("night", "weekend"):
            return f"paid {'at' if name == 'night' else 'on a'} {name}" if value else f"not {name}"
        return f"{name.replace('_', ' ')} is {_number(value)}"
    stem, rest = match["stem"], match["rest"] or ""
    size, unit = int(match["size"]), match["unit"]
    seconds = size * _SECONDS[unit]
    span = "24 h" if seconds == 86_400 else f"{size} {_UNITS[unit]}"
    delay = re.search(r"_delay_(\d+)([smhd])", rest)
    if delay is not None:
        span += f" up to {delay[1]} {_UNITS[delay[2]]} ago"
    entity, _, measure = stem.partition("_")
    longest, usual = _longest(stem, rest, row)
    shorter = longest > seconds
    if "count" in measure:
        text = f"{_number(value)} payments in {span}"
        if shorter:
            text += f", this {entity}'s usual is {_number(usual * seconds / longest)}"
    elif measure.startswith(("fraud", "ratio")) or "fraud" in measure:
        text = f"{value:.0%} of this {entity}'s payments of {span} were fraud"
        if shorter:
            text += f", over the longest window {usual:.0%}"
    else:
        text = f"{measure.replace('_', ' ')} over {span} is {_number(value)}"
        if shorter:
            text += f", this {entity}'s usual is {_number(usual)}"
    return text


def _longest(stem: str, rest: str, row: dict[str, float]) -> tuple[int, float]:
    best = (0, 0.0)
    for name, value in row.items():
        match = _WINDOW.match(name)
        if match is not None and match["stem"] == stem and (match["rest"] or "") == rest:
            best = max(best, (int(match["size"]) * _SECONDS[match["unit"]], value))
    return best


def _number(value: float) -> str:
    return f"{value:,.0f}" if value == round(value) or abs(value) >= 100 else f"{value:,.2f}"
