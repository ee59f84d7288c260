"""What an alert says about its score: contributions, sentences, the smallest change."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.counterfactual import Change, ChangeFinder
from models.explain import Explainer, Rows, Scale
from models.reasons import Reason, SentenceWriter

__all__ = ["Evidence", "EvidenceMaker"]


@dataclass(frozen=True, slots=True)
class Evidence:
    """What one model says about n alerts; `contributions` are (n, k of the model).

    `contributions` of a row and its `base` add up to its raw score on `scale`; `error` (n) is the
    largest standard error of a row's contributions, 0 where they are exact. `changes` is None where
    no change was asked for, or none is enough; `change_texts` says it in words.
    """

    names: tuple[str, ...]
    scale: Scale
    contributions: NDArray[np.float64]
    base: NDArray[np.float64]
    error: NDArray[np.float64]
    reasons: list[list[Reason]]
    changes: list[Change | None]
    change_texts: list[str]


class EvidenceMaker:
    """Explains the alerts of one model; made when the model is loaded, not at the first alert."""

    def __init__(
        self,
        explainer: Explainer,
        columns: NDArray[np.int64] | None,
        score: Callable[[Rows], Rows],
        reference: NDArray[np.floating[Any]],
    ) -> None:
        """Prepare the candidate values and the words.

        Args:
            explainer: of the model, with its k features.
            columns: where they are in the job's feature set; None when they are all, in order.
            score: scores rows of shape (n, k).
            reference: real rows, features in the model's order; more columns are ignored.
        """
        self._explainer = explainer
        self._columns = columns
        self._names = explainer.names
        self._finder = ChangeFinder(
            self._names, reference[:, : len(self._names)], score, explainer.reading
        )
        self._writer = SentenceWriter(self._names)

    def of(
        self, features: NDArray[np.float64], by_score: NDArray[np.bool_], threshold: float
    ) -> Evidence:
        """Explain n alerts, rows of the job's feature set.

        The smallest change is looked for where `by_score` is set: elsewhere a rule alerts, whatever
        the score. `threshold` is the score from which this model alerts.
        """
        rows = features if self._columns is None else features[:, self._columns]
        explained = self._explainer.explain(rows)
        shares = explained.contributions
        changes: list[Change | None] = [None] * len(rows)
        wanted = [row for row, alone in enumerate(by_score.tolist()) if alone]
        if len(wanted) == len(rows):
            changes = self._finder.find(rows, shares, threshold)
        elif wanted:
            found = self._finder.find(rows[wanted], shares[wanted], threshold)
            for place, change in zip(wanted, found, strict=True):
                changes[place] = change
        return Evidence(
            names=self._names,
            scale=self._explainer.scale,
            contributions=shares,
            base=explained.base,
            error=explained.error.max(axis=1, initial=0.0),
            reasons=self._writer.reasons(rows, shares),
            changes=changes,
            change_texts=[
                "" if change is None else self._writer.change(change, threshold)
                for change in changes
            ],
        )
