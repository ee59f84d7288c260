"""The totals of the traders' page are those of ClickHouse with newer live rows over them."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import pyarrow as pa
import pytest

from dashboards.live import Pushed
from dashboards.reader import Freshness, PanelAnswer
from dashboards.totals import LiveTotals

COLUMNS = ("pnl", "value_at_risk", "expected_shortfall", "gross", "net", "leverage", "margin")


def firm(name: str, version_ms: int, value: float | None) -> dict[str, Any]:
    whole = {"positions": 3, "unpriced": 0, "stale": 0}
    return {"firm_id": name, **dict.fromkeys(COLUMNS, value), **whole, "version_ms": version_ms}


class Reader:
    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows = rows

    async def rows_of(self, source: str, query: str) -> PanelAnswer:
        assert source == "measures"
        return PanelAnswer(self.rows, Freshness(1_000, 500, False, ""), 1.0)


def pushed(*rows: dict[str, Any], table: str = "firms") -> Pushed:
    versions = {row.pop("version_ms") for row in rows}
    batch = pa.RecordBatch.from_pylist(list(rows))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return Pushed(table, versions.pop(), sink.getvalue().to_pybytes())


@pytest.fixture
def ask():
    def answered(rows: list[dict[str, Any]], *live: Pushed) -> dict[str, Any]:
        totals = LiveTotals(Reader(rows))  # type: ignore[arg-type]
        for one in live:
            totals.push(one)
        return asyncio.run(totals.answer())

    return answered


def test_the_newer_row_of_a_firm_counts_wherever_it_comes_from(ask):
    rows = [firm("a", 900, 1.0), firm("b", 990, 10.0)]
    found = ask(rows, pushed(firm("a", 1_200, 5.0)), pushed(firm("b", 950, 99.0)))
    (total,) = found["rows"]
    assert (total["pnl"], total["leverage"], total["positions"]) == (15.0, 10.0, 6)
    assert (found["newest_ms"], found["age_ms"]) == (1_200, 300)
    (alone,) = ask(rows)["rows"]
    assert alone["pnl"] == 11.0


def test_an_unknown_part_makes_the_whole_unknown_and_nothing_is_no_row(ask):
    (total,) = ask([firm("a", 1, math.pi), firm("b", 1, None)])["rows"]
    assert total["value_at_risk"] is None
    assert ask([])["rows"] == []
    other = pushed(firm("c", 2_000, 1.0), table="positions")
    assert ask([], other)["rows"] == []
