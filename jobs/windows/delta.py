"""The durable form of what a batch changed: versioned, self-describing, foldable.

A chunk holds rows (counted events and accepted labels) in arrival order. It names the source
fields it holds, so a store under a changed feature set picks what it needs: a field that a chunk
lacks is null for its rows, a field that is no longer used is passed over.

========  ======  =====================================================================
offset    type    field
========  ======  =====================================================================
0         4s      magic `RSWL`
4         u8      version, 1
5         u8      compression of the body: 0 none, 1 zstd
6         u16     length of the field table
8         u32     rows
12        u32     bytes of the body before compression
16        i64     clock: no row matters once the shard's clock is two horizons past it
24        i64     sequence of the first delta folded into this chunk
32                field table (JSON: source, kind, multiplier), then the body
========  ======  =====================================================================

Body: `kind` u8[n], `valid` u32[n], `key_length` u16[n], `time`, `id`, `label` and one column per
field, each int64[n], then the key bytes. All little-endian, unaligned.
`time` of a label that was applied is that of its event; `label` of an event is what it took.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import zstandard
from numpy.typing import NDArray

from jobs.windows.errors import StateFormatError
from jobs.windows.raw import RawField

__all__ = [
    "CHUNK_VERSION",
    "Chunk",
    "chunk_header",
    "decode_chunk",
    "field_table",
    "join_chunks",
    "join_encoded",
    "seal",
]

CHUNK_VERSION: Final = 1
"""The version that this code writes; it reads all up to it."""
_MAGIC: Final = b"RSWL"
_HEADER: Final = struct.Struct("<4sBBHIIqq")
# Level 1 packs about 400 MB/s; higher levels cost the fold more time than they save in bytes.
COMPRESSION_LEVEL: Final = 1

UPGRADES: Final[dict[int, Callable[[bytes], bytes]]] = {}
"""From each older version of the body to the next."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Rows of a chunk as columns; `raw` is int64 (fields, n), keys lie one after another."""

    fields: tuple[RawField, ...]
    clock_ms: int
    first_sequence: int
    kind: NDArray[np.uint8]
    valid: NDArray[np.uint32]
    key_length: NDArray[np.uint16]
    time_ms: NDArray[np.int64]
    id_hash: NDArray[np.int64]
    label: NDArray[np.int64]
    raw: NDArray[np.int64]
    keys: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.kind)


@dataclass(frozen=True, slots=True)
class ChunkHeader:
    """What the log needs to know about a chunk without reading its rows."""

    version: int
    compressed: bool
    table_bytes: int
    rows: int
    body_bytes: int
    clock_ms: int
    first_sequence: int


def seal(
    table: bytes, rows: int, clock_ms: int, first_sequence: int, body: bytes, compress: bool = False
) -> bytes:
    """Put the header and the field table before the rows of a chunk, as this version writes it."""
    size = len(body)
    if compress:
        # One compressor a call: it lets go of the GIL while it works on memory of its own, and the
        # tasks of a TaskManager share this module. Shared, it crashed TaskManagers.
        body = zstandard.ZstdCompressor(level=COMPRESSION_LEVEL).compress(body)
    header = _HEADER.pack(
        _MAGIC, CHUNK_VERSION, int(compress), len(table), rows, size, clock_ms, first_sequence
    )
    return header + table + body


def field_table(fields: Sequence[RawField]) -> bytes:
    """Return the names and kinds of the fields as they stand in a chunk."""
    return json.dumps([[f.source, f.kind, f.multiplier] for f in fields]).encode()


def chunk_header(data: bytes) -> ChunkHeader:
    """Read the header of a chunk.

    Raises:
        StateFormatError: when it is not a chunk, or was written by a newer version.
    """
    if len(data) < _HEADER.size or data[:4] != _MAGIC:
        msg = (
            f"reading window state: expected a chunk that starts with {_MAGIC!r}, was {data[:8]!r}"
        )
        raise StateFormatError(msg)
    _, version, packed, table, rows, body, clock, first = _HEADER.unpack_from(data)
    if version > CHUNK_VERSION:
        msg = (
            f"reading window state: version {version} is newer than {CHUNK_VERSION}, the newest "
            "known here; run the job with the release that wrote this state, or a later one"
        )
        raise StateFormatError(msg)
    return ChunkHeader(version, bool(packed), table, rows, body, clock, first)


def decode_chunk(data: bytes) -> Chunk:
    """Return the rows of a chunk.

    Raises:
        StateFormatError: when the bytes are damaged, cut short or of a newer version.
    """
    header = chunk_header(data)
    try:
        table, body = _opened(header, data)
        fields = tuple(RawField(str(s), str(k), int(m)) for s, k, m in json.loads(table))
        return _columns(header, fields, body)
    except (ValueError, KeyError, TypeError, zstandard.ZstdError) as e:
        raise _damaged(data, e) from e


