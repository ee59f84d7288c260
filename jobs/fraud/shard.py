"""What the last stage keeps per shard: the terminal windows, the models and rules in force.

Models and rules change by control records that arrive among the shard's events, so the row at which
a version changes is exact, and what is in force is part of the shard's state.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from connectors.settings import Settings
from jobs.fraud.model_routes import ROUTE_FIELDS
from jobs.fraud.reasons import AlertBuilder
from jobs.fraud.rule_columns import RuleColumnSource, rule_catalogue
from jobs.rules.decision import Thresholds
from jobs.rules.errors import RuleSetError
from jobs.rules.ruleset import RuleSet
from jobs.stage import StateMap
from jobs.windows.spec import FeatureSet
from jobs.windows.state_log import StateLog
from jobs.windows.store import ShardStore
from models.control import MODEL_CONTROL_KINDS, ControlRecord
from models.scorer import ModelCache, Outcome, ScoringEngine
from schemas.errors import ConfigurationError

__all__ = ["DecisionShard", "LogKeys", "open_store", "thresholds_of"]

# The window log owns the numbers from 0 up.
MODELS_KEY: Final = -1
RULES_KEY: Final = -2

# A millisecond's worth of records: 1,000 times what a shard decides at its best, and 2^63 is
# reached in the year 2248.
ORDERS_PER_MS: Final = 1 << 20

# For a model that brings no thresholds of its own and settings that give none.
FALLBACK_THRESHOLDS: Final = Thresholds(0.5, 0.9)


@dataclass(frozen=True, slots=True)
class LogKeys:
    """The part of a shard's state map that belongs to the window log: keys from 0 up."""

    state: StateMap

    def get(self, key: int) -> bytes:
        """Return one entry of the log, which must be there."""
        value = self.state.get(key)
        if value is None:
            raise KeyError(key)
        return value

    def put(self, key: int, value: bytes) -> None:
        """Write one entry of the log."""
        self.state.put(key, value)

    def remove(self, key: int) -> None:
        """Remove one entry of the log."""
        self.state.remove(key)

    def items(self) -> Iterator[tuple[int, bytes]]:
        """Iterate over the log's entries only."""
        return (entry for entry in self.state.items() if entry[0] >= 0)


def open_store(features: FeatureSet, entity: str, state: StateMap) -> tuple[ShardStore, StateLog]:
    """Rebuild a shard's window store from its log."""
    store = ShardStore(features, entity)
    log = StateLog(LogKeys(state), store.horizon_ms)
    store.restore(log.chunks())
    return store, log


class DecisionShard:
    """One shard of the last stage."""

    def __init__(
        self,
        settings: Settings,
        features: FeatureSet,
        models: ModelCache,
        champion: str,
        rules: RuleSet,
        state: StateMap,
    ) -> None:
        """Rebuild the shard; `champion` and `rules` hold where its state names none."""
        self._settings = settings
        self._features = features
        self._state = state
        self.store, self.log = open_store(features, "terminal", state)
        self.engine = ScoringEngine(models, features.names, champion, ROUTE_FIELDS)
        models_state = state.get(MODELS_KEY)
        if models_state is not None:
            self.engine.restore(models_state)
        self._thresholds: Thresholds | None = None
        self._own_thresholds: dict[int, Thresholds] = {}
        rules_state = state.get(RULES_KEY)
        if rules_state is not None:
            saved: dict[str, Any] = json.loads(rules_state)
            if saved["rules"] is not None:
                rules = RuleSet.from_text(saved["rules"], rule_catalogue())
            if saved["thresholds"] is not None:
                self._thresholds = Thresholds(*saved["thresholds"])
            self._rules_text: str | None = saved["rules"]
        else:
            self._rules_text = None
        self._adopt_rules(rules)
        self._next_order = 0

    def seen(self, records: int, now_ms: int) -> NDArray[np.int64]:
        """Return a number for each of the records at hand, above all numbers given before.

        The clock stands in for state: after a restart the numbers go on above the earlier ones, as
        what is decided again must.
        """
        first = max(self._next_order, now_ms * ORDERS_PER_MS)
        self._next_order = first + records
        return np.arange(first, first + records, dtype=np.int64)

    def thresholds(self, model_index: int) -> Thresholds:
        """Return a model's thresholds: control record, then settings, then the model's own."""
        if self._thresholds is not None:
            return self._thresholds
        known = self._own_thresholds.get(model_index)
        if known is None:
            review, block = self.engine.thresholds()[model_index]
            own = None if np.isnan(review) else (float(review), float(block))
            known = self._own_thresholds[model_index] = thresholds_of(self._settings, own)
        return known

    def builder(self, thresholds: Thresholds) -> AlertBuilder:
        """Return the builder of alerts under the rules in force."""
        known = self._builders.get(thresholds)
        if known is None:
            known = self._builders[thresholds] = AlertBuilder(
                self.rules, thresholds, self._features.version
            )
        return known

    def apply(self, control: ControlRecord) -> Outcome:
        """Apply a control record to this shard, or refuse it and change nothing."""
        if control.kind in MODEL_CONTROL_KINDS:
            outcome = self.engine.apply(control)
            if outcome.accepted:
                self._own_thresholds.clear()
                self._state.put(MODELS_KEY, self.engine.snapshot())
            return outcome
        if control.kind == "ping":
            return Outcome(True, "pong")
        try:
            if control.kind == "activate_rules":
                text = control.arguments.get("rules", "")
                self._adopt_rules(RuleSet.from_text(text, rule_catalogue()))
                self._rules_text = text
            elif control.kind == "set_thresholds":
                self._thresholds = Thresholds(_number(control, "review"), _number(control, "block"))
                self._builders.clear()
            else:
                return Outcome(
                    False, f"{control.kind!r} is not known to this release", "bad_control"
                )
        except (RuleSetError, ConfigurationError) as e:
            return Outcome(False, str(e), "bad_control")
        self._save_rules()
        return Outcome(True, f"{control.kind} applied", version=self.rules.version)

    def _adopt_rules(self, rules: RuleSet) -> None:
        self.rules = rules
        self.rule_columns = RuleColumnSource(rules.columns_needed)
        self._builders: dict[Thresholds, AlertBuilder] = {}

    def _save_rules(self) -> None:
        chosen = self._thresholds
        saved = {
            "rules": self._rules_text,
            "thresholds": None if chosen is None else [chosen.review, chosen.block],
        }
        self._state.put(RULES_KEY, json.dumps(saved).encode())


def thresholds_of(settings: Settings, own: tuple[float, float] | None) -> Thresholds:
    """Return the thresholds of a model that brings `own` or none, where no control record rules."""
    fraud = settings.fraud
    review = fraud.review_threshold
    block = fraud.block_threshold
    if review is None:
        review = FALLBACK_THRESHOLDS.review if own is None else own[0]
    if block is None:
        block = FALLBACK_THRESHOLDS.block if own is None else own[1]
    return Thresholds(min(review, block), block)


def _number(control: ControlRecord, name: str) -> float:
    text = control.arguments.get(name, "")
    try:
        return float(text)
    except ValueError as e:
        msg = f"{control.kind}: argument {name!r} must be a number from 0 to 1, was {text!r}"
        raise ConfigurationError(msg) from e
