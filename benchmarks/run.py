"""Run the benchmarks and write `benchmarks/results/*.json` and the page `benchmarks/README.md`.

From the head of the tree:

    python -m benchmarks.run            # everything
    python -m benchmarks.run --quick    # a few minutes: small sizes, thread mode only
    python -m benchmarks.run --page     # write the page again from the results that are there
"""

from __future__ import annotations

import datetime as dt
import json
import math
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import click

from benchmarks.bare import bare_costs, per_record_costs, per_record_rows
from benchmarks.engine import run_engine
from benchmarks.page import write_page
from benchmarks.processes import machine
from benchmarks.stage_profile import fit_cost, measure_stages
from benchmarks.workload import SEED, Workload
from connectors.settings import load_settings
from jobs.fraud.features import FRAUD_FEATURES

__all__ = ["RESULTS", "check_equality", "main"]

RESULTS: Final = Path(__file__).parent / "results"
RATES: Final = (500.0, 2_000.0, 5_000.0, 10_000.0, 20_000.0)


class UnequalResultsError(RuntimeError):
    """Two contestants disagree: no timing of them means anything."""


def check_equality(payments: int) -> dict[str, object]:
    """Compare the stages with the per-record loop, feature by feature and score by score.

    The stream lasts for months, so that delayed windows fill. Raises UnequalResultsError.
    """
    from tests.support.fraud import Fraud, offline_settings  # noqa: PLC0415 - only for this check

    workload = Workload(payments, customers=30)
    wanted = per_record_rows(workload)
    with TemporaryDirectory() as folder:
        fraud = Fraud(offline_settings(Path(folder)), 2)
        fraud.send(workload.frames("card-transactions"), range(97, payments, 97))
        rows = fraud.rows()
    names = list(FRAUD_FEATURES.names)
    for row in rows:
        found = [*(_float(row[name]) for name in names), row["score"]]
        for name, one, other in zip([*names, "score"], found, wanted[row["event_id"]], strict=True):
            if not (one == other or (math.isnan(one) and math.isnan(other))):
                msg = f"event {row['event_id']!r}: {name} is {one!r} here and {other!r} per record"
                raise UnequalResultsError(msg)
    if len(rows) != payments:
        msg = f"{payments} payments gave {len(rows)} rows"
        raise UnequalResultsError(msg)
    return {"payments": payments, "values_equal": payments * (len(names) + 1), "tolerance": 0}


def _float(value: object) -> float:
    if isinstance(value, str):
        import struct  # noqa: PLC0415

        return float(struct.unpack("<d", bytes.fromhex(value))[0])
    return float(value)  # type: ignore[arg-type]


def _store(name: str, result: dict[str, Any]) -> None:
    RESULTS.mkdir(exist_ok=True)
    kept = {
        "measured_at": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "seed": SEED,
        **result,
    }
    (RESULTS / f"{name}.json").write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


@click.command()
@click.option("--quick", is_flag=True, help="Small sizes, thread mode only: about five minutes.")
@click.option("--page", "only_page", is_flag=True, help="Only write the page from kept results.")
@click.option("--without-stack", is_flag=True, help="Leave out what needs servers.")
@click.option("--home", default="/tmp/riskstream-bench", show_default=True)
def main(quick: bool, only_page: bool, without_stack: bool, home: str) -> None:
    """Measure; a contestant whose results differ is refused before any clock starts.

    Example: python -m benchmarks.run --quick
    """
    if not only_page:
        click.echo("comparing results", err=True)
        equal = check_equality(2_000 if quick else 20_000)
        click.echo("measuring parts alone", err=True)
        repeats = 5 if quick else 20
        bare = bare_costs(Workload(500 * (repeats + 1)), repeats=repeats)
        plain = per_record_costs(Workload(2_000), repeats=2 if quick else 5)
        _store("parts", {"equality": equal, "bare": bare, "per_record": plain})
        click.echo("measuring the stages", err=True)
        runs = measure_stages(
            sizes=(5, 50, 500) if quick else (5, 50, 500, 5_000), batches=40 if quick else 200,
            warm=5_000 if quick else 20_000,
        )  # fmt: skip
        _store("stages", {"runs": [run.summary() for run in runs], "model": fit_cost(runs)})
        if not without_stack:
            for mode in ("thread",) if quick else ("thread", "process"):
                settings = load_settings(overrides=[f"home={home}", f"flink.execution_mode={mode}"])
                result = run_engine(
                    settings,
                    20_000 if quick else 500_000,
                    (500.0, 2_000.0) if quick else RATES,
                    5.0 if quick else 20.0,
                    lambda text: click.echo(f"  {text}", err=True),
                )
                _store(f"engine_{mode}", result)
    write_page(RESULTS, Path(__file__).parent / "README.md")


if __name__ == "__main__":
    main()
