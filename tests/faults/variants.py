"""Submit the fraud job changed in one way: crashing at a chosen place, or of a later release.

Started by `flink run` in place of `jobs/runtime/main.py`, with the variant's name for the job's.
"""

from __future__ import annotations

import ctypes
import dataclasses
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import jobs.fraud.job as fraud
from connectors.settings import Settings
from jobs.fraud import rule_columns
from jobs.fraud.customer_stage import CustomerStage
from jobs.fraud.decision_stage import DecisionStage
from jobs.fraud.features import FRAUD_FEATURES
from jobs.fraud.parts import StageParts
from jobs.windows import delta, store
from jobs.windows.delta import chunk_header
from jobs.windows.spec import Entity, FeatureSet, count, mean

if TYPE_CHECKING:
    from jobs.stage import Metrics, StateMap

__all__ = ["LATER_FEATURES", "NEXT_VERSION", "VARIANTS", "CrashInFold", "adopt_next_format", "main"]


def _with_one_more_feature() -> FeatureSet:
    customer, terminal = FRAUD_FEATURES.entities
    windows = ("1d", "7d", "30d")
    more = Entity(
        "customer",
        key=customer.key,
        features=(count(windows), mean("amount", windows), count(("2d",))),
    )
    return dataclasses.replace(FRAUD_FEATURES, entities=(more, terminal))


LATER_FEATURES: Final = _with_one_more_feature()
"""The feature set of a later release: `customer_count_2d` is new, and the state has its events."""


class CrashInFold(CustomerStage):
    """The customer stage, whose process dies once for each mark file, in the middle of a fold.

    A fold writes the joined chunk and then removes what it replaces: the process ends between the
    two, when the state holds the same rows twice.
    """

    def __init__(self, parts: StageParts) -> None:
        super().__init__(parts)
        self._mark = Path(parts.settings.home).resolve() / "crash-in-fold"

    def process(self, shard: int, batch: bytes, state: StateMap) -> bytes:
        """Process as ever, over a state that may crash."""
        return super().process(shard, batch, _CrashingState(state, self._mark))


class _CrashingState:
    def __init__(self, state: StateMap, mark: Path) -> None:
        self._state = state
        self._mark = mark
        self._folded = False

    def get(self, key: int) -> bytes | None:
        return self._state.get(key)

    def put(self, key: int, value: bytes) -> None:
        self._state.put(key, value)
        self._folded = key >= 0 and chunk_header(value).compressed

    def remove(self, key: int) -> None:
        if self._folded and self._mark.exists():
            # Whoever takes the mark away is the one to die.
            try:
                self._mark.unlink()
            except FileNotFoundError:
                self._state.remove(key)
                return
            os.kill(os.getpid(), signal.SIGKILL)
        self._state.remove(key)

    def items(self) -> Iterator[tuple[int, bytes]]:
        return iter(self._state.items())


CRASHING_CUSTOMER: Final = b"crashes-native-code"
RAISING_CUSTOMER: Final = b"raises-what-nobody-thought-of"


class BrittleStage(CustomerStage):
    """The customer stage with two mistakes: one customer ends the process, one makes it raise."""

    def process(self, shard: int, batch: bytes, state: StateMap) -> bytes:
        """Process as ever, unless a batch holds either customer."""
        packets = super().process(shard, batch, state)
        if CRASHING_CUSTOMER in batch:
            ctypes.string_at(0)
        if RAISING_CUSTOMER in batch:
            raise ZeroDivisionError
        return packets


class LaterCustomerStage(CustomerStage):
    """The customer stage of a release with `LATER_FEATURES`."""

    def open(self, metrics: Metrics) -> None:
        """Open as that release would, in the process where it runs."""
        rule_columns.FRAUD_FEATURES = LATER_FEATURES  # type: ignore[misc]
        super().open(metrics)


class LaterDecisionStage(DecisionStage):
    """The last stage of a release with `LATER_FEATURES`."""

    def open(self, metrics: Metrics) -> None:
        """Open as that release would, in the process where it runs."""
        rule_columns.FRAUD_FEATURES = LATER_FEATURES  # type: ignore[misc]
        super().open(metrics)


class NextFormatCustomerStage(CustomerStage):
    """The customer stage of a release whose window state has another format."""

    def open(self, metrics: Metrics) -> None:
        """Open as that release would, in the process where it runs."""
        adopt_next_format()
        super().open(metrics)


class NextFormatDecisionStage(DecisionStage):
    """The last stage of a release whose window state has another format."""

    def open(self, metrics: Metrics) -> None:
        """Open as that release would, in the process where it runs."""
        adopt_next_format()
        super().open(metrics)


SPARE: Final = b"next" * 2
NEXT_VERSION: Final = delta.CHUNK_VERSION + 1


def adopt_next_format() -> None:
    """Make this process one of a release that puts eight bytes before the rows of a chunk.

    There is no way back: end the process to be rid of it.
    """
    if delta.CHUNK_VERSION == NEXT_VERSION:
        return
    seal, sections = delta.seal, delta._sections

    def seal_next(
        table: bytes,
        rows: int,
        clock_ms: int,
        first_sequence: int,
        keys: bytes,
        body: bytes,
        compress: bool = False,
    ) -> bytes:
        return seal(table, rows, clock_ms, first_sequence, keys, SPARE + body, compress)

    def sections_next(rows: int, fields: int, body: bytes) -> list[memoryview]:
        if body[: len(SPARE)] != SPARE:
            msg = f"expected {SPARE!r}, was {body[: len(SPARE)]!r}"
            raise ValueError(msg)
        return sections(rows, fields, body[len(SPARE) :])

    delta.UPGRADES[delta.CHUNK_VERSION] = lambda rows, fields, keys, body: (keys, SPARE + body)
    delta.CHUNK_VERSION = NEXT_VERSION  # type: ignore[misc]
    delta._sections = sections_next
    for module in (delta, store):
        module.seal = seal_next  # type: ignore[attr-defined]


def _crash_in_fold() -> None:
    fraud.CustomerStage = CrashInFold  # type: ignore[misc]


def _brittle() -> None:
    fraud.CustomerStage = BrittleStage  # type: ignore[misc]


def _later_features() -> None:
    def parts(settings: Settings) -> StageParts:
        return StageParts(settings, LATER_FEATURES)

    fraud.StageParts = parts  # type: ignore[assignment, misc]
    fraud.CustomerStage = LaterCustomerStage  # type: ignore[misc]
    fraud.DecisionStage = LaterDecisionStage  # type: ignore[misc]


def _next_state_format() -> None:
    fraud.CustomerStage = NextFormatCustomerStage  # type: ignore[misc]
    fraud.DecisionStage = NextFormatDecisionStage  # type: ignore[misc]


VARIANTS: Final[dict[str, Callable[[], None]]] = {
    "brittle": _brittle,
    "crash-in-fold": _crash_in_fold,
    "later-features": _later_features,
    "next-state-format": _next_state_format,
}
"""What each variant changes in the job before its graph is built."""


def main(variant: str, settings_file: str) -> None:
    """Submit the variant with the settings of the file."""
    # Only the process that `flink run` starts has a gateway to Flink.
    from jobs.runtime.graph import JobGraph  # noqa: PLC0415

    settings = Settings.model_validate_json(Path(settings_file).read_text(encoding="utf-8"))
    VARIANTS[variant]()
    graph: Any = JobGraph("fraud", settings)
    fraud.build(graph, settings)
    graph.submit()


if __name__ == "__main__":
    # Stages must be known by the name they have where they run, not as parts of `__main__`.
    from tests.faults import variants

    variants.main(*sys.argv[1:])
