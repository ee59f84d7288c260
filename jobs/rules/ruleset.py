"""Rule sets: YAML in, one boolean column per rule out.

A rule set is compiled once and evaluated a batch at a time by one numba kernel; evaluating costs a
few microseconds plus a few nanoseconds per rule and event. The result for an event depends on that
event alone, never on its batch. See docs/guide/rules.md for the language.
"""

from __future__ import annotations

import hashlib
import json
import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
import yaml
from numpy.typing import NDArray

from jobs.rules import _kernels as k
from jobs.rules.errors import RuleSetError
from jobs.rules.expressions import (
    Catalogue,
    Compiler,
    NumberInput,
    Program,
    TextInput,
    TextPairInput,
)
from schemas.columns import Column, NumberColumn, StringColumn

__all__ = ["Action", "Rule", "RuleColumns", "RuleSet"]

RuleColumns: TypeAlias = Mapping[str, Column | NDArray[np.float64]]
"""A batch as rules see it; a plain float64 array is a column whose nulls are NaN."""

MAX_RULES: Final = 64  # the rules that fired travel as one bit each of a 64-bit mask
MAX_BYTES: Final = 48 * 1024  # travels in a control record, and a record has at most 64 KiB
FORMAT: Final = 1
_ID: Final = re.compile(r"[a-z][a-z0-9_]{0,62}")


class Action(IntEnum):
    """What a rule does when it fires, weakest first (see `decision.decide` for precedence)."""

    TAG = 0
    """Name the rule on the event, change nothing: how a new rule is tried."""
    APPROVE = 1
    """Allow-list: approve whatever the score and the review rules say."""
    REVIEW = 2
    """Send the event to a person."""
    BLOCK = 3
    """Refuse the event."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule: a condition, what it does, and the sentence that explains it.

    `title` may show columns of the event, as in ``{customer_count_1d} payments within a day``.
    Of the rules that fired, the one with the largest `weight` is named first.
    """

    id: str
    title: str
    when: str
    then: Action
    weight: int = 0
    enabled: bool = True


