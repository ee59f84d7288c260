"""The one workload of every contestant: simulated card payments, their profiles, their checksum.

The stream is a pure function of the seed and the length, so that two runs, and two contestants,
meet the same bytes. Event times are those of the simulation: far in the past, in order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from connectors.frames import event_time_header, write_frame
from connectors.producers.simulator import DEFAULT_START_MS, Population, Simulation
from connectors.producers.strings import to_bytes
from connectors.profile_loading import Profiles
from connectors.profiles import profile_key
from schemas.contract import contract
from schemas.encoder import ColumnarEncoder
from schemas.registry import stable_schema_id

__all__ = ["SEED", "Record", "Workload"]

SEED: Final = 7
CUSTOMERS: Final = 5_000
TERMINALS: Final = 10_000


@dataclass(frozen=True, slots=True)
class Record:
    """One record as it goes to Kafka; the event time goes into a header."""

    key: bytes
    value: bytes
    event_time_ms: int


class _Dictionary:
    """Profiles in this process, asked as Redis is."""

    def __init__(self, values: dict[bytes, bytes]) -> None:
        self._values = values

    def mget(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Return the values of keys."""
        return [self._values.get(key) for key in keys]


class Workload:
    """`length` payments of 5,000 customers at 10,000 terminals, unless told otherwise.

    Fewer customers make the same number of payments last longer: about two each a day.
    """

    def __init__(
        self,
        length: int,
        seed: int = SEED,
        customers: int = CUSTOMERS,
        terminals: int = TERMINALS,
        start_ms: int = DEFAULT_START_MS,
    ) -> None:
        population = Population(seed=seed, customers=customers, terminals=terminals)
        self.length = length
        self._start_ms = start_ms
        self.seed = seed
        self._population = population

    @cached_property
    def records(self) -> list[Record]:
        """Return the records in order; encoded with the committed contract and its stable id."""
        text = contract("card_transaction")
        encoder = ColumnarEncoder(text, stable_schema_id(text))
        made: list[Record] = []
        for batch in self._simulation().batches():
            values = to_bytes(encoder.encode(batch.columns))
            keys = to_bytes(batch.text("customer_id"))
            made += [
                Record(key or b"", value or b"", time_ms)
                for key, value, time_ms in zip(
                    keys, values, batch.event_time_ms.tolist(), strict=True
                )
            ]
        return made

    def profiles(self) -> list[Profiles]:
        """Return every profile that the stream asks for."""
        return self._simulation().profiles()

    def _simulation(self) -> Simulation:
        return Simulation(self._population, start_ms=self._start_ms, limit=self.length)

    def profile_client(self) -> _Dictionary:
        """Return a stand-in for Redis that holds the profiles."""
        values: dict[bytes, bytes] = {}
        for profiles in self.profiles():
            raw, size = profiles.packed.tobytes(), profiles.packed.dtype.itemsize
            for at, entity in enumerate(to_bytes(profiles.ids)):
                key = profile_key(profiles.kind, entity or b"")
                values[key] = raw[at * size : (at + 1) * size]
        return _Dictionary(values)

    def frames(self, topic: str) -> list[bytes]:
        """Return the records as frames of the bridge, all in partition 0."""
        return [
            write_frame(
                topic,
                record.key,
                record.value,
                headers=(event_time_header(record.event_time_ms),),
                partition=0,
                offset=offset,
                timestamp_ms=record.event_time_ms,
                ingested_at_ms=record.event_time_ms,
            )
            for offset, record in enumerate(self.records)
        ]

    def sha256(self) -> str:
        """Return the checksum of all keys and values, in order."""
        digest = hashlib.sha256()
        for record in self.records:
            digest.update(record.key)
            digest.update(record.value)
        return digest.hexdigest()
