"""Errors of the rule language.

::

    ConfigurationError
     + RuleSetError      a rule set was refused; the one in force stays in force
"""

from __future__ import annotations

from collections.abc import Sequence

from schemas.errors import ConfigurationError

__all__ = ["RuleSetError"]


class RuleSetError(ConfigurationError):
    """A rule set is wrong; `problems` lists every mistake found, one sentence each."""

    def __init__(self, source: str, problems: Sequence[str]) -> None:
        self.source = source
        self.problems = tuple(problems)
        listed = "\n".join(f"  - {problem}" for problem in self.problems)
        super().__init__(f"reading rule set {source!r} found {len(problems)} mistake(s):\n{listed}")
