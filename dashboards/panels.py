"""What a panel is: a query, where its freshness comes from, and how it looks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

__all__ = [
    "IN_WINDOW",
    "KINDS",
    "UNITS",
    "Column",
    "Feed",
    "Filter",
    "Kind",
    "Panel",
    "Source",
    "Unit",
]

Kind = Literal["stat", "lines", "bars", "table", "candles", "backtest", "pivot"]
"""How a panel is drawn."""

Unit = Literal[
    "count", "rate", "ms", "share", "ratio", "probability", "money", "number", "text", "time"
]
"""What a column's numbers are; `share` is 0 to 1, `rate` is per second, `time` is UTC.

`ratio` is a multiple; `probability` a p-value, 0 to 1, that is read to three places.
"""

IN_WINDOW: Final = "inserted_at > now64(3, 'UTC') - toIntervalSecond({window:UInt32})"
"""The condition for rows of the chosen window; Grafana has its own in its place."""

KINDS: Final[tuple[Kind, ...]] = (
    "stat",
    "lines",
    "bars",
    "table",
    "candles",
    "backtest",
    "pivot",
)
"""Every kind of panel."""

UNITS: Final[tuple[Unit, ...]] = (
    "count",
    "rate",
    "ms",
    "share",
    "ratio",
    "probability",
    "money",
    "number",
    "text",
    "time",
)
"""Every unit of a column."""


@dataclass(frozen=True, slots=True)
class Source:
    """A table that panels read, and how to tell whether what it says may still change.

    Attributes:
        table: where rows are inserted, with a column `inserted_at`.
        settle_seconds: rows younger than this may be joined by others of the same moment, so what
            they add up to is provisional. Covers the time that rows are gathered for before they
            are inserted, twice over.
        doubts: an expression that counts what is provisional for another reason, over `table` or
            `doubts_from`; None when nothing is.
        doubts_from: where `doubts` is counted instead of in `table`.
        doubts_text: what is counted, as the reader sees it after the number.
    """

    table: str
    settle_seconds: int = 5
    doubts: str | None = None
    doubts_from: str | None = None
    doubts_text: str = ""

    @property
    def freshness(self) -> str:
        """The query for the newest row (0: none), the server's clock and the number of doubts."""
        doubts = "0"
        if self.doubts is not None:
            doubts = f"(SELECT {self.doubts} FROM {self.doubts_from or self.table})"  # noqa: S608
        return (
            "SELECT toUnixTimestamp64Milli(max(inserted_at)) AS newest_ms, "  # noqa: S608 - our names
            "toUnixTimestamp64Milli(now64(3, 'UTC')) AS now_ms, "
            f"toUInt64(ifNull({doubts}, 0)) AS doubts FROM {self.table}"
        )


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a panel's rows, in the order shown."""

    name: str
    label: str
    unit: Unit = "count"


@dataclass(frozen=True, slots=True)
class Filter:
    """A choice at the top of a page, given to queries as the parameter `name`.

    `choices` is a query for `value` (rows in the order shown); `default` is taken when none was
    chosen. `all` stands for no restriction where the default is `all`. Values shown as `duration`
    are milliseconds.
    """

    name: str
    label: str
    kind: Literal["String", "Int64"]
    choices: str
    default: str = "all"
    shown: Literal["text", "duration"] = "text"


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel; `sql` may use parameters `window` and `step` (seconds) and those of filters."""

    name: str
    title: str
    kind: Kind
    source: str
    sql: str
    columns: tuple[Column, ...]
    help: str
    x: str = ""
    y: tuple[str, ...] = ()
    by: str = ""
    stacked: bool = False
    logarithmic: bool = False
    width: int = 6
    height: int = 2
    refresh_ms: int = 2000


@dataclass(frozen=True, slots=True)
class Feed:
    """A table that people pivot: rows stream from ClickHouse into Perspective.

    Attributes:
        name: of the panel and of the Perspective table.
        title: as shown.
        source: key of `SOURCES`; what is new is found by its `inserted_at`.
        view: what is read, with a column `inserted_at`.
        select: expressions for `columns`.
        columns: name to Perspective type.
        index: the column that a newer row replaces an older one by.
        limit: rows kept in the table; the oldest go first.
        where: which rows are taken.
        sort: newest first by this column.
        shown: columns at the start; people add the others themselves.
        live: name of the rows on the live topic that are rows of this table, if any.
        version: of rows that change, an expression for the wall clock (ms) at which a row was made;
            live rows are not replaced by older ones.
    """

    name: str
    title: str
    source: str
    view: str
    select: str
    columns: tuple[tuple[str, str], ...]
    index: str
    limit: int
    help: str
    where: str = "1"
    sort: str = ""
    shown: tuple[str, ...] = ()
    drill: str = ""
    live: str = ""
    version: str = "0"
    width: int = 12
    height: int = 3
