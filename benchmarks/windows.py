"""Measure the windows: events per second and core, bytes per key, restore time, and rivals offline.

Hot path: `ShardStore.process` on a filled store, six customer features (count and mean amount over
1, 7 and 30 days) unless said, ids of 16 bytes, keys of 8; synthetic data, seed 1. CPU time of the
thread, so other work on the machine disturbs caches and shares cores (a hyperthread at work beside
ours takes up to half of a core's speed) but does not stop the clock; the median over batches, the
first tenth left out, and the least, which is the nearest to a quiet machine that a busy one gives.
The load average stands in the results.

    python -m benchmarks.windows [--quick] [--only PART]... [--out benchmarks/results/windows.json]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from jobs.windows.batch import EventBatch
from jobs.windows.durations import DAY_MS
from jobs.windows.event_features import event_features
from jobs.windows.spec import Entity, FeatureSet, count, mean, minimum, money, std
from jobs.windows.state_log import MemoryLog, StateLog
from jobs.windows.store import ShardStore, warm
from schemas.columns import NumberColumn, StringColumn

__all__ = ["main"]

SPAN_MS = 30 * DAY_MS
# Restores of a log on each number of cores; their median is told.
RESTORES = 3


def feature_set(*windows: str, richer: bool = False) -> FeatureSet:
    """Return count and mean over the windows; `richer` adds minimum and deviation."""
    extra = (minimum("amount", windows), std("amount", windows)) if richer else ()
    return FeatureSet(
        name="bench",
        fields=(money("amount", "amount_minor"),),
        entities=(
            Entity("customer", "customer_id", (count(windows), mean("amount", windows), *extra)),
        ),
    )


def batch(
    dice: np.random.Generator, keys: int, size: int, start_ms: int, span_ms: int, skew: float
) -> EventBatch:
    """Return `size` events spread over a span; a share `skew` of them falls on one key."""
    chosen = dice.integers(0, keys, size)
    chosen[dice.random(size) < skew] = 0
    digits = np.char.encode((chosen + 10_000_000).astype("U8"), "ascii").tobytes()
    ids = dice.integers(0, 256, size * 16, dtype=np.uint8)
    return EventBatch(
        np.zeros(size, np.uint8),
        StringColumn(
            np.frombuffer(digits, np.uint8), np.arange(size) * 8, np.full(size, 8, np.int32)
        ),
        np.sort(dice.integers(start_ms, start_ms + max(1, span_ms), size)),
        StringColumn(ids, np.arange(size) * 16, np.full(size, 16, np.int32)),
        {"amount_minor": NumberColumn(dice.integers(1, 100_000, size), np.ones(size, np.bool_))},
    )


def online(
    declared: FeatureSet, keys: int, per_key: int, size: int, batches: int, skew: float = 0.0
) -> dict[str, Any]:
    """Fill a store with `per_key` events a key over 30 days and time batches after them."""
    dice = np.random.default_rng(1)
    store = ShardStore(declared, "customer")
    total, step, now = keys * per_key, 100_000, 0
    for first in range(0, total, step):
        rows = min(step, total - first)
        store.process(batch(dice, keys, rows, now, SPAN_MS * rows // total, skew))
        now += SPAN_MS * rows // total
    each = max(1, SPAN_MS * size // total)
    work = [batch(dice, keys, size, now + i * each, each, skew) for i in range(batches)]
    cpu = []
    for one in work:
        began = time.thread_time_ns()
        store.process(one)
        cpu.append(time.thread_time_ns() - began)
    warmed = np.array(cpu[len(cpu) // 10 :]) / 1000
    stats = store.stats()
    return {
        "keys": keys,
        "stored_events": stats.events,
        "batch": size,
        "skew": skew,
        "us_per_batch_least": round(float(warmed.min()), 1),
        "us_per_batch_p50": round(float(np.median(warmed)), 1),
        "us_per_batch_p99": round(float(np.quantile(warmed, 0.99)), 1),
        "events_per_second": round(size / float(np.median(warmed)) * 1e6),
        "events_per_second_best": round(size / float(warmed.min()) * 1e6),
        "bytes_per_key": round(stats.memory_bytes / max(1, stats.keys)),
        "bytes_per_event": round(stats.memory_bytes / max(1, stats.events), 1),
    }


def restore(keys: int, events: int) -> dict[str, Any]:
    """Time the rebuilding of a store from its log."""
    declared = feature_set("1d", "7d", "30d")
    dice = np.random.default_rng(1)
    store, kept = ShardStore(declared, "customer"), MemoryLog()
    log = StateLog(kept, store.horizon_ms)
    list(log.chunks())
    step = 20_000
    appended = []
    for first in range(0, events, step):
        delta = store.process(
            batch(dice, keys, step, SPAN_MS * first // events, SPAN_MS * step // events, 0.0)
        ).delta
        began = time.thread_time_ns()
        log.append(delta, store.clock_ms)
        appended.append((time.thread_time_ns() - began) / 1000)
    took: dict[str, list[float]] = {}
    cores = os.sched_getaffinity(0)
    both, one = sorted(cores)[:2], sorted(cores)[:1]
    # The first one takes memory that a virtual machine may have to ask its host for; the next ones
    # that which the one before gave back, as a process that follows a dead one does.
    turns = [("first_two_cores", both), *[("two_cores", both), ("one_core", one)] * RESTORES]
    for name, some in turns:
        again = ShardStore(declared, "customer")
        os.sched_setaffinity(0, some)
        wall, cpu = time.perf_counter(), time.process_time()
        rows = again.restore(StateLog(kept, store.horizon_ms).chunks())
        took.setdefault(f"wall_seconds_{name}", []).append(round(time.perf_counter() - wall, 3))
        took.setdefault(f"cpu_seconds_{name}", []).append(round(time.process_time() - cpu, 3))
        os.sched_setaffinity(0, cores)
        memory = again.stats().memory_bytes
        del again
    return {
        "events": rows,
        "keys": keys,
        **{name: statistics.median(seconds) for name, seconds in took.items()},
        "bytes_per_event": round(memory / rows, 1),
        "entries": len(log),
        "log_bytes_per_event": round(log.stored_bytes() / events, 1),
        "append_us_p50": round(float(np.median(appended)), 1),
        "append_us_max": round(max(appended), 1),
    }


def rivals(rows: int) -> list[dict[str, Any]]:
    """Compute count and mean over 1, 7 and 30 days of one table with us, pandas, polars, DuckDB."""
    import duckdb  # noqa: PLC0415 - only this comparison needs them
    import pandas as pd  # noqa: PLC0415
    import polars as pl  # noqa: PLC0415

    dice = np.random.default_rng(1)
    keys, times = dice.integers(0, 5_000, rows), np.sort(dice.integers(0, 2 * SPAN_MS, rows))
    amounts = dice.integers(1, 100_000, rows)
    frame = pd.DataFrame({"key": keys, "time": pd.to_datetime(times, unit="ms"), "amount": amounts})
    declared = feature_set("1d", "7d", "30d")
    digits = np.char.encode((keys + 10_000_000).astype("U8"), "ascii").tobytes()
    ids = np.char.encode((np.arange(rows) + 10_000_000).astype("U8"), "ascii").tobytes()

    def column(raw: bytes) -> StringColumn:
        return StringColumn(
            np.frombuffer(raw, np.uint8), np.arange(rows) * 8, np.full(rows, 8, np.int32)
        )

    whole = EventBatch(
        np.zeros(rows, np.uint8),
        column(digits),
        times,
        column(ids),
        {"amount_minor": NumberColumn(amounts, np.ones(rows, np.bool_))},
    )

    def ours() -> float:
        done = ShardStore(declared, "customer").process(whole)
        event_features(declared, times, whole.fields)
        return float(done.features[:, 5].sum())

    def with_pandas() -> float:
        indexed = frame.set_index("time").groupby("key")["amount"]
        answer = 0.0
        for days in (1, 7, 30):
            indexed.rolling(f"{days}D").count()
            answer = float(indexed.rolling(f"{days}D").mean().sum() / 100)
        return answer

    def with_polars() -> float:
        table, answer = pl.from_pandas(frame), 0.0
        for days in (1, 7, 30):
            rolled = table.rolling("time", period=f"{days}d", group_by="key").agg(
                pl.len(), pl.col("amount").mean()
            )
            answer = float(rolled["amount"].sum() / 100)
        return answer

    def with_duckdb() -> float:
        with duckdb.connect() as connection:
            connection.execute("SET threads = 1")
            connection.register("frame", frame)
            parts = ", ".join(
                f"count(*) OVER w{d} AS c{d}, avg(amount) OVER w{d} AS m{d}" for d in (1, 7, 30)
            )
            windows = ", ".join(
                f"w{d} AS (PARTITION BY key ORDER BY time RANGE BETWEEN INTERVAL {d} DAY PRECEDING "
                "AND CURRENT ROW)"
                for d in (1, 7, 30)
            )
            query = (
                f"SELECT sum(m30) / 100, sum(c1) FROM (SELECT {parts} FROM frame WINDOW {windows})"
            )
            found = connection.execute(query).fetchone()
        return float(found[0]) if found else 0.0

    contestants: list[tuple[str, Callable[[], float]]] = [
        ("riskstream", ours),
        ("pandas rolling", with_pandas),
        ("polars rolling", with_polars),
        ("DuckDB windows", with_duckdb),
    ]
    results = []
    for name, work in contestants:
        wall, cpu = time.perf_counter(), time.process_time()
        answer = work()
        results.append(
            {
                "who": name,
                "rows": rows,
                "cpu_seconds": round(time.process_time() - cpu, 3),
                "wall_seconds": round(time.perf_counter() - wall, 3),
                "sum_of_30d_means": round(answer, 3),
            }
        )
    return results


def parts(small: bool) -> dict[str, Callable[[], list[dict[str, Any]]]]:
    """Return every measurement by name; `small` takes a look in seconds."""
    six = feature_set("1d", "7d", "30d")
    per_key, count_500 = (10, 100) if small else (30, 200)
    key_counts = (1_000, 10_000, 100_000) + (() if small else (1_000_000, 10_000_000))
    declared = (
        feature_set("30d"),
        six,
        feature_set("1h", "6h", "1d", "2d", "7d", "14d", "30d", "60d"),
        feature_set("1d", "7d", "30d", richer=True),
    )
    return {
        "keys": lambda: [
            online(six, keys, 1 if keys > 1_000_000 else 10, 500, count_500) for keys in key_counts
        ],
        "events_per_key": lambda: [online(six, 100_000, n, 500, count_500) for n in (3, 10, 30)],
        "batch_size": lambda: [
            online(six, 10_000, per_key, size, 400) for size in (1, 5, 50, 500, 5_000)
        ],
        "window": lambda: [
            {"window": w, **online(feature_set(w), 10_000, per_key, 500, count_500)}
            for w in ("60s", "1d", "30d", "90d")
        ],
        "skew": lambda: [
            online(six, 10_000, per_key, 500, count_500, skew) for skew in (0.0, 0.1, 0.5)
        ],
        "features": lambda: [
            {"features": len(d.names), **online(d, 10_000, per_key, 500, count_500)}
            for d in declared
        ],
        "restore": lambda: [
            restore(100_000, n) for n in ((200_000,) if small else (2_000_000, 10_000_000))
        ],
        "offline": lambda: rivals(100_000 if small else 300_000),
    }


def main() -> None:
    """Run the measurements and write the results; those not run stay as they are on file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes, for a look")
    parser.add_argument("--only", action="append", choices=list(parts(True)), metavar="PART")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/windows.json"))
    chosen = parser.parse_args()
    began = time.perf_counter()
    warm(feature_set("1d", "7d", "30d"))
    started = time.perf_counter() - began
    results: dict[str, Any] = {}
    if chosen.only and chosen.out.is_file():
        results = json.loads(chosen.out.read_text())
    results["machine"] = {
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "numpy": np.__version__,
    }
    results["command"] = "python -m benchmarks.windows" + (" --quick" if chosen.quick else "")
    results["warm_seconds"] = round(started, 3)
    loads = results.setdefault("load_average_at_start", {})
    for name, measure in parts(chosen.quick).items():
        if not chosen.only or name in chosen.only:
            loads[name] = round(os.getloadavg()[0], 2)
            results[name] = measure()
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    chosen.out.write_text(json.dumps(results, indent=1) + "\n")
    sys.stdout.write(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
