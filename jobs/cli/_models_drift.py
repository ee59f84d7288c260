"""`riskstream models drift`: how far the live stream is from what its models learned."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import click

from connectors.settings import Settings
from jobs.cli.context import settings_of
from jobs.windows.durations import duration_ms

__all__ = ["DURATION", "drift", "look_for_drift"]


class _Duration(click.ParamType):  # type: ignore[type-arg]
    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        if value == "0":
            return 0
        try:
            return duration_ms(value)
        except ValueError as e:
            self.fail(str(e), param, ctx)


DURATION = _Duration()
"""A duration such as 90s, 15m, 6h or 7d, as milliseconds."""


def look_for_drift(
    settings: Settings,
    *,
    window_ms: int = 3_600_000,
    grace_ms: int = 300_000,
    label_delay_ms: int = 604_800_000,
    least_rows: int = 200,
) -> Any:
    """Return a `DriftWatch` on resolved settings that publishes to the drift topic."""
    from connectors.drift_alerts import publish_drift_alerts
    from connectors.drift_store import DriftStore
    from jobs.fraud.drift import DriftPlan, DriftWatch
    from models.drift import DriftLimits
    from models.registry import Registry

    plan = DriftPlan(window_ms, grace_ms, label_delay_ms, DriftLimits(least_rows=least_rows))
    return DriftWatch(
        DriftStore(settings.clickhouse),
        Registry(settings.models.registry),
        plan,
        lambda alerts: publish_drift_alerts(settings, alerts, time.time_ns() // 1_000_000),
    )


@click.command()
@click.option("--window", type=DURATION, default="1h", show_default=True, help="Event time.")
@click.option(
    "--grace",
    type=DURATION,
    default="5m",
    show_default=True,
    help="Event time to wait after a window before it is compared.",
)
@click.option(
    "--label-delay",
    type=DURATION,
    default="7d",
    show_default=True,
    help="After this long an event without a label is genuine.",
)
@click.option(
    "--least-rows",
    type=click.IntRange(1),
    default=200,
    show_default=True,
    help="Smaller windows are measured but never alert.",
)
@click.option("--watch", type=click.IntRange(1), metavar="SECONDS", help="Look again for ever.")
@click.option(
    "--metrics-port", type=int, help="With --watch: serve the newest window to Prometheus."
)
@click.option("--dry-run", is_flag=True, help="Compare and print; write and publish nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a look.")
@click.pass_context
def drift(
    ctx: click.Context,
    window: int,
    grace: int,
    label_delay: int,
    least_rows: int,
    watch: int | None,
    metrics_port: int | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Compare live features and scores with what each model learned from.

    Every window of event time that is complete and was not compared yet is compared with the
    reference sample of the model that decided in it: PSI, Kolmogorov-Smirnov distance, missing
    rates, row counts. Results go to tables `drift` and `model_quality`, breaches to the drift
    topic. The job is not touched. Exit 1 when something is beyond its limit (not with --watch).

    Example: riskstream models drift --watch 60 --metrics-port 9401
    """
    from connectors.local.stack import resolved_settings

    settings = resolved_settings(settings_of(ctx))
    looking = look_for_drift(
        settings,
        window_ms=window,
        grace_ms=grace,
        label_delay_ms=label_delay,
        least_rows=least_rows,
    )
    metrics = None
    if metrics_port is not None:
        from connectors.drift_metrics import DriftMetrics

        metrics = DriftMetrics(metrics_port)
    while True:
        run = looking.look(write=not dry_run)
        if metrics is not None:
            metrics.publish(run.drift, run.quality)
        _print(run, as_json)
        if watch is None:
            sys.exit(1 if any(row["breached"] for row in run.drift) else 0)
        time.sleep(watch)


def _print(run: Any, as_json: bool) -> None:
    breached = [row for row in run.drift if row["breached"]]
    if as_json:
        click.echo(
            json.dumps(
                {
                    "windows": run.windows,
                    "measures": len(run.drift),
                    "alerts": len(run.alerts),
                    "breached": breached,
                    "quality": [_without_nan(row) for row in run.quality],
                    "without_reference": list(run.without_reference),
                }
            )
        )
        return
    for row in breached:
        click.echo(
            f"{_moment(row['window_start'])}  {row['model_version']}  {row['feature']:<32} "
            f"{row['measure']:<12} {row['value']:.3f} (limit {row['threshold']:.3f}, "
            f"{row['events']:,} events)"
        )
    for row in run.quality:
        click.echo(
            f"{row['model_version']}: precision {row['precision']:.3f} recall {row['recall']:.3f} "
            f"(corrected {row['precision_corrected']:.3f}, {row['recall_corrected']:.3f}) over "
            f"{row['events']:,} events, {row['mature']:,} with their labels in"
        )
    for version in run.without_reference:
        click.echo(f"{version}: no reference sample, not compared", err=True)
    click.echo(
        f"{run.windows} windows compared, {len(run.drift)} measures, {len(breached)} beyond their "
        f"limits, {len(run.alerts)} alerts",
        err=True,
    )


def _without_nan(row: dict[str, Any]) -> dict[str, Any]:
    # JSON has no NaN: a precision that nobody knows yet is null.
    return {key: None if value != value else value for key, value in row.items()}


def _moment(epoch_ms: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(epoch_ms / 1000))
