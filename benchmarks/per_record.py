"""The fraud job one record at a time, in plain Python: what most users would write first.

It is the logic of every per-record contestant, and the reference that results are compared with:
the same windows (`(t - w, t]` per customer, `(t - 7 d - w, t - 7 d]` per terminal), the same model,
the same profiles. Records must arrive in order of event time per key; labels are not part of the
workload.
"""

from __future__ import annotations

import io
from bisect import bisect_right
from collections.abc import Callable
from typing import Any, Final

import fastavro
import numpy as np
import orjson

from connectors.profiles import profile_key
from jobs.fraud.features import FRAUD_FEATURES
from models.registry import Registry, default_version
from models.session import open_session
from schemas.contract import contract

__all__ = [
    "CustomerWindows",
    "Decoder",
    "Model",
    "TerminalWindows",
    "event_inputs",
    "profile_names",
]

DAY_MS: Final = 86_400_000
WINDOWS_MS: Final = (DAY_MS, 7 * DAY_MS, 30 * DAY_MS)
DELAY_MS: Final = 7 * DAY_MS


class Decoder:
    """Reads values in the Confluent wire format with fastavro."""

    def __init__(self) -> None:
        self._schema = fastavro.parse_schema(_plain(orjson.loads(contract("card_transaction"))))

    def decode(self, value: bytes) -> dict[str, Any]:
        """Return one payment."""
        record = fastavro.schemaless_reader(io.BytesIO(value[5:]), self._schema, None)
        if not isinstance(record, dict):
            msg = f"decoding a payment: expected a record, was {type(record).__name__}"
            raise TypeError(msg)
        return record


def _plain(node: Any) -> Any:
    # A logical type would make a datetime of every time, only for us to take it apart again.
    if isinstance(node, dict):
        return {name: _plain(value) for name, value in node.items() if name != "logicalType"}
    return [_plain(value) for value in node] if isinstance(node, list) else node


class CustomerWindows:
    """Counts and mean amounts of one customer, the event itself included."""

    def __init__(self) -> None:
        self._times: list[int] = []
        self._sums: list[int] = [0]

    def add(self, time_ms: int, amount_minor: int) -> list[float]:
        """Return counts, then means in major units, by window."""
        self._times.append(time_ms)
        self._sums.append(self._sums[-1] + amount_minor)
        n = len(self._times)
        firsts = [bisect_right(self._times, time_ms - window) for window in WINDOWS_MS]
        means = [(self._sums[n] - self._sums[first]) / (100 * (n - first)) for first in firsts]
        old = firsts[-1]
        if old > 1_000:
            base = self._sums[old]
            self._times = self._times[old:]
            self._sums = [total - base for total in self._sums[old:]]
        return [float(n - first) for first in firsts] + means


class TerminalWindows:
    """Counts of one terminal, a week back; without labels the fraud share is 0."""

    def __init__(self) -> None:
        self._times: list[int] = []

    def add(self, time_ms: int) -> list[float]:
        """Return counts, then fraud shares, by window."""
        self._times.append(time_ms)
        end = time_ms - DELAY_MS
        last = bisect_right(self._times, end)
        firsts = [bisect_right(self._times, end - window) for window in WINDOWS_MS]
        counts = [float(last - first) for first in firsts]
        if firsts[-1] > 1_000:
            del self._times[: firsts[-1]]
        return counts + [0.0] * len(counts)


def event_inputs(payment: dict[str, Any]) -> list[float]:
    """Return the features of the payment alone: amount, weekend, night."""
    time_ms = payment["event_time_ms"]
    weekday = (time_ms // DAY_MS + 3) % 7
    return [
        payment["amount_minor"] / 100,
        float(weekday >= 5),
        float(time_ms % DAY_MS // 3_600_000 <= 6),
    ]


def profile_names(payment: dict[str, Any]) -> list[bytes]:
    """Return the Redis keys that a payment needs."""
    return [
        profile_key("customer", payment["customer_id"].encode()),
        profile_key("terminal", payment["terminal_id"].encode()),
    ]


class Model:
    """The default model, one thread, one row or many."""

    def __init__(self) -> None:
        manifest, data = Registry("file:.riskstream/models").load(default_version())
        names = list(FRAUD_FEATURES.names)
        self._columns = [names.index(name) for name in manifest.features]
        self._session = open_session(data)
        self._input = manifest.input.name
        self._outputs = [manifest.output.name]
        self._class = manifest.output.class_index
        self._dtype: Callable[[Any], Any] = (
            np.float32 if manifest.input.dtype == "float32" else np.float64
        )

    def score(self, rows: list[list[float]]) -> list[float]:
        """Return the fraud score of each row of features."""
        matrix = np.asarray(rows, self._dtype)[:, self._columns]
        output = self._session.run(self._outputs, {self._input: matrix})[0]
        if self._class is not None:
            output = output[:, self._class]
        return [float(score) for score in output.reshape(-1)]