class RuleSet:
    """A compiled rule set; immutable, and cheap to evaluate on small batches.

    Attributes:
        name: Name given in the file.
        rules: Enabled rules in file order; column j of every result belongs to `rules[j]`.
        disabled: Rules that are switched off; they are validated and not evaluated.
        version: Hash of what the enabled rules say; comments and layout do not change it.
        columns_needed: Names that `evaluate` and the titles read.
        actions: int8 (rules,), an `Action` for each rule.
        order: int16 (rules,), rule numbers by falling weight, then file order.
    """

    def __init__(
        self, rules: Sequence[Rule], *, name: str = "rules", catalogue: Catalogue | None = None
    ) -> None:
        """Compile `rules`.

        Raises:
            RuleSetError: listing every mistake of every rule, disabled ones too.
        """
        compiler = Compiler(catalogue)
        if len(rules) > MAX_RULES:
            compiler.problems.append(f"a set has at most {MAX_RULES} rules, was {len(rules)}")
        enabled = [rule for rule in rules if rule.enabled]
        canonical = [
            [rule.id, rule.title, compiler.add(f"rule {rule.id!r}, when", rule.when, number),
             rule.then.name, rule.weight]
            for number, rule in enumerate(enabled)
        ]  # fmt: skip
        titles = [_title_columns(rule, compiler) for rule in enabled]
        aside = Compiler(catalogue)
        for rule in rules:
            if not rule.enabled:
                aside.add(f"rule {rule.id!r}, when", rule.when, 0)
        problems = compiler.problems + aside.problems
        if problems:
            raise RuleSetError(name, problems)
        self.name = name
        self.rules = tuple(enabled)
        self.disabled = tuple(rule for rule in rules if not rule.enabled)
        digest = hashlib.sha256(json.dumps([FORMAT, name, canonical]).encode())
        self.version = digest.hexdigest()[:12]
        self.columns_needed = frozenset(compiler.names)
        self.actions = np.array([rule.then for rule in enabled], np.int8)
        weights = np.array([rule.weight for rule in enabled], np.int64)
        self.order = np.argsort(-weights, kind="stable").astype(np.int16)
        self._title_columns = tuple(titles)
        self._bits = np.left_shift(np.uint64(1), np.arange(len(enabled), dtype=np.uint64))
        self._program: Program = compiler.program()
        self._known = {
            column: (
                np.frombuffer(b"".join(texts), np.uint8),
                np.concatenate([[0], np.cumsum([len(t) for t in texts])]).astype(np.int64),
            )
            for column, texts in self._program.texts.items()
        }

    @staticmethod
    def load(path: Path, catalogue: Catalogue | None = None) -> RuleSet:
        """Read and compile a rule file.

        Raises:
            RuleSetError: listing every mistake, or saying why the file cannot be read.
        """
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as e:
            raise RuleSetError(str(path), [f"cannot be read: {e}"]) from e
        return RuleSet.from_text(text, catalogue, source=str(path))

    @staticmethod
    def from_text(
        text: str, catalogue: Catalogue | None = None, *, source: str = "text"
    ) -> RuleSet:
        """Compile a rule set from YAML, as a control record carries it.

        Raises:
            RuleSetError: listing every mistake; the caller keeps the rule set that it has.
        """
        tree = _parse_yaml(text, source)
        problems: list[str] = []
        name, rules = _read_tree(tree, problems)
        try:
            compiled = RuleSet(rules, name=name, catalogue=catalogue)
        except RuleSetError as e:
            raise RuleSetError(source, problems + list(e.problems)) from e
        if problems:
            raise RuleSetError(source, problems)
        return compiled

    def __len__(self) -> int:
        return len(self.rules)

    def evaluate(self, columns: RuleColumns, n: int) -> NDArray[np.bool_]:
        """Return which rules fired: bool (n, rules), one row per event in batch order.

        Columns that the rules do not name are not touched; a null never makes a rule fire unless
        the rule asks for it.

        Raises:
            RuleSetError: if a needed column is absent or of the wrong kind, which is a mistake in
                the job, not in an event.
        """
        fired = np.empty((n, len(self.rules)), np.bool_)
        program = self._program
        inputs = np.empty((len(program.inputs), n), np.float64)
        try:
            for row, source in zip(inputs, program.inputs, strict=True):
                if isinstance(source, NumberInput):
                    _fill_numbers(columns[source.column], row)
                elif isinstance(source, TextInput):
                    known, bounds = self._known[source.column]
                    text = _text(columns, source.column)
                    k.match_texts(text.data, text.starts, text.lengths, known, bounds, row)
                elif isinstance(source, TextPairInput):
                    left, right = _text(columns, source.left), _text(columns, source.right)
                    k.same_texts(
                        left.data, left.starts, left.lengths,
                        right.data, right.starts, right.lengths, row,
                    )  # fmt: skip
                else:
                    text = _text(columns, source.column)
                    prefix = np.frombuffer(source.prefix, np.uint8)
                    k.has_prefix(text.data, text.starts, text.lengths, prefix, row)
        except KeyError as e:
            raise RuleSetError(self.name, [f"the batch has no column {e.args[0]!r}"]) from e
        except _WrongKindError as e:
            raise RuleSetError(self.name, [f"{source} of the batch does not hold {e}"]) from e
        stack = np.empty((program.depth, n), np.float64)
        k.run_program(program.code, program.constants, inputs, stack, fired)
        return fired

    def masks(self, fired: NDArray[np.bool_]) -> NDArray[np.uint64]:
        """Return uint64 (n,): bit j is set where `rules[j]` fired."""
        masks: NDArray[np.uint64] = fired @ self._bits
        return masks

    def fired_rules(self, fired: NDArray[np.bool_]) -> list[Rule]:
        """Return the rules of one row of `evaluate`, by falling weight, then file order."""
        return [self.rules[number] for number in self.order.tolist() if fired[number]]

    def sentence(self, number: int, columns: RuleColumns, row: int) -> str:
        """Return the title of rule `number` with the values of event `row` put in.

        Numbers show at most two decimals, nulls show as ``unknown``. For alerts, not every event.
        """
        title = self.rules[number].title
        if not self._title_columns[number]:
            return title
        shown = {name: _shown(columns[name], row) for name in self._title_columns[number]}
        return title.format_map(shown)

    def warm(self) -> None:
        """Load the kernels, so that the first batch does not wait for the compiler."""
        text = StringColumn.from_texts(["a"])
        out = np.empty(1, np.float64)
        bounds = np.array([0, 1], np.int64)
        k.match_texts(text.data, text.starts, text.lengths, text.data, bounds, out)
        k.same_texts(
            text.data, text.starts, text.lengths, text.data, text.starts, text.lengths, out
        )
        k.has_prefix(text.data, text.starts, text.lengths, text.data, out)
        empty = np.empty((0, 0), np.float64)
        k.run_program(np.empty((0, 3), np.int32), out, empty, empty, np.empty((0, 0), np.bool_))


class _WrongKindError(Exception):
    """A column of a batch does not hold what the rules were compiled for."""


def _fill_numbers(column: Column | NDArray[np.float64], row: NDArray[np.float64]) -> None:
    if isinstance(column, NumberColumn):
        row[:] = column.values
        np.copyto(row, np.nan, where=np.logical_not(column.valid))
    elif isinstance(column, StringColumn):
        expected = "numbers"
        raise _WrongKindError(expected)
    else:
        row[:] = column


def _text(columns: RuleColumns, name: str) -> StringColumn:
    column = columns[name]
    if not isinstance(column, StringColumn):
        expected = "texts"
        raise _WrongKindError(expected)
    return column


