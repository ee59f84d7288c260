"""The dashboards' queries: one list, shown live and by Grafana."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from dashboards.grafana.generate import grafana_files, grafana_sql
from dashboards.layout import page_layout
from dashboards.panels import IN_WINDOW, Source
from dashboards.queries import FEEDS, FILTERS, PAGES, PANELS, SOURCES, panel_named
from dashboards.reader import Freshness, PanelReader
from schemas.errors import ConfigurationError

GRAFANA = Path(__file__).resolve().parents[2] / "dashboards/grafana"


def test_the_grafana_files_are_those_that_the_queries_make() -> None:
    for name, text in grafana_files().items():
        written = (GRAFANA / name).read_text(encoding="utf-8")
        assert written == text, "run: python -m dashboards.grafana"


@pytest.mark.parametrize("page", PAGES)
def test_every_panel_of_a_page_is_in_its_grafana_dashboard_with_the_same_query(page: str) -> None:
    dashboard = json.loads((GRAFANA / f"{page}.json").read_text(encoding="utf-8"))
    queries = {panel["title"]: panel["targets"][0]["rawSql"] for panel in dashboard["panels"]}
    for panel in PANELS[page]:
        assert queries[panel.title] == grafana_sql(panel.sql)
    assert {feed.title for feed in FEEDS[page]} <= set(queries)
    assert not [sql for sql in queries.values() if re.search(r"(?<!\$)\{\w+:\w+\}", sql)]
    # Undoing the substitution gives the live query again: nothing else was changed.
    for panel in PANELS[page]:
        undone = queries[panel.title]
        undone = re.sub(
            r"inserted_at > fromUnix.*?AND inserted_at <= .*?'UTC'\)", IN_WINDOW, undone
        )
        undone = undone.replace(
            "toUInt32(greatest(1, intDiv(${__interval_ms}, 1000)))", "{step:UInt32}"
        )
        undone = undone.replace("toUInt32(intDiv(${__to} - ${__from}, 1000))", "{window:UInt32}")
        undone = re.sub(r"\$\{(\w+):sqlstring\}", r"{\1:String}", undone)
        assert re.sub(r"toInt64\(\$\{(\w+)\}\)", r"{\1:Int64}", undone) == panel.sql


def test_every_panel_names_a_source_and_draws_columns_that_it_has() -> None:
    names = [panel.name for panels in PANELS.values() for panel in panels]
    assert len(names) == len(set(names))
    for page, panels in PANELS.items():
        known = {"window", "step", *(choice.name for choice in FILTERS[page])}
        for panel in panels:
            columns = {column.name for column in panel.columns}
            assert panel.source in SOURCES
            assert {panel.x, panel.by, *panel.y} - {""} <= columns
            assert set(re.findall(r"\{(\w+):\w+\}", panel.sql)) <= known
            assert panel_named(panel.name) == (page, panel)
        for feed in FEEDS[page]:
            columns = {name for name, _ in feed.columns}
            assert {feed.index, *feed.shown} <= columns
            assert feed.source in SOURCES


def test_the_layout_offers_kafka_panels_only_where_something_answers_them() -> None:
    with_kafka = page_layout("operators", frozenset({"kafka_lag"}))
    assert "kafka_lag" in {panel["name"] for panel in with_kafka["panels"]}
    assert "kafka_lag" not in {panel["name"] for panel in page_layout("operators")["panels"]}


def test_a_panel_is_provisional_while_rows_come_in_or_something_is_in_doubt() -> None:
    source = Source("t", settle_seconds=5, doubts="1", doubts_text="positions have no price")
    assert Freshness.of(source, 10_000, 12_000, 0).why == "rows are still coming in"
    assert Freshness.of(source, 10_000, 20_000, 3).why == "3 positions have no price"
    assert not Freshness.of(source, 10_000, 20_000, 0).provisional
    assert Freshness.of(source, 0, 20_000, 0).age_ms is None
    # A clock that runs behind makes nothing younger than now.
    assert Freshness.of(source, 10_000, 9_000, 0).age_ms == 0


def test_parameters_that_no_page_offers_are_refused() -> None:
    assert PanelReader.parameters("fraud", {"window": "1h"}) == {
        "window": 3600, "step": 30, "channel": "all", "model": "all",
    }  # fmt: skip
    with pytest.raises(ConfigurationError, match="window"):
        PanelReader.parameters("fraud", {"window": "1 OR 1"})
    with pytest.raises(ConfigurationError, match="interval"):
        PanelReader.parameters("traders", {"interval": "60000; DROP TABLE x"})
