"""Write the model card: what the model is, how good it is, when not to use it."""

from __future__ import annotations

from models.evaluate import Evaluation
from models.manifest import Manifest

__all__ = ["model_card"]


def model_card(manifest: Manifest, evaluation: Evaluation | None = None) -> str:
    """Return the card as Markdown."""
    training = manifest.training
    lines = [f"# {manifest.version}", "", manifest.description or "An ONNX model.", ""]
    lines += ["| | |", "|---|---|"]
    facts = {
        "Kind": manifest.kind,
        "Score": f"{manifest.score_kind}, calibration: {manifest.calibration}",
        "Feature set": f"{manifest.feature_set_version} ({len(manifest.features)} features)",
        "File": f"{manifest.size_bytes:,} bytes, SHA-256 {manifest.sha256}",
        "Source of the data": manifest.source or "not stated",
        "Licence": manifest.licence or "not stated",
    }
    if training:
        facts["Training days"] = f"{training['train_start']} to {training['train_end']}"
        facts["Label delay"] = f"{training['delay_days']} days"
        facts["Test days"] = f"{training['test_start']} to {training['test_end']}"
        facts["Training rows"] = (
            f"{training['train_rows']:,}, {training['train_frauds']:,} of them fraud"
        )
        facts["Parameters"] = ", ".join(
            f"{name} {value}" for name, value in training["parameters"].items()
        )
    if manifest.thresholds is not None:
        facts["Thresholds"] = (
            f"review {manifest.thresholds.review:.4f}, block {manifest.thresholds.block:.4f} "
            f"({manifest.thresholds.basis})"
        )
    lines += [f"| {name} | {value} |" for name, value in facts.items()]
    if evaluation is not None:
        lines += ["", "## Measured on the test days", ""]
        lines += ["| measure | value | 95 % interval |", "|---|---|---|"]
        for title, name in (
            ("AUC ROC", "auc_roc"),
            ("Average precision", "average_precision"),
            ("Card precision at 100", "card_precision_at_100"),
        ):
            interval = getattr(evaluation, f"{name}_interval")
            lines.append(
                f"| {title} | {getattr(evaluation, name):.4f} | "
                f"{interval.low:.4f} to {interval.high:.4f} |"
            )
        lines.append(f"| Brier score | {evaluation.brier:.5f} | |")
        for budget in evaluation.budgets:
            lines.append(
                f"| At {budget.budget} alerts a day | precision {budget.precision:.3f}, recall "
                f"{budget.recall:.3f} | |"
            )
    lines += [
        "",
        "## Limits",
        "",
        "- Cards already known to be compromised were removed from the test days; on a stream that "
        "still carries them, precision looks higher.",
        "- Scores mean what they meant in the training days. Watch drift; retrain when it alerts.",
        "- Contributions to a score say what moved the model, not what caused a fraud.",
        "",
        "## Inputs, in order",
        "",
    ]
    lines += [f"{number}. `{name}`" for number, name in enumerate(manifest.features, 1)]
    return "\n".join(lines) + "\n"
