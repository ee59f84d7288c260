"""`riskstream models`: train, register, activate, shadow, challenge, retire, roll back, retrain."""

from __future__ import annotations

import click

from jobs.cli._models_default import rebuild_default
from jobs.cli._models_drift import drift
from jobs.cli._models_registry import (
    activate,
    challenge,
    list_models,
    register,
    retire,
    rollback,
    shadow,
    show,
)
from jobs.cli._models_retrain import promote, retrain
from jobs.cli._models_train import train

__all__ = ["models"]


@click.group()
def models() -> None:
    """Train models, keep them, and change the one that decides without stopping the job.

    Example: riskstream models train transactions.parquet --model lightgbm --train-start 2018-07-04
    """


for _command in (
    train,
    retrain,
    promote,
    drift,
    list_models,
    show,
    register,
    activate,
    shadow,
    challenge,
    retire,
    rollback,
    rebuild_default,
):
    models.add_command(_command)
