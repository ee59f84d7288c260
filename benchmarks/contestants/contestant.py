"""What the bench asks of a contestant."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Protocol

from benchmarks.processes import tree
from benchmarks.services import Services, job_document
from connectors.local.flink_lib import ROOT
from jobs.fraud.resources import prepare

__all__ = ["VENVS", "Contestant", "WorkerProcesses", "make_venv", "write_job"]

VENVS: Final = ROOT / ".benchmarks" / "venvs"
"""Virtual environments of the contestants that must not share ours."""

STOP_SECONDS: Final = 15


class Contestant(Protocol):
    """One way to run the workload."""

    name: str
    """Short, for files and topics: letters, digits, hyphens."""
    title: str
    """As the page shows it."""
    equality_rate: float
    """Events/s at which results are compared; below what the contestant can take."""
    warm_events: int
    """Length of the backlog that warms it up: some seconds of work."""

    throughput_only: bool
    """Whether only a throughput is wanted of it: a variant of another one."""

    def set_up(self) -> None:
        """Build or install it; not timed."""

    def start(self, services: Services) -> None:
        """Start it, empty, on its own topics; return when it was submitted."""

    def processes(self) -> list[int]:
        """Return the processes whose CPU and memory are its own."""

    def parts(self) -> dict[str, list[int]]:
        """Return all its processes by name, also those that only coordinate."""

    def kill(self) -> None:
        """Kill one of its working processes with SIGKILL; it must come back by itself or here."""

    def state_bytes(self) -> int | None:
        """Return the size of its durable state, None when it has none."""

    def stop(self) -> None:
        """Stop it; repeating it is harmless."""


def write_job(services: Services, name: str, flink_url: str | None = None) -> Path:
    """Create topics and tables of a contestant and write its job file; return the file."""
    settings = services.settings_of(name, flink_url)
    prepare(settings)
    document = job_document(settings)
    file = Path(document["home"]) / "job.json"
    file.write_text(json.dumps(document), encoding="utf-8")
    return file


def make_venv(name: str) -> Path:
    """Return the Python of `VENVS/name`, installed from `contestants/name.txt`, byte-compiled."""
    folder = VENVS / name
    python = folder / "bin" / "python"
    wanted = Path(__file__).parent / f"{name}.txt"
    stamp = folder / "installed.txt"
    if stamp.exists() and stamp.read_bytes() == wanted.read_bytes():
        return python
    uv = Path(sys.executable).parent / "uv"
    folder.parent.mkdir(parents=True, exist_ok=True)
    if not python.exists():
        subprocess.run([uv, "venv", "-q", "-p", sys.executable, folder], check=True)
    subprocess.run(
        [uv, "pip", "install", "-q", "--compile-bytecode", "-p", python, "-r", wanted], check=True
    )
    stamp.write_bytes(wanted.read_bytes())
    return python


class WorkerProcesses:
    """Plain worker processes of one program: start, kill and start again, stop."""

    def __init__(self, command: Sequence[str], workers: int, log: Path, home: Path) -> None:
        self._command = tuple(command)
        self._log = log
        self._home = home
        self._running = [self._spawn(number) for number in range(workers)]

    def _spawn(self, number: int) -> subprocess.Popen[bytes]:
        self._log.parent.mkdir(parents=True, exist_ok=True)
        words = [word.replace("{worker}", str(number)) for word in self._command]
        with self._log.open("ab") as sink:
            return subprocess.Popen(
                words,
                cwd=self._home,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={
                    **os.environ,
                    "PYTHONPATH": str(ROOT),
                    "OMP_NUM_THREADS": "1",
                    "OPENBLAS_NUM_THREADS": "1",
                },
            )

    def pids(self) -> list[int]:
        """Return the workers and what they started.

        Raises:
            RuntimeError: when a worker ended, with the end of its log.
        """
        for process in self._running:
            if process.poll() is not None:
                tail = self._log.read_text(encoding="utf-8", errors="replace")[-3000:]
                msg = f"{' '.join(self._command[:3])} ended with {process.returncode}:\n{tail}"
                raise RuntimeError(msg)
        return [pid for process in self._running for pid in tree(process.pid)]

    def kill_one(self) -> None:
        """Kill the first worker and start it again, as a supervisor would."""
        os.killpg(self._running[0].pid, signal.SIGKILL)
        self._running[0].wait()
        self._running[0] = self._spawn(0)

    def kill_all(self) -> None:
        """Kill the first worker, end the others that cannot go on without it, start all again."""
        for process in self._running:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        self._running = [self._spawn(number) for number in range(len(self._running))]

    def stop(self) -> None:
        """Stop all workers."""
        for process in self._running:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
        deadline = time.monotonic() + STOP_SECONDS
        while time.monotonic() < deadline and any(one.poll() is None for one in self._running):
            time.sleep(0.05)
        for process in self._running:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    @staticmethod
    def folder_bytes(folder: Path) -> int | None:
        """Return the size of a folder's files, None when it is not there."""
        if not folder.is_dir():
            return None
        return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())

    @staticmethod
    def empty(folder: Path) -> None:
        """Make a folder that is empty."""
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
