"""What of a latency is the harness alone: its publisher, the broker, its subscriber, and no engine.

No contestant can be below this in the same tables. It is measured on a machine that does nothing
else, so that beside a working contestant the harness takes longer, not less.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from benchmarks.load import AlertTimes, percentiles, send_at_rate
from benchmarks.session import LEAD_SECONDS
from benchmarks.workload import Record
from connectors.kafka import librdkafka_config
from connectors.settings import Settings

__all__ = ["measure_floor"]


def measure_floor(
    settings: Settings, records: Sequence[Record], rates: Sequence[float], seconds: float
) -> list[dict[str, Any]]:
    """Return for each rate how long records take from due to received, as of `percentiles`.

    Args:
        settings: of topics that exist; the payments' is published to and read.
        records: `rate * (seconds + LEAD_SECONDS)` of them; fewer make a shorter measurement.
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
        counts_from_ms = int(1000 * (time.time() + LEAD_SECONDS))
        send_at_rate(kafka, topic, sent, rate)
        watch.settle(len(sent))
        watch.stop()
        # The first ones may come before the subscriber knows where its end of the log is.
        waited = [
            one.arrived_ms - one.stamped_ms
            for one in watch.arrivals
            if one.stamped_ms >= counts_from_ms
        ]
        wanted = len(sent) - int(rate * LEAD_SECONDS)
        if len(waited) < wanted:
            msg = f"measuring the harness at {rate:g}/s: {len(waited)} of {wanted} records received"
            raise RuntimeError(msg)
        found.append({"rate": round(rate), **percentiles(waited)})
    return found
