"""Candidates trained, judged and compared on rows that a real ClickHouse engine holds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from connectors.clickhouse import ClickHouseClient, ClickHouseWriter
from connectors.live_rows import live_rows, scored_pairs
from connectors.migrations import migrate
from connectors.row_binary import NameSets
from connectors.settings import ClickHouseSettings
from connectors.tables import (
    LABELS_TABLE,
    SCORED_TABLE,
    SHADOW_TABLE,
    label_layout,
    scored_layout,
    shadow_layout,
)
from jobs.cli.main import cli
from jobs.fraud.features import FRAUD_FEATURES
from models.registry import Registry, default_version
from schemas.columns import StringColumn
from tests.integration._clickhouse_process import clickhouse
from tests.support.models import amount_model

NAMES = FRAUD_FEATURES.names
DAY_MS = 86_400_000
START_MS = 20_000 * DAY_MS
ROWS, DAYS = 6_000, 12
DAYS_OF = ("--train-days", "6", "--delay-days", "2", "--test-days", "4")


class Lived:
    """Twelve days as the job would have written them: large amounts are mostly frauds."""

    def __init__(self, settings: ClickHouseSettings) -> None:
        chance = np.random.default_rng(11)
        self.settings = settings
        self.time = START_MS + np.sort(chance.integers(0, DAYS * DAY_MS, ROWS))
        self.features = chance.gamma(2.0, 20.0, (ROWS, len(NAMES)))
        odds = self.features[:, 0] / 12 - 9
        self.fraud = chance.random(ROWS) < 1 / (1 + np.exp(-odds))
        self.champion = chance.random(ROWS)
        self.ids = [f"e{number}" for number in range(ROWS)]
        self.customers = [f"C{number % 400}" for number in range(ROWS)]

    def columns(self, **changes: Any) -> dict[str, Any]:
        everywhere: dict[str, Any] = dict.fromkeys(
            ("published_at_ms", "ingested_at_ms", "decided_at_ms", "channel", "decision"), 1
        )
        texts = ("terminal_id", "merchant_id", "currency", "country", "tenant", "rule_set_version")
        return {
            **everywhere,
            **dict.fromkeys(texts, "x"),
            "event_time_ms": self.time,
            "amount_minor": (self.features[:, 0] * 100).astype(np.int64),
            "score": self.champion,
            "flags": np.zeros(ROWS, np.uint16),
            "kafka_partition": 0,
            "kafka_offset": np.arange(ROWS),
            "seen_order": np.arange(ROWS),
            "event_id": StringColumn.from_texts(self.ids),
            "customer_id": StringColumn.from_texts(self.customers),
            "model_version": default_version(),
            "feature_set_version": FRAUD_FEATURES.version,
            "kafka_topic": "t",
            "rules_fired": NameSets(np.zeros(ROWS, np.uint64), ["none"]),
            "features": self.features,
            **changes,
        }

    def write(self) -> None:
        writer = ClickHouseWriter(self.settings, give_up_after=0)
        layout = scored_layout(NAMES)
        writer.insert(SCORED_TABLE, layout, ROWS, layout.pack(self.columns(), ROWS))
        frauds = np.flatnonzero(self.fraud)
        labels = label_layout()
        ids = StringColumn.from_texts([self.ids[row] for row in frauds])
        packed = labels.pack(
            {
                "event_time_ms": self.time[frauds],
                "is_fraud": np.ones(len(frauds), np.uint8),
                "labelled_at_ms": self.time[frauds] + DAY_MS,
                "source": 1,
                "revision": 0,
                "seen_order": 0,
                "kafka_partition": 0,
                "kafka_offset": np.arange(len(frauds)),
                "event_id": ids,
                "customer_id": "x",
                "terminal_id": "x",
                "kafka_topic": "l",
            },
            len(frauds),
        )
        writer.insert(LABELS_TABLE, labels, len(frauds), packed)
        writer.close()

    def shadow(self, version: str, score: np.ndarray) -> None:
        writer, layout = ClickHouseWriter(self.settings, give_up_after=0), shadow_layout()
        columns = self.columns(score=score, model_version=version)
        writer.insert(SHADOW_TABLE, layout, ROWS, layout.pack(columns, ROWS))
        writer.close()


@pytest.fixture(scope="module")
def lived(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lived]:
    with clickhouse(tmp_path_factory.mktemp("clickhouse")) as port:
        settings = ClickHouseSettings(url=f"http://127.0.0.1:{port}")
        client = ClickHouseClient(settings)
        migrate(client, NAMES)
        client.close()
        made = Lived(settings)
        made.write()
        yield made


@pytest.fixture
def run(lived: Lived, tmp_path: Any) -> Any:
    flags = [
        f"--set=home={tmp_path}",
        f"--set=models.registry=file:{tmp_path}/models",
        f"--set=clickhouse.url={lived.settings.url}",
        "--set=kafka.bootstrap_servers=127.0.0.1:1",
        "--set=redis.url=redis://127.0.0.1:1",
        "--set=flink.rest_url=http://127.0.0.1:1",
    ]

    def call(*arguments: str, exit_code: int = 0) -> dict[str, Any]:
        result = CliRunner().invoke(cli, [*flags, "models", *arguments, "--json"])
        assert result.exit_code == exit_code, (result.output, result.exception)
        answer: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
        return answer

    return call


def test_rows_come_back_as_the_job_wrote_them(lived: Lived) -> None:
    rows = live_rows(lived.settings, NAMES, FRAUD_FEATURES.version, START_MS + 5 * DAY_MS)
    kept = lived.time >= START_MS + 5 * DAY_MS
    assert sorted(rows.event_time_ms.tolist()) == sorted(lived.time[kept].tolist())
    np.testing.assert_array_equal(np.sort(rows.features[:, 3]), np.sort(lived.features[kept][:, 3]))
    assert rows.is_fraud.sum() == lived.fraud[kept].sum()
    assert len(set(rows.customer.tolist())) == len(
        {name for name, inside in zip(lived.customers, kept, strict=True) if inside}
    )
    assert len(live_rows(lived.settings, NAMES, "another", 0).event_time_ms) == 0


def test_a_candidate_learns_from_the_rows_of_the_job_and_enters_as_a_shadow(
    run: Any, tmp_path: Any
) -> None:
    answer = run("retrain", *DAYS_OF, "--dry-run")
    assert answer["champion"] == default_version()
    assert answer["control"]["kind"] == "shadow_model"
    assert answer["comparison"]["candidate"] > answer["comparison"]["champion"]
    manifest = Registry(f"file:{tmp_path}/models").manifest(answer["version"])
    assert manifest.training["train_rows"] > 2_000
    assert manifest.source == "rows scored by the running job"
    # Trained again on the same rows it is the same model.
    assert run("retrain", *DAYS_OF, "--dry-run")["version"] == answer["version"]


def test_a_shadow_is_promoted_only_when_it_beats_the_champion_on_rows_with_labels(
    lived: Lived, run: Any, tmp_path: Any
) -> None:
    registry = Registry(f"file:{tmp_path}/models")
    better, worse, idle = (
        registry.register(amount_model(name, weight, -9.0))
        for name, weight in (("better", 0.08), ("worse", 0.001), ("idle", 0.002))
    )
    lived.shadow(better, 1 / (1 + np.exp(9 - 0.08 * lived.features[:, 0])))
    lived.shadow(worse, np.random.default_rng(3).random(ROWS))
    pairs = scored_pairs(lived.settings, default_version(), better, 2 * DAY_MS)
    mature = lived.time <= lived.time.max() - 2 * DAY_MS
    assert len(pairs.shadow) == mature.sum()
    assert pairs.is_fraud.sum() == lived.fraud[mature].sum()

    won = run("promote", better, "--label-delay", "2d", "--dry-run")
    assert won["better"]
    assert won["difference_interval"][0] > 0
    lost = run("promote", worse, "--label-delay", "2d", "--dry-run", exit_code=1)
    assert not lost["better"]
    unknown = run("promote", idle, "--label-delay", "2d", "--dry-run", exit_code=1)
    assert "0 labelled frauds" in unknown["reason"]


def test_drift_of_rows_in_clickhouse_is_found_and_kept(lived: Lived, run: Any) -> None:
    found = run("drift", "--window", "1d", "--grace", "1h", "--dry-run", exit_code=1)
    assert found["windows"] == DAYS - 1
    assert {row["feature"] for row in found["breached"]} >= {"amount"}
    (quality,) = found["quality"]
    assert quality["recall"] == 1.0, "every row of these days was flagged"
    assert quality["mature"] < quality["events"]
