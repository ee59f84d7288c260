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
    "encode_chunk",
    "field_table",
    "join_chunks",
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


def encode_chunk(chunk: Chunk, table: bytes | None = None, compress: bool = False) -> bytes:
    """Return the bytes of a chunk; `table` is the field table when the caller has it ready."""
    if table is None:
        table = field_table(chunk.fields)
    parts = [
        chunk.kind.tobytes(),
        chunk.valid.tobytes(),
        chunk.key_length.tobytes(),
        chunk.time_ms.tobytes(),
        chunk.id_hash.tobytes(),
        chunk.label.tobytes(),
        chunk.raw.tobytes(),
        chunk.keys.tobytes(),
    ]
    body = b"".join(parts)
    size = len(body)
    if compress:
        # One compressor a call: it lets go of the GIL while it works on memory of its own, and the
        # tasks of a TaskManager share this module. Shared, it crashed TaskManagers.
        body = zstandard.ZstdCompressor(level=COMPRESSION_LEVEL).compress(body)
    header = _HEADER.pack(
        _MAGIC,
        CHUNK_VERSION,
        int(compress),
        len(table),
        len(chunk),
        size,
        chunk.clock_ms,
        chunk.first_sequence,
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
        table = json.loads(data[_HEADER.size : _HEADER.size + header.table_bytes])
        fields = tuple(RawField(str(s), str(k), int(m)) for s, k, m in table)
        body = data[_HEADER.size + header.table_bytes :]
        if header.compressed:
            body = zstandard.ZstdDecompressor().decompress(body, max_output_size=header.body_bytes)
        if len(body) != header.body_bytes:
            msg = f"expected {header.body_bytes} bytes of rows, was {len(body)}"
            raise ValueError(msg)
        for version in range(header.version, CHUNK_VERSION):
            body = UPGRADES[version](body)
        return _columns(header, fields, body)
    except (ValueError, KeyError, TypeError, zstandard.ZstdError) as e:
        msg = f"reading window state: a chunk of {len(data)} bytes is damaged ({e})"
        raise StateFormatError(msg) from e


def _columns(header: ChunkHeader, fields: tuple[RawField, ...], body: bytes) -> Chunk:
    n, at = header.rows, 0
    fixed = n * (7 + 8 * (3 + len(fields)))
    if len(body) < fixed:
        msg = f"expected at least {fixed} bytes of rows, was {len(body)}"
        raise ValueError(msg)

    def take(dtype: str, count: int) -> NDArray[np.generic]:
        nonlocal at
        column = np.frombuffer(body, dtype, count, at)
        at += column.nbytes
        return column

    kind, valid, lengths = take("<u1", n), take("<u4", n), take("<u2", n)
    if int(lengths.sum(dtype=np.int64)) != len(body) - fixed:
        msg = f"expected {int(lengths.sum(dtype=np.int64))} bytes of keys, was {len(body) - fixed}"
        raise ValueError(msg)
    time, ids, label = take("<i8", n), take("<i8", n), take("<i8", n)
    raw = take("<i8", n * len(fields)).reshape(len(fields), n)
    return Chunk(
        fields,
        header.clock_ms,
        header.first_sequence,
        kind.astype(np.uint8, copy=False),
        valid.astype(np.uint32, copy=False),
        lengths.astype(np.uint16, copy=False),
        time.astype(np.int64, copy=False),
        ids.astype(np.int64, copy=False),
        label.astype(np.int64, copy=False),
        raw.astype(np.int64, copy=False),
        np.frombuffer(body, np.uint8, offset=at),
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
