"""The short failure matrix: two faults under load, accounted for to the last offset."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from connectors.local.stack import LocalStack
from tests.faults.scenarios import FAULTS
from tests.faults.stand import Stand, stack_settings

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(1_500)]

BY_NAME = {fault.name: fault for fault in FAULTS}


@pytest.fixture(scope="module")
def stand(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    home: Path = tmp_path_factory.mktemp("faults")
    settings = stack_settings(home, "local.high_availability=false")
    stack = LocalStack(settings)
    stack.up()
    try:
        stand = Stand(settings, "short", rate=300.0)
        try:
            stand.start()
            yield stand
        finally:
            stand.stop()
    finally:
        stack.down(purge=True)


@pytest.mark.parametrize("name", ["kill-taskmanager", "kill-clickhouse"])
def test_the_job_comes_back_by_itself_with_every_offset_accounted_for(
    stand: Stand, name: str
) -> None:
    stand.suffer(lambda: BY_NAME[name].happen(stand))
    audit = stand.audit()
    assert audit.missing_at == []
    assert audit.doubled_at == []
    assert audit.alerts_missing == []
    assert audit.alerts_unexpected == []
    assert audit.clean


def test_features_after_the_faults_equal_those_of_an_undisturbed_run(stand: Stand) -> None:
    stand.load.stop()
    assert stand.audit().clean
    assert stand.different_features() == 0
