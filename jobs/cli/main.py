"""Dispatch `riskstream VERB`: each verb has its own module, imported only when called."""

from __future__ import annotations

import importlib
import sys
from typing import Final

import click

from schemas.errors import RiskstreamError

__all__ = ["main"]

VERBS: Final[dict[str, tuple[str, str]]] = {
    # verb: (module with a click command of the same name, dashes as underscores; one line of help)
    "up": ("jobs.cli.stack", "Start the local stack: Kafka, Redis, ClickHouse, Flink."),
    "down": ("jobs.cli.stack", "Stop the local stack; nothing keeps running."),
    "status": ("jobs.cli.stack", "Show each part of the local stack and its health."),
    "logs": ("jobs.cli.stack", "Show the log of one part of the local stack."),
    "config": ("jobs.cli.config", "Show the settings in force, secrets masked."),
    "schema": ("jobs.cli.schema", "List, check and register Avro contracts."),
    "migrate": ("jobs.cli.migrate", "Create or upgrade ClickHouse tables and views."),
    "profiles": ("jobs.cli.profiles", "Load customer, terminal and merchant profiles into Redis."),
    "replay": ("jobs.cli.replay", "Publish recorded transactions as Avro at a chosen speed."),
    "simulate": (
        "jobs.cli.simulate",
        "Publish an endless, seeded stream of transactions and labels.",
    ),
    "submit": ("jobs.cli.cluster", "Submit a job to a Flink cluster."),
    "jobs": ("jobs.cli.cluster", "List the jobs of the cluster."),
    "cancel": ("jobs.cli.cluster", "Cancel a job."),
    "savepoint": ("jobs.cli.cluster", "Stop a job with a savepoint, or take one while it runs."),
    "alerts": ("jobs.cli.alerts", "Follow alerts as they come."),
    "top": ("jobs.cli.top", "Show throughput, latency and decisions, live."),
    "dead-letters": ("jobs.cli.dead_letters", "List, show and replay dead letters."),
    "demo": ("jobs.cli.demo", "Run the fraud job end to end on the local stack."),
    "demo-risk": ("jobs.cli.demo_risk", "Run the market risk job on the local stack."),
    "features": ("jobs.cli.features", "Explain, trace, build and verify features."),
    "models": ("jobs.cli.models", "Train, register, activate and roll back models."),
    "rules": ("jobs.cli.rules", "Check and publish rule sets."),
    "audit": ("jobs.cli.audit", "Prove that every offset was accounted for exactly once."),
    "plan": ("jobs.cli.plan", "Say what a change will do before anything is touched."),
    "risk": ("jobs.cli.risk", "Market risk over files: VaR, positions, bars, back-tests."),
    "dashboard": ("jobs.cli.dashboard", "Serve the live dashboards."),
}


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        module = importlib.import_module(VERBS[cmd_name][0])
        command: click.Command = getattr(module, cmd_name.replace("-", "_"))
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(verb, help_line) for verb, (_, help_line) in VERBS.items()])


@click.command(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--config",
    "config_file",
    type=click.Path(exists=True, dir_okay=False),
    envvar="RISKSTREAM_CONFIG",
    help="Configuration file (TOML); environment variables and flags override it.",
)
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override one setting, as in --set kafka.bootstrap_servers=broker:9092 (repeatable).",
)
@click.pass_context
def cli(ctx: click.Context, config_file: str | None, overrides: tuple[str, ...]) -> None:
    """riskstream: real-time fraud and risk on Apache Flink.

    Example: riskstream demo --limit 20000
    """
    ctx.obj = (config_file, overrides)


def main() -> None:
    """Run the command; exit 0 on success, 1 on a refused or failed run, 2 on wrong usage."""
    try:
        cli.main(standalone_mode=True)
    except RiskstreamError as error:
        click.echo(f"riskstream: {error}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
