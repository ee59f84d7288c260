"""Keep one record that cannot be processed from holding up, or taking down, all others.

A record that makes a stage raise is found by halving its batch, one that ended the process (a crash
in native code) by trying the batch that was being processed then in a process of its own. Either
becomes a dead letter with its raw bytes; its neighbours are processed as if it had not been there.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias

from connectors.frames import FrameBatch, kafka_packet
from schemas.errors import FatalError, RetryableError

if TYPE_CHECKING:
    from jobs.runtime.crash_marks import CrashMarks
    from jobs.stage import Metrics, Stage, StateMap

__all__ = ["Quarantine", "StateOverlay", "SystematicFailureError", "Trial"]

STAGE_FAILED: Final = "stage_failed"
STAGE_CRASHED: Final = "stage_crashed"
CRASH_DETAIL: Final = "A process ended while it processed this record, and another that tried it."

MAX_IN_A_ROW: Final = 16
"""So many records in a row that fail are no bad records: the stage itself cannot run."""

# What says nothing about the record: another try may do, or none will.
NOT_THE_RECORD: Final = (RetryableError, FatalError, OSError, MemoryError)

Trial: TypeAlias = Callable[[int, bytes, Sequence[tuple[int, bytes]]], set[int]]
"""Process (shard, batch, state) elsewhere; return the rows that end the process."""


class SystematicFailureError(FatalError):
    """One record after the other fails, so the fault is not in the records."""


class StateOverlay:
    """A shard's state whose changes are kept back until a batch is through.

    The same object lasts as long as its stage, which remembers it. What it stands on is the state
    of the shard at hand, so `keep` or `forget` ends each batch.
    """

    def __init__(self, state: StateMap) -> None:
        self._state = state
        self._changes: dict[int, bytes | None] = {}

    def get(self, key: int) -> bytes | None:
        """Return the value, or None."""
        return self._changes[key] if key in self._changes else self._state.get(key)

    def put(self, key: int, value: bytes) -> None:
        """Store the value, once the batch is through."""
        self._changes[key] = value

    def remove(self, key: int) -> None:
        """Forget the key, once the batch is through."""
        self._changes[key] = None

    def items(self) -> Iterator[tuple[int, bytes]]:
        """Iterate over all entries as the batch sees them."""
        changes = dict(self._changes)
        for key, value in self._state.items():
            if key not in changes:
                yield key, value
        for key, changed in changes.items():
            if changed is not None:
                yield key, changed

    def keep(self) -> None:
        """Write the changes of a batch that is through."""
        for key, value in self._changes.items():
            if value is None:
                self._state.remove(key)
            else:
                self._state.put(key, value)
        self._changes.clear()

    def forget(self) -> None:
        """Drop the changes of a batch that failed."""
        self._changes.clear()


class Quarantine:
    """Run a stage's batches; dead-letter the records that it cannot bear.

    Args:
        stage: an open stage.
        state: of the shard at hand, whichever that is.
        metrics: counts what was put aside.
        marks: where the batch at hand is written down; what was found there is tried first.
        trial: runs a batch in a process of its own.
    """

    def __init__(
        self, stage: Stage, state: StateMap, metrics: Metrics, marks: CrashMarks, trial: Trial
    ) -> None:
        self._stage = stage
        self._state = StateOverlay(state)
        self._metrics = metrics
        self._marks = marks
        self._trial = trial
        self._failed_in_a_row = 0

    def process(self, shard: int, batch: bytes) -> bytes:
        """Return the packets of one batch of the shard, dead letters among them.

        Raises:
            SystematicFailureError: one record after the other fails.
        """
        if shard in self._marks.suspects:
            return self._carefully(shard, batch)
        return self._attempt(shard, batch)

    def _attempt(self, shard: int, batch: bytes) -> bytes:
        try:
            with self._marks.processing(shard, batch):
                packets = self._stage.process(shard, batch, self._state)
        except NOT_THE_RECORD:
            raise
        except Exception as e:
            self._state.forget()
            self._stage.forget(shard)
            return self._halve(shard, batch, e)
        self._state.keep()
        self._failed_in_a_row = 0
        return packets

    def _halve(self, shard: int, batch: bytes, error: Exception) -> bytes:
        frames = FrameBatch.parse(batch)
        if len(frames) > 1:
            half = b"".join(frames.frame_at(row) for row in range(len(frames) // 2))
            return self._attempt(shard, half) + self._attempt(shard, batch[len(half) :])
        self._failed_in_a_row += 1
        if self._failed_in_a_row >= MAX_IN_A_ROW or frames.offset[0] < 0:
            msg = (
                f"processing one record at a time, {self._failed_in_a_row} failed in a row, the "
                f"last in {_where(error)}; the stage cannot run"
            )
            raise SystematicFailureError(msg) from error
        return self._letter(shard, frames, 0, STAGE_FAILED, _where(error))

    def _carefully(self, shard: int, batch: bytes) -> bytes:
        frames = FrameBatch.parse(batch)
        if not self._marks.suspected(shard, frames):
            return self._attempt(shard, batch)
        killers = self._trial(shard, batch, list(self._state.items()))
        packets: list[bytes] = []
        sound: list[bytes] = []
        for row in range(len(frames)):
            if row not in killers:
                sound.append(frames.frame_at(row))
                continue
            if sound:
                packets.append(self._attempt(shard, b"".join(sound)))
                sound = []
            packets.append(self._letter(shard, frames, row, STAGE_CRASHED, CRASH_DETAIL))
        if sound:
            packets.append(self._attempt(shard, b"".join(sound)))
        self._marks.settle(shard, frames)
        return b"".join(packets)

    def _letter(self, shard: int, frames: FrameBatch, row: int, reason: str, detail: str) -> bytes:
        # Every shard has a copy of a control record; one of them writes the dead letter.
        if frames.control[row] and shard:
            return b""
        self._metrics.count("dead_letters")
        self._metrics.count(f"dead_letters_{reason}")
        return kafka_packet([self._stage.letter(frames, row, reason, detail)])


def _where(error: Exception) -> str:
    """Say what was raised and where; not its message, which may hold what the record holds."""
    places = traceback.extract_tb(error.__traceback__)[-3:]
    path = " < ".join(f"{Path(at.filename).name}:{at.lineno}" for at in reversed(places))
    return f"{type(error).__name__} in {path}"
