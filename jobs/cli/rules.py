"""`riskstream rules`: check rule files and publish them to a running job."""

from __future__ import annotations

import getpass
import json
import time
from pathlib import Path
from typing import Any

import click

from jobs.cli.context import settings_of
from jobs.fraud.rule_columns import rule_catalogue
from jobs.rules.errors import RuleSetError
from jobs.rules.ruleset import RuleSet
from models.control import make_control

__all__ = ["RULES_ARGUMENT", "rules"]

RULES_ARGUMENT = "rules"
"""Name of the control record's argument that carries the YAML text."""

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
file_argument = click.argument(
    "file", required=False, type=click.Path(exists=True, dir_okay=False, path_type=Path)
)


@click.group(epilog="Example: riskstream rules check jobs/fraud/rules.yaml")
def rules() -> None:
    """Check and publish rule sets. The language: docs/guide/rules.md."""


@rules.command(epilog="Example: riskstream rules check my-rules.yaml --json")
@file_argument
@json_option
@click.pass_context
def check(ctx: click.Context, file: Path | None, as_json: bool) -> None:
    """Check FILE (the settings' rule file by default): every mistake at once, exit 1 if any."""
    path = file or settings_of(ctx).fraud.rules_file
    try:
        rule_set = RuleSet.load(path, rule_catalogue())
    except RuleSetError as e:
        if as_json:
            click.echo(json.dumps({"file": str(path), "ok": False, "problems": e.problems}))
        else:
            click.echo(f"riskstream: {e}", err=True)
        ctx.exit(1)
    if as_json:
        click.echo(json.dumps({"file": str(path), "ok": True, **_describe(rule_set)}))
        return
    for rule in rule_set.rules:
        click.echo(f"{rule.then.name.lower():8}{rule.id:32}{rule.title}")
    for rule in rule_set.disabled:
        click.echo(f"{'off':8}{rule.id:32}{rule.title}")
    click.echo(f"{path}: {len(rule_set)} rules in force, version {rule_set.version}", err=True)


@rules.command(epilog="Example: riskstream rules columns")
@json_option
def columns(as_json: bool) -> None:
    """List the columns that a rule may name, and what each holds."""
    catalogue = rule_catalogue()
    if as_json:
        click.echo(json.dumps(catalogue))
        return
    for name, kind in catalogue.items():
        click.echo(f"{name:36}{kind if isinstance(kind, str) else ' | '.join(kind)}")


@rules.command(epilog="Example: riskstream rules publish my-rules.yaml --yes")
@file_argument
@click.option("--yes", is_flag=True, help="Publish; without it only say what would be published.")
@click.option("--by", default=None, help="Who gives the order; the user's name by default.")
@json_option
@click.pass_context
def publish(
    ctx: click.Context, file: Path | None, yes: bool, by: str | None, as_json: bool
) -> None:
    """Put the rules of FILE in force on the running job, from the next record on.

    The file is checked first. The job checks it again when the control record arrives and keeps the
    rules that it has if it refuses the new ones.
    """
    # Checking a file needs no Kafka client; only this command loads it.
    from connectors.control import publish_control
    from connectors.local.stack import resolved_settings

    settings = settings_of(ctx)
    path = file or settings.fraud.rules_file
    rule_set = RuleSet.load(path, rule_catalogue())
    summary: dict[str, Any] = {
        "file": str(path),
        "topic": settings.kafka.topics.name("control"),
        **_describe(rule_set),
        "published": yes,
    }
    if yes:
        record = make_control(
            "activate_rules",
            f"{rule_set.name}/{rule_set.version}",
            by or getpass.getuser(),
            time.time_ns() // 1_000_000,
            {RULES_ARGUMENT: path.read_text(encoding="utf-8")},
        )
        publish_control(resolved_settings(settings), record.to_record())
        summary["control_id"] = record.control_id
    if as_json:
        click.echo(json.dumps(summary))
    else:
        done = "published" if yes else "would publish (add --yes)"
        click.echo(
            f"{done} {rule_set.name} version {rule_set.version}, {len(rule_set)} rules, to "
            f"{summary['topic']}"
        )


def _describe(rule_set: RuleSet) -> dict[str, Any]:
    return {
        "name": rule_set.name,
        "version": rule_set.version,
        "rules": [
            {"id": rule.id, "then": rule.then.name.lower(), "weight": rule.weight}
            for rule in rule_set.rules
        ],
        "disabled": [rule.id for rule in rule_set.disabled],
        "columns": sorted(rule_set.columns_needed),
    }