def join_encoded(group: Sequence[bytes]) -> bytes | None:
    """Return one compressed chunk of the rows of several in their order.

    None when they do not all hold the same fields: then they stay as they are.

    Raises:
        StateFormatError: when a chunk is damaged, cut short or of a newer version.
    """
    headers = [chunk_header(data) for data in group]
    tables, cut = set(), []
    for header, data in zip(headers, group, strict=True):
        try:
            table, body = _opened(header, data)
            tables.add(table)
            if len(tables) > 1:
                return None
            cut.append(_sections(header.rows, len(json.loads(table)), body))
        except (ValueError, KeyError, TypeError, zstandard.ZstdError) as e:
            raise _damaged(data, e) from e
    body = b"".join(part for column in zip(*cut, strict=True) for part in column)
    rows = sum(header.rows for header in headers)
    clock = max(header.clock_ms for header in headers)
    first = min(header.first_sequence for header in headers)
    return seal(tables.pop(), rows, clock, first, body, compress=True)


def _damaged(data: bytes, reason: Exception) -> StateFormatError:
    return StateFormatError(
        f"reading window state: a chunk of {len(data)} bytes is damaged ({reason})"
    )


def _opened(header: ChunkHeader, data: bytes) -> tuple[bytes, bytes]:
    """Return the field table and the rows of a chunk as this version writes them."""
    start = _HEADER.size + header.table_bytes
    table, body = data[_HEADER.size : start], data[start:]
    if header.compressed:
        body = zstandard.ZstdDecompressor().decompress(body, max_output_size=header.body_bytes)
    if len(body) != header.body_bytes:
        msg = f"expected {header.body_bytes} bytes of rows, was {len(body)}"
        raise ValueError(msg)
    for version in range(header.version, CHUNK_VERSION):
        body = UPGRADES[version](body)
    return table, body


def _sections(rows: int, fields: int, body: bytes) -> list[memoryview]:
    """Cut a body into its columns."""
    view, at, found = memoryview(body), 0, []
    for width in (1, 4, 2, *(8,) * (3 + fields)):
        found.append(view[at : at + width * rows])
        at += width * rows
    if len(body) < at:
        msg = f"expected at least {at} bytes of rows, was {len(body)}"
        raise ValueError(msg)
    return [*found, view[at:]]


def _columns(header: ChunkHeader, fields: tuple[RawField, ...], body: bytes) -> Chunk:
    kind, valid, lengths, time, ids, label, *raw, keys = _sections(header.rows, len(fields), body)
    key_length = np.frombuffer(lengths, "<u2").astype(np.uint16, copy=False)
    if int(key_length.sum(dtype=np.int64)) != len(keys):
        msg = f"expected {int(key_length.sum(dtype=np.int64))} bytes of keys, was {len(keys)}"
        raise ValueError(msg)

    def longs(column: memoryview) -> NDArray[np.int64]:
        return np.frombuffer(column, "<i8").astype(np.int64, copy=False)

    return Chunk(
        fields,
        header.clock_ms,
        header.first_sequence,
        np.frombuffer(kind, np.uint8),
        np.frombuffer(valid, "<u4").astype(np.uint32, copy=False),
        key_length,
        longs(time),
        longs(ids),
        longs(label),
        np.stack([longs(column) for column in raw])
        if raw
        else np.zeros((0, header.rows), np.int64),
        np.frombuffer(keys, np.uint8),
    )


def join_chunks(chunks: Sequence[Chunk]) -> list[Chunk]:
    """Join neighbours that hold the same fields; the order of rows stays."""
    joined: list[Chunk] = []
    group: list[Chunk] = []
    for chunk in chunks:
        if group and group[0].fields != chunk.fields:
            joined.append(_join(group))
            group = []
        group.append(chunk)
    if group:
        joined.append(_join(group))
    return joined


def _join(group: Sequence[Chunk]) -> Chunk:
    if len(group) == 1:
        return group[0]
    return Chunk(
        group[0].fields,
        max(chunk.clock_ms for chunk in group),
        min(chunk.first_sequence for chunk in group),
        np.concatenate([chunk.kind for chunk in group]),
        np.concatenate([chunk.valid for chunk in group]),
        np.concatenate([chunk.key_length for chunk in group]),
        np.concatenate([chunk.time_ms for chunk in group]),
        np.concatenate([chunk.id_hash for chunk in group]),
        np.concatenate([chunk.label for chunk in group]),
        np.concatenate([chunk.raw for chunk in group], axis=1),
        np.concatenate([chunk.keys for chunk in group]),
    )
