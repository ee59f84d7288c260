"""Write simulated transactions to Parquet, in the contract's names, for a replay to read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from connectors.producers.simulator import SimulatedDay, Simulation
from connectors.producers.source import CHANNELS
from schemas.columns import Column, StringColumn
from schemas.errors import ConfigurationError

__all__ = ["write_transactions"]


def write_transactions(
    path: Path,
    simulation: Simulation,
    limit: int | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> int:
    """Write day after day until the simulation or the limit ends; return how many transactions.

    Columns are the contract's fields, `is_fraud` and `fraud_scenario`. The file appears whole: it
    is written under another name first.

    Raises:
        ConfigurationError: when the file cannot be written.
    """
    part = path.with_name(f".{path.name}.part")
    written = 0
    writer: pq.ParquetWriter | None = None
    try:
        for day in simulation.simulated_days():
            table = _table(day)
            if limit is not None:
                table = table.slice(0, limit - written)
            writer = writer or pq.ParquetWriter(part, table.schema, compression="zstd")
            writer.write_table(table)
            written += len(table)
            progress(len(table))
            if limit is not None and written >= limit:
                break
        if writer is not None:
            writer.close()
            writer = None
            part.replace(path)
    except OSError as e:
        msg = f"writing {str(path)!r}: {e}"
        raise ConfigurationError(msg) from e
    finally:
        if writer is not None:
            writer.close()
        part.unlink(missing_ok=True)
    return written


def _table(day: SimulatedDay) -> pa.Table:
    arrays = {name: _array(name, column) for name, column in day.batch.columns.items()}
    return pa.table(
        {
            **arrays,
            "is_fraud": pa.array(day.batch.is_fraud),
            "fraud_scenario": pa.array(day.scenario),
        }
    )


def _array(name: str, column: Column) -> pa.Array:
    if isinstance(column, StringColumn):
        return pa.array(column.to_list(), pa.string())
    if name == "channel":
        codes = pa.array(column.values)
        return pa.DictionaryArray.from_arrays(codes, pa.array(CHANNELS)).cast(pa.string())
    return pa.array(column.values, mask=~column.valid)
