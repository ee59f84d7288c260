"""First stage of the fraud job: check each event, count it in its customer's windows, send it on.

In: frames of transactions, labels and control records, by customer shard. Out: the same frames with
the customer's features attached, routed to the terminal's shard; dead letters for what was refused.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

import numpy as np

from connectors.frames import kafka_packet, route_frames, shard_of
from jobs.fraud.intake import Intake, Kind, Refusal, describe
from jobs.fraud.shard import open_store
from jobs.windows.batch import EventBatch, RowFlag

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from connectors.frames import FrameBatch
    from jobs.fraud.parts import StageParts
    from jobs.stage import Metrics, StateMap
    from jobs.windows.state_log import StateLog
    from jobs.windows.store import ShardStore

__all__ = ["CustomerStage", "event_batch"]

ENTITY: Final = "customer"
# An array compared with a member of an enum asks it for half a dozen attributes first: 10 us.
TRANSACTION: Final = int(Kind.TRANSACTION)
REFUSED: Final = int(Kind.REFUSED)
DUPLICATE: Final = int(RowFlag.DUPLICATE)


class CustomerStage:
    """Windows per customer; duplicates, bad records and wrong keys end here."""

    def __init__(self, parts: StageParts) -> None:
        self._parts = parts

    def open(self, metrics: Metrics) -> None:
        """Read the contracts, compile and warm the kernels."""
        self._metrics = metrics
        self._intake = self._parts.intake()
        self._dead_letters = self._parts.dead_letters(ENTITY)
        self._features = self._parts.features
        self._shard_count = self._parts.settings.flink.shards
        self._shards: dict[int, tuple[ShardStore, StateLog]] = {}
        self._parts.warm()

    def process(self, shard: int, batch: bytes, state: StateMap) -> bytes:
        """Return packets: frames for the terminal's shards and dead letters."""
        began = time.perf_counter()
        if shard not in self._shards:
            self._shards[shard] = open_store(self._features, ENTITY, state)
        store, log = self._shards[shard]
        intake = self._intake.read(batch)
        processed = store.process(event_batch(intake, ENTITY))
        if processed.delta:
            log.append(processed.delta, store.clock_ms)
        if (processed.flags & DUPLICATE).any():
            doubles = np.flatnonzero(
                ((processed.flags & DUPLICATE) != 0) & (intake.kind == TRANSACTION)
            )
            intake.refuse(doubles, Refusal.DUPLICATE_EVENT)
        packets = self._onward(intake, processed.features, processed.flags, shard)
        refused = np.flatnonzero(intake.kind == REFUSED)
        if len(refused):
            packets += kafka_packet(self._letters(intake, refused))
        self._count(intake, len(refused), began)
        return packets

    def forget(self, shard: int) -> None:
        """Drop what memory holds of a shard."""
        self._shards.pop(shard, None)

    def letter(self, frames: FrameBatch, row: int, reason: str, detail: str) -> bytes:
        """Return the frame of a dead letter."""
        return self._dead_letters.frame(frames, row, reason, detail)

    def _onward(
        self,
        intake: Intake,
        features: NDArray[np.float64],
        flags: NDArray[np.uint8],
        shard: int,
    ) -> bytes:
        targets = shard_of(intake.text("terminal_id"), self._shard_count)
        # Each shard of this stage has its own copy of a control record and hands it to one shard of
        # the next, so that every shard there gets it once.
        if len(intake.controls):
            targets[intake.controls] = shard
        width = features.shape[1]
        attachments = np.empty((len(features), width + 1))
        attachments[:, :width] = features
        attachments[:, width] = flags
        return route_frames(
            intake.frames, targets, self._shard_count, intake.kind != REFUSED, attachments
        )

    def _letters(self, intake: Intake, refused: NDArray[np.intp]) -> list[bytes]:
        letters = []
        for row in refused.tolist():
            code, detail = describe(int(intake.reason[row]))
            self._metrics.count(f"dead_letters_{code}")
            letters.append(self._dead_letters.frame(intake.frames, row, code, detail))
        return letters

    def _count(self, intake: Intake, refused: int, began: float) -> None:
        metrics = self._metrics
        metrics.count("events_in", len(intake.transactions) + refused)
        metrics.count("labels_in", len(intake.labels))
        metrics.count("dead_letters", refused)
        metrics.count("batches")
        metrics.gauge("batch_size", len(intake))
        metrics.observe_ms("customer_stage_ms", (time.perf_counter() - began) * 1000)


def event_batch(intake: Intake, entity: str) -> EventBatch:
    """Return the batch as the window store of `entity` takes it; other rows are ignored by it."""
    fields = {
        name: column
        for name, column in intake.columns.items()
        if name not in {"event_id", "customer_id", "terminal_id", "event_time_ms"}
    }
    return EventBatch(
        kind=np.minimum(intake.kind, 2),
        key=intake.text(f"{entity}_id"),
        event_time_ms=intake.number("event_time_ms"),
        event_id=intake.text("event_id"),
        fields=fields,
    )
