"""The harness of the failure matrix: its load, its links, its crash and its table."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from jobs.windows.delta import chunk_header
from jobs.windows.state_log import FANOUT, StateLog
from tests.faults import variants
from tests.faults.link import Link
from tests.faults.load import ChangingPace
from tests.faults.matrix import RESULTS
from tests.faults.report import PAGE, in_page, read, render
from tests.faults.scenarios import FAULTS
from tests.faults.variants import LATER_FEATURES
from tests.support.fraud import Fraud, offline_settings, payment


def test_a_pace_that_changes_goes_on_from_the_last_due_time() -> None:
    pace = ChangingPace(100.0)
    times = np.zeros(10, np.int64)
    first = pace.due_seconds(0, times, 0)
    pace.events_per_second = 1_000.0
    second = pace.due_seconds(10, times, 0)
    assert first[-1] == pytest.approx(0.1)
    assert second[0] - first[-1] == pytest.approx(0.001)
    assert second[-1] == pytest.approx(0.11)


@pytest.fixture
def echo() -> Iterator[int]:
    server = socket.create_server(("127.0.0.1", 0))
    server.settimeout(20)

    def serve() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(20)
                try:
                    while data := connection.recv(1024):
                        connection.sendall(data)
                except OSError:
                    continue

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield server.getsockname()[1]
    # A close alone does not wake a thread that waits in accept.
    server.shutdown(socket.SHUT_RDWR)
    server.close()
    thread.join(timeout=5)


@pytest.fixture
def link(echo: int) -> Iterator[Link]:
    found = Link(echo)
    yield found
    found.close()


def test_a_link_passes_bytes_both_ways(link: Link) -> None:
    with socket.create_connection(("127.0.0.1", link.port), 10) as near:
        near.settimeout(10)
        near.sendall(b"payment")
        assert near.recv(7, socket.MSG_WAITALL) == b"payment"


def test_a_cut_link_swallows_bytes_until_it_is_mended(link: Link) -> None:
    with socket.create_connection(("127.0.0.1", link.port), 10) as near:
        near.sendall(b"a")
        assert near.recv(1) == b"a"
        link.cut()
        near.settimeout(0.3)
        near.sendall(b"b")
        with pytest.raises(TimeoutError):
            near.recv(1)
        link.mend()
        near.settimeout(10)
        assert near.recv(1) == b"b"


def test_a_broken_link_ends_its_connections_and_takes_new_ones(link: Link) -> None:
    with socket.create_connection(("127.0.0.1", link.port), 10) as near:
        near.sendall(b"a")
        assert near.recv(1) == b"a"
        link.break_all()
        near.settimeout(10)
        with pytest.raises(ConnectionResetError):
            near.recv(1)
    with socket.create_connection(("127.0.0.1", link.port), 10) as again:
        again.settimeout(10)
        again.sendall(b"c")
        assert again.recv(1) == b"c"


class Died(BaseException):
    """Stands for the end of the process."""


def test_the_crash_in_a_fold_comes_between_its_put_and_its_removals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fraud = Fraud(offline_settings(tmp_path), 1)
    for offset in range(40):
        fraud.send([payment(offset)])
    entries = dict(fraud.pipeline.state[0][0].entries)
    whole = {key: value for key, value in entries.items() if key >= 0}
    assert any(chunk_header(value).compressed for value in whole.values()), "a fold happened"

    def die(pid: int, number: int) -> None:
        raise Died

    monkeypatch.setattr(variants.os, "kill", die)
    mark = tmp_path / "mark"
    memory = _Entries()
    log = StateLog(variants._CrashingState(memory, mark), 10**12)  # type: ignore[arg-type]
    deltas = [value for _, value in sorted(whole.items()) if not chunk_header(value).compressed]
    mark.touch()
    for _ in range(FANOUT - 1):
        log.append(deltas[0], None)
    with pytest.raises(Died):
        log.append(deltas[0], None)
    assert not mark.exists()
    compressed = [key for key, value in memory.entries.items() if chunk_header(value).compressed]
    assert len(compressed) == 1
    assert len(memory.entries) > 1, "what the fold replaces is still there"
    left = StateLog(memory, 10**12)
    assert len(list(left.chunks())) == 1, "and is passed over after the restart"


class _Entries:
    def __init__(self) -> None:
        self.entries: dict[int, bytes] = {}

    def get(self, key: int) -> bytes:
        return self.entries[key]

    def put(self, key: int, value: bytes) -> None:
        self.entries[key] = value

    def remove(self, key: int) -> None:
        del self.entries[key]

    def items(self) -> Iterator[tuple[int, bytes]]:
        return iter(list(self.entries.items()))


def test_the_later_release_has_one_feature_more_and_the_same_keys() -> None:
    assert "customer_count_2d" in LATER_FEATURES.names
    assert {e.name: e.key for e in LATER_FEATURES.entities} == {
        "customer": "customer_id",
        "terminal": "terminal_id",
    }


def run_of(fault: str, **changes: object) -> dict[str, object]:
    return {
        "fault": fault,
        "load": "steady",
        "error": "",
        "load_average": 3.0,
        "in_flight": 10,
        "lost": 0,
        "doubled": 0,
        "alerts_wrong": 0,
        "resumed_seconds": 1.0,
        "normal_seconds": 2.0,
        "memory_megabytes": 900,
        "decided_again": 40,
        "decided_otherwise": 0,
        **changes,
    }


def test_the_table_says_what_was_not_run_and_what_did_not_recover() -> None:
    lines = [
        run_of("kill-redis", resumed_seconds=3.0, lost=2),
        run_of("kill-redis", resumed_seconds=5.0, lost=1),
        run_of("kill-redis", error="waiting took too long"),
        run_of("kill-redis", load="burst"),
    ]
    rows = [row for row in render(lines).splitlines() if row.startswith("| kill -9 of Redis")]
    assert len(rows) == 2
    cells = [cell.strip() for cell in rows[0].strip("|").split("|")]
    assert cells[1:4] == ["steady", "3", "10"]
    assert cells[4] == "3", "losses add up"
    assert cells[7] == "4.0 / 5.0"
    assert cells[10] == "1"
    assert "not run" in next(
        row for row in render(lines).splitlines() if "of a TaskManager |" in row
    )
    widths = {row.count("|") for row in render(lines).splitlines() if row.startswith("|")}
    assert len(widths) == 1, "each row has as many cells as the head"


def test_the_table_in_the_docs_is_the_one_that_the_raw_results_make() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert in_page(page, read(RESULTS)) == page, "run: python -m tests.faults.report --write"


def test_every_fault_has_a_name_and_a_text_of_its_own() -> None:
    assert len({fault.name for fault in FAULTS}) == len(FAULTS)
    assert len({fault.text for fault in FAULTS}) == len(FAULTS)
