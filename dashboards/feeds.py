"""Stream rows from ClickHouse into Perspective tables, which every open page then shares.

Rows that a job publishes on the live topic come straight from there as well; ClickHouse then fills
the tables at the start and whatever the topic did not bring.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Any, Final

import perspective
import pyarrow as pa

from dashboards.live import Pushed
from dashboards.panels import Feed
from dashboards.reader import PanelReader
from schemas.errors import RiskstreamError

__all__ = ["FeedPump", "feed_query"]

_LOG: Final = logging.getLogger(__name__)

# A row gets its `inserted_at` before it can be read, and inserts overlap: what is this much older
# than the newest row seen is read again. Rows replace themselves by their index, so it costs only
# the reading.
_OVERLAP_MS: Final = 3_000
# With query and drawing a page is then within a second of a row; shorter presses ClickHouse.
_POLL_SECONDS: Final = 0.25
_POLL_AFTER_ERROR_SECONDS: Final = 2.0
# While the live topic brings rows, ClickHouse has only to bring what it missed.
_POLL_PUSHED_SECONDS: Final = 2.0
_PUSHED_LATELY_SECONDS: Final = 10.0


def feed_query(feed: Feed) -> str:
    """Return the query for what came after `after` (ms), the newest `most` rows of it."""
    names = ", ".join(name for name, _ in feed.columns)
    inner = (
        f"SELECT {feed.select}, {feed.version} AS version_ms, "  # noqa: S608
        f"toUnixTimestamp64Milli(inserted_at) AS inserted_ms "
        f"FROM {feed.view} WHERE inserted_at >= fromUnixTimestamp64Milli({{after:Int64}}, 'UTC') "
        f"AND ({feed.where}) ORDER BY inserted_at DESC LIMIT {{most:UInt32}}"
    )
    return f"SELECT {names}, version_ms, inserted_ms FROM ({inner}) ORDER BY inserted_ms"  # noqa: S608


class FeedPump:
    """Keeps Perspective tables up to date for as long as `run` runs.

    A table holds the newest `limit` rows of its feed (0: all, at most `most` at the start). A row
    that comes again replaces itself. While ClickHouse is away tables stay as they are, and their
    panels show how old that is.

    Args:
        reader: asks ClickHouse.
        server: the Perspective server that pages connect to.
        feeds: what to stream.
        most: rows read at once at most; at the start the oldest beyond it are left out.
    """

    def __init__(
        self,
        reader: PanelReader,
        server: perspective.Server,
        feeds: Sequence[Feed],
        most: int = 50_000,
    ) -> None:
        self._reader = reader
        self._feeds = feeds
        self._most = most
        self._after = {feed.name: 0 for feed in feeds}
        # Keys in the table, the longest unchanged first.
        self._held: dict[str, OrderedDict[str, None]] = {feed.name: OrderedDict() for feed in feeds}
        # Of feeds with versions: that of each row that was pushed.
        self._versions: dict[str, dict[str, int]] = {feed.name: {} for feed in feeds}
        self._pushed_ms: dict[str, int] = {}
        self._pushed_at: dict[str, float] = {}
        self._lock = threading.Lock()
        client = server.new_local_client()
        self._tables: dict[str, Any] = {
            feed.name: client.table(dict(feed.columns), name=feed.name, **_options(feed))
            for feed in feeds
        }

    async def run(self) -> None:
        """Poll every feed until cancelled."""
        await asyncio.gather(*(self._follow(feed) for feed in self._feeds))

    async def poll(self, feed: Feed) -> int:
        """Take what is new of one feed; return how many rows were read.

        Raises:
            RiskstreamError: when ClickHouse is away or refuses.
        """
        count: int = await self._reader.in_thread(lambda: self._take(feed))
        return count

    def push(self, pushed: Pushed) -> None:
        """Take rows that a job published; called on any thread.

        Rows whose columns are not those of the feed are left to ClickHouse.
        """
        for feed in self._feeds:
            if feed.live == pushed.table:
                with pa.ipc.open_stream(pushed.rows) as stream:
                    table = stream.read_all()
                if table.column_names != [name for name, _ in feed.columns]:
                    continue
                keys = table.column(feed.index).to_pylist()
                with self._lock:
                    if feed.version != "0":
                        self._versions[feed.name].update(dict.fromkeys(keys, pushed.version_ms))
                    self._put(feed, pushed.rows, keys)
                self._pushed_ms[feed.name] = pushed.version_ms
                self._pushed_at[feed.name] = time.monotonic()

    def pushed_ms(self, feed: Feed) -> int:
        """Return when the newest rows that were pushed were made (wall clock, ms), 0 for never."""
        return self._pushed_ms.get(feed.name, 0)

    def size(self, feed: Feed) -> int:
        """Return how many rows a feed's table holds."""
        return int(self._tables[feed.name].size())

    async def _follow(self, feed: Feed) -> None:
        complained = False
        while True:
            try:
                await self.poll(feed)
                complained = False
            except RiskstreamError as e:
                if not complained:
                    _LOG.warning("feeding %s: %s", feed.name, e)
                complained = True
                await asyncio.sleep(_POLL_AFTER_ERROR_SECONDS)
            lately = time.monotonic() - self._pushed_at.get(feed.name, -_PUSHED_LATELY_SECONDS)
            pushed = lately < _PUSHED_LATELY_SECONDS
            await asyncio.sleep(_POLL_PUSHED_SECONDS if pushed else _POLL_SECONDS)

    def _take(self, feed: Feed) -> int:
        most = min(self._most, feed.limit) if feed.limit else self._most
        rows = self._reader.rows(feed_query(feed), {"after": self._after[feed.name], "most": most})
        if not rows:
            return 0
        newest = max(int(row.pop("inserted_ms")) for row in rows)
        with self._lock:
            known = self._versions[feed.name]
            fresh = [
                row
                for row in rows
                if int(row.pop("version_ms")) > known.get(str(row[feed.index]), -1)
            ]
            if fresh:
                self._put(feed, fresh, [str(row[feed.index]) for row in fresh])
        self._after[feed.name] = max(0, newest - _OVERLAP_MS)
        return len(rows)

    def _put(self, feed: Feed, rows: list[dict[str, Any]] | bytes, keys: Iterable[str]) -> None:
        table, held = self._tables[feed.name], self._held[feed.name]
        table.update(rows)
        if feed.limit:
            for key in keys:
                held[key] = None
                held.move_to_end(key)
            surplus = [held.popitem(last=False)[0] for _ in range(len(held) - feed.limit)]
            if surplus:
                table.remove(surplus)


def _options(feed: Feed) -> dict[str, Any]:
    # Perspective takes either an index or a limit; the index is what makes a re-read harmless, so
    # the pump removes what is beyond the limit itself.
    return {"index": feed.index}
