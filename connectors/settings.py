"""The one configuration tree: read once at the edge from file < environment < flags.

Everything below the edge receives values through constructors; nothing else reads `os.environ`.

==============================================  ============================================
source                                          example
==============================================  ============================================
file (TOML; `--config`, `RISKSTREAM_CONFIG`)    ``[kafka]``, ``bootstrap_servers = "b:9092"``
environment                                     ``RISKSTREAM_KAFKA__BOOTSTRAP_SERVERS``
flag                                            ``--set kafka.bootstrap_servers=b:9092``
==============================================  ============================================

A part of the local stack whose address is set here (`kafka.bootstrap_servers`, `redis.url`,
`clickhouse.url`, `flink.rest_url`) is used where it is and is not started.
"""

from __future__ import annotations

import hashlib
import json
import os
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator

from schemas.errors import ConfigurationError

__all__ = [
    "ClickHouseSettings",
    "FlinkSettings",
    "FraudSettings",
    "KafkaSettings",
    "LocalSettings",
    "MarketRiskSettings",
    "ModelSettings",
    "RedisSettings",
    "SchemaSettings",
    "Settings",
    "TopicSettings",
    "load_settings",
]

ENVIRONMENT_PREFIX: Final = "RISKSTREAM_"
Port = Annotated[int, Field(ge=0, le=65535)]
Positive = Annotated[int, Field(gt=0)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TopicSettings(_Section):
    """Names of the topics; `prefix` goes before each, so that two systems can share a cluster."""

    prefix: str = ""
    transactions: str = "card-transactions"
    labels: str = "card-labels"
    control: str = "fraud-control"
    alerts: str = "fraud-alerts"
    dead_letters: str = "fraud-dead-letters"
    drift_alerts: str = "fraud-drift-alerts"
    ticks: str = "market-ticks"
    quotes: str = "market-quotes"
    fills: str = "market-fills"
    instruments: str = "market-instruments"
    limits: str = "market-limits"
    scenarios: str = "market-scenarios"
    fx_rates: str = "market-fx-rates"
    limit_alerts: str = "market-limit-alerts"
    market_dead_letters: str = "market-dead-letters"
    market_control: str = "market-control"
    live: str = "market-live"
    partitions: Positive = 2
    replication: Positive = 1

    def name(self, topic: str) -> str:
        """Return the full name of the topic in field `topic`, as in `name("alerts")`."""
        return f"{self.prefix}{getattr(self, topic)}"


class KafkaSettings(_Section):
    """Where Kafka is and how to talk to it; security settings reach every client and the job."""

    bootstrap_servers: str | None = None
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] | None = None
    username: str | None = None
    password: SecretStr | None = None
    ca_file: Path | None = None
    certificate_file: Path | None = None
    key_file: Path | None = None
    key_password: SecretStr | None = None
    verify_hostname: bool = True
    topics: TopicSettings = TopicSettings()

    @model_validator(mode="after")
    def _sasl_is_complete(self) -> KafkaSettings:
        if self.security_protocol.startswith("SASL") and (
            self.sasl_mechanism is None or self.username is None or self.password is None
        ):
            msg = (
                f"security_protocol {self.security_protocol!r} needs sasl_mechanism, username and "
                "password"
            )
            raise ValueError(msg)
        return self


class RedisSettings(_Section):
    """Where Redis is (`redis://` or `rediss://`), its user, its TLS, and the lookup policy."""

    url: SecretStr | None = None
    username: str | None = None
    password: SecretStr | None = None
    ca_file: Path | None = None
    certificate_file: Path | None = None
    key_file: Path | None = None
    verify_hostname: bool = True
    timeout_ms: Positive = 500
    when_down: Literal["wait", "score_without"] = "wait"
    cache_entries: Positive = 200_000
    cache_ttl_ms: Positive = 60_000


