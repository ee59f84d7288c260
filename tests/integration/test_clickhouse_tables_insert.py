"""Packed rows go through the HTTP interface into the real engine, once."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from connectors.activity import recent_rows
from connectors.clickhouse import ClickHouseClient, ClickHouseRefused, ClickHouseWriter
from connectors.migrations import migrate
from connectors.row_binary import NameSets
from connectors.settings import ClickHouseSettings
from connectors.tables import SCORED_TABLE, SCORED_VIEW, control_layout, label_layout, scored_layout
from schemas.columns import StringColumn
from tests.integration._clickhouse_process import clickhouse

FEATURES = ["amount", "nights"]


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClickHouseSettings]:
    with clickhouse(tmp_path_factory.mktemp("clickhouse")) as port:
        made = ClickHouseSettings(url=f"http://127.0.0.1:{port}")
        client = ClickHouseClient(made)
        assert {step.state for step in migrate(client, FEATURES)} == {"applied"}
        assert {step.state for step in migrate(client, FEATURES)} == {"done before"}
        client.close()
        yield made


def _columns(n: int, day: int) -> dict[str, Any]:
    return {
        "event_time_ms": np.arange(n) * day, "amount_minor": np.arange(n),
        "channel": np.zeros(n, np.int32), "score": np.full(n, np.nan), "decision": np.arange(n) % 3,
        "flags": np.zeros(n, np.uint16), "kafka_partition": 0, "kafka_offset": np.arange(n),
        "published_at_ms": 1, "ingested_at_ms": 2, "decided_at_ms": np.arange(n), "seen_order": 7,
        "event_id": StringColumn.from_texts([str(i) for i in range(n)]),
        "customer_id": "c", "terminal_id": "é\0'", "merchant_id": "", "currency": "EUR",
        "country": "", "tenant": "", "model_version": "m", "rule_set_version": "r",
        "feature_set_version": "f", "kafka_topic": "t",
        "rules_fired": NameSets(np.ones(n, np.uint64), ["big"]),
        "features": np.column_stack([np.arange(n) / 3, np.full(n, np.nan)]),
    }  # fmt: skip


def test_rows_of_many_years_arrive_once_however_often_they_are_inserted(
    settings: ClickHouseSettings,
) -> None:
    layout = scored_layout(FEATURES)
    n = 500
    rows = layout.pack(_columns(n, 10 * 86_400_000), n)
    writer = ClickHouseWriter(settings, give_up_after=0)
    client = ClickHouseClient(settings)
    client.execute(f"SYSTEM STOP MERGES {SCORED_TABLE}")
    writer.insert(SCORED_TABLE, layout, n, rows)
    writer.insert(SCORED_TABLE, layout, n, rows)
    # The same rows under the same token are stored once, under another one beside them.
    assert client.rows(f"SELECT count() AS n FROM {SCORED_TABLE}") == [{"n": n}]
    writer.insert(SCORED_TABLE, layout, n, rows, token="another")
    assert client.rows(f"SELECT count() AS n FROM {SCORED_TABLE}") == [{"n": 2 * n}]
    client.execute(f"SYSTEM START MERGES {SCORED_TABLE}")
    writer.close()
    (counted,) = client.rows(f"SELECT count() AS n, uniqExact(event_id) AS ids FROM {SCORED_VIEW}")
    assert counted == {"n": n, "ids": n}
    (row,) = client.rows(f"SELECT * FROM {SCORED_VIEW} WHERE event_id = {{id:String}}", {"id": "7"})
    assert row["terminal_id"] == "é\0'"
    assert math.isclose(row["amount"], 7 / 3, rel_tol=0)
    assert (row["decision"], row["rules_fired"]) == ("review", ["big"])
    assert recent_rows(client, 600).decisions["approve"] >= n // 3
    client.close()


def test_rows_that_repeat_within_an_insert_are_shown_once_before_any_merge(
    settings: ClickHouseSettings,
) -> None:
    layout = scored_layout(FEATURES)
    n = 300
    columns = _columns(n, 1) | {"kafka_topic": "repeated"}
    earlier, later = ({**columns, "decided_at_ms": at, "amount_minor": at} for at in (5, 6))
    writer = ClickHouseWriter(settings, give_up_after=0)
    client = ClickHouseClient(settings)
    client.execute(f"SYSTEM STOP MERGES {SCORED_TABLE}")
    rows = layout.pack(later, n) + layout.pack(earlier, n)
    writer.insert(SCORED_TABLE, layout, 2 * n, rows)
    writer.close()
    of_these = "WHERE kafka_topic = 'repeated'"
    (raw,) = client.rows(f"SELECT count() AS n FROM {SCORED_TABLE} {of_these}")
    (shown,) = client.rows(
        f"SELECT count() AS n, uniqExact(event_id) AS ids, min(amount_minor) AS least "
        f"FROM {SCORED_VIEW} {of_these}"
    )
    client.execute(f"SYSTEM START MERGES {SCORED_TABLE}")
    client.close()
    # All are in one part, unmerged; of each two the view shows the one that was decided last.
    assert raw == {"n": 2 * n}
    assert shown == {"n": n, "ids": n, "least": 6}


def test_labels_show_the_highest_revision_and_control_outcomes_each_shard(
    settings: ClickHouseSettings,
) -> None:
    labels, control = label_layout(), control_layout()
    writer = ClickHouseWriter(settings, give_up_after=0)
    packed = labels.pack(
        {
            "event_time_ms": 5, "is_fraud": np.array([1, 0, 1]), "labelled_at_ms": 9, "source": 1,
            "revision": np.array([0, 2, 1]), "kafka_partition": 0, "kafka_offset": np.arange(3),
            "seen_order": 1,
            "event_id": "e", "customer_id": "c", "terminal_id": "t", "kafka_topic": "labels",
        },
        3,
    )  # fmt: skip
    writer.insert("labels_raw", labels, 3, packed)
    outcomes = control.pack(
        {
            "issued_at_ms": 1, "shard": np.arange(4), "applied_at_ms": 2, "kafka_partition": 0,
            "kafka_offset": 7, "control_id": "x", "kind": "activate_model", "subject": "fraud/2",
            "issued_by": "ann", "outcome": "applied", "detail": "", "kafka_topic": "control",
        },
        4,
    )  # fmt: skip
    writer.insert("control_outcomes", control, 4, outcomes)
    writer.close()
    client = ClickHouseClient(settings)
    assert client.rows("SELECT is_fraud, revision FROM labels") == [
        {"is_fraud": False, "revision": 2}
    ]
    assert client.rows("SELECT count() AS n FROM labels_raw FINAL") == [{"n": 3}]
    assert client.rows("SELECT count() AS n FROM control_outcomes FINAL") == [{"n": 4}]
    client.close()


def test_rows_that_are_cut_short_are_refused_and_leave_nothing(
    settings: ClickHouseSettings,
) -> None:
    layout = label_layout()
    writer = ClickHouseWriter(settings, give_up_after=0)
    with pytest.raises(ClickHouseRefused):
        writer.insert("labels_raw", layout, 1, b"\x01\x02\x03")
    with pytest.raises(ClickHouseRefused):
        writer.insert("no_such_table", layout, 1, b"\x01\x02\x03")
    writer.close()
