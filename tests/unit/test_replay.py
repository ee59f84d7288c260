"""Replays: what is read from files, when it is published, and when labels follow."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from connectors.producers.labels import DAY_MS, LabelPolicy
from connectors.producers.pace import Pace
from connectors.producers.publisher import RecordLog, event_time_of
from connectors.producers.replay import ReplaySummary, Route, replay
from connectors.producers.source import FileSource, TransactionBatch, amounts_to_minor
from connectors.producers.strings import concatenate, from_arrow, to_bytes
from schemas.columns import Columns, NumberColumn, StringColumn
from schemas.errors import ConfigurationError


class _Plain:
    """Writes event id and, for labels, the verdict: enough to see what was published."""

    def encode(self, columns: Columns) -> StringColumn:
        ids = columns["event_id"]
        assert isinstance(ids, StringColumn)
        if "is_fraud" not in columns:
            return ids
        verdicts = columns["is_fraud"]
        assert isinstance(verdicts, NumberColumn)
        return StringColumn.from_texts(
            [f"{i}:{int(v)}" for i, v in zip(ids.to_list(), verdicts.values, strict=True)]
        )


class _Clock:
    def __init__(self) -> None:
        self.now = 0.0
        self.slept: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


class _Source:
    def __init__(self, times: list[int], frauds: list[int], batch: int = 10_000) -> None:
        self._times, self._frauds, self._batch = times, frauds, batch
        self.total: int | None = len(times)

    def batches(self) -> Iterator[TransactionBatch]:
        for start in range(0, len(self._times), self._batch):
            times = np.array(self._times[start : start + self._batch], np.int64)
            n = len(times)
            present = np.ones(n, np.bool_)
            names = [str(index) for index in range(start, start + n)]
            yield TransactionBatch(
                {
                    "event_id": StringColumn.from_texts(names),
                    "event_time_ms": NumberColumn(times, present),
                    "customer_id": StringColumn.from_texts([f"c{int(i) % 3}" for i in names]),
                    "terminal_id": StringColumn.from_texts(["t"] * n),
                    "amount_minor": NumberColumn(times, present),
                    "currency": StringColumn.from_texts(["EUR"] * n),
                },
                np.array(self._frauds[start : start + n], np.int64) > 0,
            )


def _run(
    source: _Source, pace: Pace | None = None, labels: LabelPolicy | None = None
) -> tuple[ReplaySummary, RecordLog, _Clock, list[int]]:
    log, clock, seen = RecordLog(), _Clock(), list[int]()
    summary = replay(
        source,
        log,
        pace or Pace(),
        labels or LabelPolicy(),
        clock,
        seen.append,
        transactions=Route("tx", _Plain()),
        label_route=Route("labels", _Plain()),
    )
    return summary, log, clock, seen


def test_flat_out_publishes_everything_in_order_without_waiting() -> None:
    summary, log, clock, seen = _run(_Source(list(range(1000)), [0] * 1000, batch=300))
    assert [value for _, _, value, _ in log.records] == [str(i).encode() for i in range(1000)]
    assert [key for _, key, _, _ in log.records[:3]] == [b"c0", b"c1", b"c2"]
    assert [time for *_, time in log.records] == list(range(1000))
    assert (summary.transactions, sum(seen), clock.slept) == (1000, 1000, [])


def test_a_rate_spreads_events_evenly_and_never_early() -> None:
    summary, log, clock, seen = _run(_Source(list(range(50)), [0] * 50), Pace(10.0))
    assert clock.now >= 4.9
    assert summary.transactions == 50
    assert max(seen) == 1
    assert len(log.records) == 50


def test_a_speed_follows_event_time_and_publishes_late_events_when_met() -> None:
    _, log, clock, _ = _run(_Source([0, 60_000, 30_000, 120_000], [0] * 4), Pace(None, 60.0))
    assert [value for _, _, value, _ in log.records] == [b"0", b"1", b"2", b"3"]
    assert 2.0 <= clock.now < 2.3


def test_a_slow_publisher_delays_the_stream_and_loses_nothing() -> None:
    class Slow(RecordLog):
        def __init__(self, clock: _Clock) -> None:
            super().__init__()
            self._clock = clock

        def publish(self, topic, keys, values, event_time_ms):  # type: ignore[no-untyped-def]
            self._clock.now += 1.0
            super().publish(topic, keys, values, event_time_ms)

    clock = _Clock()
    log = Slow(clock)
    route = Route("tx", _Plain())
    replay(
        _Source(list(range(100)), [0] * 100), log, Pace(10.0), LabelPolicy("none"), clock,
        lambda _: None, transactions=route, label_route=route,
    )  # fmt: skip
    assert len(log.records) == 100
    assert clock.now < 20.0


@pytest.mark.parametrize(("rate", "speed"), [(1.0, 1.0), (0.0, None), (None, -1.0)])
def test_a_pace_that_makes_no_sense_is_refused(rate: float | None, speed: float | None) -> None:
    with pytest.raises(ConfigurationError):
        Pace(rate, speed)


def test_labels_follow_when_stream_time_passes_their_delay() -> None:
    day = DAY_MS
    times = [0, day, 2 * day, 6 * day - 1, 6 * day, 7 * day, 20 * day]
    summary, log, *_ = _run(_Source(times, [1, 1, 0, 0, 1, 0, 1], batch=1))
    assert [(topic, value) for topic, _, value, _ in log.records] == [
        ("tx", b"0"), ("tx", b"1"), ("tx", b"2"), ("tx", b"3"),
        ("tx", b"4"), ("labels", b"0:1"),
        ("tx", b"5"), ("labels", b"1:1"),
        ("tx", b"6"), ("labels", b"4:1"),
    ]  # fmt: skip
    stamps = [time for topic, _, _, time in log.records if topic == "labels"]
    assert stamps == [6 * day, 7 * day, 12 * day]
    assert (summary.labels, summary.labels_not_due) == (3, 1)


def test_flushing_publishes_the_labels_that_were_not_due() -> None:
    summary, log, *_ = _run(
        _Source([0, 1], [1, 0]), labels=LabelPolicy("all", delay_ms=1_000, flush=True)
    )
    assert [value for topic, _, value, _ in log.records if topic == "labels"] == [b"0:1", b"1:0"]
    assert (summary.labels, summary.labels_not_due) == (2, 0)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.integers(0, 5_000), st.booleans()), min_size=1, max_size=900),
    st.integers(1, 900),
    st.integers(0, 3_000),
)
def test_labels_are_never_early_and_never_far_behind_however_batches_are_cut(
    events: list[tuple[int, bool]], batch: int, delay_ms: int
) -> None:
    times = [time for time, _ in events]
    source = _Source(times, [int(fraud) for _, fraud in events], batch)
    _, log, *_ = _run(source, labels=LabelPolicy("frauds", delay_ms=delay_ms, flush=True))
    published = [record for record in log.records if record[0] == "tx"]
    assert [value for _, _, value, _ in published] == [str(i).encode() for i in range(len(times))]
    labels = [value for topic, _, value, _ in log.records if topic == "labels"]
    wanted = [f"{i}:1".encode() for i, (_, fraud) in enumerate(events) if fraud]
    assert sorted(labels) == sorted(wanted)
    stream, passed, waiting = -1, 0, len(wanted)
    for topic, _, _, time in log.records:
        if topic == "tx":
            stream, passed = max(stream, time), passed + 1
        else:
            waiting -= 1
            due_at = next(
                (i for i, t in enumerate(np.maximum.accumulate(times)) if t >= time), None
            )
            if due_at is None:
                assert passed == len(times)  # flushed at the end
            else:
                assert due_at < passed <= due_at + 513
    assert waiting == 0


def _table(**columns: object) -> pa.Table:
    return pa.table(columns)


_HANDBOOK = _table(
    TRANSACTION_ID=pa.array([7, 8], pa.int32()),
    TX_DATETIME=pa.array([1_522_540_831_000, 1_522_540_930_000], pa.timestamp("ms")),
    CUSTOMER_ID=pa.array([596, 4961]),
    TERMINAL_ID=pa.array([3156, 3412]),
    TX_AMOUNT=pa.array([57.16, 81.51]),
    TX_FRAUD=pa.array([0, 1], pa.int8()),
)
_PACKED = _table(
    transaction_id=pa.array([7, 8], pa.int32()),
    ts_epoch_s=pa.array([1_522_540_831, 1_522_540_930]),
    customer_id=pa.array([596, 4961], pa.int32()),
    terminal_id=pa.array([3156, 3412], pa.int32()),
    amount_cents=pa.array([5716, 8151], pa.int32()),
    fraud=pa.array([0, 1], pa.int8()),
)
_CONTRACT = _table(
    event_id=["7", "8"],
    event_time_ms=[1_522_540_831_000, 1_522_540_930_000],
    customer_id=["596", "4961"],
    terminal_id=["3156", "3412"],
    amount_minor=[5716, 8151],
    is_fraud=[False, True],
)


@pytest.mark.parametrize(
    "table", [_HANDBOOK, _PACKED, _CONTRACT], ids=["handbook", "packed", "own"]
)
@pytest.mark.parametrize("ending", ["parquet", "csv"])
def test_each_way_to_name_columns_reads_the_same(
    table: pa.Table, ending: str, tmp_path: Path
) -> None:
    file = tmp_path / f"transactions.{ending}"
    if ending == "csv":
        pyarrow.csv.write_csv(table, file)
    else:
        pq.write_table(table, file)
    (batch,) = FileSource(file).batches()
    assert batch.text("event_id").to_list() == ["7", "8"]
    assert batch.text("customer_id").to_list() == ["596", "4961"]
    assert batch.text("terminal_id").to_list() == ["3156", "3412"]
    assert batch.event_time_ms.tolist() == [1_522_540_831_000, 1_522_540_930_000]
    assert batch.amount_minor.tolist() == [5716, 8151]
    assert batch.text("currency").to_list() == ["EUR", "EUR"]
    assert batch.is_fraud is not None
    assert batch.is_fraud.tolist() == [False, True]


def test_optional_fields_keep_their_nulls_and_unknown_channels_say_so(tmp_path: Path) -> None:
    file = tmp_path / "transactions.parquet"
    more = _CONTRACT.append_column("channel", pa.array(["atm", "pigeon"]))
    more = more.append_column("latitude", pa.array([1.5, None]))
    pq.write_table(more.append_column("merchant_id", pa.array([None, "m"])), file)
    (batch,) = FileSource(file).batches()
    channel, latitude = batch.columns["channel"], batch.columns["latitude"]
    assert isinstance(channel, NumberColumn)
    assert isinstance(latitude, NumberColumn)
    assert channel.values.tolist() == [4, 0]
    assert (latitude.values.tolist(), latitude.valid.tolist()) == ([1.5, 0.0], [True, False])
    assert batch.text("merchant_id").to_list() == [None, "m"]


def test_a_limit_stops_inside_a_batch(tmp_path: Path) -> None:
    file = tmp_path / "transactions.parquet"
    pq.write_table(_CONTRACT, file)
    source = FileSource(file, limit=1)
    assert (source.total, [len(batch) for batch in source.batches()]) == (1, [1])


def test_missing_columns_and_nulls_are_named_with_their_row(tmp_path: Path) -> None:
    file = tmp_path / "transactions.parquet"
    pq.write_table(_CONTRACT.drop_columns(["terminal_id"]), file)
    with pytest.raises(ConfigurationError, match="TERMINAL_ID"):
        list(FileSource(file).batches())
    nulls = _CONTRACT.set_column(2, "customer_id", pa.array(["596", None]))
    pq.write_table(nulls, file)
    with pytest.raises(ConfigurationError, match="'customer_id' is null in row 1"):
        list(FileSource(file).batches())


def test_a_file_that_is_neither_parquet_nor_csv_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "transactions.parquet"
    file.write_text("hello")
    with pytest.raises(ConfigurationError, match="expected Parquet or CSV"):
        FileSource(file)


def test_amounts_become_minor_units_exactly() -> None:
    texts = pa.array(["0.01", "12.345", "12.355", "-3.005", "7", "1e2"])
    assert amounts_to_minor(texts).tolist() == [1, 1234, 1236, -300, 700, 10_000]
    every_cent = np.arange(2_000_000)
    assert np.array_equal(amounts_to_minor(pa.array(every_cent / 100)), every_cent)
    with pytest.raises(ConfigurationError, match="major units"):
        amounts_to_minor(pa.array(["12,50"]))


@given(st.lists(st.none() | st.text(max_size=9), max_size=30), st.data())
def test_string_columns_are_picked_joined_and_read_back(
    texts: list[str | None], data: st.DataObject
) -> None:
    column = from_arrow(pa.array(texts, pa.string()))
    assert column.to_list() == texts
    rows = data.draw(st.lists(st.integers(0, max(len(texts) - 1, 0)), max_size=9)) if texts else []
    picked = column.take(np.array(rows, np.intp))
    assert picked.to_list() == [texts[row] for row in rows]
    both = concatenate([column, picked])
    wanted = [None if text is None else text.encode() for text in texts + [texts[r] for r in rows]]
    assert to_bytes(both) == wanted


def test_the_event_time_is_found_among_headers() -> None:
    assert event_time_of([("a", b"x"), ("event_time_ms", (5).to_bytes(8, "little"))]) == 5
    assert event_time_of(None) is None
    assert event_time_of([("event_time_ms", b"short")]) is None


def test_the_handbook_file_reads_whole(shared_data: Callable[[str], Path]) -> None:
    file = next(iter(sorted(shared_data("fraud_handbook").glob("transactions_*.parquet"))))
    source = FileSource(file)
    read = [(len(b), int(b.amount_minor.sum()), int(b.is_fraud.sum())) for b in source.batches()
            if b.is_fraud is not None]  # fmt: skip
    table = pq.read_table(file)
    assert sum(n for n, _, _ in read) == source.total == table.num_rows
    assert sum(amount for _, amount, _ in read) == sum(table["amount_cents"].to_numpy().tolist())
    assert sum(fraud for _, _, fraud in read) == int(table["fraud"].to_numpy().sum())
