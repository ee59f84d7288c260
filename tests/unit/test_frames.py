"""Frames and packets: what is written is read back, and nothing malformed gets through."""

from __future__ import annotations

import doctest
import struct
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from connectors import _frame_kernels, frames
from connectors.frames import (
    FrameBatch,
    FrameError,
    FrameRecord,
    attachments_matrix,
    event_time_header,
    kafka_packet,
    route_frames,
    rows_packet,
    shard_of,
    topic_index,
    write_frame,
)
from schemas.columns import StringColumn

I64 = st.integers(-(2**63), 2**63 - 1)
RECORDS = st.builds(
    FrameRecord,
    topic=st.text(max_size=20),
    partition=st.integers(-(2**31), 2**31 - 1),
    offset=I64,
    timestamp_ms=I64,
    ingested_at_ms=I64,
    key=st.none() | st.binary(max_size=30),
    value=st.none() | st.binary(max_size=60),
    headers=st.lists(
        st.tuples(st.text(max_size=8), st.none() | st.binary(max_size=12)), max_size=3
    ).map(tuple),
    control=st.booleans(),
)


def _write(record: FrameRecord, attachment: bytes = b"") -> bytes:
    return write_frame(
        record.topic,
        record.key,
        record.value,
        headers=record.headers,
        partition=record.partition,
        offset=record.offset,
        timestamp_ms=record.timestamp_ms,
        ingested_at_ms=record.ingested_at_ms,
        control=record.control,
        attachment=attachment,
    )


def _frames(count: int, **fields: object) -> bytes:
    return b"".join(
        write_frame("t", b"k%d" % i, b"v%d" % i, offset=i, **fields)  # type: ignore[arg-type]
        for i in range(count)
    )


def _packets(data: bytes) -> list[tuple[int, int, bytes]]:
    found, at = [], 0
    while at < len(data):
        route, zero, zeros, shard, length = struct.unpack_from("<BBHII", data, at)
        assert (zero, zeros) == (0, 0)
        found.append((route, shard, data[at + 12 : at + 12 + length]))
        at += 12 + length
    assert at == len(data)
    return found


def _offsets(batch: bytes) -> list[int]:
    return [int(offset) for offset in FrameBatch.parse(batch).offset]


@settings(deadline=None)
@given(st.lists(RECORDS, max_size=8))
def test_records_are_read_back_as_written(records: list[FrameRecord]) -> None:
    batch = FrameBatch.parse(b"".join(map(_write, records)))

    assert [batch.record_at(i) for i in range(len(batch))] == records
    assert [batch.frame_at(i) for i in range(len(batch))] == list(map(_write, records))
    assert batch.control.tolist() == [record.control for record in records]


def test_no_bytes_are_no_frames() -> None:
    batch = FrameBatch.parse(b"")

    assert len(batch) == 0
    assert shard_of(batch.key, 4, batch).tolist() == []
    assert topic_index(batch, [b"t"]).tolist() == []
    assert attachments_matrix(batch, 3).shape == (0, 3)
    assert route_frames(batch, np.empty(0, np.int32), 4) == b""


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_any_kind_of_buffer_is_parsed_without_copying(kind: type) -> None:
    buffer = kind(_frames(3))

    batch = FrameBatch.parse(buffer)

    assert batch.key.to_list() == ["k0", "k1", "k2"]
    assert np.shares_memory(batch.data, np.frombuffer(buffer, np.uint8))


@settings(deadline=None)
@given(st.lists(RECORDS, min_size=1, max_size=4), st.data())
def test_a_batch_cut_anywhere_but_between_frames_is_refused(
    records: list[FrameRecord], data: st.DataObject
) -> None:
    written = list(map(_write, records))
    whole = b"".join(written)
    edges = {sum(map(len, written[:i])) for i in range(len(written) + 1)}
    cut = data.draw(st.sampled_from([at for at in range(len(whole)) if at not in edges]))

    with pytest.raises(FrameError, match="Parsing"):
        FrameBatch.parse(whole[:cut])


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_noise_is_refused_or_parsed_but_never_crashes(noise: bytes) -> None:
    _parse_and_use(noise)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(RECORDS, min_size=1, max_size=3),
    st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=4),
)
def test_damaged_frames_are_refused_or_parsed_but_never_crash(
    records: list[FrameRecord], damage: list[tuple[int, int]]
) -> None:
    buffer = bytearray(b"".join(map(_write, records)))
    for at, value in damage:
        buffer[at % len(buffer)] = value

    _parse_and_use(bytes(buffer))


