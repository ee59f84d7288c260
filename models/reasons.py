"""Turn contributions into sentences that an analyst reads, from the names of the features.

A window feature is told beside its usual value: the same measure over the longest window of the
same kind in the row, counts scaled to the shorter window.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.counterfactual import Change

__all__ = ["Reason", "SentenceWriter"]

_WINDOW: Final = re.compile(r"^(?P<stem>.+?)_(?P<size>\d+)(?P<unit>[smhd])(?P<rest>(_.*)?)$")
_DELAY: Final = re.compile(r"_delay_(\d+)([smhd])")
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_UNITS: Final = {"s": "s", "m": "min", "h": "h", "d": "days"}
_YES_NO: Final = {
    "night": ("paid at night", "not at night"),
    "weekend": ("paid on a weekend", "not on a weekend"),
}


class Reason(NamedTuple):
    """One sentence, the feature it is about, its value and its contribution."""

    feature: str
    value: float
    contribution: float
    text: str


@dataclass(frozen=True, slots=True)
class _Window:
    """What the name of a window feature says; `longest` is the column of its longest window."""

    entity: str
    measure: str
    span: str
    longest: int | None
    scale: float


class SentenceWriter:
    """Writes about the features of one model; names are read once, here."""

    def __init__(self, names: Sequence[str]) -> None:
        """Read the names, in the order of the rows that will come."""
        self._names = tuple(names)
        parsed = [_WINDOW.match(name) for name in self._names]
        self._windows = [None if match is None else _window(match, parsed) for match in parsed]

    def reasons(
        self, values: NDArray[np.float64], contributions: NDArray[np.float64], limit: int = 3
    ) -> list[list[Reason]]:
        """Return the features of each row that raised its score most, highest first.

        Those that lowered it or have no contribution (NaN) are left out; of equal ones the earlier
        feature is first. Both arrays are (n, k).
        """
        highest = np.argsort(-contributions, axis=1, kind="stable")[:, :limit]
        return [
            [
                Reason(self._names[one], row[one], shares[one], self._sentence(one, row))
                for one in columns
                if shares[one] > 0
            ]
            for columns, row, shares in zip(
                highest.tolist(), values.tolist(), contributions.tolist(), strict=True
            )
        ]

    def change(self, change: Change, threshold: float) -> str:
        """Return the sentence about the smallest change that would not have alerted."""
        parts = [
            self._instead(self._names.index(name), before, after)
            for name, before, after in zip(
                change.features, change.before, change.after, strict=True
            )
        ]
        return (
            f"With {' and '.join(parts)} the score would be {change.score:.3f}, below "
            f"{threshold:.3f}."
        )

    def _instead(self, column: int, before: float, after: float) -> str:
        window, name = self._windows[column], self._names[column]
        if window is None:
            return f"{name.replace('_', ' ')} {_number(after)} instead of {_number(before)}"
        if window.measure == "count":
            return f"{_payments(after)} in {window.span} instead of {_number(before)}"
        if window.measure == "fraud rate":
            return (
                f"{_share(after)} instead of {_share(before)} fraud among this {window.entity}'s "
                f"payments of {window.span}"
            )
        return f"{window.measure} over {window.span} {_number(after)} instead of {_number(before)}"

    def _sentence(self, column: int, row: list[float]) -> str:
        value, window, name = row[column], self._windows[column], self._names[column]
        if window is None:
            if name in _YES_NO:
                return _YES_NO[name][0 if value else 1]
            return f"{name.replace('_', ' ')} is {_number(value)}"
        usual = math.nan if window.longest is None else row[window.longest] * window.scale
        told = math.isfinite(usual)
        if window.measure == "count":
            text = f"{_payments(value)} in {window.span}"
            if window.entity != "customer":
                text += f" at this {window.entity}"
            return text + (f", this {window.entity}'s usual is {_number(usual)}" if told else "")
        if window.measure == "fraud rate":
            text = f"{_share(value)} of this {window.entity}'s payments of {window.span} were fraud"
            return text + (f", over its longest window {_share(usual)}" if told else "")
        text = f"{window.measure} over {window.span} is {_number(value)}"
        return text + (f", this {window.entity}'s usual is {_number(usual)}" if told else "")


def _window(match: re.Match[str], every: Sequence[re.Match[str] | None]) -> _Window:
    entity, _, measure = match["stem"].partition("_")
    seconds = _seconds(match)
    span = "24 h" if seconds == 86_400 else f"{match['size']} {_UNITS[match['unit']]}"
    delay = _DELAY.search(match["rest"] or "")
    if delay is not None:
        span += f" up to {delay[1]} {_UNITS[delay[2]]} ago"
    longest, scale = None, 1.0
    for column, other in enumerate(every):
        if other is None or other["stem"] != match["stem"] or other["rest"] != match["rest"]:
            continue
        if _seconds(other) > seconds and (
            longest is None or _seconds(other) > _seconds(every[longest] or match)
        ):
            longest = column
    words = measure.replace("_", " ")
    if measure.endswith("count"):
        words = "count"
        if longest is not None:
            scale = seconds / _seconds(every[longest] or match)
    elif "fraud" in measure:
        words = "fraud rate"
    elif measure.endswith("_mean"):
        words = f"mean {words.removesuffix(' mean')}"
    return _Window(entity, words, span, longest, scale)


def _seconds(match: re.Match[str]) -> int:
    return int(match["size"]) * _SECONDS[match["unit"]]


def _payments(value: float) -> str:
    return f"{_number(value)} payment{'' if value == 1 else 's'}"


def _share(value: float) -> str:
    return "unknown" if math.isnan(value) else f"{value:.0%}"


def _number(value: float) -> str:
    if math.isnan(value):
        return "unknown"
    if value.is_integer() or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:,.2f}"
