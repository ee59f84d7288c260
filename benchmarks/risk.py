"""How fast the market risk core is: ticks, fills, VaR; pure code, one thread, no broker.

Run: python -m benchmarks.risk [--page] [--json]. Data is drawn from seeds: nothing is downloaded.
    Each figure is the best of several repetitions after a warm-up: on a shared machine the best is
    the one least disturbed; the median is printed beside it.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from benchmarks.risk_live import measure_live
from benchmarks.risk_page import measure_page
from jobs.market_risk import bars, exposure, market, positions
from jobs.market_risk.bars import BarBuilder
from jobs.market_risk.engine import EngineConfig, FillColumns, RiskEngine
from jobs.market_risk.market import NO_PRICE, MarketState
from jobs.market_risk.methods import METHODS, MethodKit, StreamMethod, method_risk
from jobs.market_risk.portfolio import fast_tail_risk
from jobs.market_risk.positions import PositionBook
from jobs.market_risk.prices import MarkColumns
from jobs.market_risk.stress import Scenario
from schemas.columns import StringColumn

__all__ = ["main"]

TICKS = 500_000
POSITIONS = 1_000
SCENARIOS = 500
REPEATS = 15
_KIT = MethodKit.of(SCENARIOS, 1_000)


def _timed(run: Callable[[], object]) -> tuple[float, float]:
    run()
    seconds = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - began)
    return min(seconds), float(np.median(seconds))


def _engine() -> tuple[RiskEngine, MarkColumns]:
    random = np.random.default_rng(0)
    names = [f"I{number}" for number in range(POSITIONS)]
    text, one = StringColumn.from_texts, np.ones(POSITIONS, np.int64)
    engine = RiskEngine(EngineConfig(history=SCENARIOS))
    for day in range(SCENARIOS):
        shocks = dict(zip(names, random.normal(0, 0.01, POSITIONS).tolist(), strict=True))
        engine.put_scenario(Scenario(f"d{day}", "historical", day, shocks))
    engine.add_fills(
        FillColumns(
            text([f"f{number}" for number in range(POSITIONS)]),
            text(["firm"] * POSITIONS),
            text([f"desk-{number % 5}" for number in range(POSITIONS)]),
            text([f"account-{number % 20}" for number in range(POSITIONS)]),
            text(names),
            one,
            random.integers(-100, 100, POSITIONS),
            0 * one,
            random.integers(9_000, 11_000, POSITIONS),
            2 * one,
            0 * one,
        )
    )
    price = random.integers(9_000, 11_000, POSITIONS)
    return engine, MarkColumns(text(names), 2 * one, price, one, NO_PRICE * one, -one)


def _by_method(method: StreamMethod, pnl: NDArray[np.float64]) -> None:
    kit = _KIT
    simulated = kit.draws @ pnl if method == "montecarlo" else pnl
    method_risk(method, kit, (0.95, 0.975, 0.99), pnl, simulated, pnl)


def measure() -> dict[str, float]:
    """Return the figures by name."""
    for module in (bars, market, positions, exposure):
        module.warm()
    random = np.random.default_rng(1)
    instrument = random.integers(0, 100, TICKS).astype(np.int32)
    times = np.sort(random.integers(0, 3_600_000, TICKS))
    price, size = random.integers(9_000, 11_000, TICKS), random.integers(1, 100, TICKS)
    found: dict[str, float] = {}

    def rate(name: str, run: Callable[[], object]) -> None:
        best, median = _timed(run)
        found[f"{name}_per_second"] = round(TICKS / best)
        found[f"{name}_per_second_median"] = round(TICKS / median)

    rate(
        "ticks_to_bars_of_3_intervals",
        lambda: BarBuilder((1_000, 60_000, 300_000)).update(instrument, times, price, size),
    )
    quotes = random.random(TICKS) < 0.5
    rate(
        "ticks_and_quotes_to_marks",
        lambda: MarketState().update(quotes, instrument, times, price, price + 2),
    )
    signed = random.integers(-100, 101, TICKS)
    one = np.ones(TICKS, np.int64)
    rate(
        "fills_to_positions",
        lambda: PositionBook().apply(instrument, signed, price, one, 0 * one),
    )
    engine, marks = _engine()
    engine.put_marks(marks)

    def evaluate() -> None:
        engine.put_marks(marks)
        engine.evaluate()

    shocks = random.normal(0, 0.01, (SCENARIOS, POSITIONS))
    held = random.normal(0, 1e5, (POSITIONS, 26))
    for name, run in (
        ("var_1000_positions_500_scenarios", lambda: fast_tail_risk(shocks @ held[:, :1], (0.99,))),
        (
            "var_es_3_levels_26_portfolios",
            lambda: fast_tail_risk(shocks @ held, (0.95, 0.975, 0.99)),
        ),
        ("whole_evaluation_1000_positions", evaluate),
        *(
            (f"{method}_3_levels_26_portfolios", partial(_by_method, method, shocks @ held))
            for method in METHODS
        ),
    ):
        best, median = _timed(run)
        found[f"{name}_ms"] = round(best * 1000, 3)
        found[f"{name}_ms_median"] = round(median * 1000, 3)
    return found


@click.command()
@click.option("--page", is_flag=True, help="Measure the page in a browser instead.")
@click.option("--live", is_flag=True, help="Measure a tick's way to page and row on a stack.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="For --live.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def main(page: bool, live: bool, overrides: tuple[str, ...], as_json: bool) -> None:
    """Measure the pure core of market risk, how long a page takes to draw, or a tick's whole way.

    Example: python -m benchmarks.risk --live --json
    """
    found: dict[str, Any]
    found = measure_live(overrides) if live else measure_page() if page else measure()
    found["load_average"] = round(os.getloadavg()[0], 1)
    about = {"python": sys.version.split()[0], "numpy": np.__version__, "cpu": platform.machine()}
    if as_json:
        click.echo(json.dumps({**about, **found}, indent=2))
        return
    for name, value in {**about, **found}.items():
        click.echo(f"{name:50} {value}")


if __name__ == "__main__":
    main()