def _parse_and_use(buffer: bytes) -> None:
    try:
        batch = FrameBatch.parse(buffer)
    except FrameError:
        return
    assert b"".join(batch.frame_at(i) for i in range(len(batch))) == buffer
    shards = shard_of(batch.key, 3, batch)
    topic_index(batch, [b"t", b""])
    assert sum(len(p) for _, _, p in _packets(route_frames(batch, shards, 3))) == len(buffer)
    for i in range(len(batch)):
        with suppress(FrameError):
            batch.record_at(i)


@pytest.mark.parametrize(
    ("at", "value", "problem"),
    [
        (0, 55, "length is out of range"),
        (3, 0x80, "length is out of range"),
        (4, 2, "version is not 1"),
        (5, 8, "flags or reserved"),
        (5, 1, "null but has bytes"),
        (5, 2, "null but has bytes"),
        (40, 9, "do not add up"),
        (51, 255, "do not add up"),
        (52, 1, "flags or reserved"),
    ],
)
def test_each_malformed_field_is_named(at: int, value: int, problem: str) -> None:
    frame = bytearray(write_frame("topic", b"key", b"value"))
    frame[at] = value
    good = _frames(1)

    with pytest.raises(FrameError, match=f"at byte {len(good)}, .*{problem}"):
        FrameBatch.parse(good + bytes(frame))


def test_topics_are_found_by_their_place_in_the_list() -> None:
    names = [
        "card-labels",
        "card-transactions",
        "cards",
        "card-labels",
        "unknown",
        "",
        "card-label",
    ]
    batch = FrameBatch.parse(b"".join(write_frame(name, None, None) for name in names))

    index = topic_index(batch, [b"card-transactions", b"card-labels", b"cards"])

    assert index.dtype == np.int16
    assert index.tolist() == [1, 0, 2, 1, -1, -1, -1]


def test_null_keys_go_by_topic_and_partition_or_where_the_empty_key_goes() -> None:
    batch = FrameBatch.parse(
        b"".join(write_frame("t", None, b"v", partition=p) for p in range(64))
        + write_frame("t", b"", b"v")
    )

    by_partition = shard_of(batch.key, 16, batch)
    alone = shard_of(batch.key, 16)

    assert len(set(by_partition[:64].tolist())) > 4
    assert set(alone.tolist()) == {by_partition[64]}


def test_a_key_decoded_elsewhere_has_the_same_shard_as_the_same_message_key() -> None:
    texts = ["a", "terminal-77", "ключ", ""]
    batch = FrameBatch.parse(b"".join(write_frame("t", text.encode(), None) for text in texts))

    assert shard_of(StringColumn.from_texts(texts), 8).tolist() == shard_of(batch.key, 8).tolist()


@settings(deadline=None)
@given(
    st.lists(st.tuples(RECORDS, st.integers(0, 4), st.booleans()), max_size=12),
    st.none() | st.integers(0, 3),
)
def test_routed_frames_keep_order_content_and_get_their_row(
    rows: list[tuple[FrameRecord, int, bool]], width: int | None
) -> None:
    old = b"old data"
    batch = FrameBatch.parse(b"".join(_write(record, old) for record, _, _ in rows))
    shards = np.array([shard for _, shard, _ in rows], np.int32)
    keep = np.array([kept for _, _, kept in rows], np.bool_)
    matrix = None if width is None else np.random.default_rng(1).random((len(rows), width))

    packets = _packets(route_frames(batch, shards, 5, keep, matrix))

    assert [shard for _, shard, _ in packets] == sorted(set(shards[keep].tolist()))
    for route, shard, payload in packets:
        expected = []
        for i, (record, wanted, kept) in enumerate(rows):
            if kept and wanted == shard:
                fresh = old if matrix is None or record.control else matrix[i].tobytes()
                expected.append(_write(record, fresh))
        assert route == 0
        assert payload == b"".join(expected)


