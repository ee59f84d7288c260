"""Submit a job: make its topics and tables, hand its graph to the cluster, wait until it runs."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import Final

from connectors.clickhouse import migrate
from connectors.flink import FlinkCluster, FlinkError
from connectors.kafka import ensure_topics
from connectors.local.flink_lib import assemble_lib
from connectors.settings import Settings

__all__ = ["ROOT", "submit_job"]

ROOT: Final = Path(__file__).resolve().parent.parent
"""The folder that holds the packages."""


def submit_job(
    job: str,
    settings: Settings,
    *,
    savepoint: str | None = None,
    allow_dropped_state: bool = False,
) -> str:
    """Submit `jobs/<job>` to the cluster of the settings and return the job id once every task runs.

    Topics and tables are created where they are missing; existing ones are left as they are.

    Raises:
        FlinkError: when the cluster refuses the job, or the job ends instead of running.
    """
    rest_url = settings.flink.rest_url
    if rest_url is None:
        msg = "submitting a job needs flink.rest_url, was None; start the local stack with `riskstream up`"
        raise FlinkError(msg)
    plan = importlib.import_module(f"jobs.{job}.resources")
    ensure_topics(settings.kafka, plan.topics(settings))
    migrate(settings.clickhouse)
    cluster = FlinkCluster(rest_url)
    job_id = cluster.submit(
        job,
        settings.with_secrets_json(),
        root=ROOT,
        flink_home=_flink_home(),
        lib_directory=assemble_lib(settings.home / "flink-lib"),
        savepoint=savepoint,
        allow_dropped_state=allow_dropped_state,
    )
    cluster.wait_running(job_id)
    return job_id


def _flink_home() -> Path:
    # Found without importing it: only jobs.runtime imports pyflink.
    found = importlib.util.find_spec("pyflink")
    if found is None or found.origin is None:
        msg = "submitting a job needs the package apache-flink, which is not installed; run `make setup`"
        raise FlinkError(msg)
    return Path(found.origin).parent
