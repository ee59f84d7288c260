"""`riskstream demo-risk`: the market risk job end to end on one command."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from connectors.local.stack import LocalStack, resolved_settings
from connectors.settings import Settings
from jobs.cli.context import settings_of
from jobs.cli.progress import count_bar
from jobs.market_risk.demo import Market, RiskDemoResult, run_risk_demo
from jobs.market_risk.recording import recorded_slices

__all__ = ["demo_risk"]

EPILOG = """Example: riskstream demo-risk --seconds 30 --trades trades.csv.gz --json

Recorded files are merged by event time and sent as fast as the job takes them; without any, thirty
short days of the same seeded desk are recorded first. Then comes the simulated market, at the speed
of its own clock. Latencies end when ClickHouse has the row; positions are checked against the
fills."""

TRY_QUERY = "SELECT * FROM risk_measures_now"


_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command(name="demo-risk", epilog=EPILOG)
@click.option(
    "--trades", type=_FILE, multiple=True, help="CSV or Parquet of recorded trades (repeatable)."
)
@click.option(
    "--quotes", type=_FILE, multiple=True, help="The same of quotes, with columns bid and ask."
)
@click.option(
    "--fills", type=_FILE, multiple=True, help="The same of fills, with a column fill_id."
)
@click.option(
    "--seconds", type=click.IntRange(min=1), default=60, show_default=True, help="Of the market."
)
@click.option("--seed", type=int, default=1, show_default=True, help="Of the simulated market.")
@click.option("--instruments", type=click.IntRange(min=1), default=20, show_default=True)
@click.option("--accounts", type=click.IntRange(min=1), default=8, show_default=True)
@click.option("--keep", is_flag=True, help="Leave the stack and the job running afterwards.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object as the last line.")
@click.pass_context
def demo_risk(
    ctx: click.Context,
    trades: tuple[Path, ...],
    quotes: tuple[Path, ...],
    fills: tuple[Path, ...],
    seconds: int,
    seed: int,
    instruments: int,
    accounts: int,
    keep: bool,
    as_json: bool,
) -> None:
    """Start the local stack, submit the market risk job, send a market, show what came out."""
    began = time.monotonic()
    console = Console(stderr=True)
    # Read first: a file that cannot be read should not wait for a cluster to start.
    given = (("ticks", trades), ("quotes", quotes), ("fills", fills))
    recorded = tuple(recorded_slices([(kind, path) for kind, some in given for path in some]))
    settings = settings_of(ctx)
    # The demo begins from nothing each time, so it has a home of its own: never the user's data.
    settings = settings.model_copy(update={"home": settings.home / "demo-risk"})
    stack = LocalStack(settings)
    stack.down(purge=True)

    def say(text: str) -> None:
        console.print(f"[dim]{time.monotonic() - began:6.1f} s[/]  {text}", soft_wrap=True)

    try:
        say("starting Kafka, Redis, ClickHouse and Flink")
        stack.up(lambda part: say(f"  {part.name} is up at {part.url}"))
        ready = resolved_settings(settings)
        with count_bar("came out", console) as count:
            result = run_risk_demo(
                ready,
                Market(seconds, seed, instruments, accounts, recorded),
                say,
                count,
            )
        _show(Console(stderr=as_json), result, ready, time.monotonic() - began)
    finally:
        if keep:
            say(f"left running; look around with: export RISKSTREAM_HOME={settings.home}")
        else:
            stack.down()
            say("stopped everything")
    if as_json:
        click.echo(json.dumps(asdict(result)))


def _show(console: Console, result: RiskDemoResult, settings: Settings, elapsed: float) -> None:
    table = Table(title="What came out", show_header=False)
    currency = settings.market_risk.base_currency
    table.add_row("published", _listed(result.published))
    table.add_row("bars", _listed(result.bars))
    table.add_row("fills", f"{result.fills:,} applied, {result.repeated_fills:,} repeated")
    table.add_row("positions", f"{result.positions:,}, each equal to the sum of its fills")
    table.add_row(
        f"firm, {currency}", "  ".join(f"{k} {v:,.0f}" for k, v in result.exposure.items())
    )
    for level, risk in result.var.items():
        table.add_row(f"VaR and ES at {level}", f"{risk['var']:,.0f}  {risk['es']:,.0f}")
    table.add_row("stress", "  ".join(f"{k} {v:,.0f}" for k, v in result.stress.items()))
    table.add_row("limits", _listed(result.limits))
    table.add_row("alerts, dead letters", f"{result.limit_alerts:,}, {result.dead_letters:,}")
    table.add_row("events per second", f"{result.events_per_second:,.0f}")
    table.add_row("recorded per second", f"{result.recorded_events_per_second:,.0f}")
    for title, latency in (
        ("tick to mark row", result.tick_latency_ms),
        ("fill to row", result.fill_latency_ms),
        ("age of risk figures", result.freshness_ms),
    ):
        shown = "  ".join(f"{k} {v:,.0f}" for k, v in latency.items() if v is not None)
        table.add_row(f"{title}, ms", shown)
    table.add_row("whole demo", f"{elapsed:.0f} s")
    console.print(table)
    for title, rows in (
        ("Largest positions", result.position_rows),
        ("Limits nearest to a breach", result.limit_rows),
    ):
        if rows:
            console.print(_rows(title, rows))
    address = f"{settings.clickhouse.url}/?database={settings.clickhouse.database}"
    console.print("Ask ClickHouse yourself (while it runs, with --keep):")
    console.print(f"  curl '{address}' -d '{TRY_QUERY}'", soft_wrap=True)


def _rows(title: str, rows: list[dict[str, object]]) -> Table:
    table = Table(*rows[0], title=title)
    for row in rows:
        table.add_row(
            *(f"{cell:,.2f}" if isinstance(cell, float) else str(cell) for cell in row.values())
        )
    return table


def _listed(counts: dict[str, int]) -> str:
    return "  ".join(f"{name} {count:,}" for name, count in counts.items())
