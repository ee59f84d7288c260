"""`riskstream simulate`: a seeded stream of transactions and labels, or a file of them."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import click

from connectors.local.stack import resolved_settings
from connectors.producers.files import write_transactions
from connectors.producers.labels import DAY_MS, LabelPolicy
from connectors.producers.pace import Pace
from connectors.producers.simulator import DEFAULT_START_MS, Population, Simulation
from jobs.cli._publishing import publish_source
from jobs.cli.context import settings_of
from jobs.cli.progress import progress_bar

__all__ = ["simulate"]


@click.command()
@click.option("--seed", type=click.IntRange(min=0), default=1, show_default=True)
@click.option("--customers", type=click.IntRange(min=1), default=5_000, show_default=True)
@click.option("--terminals", type=click.IntRange(min=1), default=10_000, show_default=True)
@click.option("--start", type=click.DateTime(["%Y-%m-%d"]), help="First day, UTC [2020-01-01].")
@click.option("--days", type=click.IntRange(min=1), help="Stop after this many simulated days.")
@click.option("--limit", type=click.IntRange(min=1), help="Stop after this many transactions.")
@click.option("--rate", type=float, help="Events per second, evenly spread.")
@click.option("--speed", type=float, help="Multiple of real time: 3600 plays an hour in a second.")
@click.option(
    "--labels", type=click.Choice(["frauds", "all", "none"]), default="frauds", show_default=True
)
@click.option(
    "--label-delay-days",
    type=click.FloatRange(min=0),
    default=6.0,
    show_default=True,
    help="Event time from a transaction to its label.",
)
@click.option("--flush-labels", is_flag=True, help="At the end publish the labels not due yet.")
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write a Parquet file with labels and fraud scenarios instead of publishing.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the summary as one JSON object.")
@click.pass_context
def simulate(
    ctx: click.Context,
    seed: int,
    customers: int,
    terminals: int,
    start: datetime | None,
    days: int | None,
    limit: int | None,
    rate: float | None,
    speed: float | None,
    labels: str,
    label_delay_days: float,
    flush_labels: bool,
    out: Path | None,
    as_json: bool,
) -> None:
    """Publish an endless, seeded stream of transactions and their labels; Ctrl-C ends it.

    The same seed gives the same stream, event ids included. Profiles of the same population:
    `riskstream profiles load --simulated`.

    Example: riskstream simulate --seed 7 --rate 2000
    """
    if rate is not None and speed is not None:
        msg = "give --rate or --speed, not both"
        raise click.UsageError(msg)
    if out is not None and days is None and limit is None:
        msg = "a file needs an end: give --days or --limit"
        raise click.UsageError(msg)
    start_ms = (
        DEFAULT_START_MS if start is None else int(start.replace(tzinfo=UTC).timestamp() * 1000)
    )
    simulation = Simulation(
        Population(seed, customers, terminals), start_ms=start_ms, days=days, limit=limit
    )
    if out is not None:
        with progress_bar(f"writing {out.name}", simulation.total) as advance:
            written = write_transactions(out, simulation, limit, advance)
        click.echo(
            json.dumps({"transactions": written, "file": str(out)})
            if as_json
            else f"{written:,} transactions in {out}"
        )
        return
    settings = resolved_settings(settings_of(ctx))
    policy = LabelPolicy(
        labels,  # type: ignore[arg-type]  # click holds it to the choices
        round(label_delay_days * DAY_MS),
        "simulator",
        flush_labels,
    )
    summary = publish_source(settings, simulation, "simulating", Pace(rate, speed), policy)
    if as_json:
        click.echo(json.dumps(summary.as_dict()))
    else:
        click.echo(
            f"{summary.transactions:,} transactions and {summary.labels:,} labels in "
            f"{summary.seconds:.1f} s ({summary.events_per_second:,.0f}/s)"
        )
