"""The servers of a benchmark: one Kafka, Redis and ClickHouse for all, a fresh Flink for each.

Every contestant gets topics with its own prefix and a database of its own, so that none meets
another's rows, and all meet the same broker, Redis and ClickHouse.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, Literal

import orjson

from benchmarks.processes import tree
from benchmarks.workload import Workload
from connectors.clickhouse import insert_statement
from connectors.local.flink_lib import ROOT
from connectors.local.plan import Plan
from connectors.local.stack import LocalStack, resolved_settings
from connectors.profile_loading import load_profiles
from connectors.profiles import redis_client
from connectors.settings import Settings
from connectors.tables import SCORED_TABLE, scored_layout
from jobs.fraud.features import FRAUD_FEATURES
from jobs.fraud.rule_columns import rule_catalogue
from jobs.rules.ruleset import RuleSet
from models.registry import Registry, default_version
from schemas.contract import contract
from schemas.registry import open_registry, value_subject

__all__ = ["RECORD_TASKS", "FlinkStack", "Services", "job_document", "plain_schema"]

# Never asked: an address that is set keeps the stack from starting Flink itself.
NO_FLINK: Final = "http://127.0.0.1:1"
# Of each operator, in a job that handles record by record: as many as there are cores. Ours takes
# one task a stage (docs/decisions/0006).
RECORD_TASKS: Final = 2
# In an insert at most: who waits for inserts is better off with few large ones. Ours stores while
# it gathers, and has smaller ones (docs/decisions/0008-store-beside-deciding.md).
GATHERED_ROWS: Final = 50_000
# A second of load at 64,000/s holds five days of event time: half a day, what a live job allows one
# partition to be ahead of another, is a tenth of a second, and whoever is ahead is paused. Windows
# of terminals end a week back, so that nobody's results depend on it.
DRIFT_MS: Final = 3 * 86_400_000
ONE_COMPILER: Final = "-XX:TieredStopAtLevel=1"
# What a contestant inserts, in the order in which the Java one packs it. Our own rows have more.
NUMBERS: Final = (
    *("event_time_ms", "amount_minor", "channel", "score", "decision", "flags"),
    *("kafka_partition", "kafka_offset", "published_at_ms", "ingested_at_ms", "decided_at_ms"),
)
TEXTS: Final = (
    *("event_id", "customer_id", "terminal_id", "merchant_id", "currency", "country", "tenant"),
    *("model_version", "rule_set_version", "feature_set_version", "kafka_topic", "rules_fired"),
)


class _Servers(LocalStack):
    """Kafka as where it runs for months: with both compilers of the JVM.

    The local stack's has the quick one only, which is better for the first minute.
    """

    def _plan(self, document: dict[str, Any] | None) -> Plan:
        return _with_both_compilers(super()._plan(document), "kafka")


class Services:
    """Kafka, Redis with the workload's profiles, and ClickHouse, below one folder."""

    def __init__(self, settings: Settings) -> None:
        self.home = (ROOT / settings.home).resolve()
        tree = settings.model_dump()
        tree["flink"]["rest_url"] = NO_FLINK
        tree["flink"]["max_event_time_drift_ms"] = DRIFT_MS
        tree["home"] = self.home / "services"
        self._settings = Settings.model_validate(tree)
        self._stack = _Servers(self._settings)

    def up(self, workload: Workload) -> None:
        """Start from nothing and load the profiles."""
        self._stack.down(purge=True)
        self._stack.up(lambda part: None)
        client = redis_client(resolved_settings(self._settings).redis)
        for profiles in workload.profiles():
            load_profiles(client, profiles)

    def down(self) -> None:
        """Stop all and delete what was stored."""
        self._stack.down(purge=True)

    def processes(self) -> dict[str, list[int]]:
        """Return the processes of each server by name."""
        return {one.name: tree(one.pid) for one in self._stack.status() if one.pid is not None}

    def settings_of(self, contestant: str, flink_url: str | None = None) -> Settings:
        """Return settings with the addresses, and names of the contestant's own."""
        ready = resolved_settings(self._settings).model_dump()
        word = contestant.replace("-", "_")
        ready["kafka"]["topics"]["prefix"] = f"{contestant}-"
        ready["clickhouse"]["database"] = f"bench_{word}"
        ready["home"] = self.home / contestant
        ready["flink"]["rest_url"] = flink_url
        return Settings.model_validate(ready)


