"""Try every fault on a real stack under steady load and write down what came of it.

    python -m tests.faults.matrix --only kill-taskmanager --runs 20
    python -m tests.faults.report

One line of JSON a run is added to benchmarks/results/faults.jsonl; exit code 1 when anything was
lost, doubled or different from an undisturbed run, or did not come back by itself.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any, Final

import click

from connectors.local.stack import LocalStack
from connectors.settings import Settings
from tests.faults.scenarios import FAULTS, Fault
from tests.faults.stand import Stand, StandError, stack_settings

__all__ = ["RESULTS", "main"]

RESULTS: Final = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "faults.jsonl"
"""Raw results, one run a line."""

MAIN: Final = frozenset({"kill-taskmanager", "kill-jobmanager"})
RATE: Final = 400.0


@click.command()
@click.option("--only", "names", multiple=True, type=click.Choice([fault.name for fault in FAULTS]))
@click.option("--runs", type=click.IntRange(min=1), help="Runs a fault; 20 or 5 by default.")
@click.option("--minutes", type=float, help="Begin no run after this long.")
@click.option("--rate", type=float, default=RATE, show_default=True, help="Payments a second.")
@click.option("--home", type=click.Path(path_type=Path), help="State directory of the stack.")
@click.option("--json", "as_json", is_flag=True, help="Print each run as JSON.")
def main(
    names: tuple[str, ...],
    runs: int | None,
    minutes: float | None,
    rate: float,
    home: Path | None,
    as_json: bool,
) -> None:
    """Run the matrix: in turns, each fault once, until each has had its runs.

    Example: python -m tests.faults.matrix --only kill-redis --runs 3
    """
    chosen = [fault for fault in FAULTS if not names or fault.name in names]
    until = None if minutes is None else time.monotonic() + minutes * 60
    bad = 0
    with tempfile.TemporaryDirectory(prefix="riskstream-faults-") as folder:
        settings = stack_settings(home or Path(folder))
        stack = LocalStack(settings)
        stack.up(lambda part: click.echo(f"{part.name} is up", err=True))
        try:
            for _, group in groupby(chosen, key=lambda fault: sorted(fault.flink.items())):
                turns = list(_turns(list(group), runs))
                bad += _try_all(settings, turns, rate, until, as_json)
        finally:
            stack.down(purge=True)
    sys.exit(1 if bad else 0)


def _turns(faults: list[Fault], runs: int | None) -> Iterator[tuple[Fault, int]]:
    wanted = {fault.name: runs or (20 if fault.name in MAIN else 5) for fault in faults}
    for run in range(max(wanted.values())):
        yield from ((fault, run) for fault in faults if run < wanted[fault.name])


def _try_all(
    settings: Settings,
    turns: list[tuple[Fault, int]],
    rate: float,
    until: float | None,
    as_json: bool,
) -> int:
    """Try faults that want the same job on one job under one load; return how many went wrong."""
    first = turns[0][0]
    stand = Stand(settings, f"m{os.getpid()}-{first.name}", rate, **first.flink)
    bad = 0
    try:
        stand.start()
        for fault, run in turns:
            if until is not None and time.monotonic() > until:
                break
            result = _try(stand, fault, run, rate)
            _write(result)
            click.echo(json.dumps(result) if as_json else _line(result), err=not as_json)
            if result["error"]:
                return bad + 1
            bad += not result["clean"]
        return bad + _compare(stand, [fault.name for fault, _ in turns])
    finally:
        stand.stop()


def _compare(stand: Stand, faults: list[str]) -> int:
    """Compare what the job computed through all its faults with an undisturbed run."""
    stand.load.stop()
    audit = stand.audit()
    unlike = stand.different_features()
    compared = {
        "compared": sorted(set(faults)),
        "rows": audit.total("scored"),
        "rows_unlike_undisturbed": unlike,
        "clean": audit.clean,
    }
    _write(compared)
    click.echo(json.dumps(compared), err=True)
    return bool(unlike) + (not audit.clean)


def _try(stand: Stand, fault: Fault, run: int, rate: float) -> dict[str, Any]:
    result: dict[str, Any] = {
        "fault": fault.name,
        "run": run,
        "at_ms": time.time_ns() // 1_000_000,
        "rate": rate,
        "load_average": round(os.getloadavg()[0], 1),
        "error": "",
    }
    try:
        recovery = stand.suffer(lambda: fault.happen(stand))
        audit = stand.audit()
    except StandError as e:
        return result | {"error": str(e)[:2000]}
    return result | {
        "in_flight": recovery.events_in_flight,
        "resumed_seconds": recovery.resumed_seconds,
        "normal_seconds": recovery.normal_seconds,
        "offsets_in": audit.total("offsets_in"),
        "lost": audit.total("missing"),
        "doubled": audit.total("doubled") + audit.unexpected,
        "alerts_wrong": audit.alerts_wrong,
        "redelivered_alerts": audit.redelivered_alerts,
        "clean": audit.clean,
    }


def _write(line: dict[str, Any]) -> None:
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line, sort_keys=True) + "\n")


def _line(result: dict[str, Any]) -> str:
    if result["error"]:
        return f"{result['fault']} #{result['run']}: {result['error']}"
    return (
        f"{result['fault']} #{result['run']}: resumed {result['resumed_seconds']:.1f} s, "
        f"normal {result['normal_seconds']:.1f} s, {result['in_flight']} in flight, "
        f"lost {result['lost']}, doubled {result['doubled']}, alerts wrong {result['alerts_wrong']}"
    )


if __name__ == "__main__":
    main()
