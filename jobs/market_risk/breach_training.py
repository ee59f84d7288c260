"""The recipe of the breach model: simulated desks, many limits, what was breached within minutes.

Each run is a desk of its own on a simulated day of its own, measured every `STEP_MS` by the risk
engine of the stream. On every measured series of an account, desk or firm several limits are laid,
at levels drawn from what that measure is across all runs, so that a level says nothing about the
future of its own series. A limit that is not breached is a row every `ROW_STEPS` steps, with the
features that the stream computes; its label is whether it is breached within the horizon.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from jobs.market_risk.breach import (
    BREACH_FEATURES,
    FEATURE_SET,
    HORIZON_STEPS,
    STEP_MS,
    UsageHistory,
)
from jobs.market_risk.daily import DAY_MS
from jobs.market_risk.engine import EngineConfig, FillColumns, RiskEngine
from jobs.market_risk.exposure import BASE_SCALE
from jobs.market_risk.market import NO_PRICE
from jobs.market_risk.prices import MarkColumns
from jobs.market_risk.reference import Instrument
from jobs.market_risk.simulator import DEFAULT_START_MS, DeskConfig, MarketSimulator
from jobs.market_risk.stress import Scenario
from models.kinds import kind_named
from models.metrics import auc_roc, average_precision
from models.package import package
from models.protocol import Period
from models.registry import ModelFolder
from models.training import Plan, TrainingData, TrainingRun, train
from schemas.columns import Column, NumberColumn, StringColumn

__all__ = ["BREACH_MODEL", "BreachRecipe", "BreachTraining", "described", "train_breach_model"]

BREACH_MODEL: Final = "breach-default"
"""Name of the model that ships with riskstream."""

ROW_STEPS: Final = 3
"""Steps between two rows of one limit; neighbours are nearly the same row."""

_LIMITS_A_SERIES: Final = 4
_MEASURES: Final = ("gross", "net", "loss", "var")
_HISTORY: Final = 60


@dataclass(frozen=True, slots=True)
class BreachRecipe:
    """How much to simulate: `runs` desks of `minutes` each; the last quarter of them tests."""

    runs: int = 16
    minutes: int = 20
    seed: int = 20_200_101


@dataclass(frozen=True, slots=True)
class BreachTraining:
    """The model, and how well the use alone ranks the same test rows."""

    folder: ModelFolder
    run: TrainingRun
    use_auc: float
    use_average_precision: float


def train_breach_model(
    recipe: BreachRecipe, progress: Callable[[int, int], None] | None = None
) -> BreachTraining:
    """Simulate, label, train and package; equal recipes give equal bytes.

    Args:
        recipe: how much.
        progress: told (runs simulated, runs).

    Raises:
        ModelError: when so little was simulated that nothing was breached.
    """
    series = []
    for number in range(recipe.runs):
        series.append(_measured(recipe, number))
        if progress is not None:
            progress(number + 1, recipe.runs)
    data = _labelled(recipe, series)
    tested = max(1, recipe.runs // 4)
    start = dt.datetime.fromtimestamp(DEFAULT_START_MS / 1000, dt.UTC).date()
    plan = Plan(
        kind=kind_named("lightgbm"),
        period=Period(start, recipe.runs - tested, 0, tested),
        seed=7,
        parameters={"n_estimators": 80, "num_leaves": 15, "min_child_samples": 200},
    )
    run = train(data, plan)
    folder = package(
        run,
        data,
        BREACH_MODEL,
        FEATURE_SET,
        created_at_ms=DEFAULT_START_MS + recipe.runs * DAY_MS,
        source=f"simulated desks, seed {recipe.seed}, {recipe.runs} runs of {recipe.minutes} min",
        licence="Apache-2.0",
    )
    use = data.rows[run.split.test][:, 0].astype(np.float64)
    truth = data.is_fraud[run.split.test]
    use_auc, use_precision = auc_roc(truth, use), average_precision(truth, use)
    return BreachTraining(
        described(folder, int(truth.sum()), use_auc, use_precision), run, use_auc, use_precision
    )


def described(
    folder: ModelFolder, test_breaches: int, use_auc: float, use_average_precision: float
) -> ModelFolder:
    """Return the folder with a manifest and a card that speak of limits, not of payments."""
    old = folder.manifest
    manifest = old.model_copy(
        update={
            "description": "chance that a limit is breached in the next five minutes",
            "thresholds": None
            if old.thresholds is None
            else old.thresholds.model_copy(update={"basis": "not used: the chance is shown as is"}),
            "metrics": {
                "auc_roc": old.metrics["auc_roc"],
                "average_precision": old.metrics["average_precision"],
                "brier": old.metrics["brier"],
                "test_breaches": test_breaches,
                "use_auc_roc": use_auc,
                "use_average_precision": use_average_precision,
            },
        }
    )
    training, metrics, alone = manifest.training, manifest.metrics, use_average_precision
    card = f"""# {manifest.version}

