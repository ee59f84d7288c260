"""Write down the batch at hand, so that a restarted process knows what the last one died of.

Each task keeps one file with the batch that it is processing. Shared memory, not written with a
system call: it costs a copy, and the file outlives the process. A file whose process is gone and
left a crash report holds suspects. A process that was killed leaves no report; records that it was
processing are suspects when a second process ends over them.

Below the folder each host has its own: on a volume that several containers share, a task finds what
another host's process died of. Whether that process is gone, only its crash report can tell there.
"""

from __future__ import annotations

import contextlib
import faulthandler
import mmap
import os
import struct
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Final

import numpy as np

from connectors.frames import FrameBatch, FrameError
from connectors.local.processes import ProcessId, alive, identify, of_this_host

__all__ = ["REPORT", "CrashMarks", "report_crashes_to"]

REPORT: Final = "hs_err_pid{pid}.log"
"""A process's crash report beside the marks, as the JVM's -XX:ErrorFile names it."""

_HEADER: Final = struct.Struct("<QI")
_ROOM: Final = 1 << 20
# Marks of killed processes say nothing for long: replays soon pass them.
_KEPT: Final = 16

Place = tuple[str, int, int]
_report: list[IO[bytes]] = []


class CrashMarks:
    """The marks of one task of a stage, and the suspects that earlier processes left.

    `suspects` holds places in Kafka by shard; it is empty unless a process crashed.
    """

    def __init__(self, folder: Path, stage: str) -> None:
        self._folder = folder
        self._mine = of_this_host(folder)
        self._stage = stage
        self._map: mmap.mmap | None = None
        self._file: Path | None = None
        self._left: dict[int, set[Path]] = {}
        self.suspects: dict[int, set[Place]] = {}

    def open(self) -> None:
        """Look for suspects and begin a file; without a folder to write to there are no marks."""
        try:
            self._mine.mkdir(parents=True, exist_ok=True)
            self._look()
            me = identify(os.getpid()) or ProcessId(os.getpid(), "0")
            handle, name = tempfile.mkstemp(
                ".mark", f"{self._stage}.{me.pid}.{me.started}.", self._mine
            )
            os.ftruncate(handle, _HEADER.size + _ROOM)
            self._map = mmap.mmap(handle, 0)
            os.close(handle)
            self._file = Path(name)
        except OSError:
            self._map = None

    def close(self) -> None:
        """Remove the file: this process ends in order."""
        if self._map is not None and self._file is not None:
            self._map.close()
            self._map = None
            self._file.unlink(missing_ok=True)

    @contextlib.contextmanager
    def processing(self, shard: int, batch: bytes) -> Iterator[None]:
        """Hold the batch in the file for as long as it is processed."""
        held = self._map
        if held is None:
            yield
            return
        size = len(batch)
        if _HEADER.size + size > len(held):
            held.resize(_HEADER.size + size)
        held[_HEADER.size : _HEADER.size + size] = batch
        held[: _HEADER.size] = _HEADER.pack(size, shard)
        try:
            yield
        finally:
            held[: _HEADER.size] = _HEADER.pack(0, 0)

    def suspected(self, shard: int, frames: FrameBatch) -> bool:
        """Say whether the batch holds a suspect."""
        places = self.suspects.get(shard)
        if not places:
            return False
        offsets = np.fromiter({place[2] for place in places}, np.int64)
        rows = np.flatnonzero(np.isin(frames.offset, offsets))
        return any(_place(frames, row) in places for row in rows.tolist())

    def settle(self, shard: int, frames: FrameBatch) -> None:
        """Clear the records of a batch of suspicion."""
        left = self.suspects.get(shard)
        if left is None:
            return
        left -= {_place(frames, row) for row in range(len(frames))}
        if not left:
            del self.suspects[shard]
            for file in self._left.pop(shard, ()):
                file.unlink(missing_ok=True)

    def _look(self) -> None:
        """Find the suspects that processes which are gone have left of this stage."""
        seen: Counter[tuple[int, Place]] = Counter()
        unexplained: list[Path] = []
        for file in sorted(self._folder.glob(f"*/{self._stage}.*.mark"), key=_age):
            _, pid, started, _, _ = file.name.rsplit(".", 4)
            crashed = _reported(int(pid), file)
            mine = file.parent == self._mine
            gone = not alive(ProcessId(int(pid), started)) if mine else crashed
            if not gone:
                continue
            found = _read(file)
            if found is None:
                file.unlink(missing_ok=True)
                continue
            shard, places = found
            for place in places:
                seen[shard, place] += 2 if crashed else 1
                if seen[shard, place] > 1:
                    self.suspects.setdefault(shard, set()).add(place)
            if not crashed:
                unexplained.append(file)
            self._left.setdefault(shard, set()).add(file)
        for file in unexplained[:-_KEPT]:
            file.unlink(missing_ok=True)


def report_crashes_to(folder: Path) -> None:
    """Have Python write a crash report, in a process that is no JVM (which writes its own)."""
    if _report:
        return
    mine = of_this_host(folder)
    with contextlib.suppress(OSError):
        mine.mkdir(parents=True, exist_ok=True)
        _report.append((mine / REPORT.format(pid=os.getpid())).open("wb", buffering=0))
        faulthandler.enable(_report[0])


def _reported(pid: int, mark: Path) -> bool:
    """Say whether the process of a mark left a crash report beside it."""
    try:
        report = mark.with_name(REPORT.format(pid=pid)).stat()
    except OSError:
        return False
    return report.st_size > 0 and report.st_mtime >= _age(mark)


def _read(file: Path) -> tuple[int, set[Place]] | None:
    """Return the shard and the places of the batch that was being processed, if any was."""
    try:
        data = file.read_bytes()
        size, shard = _HEADER.unpack_from(data)
        frames = FrameBatch.parse(data[_HEADER.size : _HEADER.size + size])
    except (OSError, struct.error, FrameError):
        return None
    return (shard, {_place(frames, row) for row in range(len(frames))}) if size else None


def _place(frames: FrameBatch, row: int) -> Place:
    topic = (frames.topic.bytes_at(row) or b"").decode("utf-8", "backslashreplace")
    return topic, int(frames.partition[row]), int(frames.offset[row])


def _age(file: Path) -> float:
    try:
        return file.stat().st_mtime
    except OSError:
        return 0.0
