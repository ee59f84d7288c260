"""What a job is made of: stages that take batches of frames, and writers that take gathered rows.

These are the seams between a job's own code, which never imports pyflink, and `jobs.runtime`, which
runs it on Flink. A stage is created in the client, pickled into the job graph, and opened once in
each task; everything heavy belongs in `open`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

__all__ = ["Metrics", "Stage", "StateMap", "Writer"]

if TYPE_CHECKING:
    from connectors.frames import FrameBatch


class StateMap(Protocol):
    """The durable state of one shard: bytes by number, part of every checkpoint."""

    def get(self, key: int) -> bytes | None:
        """Return the value, or None."""

    def put(self, key: int, value: bytes) -> None:
        """Store the value; it survives a restart from the next checkpoint on."""

    def remove(self, key: int) -> None:
        """Forget the key; an absent key is not an error."""

    def items(self) -> Iterator[tuple[int, bytes]]:
        """Iterate over all entries, in no particular order."""


class Metrics(Protocol):
    """Counters and distributions; names are documented in docs/metrics.md."""

    def count(self, name: str, by: int = 1) -> None:
        """Add to a counter."""

    def observe_ms(self, name: str, milliseconds: float, times: int = 1) -> None:
        """Put one duration (or several equal ones) into the histogram of that name."""

    def gauge(self, name: str, value: int) -> None:
        """Set the current value."""


class Stage(Protocol):
    """One keyed stage: batch in, packets out (docs/architecture.md gives both formats)."""

    def open(self, metrics: Metrics) -> None:
        """Load and warm up whatever is heavy; called once per task, before the first batch."""

    def process(self, shard: int, batch: bytes, state: StateMap) -> bytes:
        """Process one batch of the shard and return packets, possibly none.

        Called for one shard at a time, batches of a shard in their order. After a restart the
        in-memory store of a shard is rebuilt from `state` when its first batch arrives.
        """

    def forget(self, shard: int) -> None:
        """Drop what memory holds of a shard: a batch failed halfway, the state knows nothing of it.

        The next batch rebuilds the shard.
        """

    def letter(self, frames: FrameBatch, row: int, reason: str, detail: str) -> bytes:
        """Return the frame of the dead letter of a record that `process` cannot bear."""


class Writer(Protocol):
    """The end of a branch that stores gathered rows."""

    def open(self, metrics: Metrics) -> None:
        """Connect; called once per task."""

    def write(self, rows: bytes) -> None:
        """Store the rows before returning: what is stored decides whether a checkpoint completes.

        `rows` is the count of rows as u32 and then the payloads of the gathered row packets.
        Blocks, and so pushes back, while the database is away. Called for one packet at a time, in
        their order, from a thread that need not be the one that opened the writer.
        """

    def close(self) -> None:
        """End a `write` that waits for the database: nobody needs its rows any more."""
