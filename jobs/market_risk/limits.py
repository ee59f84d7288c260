"""Limits on instruments, accounts, desks and firms: when they warn, breach and clear.

A limit is *within* below its warning level, *near* from it, *breached* from its breach level. It
comes back only when the measure falls `hysteresis` (a fraction of the level) below the level it had
passed, so that a measure that trembles on a level raises one alert. The state is a pure function of
the sequence of measures, so a replay raises the same transitions with the same ids.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from enum import IntEnum
from typing import Final, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from jobs.market_risk.breach import UsageHistory
from schemas.errors import ConfigurationError, RecordError

__all__ = ["Limit", "LimitBook", "LimitRecordError", "Measure", "Scope", "Status", "Transition"]

Scope = Literal["instrument", "account", "desk", "firm"]
Measure = Literal["gross", "net", "loss", "var", "expected_shortfall", "leverage", "quantity"]

_DEFAULT_HYSTERESIS: Final = 0.02
_VERSION: Final = 2  # version 1 had no history of use: the breach model begins anew


class LimitRecordError(RecordError):
    """A limit record cannot be used."""


class Status(IntEnum):
    """How much of a limit is used, in rising order."""

    WITHIN = 0
    NEAR = 1
    BREACH = 2


@dataclass(frozen=True, slots=True)
class Limit:
    """One limit of the tree.

    `measure` is compared by absolute value (`loss` is the loss as a positive number). Levels are in
    the unit of the measure: base-currency money, a ratio for leverage, units for quantity. A record
    with a greater `revision` replaces one with the same id; `acknowledged_by` names who has seen
    the breach, which silences repeats until the limit is within again.
    """

    limit_id: str
    scope: Scope
    scope_id: str
    measure: Measure
    warning: float
    breach: float
    hysteresis: float = _DEFAULT_HYSTERESIS
    revision: int = 0
    acknowledged_by: str | None = None

    def __post_init__(self) -> None:
        """Check the limit."""
        problems = []
        if self.scope not in get_args(Scope):
            problems.append(f"scope of {', '.join(get_args(Scope))}, was {self.scope!r}")
        if self.measure not in get_args(Measure):
            problems.append(f"measure of {', '.join(get_args(Measure))}, was {self.measure!r}")
        if not 0 < self.warning <= self.breach:
            problems.append(f"0 < warning <= breach, was {self.warning!r} and {self.breach!r}")
        if not 0 <= self.hysteresis < 1:
            problems.append(f"hysteresis from 0 to below 1, was {self.hysteresis!r}")
        if problems:
            msg = f"reading limit {self.limit_id!r}: expected {'; '.join(problems)}"
            raise LimitRecordError(msg)


@dataclass(frozen=True, slots=True)
class Transition:
    """A limit that changed its status, or whose breach was acknowledged.

    `sequence` counts the transitions of the limit, so `limit_id` with it is a deterministic
    identity.
    """

    limit: Limit
    before: Status
    after: Status
    value: float
    event_time_ms: int
    sequence: int
    acknowledged: bool

    @property
    def transition_id(self) -> str:
        """Return the identity of this transition; a replay gives the same."""
        return f"{self.limit.limit_id}:{self.sequence}"


@dataclass(slots=True)
class _Held:
    limit: Limit
    status: Status = Status.WITHIN
    sequence: int = 0
    acknowledged: bool = False
    value: float = 0.0


class LimitBook:
    """All limits of one firm; a few thousand at most, checked once an evaluation.

    Measures come as a mapping from (scope, measure) to values by scope id, so that only limits
    whose measure was computed are looked at.
    """

    def __init__(self) -> None:
        self._limits: dict[str, _Held] = {}
        self._history = UsageHistory()

    def __len__(self) -> int:
        return len(self._limits)

    def put(self, limit: Limit) -> bool:
        """Add or replace a limit; return False for a record no newer than what is held."""
        held = self._limits.get(limit.limit_id)
        if held is None:
            self._limits[limit.limit_id] = _Held(limit)
            return True
        if limit.revision <= held.limit.revision:
            return False
        held.limit = limit
        held.acknowledged = limit.acknowledged_by is not None and held.status is Status.BREACH
        return True

    def remove(self, limit_id: str) -> bool:
        """Forget a limit; return whether it was there."""
        return self._limits.pop(limit_id, None) is not None

    def check(
        self,
        measure: Callable[[Limit], float | None],
        event_time_ms: int,
    ) -> list[Transition]:
        """Compare every limit with its measure and return what changed, in order of limit id.

        A measure that is None (nothing is held) or NaN (a position has no price, say) changes
        nothing: an unknown risk neither clears a breach nor makes one.
        """
        changed = []
        names = sorted(self._limits)
        use = np.full(len(names), np.nan)
        for place, limit_id in enumerate(names):
            held = self._limits[limit_id]
            limit = held.limit
            value = measure(limit)
            if value is None or np.isnan(value):
                continue
            value = max(value, 0.0) if limit.measure == "loss" else abs(value)
            held.value = value
            use[place] = value / limit.breach
            after = _next_status(held.status, value, limit)
            if after is held.status:
                continue
            held.sequence += 1
            if after is Status.WITHIN:
                held.acknowledged = False
            # Back from breach to near is no news to one who has acknowledged the breach.
            changed.append(
                Transition(
                    limit,
                    held.status,
                    after,
                    value,
                    event_time_ms,
                    held.sequence,
                    held.acknowledged,
                )
            )
            held.status = after
        self._history.put(names, use, event_time_ms)
        return changed

    def breach_features(self) -> NDArray[np.float64]:
        """Return what the breach model sees of each limit, in order of limit id, NaN unmeasured.

        Shape (limits, features).
        """
        limits = [held.limit for _, held in sorted(self._limits.items())]
        self._history.put([limit.limit_id for limit in limits], np.full(len(limits), np.nan), -1)
        measures = np.array([limit.measure for limit in limits], object)
        return self._history.features(
            [limit.limit_id for limit in limits],
            np.array([limit.warning / limit.breach for limit in limits], np.float64),
            measures == "loss",
            (measures == "var") | (measures == "expected_shortfall"),
        )

    def rows(self) -> list[tuple[Limit, Status, float, bool]]:
        """Return each limit with its status, last measure and acknowledgement, by id."""
        return [
            (held.limit, held.status, held.value, held.acknowledged)
            for _, held in sorted(self._limits.items())
        ]

    def usage(self) -> NDArray[np.float64]:
        """Return each limit's last measure over its breach level, in order of limit id."""
        return np.array(
            [held.value / held.limit.breach for _, held in sorted(self._limits.items())]
        )

    def snapshot(self) -> bytes:
        """Return the whole state; `restore` of it continues to the bit."""
        items = [
            {
                "limit": asdict(held.limit),
                "status": int(held.status),
                "sequence": held.sequence,
                "acknowledged": held.acknowledged,
                "value": held.value,
            }
            for _, held in sorted(self._limits.items())
        ]
        return json.dumps(
            {"version": _VERSION, "limits": items, "history": self._history.state()}
        ).encode()

    @staticmethod
    def restore(blob: bytes) -> LimitBook:
        """Return the book that `snapshot` described.

        Raises:
            ConfigurationError: if another version wrote the blob.
        """
        saved = json.loads(blob)
        if saved["version"] not in (1, _VERSION):
            msg = f"restoring limits: expected version 1 or {_VERSION}, was {saved['version']!r}"
            raise ConfigurationError(msg)
        book = LimitBook()
        if saved["version"] == _VERSION:
            book._history = UsageHistory.from_state(saved["history"])
        for item in saved["limits"]:
            limit = Limit(**item["limit"])
            book._limits[limit.limit_id] = _Held(
                limit,
                Status(item["status"]),
                item["sequence"],
                item["acknowledged"],
                item["value"],
            )
        return book


def _next_status(status: Status, value: float, limit: Limit) -> Status:
    if value >= limit.breach:
        return Status.BREACH
    keep = 1 - limit.hysteresis
    if status is Status.BREACH and value >= limit.breach * keep:
        return Status.BREACH
    if value >= limit.warning:
        return Status.NEAR
    if status is not Status.WITHIN and value >= limit.warning * keep:
        return Status.NEAR
    return Status.WITHIN
