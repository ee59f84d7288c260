"""The end of a ClickHouse branch: insert gathered rows before the checkpoint barrier passes.

A stage packs rows with `table_rows`, Flink gathers the packets of many batches, and a `RowTables`
inserts them, one table at a time.
"""

from __future__ import annotations

import struct
import time
from abc import ABC, abstractmethod
from threading import Event
from typing import TYPE_CHECKING, Final

from connectors.clickhouse import ClickHouseUnavailable, ClickHouseWriter
from connectors.frames import rows_packet

if TYPE_CHECKING:
    from collections.abc import Sequence

    from connectors.row_binary import RowBinaryLayout
    from connectors.settings import ClickHouseSettings
    from jobs.stage import Metrics

__all__ = ["RowTables", "table_rows"]

_COUNT_BYTES: Final = 4
_BLOCK: Final = struct.Struct("<III")  # table, rows, bytes of the rows


class RowTables(ABC):
    """Insert what `RowGather` collected, one table at a time; block while ClickHouse is away."""

    def __init__(self, settings: ClickHouseSettings) -> None:
        self._settings = settings

    @abstractmethod
    def tables(self) -> Sequence[tuple[str, RowBinaryLayout]]:
        """Return name and layout of each table, by its number in row packets."""

    def open(self, metrics: Metrics) -> None:
        """Connect."""
        self._metrics = metrics
        self._tables = tuple(self.tables())
        self._closed = Event()
        self._writer = ClickHouseWriter(
            self._settings, on_retry=self._retried, sleep=self._sleep_unless_closed
        )

    def write(self, rows: bytes) -> None:
        """Insert the rows; return when ClickHouse has confirmed them."""
        began = time.perf_counter()
        for table, (count, packed) in sorted(_by_table(rows).items()):
            name, layout = self._tables[table]
            self._writer.insert(name, layout, count, packed)
            self._metrics.count("rows_inserted", count)
        self._metrics.observe_ms("clickhouse_insert_ms", (time.perf_counter() - began) * 1000)

    def close(self) -> None:
        """Let an insert that waits for ClickHouse fail; the restarted task reads its rows again."""
        self._closed.set()

    def _sleep_unless_closed(self, seconds: float) -> None:
        if self._closed.wait(seconds):
            msg = "inserting rows: the task ended while ClickHouse was away"
            raise ClickHouseUnavailable(msg)

    def _retried(self, attempt: int, error: Exception) -> None:
        self._metrics.count("clickhouse_retries")
        self._metrics.gauge("clickhouse_waiting_attempts", attempt)


def table_rows(table: int, count: int, packed: bytes) -> bytes:
    """Return the packet of rows for one table; rows of several tables are gathered together."""
    if not count:
        return b""
    return rows_packet(count, _BLOCK.pack(table, count, len(packed)) + packed)


def _by_table(rows: bytes) -> dict[int, tuple[int, bytes]]:
    # One block for each batch that was gathered: some hundreds in an insert, not one an event.
    parts: dict[int, list[bytes]] = {}
    counts: dict[int, int] = {}
    at = _COUNT_BYTES
    while at < len(rows):
        table, count, length = _BLOCK.unpack_from(rows, at)
        at += _BLOCK.size
        parts.setdefault(table, []).append(rows[at : at + length])
        counts[table] = counts.get(table, 0) + count
        at += length
    return {table: (counts[table], b"".join(blocks)) for table, blocks in parts.items()}
