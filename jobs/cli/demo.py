"""`riskstream demo`: the fraud job end to end on one command."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from connectors.local.stack import LocalStack, resolved_settings
from connectors.settings import Settings
from jobs.cli.context import settings_of
from jobs.cli.progress import count_bar
from jobs.demo import DemoResult, Traffic, run_demo

__all__ = ["demo"]

EPILOG = """Example: riskstream demo --dataset transactions.parquet --limit 200000 --json

Without --dataset, payments are simulated: two minutes at 2,000 a second. With it, all but the last
tenth are sent as fast as the job takes them (events_per_second), the rest at 2,000 a second
(latency_ms: publish to alert at a subscriber). --rate sends everything at one steady rate."""

SIMULATED_RATE = 2_000.0
SIMULATED_EVENTS = 240_000


@click.command(epilog=EPILOG)
@click.option(
    "--dataset",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Parquet or CSV of transactions with the fraud handbook's columns.",
)
@click.option("--limit", type=click.IntRange(min=1), help="At most this many payments.")
@click.option("--rate", type=click.FloatRange(min=1), help="Payments per second, all of them.")
@click.option("--seed", type=int, default=1, show_default=True, help="Of simulated payments.")
@click.option(
    "--mode", type=click.Choice(["thread", "process"]), help="How Flink runs Python (thread)."
)
@click.option("--keep", is_flag=True, help="Leave the stack and the job running afterwards.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object as the last line.")
@click.pass_context
def demo(
    ctx: click.Context,
    dataset: Path | None,
    limit: int | None,
    rate: float | None,
    seed: int,
    mode: str | None,
    keep: bool,
    as_json: bool,
) -> None:
    """Start the local stack, submit the fraud job, send payments, and show what came out."""
    began = time.monotonic()
    console = Console(stderr=True)
    settings = _demo_settings(settings_of(ctx), mode)
    stack = LocalStack(settings)
    stack.down(purge=True)

    def say(text: str) -> None:
        console.print(f"[dim]{time.monotonic() - began:6.1f} s[/]  {text}")

    if dataset is None:
        traffic = Traffic(None, limit or SIMULATED_EVENTS, rate or SIMULATED_RATE, seed)
    else:
        traffic = Traffic(dataset, limit or 1 << 60, rate, seed)
    try:
        say("starting Kafka, Redis, ClickHouse and Flink")
        stack.up(lambda part: say(f"  {part.name} is up at {part.url}"))
        ready = resolved_settings(settings)
        with count_bar("scored", console) as count:
            result = run_demo(
                ready,
                traffic,
                say,
                lambda out, sent: count(out, sent) if out else None,
            )
        _show(Console(stderr=as_json), result, ready, time.monotonic() - began)
    finally:
        if keep:
            say(f"left running; look around with: export RISKSTREAM_HOME={settings.home}")
        else:
            stack.down()
            say("stopped everything")
    if as_json:
        answer = asdict(result)
        answer.pop("example_alert")
        click.echo(json.dumps(answer))


def _demo_settings(settings: Settings, mode: str | None) -> Settings:
    # The demo begins from nothing each time, so it has a home of its own: never the user's data.
    update: dict[str, Any] = {"home": settings.home / "demo"}
    if mode is not None:
        update["flink"] = settings.flink.model_copy(update={"execution_mode": mode})
    return settings.model_copy(update=update)


def _show(console: Console, result: DemoResult, settings: Settings, elapsed: float) -> None:
    table = Table(title="What came out", show_header=False)
    for name in (
        "events_in",
        "scored_rows",
        "distinct_event_ids",
        "dead_letters",
        "labels",
        "alerts",
    ):
        table.add_row(name.replace("_", " "), f"{getattr(result, name):,}")
    table.add_row("events per second", f"{result.events_per_second:,.0f}")
    for title, latency in (
        ("publish to decision", result.decision_latency_ms),
        ("publish to alert at a subscriber", result.latency_ms),
        ("publish to ClickHouse row", result.row_latency_ms),
    ):
        shown = "  ".join(
            f"{name} {value:,.0f}" for name, value in latency.items() if value is not None
        )
        table.add_row(f"{title}, ms", shown)
    table.add_row("first alert after sending began", f"{result.first_alert_seconds} s")
    table.add_row("whole demo", f"{elapsed:.0f} s")
    console.print(table)
    if result.example_alert is not None:
        console.print("One alert in full:")
        console.print_json(json.dumps(result.example_alert, default=str))
    console.print(
        "Ask ClickHouse yourself (while it runs, with --keep):\n"  # noqa: S608 - text to copy
        f"  curl '{settings.clickhouse.url}/?database={settings.clickhouse.database}' -d "
        "'SELECT decision, count() FROM scored_transactions GROUP BY decision'"
    )
