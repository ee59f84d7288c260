"""Contestants that are plain Python programs: how the bench starts, kills and stops them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

from benchmarks.contestants.contestant import WorkerProcesses, make_venv, write_job
from benchmarks.services import Services
from connectors.local.processes import free_port

__all__ = ["Bytewax", "KafkaLoop", "Pathway", "PythonProgram", "Quix"]

FOLDER: Final = Path(__file__).parent


class PythonProgram:
    """A program of `workers` processes: `PYTHON PROGRAM.py JOB.json WORKER`."""

    name = ""
    title = ""
    program = ""
    venv: str | None = None
    workers = 1
    equality_rate = 1_000.0
    warm_events = 20_000
    throughput_only = False

    def __init__(self) -> None:
        self._processes: WorkerProcesses | None = None
        self._python = Path(sys.executable)
        self._home = Path()

    def set_up(self) -> None:
        """Install its virtual environment where it has one of its own."""
        if self.venv is not None:
            self._python = make_venv(self.venv)

    def start(self, services: Services) -> None:
        """Start its workers."""
        file = write_job(services, self.name)
        self._home = file.parent
        (self._home / "state").mkdir(exist_ok=True)
        self._processes = WorkerProcesses(
            self.command(file), self.workers, self._home / "worker.log", self._home
        )

    def command(self, job: Path) -> list[str]:
        """Return the command of a worker; `{worker}` is its number."""
        return [
            str(self._python),
            "-m",
            f"benchmarks.contestants.{self.program}",
            str(job),
            "{worker}",
        ]

    def processes(self) -> list[int]:
        """Return the workers."""
        assert self._processes is not None
        return self._processes.pids()

    def parts(self) -> dict[str, list[int]]:
        """Return the workers under one name."""
        return {"workers": self.processes()}

    def kill(self) -> None:
        """Kill a worker and start it again."""
        assert self._processes is not None
        self._processes.kill_one()

    def state_bytes(self) -> int | None:
        """Return the size of its folder of state."""
        return WorkerProcesses.folder_bytes(self._home / "state") or None

    def stop(self) -> None:
        """Stop the workers."""
        if self._processes is not None:
            self._processes.stop()
            self._processes = None


class KafkaLoop(PythonProgram):
    """The floor."""

    name = "kafka-loop"
    title = "kafka-python and pandas, one loop"
    program = "kafka_loop"


class Quix(PythonProgram):
    """Quix Streams, two processes, RocksDB state with changelog topics."""

    name = "quix"
    title = "Quix Streams"
    program = "quix_app"
    venv = "quix"
    workers = 2
    equality_rate = 1_000.0
    warm_events = 10_000


class Bytewax(PythonProgram):
    """Bytewax, two processes that form a cluster."""

    name = "bytewax"
    title = "Bytewax"
    program = "bytewax_flow"
    venv = "bytewax"
    workers = 2
    equality_rate = 1_000.0

    def command(self, job: Path) -> list[str]:
        """Return the command; the ports by which the processes meet are chosen here."""
        first = free_port([])
        ports = [first, free_port([first])]
        (job.parent / "ports").write_text(" ".join(map(str, ports)), encoding="utf-8")
        return super().command(job)

    def kill(self) -> None:
        """Kill a process. The others of a cluster end with it, so all are started again."""
        assert self._processes is not None
        self._processes.kill_all()


class Pathway(PythonProgram):
    """Pathway, two processes of one thread that its own command starts."""

    name = "pathway"
    title = "Pathway"
    venv = "pathway"
    equality_rate = 1_000.0
    warm_events = 10_000

    def command(self, job: Path) -> list[str]:
        """Return the command that starts all processes."""
        return [
            str(self._python.with_name("pathway")),
            *("spawn", "--processes", "2", "--threads", "1"),
            *("--first-port", str(free_port([]))),
            *(str(self._python), "-m", "benchmarks.contestants.pathway_app", str(job)),
        ]

    def kill(self) -> None:
        """Kill a process. The command and the others end with it, so all are started again."""
        assert self._processes is not None
        self._processes.kill_all()