class FlinkStack(LocalStack):
    """A supervised Flink cluster beside servers that run already.

    `compilers` "all" lets the JVM use both of its compilers (a job in Java needs them); "quick" is
    what riskstream starts its TaskManagers with. `jars` come last on the class path.
    """

    def __init__(
        self,
        settings: Settings,
        compilers: Literal["quick", "all"] = "quick",
        jars: Sequence[Path] = (),
    ) -> None:
        super().__init__(settings)
        self._compilers = compilers
        self._jars = [str(jar) for jar in jars]

    def _plan(self, document: dict[str, Any] | None) -> Plan:
        plan = super()._plan(document)
        if self._compilers == "all":
            # The JobManager only builds the graph, for which it needs the classes.
            plan = _with_both_compilers(plan, "taskmanager")
        parts = tuple(replace(part, argv=self._with_jars(part.argv)) for part in plan.parts)
        return replace(plan, parts=parts)

    def _with_jars(self, argv: tuple[str, ...]) -> tuple[str, ...]:
        words = list(argv)
        at = words.index("-cp") + 1
        words[at] = ":".join([words[at], *self._jars])
        return tuple(words)


def _with_both_compilers(plan: Plan, names: str) -> Plan:
    """Return the plan with both of the JVM's compilers in the parts whose names begin so."""
    return replace(
        plan,
        parts=tuple(
            replace(part, argv=tuple(word for word in part.argv if word != ONE_COMPILER))
            if part.name.startswith(names)
            else part
            for part in plan.parts
        ),
    )


def plain_schema(text: str) -> str:
    """Return an Avro schema without logical types, which only make objects to be taken apart."""
    return json.dumps(_plain(orjson.loads(text)))


def _plain(node: Any) -> Any:
    if isinstance(node, dict):
        return {name: _plain(value) for name, value in node.items() if name != "logicalType"}
    return [_plain(value) for value in node] if isinstance(node, list) else node


def job_document(settings: Settings) -> dict[str, Any]:
    """Return what `contestants.payments.Job` and the Java contestant read.

    Writes the model below the settings' home; asks no server.
    """
    version = default_version()
    folder = settings.home / "model"
    folder.mkdir(parents=True, exist_ok=True)
    manifest, data = Registry(settings.models.registry).load(version)
    model = folder / "model.onnx"
    model.write_bytes(data)
    if list(manifest.features) != list(FRAUD_FEATURES.names):
        msg = f"model {version!r} takes {manifest.features!r}; contestants feed all features"
        raise ValueError(msg)
    topics = settings.kafka.topics
    alert_id = open_registry(settings.schemas).register(
        value_subject(topics.alerts), contract("alert")
    )
    rules = RuleSet.load(ROOT / settings.fraud.rules_file, rule_catalogue())
    types = scored_layout(FRAUD_FEATURES.names).types
    assert settings.redis.url is not None
    assert manifest.thresholds is not None
    return {
        "kafka": settings.kafka.bootstrap_servers,
        "group": f"{topics.prefix}bench",
        "transactions": topics.name("transactions"),
        "alerts": topics.name("alerts"),
        "redis": settings.redis.url.get_secret_value(),
        "clickhouse": settings.clickhouse.url,
        "database": settings.clickhouse.database,
        # As our own writer does it: the same load on ClickHouse for everyone.
        "insert": insert_statement(
            SCORED_TABLE,
            {name: types[name] for name in (*NUMBERS, *FRAUD_FEATURES.names, *TEXTS)},
        ),
        "table": SCORED_TABLE,
        "model": str(model),
        "model_input": manifest.input.name,
        "model_output": manifest.output.name,
        "review": manifest.thresholds.review,
        "block": manifest.thresholds.block,
        "model_version": version,
        "rule_set_version": rules.version,
        "feature_set_version": FRAUD_FEATURES.version,
        "alert_schema_id": alert_id,
        "transaction_schema": plain_schema(contract("card_transaction")),
        "alert_schema": plain_schema(contract("alert")),
        "parallelism": RECORD_TASKS,
        "cache_entries": settings.redis.cache_entries,
        "cache_ttl_ms": settings.redis.cache_ttl_ms,
        "gather_ms": settings.clickhouse.gather_ms,
        "gather_rows": GATHERED_ROWS,
        "checkpoint_ms": settings.flink.checkpoint_interval_ms,
        "checkpoints": f"file://{settings.home}/checkpoints",
        "drift_ms": settings.flink.max_event_time_drift_ms,
        "home": str(settings.home),
    }
