"""Describe a page to the browser: what is on it, and how it is drawn."""

from __future__ import annotations

from typing import Any, Final

from dashboards.panels import Column, Feed, Panel
from dashboards.queries import FEEDS, FILTERS, PAGES, PANELS
from dashboards.reader import WINDOWS

__all__ = ["EXTRA_PANELS", "page_layout"]

EXTRA_PANELS: Final[dict[str, tuple[Panel, ...]]] = {
    "operators": (
        Panel(
            name="kafka_lag",
            title="Lag",
            kind="table",
            source="kafka",
            sql="",
            columns=(
                Column("topic", "Topic", "text"),
                Column("partition", "Partition"),
                Column("end", "End offset"),
                Column("committed", "Committed"),
                Column("stored", "Highest stored"),
                Column("lag", "Lag"),
            ),
            width=5,
            help="Records on Kafka after the highest offset that is a row in ClickHouse, or that "
            "the job committed at its last checkpoint where rows carry no offsets (ticks, quotes).",
        ),
        Panel(
            name="kafka_dead_letters",
            title="Dead letters",
            kind="table",
            source="kafka",
            sql="",
            columns=(
                Column("when", "When", "time"),
                Column("letter", "Letter", "text"),
                Column("record", "Record", "text"),
                Column("reason", "Reason", "text"),
                Column("stage", "Stage", "text"),
                Column("attempt", "Attempt"),
            ),
            width=7,
            help="The newest records that were refused. `riskstream dead-letters` shows, explains "
            "and replays them.",
        ),
    ),
}
"""Panels that are answered from Kafka, by page; shown where Kafka is configured."""


def page_layout(
    page: str, extras: frozenset[str] = frozenset(), base_currency: str = ""
) -> dict[str, Any]:
    """Return a page's panels, feeds, filters and windows as JSON-able data.

    Args:
        page: key of `PAGES`.
        extras: names of the panels in `EXTRA_PANELS` that are answered here.
        base_currency: what money of the market risk page is in; empty says nothing.

    Raises:
        KeyError: when there is no such page.
    """
    panels = [_panel(panel) for panel in PANELS[page]]
    panels += [_panel(panel) for panel in EXTRA_PANELS.get(page, ()) if panel.name in extras]
    return {
        "page": page,
        "title": PAGES[page],
        "currency": base_currency if page == "traders" else "",
        "pages": [{"name": name, "title": title} for name, title in PAGES.items()],
        "windows": list(WINDOWS),
        "panels": panels,
        "feeds": [_feed(feed) for feed in FEEDS[page]],
        "filters": [
            {
                "name": choice.name,
                "label": choice.label,
                "default": choice.default,
                "shown": choice.shown,
            }
            for choice in FILTERS[page]
        ],
    }


def _panel(panel: Panel) -> dict[str, Any]:
    return {
        "name": panel.name,
        "title": panel.title,
        "kind": panel.kind,
        "help": panel.help,
        "columns": [
            {"name": column.name, "label": column.label, "unit": column.unit}
            for column in panel.columns
        ],
        "x": panel.x,
        "y": list(panel.y),
        "by": panel.by,
        "stacked": panel.stacked,
        "logarithmic": panel.logarithmic,
        "width": panel.width,
        "height": panel.height,
        "refresh_ms": panel.refresh_ms,
    }


def _feed(feed: Feed) -> dict[str, Any]:
    return {
        "name": feed.name,
        "title": feed.title,
        "kind": "pivot",
        "help": feed.help,
        "shown": list(feed.shown),
        "times": [name for name, kind in feed.columns if kind == "datetime"],
        "sort": feed.sort,
        "drill": feed.drill,
        "width": feed.width,
        "height": feed.height,
        "refresh_ms": 1000,
    }
