"""`riskstream submit | jobs | cancel | savepoint`: jobs on the local or any other cluster."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import UTC, datetime

import click

from connectors.flink import FlinkCluster
from connectors.settings import Settings
from jobs.cli.context import settings_of
from jobs.submission import submit_job

__all__ = ["cancel", "jobs", "savepoint", "submit"]

cluster_option = click.option(
    "--cluster",
    "rest_url",
    metavar="URL",
    help="REST URL of the cluster; the local one by default.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")


def _settings(ctx: click.Context, rest_url: str | None) -> Settings:
    from connectors.local.stack import resolved_settings  # noqa: PLC0415 - only where it is needed

    settings = settings_of(ctx)
    if rest_url is not None:
        settings = settings.model_copy(
            update={"flink": settings.flink.model_copy(update={"rest_url": rest_url})}
        )
    return resolved_settings(settings)


def _cluster(ctx: click.Context, rest_url: str | None) -> FlinkCluster:
    resolved = _settings(ctx, rest_url).flink.rest_url
    if resolved is None:
        msg = "no cluster: start one with `riskstream up` or set flink.rest_url"
        raise click.ClickException(msg)
    return FlinkCluster(resolved)


@click.command(epilog="Example: riskstream submit fraud --from-savepoint file:///savepoints/sp-1")
@click.argument("job", type=click.Choice(["fraud", "market_risk"]))
@click.option("--from-savepoint", "savepoint_path", metavar="PATH", help="Resume from a savepoint.")
@click.option(
    "--allow-dropped-state", is_flag=True, help="Resume although state of removed stages is lost."
)
@cluster_option
@json_option
@click.pass_context
def submit(
    ctx: click.Context,
    job: str,
    savepoint_path: str | None,
    allow_dropped_state: bool,
    rest_url: str | None,
    as_json: bool,
) -> None:
    """Submit a job, wait until it runs, and print its id."""
    job_id = submit_job(
        job,
        _settings(ctx, rest_url),
        savepoint=savepoint_path,
        allow_dropped_state=allow_dropped_state,
    )
    click.echo(json.dumps({"job": job, "job_id": job_id}) if as_json else job_id)


@click.command(epilog="Example: riskstream jobs --json")
@cluster_option
@json_option
@click.pass_context
def jobs(ctx: click.Context, rest_url: str | None, as_json: bool) -> None:
    """List the jobs of the cluster, newest first."""
    listed = _cluster(ctx, rest_url).jobs()
    if as_json:
        click.echo(json.dumps([asdict(job) for job in listed]))
        return
    for job in listed:
        started = datetime.fromtimestamp(job.started_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")
        tasks = f"{job.tasks_running}/{job.tasks_total} tasks"
        click.echo(f"{job.job_id}  {job.state:<10}  {started} UTC  {tasks:<12}  {job.name}")


@click.command(epilog="Example: riskstream cancel fraud")
@click.argument("job")
@cluster_option
@click.pass_context
def cancel(ctx: click.Context, job: str, rest_url: str | None) -> None:
    """Cancel JOB, an id or the name of a running job; its last checkpoint is kept."""
    cluster = _cluster(ctx, rest_url)
    job_id = cluster.find(job)
    cluster.cancel(job_id)
    click.echo(f"cancelled {job_id}", err=True)


@click.command(epilog="Example: riskstream savepoint fraud --stop")
@click.argument("job")
@click.option("--stop", is_flag=True, help="Stop the job with the savepoint, to resume it later.")
@click.option("--directory", metavar="URL", help="Where it goes; the cluster's setting by default.")
@cluster_option
@json_option
@click.pass_context
def savepoint(
    ctx: click.Context,
    job: str,
    stop: bool,
    directory: str | None,
    rest_url: str | None,
    as_json: bool,
) -> None:
    """Take a savepoint of JOB, an id or the name of a running job, and print its location."""
    cluster = _cluster(ctx, rest_url)
    job_id = cluster.find(job)
    location = cluster.savepoint(job_id, directory, stop=stop)
    click.echo(json.dumps({"job_id": job_id, "savepoint": location}) if as_json else location)
