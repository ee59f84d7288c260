"""Where an account of a while looks for what came of its events."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from connectors.settings import load_settings
from jobs.audit import Audit, Ledger, reconcile
from jobs.fraud import accounts

SINCE_MS = 1_800_000_000_000


def an_audit(*, clean: bool) -> Audit:
    none = np.array([], np.int64)
    stored = np.arange(3, dtype=np.int64) if clean else none
    ledger = Ledger("payments", 0, "scored", np.arange(3, dtype=np.int64), stored, none)
    return reconcile([ledger], [], [], set(), [])


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int | None]:
    """Return from when on outcomes were looked for; only from the beginning all are found."""
    seen: list[int | None] = []

    def account(settings: Any, *, outcomes_since_ms: int | None, **others: Any) -> Audit:
        seen.append(outcomes_since_ms)
        return an_audit(clean=outcomes_since_ms is None or others["until_ms"] is None)

    monkeypatch.setattr(accounts, "_account", account)
    return seen


def test_outcomes_of_a_while_are_looked_for_from_a_little_before_it(
    asked: list[int | None],
) -> None:
    assert accounts.audit_fraud(load_settings(environment={}), since_ms=SINCE_MS).clean
    assert asked == [SINCE_MS - accounts.CLOCKS_APART_MS]


def test_nothing_is_told_as_wrong_before_all_outcomes_were_read(asked: list[int | None]) -> None:
    settings = load_settings(environment={})
    assert accounts.audit_fraud(settings, since_ms=SINCE_MS, until_ms=SINCE_MS + 1).clean
    assert asked == [SINCE_MS - accounts.CLOCKS_APART_MS, None]


def test_an_account_of_everything_reads_everything(asked: list[int | None]) -> None:
    assert accounts.audit_fraud(load_settings(environment={})).clean
    assert asked == [None]
