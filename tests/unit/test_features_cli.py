"""`riskstream features`: what it prints, what it writes, how it ends; and lineage below it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from jobs.cli.features import features
from jobs.fraud.features import FRAUD_FEATURES
from jobs.windows.durations import DAY_MS
from jobs.windows.lineage import RecordedEvent, RecordedLabel, trace
from jobs.windows.offline import OfflineRun, build_features
from jobs.windows.verify import differences

DECLARATION = str(Path(__file__).parents[2] / "jobs" / "fraud" / "features.py")
START = 1_522_540_800_000


def handbook(rows: int) -> pa.Table:
    return pa.table(
        {
            "TRANSACTION_ID": list(range(rows)),
            "TX_DATETIME": pa.array(
                [START + i * DAY_MS // 4 for i in range(rows)], pa.timestamp("ms")
            ),
            "CUSTOMER_ID": [i % 3 for i in range(rows)],
            "TERMINAL_ID": [i % 2 for i in range(rows)],
            "TX_AMOUNT": [10.5 + i for i in range(rows)],
            "TX_FRAUD": [int(i % 5 == 0) for i in range(rows)],
        }
    )


def run(*arguments: object) -> tuple[int, str]:
    done = CliRunner().invoke(features, [str(a) for a in arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.stdout


def test_explain_lists_every_feature_as_json() -> None:
    code, out = run("explain", "--features", DECLARATION, "--json")
    answer = json.loads(out)
    assert code == 0
    assert answer["version"] == FRAUD_FEATURES.version
    assert [row["name"] for row in answer["features"]] == list(FRAUD_FEATURES.names)


@pytest.mark.parametrize("ending", ["parquet", "csv"])
def test_build_writes_the_features_of_parquet_and_csv(tmp_path: Path, ending: str) -> None:
    table = handbook(120)
    source, target = tmp_path / f"in.{ending}", tmp_path / f"out.{ending}"
    if ending == "csv":
        pyarrow.csv.write_csv(table, source)
    else:
        pq.write_table(table, source)
    code, out = run("build", source, "--features", DECLARATION, "--out", target, "--json")
    assert code == 0
    assert json.loads(out)["rows"] == 120
    written = pyarrow.csv.read_csv(target) if ending == "csv" else pq.read_table(target)
    built = build_features(source, FRAUD_FEATURES)
    for position, name in enumerate(FRAUD_FEATURES.names):
        assert written[name].to_pylist() == built.matrix[:, position].tolist()
    assert sorted(tmp_path.iterdir()) == sorted([source, target])


def test_chunks_of_a_file_cannot_be_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "in.parquet"
    pq.write_table(handbook(200), source)
    whole = build_features(source, FRAUD_FEATURES)
    pq.write_table(handbook(200), source, row_group_size=7)
    parts = build_features(source, FRAUD_FEATURES)
    assert parts.matrix.tobytes() == whole.matrix.tobytes()
    assert whole.matrix[:, FRAUD_FEATURES.names.index("terminal_fraud_rate_7d_delay_7d")].any()


def test_memory_of_a_long_file_is_that_of_its_windows() -> None:
    offline = OfflineRun(FRAUD_FEATURES, 7 * DAY_MS)
    held = []
    for part in range(20):
        rows = np.arange(part * 1_000, (part + 1) * 1_000)
        columns = {
            "event_id": pa.array(rows).cast(pa.string()),
            "event_time_ms": pa.array(START + rows * DAY_MS // 25),
            "customer_id": pa.array(rows % 40).cast(pa.string()),
            "terminal_id": pa.array(rows % 10).cast(pa.string()),
            "amount_minor": pa.array(rows % 900),
            "is_fraud": pa.array(rows % 50 == 0),
        }
        offline.process(columns)
        held.append(max(store.stats().memory_bytes for store in offline.stores))
    # 800 days in parts of 40, of which windows, delays and lateness reach back 38.
    assert held[-1] == held[5]
    assert all(store.stats().events < 3_000 for store in offline.stores)


def test_a_missing_column_is_named_with_what_to_do(tmp_path: Path) -> None:
    source = tmp_path / "in.parquet"
    pq.write_table(handbook(3).drop_columns(["CUSTOMER_ID"]), source)
    with pytest.raises(Exception, match="--map customer_id=COLUMN"):
        run("build", source, "--features", DECLARATION, "--out", tmp_path / "out.csv")
    code, _ = run(
        "build", source, "--features", DECLARATION, "--out", tmp_path / "out.csv",
        "--map", "customer_id=TERMINAL_ID",
    )  # fmt: skip
    assert code == 0


def test_wrong_usage_ends_with_two(tmp_path: Path) -> None:
    source = tmp_path / "in.parquet"
    pq.write_table(handbook(3), source)
    assert run("build", source, "--out", tmp_path / "o.csv", "--label-delay", "soon")[0] == 2
    assert run("build", source, "--out", tmp_path / "o.csv", "--map", "nothing")[0] == 2


def recorded(tmp_path: Path) -> tuple[list[RecordedEvent], list[RecordedLabel]]:
    source = tmp_path / "in.parquet"
    pq.write_table(handbook(120), source)
    built = build_features(source, FRAUD_FEATURES)
    assert built.amount_minor is not None
    assert built.is_fraud is not None
    events, labels = [], []
    for i in range(len(built)):
        values = {
            "customer_id": built.customer_id[i].as_py(),
            "terminal_id": built.terminal_id[i].as_py(),
            "amount_minor": int(built.amount_minor[i]),
        }
        time = int(built.event_time_ms[i])
        scored = dict(zip(built.names, built.matrix[i].tolist(), strict=True))
        # A customer's payments are in one partition, and labels come between those of a terminal.
        place = (int(values["customer_id"]) % 2, i)
        events.append(RecordedEvent(str(i), time, time, values, "card", *place, scored))
        if built.is_fraud[i]:
            labels.append(RecordedLabel(str(i), time, time + 7 * DAY_MS, values, True, 1))
    return events, labels


def test_what_was_scored_verifies_to_the_bit_and_any_change_is_named(tmp_path: Path) -> None:
    events, labels = recorded(tmp_path)
    assert differences(FRAUD_FEATURES, events, labels) == []
    wrong = dict(events[50].features) | {"customer_count_1d": 99.0}
    changed = RecordedEvent(
        events[50].event_id, events[50].event_time_ms, events[50].order, events[50].values,
        "card", events[50].partition, events[50].offset, wrong,
    )  # fmt: skip
    found = differences(FRAUD_FEATURES, [*events[:50], changed, *events[51:]], labels)
    assert [(d.event_id, d.feature, d.online) for d in found] == [("50", "customer_count_1d", 99.0)]


@pytest.mark.parametrize("feature", FRAUD_FEATURES.names)
def test_trace_derives_the_recorded_value_and_lists_the_window(
    tmp_path: Path, feature: str
) -> None:
    events, labels = recorded(tmp_path)
    event = events[100]
    key = "customer_id" if feature.startswith("customer") else "terminal_id"
    history = [e for e in events if e.values[key] == event.values[key]]
    known = [label for label in labels if label.values[key] == event.values[key]]
    found = trace(FRAUD_FEATURES, feature, event, history, known)
    assert found.equal
    if "_count_" in feature:
        assert len(found.events) == event.features[feature]
    if "fraud_rate" in feature:
        rate = len(found.labelled) / len(found.events) if found.events else 0.0
        assert rate == event.features[feature]
    assert all(found.start_ms <= e.event_time_ms <= found.end_ms for e in found.events)


def test_trace_of_an_unknown_feature_says_where_to_look(tmp_path: Path) -> None:
    events, _ = recorded(tmp_path)
    with pytest.raises(Exception, match="features explain"):
        trace(FRAUD_FEATURES, "customer_count_2d", events[0], [], [])
