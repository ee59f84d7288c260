"""Submit a job: make its topics and tables, hand its graph to the cluster, wait until it runs."""

from __future__ import annotations

import importlib
from contextlib import suppress
from pathlib import Path
from typing import Final

from connectors.flink import FlinkCluster, FlinkError
from connectors.local.flink_lib import assemble_lib, pyflink_folder
from connectors.settings import Settings
from schemas.errors import RetryableError

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
    """Submit `jobs/<job>` and return the job id once every task runs.

    Topics and tables are created where they are missing; existing ones are left as they are.

    Raises:
        ConfigurationError: when resuming from the savepoint would lose state.
        FlinkError: when the cluster refuses the job, or the job ends instead of running.
    """
    rest_url = settings.flink.rest_url
    if rest_url is None:
        msg = "submitting a job: flink.rest_url was None; set it or run `riskstream up`"
        raise FlinkError(msg)
    resources = importlib.import_module(f"jobs.{job}.resources")
    check_resume = getattr(resources, "check_resume", None)
    if savepoint is not None and not allow_dropped_state and check_resume is not None:
        check_resume(settings)
    resources.prepare(settings)
    cluster = FlinkCluster(rest_url)
    job_id = cluster.submit(
        job,
        settings.with_secrets_json(),
        root=ROOT,
        flink_home=pyflink_folder(),
        lib_directory=assemble_lib(settings.home / "flink-lib"),
        savepoint=savepoint,
        allow_dropped_state=allow_dropped_state,
    )
    cluster.wait_running(job_id)
    remember = getattr(resources, "remember", None)
    if remember is not None:
        # The job runs already; what only serves later planning must not take its id away.
        with suppress(RetryableError):
            remember(settings)
    return job_id
