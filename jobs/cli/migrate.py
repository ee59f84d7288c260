"""`riskstream migrate`: create or upgrade ClickHouse tables and views."""

from __future__ import annotations

import json

import click

from connectors.clickhouse import ClickHouseClient
from connectors.local.stack import resolved_settings
from connectors.migrations import load_migrations, plan
from connectors.migrations import migrate as run_migrations
from jobs.cli.context import settings_of
from jobs.fraud.features import FRAUD_FEATURES

__all__ = ["migrate"]


@click.command()
@click.option("--dry-run", is_flag=True, help="Say what would be done and touch nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def migrate(ctx: click.Context, dry_run: bool, as_json: bool) -> None:
    """Create or upgrade ClickHouse tables and views; harmless when repeated.

    Example: riskstream migrate --dry-run
    """
    settings = resolved_settings(settings_of(ctx))
    client = ClickHouseClient(settings.clickhouse)
    names = list(FRAUD_FEATURES.names)
    steps = plan(client, names, load_migrations()) if dry_run else run_migrations(client, names)
    if as_json:
        listed = [
            {"step": step.name, "state": step.state, "statements": list(step.statements)}
            for step in steps
        ]
        click.echo(json.dumps({"database": client.database, "dry_run": dry_run, "steps": listed}))
        return
    for step in steps:
        click.echo(f"{step.state:>12}  {step.name}  ({len(step.statements)} statements)")
        if dry_run and step.state == "pending":
            for statement in step.statements:
                click.echo(f"{statement};\n")
