"""Run a job's stages in one process: the bridge's part is played in plain Python.

Batches are cut where the test says, packets are split by the rules of docs/architecture.md, and
state lives in dictionaries that a test may keep to play a restart.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from connectors.frames import FrameBatch, FrameRecord, shard_of, write_frame
from jobs.stage import Stage

_PACKET = struct.Struct("<BBHII")


class DictState:
    """A shard's state map in a dictionary."""

    def __init__(self) -> None:
        self.entries: dict[int, bytes] = {}

    def get(self, key: int) -> bytes | None:
        return self.entries.get(key)

    def put(self, key: int, value: bytes) -> None:
        self.entries[key] = value

    def remove(self, key: int) -> None:
        self.entries.pop(key, None)

    def items(self) -> Iterator[tuple[int, bytes]]:
        return iter(list(self.entries.items()))


@dataclass
class Counts:
    """Metrics that remember."""

    counters: dict[str, int] = field(default_factory=dict)

    def count(self, name: str, by: int = 1) -> None:
        self.counters[name] = self.counters.get(name, 0) + by

    def observe_ms(self, name: str, milliseconds: float, times: int = 1) -> None:
        self.count(f"{name}_observed", times)

    def gauge(self, name: str, value: int) -> None:
        self.counters[name] = value


def packets(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Split a stage's output into (route, shard, payload)."""
    at = 0
    while at < len(data):
        route, _, _, shard, length = _PACKET.unpack_from(data, at)
        at += _PACKET.size
        yield route, shard, data[at : at + length]
        at += length


class Pipeline:
    """Two stages behind each other, `shards` shards each."""

    def __init__(self, first: Stage, second: Stage, shards: int) -> None:
        self.shards = shards
        self.metrics = Counts()
        self.stages = (first, second)
        self.state: tuple[dict[int, DictState], dict[int, DictState]] = ({}, {})
        self.records: list[FrameRecord] = []
        self.rows: list[bytes] = []
        for stage in self.stages:
            stage.open(self.metrics)

    def send(self, frames: Iterable[bytes], cut: Sequence[int] = ()) -> None:
        """Route frames to shards and run them in batches cut at the positions in `cut`."""
        listed = list(frames)
        bounds = [0, *sorted(cut), len(listed)]
        for low, high in pairwise(bounds):
            self._batch(listed[low:high])

    def _batch(self, frames: Sequence[bytes]) -> None:
        if not frames:
            return
        batch = FrameBatch.parse(b"".join(frames))
        shards = shard_of(batch.key, self.shards, batch)
        per_shard: dict[int, list[bytes]] = {}
        for index, frame in enumerate(frames):
            targets = range(self.shards) if batch.control[index] else [int(shards[index])]
            for shard in targets:
                per_shard.setdefault(shard, []).append(frame)
        onward: dict[int, bytes] = {}
        for shard, parts in sorted(per_shard.items()):
            self._run(0, shard, b"".join(parts), onward)
        for shard, data in sorted(onward.items()):
            self._run(1, shard, data, {})

    def _run(self, stage: int, shard: int, batch: bytes, onward: dict[int, bytes]) -> None:
        state = self.state[stage].setdefault(shard, DictState())
        for route, target, payload in packets(self.stages[stage].process(shard, batch, state)):
            if route == 0:
                onward[target] = onward.get(target, b"") + payload
            elif route == 1:
                written = FrameBatch.parse(payload)
                self.records += [written.record_at(index) for index in range(len(written))]
            else:
                self.rows.append(payload)


def frame(
    topic: str,
    key: str | bytes | None,
    value: bytes | None,
    offset: int,
    *,
    partition: int = 0,
    timestamp_ms: int = 1_700_000_000_000,
    headers: tuple[tuple[str, bytes | None], ...] = (),
    control: bool = False,
) -> bytes:
    """Return the frame of one Kafka record."""
    return write_frame(
        topic,
        key.encode() if isinstance(key, str) else key,
        value,
        headers=headers,
        partition=partition,
        offset=offset,
        timestamp_ms=timestamp_ms,
        ingested_at_ms=timestamp_ms + 1,
        control=control,
    )
