"""A record that a stage cannot bear is put aside; its neighbours and the state never notice."""

from __future__ import annotations

import ctypes
import pickle
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import jobs.runtime.quarantine as quarantine_module
from connectors.frames import FrameBatch
from connectors.local.processes import of_this_host
from jobs.fraud.customer_stage import CustomerStage
from jobs.fraud.decision_stage import DecisionStage
from jobs.fraud.intake import TransactionIntake
from jobs.fraud.parts import StageParts
from jobs.runtime.crash_marks import REPORT, CrashMarks
from jobs.runtime.quarantine import Quarantine, StateOverlay, SystematicFailureError
from jobs.runtime.trial import killers_of
from jobs.stage import StateMap
from models.registry import default_version
from schemas.errors import RetryableError
from tests.support.fraud import Fraud, control, label, offline_settings, payment
from tests.support.guarded import guard
from tests.support.pipeline import Counts, DictState

POISON = "poison"


class BadPartition(Exception):
    """Something that nobody thought of."""


def has_poison(frames: FrameBatch) -> bool:
    return any(POISON.encode() in (frames.key.bytes_at(row) or b"") for row in range(len(frames)))


class BrittleCustomerStage(CustomerStage):
    """Fails at its very end, when windows and state have changed."""

    def _count(self, intake: Any, refused: int, began: float) -> None:
        if has_poison(intake.frames):
            msg = "card 4929123412341234"
            raise BadPartition(msg)
        super()._count(intake, refused, began)


class BrittleDecisionStage(DecisionStage):
    """Fails as the one above, for what passed it."""

    def _count(self, published_ms: Any, decided_at_ms: int, alerts: int) -> None:
        if (published_ms % 1000 == 999).any():
            raise ZeroDivisionError
        super()._count(published_ms, decided_at_ms, alerts)


class CrashingCustomerStage(CustomerStage):
    """Ends the process with SIGSEGV."""

    def process(self, shard: int, batch: bytes, state: StateMap) -> bytes:
        if has_poison(FrameBatch.parse(batch)):
            ctypes.string_at(0)
        return super().process(shard, batch, state)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("quarantine")


def fraud_with(home: Path, first: type[CustomerStage], second: type[DecisionStage]) -> Fraud:
    fraud = Fraud(offline_settings(home), shards=2)
    parts = StageParts(fraud.settings)
    stages = (first(parts), second(parts, default_version()))
    for stage in stages:
        stage.open(fraud.pipeline.metrics)
    fraud.pipeline.stages = stages
    return fraud


@pytest.fixture(scope="module")
def brittle(home: Path) -> Fraud:
    fraud = fraud_with(home, BrittleCustomerStage, BrittleDecisionStage)
    guard(fraud, home / "marks")
    return fraud


@pytest.fixture(scope="module")
def sound(home: Path) -> Fraud:
    return Fraud(offline_settings(home), shards=2)


def stream(poisoned: Sequence[int] = ()) -> list[bytes]:
    frames = []
    for offset in range(40):
        name = f"{POISON}{offset}" if offset in poisoned else f"C{offset % 5}"
        frames.append(payment(offset, name, f"T{offset % 3}", amount_minor=900 * offset))
    frames.insert(20, label(1, "e0-3", "C3", "T0", 1_577_836_980_000))
    frames.insert(25, control(1, "set_thresholds", review="0.2", block="0.7"))
    return frames


@pytest.mark.parametrize("cut", [(), (1, 7, 8, 20), tuple(range(1, 40))])
def test_neighbours_of_a_record_that_raises_are_scored_as_if_it_were_not_there(
    brittle: Fraud, sound: Fraud, cut: Sequence[int]
) -> None:
    poisoned = (4, 5, 21, 39)
    brittle.reset().send(stream(poisoned), cut)
    whole = stream(poisoned)
    good = [POISON.encode() not in frame for frame in whole]
    # The same batches but for what is put aside: a terminal sees shards in the order of batches.
    same = sorted({sum(good[:position]) for position in cut} - {0})
    sound.reset().send([frame for frame, kept in zip(whole, good, strict=True) if kept], same)
    assert brittle.by_place() == sound.by_place()
    assert len(brittle.rows()) == 36
    letters = brittle.letters()
    assert sorted(letter["offset"] for letter in letters) == list(poisoned)
    assert {letter["reason"] for letter in letters} == {"stage_failed"}
    assert {letter["stage"] for letter in letters} == {"customer"}
    assert all(POISON.encode() in letter["value"] for letter in letters)
    kept = [
        {shard: sum(map(len, state.entries.values())) > 0 for shard, state in states.items()}
        for states in brittle.pipeline.state
    ]
    assert all(any(shards.values()) for shards in kept)


