"""Render the table of docs/reliability.md from the raw results: `python -m tests.faults.report`."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import click

from tests.faults.matrix import RESULTS
from tests.faults.scenarios import FAULTS

__all__ = ["main", "render"]

HEAD = (
    "| fault | runs | events in flight (median) | lost | doubled | alerts wrong | "
    "recovery p50 / max (s) | did not recover | load average |\n"
    "|---|---|---|---|---|---|---|---|---|"
)


def render(lines: list[dict[str, Any]]) -> str:
    """Return the table; faults without a run are listed as not run."""
    rows = [HEAD]
    for fault in FAULTS:
        runs = [line for line in lines if line.get("fault") == fault.name]
        rows.append(_row(fault.text, runs))
    return "\n".join(rows)


def _row(text: str, runs: list[dict[str, Any]]) -> str:
    if not runs:
        return f"| {text} | 0 | not run | | | | | | |"
    well = [run for run in runs if not run["error"]]
    load = f"{statistics.median(run['load_average'] for run in runs):.0f}"
    failed = len(runs) - len(well)
    if not well:
        return f"| {text} | {len(runs)} | | | | | | {failed} | {load} |"
    seconds = [run["resumed_seconds"] for run in well]
    in_flight = statistics.median(run["in_flight"] for run in well)
    counts = " | ".join(
        str(max(run[name] for run in well)) for name in ("lost", "doubled", "alerts_wrong")
    )
    recovery = f"{statistics.median(seconds):.1f} / {max(seconds):.1f}"
    return f"| {text} | {len(runs)} | {in_flight:.0f} | {counts} | {recovery} | {failed} | {load} |"


@click.command()
@click.argument("results", type=click.Path(exists=True, path_type=Path), default=RESULTS)
def main(results: Path) -> None:
    """Print the table of a file of raw results.

    Example: python -m tests.faults.report
    """
    lines = [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()]
    click.echo(render(lines))


if __name__ == "__main__":
    main()
