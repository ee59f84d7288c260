"""`riskstream alerts tail`: follow alerts as they come."""

from __future__ import annotations

import json

import click

from connectors.local.stack import resolved_settings
from connectors.readers import TopicReader
from jobs.cli._lines import DECISION_COLOURS, alert_line
from jobs.cli.context import settings_of
from schemas.avro import RecordDecoder
from schemas.reasons import AvroRecordError
from schemas.registry import open_registry

__all__ = ["alerts"]


@click.group()
def alerts() -> None:
    """Follow alerts as they come.

    Example: riskstream alerts tail --json
    """


@alerts.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")
@click.option("--limits", is_flag=True, help="Alerts of limits and markets instead of payments.")
@click.option("--from-beginning", is_flag=True, help="Start with the oldest alert kept.")
@click.option("--count", type=click.IntRange(min=1), help="Stop after this many alerts.")
@click.option("--timeout", type=float, help="Stop when none came for this many seconds.")
@click.option(
    "--decision",
    multiple=True,
    help="Only alerts with this decision, as in block or breach (repeatable).",
)
@click.pass_context
def tail(
    ctx: click.Context,
    as_json: bool,
    limits: bool,
    from_beginning: bool,
    count: int | None,
    timeout: float | None,
    decision: tuple[str, ...],
) -> None:
    """Print alerts as they come, one a line; Ctrl-C ends it.

    Exit 1 when --count was given and fewer came before --timeout.

    Example: riskstream alerts tail --from-beginning --count 10
    """
    settings = resolved_settings(settings_of(ctx))
    decoder = RecordDecoder(open_registry(settings.schemas))
    reader = TopicReader(
        settings.kafka, settings.kafka.topics.name("limit_alerts" if limits else "alerts")
    )
    shown = 0
    try:
        for record in reader.follow(from_beginning=from_beginning, idle_seconds=timeout):
            try:
                alert = decoder.decode(record.value)
            except AvroRecordError as e:
                click.echo(f"alert at {record.partition}:{record.offset} unreadable: {e}", err=True)
                continue
            if decision and alert.get("decision") not in decision:
                continue
            if as_json:
                click.echo(json.dumps(alert))
            else:
                click.secho(alert_line(alert), fg=DECISION_COLOURS.get(alert["decision"]))
            shown += 1
            if count is not None and shown >= count:
                return
    except KeyboardInterrupt:
        return
    finally:
        reader.close()
    if count is not None:
        click.echo(f"{shown} of {count} alerts came before the time-out", err=True)
        ctx.exit(1)
