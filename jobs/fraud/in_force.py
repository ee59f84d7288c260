"""What a running fraud job was told on the control topic and keeps in its state.

A job that resumes takes up the same rules and the same models, so a release that cannot read those
rules, or has lost a model's features, must not be submitted over that state.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from connectors.clickhouse import ClickHouseClient, ClickHouseRefused
from connectors.evidence import EvidenceError, ranges_of, read_range
from connectors.settings import Settings
from connectors.tables import CONTROL_TABLE
from jobs.fraud.features import FRAUD_FEATURES
from jobs.fraud.rule_columns import rule_catalogue
from jobs.plan import Finding
from jobs.rules.errors import RuleSetError
from jobs.rules.ruleset import RuleSet
from models.control import ControlRecord
from models.errors import ModelNotFoundError
from models.registry import Registry
from schemas.avro import RecordDecoder
from schemas.contract import contract
from schemas.reasons import AvroRecordError
from schemas.registry import open_registry

__all__ = ["InForce", "control_records", "in_force", "kept", "memory_findings"]

_NAMING = frozenset({"activate_model", "shadow_model", "challenge_model"})
_ABSENT = frozenset({60, 81})  # unknown table, unknown database


@dataclass(frozen=True, slots=True)
class InForce:
    """The text of the rules that were put in force last, if any were, and every model named."""

    rules: str | None = None
    models: tuple[str, ...] = ()


def kept(records: Iterable[ControlRecord], applied: Mapping[str, str]) -> InForce:
    """Return what is kept after these control records, in the order of their topic.

    `applied` says by control id what came of each (``applied``, ``refused``); a record that is not
    there was not reached yet and counts as applied, because the job will come to it. A champion
    that was followed by another is still kept: a rollback goes back to it.
    """
    rules: str | None = None
    models: dict[str, None] = {}
    for record in records:
        if applied.get(record.control_id, "applied") != "applied":
            continue
        if record.kind == "activate_rules":
            rules = record.arguments.get("rules")
        elif record.kind in _NAMING:
            models[record.subject] = None
        elif record.kind == "retire_model":
            models.pop(record.subject, None)
    return InForce(rules, tuple(models))


def in_force(settings: Settings) -> InForce:
    """Read the control topic and what the job made of each record.

    Raises:
        RetryableError: Kafka or ClickHouse does not answer.
    """
    return kept(control_records(settings), _outcomes(ClickHouseClient(settings.clickhouse)))


def control_records(settings: Settings) -> list[ControlRecord]:
    """Return the readable records of the control topic in their order; none without the topic.

    Raises:
        RetryableError: Kafka does not answer.
    """
    try:
        ranges = ranges_of(settings.kafka, settings.kafka.topics.name("control"))
    except EvidenceError:
        return []
    decoder = RecordDecoder(open_registry(settings.schemas), contract("control"))
    records = []
    for message in read_range(settings.kafka, ranges):
        try:
            records.append(ControlRecord.from_record(decoder.decode(message.value() or b"")))
        except AvroRecordError:
            # The job made a dead letter of it.
            continue
    return records


def _outcomes(client: ClickHouseClient) -> dict[str, str]:
    query = (
        f"SELECT control_id, if(countIf(outcome = 'applied') > 0, 'applied', 'refused') AS outcome "  # noqa: S608 - our own name
        f"FROM {CONTROL_TABLE} GROUP BY control_id"
    )
    try:
        return {row["control_id"]: row["outcome"] for row in client.rows(query)}
    except ClickHouseRefused as e:
        if e.code not in _ABSENT:
            raise
        return {}


def memory_findings(settings: Settings) -> list[Finding]:
    """Return what of the job's own memory this release could not take up again."""
    found = []
    memory = in_force(settings)
    if memory.rules is not None:
        try:
            RuleSet.from_text(memory.rules, rule_catalogue(), source="the rules in force")
        except RuleSetError as e:
            text = f"the job keeps rules that this release cannot read: {'; '.join(e.problems)}"
            found.append(Finding("state", "refused", f"{text}; publish other rules first"))
    registry = Registry(settings.models.registry)
    for version in memory.models:
        try:
            needed = registry.manifest(version).features
        except ModelNotFoundError:
            text = f"the job keeps model {version!r}, which the registry no longer has; restore it"
            found.append(Finding("state", "refused", text))
            continue
        gone = [name for name in needed if name not in FRAUD_FEATURES.names]
        if gone:
            text = (
                f"the job keeps model {version!r}, which needs features that would go: "
                f"{', '.join(gone)}; activate another model and retire this one first"
            )
            found.append(Finding("state", "refused", text))
    return found
