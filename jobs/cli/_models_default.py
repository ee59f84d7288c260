"""`riskstream models rebuild-default`: the recipe of the model that ships with riskstream."""

from __future__ import annotations

import datetime as dt
import tempfile
from pathlib import Path
from typing import Final

import click
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

__all__ = ["rebuild_default"]

# Thirty days fill the longest window before the first training day.
_HISTORY_DAYS: Final = 30
_TRAIN_DAYS, _DELAY_DAYS, _TEST_DAYS = 14, 7, 7
_SEED: Final = 20_200_101


def _simulate(path: Path, customers: int, terminals: int) -> dt.date:
    """Write simulated transactions and return the first training day."""
    from connectors.producers.simulator import DEFAULT_START_MS, Population, Simulation

    days = _HISTORY_DAYS + _TRAIN_DAYS + _DELAY_DAYS + _TEST_DAYS
    population = Population(seed=_SEED, customers=customers, terminals=terminals)
    writer: pq.ParquetWriter | None = None
    for batch in Simulation(population, days=days).batches():
        fraud = batch.is_fraud
        if fraud is None:
            fraud = np.zeros(len(batch), np.bool_)
        table = pa.table(
            {
                **{
                    name: pa.array(batch.text(name).to_list())
                    for name in ("event_id", "customer_id", "terminal_id")
                },
                "event_time_ms": batch.event_time_ms,
                "amount_minor": batch.amount_minor,
                "is_fraud": fraud,
            }
        )
        writer = writer or pq.ParquetWriter(path, table.schema)
        writer.write_table(table)
    if writer is not None:
        writer.close()
    start = dt.datetime.fromtimestamp(DEFAULT_START_MS / 1000, dt.UTC).date()
    return start + dt.timedelta(days=_HISTORY_DAYS)


@click.command("rebuild-default")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=None,
    help="Folder to write; models/artefacts/default by default.",
)
@click.option("--customers", type=click.IntRange(100), default=5_000, show_default=True)
@click.option("--terminals", type=click.IntRange(100), default=10_000, show_default=True)
def rebuild_default(out: Path | None, customers: int, terminals: int) -> None:
    """Train the model that ships with riskstream, on our own simulator, and write its folder.

    Equal versions of the libraries give equal bytes. No recorded data are used, so the model may be
    given away with the code.

    Example: riskstream models rebuild-default --out /tmp/default
    """
    from jobs.fraud.features import FRAUD_FEATURES
    from jobs.windows.offline import build_features
    from models.kinds import kind_named
    from models.package import package
    from models.protocol import Period
    from models.registry import ARTEFACTS, MANIFEST_FILE
    from models.training import Plan, prepare, train

    folder = out or ARTEFACTS / "default"
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "simulated.parquet"
        click.echo("simulating", err=True)
        start = _simulate(file, customers, terminals)
        click.echo("building features", err=True)
        table = build_features(file, FRAUD_FEATURES)
    data = prepare(table, table.customer_id, table.is_fraud)
    click.echo(f"training on {len(data.rows):,} rows of history", err=True)
    plan = Plan(
        kind=kind_named("lightgbm"),
        period=Period(start, _TRAIN_DAYS, _DELAY_DAYS, _TEST_DAYS),
        seed=7,
        parameters={"n_estimators": 120, "learning_rate": 0.05},
        # The simulator makes over a hundred frauds a day; the team that reads the demo can keep up.
        alert_budget=500,
    )
    run = train(data, plan)
    made = package(
        run,
        data,
        "fraud-default",
        FRAUD_FEATURES.version,
        # The instant after the last simulated day, not today: a rebuild gives the same manifest.
        created_at_ms=(int(data.event_time_ms.max()) // 86_400_000 + 1) * 86_400_000,
        source=f"riskstream simulator, seed {_SEED}, {customers} customers, {terminals} terminals",
        licence="Apache-2.0",
    )
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in {
        "model.onnx": made.model,
        **made.extra,
        MANIFEST_FILE: made.manifest.to_json().encode(),
    }.items():
        (folder / name).write_bytes(content)
    click.echo(f"{made.manifest.version}  {folder}")
    for name in ("auc_roc", "average_precision", "card_precision_at_100"):
        click.echo(f"{name:<22} {getattr(run.evaluation, name):.4f}", err=True)
