"""`riskstream models train`."""

from __future__ import annotations

import datetime as dt
import json
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from jobs.cli.context import settings_of

__all__ = ["bars", "train"]

KIND_NAMES = ("logistic", "lightgbm", "xgboost", "random_forest", "isolation_forest")


def _dated(value: str) -> dt.date:
    try:
        return dt.date.fromisoformat(value)
    except ValueError as e:
        msg = f"--train-start {value!r}: expected a date such as 2018-07-04"
        raise click.UsageError(msg) from e


def _named(renamed: tuple[str, ...]) -> dict[str, str]:
    wrong = [item for item in renamed if "=" not in item]
    if wrong:
        msg = f"expected NAME=COLUMN, was {wrong[0]!r}"
        raise click.BadParameter(msg, param_hint="--map")
    return dict(item.split("=", 1) for item in renamed)


@contextmanager
def bars() -> Iterator[Any]:
    """Yield a progress callback: bars on a terminal's stderr, silence elsewhere."""
    if not sys.stderr.isatty():
        yield lambda stage, done, total: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True)) as bars:
        tasks: dict[str, Any] = {}

        def tell(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total)
            bars.update(tasks[stage], completed=done)

        yield tell


def _say(text: str) -> None:
    click.echo(text, err=True)


def train_to_registry(
    file: Path,
    registry_url: str,
    *,
    kind: str,
    train_start: dt.date,
    train_days: int,
    delay_days: int,
    test_days: int,
    seed: int,
    folds: int = 1,
    trials: int = 0,
    imbalance: Any = "none",
    alert_budget: int = 100,
    review_cost_minor: int = 500,
    name: str | None = None,
    report: Path | None = None,
    source: str | None = None,
    renamed: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Train, register and describe one model; return what `--json` prints."""
    from jobs.fraud.features import FRAUD_FEATURES
    from jobs.windows.offline import build_features
    from models.kinds import kind_named
    from models.package import package
    from models.protocol import Period
    from models.registry import Registry
    from models.report import report_html
    from models.training import Plan, prepare
    from models.training import train as run_training

    plan = Plan(
        kind=kind_named(kind),
        period=Period(train_start, train_days, delay_days, test_days),
        seed=seed,
        imbalance=imbalance,
        folds=folds,
        trials=trials,
        alert_budget=alert_budget,
        review_cost_minor=review_cost_minor,
    )
    _say(f"building features of {file.name} ({FRAUD_FEATURES.version})")
    table = build_features(file, FRAUD_FEATURES, renamed=renamed)
    data = prepare(table, table.customer_id, table.is_fraud)
    _say(f"training {kind} on {len(data.rows):,} rows of history")
    with bars() as tell:
        run = run_training(data, plan, tell)
    folder = package(
        run,
        data,
        name or f"fraud-{kind.replace('_', '-')}",
        FRAUD_FEATURES.version,
        created_at_ms=time.time_ns() // 1_000_000,
        source=source or file.name,
    )
    html = report_html(run, folder.manifest)
    folder.extra["report.html"] = html.encode()
    registry = Registry(registry_url)
    version = registry.register(folder)
    if report is not None:
        report.write_text(html, encoding="utf-8")
    return {
        "auc_roc": run.evaluation.auc_roc,
        "average_precision": run.evaluation.average_precision,
        "card_precision_at_100": run.evaluation.card_precision_at_100,
        "model_path": registry.path_of(version, "model.onnx"),
        "feature_set_version": FRAUD_FEATURES.version,
        "version": version,
        "model": kind,
        **{
            f"{one}_interval": [
                getattr(run.evaluation, f"{one}_interval").low,
                getattr(run.evaluation, f"{one}_interval").high,
            ]
            for one in ("auc_roc", "average_precision", "card_precision_at_100")
        },
        "brier": run.evaluation.brier,
        "at_alert_budget": next(
            asdict(one) for one in run.evaluation.budgets if one.budget == alert_budget
        ),
        "thresholds": {"review": run.thresholds.review, "block": run.thresholds.block},
        "at_review_threshold": dict(run.at_review),
        "folds": [
            {
                "train_start": period.start.isoformat(),
                "auc_roc": fold.auc_roc,
                "average_precision": fold.average_precision,
                "card_precision_at_100": fold.card_precision_at_100,
            }
            for period, fold in run.folds
        ],
        "train_rows": len(run.split.train),
        "test_rows": len(run.split.test),
        "test_frauds": run.evaluation.frauds,
        "report_path": str(report) if report else registry.path_of(version, "report.html"),
    }


def _print_result(result: dict[str, Any], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(result))
        return
    for title, name in (
        ("AUC ROC", "auc_roc"),
        ("average precision", "average_precision"),
        ("card precision@100", "card_precision_at_100"),
    ):
        low, high = result[f"{name}_interval"]
        click.echo(f"{title:<20} {result[name]:.4f}   95 % interval {low:.4f} to {high:.4f}")
    click.echo(f"{'version':<20} {result['version']}")
    click.echo(f"{'report':<20} {result['report_path']}")
    click.echo(f"next: riskstream models shadow {result['version']}")


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--model", "kind", type=click.Choice(KIND_NAMES), default="lightgbm", show_default=True
)
@click.option("--train-start", required=True, metavar="DATE", help="First training day, UTC.")
@click.option("--train-days", type=click.IntRange(1), default=7, show_default=True)
@click.option(
    "--delay-days",
    type=click.IntRange(0),
    default=7,
    show_default=True,
    help="Days between training and test, whose labels are not known yet.",
)
@click.option("--test-days", type=click.IntRange(1), default=7, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option(
    "--folds",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Repeat on earlier periods, each moved back by the test days, to see the spread.",
)
@click.option(
    "--trials",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Tune with this many trials, judged on the last training days only.",
)
@click.option(
    "--imbalance",
    type=click.Choice(["none", "weights"]),
    default="none",
    show_default=True,
    help="weights: frauds weigh as much as the rest in training; probabilities are shifted back.",
)
@click.option(
    "--alert-budget", type=click.IntRange(1), default=100, show_default=True, help="Reviews a day."
)
@click.option(
    "--review-cost-minor",
    type=click.IntRange(0),
    default=500,
    show_default=True,
    help="What one review costs, in minor units (500 is 5.00).",
)
@click.option("--name", help="Name in the registry; fraud-KIND by default.")
@click.option("--source", help="Where the data come from, for the model card.")
@click.option(
    "--report", type=click.Path(dir_okay=False, path_type=Path), help="Copy of the report."
)
@click.option(
    "--map",
    "renamed",
    multiple=True,
    metavar="NAME=COLUMN",
    help="Our name for a column of the file, as in --map customer_id=card (repeatable).",
)
@click.option("--json", "as_json", is_flag=True, help="End with one JSON object.")
@click.pass_context
def train(
    ctx: click.Context,
    file: Path,
    kind: str,
    train_start: str,
    train_days: int,
    delay_days: int,
    test_days: int,
    seed: int,
    folds: int,
    trials: int,
    imbalance: str,
    alert_budget: int,
    review_cost_minor: int,
    name: str | None,
    source: str | None,
    report: Path | None,
    renamed: tuple[str, ...],
    as_json: bool,
) -> None:
    """Train a model on FILE (Parquet or CSV of labelled transactions) and register it.

    Features are computed over the whole history in FILE, so days before the training start count.

    Example: riskstream models train transactions.parquet --model xgboost --train-start 2018-07-04
    """
    result = train_to_registry(
        file,
        settings_of(ctx).models.registry,
        kind=kind,
        train_start=_dated(train_start),
        train_days=train_days,
        delay_days=delay_days,
        test_days=test_days,
        seed=seed,
        folds=folds,
        trials=trials,
        imbalance=imbalance,
        alert_budget=alert_budget,
        review_cost_minor=review_cost_minor,
        name=name,
        report=report,
        source=source,
        renamed=_named(renamed),
    )
    _print_result(result, as_json)
