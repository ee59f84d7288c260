"""What the breach model sees of a limit: how much of it was used over the last five minutes.

A limit's *use* is its measure over its breach level; 1 is a breach. The last value in each
`STEP_MS` of event time is kept, `STEPS` steps back. A step without an evaluation has the use of the
step before, because nothing material moved.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["BREACH_FEATURES", "FEATURE_SET", "HORIZON_STEPS", "STEPS", "STEP_MS", "UsageHistory"]

STEP_MS: Final = 10_000
"""Event time between two remembered uses: thirty times finer than what is forecast."""

STEPS: Final = 30
"""Steps remembered before the current one: five minutes."""

HORIZON_STEPS: Final = 30
"""How far ahead the model looks: it gives the chance of a breach in the next five minutes."""

FEATURE_SET: Final = "breach-1"
"""Version of the features; another meaning of one of them needs another version."""

BREACH_FEATURES: Final = (
    "use",
    "warning_level",
    "use_change_1m",
    "use_change_5m",
    "use_highest_5m",
    "use_volatility",
    "headroom",
    "known_minutes",
    "is_loss",
    "is_tail_risk",
)
"""Names of the features, in order.

`use_volatility` is the root mean square change of the use in a minute; `headroom` the way to the
breach in volatilities of five minutes, between -20 and 20.
"""

_STEPS_A_MINUTE: Final = 60_000 // STEP_MS
_MOST_HEADROOM: Final = 20.0
# A use that never moved has a volatility of 0; the headroom is then the most there is.
_STILL: Final = 1e-9


class UsageHistory:
    """The use of the limits of one firm over the last steps of event time."""

    def __init__(self) -> None:
        self._rows: dict[str, int] = {}
        self._use = np.empty((0, STEPS + 1))
        self._step = -1

    def put(self, limit_ids: Sequence[str], use: NDArray[np.float64], event_time_ms: int) -> None:
        """Note the use of limits at a time; NaN leaves what is known. Time does not go back."""
        step = max(event_time_ms // STEP_MS, self._step)
        passed = min(step - self._step, STEPS + 1) if self._step >= 0 else 0
        self._step = step
        if passed:
            later = np.repeat(self._use[:, -1:], passed, axis=1)
            self._use = np.concatenate([self._use[:, passed:], later], axis=1)
        new = [name for name in limit_ids if name not in self._rows]
        if new:
            self._rows |= {name: len(self._rows) + place for place, name in enumerate(new)}
            blank = np.full((len(new), STEPS + 1), np.nan)
            self._use = np.concatenate([self._use, blank])
        rows = self._places(limit_ids)
        known = np.isfinite(use)
        self._use[rows[known], -1] = use[known]

    def features(
        self,
        limit_ids: Sequence[str],
        warning: NDArray[np.float64],
        is_loss: NDArray[np.bool_],
        is_tail_risk: NDArray[np.bool_],
    ) -> NDArray[np.float64]:
        """Return the features of limits that were put before, shape (limits, features).

        All features of a limit whose use was never known are NaN. Before a limit has lived for a
        minute or five, changes are those since it was first known.

        Args:
            limit_ids: which limits.
            warning: warning level over breach level of each.
            is_loss: whether it limits a loss.
            is_tail_risk: whether it limits VaR or expected shortfall.
        """
        use = self._use[self._places(limit_ids)]
        known = np.isfinite(use)
        count = known.sum(axis=1)
        now = use[:, -1]
        first = np.where(count > 0, STEPS + 1 - count, STEPS)
        each = np.arange(len(use))
        before = use[each, np.maximum(first, STEPS - _STEPS_A_MINUTE)]
        oldest = use[each, first]
        moves = np.where(known[:, 1:] & known[:, :-1], np.diff(use, axis=1), 0.0)
        moved = np.maximum(count - 1, 1)
        volatility = np.sqrt(np.square(moves).sum(axis=1) / moved * _STEPS_A_MINUTE)
        ahead = volatility * np.sqrt(HORIZON_STEPS / _STEPS_A_MINUTE)
        headroom = np.clip((1 - now) / np.maximum(ahead, _STILL), -_MOST_HEADROOM, _MOST_HEADROOM)
        highest = np.where(known, use, -np.inf).max(axis=1, initial=-np.inf)
        features = np.column_stack(
            [
                now,
                warning,
                now - before,
                now - oldest,
                np.where(count > 0, highest, np.nan),
                volatility,
                headroom,
                (count - 1) / _STEPS_A_MINUTE,
                is_loss.astype(np.float64),
                is_tail_risk.astype(np.float64),
            ]
        )
        features[count == 0] = np.nan
        return features

    def state(self) -> dict[str, Any]:
        """Return what `from_state` continues from, as JSON values."""
        rows: list[list[float]] = self._use.tolist()
        # NaN is no JSON value.
        cells = [[use if use == use else None for use in row] for row in rows]
        return {"step": self._step, "use": dict(zip(self._rows, cells, strict=True))}

    @staticmethod
    def from_state(state: dict[str, Any]) -> UsageHistory:
        """Return the history that `state` described."""
        history = UsageHistory()
        history._step = state["step"]
        history._rows = {name: row for row, name in enumerate(state["use"])}
        cells = np.array(list(state["use"].values()), np.float64)
        history._use = cells.reshape(-1, STEPS + 1)
        return history

    def _places(self, limit_ids: Sequence[str]) -> NDArray[np.int64]:
        return np.array([self._rows[name] for name in limit_ids], np.int64)
