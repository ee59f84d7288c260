"""What of a latency is the harness alone: its publisher, the broker, its subscriber, and no engine.

No contestant can be below this in the same tables. It is measured on a machine that does nothing
else, so that beside a working contestant the harness takes longer, not less.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from benchmarks.load import AlertTimes, percentiles, send_at_rate
from benchmarks.workload import Record
from connectors.kafka import librdkafka_config
from connectors.settings import Settings

__all__ = ["measure_floor"]

# What comes first pays for connections and counts for nothing.
LEAD_SECONDS: Final = 1.0


def measure_floor(
    settings: Settings, records: Sequence[Record], rates: Sequence[float], seconds: float
) -> list[dict[str, Any]]:
    """Return for each rate how long records take from due to received, as of `percentiles`.

    Args:
        settings: of topics that exist; the payments' is published to and read.
        records: at least `rate * (seconds + 1)` of them; fewer make a shorter measurement.
        rates: events/s.
        seconds: how long a rate counts.

    Raises:
        RuntimeError: when not every record comes back.
    """
    kafka: dict[str, object] = dict(librdkafka_config(settings.kafka))
    topic = settings.kafka.topics.name("transactions")
    found = []
    for rate in rates:
        sent = records[: int(rate * (seconds + LEAD_SECONDS))]
        watch = AlertTimes(kafka, topic)
        watch.start()
        watch.ready.wait(timeout=30)
        send_at_rate(kafka, topic, sent, rate)
        watch.settle(len(sent))
        watch.stop()
        if len(watch.arrivals) < len(sent):
            msg = f"measuring the harness: {len(sent)} records sent, {len(watch.arrivals)} received"
            raise RuntimeError(msg)
        began_ms = min(one.stamped_ms for one in watch.arrivals)
        waited = [
            one.arrived_ms - one.stamped_ms
            for one in watch.arrivals
            if one.stamped_ms >= began_ms + 1000 * LEAD_SECONDS
        ]
        found.append({"rate": round(rate), **percentiles(waited)})
    return found
