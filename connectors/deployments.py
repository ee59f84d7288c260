"""Remember in ClickHouse what each job was deployed with, so that a change can be planned."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from connectors.clickhouse import ClickHouseClient, ClickHouseRefused

__all__ = ["DEPLOYMENTS_TABLE", "deployed_facts", "remember_deployment"]

DEPLOYMENTS_TABLE: Final = "deployments"
"""One row a submission; the newest row of a job is what its state was written with."""

_TABLE: Final = f"""CREATE TABLE IF NOT EXISTS {DEPLOYMENTS_TABLE}
(
    job String,
    deployed_at DateTime64(3, 'UTC') DEFAULT now64(3, 'UTC'),
    facts String COMMENT 'JSON: shards, parallelism, state format, features'
)
ENGINE = MergeTree
ORDER BY (job, deployed_at)"""
_ABSENT: Final = frozenset({60, 81})  # unknown table, unknown database


def remember_deployment(client: ClickHouseClient, job: str, facts: Mapping[str, Any]) -> None:
    """Write down what a job was submitted with.

    Raises:
        ClickHouseUnavailable: ClickHouse does not answer.
    """
    client.execute(_TABLE)
    row = json.dumps({"job": job, "facts": json.dumps(facts, sort_keys=True)})
    client.execute(f"INSERT INTO {DEPLOYMENTS_TABLE} (job, facts) FORMAT JSONEachRow\n{row}")


def deployed_facts(client: ClickHouseClient, job: str) -> dict[str, Any] | None:
    """Return what the job was last submitted with, or None when nothing is known.

    Raises:
        ClickHouseUnavailable: ClickHouse does not answer.
    """
    query = (
        f"SELECT facts FROM {DEPLOYMENTS_TABLE} "  # noqa: S608 - our own name
        "WHERE job = {job:String} ORDER BY deployed_at DESC LIMIT 1"
    )
    try:
        rows = client.rows(query, {"job": job})
    except ClickHouseRefused as e:
        if e.code not in _ABSENT:
            raise
        return None
    if not rows:
        return None
    facts: dict[str, Any] = json.loads(rows[0]["facts"])
    return facts
