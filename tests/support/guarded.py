"""Stages behind their quarantines, as Flink runs them, in one process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from jobs.runtime.crash_marks import CrashMarks
from jobs.runtime.quarantine import Quarantine, Trial
from jobs.stage import Metrics, Stage, StateMap
from tests.support.fraud import Fraud
from tests.support.pipeline import DictState

__all__ = ["Guarded", "guard", "no_trial"]


def no_trial(shard: int, batch: bytes, state: Sequence[tuple[int, bytes]]) -> set[int]:
    """Stand where no trial is expected: nothing crashed."""
    msg = f"a trial of {len(batch)} bytes of shard {shard}"
    raise AssertionError(msg)


class Guarded:
    """One open stage behind its quarantine, for `Pipeline`; the state is that of the batch."""

    def __init__(
        self, stage: Stage, metrics: Metrics, marks: CrashMarks, trial: Trial = no_trial
    ) -> None:
        self._now: StateMap = DictState()
        self._stage = stage
        self._shards = stage._shards  # type: ignore[attr-defined]
        self._quarantine = Quarantine(stage, self, metrics, marks, trial)

    def open(self, metrics: Metrics) -> None:
        self._stage.open(metrics)

    def process(self, shard: int, batch: bytes, state: StateMap) -> bytes:
        self._now = state
        return self._quarantine.process(shard, batch)

    def get(self, key: int) -> bytes | None:
        return self._now.get(key)

    def put(self, key: int, value: bytes) -> None:
        self._now.put(key, value)

    def remove(self, key: int) -> None:
        self._now.remove(key)

    def items(self) -> Iterator[tuple[int, bytes]]:
        return self._now.items()


def guard(fraud: Fraud, folder: Path) -> None:
    """Put both stages of the pipeline behind quarantines."""
    guarded = []
    for number, stage in enumerate(fraud.pipeline.stages):
        marks = CrashMarks(folder, f"stage-{number}")
        marks.open()
        guarded.append(Guarded(stage, fraud.pipeline.metrics, marks))
    fraud.pipeline.stages = tuple(guarded)  # type: ignore[assignment]
