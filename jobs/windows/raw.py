"""Turn the source fields of a batch into the integers that logs and deltas hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from jobs.windows._key_kernels import hash_column
from schemas.columns import NumberColumn, StringColumn

__all__ = ["RawField", "hash_strings", "hash_text", "label_codes", "raw_matrix"]

# Floats hold every integer up to here; a number beyond it, scaled, is not exact any more.
_EXACT: Final = float(1 << 53)
_LIMITS: Final = {"latitude": 90.0, "longitude": 180.0}


@dataclass(frozen=True, slots=True)
class RawField:
    """One field as it is stored: `kind` is integer, text (as a hash), latitude or longitude."""

    source: str
    kind: str
    multiplier: int


def hash_strings(column: StringColumn) -> NDArray[np.int64]:
    """Return a 64-bit hash of each string, 0 for null.

    Two different strings share a hash with odds of 2^-64 for any one pair: an event meets a false
    duplicate in a log of a million events with odds of 5e-14.
    """
    out = np.empty(len(column), np.int64)
    hash_column(column.data, column.starts, column.lengths, out)
    return out


def hash_text(text: str) -> int:
    """Return the hash of one string."""
    return int(hash_strings(StringColumn.from_texts([text]))[0])


def raw_matrix(
    fields: Sequence[RawField], columns: Mapping[str, NumberColumn | StringColumn], n: int
) -> tuple[NDArray[np.int64], NDArray[np.uint32]]:
    """Return the fields as int64 (fields, n) and their validity as bits of uint32 (n).

    A field that the batch lacks is null throughout. Coordinates are float64 bits.
    """
    raw = np.zeros((len(fields), n), np.int64)
    valid = np.zeros(n, np.uint32)
    for number, field in enumerate(fields):
        column = columns.get(field.source)
        if column is None:
            continue
        if isinstance(column, StringColumn):
            if field.kind != "text":
                continue
            hash_column(column.data, column.starts, column.lengths, raw[number])
            present = column.lengths >= 0
        elif field.kind == "text":
            continue
        else:
            values, present = column.values, column.valid
            if field.kind in _LIMITS:
                degrees = values.astype(np.float64)
                limit = _LIMITS[field.kind]
                present = present & (np.abs(degrees) <= limit)
                raw[number] = degrees.view(np.int64)
            elif values.dtype.kind in "iub":
                raw[number] = values
                if field.multiplier != 1:
                    present = present & (np.abs(raw[number]) <= _EXACT / field.multiplier)
                    raw[number] *= np.where(present, field.multiplier, 0)
            else:
                scaled = np.rint(np.where(present, values, 0).astype(np.float64) * field.multiplier)
                present = present & (np.abs(scaled) <= _EXACT)
                raw[number] = np.where(present, scaled, 0.0).astype(np.int64)
        valid |= present.astype(np.uint32) << np.uint32(number)
    return raw, valid


def label_codes(columns: Mapping[str, NumberColumn | StringColumn], n: int) -> NDArray[np.int64]:
    """Return revision * 4 + fraud * 2 + 1 for each row; only rows that are labels are read."""
    codes = np.ones(n, np.int64)
    fraud, revision = columns.get("is_fraud"), columns.get("revision")
    if isinstance(fraud, NumberColumn):
        codes += np.where(fraud.valid & (fraud.values != 0), 2, 0)
    if isinstance(revision, NumberColumn):
        known = np.where(revision.valid, revision.values, 0).astype(np.int64)
        codes += np.clip(known, 0, 1 << 40) * 4
    return codes
