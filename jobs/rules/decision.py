"""Turn a score and the rules that fired into one decision per event.

Precedence, strongest first; the first line that applies decides:

====  ==============================  ========  =================
step  what applies                    decision  cause
====  ==============================  ========  =================
1     a block rule fired              block     ``RULE``
2     an approve rule fired           approve   ``RULE``
3     the score is missing            review    ``NO_SCORE``
4     score >= block threshold        block     ``SCORE``
5     a review rule fired             review    ``RULE``
6     score >= review threshold       review    ``SCORE``
7     otherwise                       approve   ``NONE``
====  ==============================  ========  =================

So an allow-list overrules the model and the review rules, never a block rule. A score is missing
where it is NaN or infinite: a model failed, or had to be left out. Tag rules change nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Final

import numpy as np
from numba import njit, types
from numpy.typing import NDArray

from jobs.rules.ruleset import Action
from schemas.errors import ConfigurationError

__all__ = ["DECISION_NAMES", "Cause", "Decision", "DecisionCode", "Thresholds", "decide"]

_APPROVE_RULE: Final = int(Action.APPROVE)
_REVIEW_RULE: Final = int(Action.REVIEW)
_BLOCK_RULE: Final = int(Action.BLOCK)


class DecisionCode(IntEnum):
    """What happens to an event."""

    APPROVE = 0
    REVIEW = 1
    BLOCK = 2


class Cause(IntEnum):
    """Which kind of evidence decided."""

    NONE = 0
    SCORE = 1
    RULE = 2
    NO_SCORE = 3


DECISION_NAMES: Final = ("approve", "review", "block")
"""Names in contracts and tables, by `DecisionCode`."""


@dataclass(frozen=True, slots=True)
class Thresholds:
    """Scores from which an event is reviewed and blocked; both ends of [0, 1] are allowed.

    Raises:
        ConfigurationError: unless 0 <= review <= block <= 1.
    """

    review: float
    block: float

    def __post_init__(self) -> None:
        if not 0.0 <= self.review <= self.block <= 1.0:
            msg = (
                f"reading thresholds review {self.review!r} and block {self.block!r}: expected "
                "0 <= review <= block <= 1"
            )
            raise ConfigurationError(msg)


@dataclass(frozen=True, slots=True)
class Decision:
    """Decisions of a batch, one row per event in batch order.

    Attributes:
        codes: uint8 (n,), a `DecisionCode`.
        causes: uint8 (n,), a `Cause`.
        rule: int16 (n,), number of the rule that decided, -1 where none did.
    """

    codes: NDArray[np.uint8]
    causes: NDArray[np.uint8]
    rule: NDArray[np.int16]

    @property
    def alerts(self) -> NDArray[np.int64]:
        """Return the rows to alert on: every event that is not approved, in batch order."""
        return np.flatnonzero(self.codes)


def decide(
    score: NDArray[np.float64],
    fired: NDArray[np.bool_],
    actions: NDArray[np.int8],
    order: NDArray[np.int16],
    thresholds: Thresholds,
) -> Decision:
    """Decide n events; each row depends on that row alone.

    Args:
        score: float64 (n,); NaN or infinite means that there is none.
        fired: bool (n, rules), from `RuleSet.evaluate`.
        actions: `RuleSet.actions`.
        order: `RuleSet.order`; of several rules that decide alike, the first in it is named.
        thresholds: Scores from which an event is reviewed and blocked.
    """
    n = len(score)
    decision = Decision(np.empty(n, np.uint8), np.empty(n, np.uint8), np.empty(n, np.int16))
    _decide(
        score, fired, actions, order, thresholds.review, thresholds.block,
        decision.codes, decision.causes, decision.rule,
    )  # fmt: skip
    return decision


# Fixed, so that nothing is compiled while events wait; read-only and strided types take any array.
_SIGNATURE = types.void(
    types.Array(types.float64, 1, "A", readonly=True),
    types.Array(types.boolean, 2, "C", readonly=True),
    types.Array(types.int8, 1, "C", readonly=True),
    types.Array(types.int16, 1, "C", readonly=True),
    types.float64,
    types.float64,
    types.Array(types.uint8, 1, "C"),
    types.Array(types.uint8, 1, "C"),
    types.Array(types.int16, 1, "C"),
)


@njit(_SIGNATURE, cache=True, nogil=True)
def _decide(
    score: NDArray[np.float64],
    fired: NDArray[np.bool_],
    actions: NDArray[np.int8],
    order: NDArray[np.int16],
    review: float,
    block: float,
    codes: NDArray[np.uint8],
    causes: NDArray[np.uint8],
    rule: NDArray[np.int16],
) -> None:
    for i in range(len(score)):
        best = 0
        which = -1
        # A block rule overrules an allow-list, which overrules a review rule.
        for j in range(len(order)):
            number = order[j]
            if fired[i, number]:
                action = actions[number]
                rank = 0
                if action == _BLOCK_RULE:
                    rank = 3
                elif action == _APPROVE_RULE:
                    rank = 2
                elif action == _REVIEW_RULE:
                    rank = 1
                if rank > best:
                    best = rank
                    which = number
        s = score[i]
        code = 0
        cause = 0
        if best >= 2:
            code = 2 if best == 3 else 0
            cause = 2
        elif not np.isfinite(s):
            code, cause, which = 1, 3, -1
        elif s >= block:
            code, cause, which = 2, 1, -1
        elif best == 1:
            code, cause = 1, 2
        elif s >= review:
            code, cause, which = 1, 1, -1
        else:
            which = -1
        codes[i] = code
        causes[i] = cause
        rule[i] = which
