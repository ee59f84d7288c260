"""Make the folder of a trained model: manifest, golden vectors, reference sample, card, report."""

from __future__ import annotations

import io
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from models.card import model_card
from models.export import INPUT_NAME, OUTPUT_NAME
from models.manifest import (
    REFERENCE_FILE,
    Golden,
    Manifest,
    ModelInput,
    ModelOutput,
    Reference,
    sha256_of,
)
from models.registry import ModelFolder
from models.session import open_session
from models.training import TrainingData, TrainingRun

__all__ = ["GOLDEN_ROWS", "REFERENCE_ROWS", "package"]

GOLDEN_ROWS: Final = 32
# Spread over the score's whole range; enough that no wrong branch in a few hundred trees goes
# unseen, few enough that loading stays below a millisecond.

REFERENCE_ROWS: Final = 2048
# A KS distance of 0.043 is significant at 5 % against a large window with this many rows; 15
# features cost 128 KiB.


def package(
    run: TrainingRun,
    data: TrainingData,
    name: str,
    feature_set_version: str,
    created_at_ms: int,
    source: str = "",
    licence: str = "",
) -> ModelFolder:
    """Return everything to register, a pure function of the training run."""
    generator = np.random.default_rng(run.plan.seed)
    golden_rows = _spread(run.scores, GOLDEN_ROWS)
    golden = data.rows[run.split.test][golden_rows].astype(np.float64)
    outputs = _score(run.fitted.onnx, golden)
    count = min(REFERENCE_ROWS, len(run.split.train))
    drawn = np.sort(generator.choice(run.split.train, count, replace=False))
    sample = data.rows[drawn]
    reference = np.column_stack([sample, _score(run.fitted.onnx, sample)]).astype(np.float32)
    buffer = io.BytesIO()
    np.save(buffer, reference, allow_pickle=False)
    period = run.plan.period
    evaluation = run.evaluation
    manifest = Manifest(
        name=name,
        kind=run.plan.kind.name,
        description=f"{run.plan.kind.name} on {len(data.names)} features",
        created_at_ms=created_at_ms,
        sha256=sha256_of(run.fitted.onnx),
        size_bytes=len(run.fitted.onnx),
        source=source,
        licence=licence,
        feature_set_version=feature_set_version,
        features=data.names,
        input=ModelInput(name=INPUT_NAME),
        output=ModelOutput(name=OUTPUT_NAME),
        score_kind=run.plan.kind.score_kind,
        calibration=run.fitted.calibration,
        thresholds=run.thresholds,
        training={
            **period.describe(),
            "train_rows": len(run.split.train),
            "train_frauds": int(data.is_fraud[run.split.train].sum()),
            "test_rows": len(run.split.test),
            "test_rows_removed_known_cards": run.split.removed,
            "seed": run.plan.seed,
            "imbalance": run.plan.imbalance,
            "parameters": run.fitted.parameters,
            "folds": len(run.folds),
            "trials": len(run.trials),
            "export_difference": run.export_difference,
        },
        metrics=_metrics(run),
        golden=Golden.of(golden, outputs),
        reference=Reference(sha256=sha256_of(buffer.getvalue()), rows=count),
    )
    extra: dict[str, bytes] = {
        REFERENCE_FILE: buffer.getvalue(),
        "card.md": model_card(manifest, evaluation).encode(),
    }
    return ModelFolder(manifest, run.fitted.onnx, extra)


def _metrics(run: TrainingRun) -> dict[str, Any]:
    metrics = run.evaluation.to_dict()
    metrics["at_review_threshold"] = dict(run.at_review)
    if len(run.folds) > 1:
        names = ("auc_roc", "average_precision", "card_precision_at_100")
        values = {one: [getattr(fold, one) for _, fold in run.folds] for one in names}
        metrics["folds"] = {
            one: {"mean": float(np.mean(some)), "std": float(np.std(some, ddof=1))}
            for one, some in values.items()
        }
    return metrics


def _spread(scores: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    # Even steps through the ranked scores, and the highest ones, where decisions are made.
    ranked = np.argsort(scores, kind="stable")
    even = np.linspace(0, len(ranked) - 1, count // 2).astype(np.int64)
    top = np.arange(max(0, len(ranked) - count // 2), len(ranked))
    chosen: NDArray[np.int64] = np.unique(ranked[np.concatenate([even, top])])
    return chosen


def _score(onnx_file: bytes, rows: NDArray[Any]) -> NDArray[np.float64]:
    session = open_session(onnx_file)
    scores = session.run([OUTPUT_NAME], {INPUT_NAME: rows.astype(np.float32)})[0]
    plain: NDArray[np.float64] = scores.reshape(-1).astype(np.float64)
    return plain
