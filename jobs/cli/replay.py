"""`riskstream replay`: publish recorded transactions as Avro at a chosen speed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import click

from connectors.local.stack import resolved_settings
from connectors.producers.labels import DAY_MS, LabelPolicy
from connectors.producers.pace import Pace
from connectors.producers.source import FileSource
from jobs.cli._publishing import publish_source
from jobs.cli.context import settings_of

__all__ = ["replay"]


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--rate", type=float, help="Events per second, evenly spread.")
@click.option("--speed", type=float, help="Multiple of real time: 3600 plays an hour in a second.")
@click.option("--limit", type=click.IntRange(min=1), help="At most this many transactions.")
@click.option(
    "--labels",
    type=click.Choice(["frauds", "all", "none"]),
    default="frauds",
    show_default=True,
    help="Which transactions get a label on the label topic.",
)
@click.option(
    "--label-delay-days",
    type=click.FloatRange(min=0),
    default=6.0,
    show_default=True,
    help="Event time from a transaction to its label.",
)
@click.option("--flush-labels", is_flag=True, help="At the end publish the labels not due yet.")
@click.option("--currency", default="EUR", show_default=True, help="For files that name none.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as one JSON object.")
@click.pass_context
def replay(
    ctx: click.Context,
    file: Path,
    rate: float | None,
    speed: float | None,
    limit: int | None,
    labels: Literal["frauds", "all", "none"],
    label_delay_days: float,
    flush_labels: bool,
    currency: str,
    as_json: bool,
) -> None:
    """Publish the transactions of FILE (Parquet or CSV) as Avro, flat out or at a pace.

    Records are keyed by customer. Labels follow on the label topic when stream time passes theirs.

    Example: riskstream replay transactions.parquet --rate 2000
    """
    if rate is not None and speed is not None:
        msg = "give --rate or --speed, not both"
        raise click.UsageError(msg)
    settings = resolved_settings(settings_of(ctx))
    source = FileSource(file, limit=limit, currency=currency)
    summary = publish_source(
        settings,
        source,
        f"publishing {file.name}",
        Pace(rate, speed),
        LabelPolicy(labels, round(label_delay_days * DAY_MS), flush=flush_labels),
    )
    if as_json:
        click.echo(json.dumps(summary.as_dict()))
    else:
        click.echo(
            f"{summary.transactions:,} transactions and {summary.labels:,} labels in "
            f"{summary.seconds:.1f} s ({summary.events_per_second:,.0f}/s); "
            f"{summary.labels_not_due:,} labels were not due yet"
        )
