"""The risk engine as bytes, and back."""

from __future__ import annotations

import io
import json
import struct
from dataclasses import asdict
from typing import Any, Final

import numpy as np

from jobs.market_risk.engine import EngineConfig, RiskEngine
from jobs.market_risk.limits import LimitBook
from jobs.market_risk.names import Names
from jobs.market_risk.positions import PositionBook
from jobs.market_risk.reference import FxTable, Instrument
from jobs.market_risk.stress import Scenario
from schemas.errors import ConfigurationError

__all__ = ["pack_parts", "restore_engine", "snapshot_engine", "unpack_parts"]

_VERSION: Final = 1


def snapshot_engine(engine: RiskEngine) -> bytes:
    """Return the whole engine; `restore_engine` of it continues to the bit."""
    arrays = io.BytesIO()
    np.savez(
        arrays,
        scales=engine.scales,
        marks=engine.marks,
        measured=engine.measured,
        keys=np.array(list(engine.keys), np.int32).reshape(-1, 4),
    )
    text: dict[str, Any] = {
        "version": _VERSION,
        "names": [
            list(names.texts)
            for names in (engine.instruments, engine.accounts, engine.desks, engine.firms)
        ],
        "terms": [asdict(terms) for _, terms in sorted(engine.terms.items())],
        "fx": engine.fx.state(),
        "limits": {firm: book.snapshot().decode() for firm, book in sorted(engine.limits.items())},
        "scenarios": [
            [one.scenario_id, one.kind, one.event_time_ms, dict(one.shocks)]
            for one in engine.scenarios.all()
        ],
        "event_time_ms": engine.event_time_ms,
        "sequence": engine.sequence,
        "dirty": engine.dirty,
    }
    return pack_parts([json.dumps(text).encode(), arrays.getvalue(), engine.book.snapshot()])


def restore_engine(config: EngineConfig, blob: bytes) -> RiskEngine:
    """Return the engine that `snapshot_engine` described, under settings that may have changed.

    Raises:
        ConfigurationError: if another version wrote the blob.
    """
    packed, arrays, book = unpack_parts(blob)
    text = json.loads(packed)
    if text["version"] != _VERSION:
        msg = f"restoring risk: expected snapshot version {_VERSION}, was {text['version']!r}"
        raise ConfigurationError(msg)
    engine = RiskEngine(config)
    engine.instruments, engine.accounts, engine.desks, engine.firms = (
        Names(texts) for texts in text["names"]
    )
    for terms in text["terms"]:
        engine.terms[terms["instrument_id"]] = Instrument(**terms)
    engine.fx = FxTable.from_state(config.base_currency, text["fx"])
    engine.limits = {
        firm: LimitBook.restore(saved.encode()) for firm, saved in text["limits"].items()
    }
    for scenario in text["scenarios"]:
        engine.scenarios.put(Scenario(*scenario))
    engine.event_time_ms = text["event_time_ms"]
    engine.sequence = text["sequence"]
    engine.dirty = text["dirty"]
    with np.load(io.BytesIO(arrays), allow_pickle=False) as saved:
        engine.scales, engine.marks = saved["scales"], saved["marks"]
        engine.measured = saved["measured"]
        rows = saved["keys"].tolist()
    engine.keys = {(row[0], row[1], row[2], row[3]): place for place, row in enumerate(rows)}
    engine.book = PositionBook.restore(book)
    return engine


def pack_parts(parts: list[bytes]) -> bytes:
    """Return parts as one: each behind its length as u32."""
    return b"".join(struct.pack("<I", len(part)) + part for part in parts)


def unpack_parts(blob: bytes) -> list[bytes]:
    """Return the parts that `pack_parts` joined."""
    parts = []
    at = 0
    while at < len(blob):
        (length,) = struct.unpack_from("<I", blob, at)
        parts.append(blob[at + 4 : at + 4 + length])
        at += 4 + length
    return parts
