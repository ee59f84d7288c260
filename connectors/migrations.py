"""Versioned migrations of the ClickHouse tables.

A migration is a file `NNNN_name.sql` in `connectors/ddl/`: statements that end with `;` at the end
of a line. Applied ones are remembered in table `schema_migrations` with a checksum; a file that
changed after it was applied is refused, because two systems would disagree on what version they
are. Statements can be repeated (`IF NOT EXISTS`, `OR REPLACE`), so a migration that was cut short
is simply run again.

Feature columns come from the feature set, not from a file: missing ones are added, none is ever
dropped, and the view that deduplicates is made anew to show them.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from connectors.clickhouse import ClickHouseClient, ClickHouseRefused
from connectors.tables import SCORED_TABLE, SCORED_VIEW
from schemas.errors import ConfigurationError

__all__ = ["Migration", "Step", "load_migrations", "migrate", "plan"]

_FOLDER: Final = Path(__file__).parent / "ddl"
_FILE_NAME: Final = re.compile(r"(\d{4})_([a-z0-9_]+)\.sql")
_UNKNOWN_DATABASE: Final = 81
_UNKNOWN_TABLE: Final = 60
_HISTORY: Final = """CREATE TABLE IF NOT EXISTS schema_migrations
(
    version UInt32,
    name String,
    checksum String,
    applied_at DateTime64(3, 'UTC') DEFAULT now64(3, 'UTC')
)
ENGINE = ReplacingMergeTree(applied_at)
ORDER BY version"""


@dataclass(frozen=True, slots=True)
class Migration:
    """One file of statements."""

    version: int
    name: str
    checksum: str
    statements: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Step:
    """What a migration did, or would do."""

    name: str
    state: Literal["applied", "pending", "done before"]
    statements: tuple[str, ...]


def load_migrations(folder: Path = _FOLDER) -> list[Migration]:
    """Return the migrations of a folder, oldest first.

    Raises:
        ConfigurationError: listing misnamed files and versions given twice.
    """
    migrations: list[Migration] = []
    problems: list[str] = []
    for path in sorted(folder.glob("*.sql")):
        match = _FILE_NAME.fullmatch(path.name)
        if match is None:
            problems.append(f"{path.name!r}: expected a name like 0007_add_bars.sql")
            continue
        version, text = int(match[1]), path.read_text(encoding="utf-8")
        if any(version == other.version for other in migrations):
            problems.append(f"{path.name!r}: version {version} is given twice")
        checksum = hashlib.sha256(text.encode("utf-8")).hexdigest()[:16]
        migrations.append(Migration(version, match[2], checksum, _statements(text)))
    if problems:
        msg = f"reading migrations in {str(folder)!r}: " + "; ".join(problems)
        raise ConfigurationError(msg)
    return migrations


def plan(
    client: ClickHouseClient, feature_names: Sequence[str], migrations: Sequence[Migration]
) -> list[Step]:
    """Return the steps that `migrate` would take, touching nothing.

    Raises:
        ConfigurationError: when an applied migration changed afterwards, or the database is newer
        than
            these files.
    """
    try:
        applied = {
            int(row["version"]): str(row["checksum"])
            for row in client.rows("SELECT version, checksum FROM schema_migrations FINAL")
        }
    except ClickHouseRefused as e:
        if e.code not in (_UNKNOWN_DATABASE, _UNKNOWN_TABLE):
            raise
        applied = {}
    steps: list[Step] = []
    problems = [
        f"migration {version} was applied but is no longer here; use the release that made it"
        for version in sorted(set(applied) - {migration.version for migration in migrations})
    ]
    for migration in migrations:
        label = f"{migration.version:04d}_{migration.name}"
        if migration.version not in applied:
            steps.append(Step(label, "pending", migration.statements))
        elif applied[migration.version] != migration.checksum:
            problems.append(
                f"{label!r} changed after it was applied: checksum {migration.checksum!r}, was "
                f"{applied[migration.version]!r}; put the change into a new migration"
            )
        else:
            steps.append(Step(label, "done before", migration.statements))
    if problems:
        msg = "planning migrations: " + "; ".join(problems)
        raise ConfigurationError(msg)
    steps.append(
        _feature_step(client, feature_names, first_time=SCORED_TABLE not in _tables(client))
    )
    return steps


def migrate(
    client: ClickHouseClient,
    feature_names: Sequence[str] = (),
    migrations: Sequence[Migration] | None = None,
) -> list[Step]:
    """Create the database, apply what is pending, add feature columns; harmless when repeated.

    Args:
        client: the connection; its database is created.
        feature_names: columns of the scored transactions, one a feature.
        migrations: instead of those in `connectors/ddl/`.

    Returns:
        Every step, with what was done.

    Raises:
        ConfigurationError: as `plan` does; nothing was touched then.
        ClickHouseRefused: when a statement failed; what came before it stays and is skipped next
        time.
    """
    known = load_migrations() if migrations is None else migrations
    steps = plan(client, feature_names, known)
    if any(step.state == "pending" for step in steps):
        client.execute(f"CREATE DATABASE IF NOT EXISTS `{client.database}`", database="default")
        client.execute(_HISTORY)
    by_label = {f"{migration.version:04d}_{migration.name}": migration for migration in known}
    done: list[Step] = []
    for step in steps:
        if step.state != "pending":
            done.append(step)
            continue
        for statement in step.statements:
            client.execute(statement)
        migration = by_label.get(step.name)
        if migration is not None:
            client.execute(
                "INSERT INTO schema_migrations (version, name, checksum) VALUES "  # noqa: S608 - own
                f"({migration.version}, '{migration.name}', '{migration.checksum}')"
            )
        done.append(Step(step.name, "applied", step.statements))
    return done


def _feature_step(
    client: ClickHouseClient, feature_names: Sequence[str], *, first_time: bool
) -> Step:
    bad = [name for name in feature_names if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name)]
    if bad:
        msg = f"naming feature columns: expected letters, digits and _, was {bad!r}"
        raise ConfigurationError(msg)
    present = set() if first_time else _columns(client, SCORED_TABLE)
    shown = set() if first_time else _columns(client, SCORED_VIEW)
    missing = [name for name in feature_names if name not in present]
    statements = [
        f"ALTER TABLE {SCORED_TABLE} ADD COLUMN IF NOT EXISTS `{name}` Float64 DEFAULT nan"
        for name in missing
    ]
    view = f"CREATE OR REPLACE VIEW {SCORED_VIEW} AS SELECT * FROM {SCORED_TABLE} FINAL"  # noqa: S608
    up_to_date = not statements and present and shown == present
    return Step(
        "feature columns and view",
        "done before" if up_to_date else "pending",
        (*statements, view),
    )


def _tables(client: ClickHouseClient) -> set[str]:
    query = "SELECT name FROM system.tables WHERE database = {database:String}"
    try:
        return {str(row["name"]) for row in client.rows(query, {"database": client.database})}
    except ClickHouseRefused as e:
        if e.code != _UNKNOWN_DATABASE:
            raise
        return set()


def _columns(client: ClickHouseClient, table: str) -> set[str]:
    query = (
        "SELECT name FROM system.columns "
        "WHERE database = {database:String} AND table = {table:String}"
    )
    parameters = {"database": client.database, "table": table}
    return {str(row["name"]) for row in client.rows(query, parameters)}


def _statements(text: str) -> tuple[str, ...]:
    plain = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("--"))
    return tuple(part.strip() for part in re.split(r";[ \t]*(?:\n|$)", plain) if part.strip())
