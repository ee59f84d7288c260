"""When each event is due: at a rate, at a multiple of real time, or at once."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from schemas.errors import ConfigurationError

__all__ = ["Clock", "Pace", "Pacing", "SystemClock"]


class Clock(Protocol):
    """The only way a producer learns the time."""

    def monotonic(self) -> float:
        """Return seconds that never go backwards."""

    def sleep(self, seconds: float) -> None:
        """Wait."""


class SystemClock:
    """The machine's clock."""

    def monotonic(self) -> float:
        """Return seconds that never go backwards."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Wait."""
        time.sleep(seconds)


class Pacing(Protocol):
    """Says when events are due; `Pace` is the usual one."""

    @property
    def flat_out(self) -> bool:
        """Whether nothing ever waits."""
        ...

    def due_seconds(
        self, done: int, event_time_ms: NDArray[np.int64], first_event_time_ms: int
    ) -> NDArray[np.float64]:
        """Return when each event is due, in seconds after the start, never decreasing."""
        ...


@dataclass(frozen=True, slots=True)
class Pace:
    """An open loop: due times never depend on how long publishing took.

    Attributes:
        events_per_second: a steady rate, or None.
        speed: a multiple of real time between event times (60 plays an hour in a minute), or None.

    With neither, every event is due at once.

    Raises:
        ConfigurationError: when both are given or one is not positive.
    """

    events_per_second: float | None = None
    speed: float | None = None

    def __post_init__(self) -> None:
        if self.events_per_second is not None and self.speed is not None:
            msg = "setting the pace: give events per second or a speed, not both"
            raise ConfigurationError(msg)
        for name, value in (("rate", self.events_per_second), ("speed", self.speed)):
            if value is not None and not value > 0:
                msg = f"setting the pace: {name} must be positive, was {value!r}"
                raise ConfigurationError(msg)

    @property
    def flat_out(self) -> bool:
        """Whether nothing ever waits."""
        return self.events_per_second is None and self.speed is None

    def due_seconds(
        self, done: int, event_time_ms: NDArray[np.int64], first_event_time_ms: int
    ) -> NDArray[np.float64]:
        """Return when each event is due, in seconds after the start, never decreasing.

        Args:
            done: events that came before this batch.
            event_time_ms: event times of the batch, in publishing order.
            first_event_time_ms: event time of the very first event.
        """
        n = len(event_time_ms)
        if self.events_per_second is not None:
            return np.arange(done, done + n, dtype=np.float64) / self.events_per_second
        if self.speed is not None:
            seconds = (event_time_ms - first_event_time_ms) / (1000.0 * self.speed)
            # A late event is published when it is met in the stream, not in the past.
            return np.maximum.accumulate(np.maximum(seconds, 0.0))
        return np.zeros(n)
