"""One self-contained HTML page about a training run: measures, curves, what it costs and saves."""

from __future__ import annotations

import io
from typing import Any, Final

import jinja2
import numpy as np
from matplotlib.figure import Figure

from models.manifest import Manifest
from models.metrics import Interval
from models.training import TrainingRun

__all__ = ["report_html"]

_BLUE: Final = "#1f5fa8"
_GREY: Final = "#8a8f98"
_SIZE: Final = (5.2, 3.6)

_PAGE: Final = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ version }}</title>
<style>
 body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem;
        color: #1c2024; background: #fff }
 h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2.2rem }
 table { border-collapse: collapse; font-variant-numeric: tabular-nums }
 th, td { text-align: left; padding: .3rem .9rem .3rem 0; border-bottom: 1px solid #e3e6ea }
 td.number, th.number { text-align: right }
 .plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(20rem, 1fr)); gap: 1rem }
 .plots svg { width: 100%; height: auto }
 p.note { color: #555c66 }
</style>
</head>
<body>
<h1>{{ version }}</h1>
<p>{{ kind }}, trained {{ training.train_start }} to {{ training.train_end }}, labels
{{ training.delay_days }} days late, tested {{ training.test_start }} to {{ training.test_end }}.
{{ "{:,}".format(training.train_rows) }} training rows ({{ "{:,}".format(training.train_frauds) }}
fraud), {{ "{:,}".format(training.test_rows) }} test rows ({{ "{:,}".format(frauds) }} fraud);
{{ "{:,}".format(training.test_rows_removed_known_cards) }} rows of cards already known to be
compromised left the test.</p>

<h2>Measures on the test days</h2>
<table>
<tr><th>measure</th><th class="number">value</th><th class="number">95 % interval</th></tr>
{% for row in measures %}<tr><td>{{ row[0] }}</td><td class="number">{{ row[1] }}</td>
<td class="number">{{ row[2] }}</td></tr>
{% endfor %}</table>
<p class="note">Intervals at 95 %, here and below: 200 resamples of whole customers; of test days
for cards.</p>

<div class="plots">{% for plot in plots %}<div>{{ plot | safe }}</div>{% endfor %}</div>

<h2>Reviewing within a budget</h2>
<table>
<tr><th class="number">alerts a day</th><th class="number">precision</th><th
class="number">recall</th> <th class="number">lowest score reviewed</th></tr>
{% for one in budgets %}<tr><td class="number">{{ one.budget }}</td>
<td class="number">{{ "%.3f" % one.precision }} {{ between(one.precision_interval) }}</td>
<td class="number">{{ "%.3f" % one.recall }} {{ between(one.recall_interval) }}</td>
<td class="number">{{ "%.4f" % one.threshold }}</td></tr>
{% endfor %}</table>

<h2>Thresholds and money</h2>
<p>Review from {{ "%.4f" % thresholds.review }}, block from {{ "%.4f" % thresholds.block }}
({{ thresholds.basis }}).</p>
<p>On the test days the review threshold gave {{ "{:,}".format(at_review.reviews) }} reviews with
precision {{ "%.3f" % at_review.precision }}
({{ "%.3f to %.3f" | format(*at_review.precision_interval) }}) and recall
{{ "%.3f" % at_review.recall }} ({{ "%.3f to %.3f" | format(*at_review.recall_interval) }}), and
kept
{{ "{:,.2f}".format(at_review.money_saved_minor / 100) }}
({{ "{:,.2f} to {:,.2f}".format(at_review.money_saved_minor_interval[0] / 100,
at_review.money_saved_minor_interval[1] / 100) }}) of
{{ "{:,.2f}".format(fraud_amount / 100) }} at risk after review costs. The best threshold in
hindsight would have kept {{ "{:,.2f}".format(best.saved_minor / 100) }}.</p>
<p class="note">A reviewed fraud counts as prevented in full, a review costs
{{ "{:,.2f}".format(review_cost / 100) }} whatever it finds.</p>

{% if folds | length > 1 %}<h2>Prequential folds</h2>
<table>
<tr><th>training starts</th><th class="number">AUC ROC</th><th class="number">average precision</th>
<th class="number">card precision@100</th></tr>
{% for period, fold in folds %}<tr><td>{{ period.start.isoformat() }}</td>
<td class="number">{{ "%.4f" % fold.auc_roc }}</td>
<td class="number">{{ "%.4f" % fold.average_precision }}</td>
<td class="number">{{ "%.4f" % fold.card_precision_at_100 }}</td></tr>
{% endfor %}</table>{% endif %}

{% if trials %}<h2>Tuning</h2>
<table><tr><th class="number">average precision, held-out training days</th><th>parameters</th></tr>
{% for value, parameters in trials %}<tr><td class="number">{{ "%.4f" % value }}</td>
<td>{{ parameters }}</td></tr>
{% endfor %}</table>{% endif %}

<h2>Model</h2>
<table>{% for name, value in facts %}<tr><td>{{ name }}</td><td>{{ value }}</td></tr>
{% endfor %}</table>
</body>
</html>
"""


def report_html(run: TrainingRun, manifest: Manifest) -> str:
    """Return the page; plots are inline SVG, nothing is loaded from elsewhere."""
    evaluation = run.evaluation
    measures: list[tuple[str, str, str]] = []
    for title, name, digits in (
        ("AUC ROC", "auc_roc", 4),
        ("Average precision", "average_precision", 4),
        ("Card precision at 100", "card_precision_at_100", 4),
        ("Card recall at 100", "card_recall_at_100", 4),
        ("Brier score", "brier", 5),
    ):
        interval = getattr(evaluation, f"{name}_interval")
        value = f"{getattr(evaluation, name):.{digits}f}"
        measures.append((title, value, f"{interval.low:.{digits}f} to {interval.high:.{digits}f}"))
    environment = jinja2.Environment(autoescape=True)
    return environment.from_string(_PAGE).render(
        version=manifest.version,
        kind=manifest.kind,
        training=manifest.training,
        frauds=evaluation.frauds,
        measures=measures,
        plots=_plots(run),
        budgets=evaluation.budgets,
        between=_between,
        thresholds=run.thresholds,
        at_review=run.at_review,
        fraud_amount=evaluation.fraud_amount_minor,
        best=evaluation.best_money,
        review_cost=run.plan.review_cost_minor,
        folds=run.folds,
        trials=[(value, _listed(parameters)) for value, parameters in run.trials],
        facts=[
            ("Parameters", _listed(run.fitted.parameters)),
            ("Imbalance", run.plan.imbalance),
            ("Calibration", manifest.calibration),
            ("Seed", run.plan.seed),
            ("Feature set", manifest.feature_set_version),
            ("ONNX against library, greatest difference", f"{run.export_difference:.2g}"),
            ("SHA-256", manifest.sha256),
        ],
    )


def _between(interval: Interval | None) -> str:
    return "" if interval is None else f"({interval.low:.3f} to {interval.high:.3f})"


def _listed(parameters: Any) -> str:
    return ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in parameters.items()
    )


def _plots(run: TrainingRun) -> list[str]:
    evaluation = run.evaluation
    fraud = run.test_labels
    order = np.argsort(-run.scores, kind="stable")
    hits = np.cumsum(fraud[order])
    count = np.arange(1, len(order) + 1)
    recall = hits / max(1, hits[-1])
    false_rate = (count - hits) / max(1, count[-1] - hits[-1])
    # A thousand points draw the same curve as a hundred thousand and keep the page small.
    shown = np.unique(np.geomspace(1, len(order), 1000).astype(np.int64)) - 1
    figures = []
    figure, axes = _figure("Precision and recall", "recall", "precision")
    axes.plot(recall[shown], (hits / count)[shown], color=_BLUE)
    axes.set_ylim(0, 1.02)
    figures.append(figure)
    figure, axes = _figure("ROC", "false positive rate", "true positive rate")
    axes.plot(false_rate[shown], recall[shown], color=_BLUE)
    axes.plot([0, 1], [0, 1], color=_GREY, linewidth=0.8)
    figures.append(figure)
    if run.plan.kind.score_kind == "probability":
        figure, axes = _figure("Calibration", "mean score", "observed fraud rate")
        axes.plot([0, 1], [0, 1], color=_GREY, linewidth=0.8)
        bins = evaluation.calibration
        at, seen = [one.predicted for one in bins], [one.observed for one in bins]
        axes.plot(at, seen, "o-", color=_BLUE, markersize=4)
        known = [one.observed_interval or Interval(0, 1, 0) for one in bins]
        axes.vlines(at, [one.low for one in known], [one.high for one in known], color=_BLUE)
        figures.append(figure)
    figure, axes = _figure("Money kept after review costs", "reviews in the test days", "money")
    axes.plot(
        [one.reviews for one in evaluation.money],
        [one.saved_minor / 100 for one in evaluation.money],
        color=_BLUE,
    )
    axes.axvline(run.at_review["reviews"], color=_GREY, linewidth=0.8)
    axes.set_xscale("log")
    figures.append(figure)
    return [_svg(figure) for figure in figures]


def _figure(title: str, horizontal: str, vertical: str) -> tuple[Figure, Any]:
    # A Figure of its own, not pyplot: no global state and no display.
    figure = Figure(figsize=_SIZE, layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, fontsize=11, loc="left")
    axes.set_xlabel(horizontal)
    axes.set_ylabel(vertical)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]
