"""The highest rate of an open loop at which a contestant's lag does not grow.

What a backlog drains at is no such rate: the generator has done its work by then, and batches are
as large as they can be. So shares of that rate are tried: first `LOADED`; if the lag does not grow
there, from the backlog's own rate down; if it grows, from there down. The first that holds is
the maximum.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

__all__ = ["LOADED", "MOST_TRIED", "find_sustained", "grows"]

MOST_GROWTH: Final = 0.03
"""A lag that grows by more than this, in seconds a second, is one that grows."""

LOADED: Final = 0.8
"""The share of a maximum at which latency is asked for."""

_ABOVE: Final = (1.0, 0.93, 0.86)
_BELOW: Final = (0.7, 0.6, 0.5, 0.4, 0.3, 0.2)

MOST_TRIED: Final = LOADED + max(sum(_ABOVE), sum(_BELOW))
"""The shares of a search added up: how long a stream it may need."""


def grows(run: Mapping[str, Any]) -> bool:
    """Return whether the lag grew in a run at a rate."""
    return (run.get("lag_growth") or 0.0) > MOST_GROWTH


def find_sustained(at_rate: Callable[[float], Mapping[str, Any]], drained: float) -> float | None:
    """Return the highest of the tried rates that holds; None when the lag grew at every one.

    Each is tried once, so a host that stumbles at the wrong moment costs a step.

    Args:
        at_rate: sends at a rate for a while and returns the run, with its `lag_growth`.
        drained: events/s that a backlog was drained at.
    """
    first = LOADED * drained
    held = None if grows(at_rate(first)) else first
    for share in _BELOW if held is None else _ABOVE:
        if not grows(at_rate(share * drained)):
            return share * drained
    return held