class ClickHouseSettings(_Section):
    """Where ClickHouse's HTTP interface is, its user and TLS, and how rows are gathered.

    `writers` tasks insert, each once a gathering, and gather the next meanwhile. An insert costs
    ClickHouse tens of milliseconds of CPU however small it is; a checkpoint waits for the last one,
    so one that takes long holds the stream up.
    """

    url: str | None = None
    username: str = "default"
    password: SecretStr | None = None
    database: str = "riskstream"
    ca_file: Path | None = None
    verify_certificate: bool = True
    timeout_ms: Positive = 30_000
    gather_ms: Positive = 1_000
    gather_rows: Positive = 32_000
    writers: Positive = 1


LONGEST_RESTART_MS: Final = 30_000
"""A killed part is back and its tasks run again well within this (docs/reliability.md)."""


class FlinkSettings(_Section):
    """Which cluster runs the jobs, and the shape of a job on it.

    `shards` is fixed for the life of a job's state; any parallelism that divides it is balanced.
    Each shard costs calls into Python of its own, so there are as many as the highest parallelism
    that the job shall ever have, and no more: one by default, which is what a machine of two cores
    is best served by. With `stage_slots` "own" the tasks of a stage have slots of their own, so
    that two stages can run in two TaskManagers, each with an interpreter lock of its own; a job
    then needs `parallelism` slots for each of its two stages, "shared" half as many. The local
    stack puts a job of one task a stage into one TaskManager, and others into all.
    `source_parallelism` tasks read Kafka: one hands on hundreds of thousands of events a second,
    and more than one share the partitions.
    An exactly-once job that gets no checkpoint through begins again from its last one before
    `transaction_timeout_ms` is over: what stood in a transaction that the broker ended meanwhile
    would be gone. So it must cover a checkpoint that fails, and the longest restart.
    """

    rest_url: str | None = None
    parallelism: Positive = 1
    shards: Positive = 1
    stage_slots: Literal["own", "shared"] = "own"
    source_parallelism: Positive = 1
    max_parallelism: Positive = 128
    execution_mode: Literal["thread", "process"] = "thread"
    checkpoint_interval_ms: Positive = 10_000
    checkpoint_timeout_ms: Positive = 60_000
    checkpoint_directory: str | None = None
    delivery: Literal["at-least-once", "exactly-once"] = "at-least-once"
    transaction_timeout_ms: Positive = 10 * 60_000
    batch_ms: Positive = 5
    batch_bytes: Positive = 256 * 1024
    max_event_time_drift_ms: Positive = 12 * 3_600_000
    idle_partition_ms: Positive = 250

    @property
    def tolerable_failed_checkpoints(self) -> int:
        """Return how many checkpoints in a row may fail before the job begins again from the last.

        An exactly-once job writes its alerts into a transaction, which is committed with the
        checkpoint it belongs to or with a later one. Should that be later than the transaction
        lives, Kafka has dropped the alerts and Flink passes over it.
        """
        if self.delivery != "exactly-once":
            # While a dependency is away a stage waits and no barrier passes: that is back-pressure,
            # and a restart would not end it.
            return 1_000_000
        usable = self.transaction_timeout_ms - self.checkpoint_interval_ms - LONGEST_RESTART_MS
        return usable // (self.checkpoint_timeout_ms + self.checkpoint_interval_ms) - 1

    @model_validator(mode="after")
    def _transactions_outlive_checkpoints(self) -> FlinkSettings:
        if self.tolerable_failed_checkpoints < 0:
            least = self.checkpoint_timeout_ms + 2 * self.checkpoint_interval_ms
            msg = (
                f"transaction_timeout_ms must be at least {least + LONGEST_RESTART_MS} with "
                f"exactly-once delivery (checkpoint_timeout_ms, checkpoint_interval_ms twice and "
                f"{LONGEST_RESTART_MS} for a restart), was {self.transaction_timeout_ms}: alerts "
                "in a transaction that ends before its checkpoint are gone"
            )
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _shards_divide(self) -> FlinkSettings:
        if self.shards % self.parallelism:
            was = f"{self.shards} and {self.parallelism}"
            msg = f"shards must be a multiple of parallelism, was {was}"
            raise ValueError(msg)
        if self.shards > self.max_parallelism:
            msg = (
                f"shards must not exceed max_parallelism {self.max_parallelism}, was {self.shards}"
            )
            raise ValueError(msg)
        return self


