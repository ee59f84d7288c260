"""Submit, list, cancel and savepoint jobs on any Flink cluster, by its REST URL."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final
from urllib.parse import urlsplit

import requests

from schemas.errors import FatalError, RetryableError

__all__ = ["FlinkCluster", "FlinkError", "FlinkUnreachableError", "Job", "client_variables"]

REQUEST_TIMEOUT_SECONDS: Final = 10
POLL_SECONDS: Final = 0.2
# `flink run` starts a JVM and a Python client, builds the graph and uploads it: 8 s on a quiet
# machine.
SUBMIT_TIMEOUT_SECONDS: Final = 300
# Flink's client reaches into these packages of the JDK, which Java 17 closes by default.
CLIENT_JAVA_OPTIONS: Final = " ".join(
    f"--add-opens=java.base/{package}=ALL-UNNAMED"
    for package in (
        "java.lang",
        "java.util",
        "java.util.concurrent",
        "java.net",
        "java.io",
        "java.nio",
    )
)
FINAL_STATES: Final = frozenset({"FINISHED", "FAILED", "CANCELED", "SUSPENDED"})


def client_variables(flink_home: Path, lib_directory: Path, root: Path) -> dict[str, str]:
    """Return the environment in which Flink's Python client builds a graph on the class path.

    Args:
        flink_home: the pip package's folder (`pyflink`).
        lib_directory: Flink's jars with flink-python, the connector and the bridge.
        root: the repository or installation that holds the job's code.
    """
    return {
        **os.environ,
        "FLINK_HOME": str(flink_home),
        "FLINK_LIB_DIR": str(lib_directory),
        "FLINK_OPT_DIR": str(flink_home / "opt"),
        "PYTHONPATH": os.pathsep.join([str(root), str(flink_home.parent)]),
    }


class FlinkError(FatalError):
    """The cluster refused what was asked."""


class FlinkUnreachableError(RetryableError):
    """The cluster did not answer."""


@dataclass(frozen=True, slots=True)
class Job:
    """One job as the cluster lists it."""

    job_id: str
    name: str
    state: str
    started_ms: int
    tasks_running: int
    tasks_total: int


class FlinkCluster:
    """A Flink cluster behind its REST URL, such as `http://127.0.0.1:8081`."""

    def __init__(self, rest_url: str) -> None:
        self._url = rest_url.rstrip("/")
        self._session = requests.Session()

    def close(self) -> None:
        """Close the connections."""
        self._session.close()

    def jobs(self) -> list[Job]:
        """List all jobs that the cluster remembers, newest first."""
        listed = self._get("/jobs/overview")["jobs"]
        return sorted(
            (
                Job(
                    job["jid"],
                    job["name"],
                    job["state"],
                    job["start-time"],
                    job["tasks"]["running"],
                    job["tasks"]["total"],
                )
                for job in listed
            ),
            key=lambda job: -job.started_ms,
        )

    def find(self, job: str) -> str:
        """Return the id of the job that is meant: an id, or the name of the one that runs.

        Raises:
            FlinkError: no job of that name runs, or several do; says which jobs there are.
        """
        listed = self.jobs()
        if any(one.job_id == job for one in listed):
            return job
        running = [one for one in listed if one.state not in FINAL_STATES]
        named = [one.job_id for one in running if one.name == job]
        if len(named) == 1:
            return named[0]
        there = ", ".join(f"{one.name} ({one.job_id})" for one in running) or "none"
        msg = (
            f"looking for job {job!r} at {self._url!r}: {len(named)} running jobs have that name, "
            f"expected 1 or a job id; running now: {there}"
        )
        raise FlinkError(msg)

    def job(self, job_id: str) -> Mapping[str, Any]:
        """Return Flink's own description of one job: vertices, states, times."""
        return self._get(f"/jobs/{job_id}")

    def exceptions(self, job_id: str) -> list[str]:
        """Return the causes of the job's failures so far, newest first."""
        entries = self._get(f"/jobs/{job_id}/exceptions")["exceptionHistory"]["entries"]
        return [str(entry["stacktrace"]) for entry in entries]

    def checkpoints(self, job_id: str) -> Mapping[str, Any]:
        """Return the job's checkpoint statistics."""
        return self._get(f"/jobs/{job_id}/checkpoints")

    def task_managers(self) -> int:
        """Return how many TaskManagers have registered."""
        return len(self._get("/taskmanagers")["taskmanagers"])

    def wait_running(self, job_id: str, timeout_seconds: float = 300) -> None:
        """Wait until every task of the job runs.

        Raises:
            FlinkError: with the cause when the job ends instead, or when the time is over.
        """

        def running() -> bool:
            job = self.job(job_id)
            if job["state"] in FINAL_STATES:
                raise FlinkError(self._ended(job_id, job["state"]))
            return job["state"] == "RUNNING" and all(
                vertex["status"] == "RUNNING" for vertex in job["vertices"]
            )

        self._wait(running, timeout_seconds, f"job {job_id!r} to run")

    def cancel(self, job_id: str, timeout_seconds: float = 60) -> None:
        """Cancel the job without a savepoint and wait until it has ended."""
        self._request("PATCH", f"/jobs/{job_id}?mode=cancel")
        self._wait(
            lambda: self.job(job_id)["state"] in FINAL_STATES,
            timeout_seconds,
            f"job {job_id!r} to be cancelled",
        )

    def savepoint(
        self, job_id: str, directory: str | None, *, stop: bool, timeout_seconds: float = 300
    ) -> str:
        """Take a savepoint, stop the job with it if asked, and return its location.

        A stop drains nothing: windows and timers stay as they are, so that the job can resume.
        """
        if stop:
            path, body = f"/jobs/{job_id}/stop", {"targetDirectory": directory, "drain": False}
        else:
            path, body = f"/jobs/{job_id}/savepoints", {"target-directory": directory}
        trigger = self._request("POST", path, body)["request-id"]
        answer: dict[str, Any] = {}

        def done() -> bool:
            answer.update(self._get(f"/jobs/{job_id}/savepoints/{trigger}"))
            return bool(answer["status"]["id"] == "COMPLETED")

        self._wait(done, timeout_seconds, f"the savepoint of job {job_id!r}")
        operation = answer["operation"]
        if "failure-cause" in operation:
            cause = str(operation["failure-cause"].get("stack-trace", operation["failure-cause"]))
            msg = f"taking a savepoint of job {job_id!r} failed: {cause[:2000]}"
            raise FlinkError(msg)
        if stop:
            self._wait(
                lambda: self.job(job_id)["state"] in FINAL_STATES,
                timeout_seconds,
                f"job {job_id!r} to stop",
            )
        return str(operation["location"])

    def submit(
        self,
        job: str,
        settings_json: str,
        *,
        root: Path,
        flink_home: Path,
        lib_directory: Path,
        savepoint: str | None = None,
        allow_dropped_state: bool = False,
        script: Path | None = None,
    ) -> str:
        """Submit a job of `jobs/` with `flink run` and return its id.

        The settings travel in a file that only this user can read, never on a command line.

        Args:
            job: folder of the job below `jobs/`, as in `fraud`.
            settings_json: the settings with their secrets.
            root: the repository or installation that holds `jobs/`.
            flink_home: the pip package's folder (`pyflink`).
            lib_directory: Flink's jars with flink-python, the connector and the bridge.
            savepoint: location to resume from.
            allow_dropped_state: resume although the savepoint holds state of removed operators.
            script: builds and submits the graph instead of `jobs/runtime/main.py`, from the same
                two arguments.
        """
        address = urlsplit(self._url)
        with TemporaryDirectory(prefix="riskstream-submit-") as name:
            folder = Path(name)
            settings_file = folder / "settings.json"
            settings_file.touch(mode=0o600)
            settings_file.write_text(settings_json, encoding="utf-8")
            port = address.port or (443 if address.scheme == "https" else 80)
            (folder / "config.yaml").write_text(
                f"rest.address: {address.hostname}\nrest.port: {port}\n"
                f"env.java.opts.all: {CLIENT_JAVA_OPTIONS}\n"
                f"security.ssl.rest.enabled: {str(address.scheme == 'https').lower()}\n",
                encoding="utf-8",
            )
            # Without its own logging configuration the client fills its output with warnings.
            shutil.copy(flink_home / "conf" / "log4j-cli.properties", folder)
            command = [
                str(flink_home / "bin" / "flink"),
                "run",
                "-d",
                "-m",
                f"{address.hostname}:{port}",
                *(["-s", savepoint] if savepoint else []),
                *(["-n"] if savepoint and allow_dropped_state else []),
                "-pyclientexec",
                sys.executable,
                "-pyexec",
                sys.executable,
                "-py",
                str(script or root / "jobs" / "runtime" / "main.py"),
                job,
                str(settings_file),
            ]
            environment = {
                **client_variables(flink_home, lib_directory, root),
                "FLINK_CONF_DIR": str(folder),
                "FLINK_LOG_DIR": str(folder),
            }
            result = subprocess.run(
                command,
                cwd=root,
                env=environment,
                capture_output=True,
                text=True,
                timeout=SUBMIT_TIMEOUT_SECONDS,
                check=False,
            )
        found = re.search(r"JobID ([0-9a-f]{32})", result.stdout)
        if result.returncode or found is None:
            tail = "\n".join((result.stdout + result.stderr).strip().splitlines()[-40:])
            msg = f"submitting job {job!r} to {self._url!r} failed; the end of its output:\n{tail}"
            raise FlinkError(msg)
        return found.group(1)

    def _ended(self, job_id: str, state: str) -> str:
        causes = self.exceptions(job_id)
        return f"job {job_id!r} ended as {state}" + (f": {causes[0][:3000]}" if causes else "")

    def _wait(self, done: Callable[[], bool], timeout_seconds: float, what: str) -> None:
        deadline = time.monotonic() + timeout_seconds
        while not done():
            if time.monotonic() > deadline:
                msg = f"waiting for {what} took longer than {timeout_seconds:.0f} s"
                raise FlinkError(msg)
            time.sleep(POLL_SECONDS)

    def _get(self, path: str) -> dict[str, Any]:
        return self._request("GET", path)

    def _request(
        self, method: str, path: str, body: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        try:
            response = self._session.request(
                method, self._url + path, json=body, timeout=REQUEST_TIMEOUT_SECONDS
            )
        except requests.RequestException as e:
            msg = f"asking Flink at {self._url!r} for {path!r}: {e}; is the cluster up?"
            raise FlinkUnreachableError(msg) from e
        if not response.ok:
            said = f"{response.status_code} {response.text[:2000]}"
            msg = f"asking Flink at {self._url!r} for {path!r}: {said}"
            raise FlinkError(msg)
        answer: dict[str, Any] = response.json() if response.content else {}
        return answer
