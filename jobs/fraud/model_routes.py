"""By which fields of a payment a model may be chosen, and their values as the engine compares them.

A route names a field and a value, as in tenant=acme or channel=ecommerce; the engine compares
64-bit hashes. Only fields that a route in force names are hashed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

from models.routing import hash_of_text, hash_texts
from schemas.columns import Column, StringColumn
from schemas.contract import contract

__all__ = ["ROUTE_FIELDS", "route_hashes"]

ROUTE_FIELDS: Final = ("tenant", "channel", "country", "currency")
"""Fields that routes may name."""


def _symbols(name: str) -> tuple[str, ...]:
    fields = json.loads(contract("card_transaction"))["fields"]
    return tuple(next(field for field in fields if field["name"] == name)["type"]["symbols"])


# An enum arrives as the place of its symbol in the contract.
_CHANNELS: Final = np.array([hash_of_text(symbol) for symbol in _symbols("channel")], np.uint64)


def route_hashes(
    fields: Iterable[str], event: Mapping[str, Column]
) -> dict[str, NDArray[np.uint64]]:
    """Return the hashes of each field in `fields`, each of length n; a null text hashes to 0."""
    hashes: dict[str, NDArray[np.uint64]] = {}
    for name in fields:
        column = event[name]
        if isinstance(column, StringColumn):
            hashes[name] = hash_texts(column)
        else:
            hashes[name] = _CHANNELS[column.values.astype(np.intp)]
    return hashes
