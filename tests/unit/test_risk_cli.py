from __future__ import annotations

import gzip
import json

import numpy as np
import pytest
from click.testing import CliRunner

from jobs.cli.risk import risk
from jobs.market_risk import files

FILLS = """fill_id,timestamp,account,instrument,side,quantity,price,fee,currency
1,2024-01-01T10:00:00Z,A1,ABC,buy,10,100.5,1.25,USD
2,2024-01-01T10:01:00Z,A1,ABC,buy,5,101,0.1,USD
3,2024-01-01T10:02:00Z,A1,ABC,sell,12,103,0,USD
3,2024-01-01T10:02:00Z,A1,ABC,sell,12,103,0,USD
4,2024-01-01T10:02:00Z,A1,XYZ,sell,3,50,0,EUR
"""


def run(*arguments):
    result = CliRunner().invoke(risk, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


def as_json(*arguments):
    return json.loads(run(*arguments, "--json"))


@pytest.fixture
def prices(tmp_path):
    rng = np.random.default_rng(3)
    path = tmp_path / "prices.csv"
    values = 100 * np.exp(np.cumsum(rng.normal(0, 0.01, (300, 2)), axis=0))
    days = np.datetime64("2023-01-02") + np.arange(300)
    lines = [f"{day},{a!r},{b!r}" for day, (a, b) in zip(days, values.tolist(), strict=True)]
    path.write_text("date,A,B\n" + "\n".join(lines) + "\n", encoding="utf-8")
    return path, values


def test_var_of_one_column_is_the_quantile_of_its_returns(prices):
    path, values = prices
    found = as_json("var", path, "--column", "A", "--level", "0.95")
    returns = values[1:, 0] / values[:-1, 0] - 1
    assert found["var"] == pytest.approx(-np.quantile(returns, 0.05))
    assert found["observations"] == 299
    assert as_json("var", path, "--column", "A", "--level", "5e-2")["var"] == found["var"]


@pytest.mark.parametrize("method", ["plain", "age", "volatility", "ewma", "normal", "montecarlo"])
def test_every_method_splits_var_over_the_instruments(prices, method):
    found = as_json("var", prices[0], "--method", method, "--positions", "A=10,B=-4")
    assert sum(found["component_var"].values()) == pytest.approx(found["var"])
    assert found["es"] > found["var"] > 0
    assert found["unit"] == "money"


def test_long_files_and_parquet_give_what_wide_files_give(prices, tmp_path):
    path, values = prices
    long = tmp_path / "long.csv"
    table = files.read_table(path)
    days = table["date"].to_pylist()
    lines = [
        f"{day},{name},{price!r}"
        for day, row in zip(days, values.tolist(), strict=True)
        for name, price in zip("AB", row, strict=True)
    ]
    long.write_text("time,symbol,close\n" + "\n".join(lines), encoding="utf-8")
    parquet = tmp_path / "wide.parquet"
    files.write_table(table, parquet)
    wanted = as_json("var", path)["var"]
    assert as_json("var", long)["var"] == pytest.approx(wanted)
    assert as_json("var", parquet)["var"] == pytest.approx(wanted)


def test_positions_are_netted_once_by_both_methods(tmp_path):
    fills, prices = tmp_path / "fills.csv", tmp_path / "prices.csv"
    fills.write_text(FILLS, encoding="utf-8")
    prices.write_text("instrument,price\nABC,104\nXYZ,49.5\n", encoding="utf-8")
    found = as_json("positions", fills, "--prices", prices, "--base", "USD", "--fx", "EUR=1.1")
    abc, xyz = found["positions"]
    assert found["repeated_fills"] == 1
    assert (abc["quantity"], abc["realised_fifo"], abc["unrealised_fifo"]) == (3, 29, 9)
    assert (abc["realised_average"], abc["unrealised_average"]) == (28, 10)
    assert (xyz["quantity"], xyz["unrealised_fifo"]) == (-3, 1.5)
    assert found["base_total"]["gross_exposure"] == pytest.approx(312 + 148.5 * 1.1)


def test_bars_of_a_compressed_file_are_written_as_asked(tmp_path):
    trades = tmp_path / "trades.csv.gz"
    with gzip.open(trades, "wt") as stream:
        stream.write("ts,px,qty\n1577836800,1.5,2\n1577836859,1.7,1\n1577836980,1.6,0.5\n")
    out = tmp_path / "bars.parquet"
    run("bars", trades, "--interval", "1m", "--out", out)
    bars = files.read_table(out)
    assert bars["close"].to_pylist() == [1.7, 1.6]
    assert bars["volume"].to_pylist() == [3.0, 0.5]
    run("bars", trades, "--interval", "1m", "--out", out, "--fill-empty")
    assert files.read_table(out)["close"].to_pylist() == [1.7, 1.7, 1.7, 1.6]


def test_backtest_prints_the_published_example(tmp_path):
    found = as_json("backtest", "--observations", 1043, "--exceptions", 57, "--level", 0.05)
    assert (round(found["lr"], 5), round(found["p_value"], 5)) == (0.46147, 0.49694)
    hits = tmp_path / "hits.csv"
    hits.write_text("hit\n" + "\n".join("0001000010"), encoding="utf-8")
    found = as_json("backtest", "--hits", hits, "--level", 0.9)
    assert (found["observations"], found["exceptions"]) == (10, 2)
    assert found["independence"]["degrees_of_freedom"] == 1


def test_feeds_can_be_counted_without_a_broker(tmp_path):
    fills = tmp_path / "fills.csv"
    fills.write_text(FILLS, encoding="utf-8")
    assert as_json("replay", fills, "--dry-run")["published"] == {"fills": 5}
    counted = as_json("simulate", "--seconds", 4, "--instruments", 3, "--dry-run")["published"]
    assert counted["instruments"] == 3
    assert counted["quotes"] == 3 * 40


def test_a_file_without_prices_is_refused_by_name(tmp_path):
    path = tmp_path / "empty.csv"
    path.write_text("name,colour\nx,red\n", encoding="utf-8")
    result = CliRunner().invoke(risk, ["var", str(path)])
    assert result.exit_code == 1
    assert "column of numbers" in str(result.exception)


def test_a_column_of_holdings_is_held_and_never_an_instrument(prices, tmp_path):
    path, values = prices
    held = tmp_path / "held.csv"
    rows = [
        f"{np.datetime64('2023-01-02') + day},{name},{values[day, place].item()!r},{units}"
        for day in range(len(values))
        for place, (name, units) in enumerate((("A", 10), ("B", -5)))
    ]
    held.write_text("\n".join(["date,symbol,price,quantity", *rows]))
    expected = as_json("var", path, "--positions", "A=10,B=-5")
    found = as_json("var", held)
    assert (found["var"], found["unit"]) == (expected["var"], "money")
    assert (found["holdings"], expected["holdings"]) == ("quantity", None)
    # Sizes of trades vary, and are no holdings; weights overrule what the file says.
    held.write_text("date,price,quantity\n2020-01-01,100,5\n2020-01-02,101,6\n2020-01-03,99,5\n")
    found = as_json("var", held)
    assert (found["unit"], found["exposures"]) == ("fraction", {"price": 1.0})
    held.write_text("date,price,position\n2020-01-01,100,5\n2020-01-02,101,6\n2020-01-03,99,7\n")
    assert as_json("var", held)["exposures"] == {"price": 7 * 99}
    assert as_json("var", held, "--value", "10")["exposures"] == {"price": 10}


def test_returns_of_prices_below_zero_are_refused(tmp_path):
    path = tmp_path / "oil.csv"
    path.write_text("date,price\n2020-04-17,18.27\n2020-04-20,-37.63\n2020-04-21,10.01\n")
    result = CliRunner().invoke(risk, ["var", str(path)])
    assert isinstance(result.exception, files.InputFileError)
    assert "-37.63" in str(result.exception)
    assert as_json("var", path, "--returns", "given")["var"] > 30


@pytest.mark.parametrize("sold", ["4", "-4"])
def test_beside_a_side_a_sale_may_be_written_below_zero(tmp_path, sold):
    fills, prices = tmp_path / "fills.csv", tmp_path / "prices.csv"
    fills.write_text(f"symbol,side,qty,price\nA,buy,10,5\nA,sell,{sold},6\n", encoding="utf-8")
    prices.write_text("symbol,price\nA,7\n", encoding="utf-8")
    (line,) = as_json("positions", fills, "--prices", prices)["positions"]
    assert (line["quantity"], line["realised_pnl"], line["unrealised_pnl"]) == (6, 4, 12)


@pytest.mark.parametrize("rows", ["A,buy,-10,5", "A,sell,-4,5\nA,sell,4,5"])
def test_a_quantity_that_contradicts_its_side_is_refused(tmp_path, rows):
    fills, prices = tmp_path / "fills.csv", tmp_path / "prices.csv"
    fills.write_text(f"symbol,side,qty,price\n{rows}\n", encoding="utf-8")
    prices.write_text("symbol,price\nA,7\n", encoding="utf-8")
    result = CliRunner().invoke(risk, ["positions", str(fills), "--prices", str(prices)])
    assert isinstance(result.exception, files.InputFileError)
    assert "in row 1; write a reversal as a fill of the other side" in str(result.exception)


def test_what_is_left_out_is_said(tmp_path):
    fills, trades = tmp_path / "fills.csv", tmp_path / "trades.csv"
    fills.write_text("symbol,qty,price\nA,1,5\nB,2,5\n", encoding="utf-8")
    prices = tmp_path / "prices.csv"
    prices.write_text("symbol,price\nA,7\n", encoding="utf-8")
    shown = run("positions", fills, "--prices", prices)
    assert "B: 2 at 5, realised 0, unrealised unknown (no price)" in shown
    assert shown.rstrip().endswith("unrealised 2, 1 without a price")
    trades.write_text("ts,price,size\n1704067201,10,1\n1704067202,,1\n1704067203,11,-2\n")
    summary = as_json("bars", trades, "--out", tmp_path / "bars.csv")
    assert (summary["rows_in"], summary["rows_left_out"], summary["bars"]) == (3, 1, 1)
    # A size below zero is a sale: its amount was traded.
    assert ",10,11,10,11,3,2," in (tmp_path / "bars.csv").read_text(encoding="utf-8")


def test_a_market_can_begin_where_another_ended_and_a_trade_without_a_price_is_none(tmp_path):
    first = as_json("simulate", "--seconds", 4, "--dry-run")["published"]
    later = as_json("simulate", "--seconds", 4, "--start", "2020-02-03", "--dry-run")["published"]
    assert later == first
    assert first["quotes"] > 0
    trades = tmp_path / "trades.csv"
    trades.write_text("ts,price,size\n1704067201,10,1\n1704067202,,1\n", encoding="utf-8")
    assert as_json("replay", trades, "--dry-run")["published"] == {"ticks": 1}
