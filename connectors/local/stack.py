"""The local stack: Kafka, Redis, ClickHouse and Flink as real processes under one supervisor.

State lies in one directory (`home`): logs, pid files, data of every part, checkpoints. A part whose
address is set in the settings is used where it is and not started.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from connectors.local import broker, flink
from connectors.local.flink_lib import ROOT, jar_folder
from connectors.local.plan import Part, Plan, Probe
from connectors.local.processes import (
    HOME_MARK,
    ProcessId,
    alive,
    free_port,
    identify,
    log_tail,
    marked_processes,
    port_is_free,
    stop_groups,
)
from connectors.local.programs import java, redis_server
from connectors.settings import Settings
from schemas.errors import FatalError

__all__ = [
    "CLICKHOUSE_NICENESS",
    "KAFKA_NICENESS",
    "Endpoints",
    "LocalStack",
    "LocalStackError",
    "PartStatus",
    "flink_client_environment",
    "resolved_settings",
]

LOG_LINES: Final = 30
"""Lines of a part's log shown when it does not start."""

KAFKA_NICENESS: Final = 3
"""Everybody waits for the broker; an answer takes it less than half a millisecond. It gets half of
what another part gets: many kernels give each session the same, and a TaskManager needs most."""

CLICKHOUSE_NICENESS: Final = 8
"""An insert or a merge takes every core for tens of milliseconds, which a decision must not wait
for. At 8 it still gets a sixth: lower, and inserts take so long that they hold the job back."""

Progress = Callable[["PartStatus"], None]


class LocalStackError(FatalError):
    """The local stack, or a part of it, is not running; the message says which and what to do."""


@dataclass(frozen=True, slots=True)
class Endpoints:
    """Addresses of the stack as clients use them."""

    kafka_bootstrap: str
    redis_url: str
    clickhouse_url: str
    flink_rest_url: str


@dataclass(frozen=True, slots=True)
class PartStatus:
    """One part as `status` shows it; `external` parts are addresses from the settings."""

    name: str
    state: str
    url: str
    pid: int | None = None
    port: int = 0
    started_at_ms: int | None = None
    ready_seconds: float | None = None
    restarts: int = 0
    why: str = ""
    log: str = ""
    metrics_url: str = ""


