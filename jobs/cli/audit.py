"""`riskstream audit`: prove from Kafka and ClickHouse that every offset was accounted for once."""

from __future__ import annotations

import json
import sys
import time
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime, timedelta

import click
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from connectors.account_history import remember_account
from connectors.clickhouse import ClickHouseClient
from connectors.local.stack import resolved_settings
from connectors.settings import Settings
from jobs.audit import LISTED, Audit
from jobs.cli.context import settings_of
from jobs.fraud.accounts import audit_fraud
from jobs.fraud.alert_repair import publish_again, rebuild_missing
from schemas.errors import RetryableError

__all__ = ["audit"]

JOB = "fraud"
EPILOG = """Example: riskstream audit --since 2026-01-31T09:00 --json

Exit code 0 only when nothing is missing, doubled or wrongly alerted."""


@click.command(epilog=EPILOG)
@click.option("--since", type=click.DateTime(), help="Published at or after this time (UTC).")
@click.option("--until", type=click.DateTime(), help="Published before this time (UTC).")
@click.option("--from-offset", type=click.IntRange(min=0), help="First offset of each partition.")
@click.option("--to-offset", type=click.IntRange(min=0), help="Offset after the last.")
@click.option(
    "--settle",
    type=click.IntRange(min=0),
    default=0,
    metavar="SECONDS",
    help="Ask again for up to this long while events are still on their way.",
)
@click.option(
    "--last",
    type=click.IntRange(min=1),
    metavar="SECONDS",
    help="Published within this long before now; with --watch, a window that moves along.",
)
@click.option(
    "--watch",
    type=click.IntRange(min=1),
    metavar="SECONDS",
    help="Repeat for ever; each account also goes to ClickHouse for the dashboards.",
)
@click.option("--metrics-port", type=int, help="With --watch: serve the account to Prometheus.")
@click.option(
    "--repair",
    type=click.Choice(["dry-run", "publish"]),
    help="Build the missing alerts from their rows and records; publish them, or only say so.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def audit(
    ctx: click.Context,
    since: datetime | None,
    until: datetime | None,
    from_offset: int | None,
    to_offset: int | None,
    settle: int,
    last: int | None,
    watch: int | None,
    metrics_port: int | None,
    repair: str | None,
    as_json: bool,
) -> None:
    """Account for every offset of the fraud job's topics: in = scored + dead-lettered + control."""
    if last is not None and since is not None:
        msg = "--since and --last both say where to begin; give one of them"
        raise click.UsageError(msg)
    if watch is not None and repair is not None:
        msg = "--repair is for one account; take --watch away"
        raise click.UsageError(msg)
    settings = resolved_settings(settings_of(ctx))
    fixed = until is not None
    gauges = None
    if metrics_port is not None:
        from connectors.audit_metrics import AuditMetrics  # noqa: PLC0415 - only for --metrics-port

        gauges = AuditMetrics(metrics_port)
    while True:
        deadline = time.monotonic() + settle
        if last is not None:
            since = _now() - timedelta(seconds=last)
        if watch is not None and not fixed:
            # What is published while the account is made belongs to the next one.
            until = _now()
        while True:
            verdict = _run(settings, since, until, from_offset, to_offset, as_json)
            if verdict.clean or time.monotonic() >= deadline:
                break
            time.sleep(1)
        repaired: dict[str, object] = {}
        if repair is not None:
            repaired = _repair(settings, verdict, publish=repair == "publish")
            if repair == "publish":
                verdict = _run(settings, since, until, from_offset, to_offset, as_json)
        if gauges is not None:
            gauges.publish(verdict)
        if as_json:
            click.echo(json.dumps({**as_dict(verdict), **repaired}))
        else:
            _print(verdict)
        if watch is None:
            break
        made_at_ms = int(_now().timestamp() * 1000)
        # The account itself is told already; a dashboard that misses one shows the one before.
        with suppress(RetryableError):
            remember_account(ClickHouseClient(settings.clickhouse), JOB, made_at_ms, verdict)
        time.sleep(watch)
    sys.exit(0 if verdict.clean else 1)


