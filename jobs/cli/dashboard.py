"""`riskstream dashboard`: serve the live dashboards."""

from __future__ import annotations

import asyncio
import json
import signal

import click

from connectors.local.stack import resolved_settings
from connectors.settings import Settings
from jobs.cli.context import settings_of

__all__ = ["dashboard"]


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to bind.")
@click.option("--port", default=8500, show_default=True, help="Port; 0 finds a free one.")
@click.option(
    "--token",
    envvar="RISKSTREAM_DASHBOARD_TOKEN",
    help="What a visitor must show; needed off loopback. Better in RISKSTREAM_DASHBOARD_TOKEN.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the address as one JSON object.")
@click.pass_context
def dashboard(ctx: click.Context, host: str, port: int, token: str | None, as_json: bool) -> None:
    """Serve live pages for fraud analysts, operators and traders until Ctrl-C.

    They read ClickHouse, and Kafka for lag and dead letters where it is configured.

    Example: riskstream dashboard --port 8500
    """
    settings = settings_of(ctx)
    if settings.clickhouse.url is None:
        settings = resolved_settings(settings)
    try:
        asyncio.run(_serve(settings, host, port, token, as_json=as_json))
    except OSError as e:
        msg = f"serving the dashboards on {host}:{port}: {e.strerror}; choose another --port"
        raise click.ClickException(msg) from e


async def _serve(
    settings: Settings, host: str, port: int, token: str | None, *, as_json: bool
) -> None:
    # Tornado and Perspective are loaded by this verb alone.
    from dashboards.kafka_panels import kafka_panels  # noqa: PLC0415
    from dashboards.server import Dashboard  # noqa: PLC0415
    from jobs.fraud.features import FRAUD_FEATURES  # noqa: PLC0415

    served = Dashboard(
        settings.clickhouse,
        FRAUD_FEATURES,
        host=host,
        port=port,
        token=token,
        extras=kafka_panels(settings),
        base_currency=settings.market_risk.base_currency,
        live=None if settings.kafka.bootstrap_servers is None else settings,
    )
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, ended.set)
    shown = f"[{host}]" if ":" in host else host
    url = f"http://{shown}:{served.port}/"
    click.echo(json.dumps({"url": url}) if as_json else f"Dashboards on {url} (Ctrl-C ends)")
    try:
        await ended.wait()
    finally:
        await served.close()
