"""Send damaged payments, labels and control records through both stages of the fraud job.

    python -m tests.fuzz.stages_fuzz --records 1000000

Behind their quarantines, as on Flink. Every offset must come out as one row, label, control outcome
or dead letter.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Final

from connectors.frames import event_time_header
from tests.property.avro_strategies import mutate
from tests.support.fraud import START_MS, Fraud, control, encode, offline_settings
from tests.support.guarded import guard
from tests.support.pipeline import frame

__all__ = ["fuzz", "main"]

BATCH: Final = 2_000
TOPICS: Final = ("card-transactions", "card-labels", "fraud-control")


def _payment(source: random.Random, number: int) -> tuple[bytes, bytes | None]:
    customer = f"C{source.randrange(500)}"
    value = encode(
        "card_transaction",
        {
            "event_id": f"e{number}",
            "event_time_ms": START_MS + number * 50,
            "customer_id": customer,
            "terminal_id": f"T{source.randrange(200)}",
            "amount_minor": source.randrange(100_000),
            "currency": "EUR",
            "merchant_id": "M" * source.randrange(30),
            "country": source.choice(["FR", "DE", None]),
            "latitude": source.choice([None, 45.0]),
            "card_number": source.choice([None, "4929123412341234"]),
        },
    )
    return value, customer.encode()


def _label(source: random.Random, number: int) -> tuple[bytes, bytes | None]:
    customer = f"C{source.randrange(500)}"
    value = encode(
        "label",
        {
            "event_id": f"e{source.randrange(max(1, number))}",
            "event_time_ms": START_MS + number * 40,
            "customer_id": customer,
            "terminal_id": f"T{source.randrange(200)}",
            "is_fraud": source.random() < 0.5,
            "labelled_at_ms": START_MS + number * 50,
            "source": "chargeback",
            "revision": 0,
        },
    )
    return value, customer.encode()


def fuzz(fraud: Fraud, records: int, seed: int, told: Callable[[int], None]) -> Counter[str]:
    """Send `records` records, nine in ten damaged; return what became of them by outcome.

    Raises:
        AssertionError: a record vanished or came out twice.
    """
    source = random.Random(seed)
    outcomes: Counter[str] = Counter()
    done = 0
    while done < records:
        frames, sent = [], []
        for offset in range(done, min(done + BATCH, records)):
            topic = source.choices(TOPICS, (80, 18, 0.05))[0]
            if topic == "fraud-control":
                orders = control(
                    offset, source.choice(["ping", "set_thresholds", "activate_rules"])
                )
                value, key = b"\0" + source.randbytes(40), b"x"
                frames.append(
                    orders
                    if source.random() < 0.3
                    else frame(topic, key, value, offset, timestamp_ms=START_MS, control=True)
                )
                sent.append((topic, offset))
                continue
            made = _payment if topic == TOPICS[0] else _label
            value, key = made(source, offset)
            if source.random() < 0.9:
                value = mutate(source, value, source.choice([0, 5]))
            if source.random() < 0.05:
                key = source.choice([b"", None, b"\xff", source.randbytes(8)])
            stamp = source.getrandbits(62) if source.random() < 0.1 else START_MS + offset * 50
            headers = [event_time_header(stamp)]
            if source.random() < 0.1:
                headers.append((source.choice(["riskstream_attempt", "x"]), source.randbytes(6)))
            frames.append(
                frame(
                    topic,
                    key,
                    value,
                    offset,
                    timestamp_ms=START_MS + offset * 50,
                    headers=tuple(headers),
                )
            )
            sent.append((topic, offset))
        fraud.send(frames, sorted(source.sample(range(1, len(frames)), min(20, len(frames) - 1))))
        found: Counter[tuple[str, int]] = Counter()
        for name, rows in (("row", fraud.rows()), ("label", fraud.label_rows())):
            found.update((row["kafka_topic"], row["kafka_offset"]) for row in rows)
            outcomes[name] += len(rows)
        # Every shard answers an order.
        answers = {(row["kafka_topic"], row["kafka_offset"]) for row in fraud.control_rows()}
        found.update(answers)
        outcomes["order"] += len(answers)
        for letter in fraud.letters():
            found[letter["topic"], letter["offset"]] += 1
            outcomes[letter["reason"]] += 1
        outcomes["alerts, not counted as outcomes"] += len(fraud.alerts())
        assert found == Counter(sent), f"in the batch at {done}: {Counter(sent) - found}"
        fraud.pipeline.rows.clear()
        fraud.pipeline.records.clear()
        done += len(sent)
        told(done)
    return outcomes


def main() -> int:
    """Run from the command line; exit 1 when a record vanished, doubled or stopped the job."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="riskstream-fuzz-") as name:
        limits = ("fraud.max_record_bytes=4096", "fraud.max_string_bytes=512")
        fraud = Fraud(offline_settings(Path(name), *limits), shards=2)
        guard(fraud, Path(name) / "crashes")
        outcomes = fuzz(fraud, arguments.records, arguments.seed, lambda done: None)
    answer = {
        "records": arguments.records,
        "outcomes": dict(outcomes.most_common()),
        "seconds": round(time.perf_counter() - began, 1),
        "memory_megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }
    sys.stdout.write(json.dumps(answer, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
