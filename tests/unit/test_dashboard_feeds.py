"""Streaming tables hold the newest rows of their feed, and no more."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any

import perspective
import pyarrow as pa
import pytest

from dashboards.feeds import FeedPump
from dashboards.live import Pushed
from dashboards.panels import Feed

FEED = Feed(
    name="blotter",
    title="Blotter",
    source="fills",
    view="fills",
    select="id, price",
    columns=(("id", "string"), ("price", "float")),
    index="id",
    limit=5,
    help="",
)
LIVE = dataclasses.replace(FEED, live="prices", version="made_ms", limit=0)


class Reader:
    """Answers from a list of (inserted_ms, id, price), as ClickHouse does for the feed's query."""

    def __init__(self) -> None:
        self.rows_held: list[tuple[int, str, float]] = []

    def rows(self, query: str, parameters: dict[str, int]) -> list[dict[str, Any]]:
        found = [row for row in self.rows_held if row[0] >= parameters["after"]]
        found = sorted(found)[-parameters["most"] :]
        return [
            {"id": key, "price": price, "version_ms": at - 1_000, "inserted_ms": at}
            for at, key, price in found
        ]

    async def in_thread(self, work: Any) -> Any:
        return work()


def pushed(version_ms: int, **prices: float) -> Pushed:
    batch = pa.record_batch([list(prices), list(prices.values())], names=["id", "price"])
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return Pushed("prices", version_ms, sink.getvalue().to_pybytes())


@pytest.fixture
def pump(request):
    reader, server = Reader(), perspective.Server()
    made = FeedPump(reader, server, [getattr(request, "param", FEED)])  # type: ignore[arg-type]
    table = server.new_local_client().open_table("blotter")

    def poll(*rows: tuple[int, str, float]) -> dict[str, float]:
        reader.rows_held += rows
        asyncio.run(made.poll(FEED))
        return {row["id"]: row["price"] for row in table.view().to_records()}

    return made, poll


def test_the_oldest_rows_leave_as_new_ones_come(pump):
    made, poll = pump
    first = poll(*[(1_000 * at, f"f{at}", at) for at in range(1, 6)])
    assert sorted(first) == ["f1", "f2", "f3", "f4", "f5"]
    later = poll((6_000, "f6", 6.0), (7_000, "f7", 7.0))
    assert sorted(later) == ["f3", "f4", "f5", "f6", "f7"]
    for at in range(8, 60):
        poll((1_000 * at, f"f{at}", at))
    assert made.size(FEED) == 5
    assert sorted(poll()) == ["f55", "f56", "f57", "f58", "f59"]


def test_a_row_that_changes_stays_and_counts_as_new(pump):
    _, poll = pump
    poll(*[(1_000 * at, f"f{at}", at) for at in range(1, 6)])
    found = poll((6_000, "f1", 9.0), (7_000, "f7", 7.0))
    assert found["f1"] == 9.0
    assert sorted(found) == ["f1", "f3", "f4", "f5", "f7"]


@pytest.mark.parametrize("pump", [LIVE], indirect=True)
def test_rows_that_were_pushed_are_not_replaced_by_older_ones_of_clickhouse(pump):
    made, poll = pump
    assert poll((2_000, "a", 1.0), (2_000, "b", 1.0)) == {"a": 1.0, "b": 1.0}
    made.push(pushed(5_000, a=5.0, c=5.0))
    # Of a row made at 4,000 and one made at 6,000 only the second is news.
    assert poll((5_000, "a", 4.0), (7_000, "c", 6.0)) == {"a": 5.0, "b": 1.0, "c": 6.0}
    assert made.pushed_ms(LIVE) == 5_000


def test_pushed_rows_of_other_tables_or_columns_change_nothing():
    reader, server = Reader(), perspective.Server()
    other = dataclasses.replace(LIVE, columns=(("id", "string"), ("size", "float")))
    made = FeedPump(reader, server, [FEED, dataclasses.replace(other, name="sizes")])  # type: ignore[arg-type]
    made.push(pushed(5_000, a=5.0))
    assert made.size(FEED) == 0
    assert made.pushed_ms(LIVE) == 0


@pytest.mark.parametrize("pump", [dataclasses.replace(LIVE, version="0", limit=5)], indirect=True)
def test_pushed_rows_count_against_the_limit(pump):
    made, poll = pump
    made.push(pushed(1_000, **{f"f{at}": float(at) for at in range(1, 8)}))
    assert sorted(poll()) == ["f3", "f4", "f5", "f6", "f7"]
