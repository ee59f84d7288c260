"""What the contestants on Flink share: a cluster of their own, restarted by its supervisor."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, Literal

from benchmarks.processes import cpu_seconds, tree
from benchmarks.services import RECORD_TASKS, FlinkStack, Services
from connectors.flink import FlinkCluster
from connectors.settings import Settings

__all__ = ["RECORD_BY_RECORD", "OnFlink"]

RECORD_BY_RECORD: Final = {"parallelism": RECORD_TASKS, "shards": RECORD_TASKS}
"""Settings of a cluster whose job has tasks of each operator, spread over the TaskManagers."""


class OnFlink:
    """A cluster with the TaskManagers of the settings; a subclass submits its job to it."""

    name = ""
    throughput_only = False

    def __init__(
        self,
        compilers: Literal["quick", "all"] = "quick",
        jars: Sequence[Path] = (),
    ) -> None:
        self._compilers: Literal["quick", "all"] = compilers
        self._jars = jars
        self._stack: FlinkStack | None = None
        self._settings: Settings | None = None
        self._job_id = ""

    def _start_cluster(
        self,
        services: Services,
        flink: Mapping[str, object] | None = None,
        local: Mapping[str, object] | None = None,
    ) -> Settings:
        settings = services.settings_of(self.name)
        ready = settings.model_dump()
        # A folder of its own: what a failed run leaves there is looked at, and gone with the next.
        ready["home"] = settings.home / "cluster"
        ready["flink"].update(flink or {})
        ready["local"].update(local or {})
        stack = self._stack = FlinkStack(
            Settings.model_validate(ready), self._compilers, self._jars
        )
        stack.down(purge=True)
        ready["flink"]["rest_url"] = stack.up().flink_rest_url
        self._settings = Settings.model_validate(ready)
        return self._settings

    @property
    def cluster(self) -> FlinkCluster:
        """Return the running cluster."""
        assert self._settings is not None
        assert self._settings.flink.rest_url is not None
        return FlinkCluster(self._settings.flink.rest_url)

    def processes(self) -> list[int]:
        """Return the TaskManagers and what they started; the JobManager only coordinates."""
        return [pid for pids in self._task_managers().values() for pid in pids]

    def parts(self) -> dict[str, list[int]]:
        """Return the processes of the cluster by name: TaskManagers, JobManager."""
        assert self._stack is not None
        return {one.name: tree(one.pid) for one in self._stack.status() if one.pid is not None}

    def _task_managers(self) -> dict[str, list[int]]:
        # Not `pid_of`: a TaskManager that was killed has none until it is there again.
        parts = self.parts().items()
        return {name: pids for name, pids in parts if name.startswith("taskmanager-")}

    def kill(self) -> None:
        """Kill the TaskManager that did most; the supervisor starts it again."""
        assert self._stack is not None
        managers = self._task_managers()
        busiest = max(managers, key=lambda name: cpu_seconds(managers[name]))
        os.kill(self._stack.pid_of(busiest), signal.SIGKILL)

    def state_bytes(self) -> int | None:
        """Return the size of the last checkpoint."""
        latest = (self.cluster.checkpoints(self._job_id).get("latest") or {}).get("completed") or {}
        size = latest.get("state_size")
        return None if size is None else int(size)

    def stop(self) -> None:
        """Stop the cluster; its logs stay until the next start."""
        if self._stack is not None:
            self._stack.down()
            self._stack = None
