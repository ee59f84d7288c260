"""Own the processes of the local stack: start them, restart what dies, say how they are, stop them.

Runs detached, one per state directory: ``python -m connectors.local.supervisor PLAN``. It writes
``stack.json`` (read by `status` and by every command that needs an address) whenever something
changes and at least every two seconds, and serves the same document at ``/health`` on loopback.
SIGTERM stops everything. When the supervisor itself is killed the parts live on; the next `up` or
`down` finds them by their pid files and stops them.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import IO, Any, Final, Literal

from connectors.local.plan import Part, Plan
from connectors.local.probes import answers
from connectors.local.processes import (
    HOME_MARK,
    ProcessId,
    identify,
    log_tail,
    spawn,
    stop_groups,
    wait_for_end,
)

__all__ = ["PartState", "Supervisor", "main"]

State = Literal["preparing", "starting", "running", "not answering", "restarting", "failed"]

FIRST_START_ATTEMPTS: Final = 3
"""A part that never ran is tried this often (a port may be taken in between), then given up."""

BACKOFF_SECONDS: Final = (0.1, 0.5, 1.0, 2.0, 5.0, 10.0)
"""Pause before the n-th restart in a row. The first is at once: a killed TaskManager must be back
within seconds; the last bounds the work wasted on a part that cannot run."""

FORGIVE_SECONDS: Final = 30.0
"""A part that ran this long starts again at the shortest pause."""

PROBE_SECONDS: Final = 2.0
"""Between two looks at a running part. A death is seen at once all the same, see `wait_for_end`."""

START_PROBE_SECONDS: Final = 0.2
"""Between two looks at a starting part: bounds what it adds to the start."""

MISSED_PROBES: Final = 3
"""Probes in a row without an answer before a part is said not to answer."""

MAX_OUT_BYTES: Final = 16 * 1024 * 1024
"""Output kept of a part from one start to the next; JVM parts rotate their own logs."""


@dataclass(slots=True)
class PartState:
    """What is known about one part; times are milliseconds since the epoch, UTC."""

    name: str
    url: str
    log: str
    state: State = "preparing"
    pid: int | None = None
    port: int = 0
    started_at_ms: int | None = None
    ready_seconds: float | None = None
    restarts: int = 0
    why: str = ""
    metrics_url: str = ""


class Supervisor:
    """Run a plan until asked to stop."""

    def __init__(self, plan: Plan, clock_ms: Callable[[], int]) -> None:
        self._plan = plan
        self._home = Path(plan.home)
        self._clock_ms = clock_ms
        self._stop = threading.Event()
        self._changed = threading.Event()
        self._lock = threading.Lock()
        self._start_lock = threading.Lock()
        self._states = {
            part.name: PartState(
                part.name,
                part.url,
                part.log,
                port=part.probe.port,
                metrics_url=part.metrics_url,
            )
            for part in plan.parts
        }
        self._children: dict[str, ProcessId] = {}
        self._health_port = 0

    def run(self) -> None:
        """Start every part at once and keep them running; return when stopped, all parts gone."""
        server = self._serve_health()
        threads = [
            threading.Thread(target=self._keep, args=(part,), name=part.name, daemon=True)
            for part in self._plan.parts
        ]
        for thread in threads:
            thread.start()
        while not self._stop.is_set():
            self._write()
            self._changed.wait(timeout=2.0)
            self._changed.clear()
        # From here on no thread starts anything: starts and this share the lock.
        with self._start_lock:
            children = dict(self._children)
        for rank in sorted({part.stop_rank for part in self._plan.parts}):
            names = [part.name for part in self._plan.parts if part.stop_rank == rank]
            stop_groups([children[name] for name in names if name in children], 15)
        for thread in threads:
            thread.join(timeout=5)
        server.shutdown()
        for part in self._plan.parts:
            self._pid_file(part.name).unlink(missing_ok=True)
        self._home.joinpath("stack.json").unlink(missing_ok=True)

    def stop(self) -> None:
        """Ask `run` to stop everything and return; may be called from a signal handler."""
        self._stop.set()
        self._changed.set()

    def document(self) -> dict[str, Any]:
        """Return what `stack.json` holds."""
        me = identify(os.getpid())
        with self._lock:
            return {
                "home": self._plan.home,
                "plan": self._plan.fingerprint(),
                "supervisor": asdict(me) if me else None,
                "health_url": f"http://127.0.0.1:{self._health_port}/health",
                "written_at_ms": self._clock_ms(),
                "endpoints": self._plan.endpoints,
                "parts": [asdict(state) for state in self._states.values()],
            }

    def _keep(self, part: Part) -> None:
        """Start one part, watch it, start it again when it dies; runs in the part's thread."""
        if not self._prepare(part):
            return
        failures = 0
        ever_ready = False
        while not self._stop.is_set():
            process = self._spawn(part, part.argv)
            if process is None:
                return
            ready = self._wait_until_ready(part, process)
            ever_ready = ever_ready or ready
            began = time.monotonic()
            if ready:
                self._watch(part, process)
            if self._stop.is_set():
                return
            why = self._explain_end(part, process)
            failures = failures_in_a_row(failures, time.monotonic() - began)
            if not ever_ready and failures >= FIRST_START_ATTEMPTS:
                self._set(part, state="failed", pid=None, why=why)
                return
            self._set(part, state="restarting", pid=None, why=why, restarted=True)
            self._stop.wait(pause_seconds(failures))

    def _prepare(self, part: Part) -> bool:
        if not part.prepare or Path(part.prepared).exists():
            return True
        process = self._spawn(part, part.prepare)
        code = -1 if process is None else process.wait()
        if code != 0 and not self._stop.is_set():
            self._set(part, state="failed", why=f"preparing it exited with {code}")
        return code == 0

    def _spawn(self, part: Part, argv: Sequence[str]) -> subprocess.Popen[bytes] | None:
        """Start a command of the part and note who it is; None once everything is stopping."""
        out = self._out(part)
        if out.exists() and out.stat().st_size > MAX_OUT_BYTES:
            out.write_bytes(b"")
        with self._start_lock:
            if self._stop.is_set():
                return None
            environment = self._environment(part)
            process = spawn(argv, environment, self._home, out, part.niceness, part.turn_ms)
            identity = identify(process.pid)
            if identity is not None:
                self._children[part.name] = identity
                self._pid_file(part.name).write_text(json.dumps(asdict(identity)), encoding="utf-8")
        return process

    def _wait_until_ready(self, part: Part, process: subprocess.Popen[bytes]) -> bool:
        began = time.monotonic()
        # What ended the last run stays readable in `why` until the part answers again.
        self._set(part, state="starting", pid=process.pid, started_at_ms=self._clock_ms())
        while process.poll() is None and not self._stop.is_set():
            why = answers(part.probe) or ""
            seconds = time.monotonic() - began
            if not why:
                self._set(part, state="running", ready_seconds=round(seconds, 1))
                return True
            if seconds > self._plan.start_timeout_seconds:
                self._set(part, why=f"did not answer within {seconds:.0f} s: {why}")
                stop_groups([self._children[part.name]], 5)
                process.wait()
                return False
            wait_for_end(process, START_PROBE_SECONDS)
        return False

    def _watch(self, part: Part, process: subprocess.Popen[bytes]) -> None:
        missed = 0
        while not wait_for_end(process, PROBE_SECONDS) and not self._stop.is_set():
            why = answers(part.probe)
            missed = 0 if why is None else missed + 1
            if missed == MISSED_PROBES:
                self._set(part, state="not answering", why=why or "")
            elif missed == 0 and self._states[part.name].state == "not answering":
                self._set(part, state="running")

    def _explain_end(self, part: Part, process: subprocess.Popen[bytes]) -> str:
        code = process.poll()
        child = self._children.get(part.name)
        if child is not None:
            # The leader is gone; what it started (Python workers) must not outlive it.
            stop_groups_of_dead(child)
        if code is None or code == 0:
            return "ended by itself"
        if code < 0:
            return f"killed by {signal.Signals(-code).name}"
        last = log_tail(self._out(part), 1)
        return f"exited with {code}" + (f": {last[0][:200]}" if last else "")

    def _set(
        self,
        part: Part,
        *,
        state: State | None = None,
        restarted: bool = False,
        **fields: Any,
    ) -> None:
        with self._lock:
            current = self._states[part.name]
            current.restarts += restarted
            if state is not None:
                current.state = state
            for name, value in fields.items():
                setattr(current, name, value)
        self._changed.set()

    def _write(self) -> None:
        target = self._home / "stack.json"
        draft = target.with_suffix(".tmp")
        draft.write_text(json.dumps(self.document(), indent=1), encoding="utf-8")
        draft.chmod(0o600)
        draft.replace(target)

    def _environment(self, part: Part) -> dict[str, str]:
        return {**os.environ, **part.environment, HOME_MARK: self._plan.home}

    def _out(self, part: Part) -> Path:
        return Path(part.log).with_suffix(".out")

    def _pid_file(self, name: str) -> Path:
        return self._home / "run" / f"{name}.json"

    def _serve_health(self) -> ThreadingHTTPServer:
        supervisor = self

        class Health(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = json.dumps(supervisor.document()).encode()
                healthy = all(s.state == "running" for s in supervisor._states.values())
                self.send_response(200 if healthy else 503)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                return

        server = ThreadingHTTPServer(("127.0.0.1", 0), Health)
        self._health_port = server.server_address[1]
        threading.Thread(target=server.serve_forever, name="health", daemon=True).start()
        return server


def failures_in_a_row(before: int, ran_seconds: float) -> int:
    """Count an end: the first one again after a long run, else one more than before."""
    return 1 if ran_seconds > FORGIVE_SECONDS else before + 1


def pause_seconds(failures: int) -> float:
    """Return the pause before a part starts again after its n-th failure in a row, n from 1."""
    return BACKOFF_SECONDS[min(failures, len(BACKOFF_SECONDS)) - 1]


def stop_groups_of_dead(leader: ProcessId) -> None:
    """Kill what is left of the process group of a leader that ended."""
    try:
        os.killpg(leader.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return


def _lock(home: Path) -> IO[str]:
    file = (home / "supervisor.lock").open("w")
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return file


def main(plan_file: str) -> None:
    """Run the plan in `plan_file`; exit 3 when another supervisor owns the directory."""
    plan = Plan.from_json(Path(plan_file).read_text(encoding="utf-8"))
    home = Path(plan.home)
    (home / "run").mkdir(parents=True, exist_ok=True)
    try:
        lock = _lock(home)
    except OSError:
        sys.exit(3)
    with lock:
        me = identify(os.getpid())
        if me is not None:
            home.joinpath("run", "supervisor.json").write_text(
                json.dumps(asdict(me)), encoding="utf-8"
            )
        supervisor = Supervisor(plan, lambda: time.time_ns() // 1_000_000)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: supervisor.stop())
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        supervisor.run()
        home.joinpath("run", "supervisor.json").unlink(missing_ok=True)


if __name__ == "__main__":
    main(sys.argv[1])