def _shown(column: Column | NDArray[np.float64], row: int) -> str:
    if isinstance(column, StringColumn):
        text = column.text_at(row)
        return "unknown" if text is None else text
    if isinstance(column, NumberColumn):
        if not column.valid[row]:
            return "unknown"
        column = column.values.astype(np.float64)
    value = float(column[row])
    if np.isnan(value):
        return "unknown"
    return f"{value:.2f}".rstrip("0").rstrip(".")


def _title_columns(rule: Rule, compiler: Compiler) -> tuple[str, ...]:
    where = f"rule {rule.id!r}, title"
    names: list[str] = []
    try:
        for _, name, form, conversion in string.Formatter().parse(rule.title):
            if name is None:
                continue
            if form or conversion or not name.isidentifier():
                compiler.problems.append(f"{where}: a title shows columns as {{name}} only")
            else:
                compiler.check_name(where, name)
                names.append(name)
    except ValueError as e:
        compiler.problems.append(f"{where}: {e}")
    return tuple(names)


class _Loader(yaml.SafeLoader):
    """YAML without the parts that surprise: no aliases, no key twice."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases are not allowed")  # noqa: EM101
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                msg = f"key {key!r} is given twice in line {node.start_mark.line + 1} and below"
                raise yaml.YAMLError(msg)
        return super().construct_mapping(node, deep=deep)


def _parse_yaml(text: str, source: str) -> Any:
    if len(text) > MAX_BYTES:
        raise RuleSetError(source, [f"has at most {MAX_BYTES} characters, was {len(text)}"])
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 a subclass of SafeLoader
    except (yaml.YAMLError, RecursionError, ValueError) as e:
        raise RuleSetError(source, [f"is not YAML: {' '.join(str(e).split())}"]) from e


def _read_tree(tree: Any, problems: list[str]) -> tuple[str, list[Rule]]:
    if not isinstance(tree, dict):
        problems.append(f"expected a mapping with format, name and rules, was {tree!r:.60}")
        return "rules", []
    problems += [f"unknown key {key!r}" for key in tree if key not in ("format", "name", "rules")]
    if tree.get("format") != FORMAT:
        problems.append(f"format must be {FORMAT}, was {tree.get('format')!r}")
    name = tree.get("name")
    if not isinstance(name, str) or not name:
        problems.append(f"name must be a text, was {name!r}")
        name = "rules"
    listed = tree.get("rules")
    if not isinstance(listed, list):
        problems.append(f"rules must be a list, was {listed!r:.60}")
        return name, []
    rules: list[Rule] = []
    seen: set[str] = set()
    for number, entry in enumerate(listed, 1):
        rule = _read_rule(entry, number, problems)
        if rule is None:
            continue
        if rule.id in seen:
            problems.append(f"rule {rule.id!r}: the id is given twice")
        seen.add(rule.id)
        rules.append(rule)
    return name, rules


def _read_rule(entry: Any, number: int, problems: list[str]) -> Rule | None:
    where = f"rule {number}"
    if not isinstance(entry, dict):
        problems.append(f"{where}: expected a mapping, was {entry!r:.60}")
        return None
    rule_id = entry.get("id")
    if not isinstance(rule_id, str) or not _ID.fullmatch(rule_id):
        problems.append(f"{where}: id must be lower-case words joined by _, was {rule_id!r}")
    else:
        where = f"rule {rule_id!r}"
    known = Rule.__dataclass_fields__
    problems += [f"{where}: unknown key {key!r}" for key in entry if key not in known]
    title, when = entry.get("title"), entry.get("when")
    if not isinstance(title, str) or not 0 < len(title) <= 200 or "\n" in title.strip():
        problems.append(f"{where}: title must be one sentence of 1 to 200 characters")
    if not isinstance(when, str) or not when.strip():
        problems.append(f"{where}: when must be a condition in quotes, was {when!r:.60}")
    action = entry.get("then")
    actions = [item.name.lower() for item in Action]
    if action not in actions:
        problems.append(f"{where}: then must be one of {', '.join(actions)}, was {action!r:.60}")
    weight = entry.get("weight", 0)
    if isinstance(weight, bool) or not isinstance(weight, int) or not 0 <= weight <= 1000:
        problems.append(
            f"{where}: weight must be a whole number from 0 to 1000, was {weight!r:.60}"
        )
    enabled = entry.get("enabled", True)
    if not isinstance(enabled, bool):
        problems.append(f"{where}: enabled must be true or false, was {enabled!r:.60}")
    if not isinstance(title, str) or not isinstance(when, str):
        return None
    # With a mistake elsewhere the rule is still compiled, so that all mistakes are found at once.
    return Rule(
        str(rule_id),
        title.strip(),
        when,
        Action[str(action).upper()] if action in actions else Action.TAG,
        weight if isinstance(weight, int) else 0,
        enabled is not False,
    )
