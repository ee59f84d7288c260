"""The fraud workload one record at a time, in plain Python: what most users would write first.

It is the logic of every Python contestant, and the reference that results are compared with: the
same windows (`(t - w, t]` per customer, `(t - 7 d - w, t - 7 d]` per terminal), the same profiles,
model, rules and outputs. Nothing of riskstream is imported, so that it runs in the virtual
environment of any contestant; all it must know comes in one JSON file (`Job`).

Labels are not part of the workload, so a terminal's share of frauds is 0.
"""

from __future__ import annotations

import http.client
import io
import json
import struct
import time
from bisect import bisect_right, insort
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol
from urllib.parse import quote, urlsplit

import fastavro
import numpy as np
import orjson

__all__ = [
    "FEATURES",
    "RULES",
    "ClickHouseRows",
    "Decoder",
    "Job",
    "Model",
    "Profiles",
    "Scorer",
    "add_to_customer",
    "add_to_terminal",
    "decide",
    "event_inputs",
    "new_log",
]

DAY_MS: Final = 86_400_000
WINDOWS_MS: Final = (DAY_MS, 7 * DAY_MS, 30 * DAY_MS)
DELAY_MS: Final = 7 * DAY_MS
# Old events are dropped in groups: one removal of many costs less than many of one.
OLD_EVENTS: Final = 64

FEATURES: Final = (
    "amount",
    "weekend",
    "night",
    *(f"customer_count_{days}d" for days in (1, 7, 30)),
    *(f"customer_amount_mean_{days}d" for days in (1, 7, 30)),
    *(f"terminal_count_{days}d_delay_7d" for days in (1, 7, 30)),
    *(f"terminal_fraud_rate_{days}d_delay_7d" for days in (1, 7, 30)),
)
"""Names of the features, in the order of the model's input."""

RULES: Final = (
    "extreme_amount_for_customer",
    "fraudulent_terminal",
    "amount_far_above_own_mean",
    "payment_burst",
    "high_risk_customer",
    "large_amount",
    "far_from_home",
    "cash_at_night",
)
"""The rules of `jobs/fraud/rules.yaml`; bit n of a mask means that rule n fired."""

DECISIONS: Final = ("approve", "review", "block")
CARD_PRESENT: Final = frozenset({"card_present", "contactless", "atm"})
# u8 version, u8 risk tier, u16 flags, u32 chargebacks, i64 usual amount, f64 latitude, f64
# longitude, i64 opened.
CUSTOMER: Final = struct.Struct("<BBHIqddq")

Log = list[list[int]]
"""State of a key: times in order, and for customers the running sums, one longer."""


@dataclass(frozen=True, slots=True)
class Job:
    """What the bench tells a contestant; field by field the JSON file."""

    kafka: str
    group: str
    transactions: str
    alerts: str
    redis: str
    clickhouse: str
    database: str
    insert: str
    table: str
    model: str
    model_input: str
    model_output: str
    review: float
    block: float
    model_version: str
    rule_set_version: str
    feature_set_version: str
    alert_schema_id: int
    transaction_schema: str
    alert_schema: str
    parallelism: int
    cache_entries: int
    cache_ttl_ms: int
    gather_ms: int
    gather_rows: int
    checkpoint_ms: int
    checkpoints: str
    drift_ms: int
    home: str

    @staticmethod
    def read(path: str) -> Job:
        """Read the file; an unknown or a missing field is refused."""
        return Job(**json.loads(Path(path).read_text(encoding="utf-8")))


class Decoder:
    """Reads values in the Confluent wire format with fastavro."""

    def __init__(self, schema: str) -> None:
        self._schema = fastavro.parse_schema(json.loads(schema))

    def decode(self, value: bytes) -> dict[str, Any]:
        """Return one payment; raises what fastavro raises on bytes that are none."""
        record = fastavro.schemaless_reader(io.BytesIO(value[5:]), self._schema, None)
        if not isinstance(record, dict):
            msg = f"decoding a payment: expected a record, was {type(record).__name__}"
            raise TypeError(msg)
        return record


def new_log() -> Log:
    """Return the state of a key that was never seen."""
    return [[], [0]]


def add_to_customer(log: Log, time_ms: int, amount_minor: int) -> list[float]:
    """Count a payment; return counts, then means in major units, by window.

    The payments of a customer must come in order of time. `log` is changed.
    """
    times, sums = log
    times.append(time_ms)
    sums.append(sums[-1] + amount_minor)
    n = len(times)
    firsts = [bisect_right(times, time_ms - window) for window in WINDOWS_MS]
    means = [(sums[n] - sums[first]) / (100 * (n - first)) for first in firsts]
    counts = [float(n - first) for first in firsts]
    old = firsts[-1]
    if old > OLD_EVENTS:
        base = sums[old]
        log[0] = times[old:]
        log[1] = [total - base for total in sums[old:]]
    return counts + means


