"""This engine, as a user runs it: the fraud job, in thread or in process mode."""

from __future__ import annotations

from typing import Literal

from benchmarks.contestants.contestant import write_job
from benchmarks.contestants.on_flink import OnFlink
from benchmarks.services import Services
from jobs.submission import submit_job

__all__ = ["Ours"]


class Ours(OnFlink):
    """The fraud job of this repository with its default settings, or in another shape."""

    def __init__(
        self,
        mode: Literal["thread", "process"],
        task_managers: int | None = None,
        tasks: int | None = None,
    ) -> None:
        """Choose the mode; one with other TaskManagers or tasks a stage is measured flat out only.

        Args:
            mode: where Flink runs Python.
            task_managers: how many; the default of the local stack is two.
            tasks: of each stage, in slots that both stages share; the default is one in its own.
        """
        super().__init__()
        self.name, self.title = f"riskstream-{mode}", f"riskstream, {mode} mode"
        self._local: dict[str, object] = {}
        self._flink: dict[str, object] = {"execution_mode": mode}
        if task_managers is not None:
            self.name += f"-{task_managers}tm"
            self.title += f", TaskManagers: {task_managers}"
            self._local = {"task_managers": task_managers}
        if tasks is not None:
            self.name += f"-{tasks}tasks"
            self.title += f", tasks a stage: {tasks}"
            self._flink |= {"parallelism": tasks, "shards": tasks, "stage_slots": "shared"}
        self.throughput_only = bool(task_managers or tasks)
        self.equality_rate = 1_000.0
        self.warm_events = 100_000 if mode == "thread" else 40_000

    def set_up(self) -> None:
        """Do nothing: `make setup` did it."""

    def start(self, services: Services) -> None:
        """Start the cluster and submit the job."""
        write_job(services, self.name)
        settings = self._start_cluster(services, self._flink, self._local)
        self._job_id = submit_job("fraud", settings)
