"""Price files as other people write them: whatever the layout, the same prices and the same VaR."""

from __future__ import annotations

import datetime as dt
import json
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from click.testing import CliRunner

from jobs.cli.risk import risk
from jobs.market_risk.files import InputFileError
from jobs.market_risk.offline import price_history

DAYS = [dt.date(2023, 1, 2) + dt.timedelta(days=n) for n in range(120)]
_MOVES = np.random.default_rng(1).normal(0, 0.01, (120, 2))
PRICES = np.round(1_500 * np.exp(np.cumsum(_MOVES, axis=0)), 2)


def wide(separator=",", form="%Y-%m-%d", show=repr, header="Date{s}AAPL{s}MSFT", order=1):
    lines = [
        separator.join([day.strftime(form), *(show(price) for price in row)])
        for day, row in list(zip(DAYS, PRICES.tolist(), strict=True))[::order]
    ]
    return "\n".join([header.format(s=separator), *lines]) + "\n"


def long(header="date,symbol,price"):
    lines = [
        f"{day},{name},{price!r}"
        for day, row in zip(DAYS, PRICES.tolist(), strict=True)
        for name, price in zip(("AAPL", "MSFT"), row, strict=True)
    ]
    return "\n".join([header, *lines[::-1]]) + "\n"


def comma(price):
    return f"{price:.2f}".replace(".", ",")


LAYOUTS = {
    "a column each": wide(),
    "semicolons": wide(";"),
    "semicolons and decimal commas": wide(";", show=comma),
    "tabs": wide("\t"),
    "bars": wide("|"),
    "newest first": wide(order=-1),
    "days first": wide(form="%d/%m/%Y"),
    "months first": wide(form="%m/%d/%Y"),
    "months first with times": wide(form="%m/%d/%Y %H:%M"),
    "compact dates": wide(form="%Y%m%d"),
    "commas between thousands": wide(show=lambda price: f'"{price:,.2f}"'),
    "blanks around": wide(show=lambda price: f"  {price!r} ", header="Date, AAPL , MSFT"),
    "a row for each": long(),
    "a row for each, other names": long("timestamp,ticker,close"),
    "a note beside": "\n".join(
        line + (",remark" if line.startswith("Date") else ",ok") for line in wide().splitlines()
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_prices(tmp_path, layout):
    path = tmp_path / "prices.csv"
    path.write_text(LAYOUTS[layout], encoding="utf-8")
    found = price_history(path)
    assert sorted(name.strip() for name in found.instruments) == ["AAPL", "MSFT"]
    order = np.argsort([name.strip() for name in found.instruments])
    assert found.prices[:, order].tolist() == PRICES.tolist()
    assert found.dropped == 0


def test_a_bare_column_of_prices_loses_none(tmp_path):
    path = tmp_path / "close.csv"
    path.write_text("\n".join(repr(price) for price in PRICES[:, 0].tolist()), encoding="utf-8")
    assert price_history(path).prices[:, 0].tolist() == PRICES[:, 0].tolist()
    found = CliRunner().invoke(risk, ["var", str(path), "--level", "0.95", "--json"])
    returns = PRICES[1:, 0] / PRICES[:-1, 0] - 1
    assert json.loads(found.stdout)["var"] == pytest.approx(-np.quantile(returns, 0.05))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (wide().replace(repr(PRICES[7, 1].item()), "12.3x"), "column 'MSFT'.*'12.3x'"),
        ("Date,Close,Close\n,AAPL,MSFT\n2023-01-02,1,2\n", "'Close'.* more than once"),
        ("Date,A\n01/02/2023,1\n05/01/2023,2\n03/04/2023,3\n", "day or month first"),
        ("Date,A\n2023-01-02,1\nyesterday,2\n", "times: expected"),
        ("name,colour\nx,red\n", "column of numbers"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_refused_with_its_cause(tmp_path, text, problem):
    path = tmp_path / "prices.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputFileError, match=problem):
        price_history(path)


def test_of_rows_at_one_time_the_last_counts_and_the_others_are_counted(tmp_path):
    path, again = tmp_path / "prices.csv", tmp_path / "again.csv"
    path.write_text(wide(), encoding="utf-8")
    header, *rows = wide().splitlines()
    odd = rows[40].split(",")[0] + ",1,1"
    again.write_text("\n".join([header, *rows[:40], odd, *rows[40:], *rows[7:9]]), encoding="utf-8")
    once, found = price_history(path), price_history(again)
    assert (once.repeated, found.repeated) == (0, 3)
    assert found.prices.tolist() == once.prices.tolist()
    stacked = tmp_path / "long.csv"
    stacked.write_text("date,symbol,price\n1-Jan-2024,A,9\n1-Jan-2024,B,5\n1-Jan-2024,A,8\n")
    found = price_history(stacked)
    assert (found.repeated, found.prices.tolist()) == (1, [[8, 5]])


def test_a_column_that_is_no_time_of_each_row_is_refused(tmp_path):
    path = tmp_path / "prices.csv"
    path.write_text("date,close\n" + "2024-01-01,1\n" * 5, encoding="utf-8")
    with pytest.raises(InputFileError, match=r"a row for each time in 'date', was 4 of 5 rows"):
        price_history(path)


def test_a_file_with_a_header_alone_says_that_it_has_no_rows(tmp_path):
    path = tmp_path / "prices.csv"
    path.write_text("date,close\n", encoding="utf-8")
    with pytest.raises(InputFileError, match=r"expected rows of prices, was 'date, close' and no"):
        price_history(path)


def test_decimals_of_a_parquet_file_are_prices(tmp_path):
    path = tmp_path / "prices.parquet"
    decimals = pa.array([Decimal("1.10"), Decimal("1.25"), None], pa.decimal128(12, 4))
    pa.parquet.write_table(pa.table({"date": DAYS[:3], "close": decimals}), path)
    found = price_history(path)
    assert (found.prices.ravel().tolist(), found.dropped) == ([1.1, 1.25], 1)


@pytest.mark.parametrize("day", ["2024-03-01", "2024.03.01", "20240301"])
def test_a_day_and_a_time_of_day_in_two_columns_are_one_time(tmp_path, day):
    path = tmp_path / "bars.csv"
    path.write_text(f"Date,Time,Close\n{day},09:31,2\n{day},09:30,1\n", encoding="utf-8")
    found = price_history(path)
    assert found.instruments == ("Close",)
    assert found.prices.ravel().tolist() == [1, 2]
    assert found.times_ms.tolist() == [1_709_285_400_000, 1_709_285_460_000]
