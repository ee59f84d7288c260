"""Stress scenarios, historical and made up, and a margin from the worst of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from schemas.errors import RecordError

__all__ = ["Scenario", "ScenarioError", "ScenarioSet", "scenario_margin"]

ScenarioKind = Literal["historical", "stress"]


class ScenarioError(RecordError):
    """A scenario record cannot be used."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """Relative price changes by instrument: -0.1 is a fall of 10%.

    `shocks` may name an instrument, a kind of instrument as `kind:equity`, or `*` for all others;
    the most particular one counts. `historical` scenarios are the sample of VaR, ordered by
    `event_time_ms`; `stress` ones are shown each on its own.
    """

    scenario_id: str
    kind: ScenarioKind
    event_time_ms: int
    shocks: Mapping[str, float]

    def __post_init__(self) -> None:
        """Check the shocks."""
        bad = [
            name for name, shock in self.shocks.items() if not (np.isfinite(shock) and shock >= -1)
        ]
        if bad or self.kind not in ("historical", "stress"):
            msg = (
                f"reading scenario {self.scenario_id!r}: expected finite shocks of -1 or more, a "
                f"kind historical or stress, was {self.kind!r} with bad shocks for {bad!r}"
            )
            raise ScenarioError(msg)


class ScenarioSet:
    """Scenarios by id, and their shocks as a matrix over a list of instruments.

    At most `history` historical scenarios are held, the newest by event time: the window of VaR.
    """

    def __init__(self, history: int = 500) -> None:
        self._history = history
        self._scenarios: dict[str, Scenario] = {}
        self._matrix: tuple[tuple[str, ...], tuple[str, ...], NDArray[np.float64]] | None = None

    def put(self, scenario: Scenario) -> None:
        """Add or replace a scenario; the oldest historical one beyond the window is forgotten."""
        self._scenarios[scenario.scenario_id] = scenario
        self._matrix = None
        past = self.chosen("historical")
        if len(past) > self._history:
            del self._scenarios[past[0].scenario_id]

    def chosen(self, kind: ScenarioKind) -> list[Scenario]:
        """Return the scenarios of one kind, oldest first."""
        found = [scenario for scenario in self._scenarios.values() if scenario.kind == kind]
        return sorted(found, key=lambda scenario: (scenario.event_time_ms, scenario.scenario_id))

    def all(self) -> list[Scenario]:
        """Return every scenario, oldest first within its kind."""
        return [*self.chosen("historical"), *self.chosen("stress")]

    def matrix(
        self, instruments: Sequence[str], kinds: Sequence[str]
    ) -> tuple[NDArray[np.float64], int, list[str]]:
        """Return shocks of shape (scenarios, instruments), historical first.

        Args:
            instruments: names of the columns.
            kinds: what each instrument is, as in equity.

        Returns:
            the matrix, how many of its rows are historical, and the ids of the rows.
        """
        past, made_up = self.chosen("historical"), self.chosen("stress")
        ids = [scenario.scenario_id for scenario in (*past, *made_up)]
        names, classes = tuple(instruments), tuple(kinds)
        if self._matrix is None or self._matrix[:2] != (names, classes):
            shocks = np.zeros((len(ids), len(names)))
            for row, scenario in enumerate((*past, *made_up)):
                other = scenario.shocks.get("*", 0.0)
                shocks[row] = [
                    scenario.shocks.get(name, scenario.shocks.get(f"kind:{kind}", other))
                    for name, kind in zip(names, classes, strict=True)
                ]
            self._matrix = (names, classes, shocks)
        return self._matrix[2], len(past), ids


def scenario_margin(
    pnl: NDArray[np.float64], gross: NDArray[np.float64], floor_rate: float = 0.02
) -> NDArray[np.float64]:
    """Return the margin of each portfolio: its worst scenario loss, at least a share of its gross.

    The shape of scanning-risk margins (a loss over a grid of scenarios with a floor for what the
    grid does not move). `pnl` has shape (scenarios, portfolios), `gross` (portfolios,).
    """
    worst = np.maximum(-pnl.min(axis=0), 0.0) if len(pnl) else np.zeros_like(gross)
    result: NDArray[np.float64] = np.maximum(worst, floor_rate * gross)
    return result