def test_attachments_come_back_as_the_matrix_that_was_routed() -> None:
    matrix = np.array([[1.5, -0.0, np.inf], [np.nan, 1e300, 5e-324]])
    batch = FrameBatch.parse(_frames(2))
    ((_, _, payload),) = _packets(route_frames(batch, np.zeros(2, np.int32), 1, attachments=matrix))

    back = attachments_matrix(FrameBatch.parse(payload), 3)

    assert back.tobytes() == matrix.tobytes()


def test_a_frame_without_attachment_is_a_row_of_nan_and_another_width_is_refused() -> None:
    batch = FrameBatch.parse(_frames(2, attachment=bytes(16)) + _frames(1))

    assert np.isnan(attachments_matrix(batch, 2)).tolist() == [[False] * 2, [False] * 2, [True] * 2]
    with pytest.raises(FrameError, match="frame 0 of 3: it had 16 bytes, expected 24"):
        attachments_matrix(batch, 3)


@pytest.mark.parametrize(
    ("shards", "problem"), [([0, 4], "frame 1 of 2: shard was 4"), ([-1, 0], "-1")]
)
def test_a_shard_out_of_range_is_refused(shards: Sequence[int], problem: str) -> None:
    with pytest.raises(FrameError, match=problem):
        route_frames(FrameBatch.parse(_frames(2)), np.array(shards, np.int32), 4)


def test_a_shard_of_a_frame_that_is_not_kept_does_not_matter() -> None:
    keep = np.array([True, False])

    packets = _packets(
        route_frames(FrameBatch.parse(_frames(2)), np.array([2, -1], np.int32), 4, keep)
    )

    assert [(shard, _offsets(payload)) for _, shard, payload in packets] == [(2, [0])]


def test_lengths_that_differ_from_the_frames_are_refused() -> None:
    batch = FrameBatch.parse(_frames(2))

    with pytest.raises(FrameError, match="3 shards, 2 marks and 2 rows"):
        route_frames(batch, np.zeros(3, np.int32), 4)
    with pytest.raises(FrameError, match="1 rows of attachments"):
        route_frames(batch, np.zeros(2, np.int32), 4, attachments=np.zeros((1, 2)))


def test_packets_of_kafka_records_and_rows_are_empty_when_there_is_nothing() -> None:
    assert kafka_packet([]) == b""
    assert rows_packet(0, b"") == b""
    assert _packets(kafka_packet([b"ab", b"c"]) + rows_packet(2, b"rows", 3)) == [
        (1, 0, b"abc"),
        (2, 3, b"\x02\x00\x00\x00rows"),
    ]


def test_the_event_time_header_survives_a_frame() -> None:
    batch = FrameBatch.parse(write_frame("t", None, None, headers=[event_time_header(-5)]))

    assert batch.headers_at(0) == (("event_time_ms", struct.pack("<q", -5)),)


@pytest.mark.parametrize(
    "write",
    [
        lambda: write_frame("t" * 65_536, None, None),
        lambda: write_frame("t", None, None, headers=[("h" * 65_536, None)]),
        lambda: write_frame("t", None, None, headers=[("h", None)] * 65_536),
    ],
)
def test_what_does_not_fit_the_format_is_refused(write: object) -> None:
    with pytest.raises(FrameError, match="65535"):
        write()  # type: ignore[operator]


def test_warming_compiles_every_kernel_once_and_later_batches_compile_none() -> None:
    frames.warm()
    compiled: list[Any] = [
        _frame_kernels.scan,
        _frame_kernels.route,
        _frame_kernels.shards_of,
        _frame_kernels.index_topics,
        _frame_kernels.copy_attachments,
    ]
    before = [len(kernel.signatures) for kernel in compiled]

    batch = FrameBatch.parse(bytearray(_frames(2, attachment=bytes(8))))
    shard_of(StringColumn.from_texts(["a", "b"]), 4, batch)
    topic_index(batch, [b"t", b"u"])
    route_frames(
        batch, np.zeros(4, np.int32)[::2], 1, np.ones(4, np.bool_)[::2], np.ones((2, 4))[:, ::2]
    )
    attachments_matrix(batch, 1)

    assert [len(kernel.signatures) for kernel in compiled] == before


def test_the_examples_in_the_module_are_true() -> None:
    assert doctest.testmod(frames).failed == 0
