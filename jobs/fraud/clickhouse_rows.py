"""The tables of the fraud job, by their number in row packets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from connectors.tables import (
    CONTROL_TABLE,
    LABELS_TABLE,
    SCORED_TABLE,
    SHADOW_TABLE,
    control_layout,
    label_layout,
    scored_layout,
    shadow_layout,
)
from jobs.row_tables import RowTables, table_rows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from connectors.row_binary import RowBinaryLayout
    from connectors.settings import ClickHouseSettings

__all__ = [
    "CONTROL_ROWS",
    "LABEL_ROWS",
    "SCORED_ROWS",
    "SHADOW_ROWS",
    "ClickHouseRows",
    "table_rows",
]

SCORED_ROWS: Final = 0
LABEL_ROWS: Final = 1
CONTROL_ROWS: Final = 2
SHADOW_ROWS: Final = 3
"""Numbers of the tables in row packets."""


class ClickHouseRows(RowTables):
    """The end of the ClickHouse branch of this job."""

    def __init__(self, settings: ClickHouseSettings, feature_names: Sequence[str]) -> None:
        super().__init__(settings)
        self._feature_names = tuple(feature_names)

    def tables(self) -> Sequence[tuple[str, RowBinaryLayout]]:
        """Return name and layout of each table, by its number in row packets."""
        return (
            (SCORED_TABLE, scored_layout(self._feature_names)),
            (LABELS_TABLE, label_layout()),
            (CONTROL_TABLE, control_layout()),
            (SHADOW_TABLE, shadow_layout()),
        )
