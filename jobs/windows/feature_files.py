"""Write the features of a file to a file, chunk by chunk, in bounded memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from jobs.windows.batch import RowFlag
from jobs.windows.errors import FeatureInputError
from jobs.windows.offline import features_of
from jobs.windows.spec import FeatureSet

__all__ = ["BuildSummary", "write_features"]


@dataclass(frozen=True, slots=True)
class BuildSummary:
    """What a build wrote: rows, how many were late, too late or repeated, and their times."""

    rows: int
    late: int
    too_late: int
    duplicates: int
    first_event_ms: int
    last_event_ms: int


def write_features(
    source: Path,
    target: Path,
    feature_set: FeatureSet,
    label_delay_days: float,
    renamed: Mapping[str, str],
    progress: Callable[[int], None],
) -> BuildSummary:
    """Write id, time, keys, amount, label, flags and every feature of each row of `source`.

    The file appears whole or not at all: it is written beside its place and then moved there.

    Raises:
        FeatureInputError: when the source lacks what is needed, or the target cannot be written.
    """
    if target.suffix not in (".parquet", ".csv"):
        msg = f"writing features to {str(target)!r}: expected a name ending in .parquet or .csv"
        raise FeatureInputError(msg)
    if not target.parent.is_dir():
        msg = f"writing features to {str(target)!r}: there is no folder {str(target.parent)!r}"
        raise FeatureInputError(msg)
    if target.exists() and target.samefile(source):
        msg = f"writing features to {str(target)!r}: that is the file that is read"
        raise FeatureInputError(msg)
    rows = late = too_late = duplicates = 0
    oldest, newest = [], []
    partial = target.with_name(f".{target.name}.partial")
    writer: pq.ParquetWriter | pyarrow.csv.CSVWriter | None = None
    try:
        for part in features_of(source, feature_set, label_delay_days, renamed):
            table: pa.Table = part.to_arrow()
            if writer is None:
                if target.suffix == ".csv":
                    writer = pyarrow.csv.CSVWriter(partial, table.schema)
                else:
                    writer = pq.ParquetWriter(partial, table.schema)
            writer.write_table(table)
            rows += len(part)
            oldest.append(int(part.event_time_ms.min()))
            newest.append(int(part.event_time_ms.max()))
            late += int(np.count_nonzero(part.flags & RowFlag.LATE))
            too_late += int(np.count_nonzero(part.flags & RowFlag.TOO_LATE))
            duplicates += int(np.count_nonzero(part.flags & RowFlag.DUPLICATE))
            progress(len(part))
        if writer is None:
            msg = f"building features: {str(source)!r} holds no rows"
            raise FeatureInputError(msg)
        writer.close()
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)
    return BuildSummary(rows, late, too_late, duplicates, min(oldest), max(newest))
