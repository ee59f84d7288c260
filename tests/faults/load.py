"""The load that faults are tried under: steady, in bursts, or with a partition fallen silent."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Final

import numpy as np
from kafka.partitioner.default import murmur2
from numpy.typing import NDArray

from connectors.kafka import librdkafka_config
from connectors.producers.labels import DAY_MS, LabelPolicy
from connectors.producers.pace import SystemClock
from connectors.producers.publisher import KafkaPublisher
from connectors.producers.replay import replay
from connectors.producers.routes import label_route, transaction_route
from connectors.producers.simulator import Population, Simulation
from connectors.producers.source import TransactionBatch
from connectors.profile_loading import load_profiles
from connectors.profiles import redis_client
from connectors.settings import Settings

__all__ = ["ChangingPace", "Load", "LoadError"]

# Event time must not run away: partitions are aligned to half a day, and labels come a day before
# they count, so what a consumer has fetched already when it is told to wait (up to some 1,500
# records of a partition) must be far less than half a day: 3,000 payments of this many customers.
CUSTOMERS: Final = 3_000
# Labels come after six days and count after seven: without these, windows over them stay empty.
HISTORY_DAYS: Final = 8
HISTORY_RATE: Final = 4_000.0
# A change of rate takes effect after this many payments: a quarter of a second at 400/s.
SLICE: Final = 100
DELIVERED_MS: Final = 20 * 60_000


class LoadError(AssertionError):
    """Kafka refused a record: the load itself was not steady."""


class ChangingPace:
    """An open loop whose rate may change: `Pacing` for `replay`.

    What was due while Kafka was away is sent at once when it is back, as a real queue would be.
    """

    flat_out = False

    def __init__(self, events_per_second: float) -> None:
        self.events_per_second = events_per_second
        self._due = 0.0

    def due_seconds(
        self, done: int, event_time_ms: NDArray[np.int64], first_event_time_ms: int
    ) -> NDArray[np.float64]:
        """Return when each event is due, in seconds after the start, at the rate of now."""
        due = self._due + np.arange(1, len(event_time_ms) + 1) / self.events_per_second
        self._due = float(due[-1])
        return due


class Load:
    """Simulated payments, each with its label: eight days as fast as may be, then at the rate."""

    def __init__(
        self,
        settings: Settings,
        rate: float,
        customers: int | None = None,
        *,
        history: bool = True,
    ) -> None:
        self._settings = settings
        population = Population(seed=7, customers=customers or CUSTOMERS, terminals=300)
        self._simulation = Simulation(population)
        self._ended = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="load", daemon=True)
        self._partitions: dict[str, int] = {}
        self._rate = rate
        self._history_ends_ms: int | None = None
        self.steady = threading.Event()
        self.pace = ChangingPace(max(rate, HISTORY_RATE) if history else rate)
        if not history:
            self.steady.set()
        self.silent_partition: int | None = None
        self.sent = 0

    @property
    def total(self) -> int | None:
        """There is no end."""
        return None

    def batches(self) -> Iterator[TransactionBatch]:
        """Give the simulation in small slices, without customers of a silent partition."""
        for batch in self._simulation.batches():
            for low in range(0, len(batch), SLICE):
                if self._ended.is_set():
                    return
                self._leave_history(int(batch.event_time_ms[low]))
                yield from self._heard(batch.rows(low, min(low + SLICE, len(batch))))

    def start(self) -> None:
        """Load profiles, let Redis keep them over a crash, and begin."""
        client = redis_client(self._settings.redis)
        for profiles in self._simulation.profiles():
            load_profiles(client, profiles)
        client.save()
        self._thread.start()

    def stop(self) -> None:
        """Stop, and wait until Kafka has confirmed everything.

        Raises:
            LoadError: Kafka refused a record.
        """
        self._ended.set()
        if self._thread.ident is None:
            return
        self._thread.join(timeout=180)
        self.check()
        if self._thread.is_alive():
            msg = "the load did not end within 180 s"
            raise LoadError(msg)

    def check(self) -> None:
        """Do nothing while the load goes on or has ended well.

        Raises:
            LoadError: it could not publish, so waiting for payments is in vain.
        """
        if self._failure is not None:
            msg = f"the load did not end well: {self._failure!r}"
            raise LoadError(msg)

    def _leave_history(self, event_time_ms: int) -> None:
        if self._history_ends_ms is None:
            self._history_ends_ms = event_time_ms + HISTORY_DAYS * DAY_MS
        if event_time_ms >= self._history_ends_ms and not self.steady.is_set():
            self.pace.events_per_second = self._rate
            self.steady.set()

    def _heard(self, batch: TransactionBatch) -> Iterator[TransactionBatch]:
        """Cut a slice into runs of rows whose partition is not silent."""
        if self.silent_partition is None:
            yield batch
            return
        low = 0
        silent = [self._partition(name) == self.silent_partition for name in _customers(batch)]
        for at, quiet in enumerate([*silent, True]):
            if quiet:
                if at > low:
                    yield batch.rows(low, at)
                low = at + 1

    def _partition(self, customer: str) -> int:
        found = self._partitions.get(customer)
        if found is None:
            count = self._settings.kafka.topics.partitions
            found = self._partitions[customer] = (murmur2(customer.encode()) & 0x7FFFFFFF) % count
        return found

    def _run(self) -> None:
        try:
            replay(
                self,
                KafkaPublisher(
                    {
                        **librdkafka_config(self._settings.kafka),
                        # Longer than any outage, or the load ends with the broker's.
                        "message.timeout.ms": DELIVERED_MS,
                    }
                ),
                self.pace,
                LabelPolicy("all", 6 * DAY_MS),
                SystemClock(),
                self._count,
                transactions=transaction_route(self._settings),
                label_route=label_route(self._settings),
            )
        except BaseException as e:
            self._failure = e

    def _count(self, count: int) -> None:
        self.sent += count


def _customers(batch: TransactionBatch) -> list[str]:
    return [str(name) for name in batch.text("customer_id").to_list()]
