"""The features of the fraud job: what the model sees of each card transaction.

The window features are those of the reproducible fraud-detection literature (count and mean amount
of the customer, count and fraud share of the terminal a week back); `riskstream features explain`
says what each means.
"""

from __future__ import annotations

from typing import Final

from jobs.windows.spec import (
    Entity,
    FeatureSet,
    count,
    labelled,
    mean,
    money,
    night,
    ratio,
    value,
    weekend,
)

__all__ = ["FRAUD_FEATURES"]

WINDOWS: Final = ("1d", "7d", "30d")
# A chargeback or an analyst's verdict takes about a week; younger events look innocent to a model.
LABEL_DELAY: Final = "7d"

FRAUD_FEATURES: Final = FeatureSet(
    name="fraud",
    fields=(money("amount", source="amount_minor"),),
    filters=(labelled("fraud"),),
    event=(value("amount"), weekend(), night()),
    entities=(
        Entity(
            "customer",
            key="customer_id",
            features=(count(WINDOWS), mean("amount", WINDOWS)),
        ),
        Entity(
            "terminal",
            key="terminal_id",
            features=(
                count(WINDOWS, delay=LABEL_DELAY),
                ratio("fraud", WINDOWS, delay=LABEL_DELAY),
            ),
        ),
    ),
)
"""Fifteen inputs; every scored row carries `FRAUD_FEATURES.version`."""
