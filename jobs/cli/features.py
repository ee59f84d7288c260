"""`riskstream features`: explain, build, trace and verify what a model sees."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from jobs.cli.context import settings_of
from jobs.windows.loading import load_feature_set

__all__ = ["features"]

DEFAULT = "jobs/fraud/features.py"
_features_option = click.option(
    "--features",
    "declaration",
    default=DEFAULT,
    show_default=True,
    metavar="FILE[:NAME]",
    help="The Python file that declares the feature set.",
)
_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group(epilog="Example: riskstream features explain --json")
def features() -> None:
    """Explain, trace, build and verify features."""


@features.command(epilog="Example: riskstream features explain --features jobs/fraud/features.py")
@_features_option
@_json_option
def explain(declaration: str, as_json: bool) -> None:
    """Say what each feature means, over which window, and what it is without data."""
    declared = load_feature_set(declaration)
    rows = declared.explain()
    if as_json:
        click.echo(
            json.dumps({"name": declared.name, "version": declared.version, "features": rows})
        )
        return
    table = Table(title=f"{declared.name}, version {declared.version}", title_justify="left")
    for column in ("name", "window", "default", "meaning"):
        table.add_column(column, no_wrap=column == "name")
    for row in rows:
        table.add_row(row["name"], row["window"], row["default"], row["meaning"])
    _print(table)


@features.command(
    epilog="Example: riskstream features build transactions.parquet --out out.parquet"
)
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@_features_option
@click.option(
    "--out",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="Where to write; the ending .parquet or .csv decides the format.",
)
@click.option(
    "--map",
    "renamed",
    multiple=True,
    metavar="NAME=COLUMN",
    help="Our name for a column of the file, as in --map customer_id=card (repeatable).",
)
@click.option(
    "--label-delay",
    default="7d",
    show_default=True,
    help="How long after its event a label is known, as in 12h or 7d.",
)
@_json_option
def build(
    file: Path,
    declaration: str,
    out: Path,
    renamed: tuple[str, ...],
    label_delay: str,
    as_json: bool,
) -> None:
    """Compute the features of recorded events, labels known only when they would have been.

    Columns are found under our names, those of the fraud handbook (TRANSACTION_ID,
    TX_DATETIME, ...) and those given with --map. Rows are taken in file order, as a topic would be.
    """
    from jobs.cli.progress import progress_bar
    from jobs.windows.durations import DAY_MS, duration_ms
    from jobs.windows.feature_files import write_features
    from jobs.windows.tables import row_count

    try:
        delay_days = duration_ms(label_delay) / DAY_MS
    except ValueError as e:
        raise click.BadParameter(str(e), param_hint="--label-delay") from e
    names = {}
    for item in renamed:
        name, separator, column = item.partition("=")
        if not separator:
            msg = f"expected NAME=COLUMN, was {item!r}"
            raise click.BadParameter(msg, param_hint="--map")
        names[name] = column
    declared = load_feature_set(declaration)
    began = time.perf_counter()
    with progress_bar("features", row_count(file)) as advance:
        summary = write_features(file, out, declared, delay_days, names, advance)
    seconds = time.perf_counter() - began
    counts = asdict(summary)
    first, last = (_utc(counts.pop(f"{end}_event_ms")) for end in ("first", "last"))
    report = {
        **counts,
        "first_event": first,
        "last_event": last,
        "out": str(out),
        "feature_set_version": declared.version,
        "seconds": round(seconds, 3),
        "rows_per_minute": round(summary.rows / seconds * 60) if seconds else 0,
    }
    if as_json:
        click.echo(json.dumps(report))
        return
    click.echo(
        f"{summary.rows:,} rows from {first} to {last}, {len(declared.names)} features -> {out} "
        f"({seconds:.1f} s, {report['rows_per_minute']:,} rows/min; {summary.late} late, "
        f"{summary.duplicates} duplicate, {summary.too_late} too late)"
    )


@features.command(epilog="Example: riskstream features trace 12345 customer_amount_mean_7d")
@click.argument("event_id")
@click.argument("feature")
@_features_option
@_json_option
@click.pass_context
def trace(ctx: click.Context, event_id: str, feature: str, declaration: str, as_json: bool) -> None:
    """Re-derive FEATURE of the scored event EVENT_ID and list the events behind it.

    Exit code 1 when the value on record is not the value derived.
    """
    from connectors.clickhouse import ClickHouseClient
    from connectors.local.stack import resolved_settings
    from jobs.cli._feature_records import events_of_key, labels_of_key, recorded_event
    from jobs.windows.lineage import feature_named, window_of
    from jobs.windows.lineage import trace as trace_feature

    declared = load_feature_set(declaration)
    column = feature_named(declared, feature)
    client = ClickHouseClient(resolved_settings(settings_of(ctx)).clickhouse)
    event = recorded_event(client, declared, event_id)
    history, labels = [], []
    if column is not None:
        key = declared.entity(column.entity).key
        since, _ = window_of(column, event.event_time_ms)
        value = str(event.values[key])
        history = events_of_key(client, declared, key, value, since)
        labels = labels_of_key(client, key, value, since)
    found = trace_feature(declared, feature, event, history, labels)
    if as_json:
        click.echo(
            json.dumps(
                {
                    "event_id": event_id,
                    "feature": feature,
                    "key": found.key,
                    "start_ms": found.start_ms,
                    "end_ms": found.end_ms,
                    "derived": found.derived,
                    "recorded": found.recorded,
                    "equal": found.equal,
                    "events": [
                        {
                            "event_id": e.event_id,
                            "event_time_ms": e.event_time_ms,
                            "topic": e.topic,
                            "partition": e.partition,
                            "offset": e.offset,
                            "fraud": e.event_id in found.labelled,
                        }
                        for e in found.events
                    ],
                }
            )
        )
    else:
        table = Table(
            title=f"{feature} of {event_id}: {found.derived!r}, recorded {found.recorded!r}",
            title_justify="left",
        )
        for name in ("event", "time", "topic", "partition", "offset", "fraud"):
            table.add_column(name)
        for e in found.events:
            fraud = "yes" if e.event_id in found.labelled else ""
            place = (e.topic, str(e.partition), str(e.offset))
            table.add_row(e.event_id, _utc(e.event_time_ms), *place, fraud)
        _print(table)
    sys.exit(0 if found.equal else 1)


@features.command(epilog="Example: riskstream features verify --json")
@_features_option
@click.option("--limit", type=click.IntRange(min=1), default=20, help="Differences to print.")
@_json_option
@click.pass_context
def verify(ctx: click.Context, declaration: str, limit: int, as_json: bool) -> None:
    """Compute every scored event again from Kafka and compare with ClickHouse, to the bit.

    Reads both topics from their start, so Kafka must still hold what the windows reach. Exit code 1
    when there is any difference.
    """
    from connectors.clickhouse import ClickHouseClient
    from connectors.local.stack import resolved_settings
    from jobs.cli._feature_records import recorded_run
    from jobs.cli.progress import progress_bar
    from jobs.windows.verify import differences

    declared = load_feature_set(declaration)
    settings = resolved_settings(settings_of(ctx))
    client = ClickHouseClient(settings.clickhouse)
    with progress_bar("reading", None) as advance:
        events, labels = recorded_run(settings, client, declared, advance)
    compared = sum(bool(event.features) for event in events)
    if not compared:
        click.echo(f"no event was scored with feature set {declared.version}", err=True)
        sys.exit(1)
    found = differences(declared, events, labels)
    if as_json:
        listed = [asdict(item) for item in found[:limit]]
        answer = {"events": compared, "labels": len(labels), "differences": len(found)}
        click.echo(json.dumps({**answer, "first": listed}))
    else:
        values = compared * len(declared.names)
        click.echo(f"{compared:,} events, {values:,} values: {len(found):,} differ")
        for item in found[:limit]:
            click.echo(
                f"  {item.event_id} ({item.topic}/{item.partition}/{item.offset}) {item.feature}: "
                f"online {item.online!r}, offline {item.offline!r}"
            )
    sys.exit(1 if found else 0)


def _print(table: Table) -> None:
    # A pipe has no width: give the sentences room.
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def _utc(epoch_ms: int) -> str:
    return datetime.fromtimestamp(epoch_ms / 1000, UTC).isoformat(timespec="milliseconds")
