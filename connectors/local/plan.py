"""The plan of a stack: what the supervisor starts, as data.

`LocalStack` turns settings into a plan; the supervisor, another process, runs it without knowing
what Kafka or Flink is.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

__all__ = ["Part", "Plan", "Probe"]

ProbeKind = Literal["kafka", "redis", "http", "taskmanager", "tcp"]


@dataclass(frozen=True, slots=True)
class Probe:
    """How to see that a part answers: a kind, a loopback port and, for HTTP, a path.

    For `taskmanager`, the port is the JobManager's and `path` is the TaskManager's resource id.
    """

    kind: ProbeKind
    port: int
    path: str = ""


@dataclass(frozen=True, slots=True)
class Part:
    """One process of the stack.

    `prepare` runs once, before the first start, unless `prepared` (a file it creates) exists.
    `stop_rank` orders the stop: the lowest first. `metrics_url` is for Prometheus, empty without.
    `niceness` above 0 lets the other parts go first where cores are short, and a short `turn_ms`
    on a core comes sooner than a long one; 0 is the kernel's own.
    """

    name: str
    argv: tuple[str, ...]
    probe: Probe
    url: str
    log: str
    environment: dict[str, str] = field(default_factory=dict)
    prepare: tuple[str, ...] = ()
    prepared: str = ""
    stop_rank: int = 1
    metrics_url: str = ""
    niceness: int = 0
    turn_ms: float = 0


@dataclass(frozen=True, slots=True)
class Plan:
    """All parts, the directory they run in, and the addresses of the whole stack."""

    home: str
    endpoints: dict[str, str]
    parts: tuple[Part, ...]
    start_timeout_seconds: float

    def to_json(self) -> str:
        """Return the plan as JSON."""
        return json.dumps(asdict(self), indent=1, sort_keys=True)

    def fingerprint(self) -> str:
        """Return a hash that changes when anything about the parts changes."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:16]

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Read what `to_json` wrote."""
        tree: dict[str, Any] = json.loads(text)
        parts = tuple(
            Part(
                **{
                    **part,
                    "argv": tuple(part["argv"]),
                    "prepare": tuple(part["prepare"]),
                    "probe": Probe(**part["probe"]),
                }
            )
            for part in tree.pop("parts")
        )
        return cls(parts=parts, **tree)

    def log_of(self, part: str) -> Path:
        """Return the log of the part named so; KeyError when there is none."""
        for candidate in self.parts:
            if candidate.name == part:
                return Path(candidate.log)
        raise KeyError(part)
