"""Run panel queries: shared by everybody who looks, each answer with its age."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Final

from connectors.clickhouse import ClickHouseClient
from connectors.settings import ClickHouseSettings
from dashboards.panels import Filter, Panel, Source
from dashboards.queries import FILTERS, SOURCES
from schemas.errors import ConfigurationError

__all__ = ["WINDOWS", "Freshness", "PanelAnswer", "PanelReader", "step_of"]

WINDOWS: Final[dict[str, int]] = {
    "5m": 300,
    "15m": 900,
    "1h": 3600,
    "6h": 21_600,
    "24h": 86_400,
    "7d": 604_800,
    "30d": 2_592_000,
}
"""Windows that a page offers, in seconds."""

# More points than this do not show on a panel half a screen wide; fewer hide short spikes.
_POINTS: Final = 120
# Queries at once. ClickHouse shares its cores among them, and people wait for whole pages.
_THREADS: Final = 4
# How often ClickHouse is asked for what live rows are laid over.
_BASE_SECONDS: Final = 2.0
# Answers kept: a page has a dozen panels, times the windows and filters that people look at.
_KEPT_ANSWERS: Final = 512


@dataclass(frozen=True, slots=True)
class Freshness:
    """How old what a panel shows is, by the clock of ClickHouse.

    `newest_ms` is 0 and `age_ms` None where the table is empty. `why` says in words what makes the
    numbers provisional, and is empty where they are settled.
    """

    newest_ms: int
    age_ms: int | None
    provisional: bool
    why: str

    @staticmethod
    def of(source: Source, newest_ms: int, now_ms: int, doubts: int) -> Freshness:
        """Judge the newest row of a source.

        >>> Freshness.of(Source("t", settle_seconds=5), 1_000, 9_000, 0)
        Freshness(newest_ms=1000, age_ms=8000, provisional=False, why='')
        """
        if newest_ms <= 0:
            return Freshness(0, None, False, "")
        age_ms = max(0, now_ms - newest_ms)
        reasons = []
        if age_ms < source.settle_seconds * 1000:
            reasons.append("rows are still coming in")
        if doubts > 0:
            reasons.append(f"{doubts:,} {source.doubts_text}")
        return Freshness(newest_ms, age_ms, bool(reasons), "; ".join(reasons))

    def since(self, newer_ms: int) -> Freshness:
        """Return the same with rows made at `newer_ms` as well, by the clock of this machine.

        >>> Freshness(1_000, 500, False, "").since(1_200)
        Freshness(newest_ms=1200, age_ms=300, provisional=False, why='')
        """
        if newer_ms <= self.newest_ms or self.age_ms is None:
            return self
        return replace(
            self, newest_ms=newer_ms, age_ms=max(0, self.age_ms - newer_ms + self.newest_ms)
        )

    def as_dict(self) -> dict[str, Any]:
        """Return what goes to the browser."""
        return {
            "newest_ms": self.newest_ms,
            "age_ms": self.age_ms,
            "provisional": self.provisional,
            "why": self.why,
        }


@dataclass(frozen=True, slots=True)
class PanelAnswer:
    """The rows of a panel and how fresh they are."""

    rows: list[dict[str, Any]]
    freshness: Freshness
    took_ms: float

    def as_dict(self) -> dict[str, Any]:
        """Return what goes to the browser."""
        return {"rows": self.rows, **self.freshness.as_dict(), "took_ms": round(self.took_ms, 1)}


@dataclass(slots=True)
class _Kept:
    asked: float
    answer: asyncio.Future[Any]


def step_of(window_seconds: int) -> int:
    """Return the seconds between the points of a series over a window.

    >>> step_of(300), step_of(86_400)
    (2, 720)
    """
    return max(1, window_seconds // _POINTS)


class PanelReader:
    """Answers panels out of ClickHouse; used from one event loop.

    However many pages are open, a query with the same parameters runs once in its panel's refresh
    time; who asks while it runs waits for the same answer. A failed query is not kept.

    Args:
        settings: where ClickHouse is. The user needs no more than the right to read.
        clock: seconds that never go backwards.
    """

    def __init__(
        self, settings: ClickHouseSettings, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="dashboard")
        self._local = threading.local()
        self._clients: list[ClickHouseClient] = []
        self._kept: dict[tuple[object, ...], _Kept] = {}

    async def panel(self, page: str, panel: Panel, asked: Mapping[str, str]) -> PanelAnswer:
        """Return a panel's rows; `asked` holds `window` and the page's filters, as given.

        Raises:
            ConfigurationError: when the window or a filter is not one that the page offers.
            RiskstreamError: when ClickHouse is away or refuses.
        """
        parameters = self.parameters(page, asked)
        used = {name: value for name, value in parameters.items() if f"{{{name}:" in panel.sql}
        key = (panel.name, *sorted(used.items()))
        answer: PanelAnswer = await self._shared(
            key, panel.refresh_ms / 1000, lambda: self._answer(panel.source, panel.sql, used)
        )
        return answer

    async def rows_of(self, source: str, query: str) -> PanelAnswer:
        """Return the rows of a query without parameters, as fresh as a source, kept for 2 s.

        Raises:
            RiskstreamError: when ClickHouse is away or refuses.
        """
        answer: PanelAnswer = await self._shared(
            ("rows", query), _BASE_SECONDS, lambda: self._answer(source, query, {})
        )
        return answer

    async def choices(self, choice: Filter) -> list[str]:
        """Return what a filter offers, in order.

        Raises:
            RiskstreamError: when ClickHouse is away or refuses.
        """
        rows: list[dict[str, Any]] = await self._shared(
            ("choices", choice.name), 5.0, lambda: self.rows(choice.choices)
        )
        return [str(row["value"]) for row in rows]

    async def freshness(self, source: str) -> Freshness:
        """Return how fresh a source is.

        Raises:
            RiskstreamError: when ClickHouse is away or refuses.
        """
        found: Freshness = await self._shared(
            ("freshness", source), 1.0, lambda: self._freshness(SOURCES[source])
        )
        return found

    async def in_thread(self, work: Callable[[], Any]) -> Any:
        """Run blocking work beside the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)

    @staticmethod
    def parameters(page: str, asked: Mapping[str, str]) -> dict[str, object]:
        """Return the parameters of a page's queries.

        Raises:
            ConfigurationError: when the window or a number is none.
        """
        window = WINDOWS.get(asked.get("window", "15m"))
        if window is None:
            msg = f"reading window: expected one of {list(WINDOWS)}, was {asked['window']!r}"
            raise ConfigurationError(msg)
        parameters: dict[str, object] = {"window": window, "step": step_of(window)}
        for choice in FILTERS[page]:
            value = asked.get(choice.name) or choice.default
            if choice.kind == "Int64" and not value.lstrip("-").isdecimal():
                msg = f"reading parameter {choice.name}: expected a number, was {value!r}"
                raise ConfigurationError(msg)
            # An empty parameter would not be sent at all; no name is a single blank.
            parameters[choice.name] = value or " "
        return parameters

    def rows(
        self, query: str, parameters: Mapping[str, object] | None = None
    ) -> list[dict[str, Any]]:
        """Run a query on this thread's own connection.

        Raises:
            RiskstreamError: when ClickHouse is away or refuses.
        """
        client: ClickHouseClient | None = getattr(self._local, "client", None)
        if client is None:
            client = self._local.client = ClickHouseClient(self._settings)
            self._clients.append(client)
        return client.rows(query, parameters)

    def close(self) -> None:
        """Let running queries end and close the connections."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        for client in self._clients:
            client.close()

    def _answer(self, source: str, query: str, parameters: Mapping[str, object]) -> PanelAnswer:
        started = self._clock()
        # The age is asked for first: rows that come in between make the panel younger than it says.
        freshness = self._freshness(SOURCES[source])
        rows = self.rows(query, parameters)
        return PanelAnswer(rows, freshness, (self._clock() - started) * 1000)

    def _freshness(self, source: Source) -> Freshness:
        (row,) = self.rows(source.freshness)
        return Freshness.of(source, int(row["newest_ms"]), int(row["now_ms"]), int(row["doubts"]))

    async def _shared(
        self, key: tuple[object, ...], seconds: float, work: Callable[[], Any]
    ) -> Any:
        now = self._clock()
        kept = self._kept.get(key)
        if kept is None or (kept.answer.done() and now - kept.asked >= seconds):
            if len(self._kept) >= _KEPT_ANSWERS:
                for old in sorted(self._kept, key=lambda k: self._kept[k].asked)[:64]:
                    del self._kept[old]
            future = asyncio.ensure_future(self.in_thread(work))
            kept = self._kept[key] = _Kept(now, future)
        try:
            # One reader who leaves must not cancel the query for the others.
            return await asyncio.shield(kept.answer)
        except Exception:
            if self._kept.get(key) is kept:
                del self._kept[key]
            raise
