"""What a model swap costs a running job: decision latency before and after, lost and doubled rows.

Hot path: Kafka -> Flink -> decision, at a steady open-loop rate of simulated payments, everything
on one machine. The champion is replaced through `riskstream models activate` (prepared first) and
later through a bare control record (loaded by the shard that meets it). Latency is decision time
minus Kafka timestamp, from ClickHouse; each figure is over ten seconds: up to the swap, and from
the swap on.

    python -m benchmarks.swap --rate 1000 --out benchmarks/results/swap.json
"""

from __future__ import annotations

import json
import os
import platform
import threading
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import click
import numpy as np
from click.testing import CliRunner

from connectors.clickhouse import ClickHouseClient
from connectors.control import publish_control
from connectors.kafka import librdkafka_config
from connectors.local.stack import LocalStack, resolved_settings
from connectors.producers.labels import LabelPolicy
from connectors.producers.pace import SystemClock
from connectors.producers.publisher import KafkaPublisher
from connectors.producers.replay import replay
from connectors.producers.routes import label_route, transaction_route
from connectors.producers.simulator import Population, Simulation
from connectors.settings import Settings, load_settings
from jobs.cli.main import cli
from jobs.demo import StagedPace
from jobs.fraud.accounts import audit_fraud
from jobs.submission import submit_job
from models.control import make_control
from models.kinds import fit, kind_named
from models.manifest import Golden, Manifest, ModelInput, ModelOutput, sha256_of
from models.registry import ModelFolder, Registry, default_version
from models.session import open_session

__all__ = ["main"]

WINDOW_MS: Final = 10_000
WARM_SECONDS: Final = 20
SEED: Final = 3


def _candidate(registry: Registry, name: str, seed: int) -> str:
    """Register a LightGBM model of the default parameters (200 trees) on the job's features."""
    known = registry.manifest(default_version())
    sample = registry.reference(known)
    if sample is None:
        msg = "the default model has no reference sample"
        raise click.ClickException(msg)
    rows = sample[:, :-1]
    fraud = sample[:, -1] > np.quantile(sample[:, -1], 0.97)
    fitted = fit(kind_named("lightgbm"), rows, fraud, seed, {"min_child_samples": 5})
    golden = rows[:32]
    outputs = open_session(fitted.onnx).run(None, {"features": golden})[0].reshape(-1)
    manifest = Manifest(
        name=name,
        kind="lightgbm",
        created_at_ms=seed,
        sha256=sha256_of(fitted.onnx),
        size_bytes=len(fitted.onnx),
        feature_set_version=known.feature_set_version,
        features=known.features,
        input=ModelInput(name="features"),
        output=ModelOutput(name="probability"),
        golden=Golden.of(golden.astype(np.float64), outputs.astype(np.float64)),
    )
    return registry.register(ModelFolder(manifest, fitted.onnx, {}))


def _latency(client: ClickHouseClient, first_ms: int, end_ms: int) -> dict[str, float]:
    row = client.rows(
        "SELECT quantilesExact(0.5, 0.99, 1)(decided_at_ms - published_at_ms) AS q, count() AS n "
        "FROM scored_transactions WHERE published_at_ms >= {first:Int64} "
        "AND published_at_ms < {end:Int64}",
        {"first": first_ms, "end": end_ms},
    )[0]
    p50, p99, worst = (float(value) for value in row["q"])
    return {"p50": p50, "p99": p99, "max": worst, "events": int(row["n"])}


def _swap(client: ClickHouseClient, settings: Settings, version: str) -> dict[str, Any]:
    """Wait until every shard has applied the activation and compare both sides of it."""
    deadline = time.monotonic() + 60
    applied: list[int] = []
    while len(applied) < settings.flink.shards and time.monotonic() < deadline:
        time.sleep(0.5)
        applied = [
            int(row["applied_at_ms"])
            for row in client.rows(
                "SELECT applied_at_ms FROM control_outcomes FINAL "
                "WHERE kind = 'activate_model' AND subject = {subject:String}",
                {"subject": version},
            )
        ]
    time.sleep(WINDOW_MS / 1000 + 5)
    at = min(applied)
    before = _latency(client, at - WINDOW_MS, at)
    after = _latency(client, at, at + WINDOW_MS)
    return {
        "shards": len(applied),
        "shards_apart_ms": max(applied) - at,
        "before_ms": before,
        "after_ms": after,
        "p99_rise_ms": after["p99"] - before["p99"],
    }


def _measure(settings: Settings, rate: float, seconds: int) -> dict[str, Any]:
    registry = Registry(settings.models.registry)
    first, second = (_candidate(registry, f"swap-{seed}", seed) for seed in (1, 2))
    submit_job("fraud", settings)
    client = ClickHouseClient(settings.clickhouse)
    population = Population(seed=SEED, customers=2_000, terminals=2_000)
    source = Simulation(population, limit=int(rate * seconds))
    sent: list[int] = []

    def produce() -> None:
        summary = replay(
            source,
            KafkaPublisher(librdkafka_config(settings.kafka)),
            StagedPace(0, rate, lambda _: None),
            LabelPolicy("none", 0),
            SystemClock(),
            lambda _: None,
            transactions=transaction_route(settings),
            label_route=label_route(settings),
        )
        sent.append(summary.transactions)

    thread = threading.Thread(target=produce)
    thread.start()
    time.sleep(WARM_SECONDS)
    command = [f"--set=home={settings.home}", f"--set=models.registry={settings.models.registry}"]
    answer = CliRunner().invoke(cli, [*command, "models", "activate", first])
    if answer.exit_code:
        raise click.ClickException(answer.output)
    prepared = _swap(client, settings, first)
    order = make_control("activate_model", second, "benchmark", time.time_ns() // 1_000_000)
    publish_control(settings, order.to_record())
    bare = _swap(client, settings, second)
    thread.join()
    deadline = time.monotonic() + 120
    while not (verdict := audit_fraud(settings)).clean and time.monotonic() < deadline:
        time.sleep(1)
    return {
        "rate": rate,
        "events": sent[0],
        "prepared": prepared,
        "loaded_in_line": bare,
        "scored": verdict.total("scored"),
        "missing": verdict.total("missing"),
        "doubled": verdict.total("doubled"),
        "audit_clean": verdict.clean,
    }


@click.command()
@click.option("--rate", default=1_000.0, show_default=True, help="Payments a second.")
@click.option("--seconds", default=75, show_default=True, help="How long they come.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path))
def main(rate: float, seconds: int, out: Path | None) -> None:
    """Start a stack, swap models under load and print what it cost."""
    with TemporaryDirectory(prefix="riskstream-swap-") as home:
        base = load_settings(
            environment={},
            overrides=[f"home={home}", f"models.registry=file:{home}/models"],
        )
        stack = LocalStack(base)
        stack.up()
        try:
            load_before = os.getloadavg()[0]
            result = _measure(resolved_settings(base), rate, seconds)
        finally:
            stack.down(purge=True)
    result |= {
        "load_average": [load_before, os.getloadavg()[0]],
        "cores": os.cpu_count(),
        "machine": f"{platform.machine()}, {platform.system()}",
        "python": platform.python_version(),
        "seed": SEED,
    }
    text = json.dumps(result, indent=1)
    click.echo(text)
    if out is not None:
        out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