The chance that a limit is breached in the next five minutes, from its use in the last five.

| | |
|---|---|
| Kind | {manifest.kind} on {len(manifest.features)} features ({manifest.feature_set_version}) |
| Data | {manifest.source}; no recorded data |
| Licence | {manifest.licence} |
| Training rows | {training["train_rows"]:,}, {training["train_frauds"]:,} followed by a breach |
| Test rows, of other desks | {training["test_rows"]:,}, {test_breaches:,} followed by a breach |
| AUC | {metrics["auc_roc"]:.4f}; the use alone {use_auc:.4f} |
| Average precision | {metrics["average_precision"]:.4f}; the use alone {alone:.4f} |

A row is a limit that is not breached; neighbouring rows of one limit are not independent. The model
has seen simulated desks only: train it on simulations like your own desk (`riskstream risk
train-breach`), and compare its chances with what came before anybody relies on them.

Inputs, in order: {", ".join(f"`{name}`" for name in manifest.features)}.
"""
    return ModelFolder(manifest, folder.model, {**folder.extra, "card.md": card.encode()})


def _measured(recipe: BreachRecipe, number: int) -> dict[tuple[str, str], NDArray[np.float64]]:
    # Measures by (measure, group) of one desk, one value a step; 0 before there is a position.
    random = np.random.default_rng([recipe.seed, number])
    desk = DeskConfig(
        instruments=int(random.integers(6, 13)),
        accounts=int(random.integers(3, 7)),
        fill_share=float(random.uniform(0.01, 0.2)),
    )
    simulator = MarketSimulator(int(random.integers(1 << 30)), desk)
    engine = RiskEngine(EngineConfig(history=_HISTORY, methods=()))
    for record in simulator.reference(_HISTORY)["scenarios"]:
        engine.put_scenario(Scenario(**record))
    for record in simulator.reference(1)["instruments"]:
        engine.put_instrument(Instrument(**record))
    engine.put_rate("EUR", "USD", 112_000_000, DEFAULT_START_MS)
    steps = recipe.minutes * 60_000 // STEP_MS
    found: dict[tuple[str, str], NDArray[np.float64]] = {}
    for step in range(steps):
        for quotes, fills in _until(simulator, DEFAULT_START_MS + (step + 1) * STEP_MS):
            engine.put_marks(quotes)
            engine.add_fills(fills)
        evaluation = engine.evaluate()
        if evaluation is None:
            continue
        groups = evaluation.groups
        pnl = groups.realised + groups.unrealised - groups.fees
        columns = {
            "gross": groups.gross / 10.0**BASE_SCALE,
            "net": np.abs(groups.net) / 10.0**BASE_SCALE,
            "loss": np.maximum(-pnl, 0) / 10.0**BASE_SCALE,
            "var": groups.var[-1],
        }
        for place, (_, scope, name) in enumerate(evaluation.grouping.names):
            if scope != "instrument":
                for measure, column in columns.items():
                    key = (measure, f"{scope}/{name}")
                    found.setdefault(key, np.zeros(steps))[step] = column[place]
    return found


def _until(simulator: MarketSimulator, end_ms: int) -> Iterator[tuple[MarkColumns, FillColumns]]:
    for batch in simulator.batches():
        yield _newest(batch.quotes, len(simulator.names)), _fills(batch.fills)
        if simulator.now_ms >= end_ms:
            return


def _newest(quotes: dict[str, Column], instruments: int) -> MarkColumns:
    # Every step quotes every instrument: the last ones are the newest market.
    bid, ask, times = (_integers(quotes, name) for name in ("bid", "ask", "event_time_ms"))
    name = _text(quotes, "instrument_id")
    rows = slice(len(bid) - instruments, None)
    one = np.ones(instruments, np.int64)
    return MarkColumns(
        StringColumn(name.data, name.starts[rows], name.lengths[rows]),
        _integers(quotes, "price_scale")[rows],
        NO_PRICE * one,
        -one,
        (bid + ask)[rows],
        times[rows],
    )


def _fills(fills: dict[str, Column]) -> FillColumns:
    return FillColumns(
        _text(fills, "fill_id"),
        _text(fills, "firm_id"),
        _text(fills, "desk_id"),
        _text(fills, "account_id"),
        _text(fills, "instrument_id"),
        _integers(fills, "event_time_ms"),
        _integers(fills, "quantity"),
        _integers(fills, "quantity_scale"),
        _integers(fills, "price"),
        _integers(fills, "price_scale"),
        _integers(fills, "fee"),
    )


def _labelled(
    recipe: BreachRecipe, runs: list[dict[tuple[str, str], NDArray[np.float64]]]
) -> TrainingData:
    random = np.random.default_rng([recipe.seed, recipe.runs])
    pooled = {
        measure: np.sort(
            np.concatenate([one[key] for one in runs for key in one if key[0] == measure])
        )
        for measure in _MEASURES
    }
    features, labels, times, codes = [], [], [], []
    code = 0
    for number, series in enumerate(runs):
        for (measure, _), values in sorted(series.items()):
            levels = np.quantile(pooled[measure], random.uniform(0.6, 0.9995, _LIMITS_A_SERIES))
            for level in np.maximum(levels, 1.0).tolist():
                rows, label, at = _one_limit(measure, values, level, random.uniform(0.5, 0.95))
                features.append(rows)
                labels.append(label)
                times.append(DEFAULT_START_MS + number * DAY_MS + at * STEP_MS)
                codes.append(np.full(len(label), code))
                code += 1
    rows = np.concatenate(features)
    return TrainingData(
        names=BREACH_FEATURES,
        rows=np.ascontiguousarray(rows, np.float32),
        is_fraud=np.concatenate(labels),
        customer_codes=np.concatenate(codes),
        event_time_ms=np.concatenate(times),
        # The thresholds that the protocol also chooses weigh money; every breach weighs the same.
        amount_minor=np.full(len(rows), 10_000, np.int64),
    )


def _one_limit(
    measure: str, values: NDArray[np.float64], level: float, warning: float
) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.int64]]:
    history = UsageHistory()
    use = values / level
    rows, labels, at = [], [], []
    for step in range(len(values)):
        history.put(["limit"], use[step : step + 1], step * STEP_MS)
        ahead = use[step + 1 : step + 1 + HORIZON_STEPS]
        if step % ROW_STEPS or len(ahead) < HORIZON_STEPS or use[step] >= 1:
            continue
        rows.append(
            history.features(
                ["limit"],
                np.array([warning]),
                np.array([measure == "loss"]),
                np.array([measure == "var"]),
            )[0]
        )
        labels.append(bool(ahead.max() >= 1))
        at.append(step)
    width = len(BREACH_FEATURES)
    return (
        np.array(rows, np.float64).reshape(-1, width),
        np.array(labels, np.bool_),
        np.array(at, np.int64),
    )


def _integers(columns: dict[str, Column], name: str) -> NDArray[np.int64]:
    column = columns[name]
    if not isinstance(column, NumberColumn):
        msg = f"reading {name}: expected numbers, was text"
        raise TypeError(msg)
    return column.values.astype(np.int64)


def _text(columns: dict[str, Column], name: str) -> StringColumn:
    column = columns[name]
    if not isinstance(column, StringColumn):
        msg = f"reading {name}: expected text, was numbers"
        raise TypeError(msg)
    return column
