"""Find the records that end a process, without ending the one that matters.

    python -m jobs.runtime.trial FOLDER

The folder holds a stage, a shard's state and a batch; the rows that kill go into its `killers`.
"""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

from connectors.frames import FrameBatch
from jobs.stage import Stage

__all__ = ["find_killers", "killers_of"]

TRIAL_SECONDS: Final = 300.0
"""Opening a stage takes a few seconds; a batch takes milliseconds."""

BATCH_SECONDS: Final = 30
"""A batch that takes this long counts as one that ends the process: it would hang the job."""


_Survives: TypeAlias = Callable[[Sequence[int]], bool]


class _State:
    def __init__(self, items: Sequence[tuple[int, bytes]]) -> None:
        self._entries = dict(items)

    def get(self, key: int) -> bytes | None:
        return self._entries.get(key)

    def put(self, key: int, value: bytes) -> None:
        self._entries[key] = value

    def remove(self, key: int) -> None:
        self._entries.pop(key, None)

    def items(self) -> Iterator[tuple[int, bytes]]:
        return iter(list(self._entries.items()))


class _NoMetrics:
    def count(self, name: str, by: int = 1) -> None: ...

    def observe_ms(self, name: str, milliseconds: float, times: int = 1) -> None: ...

    def gauge(self, name: str, value: int) -> None: ...


@dataclass(frozen=True, slots=True)
class _Case:
    stage: bytes
    shard: int
    batch: bytes
    state: Sequence[tuple[int, bytes]]


def killers_of(
    python: str, stage: bytes, shard: int, batch: bytes, state: Sequence[tuple[int, bytes]]
) -> set[int]:
    """Return the rows of the batch that end a process which tries them.

    Args:
        python: the interpreter.
        stage: a pickled stage, as it was before it was opened.
        shard: the batch's.
        batch: frames.
        state: entries of the shard's state.

    Returns:
        Every row where the trial itself cannot be made: better a dead letter that can be sent
        again than a second crash.
    """
    with tempfile.TemporaryDirectory(prefix="riskstream-trial-") as name:
        folder = Path(name)
        (folder / "case").write_bytes(pickle.dumps(_Case(stage, shard, batch, state)))
        try:
            subprocess.run(
                [python, "-m", "jobs.runtime.trial", name],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=TRIAL_SECONDS,
                check=False,
            )
            return set(json.loads((folder / "killers").read_text(encoding="utf-8")))
        except (OSError, ValueError, subprocess.SubprocessError):
            return set(range(len(FrameBatch.parse(batch))))


def find_killers(stage: Stage, case: _Case) -> list[int]:
    """Return the rows that end a process, tried in a process each time."""
    frames = FrameBatch.parse(case.batch)
    rows = list(range(len(frames)))

    def survives(some: Sequence[int]) -> bool:
        return _survives(stage, case, b"".join(frames.frame_at(row) for row in some))

    killers = _within(rows, survives)
    rest = [row for row in rows if row not in killers]
    # Records that only together end a process are all put aside.
    return killers if not rest or survives(rest) else rows


def _within(rows: Sequence[int], survives: _Survives) -> list[int]:
    if survives(rows):
        return []
    if len(rows) == 1:
        return list(rows)
    half = len(rows) // 2
    return _within(rows[:half], survives) + _within(rows[half:], survives)


def _survives(stage: Stage, case: _Case, batch: bytes) -> bool:
    pid = os.fork()
    if pid:
        _, status = os.waitpid(pid, 0)
        return not os.WIFSIGNALED(status)
    signal.alarm(BATCH_SECONDS)
    try:
        stage.process(case.shard, batch, _State(case.state))
    finally:
        # What raises is another matter, and nothing of this process may run its parent's end.
        os._exit(0)


def main(folder: Path) -> None:
    """Make the trial that the folder describes."""
    # Only this engine's own processes write the folder, whose name nobody else knows.
    case: _Case = pickle.loads((folder / "case").read_bytes())  # noqa: S301
    stage: Stage = pickle.loads(case.stage)  # noqa: S301
    stage.open(_NoMetrics())
    killers = find_killers(stage, case)
    (folder / "killers").write_text(json.dumps(killers), encoding="utf-8")


if __name__ == "__main__":
    # The case was pickled under the module's own name.
    from jobs.runtime import trial

    trial.main(Path(sys.argv[1]))
