"""`riskstream up | down | status | logs`: the local stack."""

from __future__ import annotations

import json
import sys
import time
from collections import deque
from dataclasses import asdict
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from connectors.local.stack import LocalStack, PartStatus
from jobs.cli.context import settings_of

__all__ = ["down", "logs", "status", "up"]

_STYLE = {"running": "green", "external": "cyan", "failed": "red", "not answering": "red"}


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print the addresses as one JSON object.")
@click.pass_context
def up(ctx: click.Context, as_json: bool) -> None:
    """Start the local stack: Kafka, Redis, ClickHouse, Flink.

    Each part whose address is set is used where it is. Starting twice is harmless.

    Example: riskstream up && riskstream status
    """
    stack = LocalStack(settings_of(ctx))
    was_running = stack.is_running()
    began = time.monotonic()
    console = Console(stderr=True)

    def tell(part: PartStatus) -> None:
        seconds = f"{part.ready_seconds or 0:5.1f} s"
        console.print(f"  {part.name:<15} {seconds}  {part.url}", highlight=False)

    if console.is_terminal:
        with console.status("Starting the local stack"):
            endpoints = stack.up(tell)
    else:
        endpoints = stack.up(tell)
    seconds = time.monotonic() - began
    if as_json:
        click.echo(json.dumps(asdict(endpoints)))
        return
    if was_running:
        click.echo("the local stack was running already", err=True)
    else:
        click.echo(f"the local stack is up, {seconds:.1f} s", err=True)
    for name, value in asdict(endpoints).items():
        click.echo(f"{name}={value}")


@click.command()
@click.option("--purge", is_flag=True, help="Delete its state too: topics, tables, logs.")
@click.pass_context
def down(ctx: click.Context, purge: bool) -> None:
    """Stop the local stack; nothing keeps running.

    Example: riskstream down --purge
    """
    stopped = LocalStack(settings_of(ctx)).down(purge=purge)
    if stopped:
        click.echo(f"stopped {', '.join(stopped)}", err=True)
    else:
        click.echo("the local stack was not running", err=True)


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def status(ctx: click.Context, as_json: bool) -> None:
    """Show each part of the local stack and its health.

    Exits 1 when it is down or a part is not running.

    Example: riskstream status --json
    """
    stack = LocalStack(settings_of(ctx))
    parts = stack.status()
    running = stack.is_running()
    healthy = running and all(part.state in ("running", "external") for part in parts)
    now_ms = time.time_ns() // 1_000_000
    if as_json:
        click.echo(
            json.dumps(
                {
                    "running": running,
                    "healthy": healthy,
                    "home": str(stack.home),
                    "parts": [
                        {**asdict(part), "uptime_seconds": _uptime(part, now_ms)} for part in parts
                    ],
                }
            )
        )
    else:
        Console().print(_table(parts, now_ms))
        if not running:
            click.echo("the local stack is not running; start it with `riskstream up`", err=True)
    sys.exit(0 if healthy else 1)


@click.command()
@click.argument("part")
@click.option("-f", "--follow", is_flag=True, help="Go on printing what is added.")
@click.option("-n", "--lines", default=50, show_default=True, help="Lines from the end.")
@click.pass_context
def logs(ctx: click.Context, part: str, follow: bool, lines: int) -> None:
    """Show the log of one PART of the local stack (see `riskstream status`), or of `supervisor`.

    Example: riskstream logs taskmanager-1 -f
    """
    path = LocalStack(settings_of(ctx)).log_of(part)
    if not path.exists():
        msg = f"{part} has not written a log yet ({path})"
        raise click.ClickException(msg)
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in deque(file, maxlen=max(lines, 0)):
            click.echo(line, nl=False)
        while follow:
            more = file.read()
            if more:
                click.echo(more, nl=False)
            elif _rotated(path, file.tell()):
                # The part began a new file under the same name.
                file.seek(0)
            else:
                time.sleep(0.2)


def _rotated(path: Path, position: int) -> bool:
    return path.exists() and path.stat().st_size < position


def _uptime(part: PartStatus, now_ms: int) -> float | None:
    if part.started_at_ms is None or part.pid is None:
        return None
    return round((now_ms - part.started_at_ms) / 1000, 1)


def _table(parts: list[PartStatus], now_ms: int) -> Table:
    table = Table(box=None, pad_edge=False)
    measured = any(part.metrics_url for part in parts)
    headings = ["part", "state", "pid", "address", "up", "restarts", "why"]
    for heading in [*headings, "metrics"] if measured else headings:
        table.add_column(heading, overflow="fold")
    for part in parts:
        seconds = _uptime(part, now_ms)
        table.add_row(
            part.name,
            f"[{_STYLE.get(part.state, 'yellow')}]{part.state}[/]",
            str(part.pid or ""),
            part.url,
            "" if seconds is None else f"{seconds:.0f} s",
            str(part.restarts),
            part.why,
            *([part.metrics_url] if measured else []),
        )
    return table