def add_to_terminal(log: Log, time_ms: int) -> list[float]:
    """Count a payment; return counts a week back, then fraud shares, by window. `log` is changed.

    Payments of a terminal may come out of order: they stand in different partitions.
    """
    times = log[0]
    insort(times, time_ms)
    end = time_ms - DELAY_MS
    last = bisect_right(times, end)
    firsts = [bisect_right(times, end - window) for window in WINDOWS_MS]
    # A week more than the longest window, for those that come late.
    old = bisect_right(times, end - WINDOWS_MS[-1] - DELAY_MS)
    if old > OLD_EVENTS:
        log[0] = times[old:]
    return [float(last - first) for first in firsts] + [0.0, 0.0, 0.0]


def event_inputs(payment: dict[str, Any]) -> list[float]:
    """Return the features of the payment alone: amount, weekend, night."""
    time_ms = payment["event_time_ms"]
    weekday = (time_ms // DAY_MS + 3) % 7
    return [
        payment["amount_minor"] / 100,
        float(weekday >= 5),
        float(time_ms % DAY_MS // 3_600_000 <= 6),
    ]


class RedisClient(Protocol):
    """The part of a Redis client that is used."""

    def mget(self, keys: Sequence[bytes]) -> Any:
        """Return the values of keys."""


class Profiles:
    """Profiles from Redis behind a cache; one question for all that a batch lacks."""

    def __init__(self, client: RedisClient, entries: int, ttl_ms: int) -> None:
        self._client = client
        self._entries = entries
        self._ttl = ttl_ms / 1000
        self._cache: dict[bytes, tuple[float, bytes | None]] = {}

    def get(self, payments: Sequence[dict[str, Any]]) -> list[tuple[bytes | None, bytes | None]]:
        """Return the packed profiles of customer and terminal of each payment."""
        keys = [
            (
                b"profile:customer:" + payment["customer_id"].encode(),
                b"profile:terminal:" + payment["terminal_id"].encode(),
            )
            for payment in payments
        ]
        now = time.monotonic()
        cache = self._cache
        wanted = list(
            {key for pair in keys for key in pair if key not in cache or cache[key][0] < now}
        )
        if wanted:
            if len(cache) + len(wanted) > self._entries:
                cache.clear()
                wanted = list({key for pair in keys for key in pair})
            until = now + self._ttl
            for key, value in zip(wanted, self._client.mget(wanted), strict=True):
                cache[key] = (until, value)
        return [(cache[one][1], cache[other][1]) for one, other in keys]


class Model:
    """The ONNX model on one thread, one row or many."""

    def __init__(self, file: str | bytes, input_name: str, output_name: str) -> None:
        # Only where a model is scored: in a thread of Flink's its import may happen but once.
        import onnxruntime  # noqa: PLC0415

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(
            file, options, providers=["CPUExecutionProvider"]
        )
        self._input = input_name
        self._outputs = [output_name]

    def score(self, rows: list[list[float]]) -> list[float]:
        """Return the fraud score of each row of features."""
        output = self._session.run(self._outputs, {self._input: np.asarray(rows, np.float32)})[0]
        scores: list[float] = np.asarray(output).reshape(-1).astype(np.float64).tolist()
        return scores


def decide(
    payment: dict[str, Any],
    features: Sequence[float],
    profile: bytes | None,
    score: float,
    review: float,
    block: float,
) -> tuple[int, int]:
    """Return the decision (0 approve, 1 review, 2 block) and the mask of the rules that fired."""
    amount, night, mean = features[0], features[2], features[8]
    known = features[5] >= 10
    fired = 0
    if amount >= 100 and known and amount > 5 * mean:
        fired |= 1
    if features[10] >= 3 and features[13] >= 0.5:
        fired |= 2
    if amount >= 50 and known and amount > 3 * mean:
        fired |= 4
    if features[3] >= 20:
        fired |= 8
    if amount >= 2000:
        fired |= 32
    channel = payment["channel"]
    if profile is not None:
        _, tier, _, _, _, latitude, longitude, _ = CUSTOMER.unpack_from(profile)
        if tier >= 3 and amount >= 200:
            fired |= 16
        if channel in CARD_PRESENT and (
            (payment["latitude"] is not None and abs(payment["latitude"] - latitude) > 5)
            or (
                payment["longitude"] is not None
                and 8 <= abs(payment["longitude"] - longitude) <= 352
            )
        ):
            fired |= 64
    if channel == "atm" and night and amount >= 300:
        fired |= 128
    if fired & 1 or score >= block:
        return 2, fired
    return (1 if fired & 0b111110 or score >= review else 0), fired


class Scorer:
    """Profiles, model, rules, and the two outputs of payments that carry their window features.

    A payment here is the decoded record with `features` and its Kafka coordinates: `partition`,
    `offset`, `published_at_ms`, `ingested_at_ms`.
    """

    def __init__(self, job: Job, client: RedisClient) -> None:
        self._job = job
        self._profiles = Profiles(client, job.cache_entries, job.cache_ttl_ms)
        self._model = Model(job.model, job.model_input, job.model_output)
        self._alert_schema = fastavro.parse_schema(json.loads(job.alert_schema))
        self._alert_header = struct.pack(">bi", 0, job.alert_schema_id)

    def score(self, payments: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the rows for ClickHouse, in order."""
        job = self._job
        profiles = self._profiles.get(payments)
        scores = self._model.score([payment["features"] for payment in payments])
        now_ms = time.time_ns() // 1_000_000
        rows = []
        for payment, profile, score in zip(payments, profiles, scores, strict=True):
            features = payment["features"]
            decision, fired = decide(payment, features, profile[0], score, job.review, job.block)
            row = {
                "event_time_ms": payment["event_time_ms"],
                "amount_minor": payment["amount_minor"],
                "channel": payment["channel"],
                "score": score,
                "decision": DECISIONS[decision],
                "flags": 0 if profile[0] is not None and profile[1] is not None else 512,
                "kafka_partition": payment["partition"],
                "kafka_offset": payment["offset"],
                "published_at_ms": payment["published_at_ms"],
                "ingested_at_ms": payment["ingested_at_ms"],
                "decided_at_ms": now_ms,
                "event_id": payment["event_id"],
                "customer_id": payment["customer_id"],
                "terminal_id": payment["terminal_id"],
                "merchant_id": payment["merchant_id"] or "",
                "currency": payment["currency"],
                "country": payment["country"] or "",
                "tenant": payment["tenant"] or "",
                "model_version": job.model_version,
                "rule_set_version": job.rule_set_version,
                "feature_set_version": job.feature_set_version,
                "kafka_topic": job.transactions,
                "rules_fired": [name for bit, name in enumerate(RULES) if fired >> bit & 1],
            }
            row.update(zip(FEATURES, features, strict=True))
            rows.append(row)
        return rows

    def alert(self, row: dict[str, Any]) -> bytes:
        """Return the alert of a row under the committed contract; reasons are the rules."""
        blocked = row["decision"] == "block"
        out = io.BytesIO()
        out.write(self._alert_header)
        fastavro.schemaless_writer(
            out,
            self._alert_schema,
            {
                "alert_id": row["event_id"] + ":fraud",
                "kind": "fraud",
                "severity": "critical" if blocked else "warning",
                "entity_type": "customer",
                "entity_id": row["customer_id"],
                "event_id": row["event_id"],
                "event_time_ms": row["event_time_ms"],
                "score": row["score"],
                "threshold": self._job.block if blocked else self._job.review,
                "decision": row["decision"],
                "amount_minor": row["amount_minor"],
                "currency": row["currency"],
                "reasons": [
                    {"code": name, "kind": "rule", "text": name} for name in row["rules_fired"]
                ],
                "model_version": row["model_version"],
                "rule_set_version": row["rule_set_version"],
                "feature_set_version": row["feature_set_version"],
                "source": {
                    "topic": row["kafka_topic"],
                    "partition": row["kafka_partition"],
                    "offset": row["kafka_offset"],
                },
                "published_at_ms": row["published_at_ms"],
                "ingested_at_ms": row["ingested_at_ms"],
                "decided_at_ms": row["decided_at_ms"],
                "attributes": {"terminal_id": row["terminal_id"]},
            },
        )
        return out.getvalue()


class ClickHouseRows:
    """Gathers rows for as long, and as many, as ours does and inserts them over HTTP."""

    def __init__(self, job: Job) -> None:
        self._address = urlsplit(job.clickhouse)
        self._path = (
            f"/?database={quote(job.database)}"
            f"&query={quote(f'INSERT INTO {job.table} FORMAT JSONEachRow')}"
        )
        self._wait = job.gather_ms / 1000
        self._most = job.gather_rows
        self._rows: list[dict[str, Any]] = []
        self._since = 0.0
        self._connection: http.client.HTTPConnection | None = None

    def add(self, rows: Iterable[dict[str, Any]]) -> None:
        """Take rows; insert when there are many or the oldest has waited long enough."""
        if not self._rows:
            self._since = time.monotonic()
        self._rows += rows
        self.tick()

    def tick(self) -> None:
        """Insert when it is time."""
        if self._rows and (
            len(self._rows) >= self._most or time.monotonic() - self._since >= self._wait
        ):
            self.flush()

    def flush(self) -> None:
        """Insert what is there; return when it is stored. Raises OSError when it is not."""
        if not self._rows:
            return
        self.insert(b"\n".join(map(orjson.dumps, self._rows)))
        self._rows = []

    def insert(self, lines: bytes) -> None:
        """Insert rows that are JSON already, one a line."""
        if self._connection is None:
            self._connection = http.client.HTTPConnection(
                self._address.hostname or "", self._address.port
            )
        self._connection.request("POST", self._path, lines)
        answer = self._connection.getresponse()
        text = answer.read()
        if answer.status != 200:
            msg = f"inserting {len(lines)} bytes of rows: {answer.status} {text[:500]!r}"
            raise OSError(msg)
