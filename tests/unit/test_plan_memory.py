"""What a release must be able to take up again from a running job's own memory."""

from __future__ import annotations

from pathlib import Path

import pytest

import jobs.fraud.in_force as in_force
from connectors.settings import Settings, load_settings
from jobs.fraud.in_force import InForce, kept, memory_findings
from models.control import ControlRecord, make_control
from models.registry import default_version

RULES = """
format: 1
name: kept
rules:
  - id: one
    title: "An amount of {amount}."
    when: COLUMN > 5
    then: review
    weight: 1
"""


def told(kind: str, subject: str = "", at: int = 0, **arguments: str) -> ControlRecord:
    return make_control(kind, subject, "test", at, arguments)


def test_the_last_rules_that_were_applied_are_kept() -> None:
    first, refused, last = (told("activate_rules", "r", n, rules=f"rules {n}") for n in range(3))
    outcomes = {first.control_id: "applied", refused.control_id: "refused"}
    assert kept([first, refused], outcomes).rules == "rules 0"
    assert kept([first, last], outcomes).rules == "rules 2", "the job will come to it"


def test_models_are_kept_until_they_are_retired() -> None:
    records = [
        told("activate_model", "a-1"),
        told("shadow_model", "b-2"),
        told("activate_model", "c-3"),
        told("retire_model", "b-2"),
    ]
    assert kept(records, {}).models == ("a-1", "c-3")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load_settings(environment={}, overrides=[f"models.registry=file:{tmp_path}"])


def remembers(monkeypatch: pytest.MonkeyPatch, memory: InForce) -> None:
    monkeypatch.setattr(in_force, "in_force", lambda settings: memory)


def test_rules_and_models_that_this_release_knows_lose_nothing(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    remembers(monkeypatch, InForce(RULES.replace("COLUMN", "amount"), (default_version(),)))
    assert memory_findings(settings) == []


def test_kept_rules_that_name_a_vanished_column_are_refused_by_its_name(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    remembers(monkeypatch, InForce(RULES.replace("COLUMN", "customer_count_99d")))
    (finding,) = memory_findings(settings)
    assert finding.level == "refused"
    assert "customer_count_99d" in finding.text
    assert "publish other rules first" in finding.text


def test_a_kept_model_that_the_registry_lost_is_refused(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    remembers(monkeypatch, InForce(None, ("gone-0123456789ab",)))
    (finding,) = memory_findings(settings)
    assert finding.level == "refused"
    assert "gone-0123456789ab" in finding.text


def test_a_kept_model_whose_features_would_go_is_refused(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Fewer:
        names = ("amount",)

    monkeypatch.setattr(in_force, "FRAUD_FEATURES", Fewer)
    remembers(monkeypatch, InForce(None, (default_version(),)))
    (finding,) = memory_findings(settings)
    assert finding.level == "refused"
    assert "customer_count_1d" in finding.text
