"""`riskstream risk`: market risk over files, by the same code as the streaming job."""

from __future__ import annotations

import importlib
import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import click
import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from jobs.market_risk.backtest import LikelihoodRatio, backtest, confidence_of
from jobs.market_risk.bars import parse_interval
from jobs.market_risk.files import InputFileError, read_table, write_table
from jobs.market_risk.offline import bars_table, price_history, read_hits
from jobs.market_risk.offline_positions import last_prices, position_lines
from jobs.market_risk.portfolio import ewma_covariance, monte_carlo, over_horizon, portfolio_risk
from jobs.market_risk.value_at_risk import AGE_DECAY, VOLATILITY_DECAY, default_quantile

__all__ = ["risk"]

_METHODS: Final = ("plain", "age", "volatility", "ewma", "normal", "montecarlo")
_MODULES: Final = {
    "acknowledge": "_risk_feed",
    "reference": "_risk_feed",
    "replay": "_risk_feed",
    "simulate": "_risk_feed",
    "train-breach": "_risk_breach",
}
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


class _FeedGroup(click.Group):
    """Adds the verbs whose libraries (Kafka clients, training) are imported only when asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*super().list_commands(ctx), *_MODULES])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _MODULES:
            return super().get_command(ctx, cmd_name)
        module = importlib.import_module(f"jobs.cli.{_MODULES[cmd_name]}")
        command: click.Command = getattr(module, cmd_name.replace("-", "_"))
        return command


@click.group(cls=_FeedGroup)
def risk() -> None:
    """Market risk over files, by the same code as the streaming job; and feeds for that job.

    Example: riskstream risk var prices.csv --method volatility --level 0.99 --json
    """


@risk.command()
@click.argument("file", type=_FILE)
@click.option("--method", type=click.Choice(_METHODS), default="plain", show_default=True)
@click.option(
    "--level",
    "levels",
    type=float,
    multiple=True,
    default=(0.95,),
    show_default=True,
    help="Confidence: 0.95, 0.05 and 95 all mean 95% (repeatable).",
)
@click.option("--positions", metavar="A=10,B=-5", help="Units held; VaR is then in money.")
@click.option("--weights", metavar="A=.6,B=.4", help="Shares of value; by default all alike.")
@click.option("--value", type=float, help="Money the weights apply to; adds amounts.")
@click.option("--column", "columns", multiple=True, help="Use only these columns (repeatable).")
@click.option("--returns", "kind", type=click.Choice(["simple", "log", "given"]), default="simple",
              show_default=True, help="given: the file holds returns, not prices.")  # fmt: skip
@click.option("--decay", type=float, help="Decay: 0.98 for age weights, 0.94 for EWMA by default.")
@click.option("--quantile", type=click.Choice(["linear", "midpoint", "step"]),
              help="Quantile convention; midpoint for age weights, else linear.")  # fmt: skip
@click.option("--window", type=click.IntRange(2), help="Use only the newest N returns.")
@click.option("--horizon-days", type=click.FloatRange(0, min_open=True), default=1.0,
              show_default=True, help="Scale by the square root of time.")  # fmt: skip
@click.option("--scenarios", type=click.IntRange(2), default=10_000, show_default=True,
              help="Monte Carlo scenarios.")  # fmt: skip
@click.option("--seed", type=int, default=0, show_default=True, help="Monte Carlo seed.")
@click.option("--time-zone", default="UTC", show_default=True, help="Of times without an offset.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def var(
    file: Path,
    method: str,
    levels: tuple[float, ...],
    positions: str | None,
    weights: str | None,
    value: float | None,
    columns: tuple[str, ...],
    kind: str,
    decay: float | None,
    quantile: Any,
    window: int | None,
    horizon_days: float,
    scenarios: int,
    seed: int,
    time_zone: str,
    as_json: bool,
) -> None:
    r"""Value at risk and expected shortfall from a file of prices.

    FILE is CSV (plain or compressed) or Parquet: a time column and one column per instrument, or
    time, instrument, price, or candles, or a single column. VaR and ES are positive for a loss: a
    fraction of the value held, or money with --positions, --value, or a column of holdings
    (position, holding; quantity, units or shares where an instrument has one value). Without
    holdings all instruments weigh alike.

    \b
    plain       historical simulation: the empirical quantile of past returns
    age         the same, weights falling by 0.98 a day (Boudoukh, Richardson, Whitelaw 1998)
    volatility  the same, each return times volatility now over its own forecast, EWMA 0.94
                (Hull and White 1998)
    ewma        RiskMetrics: normal, zero mean, EWMA variance 0.94
    normal      normal, mean and deviation of the sample
    montecarlo  normal draws with the EWMA covariance

    \b
    Quantile, of losses sorted by weight: linear is NumPy's default (all but age), midpoint Hazen's
    (age), step the smallest loss not exceeded with the level's probability. ES is the exact mean of
    the worst 1 - level of probability (Acerbi, Tasche); tail_mean the mean beyond VaR. EWMA starts
    at the mean square of the sample.

    Example: riskstream risk var prices.csv --method plain --level 0.95 --json
    """
    history = price_history(file, columns, time_zone)
    returns = history.prices if kind == "given" else history.returns(kind)
    returns = returns[-window:] if window else returns
    names = history.instruments
    from_file = positions is None and weights is None and value is None
    from_file = from_file and history.held is not None and kind != "given"
    if from_file or positions is not None:
        held = history.held if positions is None else _by_name(positions, names)
        exposures = np.asarray(held) * history.prices[-1]
        unit = "money"
    else:
        shares = (
            np.full(len(names), 1 / len(names)) if weights is None else _by_name(weights, names)
        )
        exposures = shares * (1.0 if value is None else value)
        unit = "fraction" if value is None else "money"
    used: Any = method
    if method == "montecarlo":
        rate = VOLATILITY_DECAY if decay is None else decay
        returns = monte_carlo(ewma_covariance(returns, rate), scenarios, seed)
        used = "plain"
    pnl = returns * exposures
    gross = float(np.abs(exposures).sum()) or 1.0
    rows = []
    for level in levels:
        found = over_horizon(
            portfolio_risk(pnl, confidence_of(level), used, decay=decay, quantile=quantile),
            horizon_days,
        )
        total = found.total
        row: dict[str, Any] = {
            "level": total.level,
            "var": total.value_at_risk,
            "es": total.expected_shortfall,
            "tail_mean": total.tail_mean,
            "var_fraction": total.value_at_risk / gross,
            "es_fraction": total.expected_shortfall / gross,
        }
        if len(names) > 1:
            row["component_var"] = dict(zip(names, found.component_var.tolist(), strict=True))
            row["component_es"] = dict(zip(names, found.component_es.tolist(), strict=True))
            row["marginal_var"] = {
                name: float(part / exposure) if exposure else None
                for name, part, exposure in zip(names, found.component_var, exposures, strict=True)
            }
        rows.append(row)
    decays = {"age": AGE_DECAY, "volatility": VOLATILITY_DECAY, "ewma": VOLATILITY_DECAY}
    default_decay = VOLATILITY_DECAY if method == "montecarlo" else decays.get(method)
    result = {
        "method": method,
        **rows[0],
        "unit": unit,
        "holdings": history.held_column if from_file else None,
        "observations": len(pnl),
        "dropped": history.dropped,
        "repeated": history.repeated,
        "horizon_days": horizon_days,
        "returns": kind,
        "decay": default_decay if decay is None else decay,
        "quantile": None if used in ("ewma", "normal") else quantile or default_quantile(used),
        "volatility": total.volatility,
        "exposures": dict(zip(names, exposures.tolist(), strict=True)),
        "last_prices": None
        if kind == "given"
        else dict(zip(names, history.prices[-1].tolist(), strict=True)),
        "levels": rows,
    }
    if as_json:
        _print_json(result)
        return
    click.echo(f"{method} VaR of {len(names)} instrument(s), {len(pnl)} returns, {unit}")
    if history.dropped or history.repeated:
        click.echo(
            f"left out: {history.dropped} time(s) without every price, {history.repeated} row(s) "
            "that a later one of the same time replaced",
            err=True,
        )
    for row in rows:
        click.echo(f"  {row['level']:.4g}  VaR {row['var']:.6g}  ES {row['es']:.6g}")


@risk.command()
@click.argument("fills", type=_FILE)
@click.option("--prices", type=_FILE, required=True, help="Newest price of each instrument rules.")
@click.option("--method", type=click.Choice(["average", "fifo"]), default="fifo",
              show_default=True, help="Which P&L is realised_pnl and unrealised_pnl.")  # fmt: skip
@click.option("--base", metavar="CURRENCY", help="Currency of the totals; needs --fx for others.")
@click.option("--fx", metavar="EUR=1.1,JPY=.007", help="Price of one unit in the base currency.")
@click.option("--equity", type=click.FloatRange(0, min_open=True), help="Adds leverage.")
@click.option("--time-zone", default="UTC", show_default=True, help="Of times without an offset.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def positions(
    fills: Path,
    prices: Path,
    method: str,
    base: str | None,
    fx: str | None,
    equity: float | None,
    time_zone: str,
    as_json: bool,
) -> None:
    """Positions, profit and loss and exposure from a file of fills.

    Quantities are signed, or amounts with a side (sales may all be negative). Profit is computed by
    FIFO and by average cost, in integers; a repeated fill id counts once. Totals are per currency,
    and in one with --base and --fx.

    Example: riskstream risk positions fills.csv --prices prices.csv --json
    """
    lines, repeated = position_lines(fills, last_prices(prices, time_zone), time_zone)
    rates = _rates(base, fx)
    shown = []
    for line in lines:
        row = asdict(line)
        for key in ("realised", "unrealised"):
            row[f"{key}_pnl"] = row[f"{key}_{method}"]
        shown.append(row)
    currencies = sorted({line.currency for line in lines})
    totals = [
        _total(currency, [row for row in shown if row["currency"] == currency], {}, equity)
        for currency in currencies
    ]
    overall = None
    if base is not None:
        missing = [currency for currency in currencies if currency and currency not in rates]
        if missing:
            msg = f"give --fx a rate for {', '.join(missing)}"
            raise click.UsageError(msg)
        overall = _total(base, shown, rates, equity)
    if as_json:
        _print_json(
            {
                "method": method,
                "positions": shown,
                "totals": totals,
                "base_total": overall,
                "repeated_fills": repeated,
            }
        )
        return
    for row in shown:
        label = " ".join(str(row[key]) for key in ("account", "desk", "instrument") if row[key])
        click.echo(
            f"{label or '-'}: {row['quantity']:g} at {row['average_price'] or 0:.6g}, "
            f"realised {row['realised_pnl']:.6g}, unrealised {_shown(row['unrealised_pnl'])}"
        )
    for total in [*totals, *([] if overall is None else [overall])]:
        click.echo(
            f"total {total['currency'] or '-'}: gross {total['gross_exposure']:.6g}, "
            f"net {total['net_exposure']:.6g}, realised {total['realised_pnl']:.6g}, "
            f"unrealised {total['unrealised_pnl']:.6g}"
            + (f", {left} without a price" if (left := total["unpriced_positions"]) else "")
        )


@risk.command()
@click.argument("trades", type=_FILE)
@click.option("--interval", "intervals", multiple=True, default=("1m",), show_default=True,
              help="30s, 1m, 4h, 1d (repeatable).")  # fmt: skip
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), required=True,
              help="CSV (may be .gz) or Parquet.")  # fmt: skip
@click.option("--price", type=click.Choice(["mid", "bid", "ask"]), default="mid", show_default=True,
              help="Which side of a file of quotes.")  # fmt: skip
@click.option("--fill-empty", is_flag=True, help="Add flat bars where nothing traded.")
@click.option("--time-zone", default="UTC", show_default=True, help="Of times without an offset.")
@click.option("--json", "as_json", is_flag=True, help="Print a summary as JSON.")
def bars(
    trades: Path,
    intervals: tuple[str, ...],
    out: Path,
    price: str,
    fill_empty: bool,
    time_zone: str,
    as_json: bool,
) -> None:
    """Exact open, high, low, close and volume bars from a file of trades.

    A bar covers [date, date + interval), UTC; a bar without trades is absent unless --fill-empty.
    Quotes (bid and ask) and shorter bars are accepted as well.

    Example: riskstream risk bars trades.csv.gz --interval 1m --out bars.csv
    """
    table = read_table(trades)
    chosen = {name: parse_interval(name) for name in intervals}
    result = bars_table(table, chosen, empty=fill_empty, price=price, time_zone=time_zone)
    write_table(result, out)
    used = int(pc.sum(result["trades"]).as_py() or 0) // len(chosen)
    left_out = table.num_rows - used
    summary = {
        "rows_in": table.num_rows,
        "rows_left_out": left_out,
        "bars": result.num_rows,
        "out": str(out),
    }
    if as_json:
        _print_json(summary)
    else:
        without = f" ({left_out} without a price left out)" if left_out else ""
        click.echo(f"{table.num_rows} rows{without}, {result.num_rows} bars: {out}", err=True)


@risk.command("backtest")
@click.option("--observations", type=int, help="Days forecast.")
@click.option("--exceptions", type=int, help="Days whose loss exceeded VaR.")
@click.option("--level", type=float, required=True, help="0.95, 0.05 and 95 all mean 95%.")
@click.option("--hits", type=_FILE, help="File of 0/1 per day, or of pnl and var per day.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def backtest_command(
    observations: int | None,
    exceptions: int | None,
    level: float,
    hits: Path | None,
    as_json: bool,
) -> None:
    """Kupiec, Christoffersen and the Basel traffic light for a series of VaR forecasts.

    Example: riskstream risk backtest --observations 1043 --exceptions 57 --level 0.05 --json
    """
    sequence = None if hits is None else read_hits(hits)
    if sequence is not None:
        observations = len(sequence) if observations is None else observations
        exceptions = int(sequence.sum()) if exceptions is None else exceptions
    if observations is None or exceptions is None:
        msg = "give --observations and --exceptions, or --hits FILE"
        raise click.UsageError(msg)
    report = backtest(observations, exceptions, confidence_of(level), sequence)
    light = report.traffic_light
    result = {
        "observations": report.observations,
        "exceptions": report.exceptions,
        "level": report.confidence,
        "tail_probability": round(1 - report.confidence, 12),
        "expected_exceptions": report.expected_exceptions,
        "exception_rate": report.exceptions / report.observations,
        "kupiec": _test(report.kupiec),
        "lr": report.kupiec.statistic,
        "p_value": report.kupiec.p_value,
        "independence": _test(report.independence),
        "conditional_coverage": _test(report.conditional_coverage),
        "traffic_light": {
            "zone": light.zone,
            "cumulative_probability": light.cumulative_probability,
            "multiplier_increase": light.multiplier_increase,
        },
    }
    if as_json:
        _print_json(result)
        return
    click.echo(
        f"{exceptions} exceptions in {observations}, {report.expected_exceptions:.2f} expected"
    )
    click.echo(f"Kupiec LR {report.kupiec.statistic:.5f}, p {report.kupiec.p_value:.5f}")
    if report.independence is not None:
        found = report.independence
        click.echo(f"Christoffersen LR {found.statistic:.5f}, p {found.p_value:.5f}")
    click.echo(f"Basel zone {light.zone}")


def _rates(base: str | None, fx: str | None) -> dict[str, float]:
    rates = {} if base is None else {base: 1.0}
    for item in fx.split(",") if fx else ():
        name, _, rate = item.partition("=")
        try:
            rates[name.strip()] = float(rate)
        except ValueError as e:
            msg = f"--fx: expected CURRENCY=RATE, was {item!r}"
            raise click.UsageError(msg) from e
    return rates


def _shown(money: float | None) -> str:
    return "unknown (no price)" if money is None else f"{money:.6g}"


def _total(
    currency: str, rows: list[dict[str, Any]], rates: dict[str, float], equity: float | None
) -> dict[str, Any]:
    total: dict[str, Any] = {"currency": currency, "positions": len(rows)}
    values = [(row["market_value"] or 0.0) * rates.get(row["currency"], 1.0) for row in rows]
    total["gross_exposure"] = math.fsum(abs(value) for value in values)
    total["net_exposure"] = math.fsum(values)
    for key in ("realised_pnl", "unrealised_pnl", "fees", "cash"):
        total[key] = math.fsum((row[key] or 0.0) * rates.get(row["currency"], 1.0) for row in rows)
    total["total_pnl"] = total["realised_pnl"] + total["unrealised_pnl"] - total["fees"]
    total["unpriced_positions"] = sum(row["market_value"] is None for row in rows)
    total["leverage"] = None if equity is None else total["gross_exposure"] / equity
    return total


def _test(found: LikelihoodRatio | None) -> dict[str, Any] | None:
    if found is None:
        return None
    return {
        "lr": found.statistic,
        "p_value": found.p_value,
        "degrees_of_freedom": found.degrees_of_freedom,
        "rejected": found.rejected(),
    }


def _by_name(text: str, names: tuple[str, ...]) -> NDArray[np.float64]:
    numbers = np.zeros(len(names))
    path = Path(text)
    items: dict[str, Any]
    try:
        if path.suffix == ".json" and path.is_file():
            items = dict(json.loads(path.read_text(encoding="utf-8")))
        elif text.lstrip().startswith("{"):
            items = dict(json.loads(text))
        elif "=" not in text:
            parts = [float(part) for part in text.split(",")]
            items = dict(zip(names, parts, strict=True))
        else:
            items = dict(item.strip().split("=", 1) for item in text.split(","))
        for name, number in items.items():
            numbers[names.index(name)] = float(number)
    except (ValueError, TypeError) as e:
        msg = (
            f"reading holdings: expected NAME=NUMBER for each of {', '.join(names)}, a JSON object "
            f"or numbers in this order, was {text!r}"
        )
        raise InputFileError(msg) from e
    return numbers


def _print_json(result: object) -> None:
    click.echo(json.dumps(result, indent=2))