def _run(
    settings: Settings,
    since: datetime | None,
    until: datetime | None,
    from_offset: int | None,
    to_offset: int | None,
    quiet: bool,
) -> Audit:
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=quiet or not console.is_terminal) as bar:
        task = bar.add_task("reading Kafka", total=None)
        return audit_fraud(
            settings,
            since_ms=_milliseconds(since),
            until_ms=_milliseconds(until),
            from_offset=from_offset,
            to_offset=to_offset,
            progress=lambda count: bar.advance(task, count),
        )


def _repair(settings: Settings, verdict: Audit, *, publish: bool) -> dict[str, object]:
    """Raise the missing alerts again, or only build them; say on stderr what came of each."""
    done = rebuild_missing(settings, verdict.alerts_missing, int(_now().timestamp() * 1000))
    if publish:
        publish_again(settings, done)
    said = "raised again" if publish else "can be raised again"
    for at in done.frames:
        click.echo(f"  {said}: {at.topic}[{at.partition}] offset {at.offset}", err=True)
    for at, why in done.refused.items():
        click.echo(f"  not raised: {at.topic}[{at.partition}] offset {at.offset}: {why}", err=True)
    return {
        "raised_again" if publish else "can_be_raised_again": len(done.frames),
        "not_raised": [{**asdict(at), "why": why} for at, why in done.refused.items()],
    }


def _now() -> datetime:
    return datetime.now(UTC)


def _milliseconds(moment: datetime | None) -> int | None:
    return None if moment is None else int(moment.replace(tzinfo=UTC).timestamp() * 1000)


def as_dict(verdict: Audit) -> dict[str, object]:
    """Return the verdict as the JSON object that `--json` prints."""
    return {
        "clean": verdict.clean,
        **{
            name: verdict.total(name)
            for name in ("offsets_in", "scored", "dead_lettered", "control", "missing", "doubled")
        },
        "unexpected": verdict.unexpected,
        "alerts_expected": verdict.alerts_expected,
        "alerts_found": verdict.alerts_found,
        "alerts_wrong": verdict.alerts_wrong,
        "superseded_alerts": verdict.superseded_alerts,
        "redelivered_alerts": verdict.redelivered_alerts,
        "redelivered_dead_letters": verdict.redelivered_dead_letters,
        "missing_at": [asdict(at) for at in verdict.missing_at],
        "doubled_at": [asdict(at) for at in verdict.doubled_at],
        "unexpected_at": [asdict(at) for at in verdict.unexpected_at],
        "alerts_missing": [asdict(at) for at in verdict.alerts_missing[:LISTED]],
        "alerts_unexpected": [asdict(at) for at in verdict.alerts_unexpected],
        "alerts_misnamed": [asdict(at) for at in verdict.alerts_misnamed],
        "partitions": [asdict(partition) for partition in verdict.partitions],
    }


def _print(verdict: Audit) -> None:
    console = Console()
    table = Table("topic", "partition")
    numbers = ("offsets_in", "scored", "dead_lettered", "control", "missing", "doubled")
    for name in numbers:
        table.add_column(name.replace("_", " "), justify="right")
    for partition in verdict.partitions:
        counts = [f"{getattr(partition, name):,}" for name in numbers]
        table.add_row(partition.topic, str(partition.partition), *counts)
    table.add_section()
    table.add_row("total", "", *[f"{verdict.total(name):,}" for name in numbers])
    console.print(table)
    console.print(
        f"alerts: {verdict.alerts_expected:,} expected, {verdict.alerts_found:,} found, "
        f"{verdict.alerts_wrong:,} wrong, {verdict.redelivered_alerts:,} delivered again, "
        f"{verdict.superseded_alerts:,} superseded by a later decision"
    )
    for label, places in (
        ("missing", verdict.missing_at),
        ("doubled", verdict.doubled_at),
        ("not of this log", verdict.unexpected_at),
        ("alert missing", verdict.alerts_missing),
        ("alert without a row", verdict.alerts_unexpected),
        ("alert under another id", verdict.alerts_misnamed),
    ):
        for at in places[:20]:
            console.print(f"  {label}: {at.topic}[{at.partition}] offset {at.offset}")
    console.print("[green]clean[/]" if verdict.clean else "[red]NOT clean[/]")
