"""Models changed on a running job by the commands, while payments keep coming."""

from __future__ import annotations

import itertools
import json
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import scipy.stats
from click.testing import CliRunner
from confluent_kafka import Producer

from connectors.clickhouse import ClickHouseClient
from connectors.control import publish_control
from connectors.evidence import ranges_of, read_range
from connectors.flink import FlinkCluster
from connectors.frames import shard_of
from connectors.kafka import librdkafka_config
from connectors.settings import Settings
from jobs.cli.main import cli
from jobs.fraud.accounts import audit_fraud
from jobs.submission import submit_job
from models.control import make_control
from models.registry import Registry, default_version
from schemas.avro import RecordDecoder
from schemas.columns import StringColumn
from schemas.contract import contract
from schemas.registry import open_registry
from tests.support.fraud_stream import FraudStream
from tests.support.models import BROKEN, amount_model, break_model

DRIFT = ("--window", "10s", "--grace", "0", "--label-delay", "20s", "--least-rows", "100")

pytestmark = [pytest.mark.stack, pytest.mark.slow, pytest.mark.timeout(600)]

WAIT_SECONDS = 150
DAY_MS = 86_400_000
RATE = 200
CHANNELS = ("card_present", "contactless", "ecommerce", "atm")


class Live:
    """The fraud job on topics and a database of its own, and the commands against it."""

    def __init__(self, base: Settings, name: str = "models") -> None:
        tree = base.model_dump()
        tree["kafka"]["topics"]["prefix"] = f"{name}-"
        tree["clickhouse"]["database"] = f"riskstream_{name}"
        tree["models"]["latency_budget_us"] = 100_000
        self.settings = Settings.model_validate(tree)
        self.clickhouse = ClickHouseClient(self.settings.clickhouse)
        self.registry = Registry(self.settings.models.registry)
        self.flags = [
            f"--set=home={self.settings.home}",
            f"--set=models.registry={self.settings.models.registry}",
            f"--set=schemas.registry={self.settings.schemas.registry}",
            "--set=models.latency_budget_us=100000",
            f"--set=kafka.topics.prefix={name}-",
            f"--set=clickhouse.database=riskstream_{name}",
        ]

    def run(self, *arguments: str, exit_code: int = 0) -> str:
        result = CliRunner().invoke(cli, [*self.flags, *arguments])
        assert result.exit_code == exit_code, (arguments, result.output, result.exception)
        # What the command refuses is told by its entry point from the exception.
        told = "" if isinstance(result.exception, SystemExit) else result.exception or ""
        return f"{result.output}{told}"

    def one(self, query: str) -> int:
        return int(self.clickhouse.rows(query)[0]["n"])

    def scored(self) -> int:
        return self.one("SELECT count() AS n FROM scored_transactions")

    def wait_until(self, what: str, done: Callable[[], bool]) -> None:
        deadline = time.monotonic() + WAIT_SECONDS
        while not done():
            if time.monotonic() > deadline:
                cluster = FlinkCluster(self.settings.flink.rest_url or "")
                causes = [c for j in cluster.jobs() for c in cluster.exceptions(j.job_id)]
                pytest.fail(f"{what} did not happen in {WAIT_SECONDS} s; the job says {causes[:1]}")
            time.sleep(0.2)

    def outcomes(self, kind: str, subject: str) -> list[dict[str, Any]]:
        return self.clickhouse.rows(
            "SELECT * FROM control_outcomes FINAL WHERE kind = {kind:String} "
            "AND subject = {subject:String}",
            {"kind": kind, "subject": subject},
        )

    def order(self, kind: str, subject: str, *arguments: str, at_least: int = 1) -> None:
        """Run a command and wait until every shard has told what it made of the record."""
        self.run("models", *arguments)
        due = at_least * self.settings.flink.shards
        self.wait_until(
            f"{kind} {subject} on every shard", lambda: len(self.outcomes(kind, subject)) >= due
        )
        assert {row["outcome"] for row in self.outcomes(kind, subject)} == {"applied"}

    @contextmanager
    def load(self) -> Iterator[list[int]]:
        """Send payments at a steady rate in a thread; the yielded list counts them."""
        stream = FraudStream(self.settings, customers=60, limit=60)
        producer = Producer(
            {**librdkafka_config(self.settings.kafka), "partitioner": "murmur2_random"}
        )
        ended, sent = threading.Event(), [0]
        chance = random.Random(7)

        def produce() -> None:
            while not ended.is_set():
                for _ in range(RATE // 10):
                    number = sent[0]
                    record = stream.payment(
                        event_id=f"live-{number}",
                        event_time_ms=time.time_ns() // 1_000_000,
                        customer_id=f"C{chance.randrange(200)}",
                        terminal_id=f"T{chance.randrange(100)}",
                        amount_minor=chance.randrange(100, 5_000),
                        channel=CHANNELS[number % 4],
                    )
                    producer.produce(record.topic, key=record.key, value=record.value)
                    sent[0] += 1
                producer.poll(0)
                time.sleep(0.1)
            assert producer.flush(30) == 0

        thread = threading.Thread(target=produce)
        thread.start()
        try:
            yield sent
        finally:
            ended.set()
            thread.join()

    def label(self, every: int) -> None:
        """Call every n-th scored payment a fraud, a second after it happened."""
        rows = self.clickhouse.rows(
            "SELECT event_id, customer_id, terminal_id, event_time_ms FROM scored_transactions "
            "ORDER BY event_id"
        )[::every]
        stream = FraudStream(self.settings, customers=60, limit=60)
        stream.send(stream.fraud(row, row["event_time_ms"] + 1_000) for row in rows)
        self.wait_until(
            "every label", lambda: self.one("SELECT count() AS n FROM labels") == len(rows)
        )

    def play(self, day: int, count: int = 3_000) -> None:
        """Send a day of payments, of which 3 % are fraud and dear, and wait for rows and labels."""
        stream = FraudStream(self.settings, customers=60, limit=60)
        chance = random.Random(day)
        before = self.scored()
        payments, frauds = [], []
        for number in range(count):
            fraud = chance.random() < 0.03
            dear = fraud and chance.random() < 0.9
            at = day * DAY_MS + number * DAY_MS // count
            payment = stream.payment(
                event_id=f"day-{day}-{number}",
                event_time_ms=at,
                customer_id=f"C{chance.randrange(200)}",
                terminal_id=f"T{chance.randrange(100)}",
                amount_minor=chance.randrange(20_000, 40_000)
                if dear
                else chance.randrange(100, 22_000),
            )
            payments.append(payment)
            if fraud:
                frauds.append(stream.fraud(payment.payment or {}, at + 1_000))
        stream.send(payments)
        self.wait_until(f"day {day}", lambda: self.scored() == before + count)
        labels = self.one("SELECT count() AS n FROM labels")
        stream.send(frauds)
        self.wait_until(
            "its labels",
            lambda: self.one("SELECT count() AS n FROM labels") == labels + len(frauds),
        )

    def after_more(self, seconds: float = 1.0) -> None:
        """Let payments be scored by what is in force now."""
        time.sleep(seconds)
        seen = self.scored()
        self.wait_until("more rows", lambda: self.scored() > seen + 50)


def runs(versions: list[str]) -> list[str]:
    return [version for version, _ in itertools.groupby(versions)]


def is_part_of(found: list[str], whole: list[str]) -> bool:
    rest = iter(whole)
    return all(version in rest for version in found)


def test_models_change_under_load_at_one_row_of_every_shard_and_nothing_is_lost(
    stack_settings: Settings,
) -> None:
    live = Live(stack_settings)
    default = default_version()
    one = live.registry.register(amount_model("one", 0.002))
    two = live.registry.register(amount_model("two", 0.003))
    web = live.registry.register(amount_model("web", 0.004))
    job_id = submit_job("fraud", live.settings)
    with live.load() as sent:
        live.wait_until("the first rows", lambda: live.scored() > 100)

        live.order("shadow_model", one, "shadow", "one")
        live.after_more()
        live.order("activate_model", one, "activate", "one")
        live.after_more()
        live.order("activate_model", two, "activate", "two")
        live.after_more()
        for code in BROKEN:
            version = break_model(live.registry, code)
            # The command's own gate refuses it; then the order goes past that gate to the job.
            assert BROKEN[code] in live.run("models", "activate", version, exit_code=1)
            order = make_control("activate_model", version, "test", time.time_ns() // 1_000_000)
            publish_control(live.settings, order.to_record())
        live.wait_until(
            "every refusal",
            lambda: (
                live.one(
                    "SELECT count() AS n FROM control_outcomes FINAL WHERE outcome = 'refused'"
                )
                == len(BROKEN) * live.settings.flink.shards
            ),
        )
        live.after_more()
        live.order("rollback_model", one, "rollback")
        live.after_more()
        live.order(
            "activate_model", web, "activate", "web",
            "--route-field", "channel", "--route-value", "ecommerce",
        )  # fmt: skip
        live.after_more()
        live.order(
            "retire_model", web, "retire", "web",
            "--route-field", "channel", "--route-value", "ecommerce",
        )  # fmt: skip
        live.after_more()
        listed = {
            row["version"]: row["stage"] for row in json.loads(live.run("models", "list", "--json"))
        }
        assert listed[one] == "champion"
        assert one in live.run("models", "show", one)
    live.wait_until("every row", lambda: live.scored() >= sent[0])
    live.label(every=7)

    rows = live.clickhouse.rows(
        "SELECT event_id, customer_id, terminal_id, channel, model_version, decided_at_ms, "
        "kafka_partition AS p, kafka_offset AS o FROM scored_transactions"
    )
    assert len(rows) == len({row["event_id"] for row in rows}) == sent[0]
    live.wait_until("a clean audit", lambda: audit_fraud(live.settings).clean)
    verdict = audit_fraud(live.settings)
    assert verdict.total("scored") == sent[0]
    assert verdict.total("missing") == verdict.total("doubled") == 0

    # Kafka, the shuffle and the stages keep order from one partition through one shard of the first
    # stage to one of the second: on each such path the versions must follow one another without
    # ever going back.
    shards = live.settings.flink.shards
    for name in ("customer_id", "terminal_id"):
        found = shard_of(StringColumn.from_texts([row[name] for row in rows]), shards)
        for row, shard in zip(rows, found.tolist(), strict=True):
            row[name] = shard
    champions = [row for row in rows if row["channel"] != "ecommerce"]
    history = [default, one, two, one]
    path = lambda row: (row["p"], row["customer_id"], row["terminal_id"])  # noqa: E731
    for place, group in itertools.groupby(
        sorted(champions, key=lambda row: (*path(row), row["o"])), key=path
    ):
        assert is_part_of(runs([row["model_version"] for row in group]), history), place
    # And each shard as a whole went through the whole history, at the moment it says it did.
    for shard in range(shards):
        mine = [row for row in champions if row["terminal_id"] == shard]
        assert {row["model_version"] for row in mine} == set(history)
        moments = {
            version: next(
                row["applied_at_ms"]
                for row in live.outcomes("activate_model", version)
                if row["shard"] == shard and row["outcome"] == "applied"
            )
            for version in (one, two)
        }
        assert all(
            row["decided_at_ms"] <= moments[one] for row in mine if row["model_version"] == default
        )
        assert all(
            row["decided_at_ms"] >= moments[two] for row in mine if row["model_version"] == two
        )
    assert {row["channel"] for row in rows if row["model_version"] == web} == {"ecommerce"}

    for code in BROKEN:
        refused = live.outcomes(
            "activate_model", live.registry.resolve(f"broken-{code.replace('_', '-')}")
        )
        assert {row["outcome"] for row in refused} == {"refused"}
        assert all(BROKEN[code] in row["detail"] for row in refused), code
    assert not any("broken" in row["model_version"] for row in rows)

    # The shadow scored what the default model decided, until it became champion itself.
    shadowed = live.clickhouse.rows(
        "SELECT s.event_id AS id, s.model_version AS shadow, t.model_version AS champion "
        "FROM shadow_scores AS s JOIN scored_transactions AS t ON s.event_id = t.event_id"
    )
    assert shadowed
    assert {(row["shadow"], row["champion"]) for row in shadowed} == {(one, default)}
    FlinkCluster(live.settings.flink.rest_url or "").cancel(job_id)


def test_live_windows_are_compared_with_the_reference_as_scipy_would(
    stack_settings: Settings,
) -> None:
    live = Live(stack_settings)
    version = default_version()
    told = json.loads(live.run("models", "drift", *DRIFT, "--json", exit_code=1).splitlines()[-1])
    assert told["windows"] >= 2
    rows = live.clickhouse.rows("SELECT * FROM drift FINAL WHERE breached")
    assert told["alerts"] == len(
        {(row["model_version"], row["feature"], row["window_start"]) for row in rows}
    )
    topic = live.settings.kafka.topics.name("drift_alerts")
    decoder = RecordDecoder(open_registry(live.settings.schemas), contract("alert"))
    alerts = [
        decoder.decode(message.value())
        for message in read_range(live.settings.kafka, ranges_of(live.settings.kafka, topic))
    ]
    assert len({alert["alert_id"] for alert in alerts}) == len(alerts) == told["alerts"]
    assert {(alert["kind"], alert["decision"]) for alert in alerts} == {("drift", "drift")}

    # One whole window of the default model, all of its rows read by other means.
    (window,) = live.clickhouse.rows(
        "SELECT toUnixTimestamp64Milli(window_start) AS start, min(events) AS n FROM drift FINAL "
        "WHERE model_version = {model:String} AND measure = 'ks' AND events < 5000 "
        "GROUP BY start ORDER BY n DESC LIMIT 1",
        {"model": version},
    )
    manifest = live.registry.manifest(version)
    reference = live.registry.reference(manifest)
    assert reference is not None
    seen = live.clickhouse.rows(
        f"SELECT {', '.join(manifest.features)}, score FROM scored_transactions "
        "WHERE model_version = {model:String} AND intDiv(event_time_ms, 10000) = {w:Int64}",
        {"model": version, "w": int(window["start"]) // 10_000},
    )
    assert len(seen) == int(window["n"])
    measured = live.clickhouse.rows(
        "SELECT feature, value FROM drift FINAL WHERE model_version = {model:String} "
        "AND measure = 'ks' AND toUnixTimestamp64Milli(window_start) = {start:Int64}",
        {"model": version, "start": window["start"]},
    )
    assert len(measured) == len(manifest.features) + 1
    for row in measured:
        column = [*manifest.features, "score"].index(row["feature"])
        cells = np.array([one[row["feature"]] for one in seen], np.float32)
        oracle = scipy.stats.ks_2samp(reference[:, column], cells)
        assert row["value"] == pytest.approx(oracle.statistic, abs=1e-9), row["feature"]

    # Recall of the rows whose labels are in, counted from the rows themselves.
    for quality in told["quality"]:
        judged = live.clickhouse.rows(
            "SELECT decision != 'approve' AS flagged, count() AS n FROM scored_transactions AS s "
            "JOIN labels AS l ON s.event_id = l.event_id WHERE s.model_version = {model:String} "
            "AND s.event_time_ms >= {first:Int64} AND s.event_time_ms <= {last:Int64} "
            "GROUP BY flagged",
            {
                "model": quality["model_version"],
                "first": quality["window_start"],
                "last": quality["as_of"] - 20_000,
            },
        )
        frauds = {bool(row["flagged"]): int(row["n"]) for row in judged}
        if frauds:
            expected = frauds.get(True, 0) / sum(frauds.values())
            assert quality["recall"] == pytest.approx(expected)

    again = json.loads(live.run("models", "drift", *DRIFT, "--json").splitlines()[-1])
    assert (again["windows"], again["alerts"]) == (0, 0)


def test_a_candidate_is_promoted_when_it_beats_the_champion_on_live_rows_and_not_before(
    stack_settings: Settings,
) -> None:
    live = Live(stack_settings, "promotion")
    # A model that trusts dear payments most: valid, and worse than guessing.
    weak = live.registry.register(amount_model("weak", -0.01, 2.0))
    worse = live.registry.register(amount_model("worse", -0.02, 2.0))
    job_id = submit_job("fraud", live.settings)
    today = time.time_ns() // 1_000_000 // DAY_MS
    live.order("activate_model", weak, "activate", "weak")
    live.play(today - 4)
    live.play(today - 3)

    days = ("--train-days", "1", "--delay-days", "0", "--test-days", "1")
    told = json.loads(live.run("models", "retrain", *days, "--json").splitlines()[-1])
    candidate = told["version"]
    assert told["champion"] == weak
    assert told["comparison"]["low"] > 0
    live.wait_until(
        "the shadow on every shard",
        lambda: len(live.outcomes("shadow_model", candidate)) == live.settings.flink.shards,
    )
    live.order("shadow_model", worse, "shadow", "worse")

    # Better on its own test days is not enough: there are no live rows that both scored.
    judge = ("models", "promote", "--label-delay", "1s", "--json")
    early = json.loads(live.run(*judge, candidate, exit_code=1).splitlines()[-1])
    assert (early["promoted"], early["frauds"]) == (False, 0)

    live.play(today - 2)
    refused = json.loads(live.run(*judge, worse, exit_code=1).splitlines()[-1])
    assert (refused["promoted"], refused["better"]) == (False, False)
    assert live.registry.champion() == weak
    promoted = json.loads(live.run(*judge, candidate).splitlines()[-1])
    assert promoted["promoted"]
    assert promoted["difference_interval"][0] > 0
    assert promoted["average_precision"] > promoted["champion_average_precision"]
    live.wait_until(
        "the promotion on every shard",
        lambda: len(live.outcomes("activate_model", candidate)) == live.settings.flink.shards,
    )
    live.play(today - 1)

    by_day = live.clickhouse.rows(
        "SELECT DISTINCT intDiv(event_time_ms, 86400000) AS day, model_version AS version "
        "FROM scored_transactions ORDER BY day"
    )
    assert [(int(row["day"]), row["version"]) for row in by_day] == [
        (today - 4, weak),
        (today - 3, weak),
        (today - 2, weak),
        (today - 1, candidate),
    ]
    live.wait_until("a clean audit", lambda: audit_fraud(live.settings).clean)
    FlinkCluster(live.settings.flink.rest_url or "").cancel(job_id)
