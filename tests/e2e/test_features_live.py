"""Features of a running job: killed, upgraded, then verified and traced by the commands."""

from __future__ import annotations

import itertools
import json
import random
import time
from collections.abc import Iterator

import pytest
from click.testing import CliRunner

from connectors.clickhouse import ClickHouseClient
from connectors.migrations import migrate
from connectors.settings import Settings
from connectors.tables import SCORED_TABLE
from jobs.cli.main import cli
from jobs.fraud.features import FRAUD_FEATURES
from schemas.errors import RiskstreamError
from tests.faults import variants
from tests.faults.stand import Stand
from tests.faults.variants import LATER_FEATURES
from tests.support.fraud_stream import DAY_MS, FraudStream, Record

pytestmark = [pytest.mark.stack, pytest.mark.slow, pytest.mark.timeout(900)]

# How often the task managers die while a day's payments are under way, in each part of the stream.
KILLS = 1
SEED = 11
LATER = f"{variants.__file__}:LATER_FEATURES"


class Job:
    """The fraud job on topics and a database of its own, fed day by day."""

    def __init__(self, base: Settings) -> None:
        self.stand = Stand(base, "features", rate=1.0)
        self.stream = FraudStream(self.stand.settings, customers=40, limit=1_200)
        self.dice = random.Random(SEED)
        records = self.stream.records
        cut = self.dice.randrange(len(records) // 3, 2 * len(records) // 3)
        self.before, self.after = records[:cut], records[cut:]
        settings = self.stand.settings
        self.flags = [
            f"--set=home={settings.home}",
            f"--set=kafka.topics.prefix={settings.kafka.topics.prefix}",
            f"--set=clickhouse.database={settings.clickhouse.database}",
        ]

    def run(self, *arguments: str) -> tuple[int, str]:
        result = CliRunner().invoke(cli, [*self.flags, "features", *arguments])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.exit_code, result.stdout

    def seen(self) -> int:
        return self.stand.one("SELECT count() AS n FROM {v}") + self.stand.one(
            "SELECT count() AS n FROM labels_raw FINAL"
        )

    def feed(self, records: list[Record], kills: int) -> None:
        """Send day by day, each once the day before is through; kill in the midst of some days.

        The order in which payments and labels of several partitions reach a terminal is then the
        same in every run, as far as any window can tell. What a task manager takes with it is that
        day alone: earlier ones are in a checkpoint, later ones wait for it to be decided again.
        """
        rows = self.seen()
        days = [
            list(day)
            for _, day in itertools.groupby(records, key=lambda r: r.source_time_ms // DAY_MS)
        ]
        fatal = set(self.dice.sample(range(1, len(days) - 1), kills))
        for number, day in enumerate(days):
            if number in fatal:
                self.pass_checkpoints()
            self.stream.send(day)
            rows += len(day)
            if number in fatal:
                restored = self.checkpoints("restored")
                time.sleep(self.dice.random())
                # Either may be the one that runs the job.
                for name in ("taskmanager-1", "taskmanager-2"):
                    self.stand.kill(name)
                self.stand.wait(
                    "the restart", lambda before=restored: self.checkpoints("restored") > before
                )
                self.pass_checkpoints()
            self.stand.wait("a day's rows", lambda due=rows: self.seen() >= due)

    def checkpoints(self, kind: str) -> int:
        try:
            return int(self.stand.cluster.checkpoints(self.stand.job_id)["counts"][kind])
        except RiskstreamError:
            return -1

    def pass_checkpoints(self) -> None:
        """Wait for checkpoints that began after everything sent was read."""
        due = self.checkpoints("completed") + 3
        self.stand.wait("checkpoints", lambda: self.checkpoints("completed") >= due)


@pytest.fixture(scope="module")
def job(stack_settings: Settings) -> Iterator[Job]:
    """Return a job killed at random points, resumed with a feature more at another parallelism."""
    job = Job(stack_settings)
    stand = job.stand
    try:
        stand.submit()
        job.feed(job.before, KILLS)
        savepoint = stand.cluster.savepoint(stand.job_id, None, stop=True)
        migrate(ClickHouseClient(stand.settings.clickhouse), LATER_FEATURES.names)
        flink = stand.job_settings.flink.model_copy(update={"parallelism": 1})
        stand.job_settings = stand.job_settings.model_copy(update={"flink": flink})
        stand.variant = "later-features"
        stand.submit(savepoint)
        job.feed(job.after, KILLS)
        yield job
    finally:
        stand.stop()
        stand.renew_task_managers()


def payments(records: list[Record]) -> int:
    return sum(record.payment is not None for record in records)


def test_features_of_a_killed_and_upgraded_job_equal_an_undisturbed_run_to_the_bit(
    job: Job,
) -> None:
    assert job.stand.one("SELECT count() AS n FROM {v}") == payments(job.stream.records)
    assert job.stand.different_features() == []


def test_verify_finds_what_was_scored_equal_to_the_bit(job: Job) -> None:
    labels = sum(record.label is not None for record in job.stream.records)
    for scored, options in ((job.before, ()), (job.after, ("--features", LATER))):
        code, out = job.run("verify", *options, "--json")
        answer = json.loads(out)
        assert answer["differences"] == 0, answer["first"]
        assert (answer["events"], answer["labels"]) == (payments(scored), labels)
        assert code == 0
    assert labels > 0


def test_trace_names_the_events_behind_every_feature_with_their_offsets(job: Job) -> None:
    (event,) = job.stand.clickhouse.rows(
        "SELECT * FROM scored_transactions "
        "ORDER BY terminal_fraud_rate_30d_delay_7d > 0 DESC, event_time_ms DESC LIMIT 1"
    )
    assert event["terminal_fraud_rate_30d_delay_7d"] > 0
    assert set(LATER_FEATURES.names) > set(FRAUD_FEATURES.names)
    for name in LATER_FEATURES.names:
        code, out = job.run("trace", event["event_id"], name, "--features", LATER, "--json")
        found = json.loads(out)
        assert (code, found["equal"], found["recorded"]) == (0, True, event[name]), found
        if "_count_" in name:
            assert len(found["events"]) == event[name]
        if "_rate_" in name:
            frauds = sum(e["fraud"] for e in found["events"])
            assert frauds / len(found["events"]) == event[name]
        for behind in found["events"]:
            (row,) = job.stand.clickhouse.rows(
                "SELECT kafka_topic, kafka_partition, kafka_offset FROM scored_transactions "
                "WHERE event_id = {id:String}",
                {"id": behind["event_id"]},
            )
            assert [behind["topic"], behind["partition"], behind["offset"]] == list(row.values())


def test_verify_names_the_event_and_the_feature_of_a_row_that_was_tampered_with(job: Job) -> None:
    (event,) = job.stand.clickhouse.rows(
        "SELECT * FROM scored_transactions ORDER BY event_time_ms LIMIT 1"
    )
    job.stand.clickhouse.execute(
        f"INSERT INTO {SCORED_TABLE} SELECT * REPLACE("
        "customer_count_7d + 1 AS customer_count_7d, decided_at_ms + 1 AS decided_at_ms) "
        f"FROM {SCORED_TABLE} FINAL WHERE event_id = '{event['event_id']}'"
    )
    code, out = job.run("verify", "--json")
    answer = json.loads(out)
    assert (code, answer["differences"]) == (1, 1)
    assert answer["first"] == [
        {
            "event_id": event["event_id"],
            "topic": event["kafka_topic"],
            "partition": event["kafka_partition"],
            "offset": event["kafka_offset"],
            "feature": "customer_count_7d",
            "online": event["customer_count_7d"] + 1,
            "offline": event["customer_count_7d"],
        }
    ]
    assert job.run("trace", event["event_id"], "customer_count_7d")[0] == 1
    assert job.run("trace", event["event_id"], "customer_count_1d")[0] == 0