class SchemaSettings(_Section):
    """Which registry resolves schema ids: a folder (the default) or a Confluent-compatible URL.

    `token_key` is the secret that personal fields are tokenised with, 16 bytes or more; every job
    and producer that joins on tokens needs the same one.
    """

    registry: str = "file:schemas/registry"
    username: str | None = None
    password: SecretStr | None = None
    ca_file: Path | None = None
    token_key: SecretStr | None = None


class ModelSettings(_Section):
    """Where models are kept (a folder or any fsspec URL) and what a candidate may cost.

    Commands let the job load a model for `prepare_ms` before they order it into use.
    """

    registry: str = "file:.riskstream/models"
    latency_budget_us: Positive = 50_000
    prepare_ms: Annotated[int, Field(ge=0)] = 2_000
    mlflow_uri: str | None = None


class FraudSettings(_Section):
    """Decision thresholds (None: those that come with the model) and limits of the fraud job."""

    review_threshold: Annotated[float, Field(ge=0, le=1)] | None = None
    block_threshold: Annotated[float, Field(ge=0, le=1)] | None = None
    max_amount_minor: Positive = 100_000_000_00
    max_record_bytes: Positive = 64 * 1024
    max_string_bytes: Positive = 4 * 1024
    max_future_ms: Positive = 24 * 3_600_000
    rules_file: Path = Path("jobs/fraud/rules.yaml")
    metrics_port: Port = 0


class MarketRiskSettings(_Section):
    """Bars, marks, VaR and limits of the market risk job.

    Risk is recomputed when a position changed or a price moved by `material_move` since the last
    time. Measures and limits go by the plain method; `var_methods` are those that `risk_var` and
    the daily back-tests hold. `breach_model` is a version, or a name whose newest version counts,
    in the model registry; empty: limits have no chance of a breach. With `live` changed positions
    and fills are published for the live pages, too, which then need not wait for ClickHouse.
    """

    base_currency: str = "USD"
    bar_intervals_ms: tuple[Positive, ...] = (1_000, 60_000, 300_000)
    retained_bars: Annotated[int, Field(ge=60)] = 64
    mark_at: Literal["mid", "last"] = "mid"
    stale_ms: Positive = 5_000
    jump_sigmas: Annotated[float, Field(gt=0)] = 8.0
    spike_multiple: Annotated[float, Field(gt=1)] = 20.0
    levels: tuple[Annotated[float, Field(gt=0.5, lt=1)], ...] = (0.95, 0.975, 0.99)
    history: Annotated[int, Field(ge=20)] = 500
    material_move: Annotated[float, Field(ge=0)] = 0.0001
    equity_minor: Positive = 100_000_000_00
    retained_fill_ids: Positive = 1_000_000
    var_methods: tuple[
        Literal["plain", "age", "volatility", "ewma", "montecarlo", "liquidity"], ...
    ] = ("plain", "age", "volatility", "ewma", "montecarlo", "liquidity")
    monte_carlo_scenarios: Annotated[int, Field(ge=2, le=100_000)] = 1_000
    breach_model: str = "breach-default"
    live: bool = True


class LocalSettings(_Section):
    """The local stack: a port of 0 finds a free one and keeps it across restarts.

    `flink_metrics` turns Flink's Prometheus reporter on; it is off because that reporter listens on
    every interface and cannot be told otherwise. `high_availability` adds a ZooKeeper server, so
    that jobs outlive a killed JobManager. `rocksdb_in_memory` keeps RocksDB's working files, as
    large as the job's whole state, in `/dev/shm` where there is one; checkpoints lie in `home`.
    """

    kafka_port: Port = 0
    redis_port: Port = 0
    clickhouse_port: Port = 0
    flink_port: Port = 0
    zookeeper_port: Port = 0
    task_managers: Annotated[int, Field(ge=1, le=64)] = 2
    task_manager_memory_mb: Annotated[int, Field(ge=768)] = 2048
    slots_per_task_manager: Annotated[int, Field(ge=1, le=16)] = 2
    job_manager_memory_mb: Annotated[int, Field(ge=512)] = 1024
    kafka_memory_mb: Annotated[int, Field(ge=256)] = 768
    redis_memory_mb: Annotated[int, Field(ge=16)] = 1024
    start_timeout_seconds: Positive = 120
    high_availability: bool = False
    flink_metrics: bool = False
    rocksdb_in_memory: bool = True


