"""This engine, as a user runs it: the fraud job, in thread or in process mode."""

from __future__ import annotations

from typing import Literal

from benchmarks.contestants.contestant import write_job
from benchmarks.contestants.on_flink import OnFlink
from benchmarks.services import Services
from jobs.submission import submit_job

__all__ = ["Ours"]


class Ours(OnFlink):
    """The fraud job of this repository with its default settings, or with fewer TaskManagers."""

    def __init__(
        self, mode: Literal["thread", "process"], task_managers: int | None = None
    ) -> None:
        super().__init__()
        one = "" if task_managers is None else f"-{task_managers}tm"
        self.name = f"riskstream-{mode}{one}"
        self.title = f"riskstream, {mode} mode" + (one and f", TaskManagers: {task_managers}")
        self.throughput_only = task_managers is not None
        self._local = {} if task_managers is None else {"task_managers": task_managers}
        self.equality_rate = 1_000.0
        self.warm_events = 100_000 if mode == "thread" else 40_000
        self._mode = mode

    def set_up(self) -> None:
        """Do nothing: `make setup` did it."""

    def start(self, services: Services) -> None:
        """Start the cluster and submit the job."""
        write_job(services, self.name)
        settings = self._start_cluster(services, {"execution_mode": self._mode}, self._local)
        self._job_id = submit_job("fraud", settings)
