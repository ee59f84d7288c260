"""Make the table of docs/reliability.md from raw results (`python -m tests.faults.report`)."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any, Final

import click

from tests.faults.matrix import RESULTS
from tests.faults.scenarios import FAULTS, LOADS

__all__ = ["PAGE", "in_page", "main", "read", "render"]

PAGE: Final = Path(__file__).resolve().parents[2] / "docs" / "reliability.md"
BEGIN: Final = "<!-- faults: python -m tests.faults.report --write -->"
END: Final = "<!-- /faults -->"
TIMES = ("resumed_seconds", "normal_seconds")
ROWS = ("rows", "rows_unlike_undisturbed")
DECISIONS = ("decided_again", "decided_otherwise")

HEAD = (
    "| fault | load | runs | events in flight (median) | lost | doubled | alerts wrong | "
    "recovery p50 / max (s) | all in time p50 / max (s) | memory max (MB) | did not recover | "
    "load average |\n"
    "|---|---|---|---|---|---|---|---|---|---|---|---|"
)
EMPTY = " |" * 9


def render(lines: list[dict[str, Any]]) -> str:
    """Return the table and what the comparisons say; faults without a run are listed as not run."""
    rows = [HEAD]
    for fault in FAULTS:
        mine = [line for line in lines if line.get("fault") == fault.name]
        if not mine:
            rows.append(f"| {fault.text} | | 0 | not run{EMPTY}")
        for load in LOADS:
            runs = [line for line in mine if line["load"] == load]
            if runs:
                rows.append(_row(fault.text, load, runs))
    return "\n".join([*rows, "", *_compared(lines)])


def _row(text: str, load: str, runs: list[dict[str, Any]]) -> str:
    well = [run for run in runs if not run["error"]]
    average = f"{statistics.median(run['load_average'] for run in runs):.0f}"
    failed = len(runs) - len(well)
    start = f"| {text} | {load} | {len(runs)} |"
    if not well:
        return f"{start} | | | | | | | {failed} | {average} |"
    in_flight = statistics.median(run["in_flight"] for run in well)
    counts = " | ".join(
        str(sum(run[name] for run in well)) for name in ("lost", "doubled", "alerts_wrong")
    )
    times = " | ".join(_times([run[n] for run in well if n in run]) for n in TIMES)
    memory = max(
        (run["memory_megabytes"] for run in well if "memory_megabytes" in run), default="-"
    )
    return f"{start} {in_flight:.0f} | {counts} | {times} | {memory} | {failed} | {average} |"


def _times(seconds: list[float]) -> str:
    """Return median and maximum; runs of the first harness did not measure them."""
    return f"{statistics.median(seconds):.1f} / {max(seconds):.1f}" if seconds else "-"


def _compared(lines: list[dict[str, Any]]) -> list[str]:
    """Say how the rows of whole jobs, all their faults behind them, compare with quiet runs."""
    compared = [line for line in lines if "compared" in line]
    if not compared:
        return ["No job was compared with an undisturbed run."]
    runs = [line for line in lines if line.get("fault") and not line["error"]]
    sums = {name: sum(line[name] for line in compared) for name in ROWS}
    sums |= {name: sum(line.get(name, 0) for line in runs) for name in DECISIONS}
    unclean = sum(not line["clean"] for line in compared)
    return [
        f"{len(compared)} jobs were compared, after all their faults, with an undisturbed run of "
        f"the same records in one process: {sums['rows']:,} rows, "
        f"{sums['rows_unlike_undisturbed']:,} with features that differ in any bit. Of "
        f"{sums['decided_again']:,} events that were decided again after a fault, "
        f"{sums['decided_otherwise']:,} were decided otherwise. Accounts of the whole log that "
        f"were not clean: {unclean}.",
    ]


def in_page(page: str, lines: list[dict[str, Any]]) -> str:
    """Return the page with the table of these results between its marks.

    Raises:
        ValueError: the page has no marks.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        msg = f"writing the table: expected {BEGIN!r} and {END!r} in the page, was neither"
        raise ValueError(msg)
    return f"{before}{BEGIN}\n\n{render(lines)}\n\n{END}{after}"


def read(results: Path) -> list[dict[str, Any]]:
    """Return the lines of a file of raw results."""
    return [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()]


@click.command()
@click.argument("results", type=click.Path(exists=True, path_type=Path), default=RESULTS)
@click.option("--write", is_flag=True, help="Put the table into docs/reliability.md.")
def main(results: Path, write: bool) -> None:
    """Print the table of a file of raw results, or put it into the docs.

    Example: python -m tests.faults.report --write
    """
    lines = read(results)
    if write:
        PAGE.write_text(in_page(PAGE.read_text(encoding="utf-8"), lines), encoding="utf-8")
    else:
        click.echo(render(lines))


if __name__ == "__main__":
    main()
