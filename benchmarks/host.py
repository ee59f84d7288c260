"""How steadily the machine itself works: a fixed piece of work again and again, timed.

A virtual machine that shares a processor with others can run at a tenth of its speed for a tenth of
a second, and neither steal time nor load says so. Such stumbles are the tail of every latency that
is measured meanwhile, so they are measured too, when nothing else runs.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

import numpy as np

__all__ = ["CALM", "await_calm", "host_steadiness", "steadiness"]

CALM: Final = 0.01
"""Share of slow slices up to which the host counts as calm."""

_SLICE_SECONDS: Final = 0.02
_ROUNDS: Final = 2_000
_PAUSE_SECONDS: Final = 20.0


def steadiness(rates: list[float]) -> dict[str, float]:
    """Return what rates of equal slices of time say: their best decile, and how many fall short.

    `slow_share` of the slices were slower than half of the best decile; the slowest had
    `slowest_share` of it.
    """
    best = float(np.quantile(rates, 0.9))
    shares = np.array(rates) / best
    return {
        "best_per_second": round(best),
        "slow_share": round(float((shares < 0.5).mean()), 3),
        "slowest_share": round(float(shares.min()), 2),
    }


def host_steadiness(seconds: float = 4.0) -> dict[str, float]:
    """Keep one core busy for a while and return how steadily it worked, as of `steadiness`."""
    rates: list[float] = []
    end = time.perf_counter() + seconds
    began, rounds = time.perf_counter(), 0
    while began < end:
        sum(range(_ROUNDS))
        rounds += 1
        now = time.perf_counter()
        if now - began >= _SLICE_SECONDS:
            rates.append(rounds / (now - began))
            began, rounds = now, 0
    return steadiness(rates)


def await_calm(minutes: float, say: Callable[[str], None]) -> None:
    """Return as soon as the host is calm, or after so long."""
    end = time.monotonic() + 60 * minutes
    while time.monotonic() < end:
        found = host_steadiness()
        if found["slow_share"] <= CALM:
            return
        say(
            f"waiting for a calm host, at most {(end - time.monotonic()) / 60:.1f} min: slow for "
            f"{found['slow_share']:.1%} of the time, at worst {found['slowest_share']:.0%} of speed"
        )
        time.sleep(min(_PAUSE_SECONDS, max(0.0, end - time.monotonic())))
