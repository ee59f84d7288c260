"""Rows for live pages are those of the tables, in the columns of the pages."""

from __future__ import annotations

import pyarrow as pa
import pytest

from connectors.settings import load_settings
from dashboards.queries import FEEDS
from jobs.market_risk.tables import Table
from tests.support.market import MarketJob, market_stream


@pytest.fixture
def job(tmp_path):
    settings = load_settings(
        None, {}, [f"schemas.registry=file:{tmp_path}", "flink.shards=2", "flink.parallelism=1"]
    )
    job = MarketJob(settings)
    for frames in market_stream(settings, batches=4):
        job.feed(frames)
    return job


def live(job):
    """Every live record: table, version and rows."""
    topic = job.settings.kafka.topics.name("live")
    for batch in job.kafka:
        for row in range(len(batch)):
            if batch.topic.text_at(row) == topic:
                headers = dict(batch.headers_at(row))
                with pa.ipc.open_stream(batch.value.bytes_at(row)) as stream:
                    yield headers["table"].decode(), int(headers["version"]), stream.read_all()


def test_columns_are_those_of_the_streaming_tables(job):
    feeds = {feed.live: feed for page in FEEDS.values() for feed in page if feed.live}
    kinds = {"string": "string", "double": "float", "timestamp[ms]": "datetime"}
    seen = set()
    for name, _, rows in live(job):
        if name == "firms":
            continue
        found = tuple(
            (
                field.name,
                kinds[str(getattr(field.type, "value_type", field.type))],
            )
            for field in rows.schema
        )
        assert found == feeds[name].columns
        seen.add(name)
    assert seen == set(feeds)


def test_live_rows_say_what_the_tables_say(job):
    positions, fills = {}, {}
    for name, version, rows in live(job):
        for row in rows.to_pylist():
            if name == "fills":
                fills[row["fill_id"]] = row
            elif name == "positions":
                positions[row["position_key"]] = (version, row)
    written = {
        "/".join(row[f"{part}_id"] for part in ("firm", "account", "desk", "instrument")): row
        for row in job.rows(Table.POSITIONS)
    }
    assert set(positions) == set(written)
    for key, (version, row) in positions.items():
        assert version == written[key]["evaluated_at_ms"]
        assert row["priced"] == "yes"
        for column in ("quantity", "mark", "value", "realised", "unrealised", "fees", "delta"):
            assert row[column] == written[key][column], column
    applied = {row["fill_id"]: row for row in job.rows(Table.FILLS) if row["outcome"] == 0}
    assert set(fills) == set(applied)
    assert len(applied) < len(job.rows(Table.FILLS))
    for fill_id, row in fills.items():
        assert (row["quantity"], row["price"]) == (
            applied[fill_id]["quantity"],
            applied[fill_id]["price"],
        )
        assert row["side"] == ("sell" if row["quantity"] < 0 else "buy")


def test_a_flat_position_has_no_average_price_rather_than_no_number(job):
    cells = [
        row["average_price"]
        for name, _, rows in live(job)
        if name == "positions"
        for row in rows.to_pylist()
    ]
    assert all(cell is None or cell == cell for cell in cells)


def test_firms_are_measured_as_in_the_table(job):
    found = [row for name, _, rows in live(job) if name == "firms" for row in rows.to_pylist()]
    written = [row for row in job.rows(Table.MEASURES) if row["scope"] == "firm"]
    written = [row for row in written if row["value_at_risk"] == row["value_at_risk"]]
    assert len(found) == len(written) > 3
    for row, stored in zip(found, written, strict=True):
        assert row == {name: stored[name] for name in row}
