"""Flink's metrics as far as they can be seen without a cluster."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

__all__ = ["Counter", "Group", "context_of"]


class Counter:
    def __init__(self) -> None:
        self.value = 0

    def inc(self, by: int = 1) -> None:
        self.value += by


class Group:
    """A metric group that knows counters only: Python gauges end TaskManagers."""

    def __init__(self) -> None:
        self.counters: dict[str, Counter] = {}
        self.groups: dict[str, Group] = {}

    def add_group(self, name: str, extra: str | None = None) -> Group:
        return self if extra is None else self.groups.setdefault(extra, Group())

    def bounds(self, name: str) -> dict[str, Counter]:
        return {bound: group.counters[name] for bound, group in self.groups.items()}

    def counter(self, name: str) -> Counter:
        return self.counters.setdefault(name, Counter())


def context_of(group: Group) -> Any:
    """Return a task's context that has this metric group."""
    return SimpleNamespace(get_metrics_group=lambda: group)
