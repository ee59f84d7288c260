"""The short failure matrix: faults under load, accounted for to the last offset."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from connectors.settings import Settings
from tests.faults.scenarios import FAULTS
from tests.faults.stand import Stand

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(1_500)]

BY_NAME = {fault.name: fault for fault in FAULTS}


@pytest.fixture(scope="module")
def stand(faults_stack: Settings) -> Iterator[Stand]:
    stand = Stand(faults_stack, "short", rate=300.0)
    try:
        stand.start()
        yield stand
    finally:
        stand.stop()


@pytest.mark.parametrize("name", ["kill-taskmanager", "kill-clickhouse"])
def test_the_job_comes_back_by_itself_with_every_offset_accounted_for(
    stand: Stand, name: str
) -> None:
    stand.suffer(lambda: BY_NAME[name].happen(stand))
    audit = stand.audit()
    assert audit.total("offsets_in") > 0
    assert audit.missing_at == []
    assert audit.doubled_at == []
    assert audit.alerts_missing == []
    assert audit.alerts_unexpected == []
    assert audit.clean


def test_features_after_the_faults_equal_those_of_an_undisturbed_run(stand: Stand) -> None:
    stand.load.stop()
    assert stand.audit(whole=True).clean
    assert stand.different_features() == 0


def test_exactly_once_shows_readers_of_committed_records_each_alert_once(
    faults_stack: Settings, stand: Stand
) -> None:
    stand.stop()
    once = Stand(faults_stack, "once", rate=300.0, delivery="exactly-once")
    try:
        once.start()
        once.suffer(lambda: BY_NAME["kill-taskmanager-exactly-once"].happen(once))
        once.load.stop()
        audit = once.audit(whole=True)
        again, decided_otherwise = once.decided_again()
        everything = once.alert_records(isolation="read_uncommitted")
        committed = once.alert_records(isolation="read_committed")
    finally:
        once.stop()
    assert audit.clean
    assert audit.alerts_expected > 0
    assert audit.redelivered_alerts == 0
    assert again > 0, "the killed task's events since its checkpoint were decided again"
    assert decided_otherwise == 0
    assert sorted(committed) == sorted(set(committed))
    assert len(committed) == audit.alerts_expected
    assert set(committed) <= set(everything)
    # What the killed task had sent in a transaction that was never committed is there twice.
    assert len(everything) >= len(committed)
