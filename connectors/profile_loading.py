"""Fill Redis with profiles: from tables of profiles, or derived from a file of transactions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import redis
from numpy.typing import NDArray

from connectors.producers.source import TransactionSource
from connectors.producers.strings import from_arrow, to_bytes
from connectors.profiles import PROFILE_TYPES, PROFILE_VERSION, ProfileKind, profile_key
from schemas.columns import StringColumn
from schemas.errors import ConfigurationError, FatalError

__all__ = ["Profiles", "derive_profiles", "load_profiles", "profiles_from_table"]

# A command of 2,000 profiles is about 150 kB: few round trips, and Redis is never busy for long.
_KEYS_A_COMMAND: Final = 2_000


class Profiles:
    """Profiles of one kind, packed."""

    def __init__(
        self, kind: ProfileKind, ids: StringColumn, fields: Mapping[str, NDArray[np.generic]]
    ) -> None:
        self.kind: ProfileKind = kind
        self.ids = ids
        self.packed = np.zeros(len(ids), PROFILE_TYPES[kind])
        self.packed["version"] = PROFILE_VERSION
        for name, values in fields.items():
            self.packed[name] = values

    def __len__(self) -> int:
        return len(self.ids)


def profiles_from_table(kind: ProfileKind, table: pa.Table) -> Profiles:
    """Return the profiles in a table with column `<kind>_id` and any of the profile's fields.

    Fields that the table lacks, and nulls, are 0. Text that is no number is refused.

    Raises:
        ConfigurationError: when the id column is missing or holds nulls, or a field has a wrong
        type.
    """
    id_name = f"{kind}_id"
    if id_name not in table.column_names or table.column(id_name).null_count:
        msg = (
            f"reading {kind} profiles: expected a column {id_name!r} without nulls, was "
            f"{table.column_names!r}"
        )
        raise ConfigurationError(msg)
    dtype = PROFILE_TYPES[kind]
    fields: dict[str, NDArray[np.generic]] = {}
    for name in dtype.names or ():
        if name == "version" or name not in table.column_names:
            continue
        column = table.column(name)
        target = pa.float64() if dtype[name].kind == "f" else pa.int64()
        try:
            if pa.types.is_timestamp(column.type):
                column = pc.cast(column, pa.timestamp("ms"), safe=False)
            fields[name] = np.asarray(pc.fill_null(pc.cast(column, target), 0))
        except pa.ArrowException as e:
            msg = f"reading {kind} profiles: column {name!r}: {e}; expected {target}"
            raise ConfigurationError(msg) from e
    return Profiles(kind, from_arrow(table.column(id_name)), fields)


def derive_profiles(
    source: TransactionSource, progress: Callable[[int], None] = lambda done: None
) -> list[Profiles]:
    """Derive customer and terminal profiles from transactions.

    A customer's usual amount is the mean (half to even) of its amounts, its and a terminal's
    opening time the first event time; positions stay 0. The risk tier of a terminal is the number
    of its frauds in the source, at most 3; that of a customer is 0.

    Args:
        source: the transactions; only sums per entity are held in memory.
        progress: called with the number of transactions read since the last call.
    """
    parts: dict[ProfileKind, list[pa.Table]] = {"customer": [], "terminal": []}
    for batch in source.batches():
        n = len(batch)
        fraud = np.zeros(n, np.int64) if batch.is_fraud is None else batch.is_fraud.astype(np.int64)
        numbers = {
            "amount": batch.amount_minor,
            "events": np.ones(n, np.int64),
            "first": batch.event_time_ms,
            "frauds": fraud,
        }
        for kind in parts:
            ids = pa.array(batch.text(f"{kind}_id").to_list(), pa.string())
            parts[kind].append(_summed(pa.table({"id": ids, **numbers})))
        progress(n)
    made: list[Profiles] = []
    for kind, tables in parts.items():
        if not tables:
            continue
        total = _summed(pa.concat_tables(tables))
        amount_sum, events = (np.asarray(total.column(name)) for name in ("amount", "events"))
        frauds = np.asarray(total.column("frauds"))
        fields: dict[str, NDArray[np.generic]] = {
            "opened_at_ms": np.asarray(total.column("first")),
            "chargebacks": frauds,
        }
        if kind == "customer":
            fields["usual_amount_minor"] = np.rint(amount_sum / events).astype(np.int64)
        else:
            fields["risk_tier"] = np.minimum(frauds, 3)
        made.append(Profiles(kind, from_arrow(total.column("id")), fields))
    return made


def load_profiles(
    client: redis.Redis, profiles: Profiles, progress: Callable[[int], None] = lambda done: None
) -> int:
    """Write profiles, many in a command; existing ones are replaced. Returns how many.

    Raises:
        FatalError: when Redis does not take them; what was written stays.
    """
    size = profiles.packed.dtype.itemsize
    raw = profiles.packed.tobytes()
    ids = to_bytes(profiles.ids)
    for start in range(0, len(ids), _KEYS_A_COMMAND):
        part = ids[start : start + _KEYS_A_COMMAND]
        values = {
            profile_key(profiles.kind, entity_id or b""): raw[at * size : (at + 1) * size]
            for at, entity_id in enumerate(part, start)
        }
        try:
            client.mset(values)
        except redis.RedisError as e:
            msg = f"writing {profiles.kind} profiles {start} to {start + len(part)} to Redis: {e}"
            raise FatalError(msg) from e
        progress(len(part))
    return len(ids)


def _summed(table: pa.Table) -> pa.Table:
    grouped = table.group_by("id").aggregate(
        [("amount", "sum"), ("events", "sum"), ("first", "min"), ("frauds", "sum")]
    )
    return grouped.select(
        ["id", "amount_sum", "events_sum", "first_min", "frauds_sum"]
    ).rename_columns(["id", "amount", "events", "first", "frauds"])