class LocalStack:
    """Start, stop and look at the stack of one state directory.

    Several objects, in several processes, may speak of the same directory: all they know is in it.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.home: Path = (ROOT / settings.home).resolve()

    @property
    def endpoints(self) -> Endpoints:
        """Return the addresses of the running stack.

        Raises:
            LocalStackError: when it is not running.
        """
        return Endpoints(**self._running()["endpoints"])

    def pid_of(self, part: str) -> int:
        """Return the process of a part, as in `pid_of("taskmanager-1")`.

        Raises:
            LocalStackError: when the stack or the part is not running, or there is no such part.
        """
        status = self._status_of(part)
        if status.pid is None:
            msg = f"finding the process of {part!r}: it is {status.state} ({status.why})"
            raise LocalStackError(msg)
        return status.pid

    def log_of(self, part: str) -> Path:
        """Return the log file of a part, also when the stack is down.

        Raises:
            LocalStackError: when there is no such part in the last plan.
        """
        if part == "supervisor":
            return self.home / "logs" / "supervisor.log"
        try:
            plan = Plan.from_json((self.home / "plan.json").read_text(encoding="utf-8"))
        except OSError as e:
            msg = f"finding the log of {part!r}: nothing was started in {str(self.home)!r} yet"
            raise LocalStackError(msg) from e
        try:
            log = plan.log_of(part)
        except KeyError as e:
            known = ", ".join([p.name for p in plan.parts] + ["supervisor"])
            msg = f"finding the log of {part!r}: expected one of {known}"
            raise LocalStackError(msg) from e
        return log if log.exists() else log.with_suffix(".out")

    def is_running(self) -> bool:
        """Say whether the supervisor runs; a part may be restarting all the same."""
        return self._document() is not None

    def status(self) -> list[PartStatus]:
        """Return every part, in the order of the pipeline; external ones too, [] when down."""
        document = self._document()
        parts = [] if document is None else [PartStatus(**part) for part in document["parts"]]
        return parts + self._external()

    def wait_until_ready(self, seconds: float, progress: Progress | None = None) -> None:
        """Wait until every part runs.

        Raises:
            LocalStackError: when a part failed, with the end of its log, or time is up.
        """
        deadline = time.monotonic() + seconds
        told: set[str] = set()
        while True:
            document = self._document()
            parts = [PartStatus(**part) for part in document["parts"]] if document else []
            for part in parts:
                if part.state == "running" and part.name not in told and progress is not None:
                    told.add(part.name)
                    progress(part)
                if part.state == "failed":
                    raise LocalStackError(self._failure(part))
            waiting = [part for part in parts if part.state != "running"]
            if document is not None and not waiting:
                return
            if time.monotonic() > deadline:
                if not parts:
                    tail = "\n".join(log_tail(self.log_of("supervisor"), LOG_LINES))
                    msg = f"starting the local stack: its supervisor did not come up\n{tail}"
                    raise LocalStackError(msg)
                raise LocalStackError(self._failure(waiting[0]))
            time.sleep(0.1)

    def up(self, progress: Progress | None = None) -> Endpoints:
        """Start what is not running and return when every part answers; repeating it is harmless.

        Args:
            progress: called once for each part when it answers.

        Raises:
            LocalStackError: when a part does not start, with the end of its log; nothing keeps
                running then. Also when the stack runs with other settings.
            ConfigurationError: when `java` or the jars are missing.
        """
        self.home.mkdir(parents=True, exist_ok=True, mode=0o700)
        seconds = float(self._settings.local.start_timeout_seconds)
        with self._one_at_a_time():
            document = self._document()
            if document is not None:
                if document["plan"] != self._plan(document).fingerprint():
                    msg = (
                        f"starting the local stack in {str(self.home)!r}: it runs with other "
                        "settings; stop it first with `riskstream down`"
                    )
                    raise LocalStackError(msg)
                self.wait_until_ready(seconds, progress)
                return self.endpoints
            self._stop_orphans()
            plan = self._plan(None)
            supervisor = self._launch(plan)
            try:
                self.wait_until_ready(seconds * 2, progress)
            except BaseException:
                self._stop_all(supervisor)
                raise
            return self.endpoints

    def down(self, *, purge: bool = False) -> list[str]:
        """Stop everything, orphans of a killed supervisor too; return what was stopped.

        Args:
            purge: delete the state directory as well: topics, tables, checkpoints, logs.
        """
        stopped: list[str] = []
        if self.home.is_dir():
            with self._one_at_a_time():
                document = self._document()
                if document is not None:
                    stopped = [part["name"] for part in document["parts"]]
                    self._stop_all(ProcessId(**document["supervisor"]))
                stopped += self._stop_orphans()
        if purge:
            shutil.rmtree(self.home, ignore_errors=True)
        return stopped

    # -- what the directory says ---------------------------------------------------------------

    def _document(self) -> dict[str, Any] | None:
        try:
            document: dict[str, Any] = json.loads((self.home / "stack.json").read_bytes())
        except (OSError, ValueError):
            return None
        supervisor = document.get("supervisor")
        return document if supervisor and alive(ProcessId(**supervisor)) else None

    def _running(self) -> dict[str, Any]:
        document = self._document()
        if document is None:
            msg = (
                f"the local stack is not running (state directory {str(self.home)!r}); start it "
                "with `riskstream up`, or set kafka.bootstrap_servers, redis.url, clickhouse.url "
                "and flink.rest_url"
            )
            raise LocalStackError(msg)
        return document

    def _status_of(self, name: str) -> PartStatus:
        parts = [PartStatus(**part) for part in self._running()["parts"]]
        for part in parts:
            if part.name == name:
                return part
        msg = f"looking for part {name!r}: expected one of {', '.join(p.name for p in parts)}"
        raise LocalStackError(msg)

    def _failure(self, part: PartStatus) -> str:
        log = Path(part.log)
        # A JVM that dies early says so on its standard output, not in its log.
        lines = log_tail(log, LOG_LINES) + log_tail(log.with_suffix(".out"), LOG_LINES)
        tail = "\n".join(f"  {line}" for line in lines[-LOG_LINES:])
        return f"starting {part.name}: {part.why or part.state}; the end of {part.log}:\n{tail}"

    def _external(self) -> list[PartStatus]:
        redis = self._settings.redis.url
        addresses = {
            "kafka": self._settings.kafka.bootstrap_servers,
            # The URL may hold a password.
            "redis": redis.get_secret_value().rpartition("@")[2] if redis else None,
            "clickhouse": self._settings.clickhouse.url,
            "flink": self._settings.flink.rest_url,
        }
        return [
            PartStatus(name, "external", address, why="from the settings; not started here")
            for name, address in addresses.items()
            if address
        ]

    @contextlib.contextmanager
    def _one_at_a_time(self) -> Iterator[None]:
        with (self.home / "command.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    # -- starting and stopping -----------------------------------------------------------------

    def _launch(self, plan: Plan) -> ProcessId:
        file = self.home / "plan.json"
        file.touch(mode=0o600)
        file.write_text(plan.to_json(), encoding="utf-8")
        log = self.home / "logs" / "supervisor.log"
        log.parent.mkdir(exist_ok=True)
        environment = {
            **os.environ,
            HOME_MARK: plan.home,
            "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        }
        with log.open("ab") as sink:
            process = subprocess.Popen(
                [sys.executable, "-m", "connectors.local.supervisor", str(file)],
                cwd=self.home,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        # It outlives this process on purpose; without this, Popen warns when it is collected.
        process.returncode = 0
        return identify(process.pid) or ProcessId(process.pid, "")

    def _stop_all(self, supervisor: ProcessId) -> None:
        # Two ranks of 15 s each, and the threads: the supervisor needs time before SIGKILL.
        stop_groups([supervisor], 60)
        self._stop_orphans()
        (self.home / "stack.json").unlink(missing_ok=True)

    def _stop_orphans(self) -> list[str]:
        """Stop what a killed supervisor left: by pid files, then by the mark in the environment."""
        found: dict[ProcessId, str] = {}
        for file in (self.home / "run").glob("*.json"):
            with contextlib.suppress(OSError, ValueError, TypeError):
                found[ProcessId(**json.loads(file.read_text(encoding="utf-8")))] = file.stem
            file.unlink(missing_ok=True)
        orphans = {process: name for process, name in found.items() if alive(process)}
        stop_groups(orphans, 10)
        stray = list(marked_processes(self.home))
        stop_groups(stray, 3)
        shutil.rmtree(flink.FlinkFiles(self.home).memory, ignore_errors=True)
        (self.home / "stack.json").unlink(missing_ok=True)
        return [*orphans.values(), *(f"process {process.pid}" for process in stray)]

    # -- the plan ------------------------------------------------------------------------------

    def _plan(self, document: dict[str, Any] | None) -> Plan:
        return _Planner(self._settings, self.home, running=document is not None).plan()


class _Planner:
    """Turn settings into a plan; ports found once are kept in `ports.json`."""

    def __init__(self, settings: Settings, home: Path, *, running: bool) -> None:
        self._settings = settings
        self._home = home
        self._running = running
        self._files = flink.FlinkFiles(home)
        try:
            self._ports: dict[str, int] = json.loads((home / "ports.json").read_bytes())
        except (OSError, ValueError):
            self._ports = {}

    def plan(self) -> Plan:
        settings = self._settings
        redis_url = settings.redis.url.get_secret_value() if settings.redis.url else None
        parts: list[Part] = []
        if not settings.kafka.bootstrap_servers:
            parts.append(self._kafka())
        if not redis_url:
            parts.append(self._redis())
        if not settings.clickhouse.url:
            parts.append(self._clickhouse())
        if not settings.flink.rest_url:
            parts += self._flink()
        endpoints = {
            "kafka_bootstrap": settings.kafka.bootstrap_servers or self._address("kafka"),
            "redis_url": redis_url or f"redis://{self._address('redis')}/0",
            "clickhouse_url": settings.clickhouse.url or f"http://{self._address('clickhouse')}",
            "flink_rest_url": settings.flink.rest_url or f"http://{self._address('flink')}",
        }
        (self._home / "ports.json").write_text(json.dumps(self._ports), encoding="utf-8")
        return Plan(
            home=str(self._home),
            endpoints=endpoints,
            parts=tuple(parts),
            start_timeout_seconds=float(settings.local.start_timeout_seconds),
        )

    def _port(self, name: str, wanted: int = 0) -> int:
        """Return the wanted port, else the one kept from before if still free, else a free one."""
        if wanted:
            self._ports[name] = wanted
            return wanted
        kept = self._ports.get(name)
        if kept is None or not (self._running or port_is_free(kept)):
            self._ports[name] = kept = free_port(self._ports.values())
        return kept

    def _address(self, name: str) -> str:
        return f"127.0.0.1:{self._ports[name]}"

    def _log(self, name: str) -> str:
        return str(self._home / "logs" / f"{name}.log")

    def _kafka(self) -> Part:
        local = self._settings.local
        port, controller = self._port("kafka", local.kafka_port), self._port("kafka-controller")
        jars = jar_folder("kafka")
        properties = broker.write_broker_files(
            self._home / "kafka",
            broker.broker_properties(self._home / "kafka" / "data", port, controller),
        )
        return Part(
            name="kafka",
            argv=broker.broker_command(java(), jars, properties, local.kafka_memory_mb),
            probe=Probe("kafka", port),
            url=f"127.0.0.1:{port}",
            log=self._log("kafka"),
            prepare=broker.format_command(java(), jars, properties),
            prepared=str(self._home / "kafka" / "data" / "meta.properties"),
            stop_rank=2,
            niceness=KAFKA_NICENESS,
            turn_ms=0.5,
        )

    def _redis(self) -> Part:
        local = self._settings.local
        port = self._port("redis", local.redis_port)
        data = self._home / "redis"
        data.mkdir(parents=True, exist_ok=True)
        # Profiles are loaded once and must be there after a restart: a snapshot a minute at most.
        # No append-only file: a lost minute of profile changes is loaded again, not mourned.
        return Part(
            name="redis",
            argv=(
                redis_server(),
                *("--bind", "127.0.0.1", "--port", str(port), "--dir", str(data)),
                *("--dbfilename", "profiles.rdb", "--save", "60 1", "--appendonly", "no"),
                *("--maxmemory", f"{local.redis_memory_mb}mb"),
                *("--maxmemory-policy", "noeviction", "--daemonize", "no"),
                *("--tcp-backlog", "128", "--protected-mode", "yes"),
            ),
            probe=Probe("redis", port),
            url=f"redis://127.0.0.1:{port}/0",
            log=self._log("redis"),
            stop_rank=2,
        )

    def _clickhouse(self) -> Part:
        port = self._port("clickhouse", self._settings.local.clickhouse_port)
        return Part(
            name="clickhouse",
            argv=(
                *(sys.executable, "-m", "connectors.local.clickhouse_server"),
                *("--path", str(self._home / "clickhouse"), "--port", str(port)),
            ),
            probe=Probe("http", port, "/ping"),
            url=f"http://127.0.0.1:{port}",
            log=self._log("clickhouse"),
            environment={"PYTHONPATH": str(ROOT)},
            stop_rank=2,
            niceness=CLICKHOUSE_NICENESS,
            turn_ms=20.0,
        )

    def _flink(self) -> list[Part]:
        local = self._settings.local
        # The class path is in the commands: the links must exist before the plan is made.
        flink.prepare_files(self._files, self._flink_configuration())
        rest = self._ports["flink"]
        environment = flink.client_environment(self._files, ROOT)
        parts = []
        if local.high_availability:
            port = self._ports["zookeeper"]
            command = flink.zookeeper_command(java(), self._files, port, self._home / "zookeeper")
            parts.append(
                Part(
                    name="zookeeper",
                    argv=command,
                    probe=Probe("tcp", port),
                    url=f"127.0.0.1:{port}",
                    log=self._log("zookeeper"),
                    environment=environment,
                    stop_rank=3,
                )
            )
        parts.append(
            Part(
                name="jobmanager",
                argv=flink.job_manager_command(
                    java(), self._files, local.job_manager_memory_mb, self._metrics("jobmanager")
                ),
                probe=Probe("http", rest, "/overview"),
                url=f"http://127.0.0.1:{rest}",
                log=self._log("jobmanager"),
                environment=environment,
                metrics_url=self._metrics_url("jobmanager"),
            )
        )
        for number in range(1, local.task_managers + 1):
            name = f"taskmanager-{number}"
            parts.append(
                Part(
                    name=name,
                    argv=flink.task_manager_command(
                        java(),
                        self._files,
                        name,
                        local.task_manager_memory_mb,
                        local.slots_per_task_manager,
                        self._metrics(name),
                        warm=self._settings.flink.execution_mode == "thread",
                    ),
                    probe=Probe("taskmanager", rest, name),
                    url=f"http://127.0.0.1:{rest}/#/task-manager/{name}",
                    log=self._log(name),
                    environment=environment,
                    metrics_url=self._metrics_url(name),
                )
            )
        return parts

    def _metrics(self, name: str) -> int | None:
        return self._port(f"{name}-metrics") if self._settings.local.flink_metrics else None

    def _metrics_url(self, name: str) -> str:
        port = self._metrics(name)
        return "" if port is None else f"http://127.0.0.1:{port}/metrics"

    def _flink_configuration(self) -> dict[str, str]:
        local = self._settings.local
        zookeeper = None
        if local.high_availability:
            zookeeper = f"127.0.0.1:{self._port('zookeeper', local.zookeeper_port)}"
        return flink.cluster_configuration(
            self._settings,
            self._files,
            rest_port=self._port("flink", local.flink_port),
            rpc_port=self._port("flink-rpc"),
            zookeeper=zookeeper,
        )


def resolved_settings(settings: Settings) -> Settings:
    """Fill the addresses that are not set from the running stack of `settings.home`.

    Raises:
        LocalStackError: when an address is missing and the stack is not running.
    """
    missing = not (
        settings.kafka.bootstrap_servers
        and settings.redis.url
        and settings.clickhouse.url
        and settings.flink.rest_url
    )
    if not missing:
        return settings
    found = LocalStack(settings).endpoints
    tree = settings.model_dump()
    for section, key, value in (
        ("kafka", "bootstrap_servers", found.kafka_bootstrap),
        ("redis", "url", found.redis_url),
        ("clickhouse", "url", found.clickhouse_url),
        ("flink", "rest_url", found.flink_rest_url),
    ):
        tree[section][key] = tree[section][key] or value
    return Settings.model_validate(tree)


def flink_client_environment(settings: Settings) -> dict[str, str]:
    """Return the variables that make `flink run` speak to the local cluster with its class path."""
    return flink.client_environment(flink.FlinkFiles((ROOT / settings.home).resolve()), ROOT)
