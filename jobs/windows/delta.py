"""The durable form of what a batch changed: versioned, self-describing, foldable.

A chunk holds rows (counted events and accepted labels) in arrival order. It names the source
fields it holds, so a store under a changed feature set picks what it needs: a field that a chunk
lacks is null for its rows, a field that is no longer used is passed over.

========  ======  =====================================================================
offset    type    field
========  ======  =====================================================================
0         4s      magic `RSWL`
4         u8      version, 2
5         u8      compression of keys and rows: 0 none, 1 zstd, each of the two on its own
6         u16     length of the field table
8         u32     rows
12        u32     bytes of keys and rows before compression
16        i64     clock: no row matters once the shard's clock is two horizons past it
24        i64     sequence of the first delta folded into this chunk
32        u32     bytes of the keys as they stand here
36                field table (JSON: source, kind, multiplier), then keys, then rows
========  ======  =====================================================================

Keys: `key_length` u16[n], then the key bytes. Rows: `kind` u8[n], `valid` u32[n], `time`, `id`,
`label` and one column per field, each int64[n]. All little-endian, unaligned.
`time` of a label that was applied is that of its event; `label` of an event is what it took.

A restore reads the keys of all chunks before their rows: apart, each is decompressed once. Version
1 had one body, with `key_length` after `valid` and the key bytes at its end, and no number at 32.
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
    "ChunkKeys",
    "chunk_header",
    "decode_keys",
    "decode_rows",
    "field_table",
    "join_encoded",
    "seal",
]

CHUNK_VERSION: Final = 2
"""The version that this code writes; it reads all up to it."""
_MAGIC: Final = b"RSWL"
_HEADER: Final = struct.Struct("<4sBBHIIqq")
_KEY_BYTES: Final = struct.Struct("<I")
# Level 1 packs about 400 MB/s; higher levels cost the fold more time than they save in bytes.
COMPRESSION_LEVEL: Final = 1


def _part_keys(rows: int, fields: int, keys: bytes, body: bytes) -> tuple[bytes, bytes]:
    lengths, texts = 5 * rows, (31 + 8 * fields) * rows
    if len(body) < texts:
        msg = f"expected at least {texts} bytes of rows, was {len(body)}"
        raise ValueError(msg)
    parted = lengths + 2 * rows
    return body[lengths:parted] + body[texts:], body[:lengths] + body[parted:texts]


UPGRADES: Final[dict[int, Callable[[int, int, bytes, bytes], tuple[bytes, bytes]]]] = {
    1: _part_keys
}
"""From each older version to the next: given the numbers of rows and fields, keys and rows."""


@dataclass(frozen=True, slots=True)
class ChunkKeys:
    """The keys of a chunk's rows, which lie one after another."""

    lengths: NDArray[np.uint16]
    data: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.lengths)


@dataclass(frozen=True, slots=True)
class Chunk:
    """Rows of a chunk as columns, without their keys; `raw` is int64 (fields, n)."""

    fields: tuple[RawField, ...]
    clock_ms: int
    first_sequence: int
    kind: NDArray[np.uint8]
    valid: NDArray[np.uint32]
    time_ms: NDArray[np.int64]
    id_hash: NDArray[np.int64]
    label: NDArray[np.int64]
    raw: NDArray[np.int64]

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
    key_bytes: int
    """0 in version 1, whose keys are no part of their own."""
    table_at: int


def seal(
    table: bytes,
    rows: int,
    clock_ms: int,
    first_sequence: int,
    keys: bytes,
    body: bytes,
    compress: bool = False,
) -> bytes:
    """Put the header and the field table before the keys and rows of a chunk."""
    size = len(keys) + len(body)
    if compress:
        # One compressor a call: it lets go of the GIL while it works on memory of its own, and the
        # tasks of a TaskManager share this module. Shared, it crashed TaskManagers.
        packer = zstandard.ZstdCompressor(level=COMPRESSION_LEVEL)
        keys, body = packer.compress(keys), packer.compress(body)
    header = _HEADER.pack(
        _MAGIC, CHUNK_VERSION, int(compress), len(table), rows, size, clock_ms, first_sequence
    )
    return b"".join((header, _KEY_BYTES.pack(len(keys)), table, keys, body))


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
    keys, table_at = 0, _HEADER.size
    if version > 1:
        table_at += _KEY_BYTES.size
        if len(data) < table_at:
            raise _damaged(data, ValueError(f"expected at least {table_at} bytes"))
        (keys,) = _KEY_BYTES.unpack_from(data, _HEADER.size)
    return ChunkHeader(version, bool(packed), table, rows, body, clock, first, keys, table_at)


