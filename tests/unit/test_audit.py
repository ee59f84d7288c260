"""What the account of offsets and alerts says, and how it is served."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from connectors.audit_metrics import AuditMetrics
from jobs.audit import LISTED, Audit, Coordinate, Ledger, reconcile
from jobs.cli.audit import as_dict


def ledger(
    published: list[int],
    stored: list[int],
    dead: list[int] | None = None,
    *,
    kind: str = "scored",
    partition: int = 0,
) -> Ledger:
    return Ledger(
        "cards",
        partition,
        kind,
        np.array(published, np.int64),
        np.array(stored, np.int64),
        np.array(dead or [], np.int64),
    )


def at(offset: int, partition: int = 0) -> Coordinate:
    return Coordinate("cards", partition, offset)


def test_rows_and_dead_letters_that_cover_every_offset_are_clean() -> None:
    audit = reconcile([ledger([0, 1, 2, 3], [0, 1, 3], [2])], [], [])
    assert audit.clean
    assert audit.total("offsets_in") == 4
    assert audit.total("scored") == 3
    assert audit.total("dead_lettered") == 1


def test_an_offset_in_neither_place_is_missing_with_its_coordinates() -> None:
    audit = reconcile([ledger([5, 6, 7], [5, 7], partition=3)], [], [])
    assert not audit.clean
    assert audit.total("missing") == 1
    assert audit.missing_at == [at(6, 3)]


def test_an_offset_twice_in_the_view_is_doubled() -> None:
    audit = reconcile([ledger([0, 1], [0, 1, 1])], [], [])
    assert not audit.clean
    assert audit.doubled_at == [at(1)]
    assert audit.total("scored") == 2


def test_an_offset_that_is_a_row_and_a_dead_letter_is_doubled() -> None:
    audit = reconcile([ledger([0, 1], [0, 1], [1])], [], [])
    assert not audit.clean
    assert audit.doubled_at == [at(1)]


def test_a_row_that_kafka_does_not_hold_is_unexpected() -> None:
    audit = reconcile([ledger([0, 1], [0, 1, 9])], [], [])
    assert not audit.clean
    assert audit.unexpected == 1


def test_a_dead_letter_delivered_again_is_counted_and_is_not_a_double() -> None:
    audit = reconcile([ledger([0, 1], [0], [1, 1, 1])], [], [])
    assert audit.clean
    assert audit.redelivered_dead_letters == 2


def test_an_alert_delivered_again_under_its_id_is_not_wrong() -> None:
    audit = reconcile(
        [ledger([0], [0])], [(at(0), "alert-a")], [(at(0), "alert-a"), (at(0), "alert-a")]
    )
    assert audit.clean
    assert audit.alerts_found == 1
    assert audit.redelivered_alerts == 1


def test_a_decision_without_its_alert_is_wrong() -> None:
    audit = reconcile([ledger([0, 1], [0, 1])], [(at(1), "alert-a")], [])
    assert not audit.clean
    assert audit.alerts_missing == [at(1)]
    assert audit.alerts_wrong == 1


def test_an_alert_without_its_decision_is_wrong() -> None:
    audit = reconcile([ledger([0, 1], [0, 1])], [], [(at(1), "alert-a")])
    assert not audit.clean
    assert audit.alerts_unexpected == [at(1)]


def test_an_alert_that_other_rules_decided_before_a_failure_is_counted_apart() -> None:
    alerts = [(at(0), "alert-a"), (at(1), "alert-b")]
    audit = reconcile([ledger([0, 1], [0, 1])], [], alerts, superseded={at(1)})
    assert audit.alerts_unexpected == [at(0)]
    assert audit.alerts_wrong == 1
    assert audit.superseded_alerts == 1


def test_an_alert_whose_row_still_alerts_is_not_superseded() -> None:
    audit = reconcile([ledger([0], [0])], [(at(0), "a")], [(at(0), "a")], superseded={at(0)})
    assert audit.clean
    assert audit.superseded_alerts == 0


def test_two_ids_for_one_row_are_wrong_because_ids_must_be_deterministic() -> None:
    audit = reconcile(
        [ledger([0], [0])], [(at(0), "alert-a")], [(at(0), "alert-a"), (at(0), "alert-b")]
    )
    assert not audit.clean
    assert audit.alerts_wrong == 1
    assert audit.redelivered_alerts == 0


def test_an_alert_under_another_id_than_its_row_gives_is_no_alert_of_the_row() -> None:
    audit = reconcile([ledger([0], [0])], [(at(0), "alert-a")], [(at(0), "forged")])
    assert not audit.clean
    assert audit.alerts_missing == [at(0)]
    assert audit.alerts_misnamed == [at(0)]
    assert audit.alerts_wrong == 2


def test_what_belongs_to_nothing_that_kafka_held_is_unexpected_and_listed() -> None:
    audit = reconcile([ledger([0, 1], [0, 1, 9])], [], [], strays=[at(4), at(5)])
    assert not audit.clean
    assert audit.unexpected == 3
    assert audit.unexpected_at == [at(9), at(4), at(5)]


def test_control_records_are_counted_as_control_and_never_as_scored() -> None:
    audit = reconcile([ledger([0, 1], [0, 1], kind="control")], [], [])
    assert audit.clean
    assert audit.total("scored") == 0
    assert audit.total("control") == 2


def test_holes_in_the_log_such_as_transaction_markers_are_not_missing() -> None:
    assert reconcile([ledger([0, 1, 3, 7], [0, 1, 3, 7])], [], []).clean


def test_an_empty_partition_is_clean_and_has_no_first_offset() -> None:
    audit = reconcile([ledger([], [])], [], [])
    assert audit.clean
    assert audit.partitions[0].first_offset is None


def test_lists_are_bounded_and_counts_are_not() -> None:
    audit = reconcile([ledger(list(range(1_000)), [])], [], [])
    assert audit.total("missing") == 1_000
    assert len(audit.missing_at) == LISTED


@given(
    published=st.sets(st.integers(0, 60)),
    stored=st.lists(st.integers(0, 60), max_size=80),
    dead=st.lists(st.integers(0, 60), max_size=20),
)
def test_an_account_is_clean_exactly_when_each_offset_has_one_outcome(
    published: set[int], stored: list[int], dead: list[int]
) -> None:
    audit = reconcile([ledger(sorted(published), stored, dead)], [], [])
    once = all(
        stored.count(offset) + (offset in dead) == (offset in published) for offset in range(61)
    )
    assert audit.clean == once
    assert audit.total("missing") == len(published - set(stored) - set(dead))
    assert audit.unexpected == len((set(stored) | set(dead)) - published)


def test_the_json_form_has_the_promised_fields() -> None:
    verdict = as_dict(reconcile([ledger([0, 1], [0])], [], []))
    promised = (
        "offsets_in scored dead_lettered control missing doubled alerts_expected alerts_found"
    )
    assert set(promised.split()) <= verdict.keys()
    assert verdict["clean"] is False
    assert json.loads(json.dumps(verdict))["missing_at"] == [
        {"topic": "cards", "partition": 0, "offset": 1}
    ]


@pytest.fixture
def gauges() -> Iterator[AuditMetrics]:
    served = AuditMetrics(0, now=lambda: 1_700_000_000.0)
    yield served
    served.close()


def scrape(gauges: AuditMetrics) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{gauges.port}/metrics", timeout=10) as answer:
        text: str = answer.read().decode()
    return text


def test_metrics_show_the_account_of_each_partition(gauges: AuditMetrics) -> None:
    gauges.publish(reconcile([ledger([0, 1, 2], [0, 1], partition=2)], [], []))
    page = scrape(gauges)
    place = 'partition="2",topic="cards"'
    assert f'riskstream_audit_offsets{{account="missing",{place}}} 1.0' in page
    assert f'riskstream_audit_offsets{{account="scored",{place}}} 2.0' in page
    assert 'riskstream_audit_clean{job="fraud"} 0.0' in page
    assert "riskstream_audit_last_run_timestamp_seconds 1.7e+09" in page


def test_metrics_of_a_later_account_replace_those_of_an_earlier_one(gauges: AuditMetrics) -> None:
    gauges.publish(reconcile([ledger([0], [], partition=7)], [], []))
    gauges.publish(reconcile([ledger([0], [0], partition=8)], [], []))
    page = scrape(gauges)
    assert 'partition="7"' not in page
    assert 'riskstream_audit_clean{job="fraud"} 1.0' in page


def test_no_verdict_is_served_before_the_first_account(gauges: AuditMetrics) -> None:
    assert "riskstream_audit_clean{" not in scrape(gauges)


def test_a_fresh_account_is_clean_only_while_nothing_is_known_to_be_wrong() -> None:
    audit = Audit()
    assert audit.clean
    audit.alerts_wrong = 1
    assert not audit.clean
