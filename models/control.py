"""Control records about models: orders that reach a job in one line with its events."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

__all__ = ["DEFAULT_JOB", "MODEL_CONTROL_KINDS", "ControlRecord", "make_control"]

DEFAULT_JOB: Final = "fraud"
"""Job of orders that name none."""

MODEL_CONTROL_KINDS: Final[tuple[str, ...]] = (
    "prepare_model",
    "activate_model",
    "shadow_model",
    "challenge_model",
    "retire_model",
    "rollback_model",
)
"""Kinds of control record that a scoring engine applies."""


@dataclass(frozen=True, slots=True)
class ControlRecord:
    """One control record, field by field as in the Avro contract `control`.

    `prepare_model` loads a model beside those in use and changes nothing: an activation that
    follows a little later then holds up no event.

    Arguments that models know: `share` (challengers: a decimal in (0, 1)), and `route_field` with
    `route_value` (activate, retire: only for events whose field has that value, as in tenant=acme).
    Each job has a control topic of its own; the argument `job` says which for whoever looks back.
    """

    control_id: str
    kind: str
    subject: str
    arguments: Mapping[str, str] = field(default_factory=dict)
    issued_by: str = ""
    issued_at_ms: int = 0

    @property
    def job(self) -> str:
        """Return the job that the order was given to."""
        return self.arguments.get("job", DEFAULT_JOB)

    def to_record(self) -> dict[str, Any]:
        """Return the record to encode with the Avro contract."""
        return {
            "control_id": self.control_id,
            "kind": self.kind,
            "subject": self.subject,
            "arguments": dict(self.arguments),
            "issued_by": self.issued_by,
            "issued_at_ms": self.issued_at_ms,
        }

    @staticmethod
    def from_record(record: Mapping[str, Any]) -> ControlRecord:
        """Read a decoded Avro record."""
        return ControlRecord(
            control_id=record["control_id"],
            kind=record["kind"],
            subject=record["subject"],
            arguments=dict(record.get("arguments") or {}),
            issued_by=record.get("issued_by") or "",
            issued_at_ms=int(record["issued_at_ms"]),
        )


def make_control(
    kind: str,
    subject: str,
    issued_by: str,
    issued_at_ms: int,
    arguments: Mapping[str, str] | None = None,
) -> ControlRecord:
    """Return a control record whose id is a pure function of what it says and when."""
    given = dict(sorted((arguments or {}).items()))
    text = "\x1f".join([kind, subject, issued_by, str(issued_at_ms), *map(str, given.items())])
    digest = hashlib.sha256(text.encode()).hexdigest()[:24]
    return ControlRecord(f"control-{digest}", kind, subject, given, issued_by, issued_at_ms)
