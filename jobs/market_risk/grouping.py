"""Which positions make up each instrument, account, desk and firm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from jobs.market_risk.limits import Scope

__all__ = ["GroupName", "Grouping", "group_positions"]

GroupName: TypeAlias = tuple[str, Scope, str]
"""What risk is measured of: firm, scope and id; ids are within a firm."""


@dataclass(frozen=True, slots=True)
class Grouping:
    """Groups of p positions: instruments first, then accounts, desks and firms.

    `member[k]` is the group of each position in the k-th of these scopes; the first `instruments`
    groups are of single instruments, and `instrument_of` says of which.
    """

    member: tuple[NDArray[np.int32], ...]
    names: tuple[GroupName, ...]
    index: Mapping[GroupName, int]
    instruments: int
    instrument_of: NDArray[np.int32]

    def total(self, column: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the exact sum of a column of positions by group."""
        sums = np.zeros(len(self.names), np.int64)
        for groups in self.member:
            np.add.at(sums, groups, column)
        return sums

    def total_real(self, column: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the sum of a column of positions by group."""
        sums = np.zeros(len(self.names))
        for groups in self.member:
            sums += np.bincount(groups, column, len(sums))
        return sums


def group_positions(
    keys: NDArray[np.int32],
    firms: Sequence[str],
    desks: Sequence[str],
    accounts: Sequence[str],
    instruments: Sequence[str],
) -> Grouping:
    """Group positions whose firm, desk, account and instrument are the rows of `keys`, (p, 4)."""
    names: list[GroupName] = []
    member = []
    scopes: tuple[tuple[Scope, int, Sequence[str]], ...] = (
        ("instrument", 3, instruments),
        ("account", 2, accounts),
        ("desk", 1, desks),
        ("firm", 0, firms),
    )
    singles = np.empty(0, np.int32)
    for scope, column, known in scopes:
        pairs, inverse = np.unique(keys[:, [0, column]], axis=0, return_inverse=True)
        if scope == "instrument":
            singles = pairs[:, 1].astype(np.int32)
        member.append((inverse.ravel() + len(names)).astype(np.int32))
        names += [(firms[firm], scope, known[code]) for firm, code in pairs.tolist()]
    index = {name: place for place, name in enumerate(names)}
    return Grouping(tuple(member), tuple(names), index, len(singles), singles)
