"""Which columns the rules of the fraud job may name, and how a batch provides them.

====================================  ==============================================================
columns                               source
====================================  ==============================================================
fields of contract card_transaction   the event, as in ``channel``, ``country``, ``amount_minor``
features                              `FRAUD_FEATURES`, as in ``amount``, ``customer_count_1d``
``customer_...``, ``terminal_...``    the profile, as in ``customer_risk_tier``; null where there is
                                      no profile
``score``                             the model's, null where no model scored
====================================  ==============================================================

Where a feature and an event field share a name, the name means the feature.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from connectors.profiles import PROFILE_TYPES, ProfileBatch, ProfileKind
from jobs.fraud.features import FRAUD_FEATURES
from jobs.rules.expressions import ColumnKind
from jobs.rules.ruleset import RuleColumns
from schemas.columns import Column

__all__ = ["PROFILE_KINDS", "SCORE", "RuleColumnSource", "rule_catalogue"]

SCORE: Final = "score"
PROFILE_KINDS: Final[tuple[ProfileKind, ...]] = ("customer", "terminal")
"""The profiles that the job looks up."""

_CONTRACT: Final = (
    Path(__file__).resolve().parents[2] / "schemas" / "contracts" / "card_transaction.avsc"
)
# A rule on a card number would put it into a file; tokens are compared nowhere.
_SENSITIVE: Final = "riskstream.sensitivity"


def rule_catalogue() -> dict[str, ColumnKind]:
    """Return the columns that a rule may name, and what each holds."""
    contract = json.loads(_CONTRACT.read_text(encoding="utf-8"))
    catalogue: dict[str, ColumnKind] = {
        field["name"]: _kind(field["type"])
        for field in contract["fields"]
        if _SENSITIVE not in field
    }
    for name in (*_profile_columns(), *FRAUD_FEATURES.names, SCORE):
        catalogue[name] = "number"
    return catalogue


class RuleColumnSource:
    """Provides the columns that one rule set needs; make a new one when the rules change."""

    def __init__(self, needed: Collection[str]) -> None:
        features = {name: number for number, name in enumerate(FRAUD_FEATURES.names)}
        profiles = _profile_columns()
        self._features = [(name, features[name]) for name in needed if name in features]
        self._profiles = [
            (name, *profiles[name]) for name in needed if name in profiles and name not in features
        ]
        taken = {*features, *profiles, SCORE}
        self._event = [name for name in needed if name not in taken]
        self._score = SCORE in needed

    def columns(
        self,
        event: Mapping[str, Column],
        features: NDArray[np.float64],
        score: NDArray[np.float64],
        profiles: Mapping[ProfileKind, ProfileBatch],
    ) -> RuleColumns:
        """Return the columns of a batch of n events by name; nothing is copied but profiles.

        `features` is float64 (n, k) in the order of `FRAUD_FEATURES.names`, NaN where null; a kind
        of profile that is absent from `profiles` is null in every row.
        """
        columns: dict[str, Column | NDArray[np.float64]] = {
            name: event[name] for name in self._event
        }
        for name, number in self._features:
            columns[name] = features[:, number]
        for name, kind, field in self._profiles:
            batch = profiles.get(kind)
            if batch is None:
                columns[name] = np.full(len(score), np.nan)
            else:
                columns[name] = np.where(batch.found, batch.columns[field], np.nan)
        if self._score:
            columns[SCORE] = score
        return columns


def _profile_columns() -> dict[str, tuple[ProfileKind, str]]:
    return {
        f"{kind}_{field}": (kind, field)
        for kind in PROFILE_KINDS
        for field in PROFILE_TYPES[kind].names or ()
        if field != "version"
    }


def _kind(avro: Any) -> ColumnKind:
    if isinstance(avro, list):
        avro = next(branch for branch in avro if branch != "null")
    if isinstance(avro, dict):
        if avro["type"] == "enum":
            return tuple(avro["symbols"])
        avro = avro["type"]
    return "text" if avro in ("string", "bytes", "fixed") else "number"
