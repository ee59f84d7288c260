"""Files of recorded events as people have them: every fault is named, nothing is guessed."""

from __future__ import annotations

import decimal
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from jobs.cli.features import features
from jobs.windows.errors import FeatureDeclarationError, FeatureInputError
from jobs.windows.loading import load_feature_set

HEADER = "event_id,event_time_ms,customer_id,terminal_id,amount_minor,is_fraud\n"
ROW = "1,1700000000000,c1,t1,500,0\n"


def build(source: Path, *arguments: str) -> dict[str, Any]:
    """Build features in this process; what is wrong with the file comes as its exception."""
    out = source.with_name("out.parquet")
    done = CliRunner().invoke(
        features, ["build", str(source), "--out", str(out), "--json", *arguments]
    )
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def csv(folder: Path, text: str) -> Path:
    """Write a CSV file."""
    path = folder / "events.csv"
    path.write_text(text)
    return path


def parquet(folder: Path, **columns: pa.Array) -> Path:
    """Write two payments of one customer, with some columns as given."""
    whole = {
        "event_id": pa.array(["a", "b"]),
        "event_time_ms": pa.array([1_700_000_000_000, 1_700_000_001_000]),
        "customer_id": pa.array(["c", "c"]),
        "terminal_id": pa.array(["t", "t"]),
        "amount_minor": pa.array([500, 700]),
        **columns,
    }
    path = folder / "events.parquet"
    pq.write_table(pa.table(whole), path)
    return path


def built(source: Path) -> pa.Table:
    """Return what the build of a file wrote."""
    build(source)
    return pq.read_table(source.with_name("out.parquet"))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "Empty CSV"),
        (HEADER, "holds no rows"),
        (HEADER + "1,hello,c1,t1,500,0\n", "column 'event_time_ms'.*'hello'"),
        (HEADER + "1,,c1,t1,500,0\n", "an event has no time"),
        (HEADER + "1,1700000000000,c1,t1,abc,0\n", "column 'amount_minor'.*'abc'"),
        (HEADER + "1,1700000000000,c1,t1,500,no\n", "column 'is_fraud'.*: no$"),
        (HEADER + ROW + "2,1700000000000,c1\n", "Expected 6 columns"),
        ("event_id;event_time_ms\n1;2\n", "no column for event_id.*--map"),
        (
            "event_id,TX_DATETIME,customer_id,terminal_id\n1,2023-01-01 00:00:00,c,t\n"
            "2,2023-01-01T01:00:00Z,c,t\n",
            "column 'TX_DATETIME'.*zone",
        ),
    ],
)
def test_a_bad_csv_file_is_refused_with_what_is_wrong(
    tmp_path: Path, text: str, complaint: str
) -> None:
    with pytest.raises(FeatureInputError, match=complaint):
        build(csv(tmp_path, text))
    assert not list(tmp_path.glob("*out*"))


def test_what_is_not_parquet_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "events.parquet"
    path.write_bytes(b"not parquet at all")
    with pytest.raises(FeatureInputError, match=r"events\.parquet.*magic"):
        build(path)


def test_names_are_text_however_they_look(tmp_path: Path) -> None:
    """`007` and `7` are two customers, and a name that is no number may come in any row."""
    rows = "".join(f"{n},{1_700_000_000_000 + n},007,1.0,500,0\n" for n in range(200_000))
    rows += "x,1700000900000,7,t-1,500,0\n"
    table = built(csv(tmp_path, HEADER + rows))
    assert table["customer_id"].to_pylist()[-2:] == ["007", "7"]
    assert table["terminal_id"].to_pylist()[-2:] == ["1.0", "t-1"]
    assert table["event_id"].to_pylist()[-2:] == ["199999", "x"]
    assert table["customer_count_1d"].to_pylist()[-2:] == [200_000.0, 1.0]


def test_an_empty_name_is_none(tmp_path: Path) -> None:
    table = built(csv(tmp_path, HEADER + "1,1700000000000,,t1,500,0\n" + ROW))
    assert table["customer_id"].to_pylist() == [None, "c1"]


@pytest.mark.parametrize(
    "amounts",
    [
        pa.array(["500", None]),
        pa.array([decimal.Decimal("500.00"), None]),
        pa.array([500.0, float("nan")]),
        pa.array([500.0, float("inf")]),
        pa.array([500, None], pa.uint16()),
    ],
)
def test_amounts_are_the_same_in_every_type(tmp_path: Path, amounts: pa.Array) -> None:
    table = built(parquet(tmp_path, amount_minor=amounts))
    assert table["amount"].to_pylist() == [5.0, 0.0]
    assert table["customer_amount_mean_1d"].to_pylist() == [5.0, 5.0]
    assert table["customer_count_1d"].to_pylist() == [1.0, 2.0]


def test_amounts_in_major_units_may_be_missing(tmp_path: Path) -> None:
    path = parquet(tmp_path, TX_AMOUNT=pa.array([5.0, float("nan")]))
    pq.write_table(pq.read_table(path).drop_columns("amount_minor"), path)
    assert built(path)["amount"].to_pylist() == [5.0, 0.0]


@pytest.mark.parametrize("labels", [["true", "false"], [True, False], [1, 0], [1.0, None]])
def test_labels_are_the_same_in_every_type(tmp_path: Path, labels: list[object]) -> None:
    assert built(parquet(tmp_path, is_fraud=pa.array(labels)))["is_fraud"].to_pylist() == [
        True,
        False,
    ]


def test_the_first_and_last_time_show_that_seconds_were_taken_for_milliseconds(
    tmp_path: Path,
) -> None:
    report = build(csv(tmp_path, HEADER + "1,1700000000,c1,t1,500,0\n"))
    assert report["first_event"] == report["last_event"] == "1970-01-20T16:13:20.000+00:00"


def test_a_file_is_never_written_over_itself(tmp_path: Path) -> None:
    source = csv(tmp_path, HEADER + ROW)
    with pytest.raises(FeatureInputError, match="is the file that is read"):
        build(source, "--out", str(source))
    assert source.read_text() == HEADER + ROW


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    source = csv(tmp_path, HEADER + ROW)
    with pytest.raises(FeatureInputError, match="no folder"):
        build(source, "--out", str(tmp_path / "nowhere" / "out.csv"))


def test_a_mapping_of_a_name_that_nothing_reads_is_refused(tmp_path: Path) -> None:
    source = csv(tmp_path, HEADER + ROW)
    with pytest.raises(FeatureInputError, match=r"'amount'.*amount_minor"):
        build(source, "--map", "amount=amount_minor")


def test_a_declaration_that_raises_is_named(tmp_path: Path) -> None:
    file = tmp_path / "declared.py"
    file.write_text("raise ValueError('boo')")
    with pytest.raises(FeatureDeclarationError, match="ValueError: boo"):
        load_feature_set(str(file))
