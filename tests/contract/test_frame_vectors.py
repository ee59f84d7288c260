"""Golden vectors of the frame format: the Java bridge's tests read the same file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from connectors.frames import (
    FrameBatch,
    kafka_packet,
    route_frames,
    rows_packet,
    shard_of,
    write_frame,
)

VECTORS: dict[str, Any] = json.loads(
    (Path(__file__).parent / "vectors" / "frames.json").read_text(encoding="utf-8")
)
FRAMES = VECTORS["frames"]


def _bytes(text: str | None) -> bytes | None:
    return None if text is None else bytes.fromhex(text)


def _written(case: dict[str, Any]) -> bytes:
    return write_frame(
        case["topic"],
        _bytes(case["key"]),
        _bytes(case["value"]),
        headers=[(name, _bytes(value)) for name, value in case["headers"]],
        partition=case["partition"],
        offset=case["offset"],
        timestamp_ms=case["timestamp_ms"],
        ingested_at_ms=case["ingested_at_ms"],
        control=case["control"],
        attachment=bytes.fromhex(case["attachment"]),
    )


@pytest.mark.parametrize("case", FRAMES, ids=range(len(FRAMES)))
def test_a_frame_is_written_as_the_vector_says(case: dict[str, Any]) -> None:
    assert _written(case).hex() == case["frame"]


def test_all_vectors_in_one_batch_are_read_back() -> None:
    batch = FrameBatch.parse(b"".join(bytes.fromhex(case["frame"]) for case in FRAMES))

    assert len(batch) == len(FRAMES)
    for index, case in enumerate(FRAMES):
        record = batch.record_at(index)
        assert record.topic == case["topic"]
        assert record.partition == case["partition"]
        assert record.offset == case["offset"]
        assert record.timestamp_ms == case["timestamp_ms"]
        assert record.ingested_at_ms == case["ingested_at_ms"]
        assert record.control is case["control"]
        assert record.key == _bytes(case["key"])
        assert record.value == _bytes(case["value"])
        assert record.headers == tuple((name, _bytes(value)) for name, value in case["headers"])
        assert batch.attachment.bytes_at(index) == bytes.fromhex(case["attachment"])


@pytest.mark.parametrize("shards", [int(count) for count in FRAMES[0]["shards"]])
def test_keys_go_to_the_shards_of_the_vectors(shards: int) -> None:
    batch = FrameBatch.parse(b"".join(bytes.fromhex(case["frame"]) for case in FRAMES))

    expected = [case["shards"][str(shards)] for case in FRAMES]
    assert shard_of(batch.key, shards, batch).tolist() == expected


def test_packets_are_written_as_the_vectors_say() -> None:
    for case in VECTORS["packets"]:
        frames = [bytes.fromhex(FRAMES[index]["frame"]) for index in case.get("frames", ())]
        if case["route"] == 0:
            batch = FrameBatch.parse(b"".join(frames))
            shards = np.full(len(frames), case["shard"], np.int32)
            packet = route_frames(batch, shards, case["shard"] + 1)
        elif case["route"] == 1:
            packet = kafka_packet(frames)
        else:
            packet = rows_packet(case["rows"], bytes.fromhex(case["payload"]), case["shard"])
        assert packet.hex() == case["packet"]
