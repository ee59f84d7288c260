"""Keep each account of `riskstream audit --watch` in ClickHouse, where dashboards read it."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from connectors.clickhouse import ClickHouseClient

if TYPE_CHECKING:
    from jobs.audit import Audit

__all__ = ["ACCOUNTS_TABLE", "TOTALS", "remember_account"]

ACCOUNTS_TABLE: Final = "accounts"
"""One row an account, newest last; rows go after 90 days."""

TOTALS: Final = ("offsets_in", "scored", "dead_lettered", "control", "missing", "doubled")
"""What became of offsets: totals of an account, and of each of its partitions."""
FIELDS: Final = ("unexpected", "alerts_expected", "alerts_found", "alerts_wrong", "clean")


def remember_account(client: ClickHouseClient, job: str, made_at_ms: int, audit: Audit) -> None:
    """Write one account down; `made_at_ms` is when it was made, in ms since the epoch, UTC.

    An account is not repeated or corrected: the next one says how things are then.

    Raises:
        ClickHouseUnavailable: ClickHouse does not answer.
        ClickHouseRefused: the table is not there; `riskstream migrate` makes it.
    """
    made_at = datetime.fromtimestamp(made_at_ms / 1000, UTC)
    row = {
        "job": job,
        "made_at": made_at.strftime("%Y-%m-%d %H:%M:%S.%f")[:-3],
        **{name: audit.total(name) for name in TOTALS},
        **{name: getattr(audit, name) for name in FIELDS},
    }
    text = json.dumps(row)
    client.execute(f"INSERT INTO {ACCOUNTS_TABLE} ({', '.join(row)}) FORMAT JSONEachRow\n{text}")