def decode_keys(data: bytes) -> ChunkKeys:
    """Return the keys of a chunk, without a look at its rows.

    Raises:
        StateFormatError: when the bytes are damaged, cut short or of a newer version.
    """
    header = chunk_header(data)
    try:
        sections = _key_sections(header.rows, _opened(header, data, rows=False)[1])
        lengths = np.frombuffer(sections[0], "<u2").astype(np.uint16, copy=False)
        wanted = int(lengths.sum(dtype=np.int64))
        if wanted != len(sections[1]):
            msg = f"expected {wanted} bytes of keys, was {len(sections[1])}"
            raise ValueError(msg)
    except (ValueError, KeyError, TypeError, zstandard.ZstdError) as e:
        raise _damaged(data, e) from e
    return ChunkKeys(lengths, np.frombuffer(sections[1], np.uint8))


def decode_rows(data: bytes) -> Chunk:
    """Return the rows of a chunk, without a look at its keys.

    Raises:
        StateFormatError: when the bytes are damaged, cut short or of a newer version.
    """
    header = chunk_header(data)
    try:
        table, _, body = _opened(header, data, keys=False)
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
    tables: set[bytes] = set()
    texts: list[list[memoryview]] = []
    cut: list[list[memoryview]] = []
    for header, data in zip(headers, group, strict=True):
        try:
            table, keys, body = _opened(header, data)
            tables.add(table)
            if len(tables) > 1:
                return None
            texts.append(_key_sections(header.rows, keys))
            cut.append(_sections(header.rows, len(json.loads(table)), body))
        except (ValueError, KeyError, TypeError, zstandard.ZstdError) as e:
            raise _damaged(data, e) from e
    keys, body = (
        b"".join(part for column in zip(*parts, strict=True) for part in column)
        for parts in (texts, cut)
    )
    rows = sum(header.rows for header in headers)
    clock = max(header.clock_ms for header in headers)
    first = min(header.first_sequence for header in headers)
    return seal(tables.pop(), rows, clock, first, keys, body, compress=True)


def _damaged(data: bytes, reason: Exception) -> StateFormatError:
    return StateFormatError(
        f"reading window state: a chunk of {len(data)} bytes is damaged ({reason})"
    )


def _opened(
    header: ChunkHeader, data: bytes, keys: bool = True, rows: bool = True
) -> tuple[bytes, bytes, bytes]:
    """Return the field table, and the keys and rows as this version writes them where wanted."""
    start = header.table_at + header.table_bytes
    old = header.version < CHUNK_VERSION
    table, middle = data[header.table_at : start], start + header.key_bytes
    texts = _unpacked(header, data[start:middle]) if header.version > 1 and (keys or old) else b""
    body = _unpacked(header, data[middle:]) if rows or old else b""
    if (old or (keys and rows)) and len(texts) + len(body) != header.body_bytes:
        msg = f"expected {header.body_bytes} bytes of keys and rows, was {len(texts) + len(body)}"
        raise ValueError(msg)
    for version in range(header.version, CHUNK_VERSION):
        texts, body = UPGRADES[version](header.rows, len(json.loads(table)), texts, body)
    return table, texts, body


def _unpacked(header: ChunkHeader, part: bytes) -> bytes:
    if not header.compressed:
        return part
    return zstandard.ZstdDecompressor().decompress(part, max_output_size=header.body_bytes)


def _key_sections(rows: int, keys: bytes) -> list[memoryview]:
    """Cut keys into their lengths and their bytes."""
    if len(keys) < 2 * rows:
        msg = f"expected at least {2 * rows} bytes of keys, was {len(keys)}"
        raise ValueError(msg)
    view = memoryview(keys)
    return [view[: 2 * rows], view[2 * rows :]]


def _sections(rows: int, fields: int, body: bytes) -> list[memoryview]:
    """Cut rows into their columns."""
    view, at, found = memoryview(body), 0, []
    for width in (1, 4, *(8,) * (3 + fields)):
        found.append(view[at : at + width * rows])
        at += width * rows
    if len(body) != at:
        msg = f"expected {at} bytes of rows, was {len(body)}"
        raise ValueError(msg)
    return found


def _columns(header: ChunkHeader, fields: tuple[RawField, ...], body: bytes) -> Chunk:
    kind, valid, time, ids, label, *raw = _sections(header.rows, len(fields), body)

    def longs(column: memoryview) -> NDArray[np.int64]:
        return np.frombuffer(column, "<i8").astype(np.int64, copy=False)

    return Chunk(
        fields,
        header.clock_ms,
        header.first_sequence,
        np.frombuffer(kind, np.uint8),
        np.frombuffer(valid, "<u4").astype(np.uint32, copy=False),
        longs(time),
        longs(ids),
        longs(label),
        np.stack([longs(column) for column in raw])
        if raw
        else np.zeros((0, header.rows), np.int64),
    )
