"""`riskstream plan`: what the next submission would do, before anything is touched."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Final

import click

from connectors.clickhouse import ClickHouseClient
from connectors.deployments import deployed_facts
from connectors.local.stack import resolved_settings
from connectors.migrations import load_migrations
from connectors.migrations import plan as plan_migrations
from connectors.settings import Settings
from jobs.cli.context import settings_of
from jobs.fraud.features import FRAUD_FEATURES
from jobs.fraud.in_force import memory_findings
from jobs.fraud.resources import facts
from jobs.plan import Facts, Finding, compare, reader_findings
from schemas.compatibility import Mode
from schemas.contract import contract
from schemas.registry import SchemaRegistry, open_registry, value_subject

__all__ = ["plan"]

CONTRACTS: Final = {
    "transactions": "card_transaction",
    "labels": "label",
    "control": "control",
    "alerts": "alert",
    "dead_letters": "dead_letter",
}
DASHBOARDS: Final = Path(__file__).resolve().parents[2] / "dashboards"
MARKS: Final = {"same": "  ", "change": "~ ", "refused": "! "}


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def plan(ctx: click.Context, as_json: bool) -> None:
    """Say what submitting the fraud job from here would do to schemas, state, tables, dashboards.

    Compares this release and these settings with the last submission. Touches nothing. Exit code 1
    when state would be lost or a schema would break its readers.

    Example: riskstream --set flink.shards=8 plan
    """
    settings = resolved_settings(settings_of(ctx))
    client = ClickHouseClient(settings.clickhouse)
    found = schema_findings(open_registry(settings.schemas), settings)
    remembered = deployed_facts(client, "fraud")
    deployed = None if remembered is None else Facts.from_dict(remembered)
    found += state_findings(deployed, facts(settings))
    if deployed is not None:
        found += memory_findings(settings)
    found += table_findings(client)
    if deployed is not None:
        found += reader_findings(deployed, facts(settings), _dashboards())
    refused = [finding for finding in found if finding.level == "refused"]
    if as_json:
        findings = [asdict(finding) for finding in found]
        click.echo(json.dumps({"safe": not refused, "findings": findings}))
    else:
        _print(found)
    sys.exit(1 if refused else 0)


def schema_findings(registry: SchemaRegistry, settings: Settings) -> list[Finding]:
    """Return what each contract of this release is to the versions its topic holds already."""
    found = []
    for topic, name in CONTRACTS.items():
        subject = value_subject(getattr(settings.kafka.topics, topic))
        text = contract(name)
        earlier = registry.versions(subject)
        problems = registry.check(subject, text, Mode.FULL_TRANSITIVE)
        if problems:
            listed = "; ".join(str(problem) for problem in problems)
            found.append(Finding("schemas", "refused", f"{subject}: {listed}"))
        elif not earlier:
            found.append(Finding("schemas", "change", f"{subject}: version 1 would be registered"))
        elif registry_has(text, [item.text for item in earlier]):
            found.append(Finding("schemas", "same", f"{subject}: version {earlier[-1].version}"))
        else:
            new = (
                f"version {earlier[-1].version + 1} would be registered; all versions stay readable"
            )
            found.append(Finding("schemas", "change", f"{subject}: {new}"))
    return found


def registry_has(text: str, versions: list[str]) -> bool:
    """Say whether a schema is among the versions, whatever its spacing."""
    wanted = json.loads(text)
    return any(json.loads(version) == wanted for version in versions)


def state_findings(deployed: Facts | None, wanted: Facts) -> list[Finding]:
    """Return what becomes of the job's state; nothing is known before its first submission."""
    if deployed is None:
        return [Finding("state", "change", "no submission is remembered here: it starts empty")]
    return compare(deployed, wanted)


def table_findings(client: ClickHouseClient) -> list[Finding]:
    """Return the migrations that would run."""
    steps = plan_migrations(client, list(FRAUD_FEATURES.names), load_migrations())
    pending = [
        Finding("tables", "change", f"{step.name}: {len(step.statements)} statement(s)")
        for step in steps
        if step.state == "pending"
    ]
    return pending or [Finding("tables", "same", "no migration is pending")]


def _dashboards() -> dict[str, str]:
    files = [*DASHBOARDS.glob("*.py"), *DASHBOARDS.glob("grafana/**/*.json")]
    return {str(file.relative_to(DASHBOARDS)): file.read_text(encoding="utf-8") for file in files}


def _print(found: list[Finding]) -> None:
    area = ""
    for finding in found:
        if finding.area != area:
            area = finding.area
            click.echo(area)
        click.echo(f"  {MARKS[finding.level]}{finding.text}")
    refused = sum(finding.level == "refused" for finding in found)
    click.echo(f"refused: {refused}" if refused else "safe: nothing would be lost")
