"""Measure one contestant: results compared first, then throughput, latency, CPU, recovery, state.

All of it happens in one life of the contestant, on one stream whose event time only goes forward:

1. it starts, and the clock stops when the first payment is scored (start-up);
2. a stream of weeks at a modest rate; every feature, decision and alert is compared with the plain
   Python reference, and a difference ends the run (`UnequalResultsError`);
3. a backlog is sent at once and drained: the warm-up, which counts for nothing. How fast it went
   says how long the measured backlog is, so that it takes every contestant about the same time;
4. the backlog that counts (throughput, CPU, memory);
5. open-loop load at each rate (latency, and whether the lag grew), as far as it was able to drain;
6. the highest rate at which the lag does not grow (`sustained.py`), and 80 % of that;
7. a surge of ten times what it was given before, one and a half times its maximum;
8. a worker is killed under load (recovery), and every payment must have its row.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.contestants.contestant import Contestant
from benchmarks.host import host_steadiness
from benchmarks.reference import Reference
from benchmarks.services import Services
from benchmarks.session import Session
from benchmarks.sustained import LOADED, find_sustained
from benchmarks.workload import Record

__all__ = ["RECOVERY_RATE", "Plan", "backlog", "measure"]

# A contestant that drains r events/s is asked for no more than this share of r.
WITHIN_REACH: Final = 1.0
RECOVERY_RATE: Final = 1_000.0
SURGE_BASE: Final = 0.15
"""Of the maximum; ten times as much is more than anyone can take."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured; a part of 0 seconds is left out."""

    equality: Sequence[Record]
    timed: Sequence[Record]
    least_drained: int
    most_drained: int
    drain_seconds: float
    rates: Sequence[float]
    seconds: float
    recovery_seconds: float
    surge_seconds: float
    flames: Path | None = None


def backlog(events_per_second: float, plan: Plan) -> int:
    """Return the length of a backlog that keeps such a contestant busy for the planned time."""
    wanted = int(events_per_second * plan.drain_seconds)
    return max(plan.least_drained, min(plan.most_drained, wanted))


def measure(
    contestant: Contestant,
    services: Services,
    plan: Plan,
    reference: Reference,
    say: Callable[[str], None],
    result: dict[str, Any],
) -> None:
    """Run the contestant through the plan; it is stopped whatever happens.

    Each step puts what it found into `result`, so that a later step's failure loses none of it.

    Raises:
        UnequalResultsError: when its results are wrong.
        RuntimeError: when it stops making progress.
    """
    contestant.set_up()
    result["load_before"] = round(os.getloadavg()[0], 1)
    result["host_before"] = host_steadiness()
    began = time.monotonic()
    try:
        contestant.start(services)
        result["submitted_seconds"] = round(time.monotonic() - began, 1)
        session = Session(contestant, services, plan.timed, say)
        equality = session.compare(plan.equality, contestant.equality_rate, began, reference)
        result["first_row_seconds"] = equality.pop("first_row_seconds")
        result["equality"] = equality
        say(f"{contestant.title}: equal; first row after {result['first_row_seconds']} s")
        _under_load(session, contestant, plan, result)
        result["load_after"] = round(os.getloadavg()[0], 1)
    finally:
        contestant.stop()
        result["host_after"] = host_steadiness()


def _under_load(
    session: Session, contestant: Contestant, plan: Plan, result: dict[str, Any]
) -> None:
    warm = session.drain(min(contestant.warm_events, plan.most_drained))
    result["warm_up"] = {name: warm[name] for name in ("events", "seconds", "events_per_second")}
    drained = result["drained"] = session.drain(backlog(warm["events_per_second"], plan))
    maximum = drained["events_per_second"]
    result["task_managers"] = len(session.workers)
    if contestant.throughput_only:
        return
    runs = result["at_rate"] = []
    runs.extend(
        session.at_rate(rate, plan.seconds) for rate in plan.rates if rate <= WITHIN_REACH * maximum
    )
    if plan.rates:
        _sustained(session, maximum, plan.seconds, result)
    result["state_bytes"] = contestant.state_bytes()
    if plan.surge_seconds:
        result["surge"] = session.surge(SURGE_BASE * maximum, plan.surge_seconds)
    if plan.flames is not None:
        session.sample_stacks(0.5 * maximum, plan.flames)
    if plan.recovery_seconds:
        rate = min(RECOVERY_RATE, 0.5 * maximum)
        try:
            result["recovery"] = session.recover(rate, plan.recovery_seconds)
        except RuntimeError as e:
            # What it did before the kill stands; that it did not come back is a result too.
            result["recovery"] = {"rate": round(rate), "error": str(e)[:300]}
            session.say(f"{contestant.title}: recovery: {e}")


def _sustained(session: Session, drained: float, seconds: float, result: dict[str, Any]) -> None:
    runs = result["tried"] = []

    def at_rate(rate: float) -> dict[str, Any]:
        run = session.at_rate(rate, seconds)
        runs.append(run)
        return run

    held = find_sustained(at_rate, drained)
    if held is None:
        session.say("no rate tried was sustained")
        return
    result["sustained"] = round(held)
    session.say(f"sustained: {held:,.0f} events/s")
    result["at_80_percent"] = session.at_rate(LOADED * held, seconds)