class Settings(_Section):
    """The whole tree; `home` holds the local stack's state, relative to the repository."""

    home: Path = Path(".riskstream")
    kafka: KafkaSettings = KafkaSettings()
    redis: RedisSettings = RedisSettings()
    clickhouse: ClickHouseSettings = ClickHouseSettings()
    flink: FlinkSettings = FlinkSettings()
    schemas: SchemaSettings = SchemaSettings()
    models: ModelSettings = ModelSettings()
    fraud: FraudSettings = FraudSettings()
    market_risk: MarketRiskSettings = MarketRiskSettings()
    local: LocalSettings = LocalSettings()

    def masked_json(self) -> str:
        """Return the tree as JSON with every secret masked."""
        return self.model_dump_json(indent=2)

    def with_secrets_json(self) -> str:
        """Return the tree as JSON with its secrets in the clear, for a file only we can read."""
        return json.dumps(_revealed(self.model_dump(mode="python")))

    def fingerprint(self) -> str:
        """Return a short hash of the masked tree, printed at start-up and sent with metrics."""
        return hashlib.sha256(self.masked_json().encode()).hexdigest()[:12]


def load_settings(
    file: Path | None = None,
    environment: Mapping[str, str] | None = None,
    overrides: Sequence[str] = (),
) -> Settings:
    """Build the settings from file < environment < `KEY=VALUE` overrides.

    Raises:
        ConfigurationError: with every unknown key and every wrong value in one message.
    """
    tree: dict[str, Any] = {}
    problems: list[str] = []
    if file is not None:
        try:
            tree = tomllib.loads(file.read_text(encoding="utf-8"))
        except (OSError, tomllib.TOMLDecodeError) as e:
            problems.append(f"reading configuration file {str(file)!r}: {e}")
    for name, value in sorted((os.environ if environment is None else environment).items()):
        path = name.removeprefix(ENVIRONMENT_PREFIX).lower().split("__")
        # RISKSTREAM_CONFIG and the like are read by the command itself; settings have a section.
        if name.startswith(ENVIRONMENT_PREFIX) and (len(path) > 1 or path == ["home"]):
            _put(tree, path, value, f"environment variable {name}", problems)
    for override in overrides:
        key, separator, value = override.partition("=")
        if not separator:
            problems.append(f"--set {override!r}: expected KEY=VALUE, as in flink.parallelism=2")
            continue
        _put(tree, key.strip().split("."), value, f"--set {key}", problems)
    try:
        settings = Settings.model_validate(tree)
    except ValidationError as e:
        problems += [_explain(error) for error in e.errors(include_url=False)]
    if problems:
        listed = "\n".join(f"  - {problem}" for problem in problems)
        msg = f"reading the settings found {len(problems)} mistake(s):\n{listed}"
        raise ConfigurationError(msg)
    return settings


def _revealed(value: Any) -> Any:
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, dict):
        return {key: _revealed(item) for key, item in value.items()}
    return value


def _put(
    tree: dict[str, Any], path: list[str], value: str, source: str, problems: list[str]
) -> None:
    node = tree
    for step in path[:-1]:
        child = node.setdefault(step, {})
        if not isinstance(child, dict):
            problems.append(f"{source}: {'.'.join(path)!r} lies below a value, not a section")
            return
        node = child
    node[path[-1]] = value


def _explain(error: Any) -> str:
    where = ".".join(str(step) for step in error["loc"]) or "settings"
    if error["type"] == "extra_forbidden":
        return f"{where}: unknown key; `riskstream config` lists the known ones"
    # The offending value of a secret must not print; pydantic keeps it in `input`.
    secret = any(word in where for word in ("password", "redis.url"))
    was = (
        ""
        if secret or isinstance(error["input"], dict | BaseModel)
        else f", was {error['input']!r}"
    )
    return f"{where}: {error['msg'][0].lower()}{error['msg'][1:]}{was}"
