"""The local stack: real parts, started, killed, frozen, restarted and stopped."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import requests
from click.testing import CliRunner

from connectors.clickhouse import ClickHouseClient
from connectors.kafka import end_offsets, ensure_topics
from connectors.local.flink import FlinkFiles, cluster_configuration
from connectors.local.processes import ProcessId, alive, identify, marked_processes
from connectors.local.stack import (
    CLICKHOUSE_NICENESS,
    KAFKA_NICENESS,
    LocalStack,
    LocalStackError,
    PartStatus,
    resolved_settings,
)
from connectors.profiles import redis_client
from connectors.settings import Settings, load_settings
from jobs.cli.main import cli

pytestmark = pytest.mark.stack

SMALL = [
    "local.task_manager_memory_mb=768",
    "local.job_manager_memory_mb=640",
    "local.kafka_memory_mb=320",
    "local.start_timeout_seconds=280",
]
WITHOUT_JVM = ["kafka.bootstrap_servers=127.0.0.1:1", "flink.rest_url=http://127.0.0.1:1"]


def _settings(home: Path, *overrides: str) -> Settings:
    return load_settings(environment={}, overrides=[f"home={home}", *SMALL, *overrides])


def _eventually(condition: Callable[[], bool], what: str, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen"
        time.sleep(0.1)


def _part(stack: LocalStack, name: str) -> PartStatus:
    return next(part for part in stack.status() if part.name == name)


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return _settings(tmp_path_factory.mktemp("stack"))


@pytest.fixture(scope="module")
def stack(settings: Settings) -> Iterator[LocalStack]:
    stack = LocalStack(settings)
    try:
        stack.up()
        yield stack
    finally:
        stack.down()
        assert list(marked_processes(stack.home)) == []


@pytest.fixture
def small(tmp_path: Path) -> Iterator[LocalStack]:
    """A stack of Redis and ClickHouse only: the rest is said to be elsewhere."""
    stack = LocalStack(_settings(tmp_path, *WITHOUT_JVM))
    yield stack
    stack.down()
    assert list(marked_processes(stack.home)) == []


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_part_answers_at_the_address_it_is_said_to_have(
    stack: LocalStack, settings: Settings
) -> None:
    found = resolved_settings(settings)
    assert ensure_topics(found.kafka, ["one", "two"]) == ["one", "two"]
    assert ensure_topics(found.kafka, ["one", "two"]) == []
    assert end_offsets(found.kafka, "one") == dict.fromkeys(range(found.kafka.topics.partitions), 0)
    assert redis_client(found.redis).ping()
    in_default = found.clickhouse.model_copy(update={"database": "default"})
    ClickHouseClient(in_default).execute("SELECT 1")
    overview = requests.get(f"{found.flink.rest_url}/overview", timeout=30).json()
    assert (overview["taskmanagers"], overview["slots-total"]) == (2, 4)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_task_manager_has_python_ready_before_a_task_needs_it(stack: LocalStack) -> None:
    for name in ("taskmanager-1", "taskmanager-2"):
        said = stack.home / "logs" / f"{name}.out"
        _eventually(lambda log=said: "Python is warm" in log.read_text(), f"warm Python, {name}")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_clickhouse_and_the_broker_let_the_other_parts_go_first(stack: LocalStack) -> None:
    own = os.getpriority(os.PRIO_PROCESS, 0)
    found = {
        name: os.getpriority(os.PRIO_PROCESS, stack.pid_of(name))
        for name in ("clickhouse", "kafka", "redis", "taskmanager-1")
    }
    assert found == {
        "clickhouse": CLICKHOUSE_NICENESS,
        "kafka": KAFKA_NICENESS,
        "redis": own,
        "taskmanager-1": own,
    }


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_starting_twice_changes_nothing(stack: LocalStack) -> None:
    before = stack.status()
    stack.up()
    after = stack.status()
    assert [(part.name, part.pid) for part in before] == [(part.name, part.pid) for part in after]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("part", ["taskmanager-1", "kafka"])
def test_a_part_that_is_killed_comes_back_where_it_was(stack: LocalStack, part: str) -> None:
    before = _part(stack, part)
    os.kill(stack.pid_of(part), signal.SIGKILL)
    _eventually(lambda: _part(stack, part).restarts == before.restarts + 1, "the restart")
    _eventually(lambda: _part(stack, part).state == "running", "the part's answer", 280)
    after = _part(stack, part)
    assert after.why == "killed by SIGKILL"
    assert (after.port, after.url) == (before.port, before.url)
    assert after.pid != before.pid


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_it_is_not_started_over_with_other_settings(stack: LocalStack, settings: Settings) -> None:
    local = settings.local.model_copy(update={"task_managers": 3})
    other = LocalStack(settings.model_copy(update={"local": local}))
    with pytest.raises(LocalStackError, match="other settings"):
        other.up()
    assert stack.is_running()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_everything_listens_on_loopback_only(stack: LocalStack) -> None:
    ours = {str(process.pid) for process in marked_processes(stack.home)}
    assert ours
    for table, loopback in (("tcp", "0100007F"), ("tcp6", "0000000000000000FFFF00000100007F")):
        listening = {
            fields[9]: fields[1].partition(":")[0]
            for fields in map(str.split, Path(f"/proc/net/{table}").read_text().splitlines()[1:])
            if fields[3] == "0A"
        }
        for pid in ours:
            for descriptor in Path(f"/proc/{pid}/fd").iterdir():
                if not descriptor.is_symlink():
                    continue
                name = os.readlink(descriptor)
                inode = name.removeprefix("socket:[").removesuffix("]")
                if inode in listening:
                    assert listening[inode] == loopback, f"process {pid}"


def test_a_part_with_an_address_is_not_started(small: LocalStack) -> None:
    small.up()
    states = {part.name: part.state for part in small.status()}
    assert states == {
        "redis": "running",
        "clickhouse": "running",
        "kafka": "external",
        "flink": "external",
    }
    assert small.endpoints.kafka_bootstrap == "127.0.0.1:1"


def test_working_files_in_memory_go_when_the_stack_stops(tmp_path: Path) -> None:
    settings = _settings(tmp_path, *WITHOUT_JVM)
    files = FlinkFiles(tmp_path)
    where = "state.backend.rocksdb.localdir"
    assert cluster_configuration(settings, files, rest_port=1, rpc_port=2)[where] == str(
        files.memory
    )
    on_disk = settings.model_copy(
        update={"local": settings.local.model_copy(update={"rocksdb_in_memory": False})}
    )
    assert where not in cluster_configuration(on_disk, files, rest_port=1, rpc_port=2)
    files.memory.mkdir()
    files.memory.joinpath("000007.sst").write_bytes(b"x")
    LocalStack(settings).down()
    assert not files.memory.exists()


def test_a_frozen_part_is_said_not_to_answer_until_it_thaws(small: LocalStack) -> None:
    small.up()
    pid = small.pid_of("redis")
    os.kill(pid, signal.SIGSTOP)
    _eventually(lambda: _part(small, "redis").state == "not answering", "noticing the freeze")
    os.kill(pid, signal.SIGCONT)
    _eventually(lambda: _part(small, "redis").state == "running", "noticing the thaw")
    assert (small.pid_of("redis"), _part(small, "redis").restarts) == (pid, 0)


def test_parts_outlive_a_killed_supervisor_and_are_found_and_stopped(small: LocalStack) -> None:
    small.up()
    before = small.endpoints
    parts = [identify(small.pid_of(name)) for name in ("redis", "clickhouse")]
    document = json.loads((small.home / "stack.json").read_text(encoding="utf-8"))
    supervisor = ProcessId(**document["supervisor"])
    os.kill(supervisor.pid, signal.SIGKILL)
    _eventually(lambda: not alive(supervisor), "the supervisor's end")
    assert not small.is_running()
    assert all(part is not None and alive(part) for part in parts)
    # The next start takes the place over: same ports, new processes.
    assert small.up() == before
    assert not any(part is not None and alive(part) for part in parts)
    os.kill(
        json.loads((small.home / "stack.json").read_text())["supervisor"]["pid"], signal.SIGKILL
    )
    assert set(small.down()) >= {"redis", "clickhouse"}
    assert list(marked_processes(small.home)) == []


def test_a_part_that_does_not_start_is_named_with_the_end_of_its_log(tmp_path: Path) -> None:
    with socket.socket() as squatter:
        squatter.bind(("127.0.0.1", 0))
        squatter.listen()
        port = squatter.getsockname()[1]
        stack = LocalStack(_settings(tmp_path, *WITHOUT_JVM, f"local.redis_port={port}"))
        with pytest.raises(LocalStackError) as caught:
            stack.up()
    assert "starting redis: exited with 1" in str(caught.value)
    assert "already in use" in str(caught.value)
    assert not stack.is_running()
    assert list(marked_processes(stack.home)) == []


def test_rows_and_ports_survive_a_stop_and_purging_removes_them(small: LocalStack) -> None:
    before = small.up()
    requests.post(
        before.clickhouse_url, b"CREATE TABLE k (a Int8) ENGINE MergeTree ORDER BY a", timeout=30
    ).raise_for_status()
    small.down()
    assert small.up() == before
    count = requests.post(before.clickhouse_url, b"SELECT count() FROM k", timeout=30)
    assert count.text == "0\n"
    small.down(purge=True)
    assert not small.home.exists()


def test_what_is_not_running_says_how_to_start_it(tmp_path: Path) -> None:
    settings = _settings(tmp_path)
    with pytest.raises(LocalStackError, match="start it with `riskstream up`, or set kafka"):
        resolved_settings(settings)
    assert LocalStack(settings).down() == []
    assert LocalStack(settings).status() == []


def test_settings_that_name_every_part_need_no_stack(tmp_path: Path) -> None:
    settings = _settings(
        tmp_path, *WITHOUT_JVM, "redis.url=redis://r:1", "clickhouse.url=http://c:1"
    )
    assert resolved_settings(settings) is settings


def test_the_commands_start_show_and_stop(tmp_path: Path) -> None:
    flags = [word for key in [f"home={tmp_path}", *WITHOUT_JVM] for word in ("--set", key)]

    def run(*words: str) -> tuple[int, str, str]:
        result = CliRunner().invoke(cli, [*flags, *words])
        return result.exit_code, result.stdout, result.stderr

    assert run("status", "--json")[0] == 1
    try:
        code, out, _ = run("up", "--json")
        assert code == 0
        assert json.loads(out)["redis_url"].startswith("redis://127.0.0.1:")
        assert "running already" in run("up")[2]
        code, out, _ = run("status", "--json")
        assert (code, json.loads(out)["healthy"]) == (0, True)
        assert "clickhouse" in run("status")[1]
        code, out, _ = run("logs", "redis", "-n", "200")
        assert (code, "Ready to accept connections" in out) == (0, True)
    finally:
        code, _, err = run("down")
    assert (code, "stopped" in err) == (0, True)
    assert "was not running" in run("down")[2]
