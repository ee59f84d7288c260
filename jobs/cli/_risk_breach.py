"""`riskstream risk train-breach`: the recipe of the model that foresees breached limits."""

from __future__ import annotations

import json
from pathlib import Path

import click
from rich.console import Console

from jobs.cli.context import settings_of
from jobs.cli.progress import count_bar

__all__ = ["train_breach"]


@click.command("train-breach")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder to write; models/artefacts/breach by default.",
)
@click.option("--register", is_flag=True, help="Put it into the model registry instead.")
@click.option("--runs", type=click.IntRange(2), default=16, show_default=True,
              help="Desks to simulate; the last quarter tests.")  # fmt: skip
@click.option("--minutes", type=click.IntRange(6), default=20, show_default=True,
              help="Of each desk.")  # fmt: skip
@click.option("--seed", type=int, default=20_200_101, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def train_breach(
    ctx: click.Context,
    out: Path | None,
    register: bool,
    runs: int,
    minutes: int,
    seed: int,
    as_json: bool,
) -> None:
    """Train the model that gives each limit its chance of a breach in the next five minutes.

    Desks are simulated, limits laid on what the risk engine measures of them, and LightGBM learns
    which are breached. Equal versions of the libraries give equal bytes. The job scores with the
    model that setting market_risk.breach_model names.

    Example: riskstream risk train-breach --runs 16 --out /tmp/breach
    """
    # Training libraries are loaded by this verb alone.
    from jobs.market_risk.breach_training import BreachRecipe, train_breach_model
    from models.registry import ARTEFACTS, MANIFEST_FILE, Registry

    with count_bar("desks", Console(stderr=True)) as count:
        made = train_breach_model(BreachRecipe(runs, minutes, seed), count)
    folder = made.folder
    where = str(out or ARTEFACTS / "breach")
    if register:
        where = settings_of(ctx).models.registry
        Registry(where).register(folder)
    else:
        target = Path(where)
        target.mkdir(parents=True, exist_ok=True)
        for name, content in {
            "model.onnx": folder.model,
            **folder.extra,
            MANIFEST_FILE: folder.manifest.to_json().encode(),
        }.items():
            (target / name).write_bytes(content)
    evaluation, training = made.run.evaluation, folder.manifest.training
    result = {
        "version": folder.manifest.version,
        "where": where,
        "train_rows": training["train_rows"],
        "test_rows": training["test_rows"],
        "test_breaches": int(made.run.test_labels.sum()),
        "auc": evaluation.auc_roc,
        "average_precision": evaluation.average_precision,
        "auc_of_use_alone": made.use_auc,
        "average_precision_of_use_alone": made.use_average_precision,
    }
    if as_json:
        click.echo(json.dumps(result))
        return
    for name, value in result.items():
        click.echo(f"{name:<32} {value:.4f}" if isinstance(value, float) else f"{name:<32} {value}")
