"""`riskstream models retrain` and `promote`: a candidate shadows until it has earned its place."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from connectors.settings import Settings
from jobs.cli._models_drift import DURATION
from jobs.cli._models_train import bars
from jobs.cli.context import settings_of

__all__ = ["promote", "retrain"]


@click.command()
@click.argument(
    "file", required=False, type=click.Path(exists=True, dir_okay=False, path_type=Path)
)
@click.option("--train-days", type=click.IntRange(1), default=7, show_default=True)
@click.option("--delay-days", type=click.IntRange(0), default=7, show_default=True)
@click.option("--test-days", type=click.IntRange(1), default=7, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--trials", type=click.IntRange(0), default=0, show_default=True)
@click.option("--champion", help="Model to beat; the champion of this registry by default.")
@click.option("--every", type=DURATION, help="Again and again, this long apart, as in 1d.")
@click.option(
    "--on-drift",
    is_flag=True,
    help="Wait for an alert about the champion on the drift topic; again after each candidate.",
)
@click.option("--times", type=click.IntRange(1), help="With --every or --on-drift: stop after.")
@click.option("--dry-run", is_flag=True, help="Train, compare and register; publish nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a candidate.")
@click.pass_context
def retrain(
    ctx: click.Context,
    file: Path | None,
    train_days: int,
    delay_days: int,
    test_days: int,
    seed: int,
    trials: int,
    champion: str | None,
    every: int | None,
    on_drift: bool,
    times: int | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Train a candidate of the champion's kind on the newest days and let it shadow.

    Without FILE it learns from ClickHouse: the features that the job stored with every payment and
    the labels that came. The candidate and the champion score the same test days, which neither
    learned from; the difference in average precision is told with its interval. `promote` puts the
    candidate in the champion's place when it is better on live rows.

    Example: riskstream models retrain --on-drift
    """
    from models.registry import Registry

    if every is not None and on_drift:
        msg = "--every and --on-drift: choose one"
        raise click.UsageError(msg)
    settings = settings_of(ctx)
    if file is None or on_drift:
        from connectors.local.stack import resolved_settings

        settings = resolved_settings(settings)
    registry = Registry(settings.models.registry)
    moments = _moments(settings, registry, every, on_drift=on_drift, champion=champion)
    for done, _ in enumerate(moments, start=1):
        opponent = registry.resolve(champion) if champion else registry.champion()
        answer = _candidate(
            settings,
            registry,
            opponent,
            file,
            days=(train_days, delay_days, test_days),
            seed=seed,
            trials=trials,
            dry_run=dry_run,
        )
        _print(answer, as_json)
        if done == times:
            return


def _moments(
    settings: Settings, registry: Any, every: int | None, *, on_drift: bool, champion: str | None
) -> Iterator[None]:
    """Yield when it is time: at once and then on schedule, or at each new alert of the champion."""
    if not on_drift:
        yield
        while every is not None:
            time.sleep(every / 1000)
            yield
        return
    from connectors.readers import TopicReader
    from schemas.avro import RecordDecoder
    from schemas.registry import open_registry

    decoder = RecordDecoder(open_registry(settings.schemas))
    while True:
        # From the end: alerts that came while a candidate was trained are about the same drift.
        reader = TopicReader(settings.kafka, settings.kafka.topics.name("drift_alerts"))
        try:
            for record in reader.follow(from_beginning=False, idle_seconds=None):
                alert = decoder.decode(record.value)
                about = registry.resolve(champion) if champion else registry.champion()
                if alert["model_version"] == about:
                    click.echo(f"drift of {about}: {alert['reasons'][0]['text']}", err=True)
                    break
        finally:
            reader.close()
        yield


def _candidate(
    settings: Settings,
    registry: Any,
    opponent: str,
    file: Path | None,
    *,
    days: tuple[int, int, int],
    seed: int,
    trials: int,
    dry_run: bool,
) -> dict[str, Any]:
    from jobs.cli._models_registry import publish_order
    from jobs.fraud.features import FRAUD_FEATURES
    from models.retraining import retrain as run_retraining

    with bars() as tell:
        result = run_retraining(
            _training_data(settings, file, sum(days)),
            registry,
            opponent,
            FRAUD_FEATURES.version,
            days=days,
            seed=seed,
            trials=trials,
            created_at_ms=time.time_ns() // 1_000_000,
            source=file.name if file else "rows scored by the running job",
            progress=tell,
        )
    answer = result.to_dict()
    if result.version == opponent:
        return {**answer, "control": None}
    control = publish_order(settings, registry, "shadow_model", result.version, {}, dry_run=dry_run)
    return {**answer, "control": control.to_record(), "published": not dry_run}