def test_a_dead_letter_says_what_was_raised_and_where_but_not_what_the_message_held(
    brittle: Fraud,
) -> None:
    brittle.reset().send(stream([7]))
    (letter,) = brittle.letters()
    assert letter["detail"].startswith("BadPartition in test_quarantine.py:")
    assert "4929" not in letter["detail"]
    assert brittle.pipeline.metrics.counters["dead_letters_stage_failed"] >= 1


def test_the_last_stage_puts_aside_what_only_it_cannot_bear(brittle: Fraud) -> None:
    times = {offset: 1_577_836_800_000 + offset * 60_000 for offset in range(20)}
    frames = [
        payment(offset, f"C{offset}", "T1", timestamp_ms=at + 999 * (offset == 11))
        for offset, at in times.items()
    ]
    brittle.reset().send(frames)
    (letter,) = brittle.letters()
    assert (letter["offset"], letter["stage"], letter["reason"]) == (11, "terminal", "stage_failed")
    assert sorted(row["kafka_offset"] for row in brittle.rows()) == [
        offset for offset in times if offset != 11
    ]


def test_the_state_after_a_failure_is_that_of_a_run_without_it(
    brittle: Fraud, sound: Fraud
) -> None:
    later = [payment(100 + n, f"C{n % 5}", f"T{n % 3}") for n in range(20)]
    brittle.reset().send(stream([4, 21]))
    brittle.restart()
    brittle.send(later)
    sound.reset().send([f for f in stream([4, 21]) if POISON.encode() not in f])
    sound.send(later)
    assert brittle.by_place() == sound.by_place()


def test_a_stage_that_fails_at_every_record_fails_the_job_and_empties_no_topic(
    brittle: Fraud,
) -> None:
    everything = range(40)
    with pytest.raises(SystematicFailureError, match=r"BadPartition in test_quarantine.py"):
        brittle.reset().send([f for f in stream(everything) if POISON.encode() in f])
    assert len(brittle.letters()) < quarantine_module.MAX_IN_A_ROW


