"""Try every fault on a real stack under load and write down what came of it.

    python -m tests.faults.matrix --only kill-taskmanager --runs 20
    python -m tests.faults.matrix --only kill-kafka --load burst
    python -m tests.faults.report

One line of JSON a run is added to benchmarks/results/faults.jsonl; exit code 1 when anything was
lost, doubled or different from an undisturbed run, or did not come back by itself.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
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
from tests.faults.links import linked
from tests.faults.load import LoadError
from tests.faults.scenarios import FAULTS, LOADS, Fault, in_burst
from tests.faults.stand import Stand, StandError, stack_settings
from tests.faults.variants import VARIANTS

__all__ = ["RESULTS", "main"]

RESULTS: Final = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "faults.jsonl"
"""Raw results, one run a line."""

RATE: Final = 400.0
QUOTA_MEGABYTES: Final = 512
# Rows that differ from an undisturbed run, as evidence.
SHOWN: Final = 20


@click.command()
@click.option("--only", "names", multiple=True, type=click.Choice([fault.name for fault in FAULTS]))
@click.option("--runs", type=click.IntRange(min=1), help="Runs a fault; its own number by default.")
@click.option("--minutes", type=float, help="Begin no run after this long.")
@click.option("--rate", type=float, default=RATE, show_default=True, help="Payments a second.")
@click.option("--load", type=click.Choice(LOADS), default="steady", show_default=True)
@click.option(
    "--customers", type=int, help="Fewer press event time together; see tests.faults.load."
)
@click.option("--home", type=click.Path(path_type=Path), help="State directory of the stack.")
@click.option(
    "--results", type=click.Path(path_type=Path), default=RESULTS, help="Where to add to."
)
@click.option("--json", "as_json", is_flag=True, help="Print each run as JSON.")
def main(
    names: tuple[str, ...],
    runs: int | None,
    minutes: float | None,
    rate: float,
    load: str,
    customers: int | None,
    home: Path | None,
    results: Path,
    as_json: bool,
) -> None:
    """Run the matrix: in turns, each fault once, until each has had its runs.

    Example: python -m tests.faults.matrix --only kill-redis --runs 3
    """
    chosen = [fault for fault in FAULTS if not names or fault.name in names]
    until = None if minutes is None else time.monotonic() + minutes * 60
    matrix = Matrix(rate, load, customers, runs, until, results, as_json)
    bad = 0
    for quota in (False, True):
        faults = [fault for fault in chosen if (fault.needs == "quota") == quota]
        if faults:
            bad += matrix.on_a_stack(faults, home, quota=quota)
    sys.exit(1 if bad else 0)


class Matrix:
    """One invocation: how the faults are tried and where results go."""

    def __init__(
        self,
        rate: float,
        load: str,
        customers: int | None,
        runs: int | None,
        until: float | None,
        results: Path,
        as_json: bool,
    ) -> None:
        self._rate = rate
        self._load = load
        self._customers = customers
        self._runs = runs
        self._until = until
        self._results = results
        self._as_json = as_json

    def on_a_stack(self, faults: list[Fault], home: Path | None, *, quota: bool) -> int:
        """Try the faults on one stack; return how many runs went wrong."""
        with (
            tempfile.TemporaryDirectory(prefix="riskstream-faults-") as folder,
            limited((home or Path(folder)) / "flink") if quota else contextlib.nullcontext(),
        ):
            settings = stack_settings(home or Path(folder))
            stack = LocalStack(settings)
            stack.up(lambda part: click.echo(f"{part.name} is up", err=True))
            try:
                return sum(
                    self._on_a_job(settings, list(group))
                    for _, group in groupby(sorted(faults, key=_wanted_job), key=_wanted_job)
                )
            finally:
                stack.down(purge=True)

    def _on_a_job(self, settings: Settings, faults: list[Fault]) -> int:
        """Try faults that want the same job on one job under one load."""
        first = faults[0]
        name = f"m{os.getpid()}-{first.name}"
        with contextlib.ExitStack() as cleanup:
            links, addresses = (
                cleanup.enter_context(linked(settings)) if first.needs == "links" else ({}, {})
            )
            stand = Stand(
                settings,
                name,
                self._rate,
                addresses,
                customers=self._customers,
                **first.flink,
            )
            stand.links = links
            stand.variant = first.needs if first.needs in VARIANTS else None
            cleanup.callback(stand.stop)
            stand.start()
            bad = 0
            for fault, run in self._turns(faults):
                if self._until is not None and time.monotonic() > self._until:
                    break
                result = self._try(stand, fault, run)
                self._write(result)
                click.echo(json.dumps(result) if self._as_json else _line(result), err=True)
                if result["error"]:
                    return bad + 1
                bad += not result["clean"]
            return bad + self._compare(stand, [fault.name for fault in faults])

    def _turns(self, faults: list[Fault]) -> Iterator[tuple[Fault, int]]:
        wanted = {fault.name: self._runs or fault.runs for fault in faults}
        for run in range(max(wanted.values())):
            yield from ((fault, run) for fault in faults if run < wanted[fault.name])

    def _compare(self, stand: Stand, faults: list[str]) -> int:
        """Compare what the job computed through all its faults with an undisturbed run."""
        stand.load.stop()
        audit = stand.audit(whole=True)
        unlike = stand.different_features()
        compared = {
            "compared": sorted(set(faults)),
            "load": self._load,
            "customers": self._customers,
            "rows": audit.total("scored"),
            "rows_unlike_undisturbed": len(unlike),
            "unlike": unlike[:SHOWN],
            "lag": audit.total("missing"),
            "clean": audit.clean,
        }
        self._write(compared)
        click.echo(json.dumps(compared), err=True)
        return bool(unlike) + (not audit.clean)

    def _try(self, stand: Stand, fault: Fault, run: int) -> dict[str, Any]:
        result: dict[str, Any] = {
            "fault": fault.name,
            "run": run,
            "at_ms": time.time_ns() // 1_000_000,
            "load": self._load,
            "rate": self._rate,
            "customers": self._customers,
            "load_average": round(os.getloadavg()[0], 1),
            "error": "",
        }
        happen = in_burst(fault.happen) if self._load == "burst" else fault.happen
        try:
            recovery = stand.suffer(lambda: happen(stand), from_its_end=fault.from_its_end)
            audit = stand.audit()
            again, otherwise = stand.decided_again()
            if audit.alerts_wrong:
                wrong = [*audit.alerts_unexpected, *audit.alerts_missing]
                click.echo(json.dumps(stand.versions_of(wrong), indent=1), err=True)
        except (StandError, LoadError) as e:
            return result | {"error": str(e)[:2000]}
        finally:
            stand.keep_every_version(keep=False)
        return result | {
            "in_flight": recovery.events_in_flight,
            "resumed_seconds": recovery.resumed_seconds,
            "normal_seconds": recovery.normal_seconds,
            "calm": recovery.calm,
            "memory_megabytes": recovery.memory_megabytes,
            "restarts": dict(recovery.restarts),
            "offsets_in": audit.total("offsets_in"),
            "lost": audit.total("missing"),
            "doubled": audit.total("doubled") + audit.unexpected,
            "alerts_wrong": audit.alerts_wrong,
            "superseded_alerts": audit.superseded_alerts,
            "redelivered_alerts": audit.redelivered_alerts,
            "decided_again": again,
            "decided_otherwise": otherwise,
            "clean": audit.clean,
        }

    def _write(self, line: dict[str, Any]) -> None:
        self._results.parent.mkdir(parents=True, exist_ok=True)
        with self._results.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, sort_keys=True) + "\n")


def _wanted_job(fault: Fault) -> tuple[str, list[tuple[str, str]]]:
    return fault.needs or "", sorted((key, str(value)) for key, value in fault.flink.items())


@contextlib.contextmanager
def limited(folder: Path) -> Iterator[None]:
    """Give a folder a disk of its own that is soon full; needs the right to mount."""
    folder.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={QUOTA_MEGABYTES}m", "tmpfs", str(folder)]
    subprocess.run(mount, check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


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
