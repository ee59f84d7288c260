"""The short failure matrix: faults under load, accounted for to the last offset.

`make test` runs two faults and the comparison; what is marked `matrix` follows in `make faults`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import pytest
from click.testing import CliRunner, Result
from confluent_kafka import Producer

from connectors.kafka import librdkafka_config
from connectors.settings import Settings
from connectors.tables import SCORED_TABLE
from jobs.cli.main import cli
from schemas.avro import RecordEncoder
from schemas.contract import contract
from schemas.registry import stable_schema_id
from tests.faults.scenarios import FAULTS
from tests.faults.stand import Stand
from tests.faults.topics import alert_records

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(1_500)]

WATCH_SECONDS = 7
CARD = "4929123412341234"
BY_NAME = {fault.name: fault for fault in FAULTS}


@pytest.fixture(scope="module")
def stand(faults_stack: Settings) -> Iterator[Stand]:
    # Quick to start, and a day of event time lasts longer than the test.
    stand = Stand(faults_stack, "short", rate=300.0, customers=15_000, history=False)
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


def audit_command(stand: Stand, *flags: str) -> Result:
    settings = stand.settings
    options = [
        f"--set=home={settings.home}",
        f"--set=kafka.topics.prefix={settings.kafka.topics.prefix}",
        f"--set=clickhouse.database={settings.clickhouse.database}",
        f"--set=schemas.registry={settings.schemas.registry}",
    ]
    return CliRunner().invoke(cli, [*options, "audit", "--json", *flags])


class Once:
    """A clock whose long wait ends the watch."""

    monotonic = staticmethod(time.monotonic)

    @staticmethod
    def sleep(seconds: float) -> None:
        if seconds == WATCH_SECONDS:
            raise KeyboardInterrupt
        time.sleep(seconds)


@pytest.mark.matrix
def test_the_running_account_is_kept_where_dashboards_read_it(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.cli.audit.time", Once)
    watch = [f"--watch={WATCH_SECONDS}", "--last=3600", "--settle=120"]
    result = audit_command(stand, *watch)
    said = json.loads(result.stdout)
    assert said["clean"]
    assert said["offsets_in"] == said["scored"] + said["dead_lettered"] + said["control"] > 0
    (kept,) = stand.clickhouse.rows("SELECT * FROM accounts WHERE job = 'fraud'")
    assert kept["clean"] is True
    counted = ("offsets_in", "scored", "control", "missing", "doubled", "alerts_found")
    assert {name: kept[name] for name in counted} == {name: said[name] for name in counted}


@pytest.mark.matrix
def test_card_numbers_reach_no_log_no_table_and_no_listing(stand: Stand) -> None:
    settings = stand.settings
    text = contract("card_transaction")
    encoder = RecordEncoder(text, stable_schema_id(text))
    newest = stand.one("SELECT max(event_time_ms) AS n FROM {v}")
    header = ("event_time_ms", newest.to_bytes(8, "little"))
    producer = Producer(librdkafka_config(settings.kafka))
    for number in range(6):
        payment = {
            "event_id": f"card-{number}",
            "event_time_ms": newest,
            "customer_id": "holder",
            "terminal_id": "card",
            "amount_minor": 9_000_000,
            "currency": "EUR",
            "card_number": CARD,
        }
        value = encoder.encode(payment)
        # The last one is cut short inside the number's own record: a dead letter holds it.
        sent = value if number < 5 else value[:-2]
        producer.produce(
            settings.kafka.topics.name("transactions"), sent, b"holder", headers=[header]
        )
    assert producer.flush(30) == 0
    holder = "SELECT count() AS n FROM {v} WHERE customer_id = 'holder'"
    stand.wait("the payments", lambda: stand.one(holder) == 5, 60)
    assert stand.audit(whole=True).total("dead_lettered") == 1
    options = [
        f"--set=home={settings.home}",
        f"--set=kafka.topics.prefix={settings.kafka.topics.prefix}",
    ]
    listing = CliRunner().invoke(cli, [*options, "dead-letters", "list", "--json"])
    assert listing.exit_code == 0
    assert "card-transactions" in listing.stdout
    said = {"listing": listing.stdout.encode()}
    said |= {
        path.name: path.read_bytes()
        for path in (stand.stack.home / "logs").iterdir()
        if path.is_file()
    }
    said["causes"] = "".join(stand.cluster.exceptions(stand.job_id)).encode()
    said["rows"] = stand.clickhouse.request(
        {}, b"SELECT * FROM scored_transactions_raw WHERE customer_id = 'holder' FORMAT RowBinary"
    )
    assert len(said) > 8
    assert [name for name, data in said.items() if CARD.encode() in data] == []


def test_features_after_the_faults_equal_those_of_an_undisturbed_run(stand: Stand) -> None:
    stand.load.stop()
    assert stand.audit(whole=True).clean
    assert stand.different_features() == []


@pytest.mark.matrix
def test_an_account_with_a_gap_fails_and_says_where(stand: Stand) -> None:
    whole = audit_command(stand, "--to-offset=100")
    assert whole.exit_code == 0
    assert json.loads(whole.stdout)["scored"] == 100 * stand.settings.kafka.topics.partitions
    stand.clickhouse.execute(
        f"DELETE FROM {SCORED_TABLE} WHERE kafka_partition = 0 AND kafka_offset = 50"
    )
    result = audit_command(stand, "--to-offset=100")
    gap = json.loads(result.stdout)
    assert result.exit_code == 1
    assert gap["missing"] == 1
    assert (gap["missing_at"][0]["partition"], gap["missing_at"][0]["offset"]) == (0, 50)
    assert audit_command(stand, "--from-offset=51", "--to-offset=100").exit_code == 0


@pytest.mark.matrix
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
        everything = alert_records(once.settings, "read_uncommitted")
        committed = alert_records(once.settings, "read_committed")
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