def _training_data(settings: Settings, file: Path | None, days: int) -> Any:
    import numpy as np

    from jobs.fraud.features import FRAUD_FEATURES
    from models.training import TrainingData, prepare

    if file is not None:
        from jobs.windows.offline import build_features

        table = build_features(file, FRAUD_FEATURES)
        return prepare(table, table.customer_id, table.is_fraud)
    from connectors.drift_store import DriftStore
    from connectors.live_rows import live_rows
    from models.errors import ModelError
    from models.protocol import DAY_MS

    newest = DriftStore(settings.clickhouse).newest_event_ms()
    if newest is None:
        msg = "retraining from ClickHouse: the job has not scored anything yet; give FILE"
        raise ModelError(msg)
    first = (newest // DAY_MS + 1 - days) * DAY_MS
    rows = live_rows(settings.clickhouse, FRAUD_FEATURES.names, FRAUD_FEATURES.version, first)
    return TrainingData(
        names=FRAUD_FEATURES.names,
        rows=np.ascontiguousarray(rows.features, np.float32),
        is_fraud=rows.is_fraud,
        customer_codes=np.unique(rows.customer, return_inverse=True)[1].astype(np.int64),
        event_time_ms=rows.event_time_ms,
        amount_minor=rows.amount_minor,
    )


def _print(answer: dict[str, Any], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(answer))
        return
    compared = answer["comparison"]
    click.echo(
        f"{answer['version']}: average precision {compared['candidate']:.4f}, champion "
        f"{answer['champion']} {compared['champion']:.4f}, difference {compared['low']:+.4f} to "
        f"{compared['high']:+.4f} (95 %)"
    )
    if answer["control"] is None:
        click.echo("the candidate is the champion again; nothing to publish", err=True)
    else:
        click.echo(f"next: riskstream models promote {answer['version']}", err=True)


@click.command()
@click.argument("model")
@click.option("--champion", help="Model to beat; the champion of this registry by default.")
@click.option("--label-delay", type=DURATION, default="7d", show_default=True)
@click.option(
    "--least-frauds",
    type=click.IntRange(1),
    default=30,
    show_default=True,
    help="With fewer labelled frauds there is no telling who is better.",
)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--dry-run", is_flag=True, help="Judge only; activate nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def promote(
    ctx: click.Context,
    model: str,
    champion: str | None,
    label_delay: int,
    least_frauds: int,
    seed: int,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Make the shadow MODEL champion if it beats the champion on the live rows both scored.

    Only rows whose labels are in count. It is better when the lower end of the 95 % interval of the
    difference in average precision (resampled customers) is above zero. Exit 1 when it is not.

    Example: riskstream models promote fraud-lightgbm
    """
    import numpy as np

    from connectors.live_rows import scored_pairs
    from connectors.local.stack import resolved_settings
    from jobs.cli._models_registry import check_model, publish_order
    from models.registry import Registry
    from models.retraining import compare

    settings = resolved_settings(settings_of(ctx))
    registry = Registry(settings.models.registry)
    version = registry.resolve(model)
    opponent = registry.resolve(champion) if champion else registry.champion()
    check_model(settings, registry, version)
    pairs = scored_pairs(settings.clickhouse, opponent, version, label_delay)
    frauds = int(pairs.is_fraud.sum())
    answer: dict[str, Any] = {
        "version": version,
        "champion": opponent,
        "rows": len(pairs.shadow),
        "frauds": frauds,
        "promoted": False,
    }
    if frauds < least_frauds:
        answer["reason"] = f"{frauds} labelled frauds that both scored, needed {least_frauds}"
    else:
        codes = np.unique(pairs.customer, return_inverse=True)[1].astype(np.int64)
        compared = compare(pairs.is_fraud, pairs.shadow, pairs.champion, codes, seed)
        answer |= {
            "average_precision": compared.candidate,
            "champion_average_precision": compared.champion,
            "difference_interval": [compared.low, compared.high],
        }
        answer["reason"] = (
            f"average precision {compared.candidate:.4f} against {compared.champion:.4f}, "
            f"difference {compared.low:+.4f} to {compared.high:+.4f} (95 %)"
        )
        if compared.better:
            publish_order(settings, registry, "activate_model", version, {}, dry_run=dry_run)
            answer["promoted"] = not dry_run
        answer["better"] = compared.better
    if as_json:
        click.echo(json.dumps(answer))
    else:
        outcome = "promoted" if answer["promoted"] else "not promoted"
        click.echo(f"{version}: {outcome}, {answer['reason']} over {len(pairs.shadow):,} rows")
    ctx.exit(0 if answer.get("better") else 1)
