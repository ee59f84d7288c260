"""This engine, as a user runs it: the fraud job, in thread or in process mode."""

from __future__ import annotations

from typing import Literal

from benchmarks.contestants.contestant import write_job
from benchmarks.contestants.on_flink import OnFlink
from benchmarks.services import Services
from jobs.submission import submit_job

__all__ = ["Ours"]


class Ours(OnFlink):
    """The fraud job of this repository with its default settings."""

    def __init__(self, mode: Literal["thread", "process"], drain_events: int = 400_000) -> None:
        super().__init__()
        self.name = f"riskstream-{mode}"
        self.title = f"riskstream, {mode} mode"
        self.equality_rate = 2_000.0
        self.drain_events = drain_events
        self._mode = mode

    def set_up(self) -> None:
        """Do nothing: `make setup` did it."""

    def start(self, services: Services) -> None:
        """Start the cluster and submit the job."""
        write_job(services, self.name)
        settings = self._start_cluster(services, {"execution_mode": self._mode})
        self._job_id = submit_job("fraud", settings)
