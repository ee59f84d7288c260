"""The figures at the top of the traders' page, from the live topic over those of ClickHouse."""

from __future__ import annotations

import threading
from typing import Any, Final

import pyarrow as pa

from dashboards.live import Pushed
from dashboards.reader import PanelAnswer, PanelReader

__all__ = ["LiveTotals"]

_FIRMS: Final = "firms"
# Everything that is summed over firms; leverage is the greatest.
_SUMMED: Final = (
    "pnl",
    "value_at_risk",
    "expected_shortfall",
    "gross",
    "net",
    "margin",
    "positions",
)
_OF_FIRMS: Final = (
    "SELECT firm_id, pnl, value_at_risk, expected_shortfall, gross, net, leverage, margin, "
    "positions, unpriced, stale, evaluated_at_ms AS version_ms "
    "FROM risk_measures_now WHERE scope = 'firm'"
)


class LiveTotals:
    """Answers the panel of totals: of each firm the newest row that either place has.

    Args:
        reader: asks ClickHouse, which is the base.
    """

    panel: Final = "trader_totals"
    """Name of the panel."""

    def __init__(self, reader: PanelReader) -> None:
        self._reader = reader
        self._lock = threading.Lock()
        self._firms: dict[str, dict[str, Any]] = {}

    def push(self, pushed: Pushed) -> None:
        """Take a record of the live topic; others than those of firms change nothing."""
        if pushed.table != _FIRMS:
            return
        with pa.ipc.open_stream(pushed.rows) as stream:
            rows = stream.read_all().to_pylist()
        with self._lock:
            for row in rows:
                self._firms[row["firm_id"]] = {**row, "version_ms": pushed.version_ms}

    async def answer(self) -> dict[str, Any]:
        """Return the panel's answer.

        Raises:
            RiskstreamError: when ClickHouse is away or refuses.
        """
        stored: PanelAnswer = await self._reader.rows_of("measures", _OF_FIRMS)
        firms = {str(row["firm_id"]): row for row in stored.rows}
        freshness = stored.freshness
        with self._lock:
            for name, row in self._firms.items():
                held = firms.get(name)
                if held is None or int(held["version_ms"]) <= int(row["version_ms"]):
                    firms[name] = row
                    freshness = freshness.since(int(row["version_ms"]))
        if not firms:
            return PanelAnswer([], freshness, stored.took_ms).as_dict()
        chosen = list(firms.values())
        total = {name: _sum([row[name] for row in chosen]) for name in _SUMMED}
        total["leverage"] = max(
            (float(row["leverage"]) for row in chosen if row["leverage"] is not None), default=None
        )
        return PanelAnswer([total], freshness, stored.took_ms).as_dict()


def _sum(values: list[Any]) -> float | None:
    # A part that is unknown makes the whole unknown, as in ClickHouse.
    return None if any(value is None for value in values) else sum(float(value) for value in values)