def test_what_another_try_may_cure_is_left_to_the_restart(
    brittle: Fraud, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(self: TransactionIntake, batch: bytes) -> None:
        msg = "Redis is away"
        raise RetryableError(msg)

    brittle.reset()
    monkeypatch.setattr(TransactionIntake, "read", away)
    with pytest.raises(RetryableError):
        brittle.send(stream())
    assert brittle.letters() == []


def test_an_overlay_shows_its_changes_at_once_and_writes_them_at_the_end() -> None:
    below = DictState()
    below.entries = {1: b"one", 2: b"two"}
    overlay = StateOverlay(below)
    overlay.put(3, b"three")
    overlay.put(1, b"uno")
    overlay.remove(2)
    assert dict(overlay.items()) == {1: b"uno", 3: b"three"}
    assert (overlay.get(1), overlay.get(2), overlay.get(3)) == (b"uno", None, b"three")
    assert below.entries == {1: b"one", 2: b"two"}
    overlay.forget()
    assert dict(overlay.items()) == {1: b"one", 2: b"two"}
    overlay.remove(2)
    overlay.keep()
    assert below.entries == {1: b"one"}


# An interpreter of its own: what other tests have loaded into this one may catch a crash first.
DIES = """
import ctypes, os, signal, sys
from pathlib import Path
from jobs.runtime.crash_marks import CrashMarks, report_crashes_to

folder, shard, end = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
if end == "crash":
    report_crashes_to(folder)
marks = CrashMarks(folder, "stage")
marks.open()
with marks.processing(shard, sys.stdin.buffer.read()):
    ctypes.string_at(0) if end == "crash" else os.kill(os.getpid(), signal.SIGKILL)
"""


def die_over(batch: bytes, folder: Path, shard: int, end: str) -> tuple[int, int]:
    """End a process by a "crash" or a "kill" over a batch; return its pid and the signal."""
    with subprocess.Popen(
        [sys.executable, "-c", DIES, str(folder), str(shard), end],
        stdin=subprocess.PIPE,
        cwd=Path(__file__).resolve().parents[2],
    ) as process:
        process.communicate(batch)
    return process.pid, -process.returncode


def test_a_crash_is_remembered_by_the_batch_it_happened_in(tmp_path: Path) -> None:
    batch = b"".join(stream()[:5])
    pid, ended_by = die_over(batch, tmp_path, 1, "crash")
    assert ended_by == signal.SIGSEGV
    assert (of_this_host(tmp_path) / REPORT.format(pid=pid)).stat().st_size > 0
    marks = CrashMarks(tmp_path, "stage")
    marks.open()
    assert marks.suspects == {1: {("card-transactions", 0, offset) for offset in range(5)}}
    other = CrashMarks(tmp_path, "another-stage")
    other.open()
    assert other.suspects == {}
    frames = FrameBatch.parse(batch)
    assert marks.suspected(1, frames)
    assert not marks.suspected(0, frames)
    assert not marks.suspected(1, FrameBatch.parse(stream()[7]))
    marks.settle(1, frames)
    assert marks.suspects == {}
    marks.close()
    other.close()
    again = CrashMarks(tmp_path, "stage")
    again.open()
    assert again.suspects == {}


def test_a_kill_makes_suspects_only_of_what_was_at_hand_twice(tmp_path: Path) -> None:
    def killed_over(*numbers: int) -> None:
        batch = b"".join(stream()[n] for n in numbers)
        assert die_over(batch, tmp_path, 0, "kill")[1] == signal.SIGKILL

    killed_over(1, 2, 3)
    once = CrashMarks(tmp_path, "stage")
    once.open()
    assert once.suspects == {}
    once.close()
    killed_over(3, 4)
    twice = CrashMarks(tmp_path, "stage")
    twice.open()
    assert twice.suspects == {0: {("card-transactions", 0, 3)}}
    twice.close()


def test_another_host_of_the_same_volume_believes_only_a_crash_report(tmp_path: Path) -> None:
    die_over(b"".join(stream()[:2]), tmp_path, 0, "kill")
    die_over(b"".join(stream()[:2]), tmp_path, 0, "kill")
    die_over(b"".join(stream()[2:5]), tmp_path, 1, "crash")
    of_this_host(tmp_path).rename(tmp_path / "another-host")
    marks = CrashMarks(tmp_path, "stage")
    marks.open()
    assert marks.suspects == {1: {("card-transactions", 0, offset) for offset in (2, 3, 4)}}
    marks.settle(1, FrameBatch.parse(b"".join(stream()[2:5])))
    marks.close()
    # What was at hand when it was killed may be at hand still, in a process that lives.
    assert len(list((tmp_path / "another-host").glob("*.mark"))) == 2


def test_marks_in_order_leave_nothing_and_a_folder_out_of_reach_costs_only_the_marks(
    tmp_path: Path,
) -> None:
    marks = CrashMarks(tmp_path, "stage")
    marks.open()
    with marks.processing(0, b"x" * (3 << 20)):
        pass
    marks.close()
    assert list(of_this_host(tmp_path).iterdir()) == []
    (tmp_path / "file").write_text("no folder")
    without = CrashMarks(tmp_path / "file" / "crashes", "stage")
    without.open()
    with without.processing(0, b"batch"):
        pass
    without.close()


def test_the_record_that_ended_a_process_is_found_in_another_and_put_aside(
    home: Path, tmp_path: Path
) -> None:
    fraud = Fraud(offline_settings(home), shards=1)
    frames = stream([3, 17])[:20]
    batch = b"".join(frames)
    stage = CrashingCustomerStage(StageParts(fraud.settings))
    pickled = pickle.dumps(stage)
    counts = Counts()
    stage.open(counts)

    assert die_over(batch, tmp_path, 0, "crash")[1] == signal.SIGSEGV
    marks = CrashMarks(tmp_path, "stage")
    marks.open()
    tried = []

    def trial(shard: int, batch: bytes, state: Sequence[tuple[int, bytes]]) -> set[int]:
        tried.append(len(batch))
        return killers_of(sys.executable, pickled, shard, batch, state)

    state = DictState()
    packets = Quarantine(stage, state, counts, marks, trial).process(0, batch)
    assert len(tried) == 1
    assert counts.counters["dead_letters_stage_crashed"] == 2
    assert counts.counters["events_in"] == 18
    sound = CustomerStage(StageParts(fraud.settings))
    sound.open(Counts())
    expected = DictState()
    kept = [frame for frame in frames if POISON.encode() not in frame]
    for low, high in ((0, 3), (3, 16), (16, 18)):
        sound.process(0, b"".join(kept[low:high]), expected)
    assert state.entries == expected.entries
    assert packets.count(b"stage_crashed") == 2
    assert marks.suspects == {}
    marks.close()


def test_where_no_trial_can_be_made_every_suspect_is_put_aside() -> None:
    batch = b"".join(stream()[:3])
    assert killers_of(sys.executable, b"no stage", 0, batch, []) == {0, 1, 2}
