"""Streaming tables hold the newest rows of their feed, and no more."""

from __future__ import annotations

import asyncio
from typing import Any

import perspective
import pytest

from dashboards.feeds import FeedPump
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


class Reader:
    """Answers from a list of (inserted_ms, id, price), as ClickHouse does for the feed's query."""

    def __init__(self) -> None:
        self.rows_held: list[tuple[int, str, float]] = []

    def rows(self, query: str, parameters: dict[str, int]) -> list[dict[str, Any]]:
        found = [row for row in self.rows_held if row[0] >= parameters["after"]]
        found = sorted(found)[-parameters["most"] :]
        return [{"id": key, "price": price, "inserted_ms": at} for at, key, price in found]

    async def in_thread(self, work: Any) -> Any:
        return work()


@pytest.fixture
def pump():
    reader, server = Reader(), perspective.Server()
    made = FeedPump(reader, server, [FEED])  # type: ignore[arg-type]
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
