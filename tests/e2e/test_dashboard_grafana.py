"""Grafana's queries run on ClickHouse once its variables are filled in, and say what pages say."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from connectors.clickhouse import ClickHouseClient
from connectors.settings import ClickHouseSettings
from dashboards.queries import PAGES, PANELS
from dashboards.reader import PanelReader
from tests.integration._clickhouse_process import clickhouse
from tests.support.dashboards import fill_fraud, fill_market_risk

GRAFANA = Path(__file__).resolve().parents[2] / "dashboards/grafana"
CHOSEN = {"channel": "'all'", "model": "'all'", "instrument": "'SPX'", "interval": "60000"}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClickHouseClient]:
    with clickhouse(tmp_path_factory.mktemp("clickhouse")) as port:
        made = ClickHouseClient(ClickHouseSettings(url=f"http://127.0.0.1:{port}"))
        fill_fraud(made, 500)
        fill_market_risk(made)
        yield made
        made.close()


@pytest.mark.parametrize("page", PAGES)
def test_every_query_of_grafana_runs_and_equals_the_page(
    page: str, client: ClickHouseClient
) -> None:
    (row,) = client.rows("SELECT toUnixTimestamp64Milli(now64(3, 'UTC')) AS now")
    filled = {
        "__from": str(row["now"] - 86_400_000),
        "__to": str(row["now"] + 60_000),
        "__interval_ms": "720000",
        **CHOSEN,
    }
    live = {panel.title: panel for panel in PANELS[page]}
    dashboard = json.loads((GRAFANA / f"{page}.json").read_text(encoding="utf-8"))
    for panel in dashboard["panels"]:
        raw = panel["targets"][0]["rawSql"]
        rows = client.rows(re.sub(r"\$\{(\w+)(:sqlstring)?\}", lambda match: filled[match[1]], raw))
        assert rows, panel["title"]
        if panel["title"] in live:
            asked = {"window": "24h", "instrument": "SPX", "interval": "60000"}
            parameters = PanelReader.parameters(page, asked)
            expected = client.rows(live[panel["title"]].sql, parameters)
            if live[panel["title"]].name in ("operator_totals", "operator_market"):
                # The rate of the last 30 s moves on between the two questions.
                rows, expected = ([{**r, "rate": 0} for r in found] for found in (rows, expected))
            assert rows == expected, panel["title"]
