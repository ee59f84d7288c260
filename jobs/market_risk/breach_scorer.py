"""The breach model of one shard, changed between two evaluations by control records.

The same registry, gate, orders and state as for the models of the fraud job. One model scores all
limits, so there are no challengers, shadows and routes here: those orders are refused.
"""

from __future__ import annotations

import json
from typing import Final

import numpy as np
from numpy.typing import NDArray

from jobs.market_risk.breach import BREACH_FEATURES
from models.control import ControlRecord
from models.errors import ModelError, ModelRefusedError
from models.scorer import ModelCache, Outcome, ScoringEngine

__all__ = ["BreachScorer"]

_KINDS: Final = ("prepare_model", "activate_model", "rollback_model")
_NO_ROUTES: Final = frozenset[str]()


class BreachScorer:
    """Scores limits with the model in force, if there is one.

    Args:
        cache: models of this process.
        champion: the version that scores until an order says otherwise; empty for none.

    Raises:
        ModelError: when it is not found or refused.
    """

    def __init__(self, cache: ModelCache, champion: str) -> None:
        self._cache = cache
        self._engine = self._made(champion) if champion else None

    @property
    def version(self) -> str:
        """Return the version in force, empty for none."""
        return "" if self._engine is None else self._engine.active.champion

    def score(self, features: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the chance of a breach of each row of features; NaN without a model."""
        if self._engine is None or not len(features):
            return np.full(len(features), np.nan)
        return self._engine.score(features, np.zeros(len(features), np.uint64)).score

    def apply(self, control: ControlRecord) -> Outcome:
        """Apply an order, or refuse it and change nothing; repeating one is harmless."""
        if control.kind == "ping":
            return Outcome(True, "pong")
        if control.kind not in _KINDS:
            why = f"{control.kind!r} does not concern the one model of limits"
            return Outcome(False, why, "bad_control")
        if self._engine is not None:
            return self._engine.apply(control)
        if control.kind == "prepare_model":
            self._cache.prepare(control.subject, BREACH_FEATURES)
            return Outcome(True, "loading", version=control.subject)
        if control.kind == "rollback_model":
            return Outcome(False, "there is no model to go back from", "bad_control")
        try:
            self._engine = self._made(control.subject)
        except ModelRefusedError as e:
            return Outcome(False, str(e), e.code, control.subject)
        except ModelError as e:
            return Outcome(False, str(e), "not_found", control.subject)
        return Outcome(True, f"{control.kind} applied", version=control.subject)

    def snapshot(self) -> bytes | None:
        """Return what is in force for the shard's state, None for no model."""
        return None if self._engine is None else self._engine.snapshot()

    def restore(self, state: bytes) -> None:
        """Take up a snapshot.

        Raises:
            ModelError: when a model in it is gone or refused.
        """
        if self._engine is None:
            self._engine = self._made(json.loads(state)["champion"])
        self._engine.restore(state)

    def _made(self, champion: str) -> ScoringEngine:
        return ScoringEngine(self._cache, BREACH_FEATURES, champion, _NO_ROUTES)
