"""Compile rule expressions into one program for the stack machine of `_kernels`.

The language is a small subset of Python's syntax, parsed by `ast` and never evaluated as Python:

=====================  ==========================================================================
conditions             ``and``, ``or``, ``not``, ``==  !=  <  <=  >  >=``, also ``1 < x < 5``
membership             ``x in [1, 2]``, ``country not in ["GB", "IE"]``
null                   ``x is null``, ``x is not null``
arithmetic             ``+  -  *  /``, ``abs(x)``, ``min(x, y, ...)``, ``max(x, y, ...)``
functions              ``between(x, low, high)`` (both ends included), ``coalesce(x, otherwise)``,
                       ``starts_with(text_column, "prefix")``
constants              numbers, texts in quotes, ``true``, ``false``, ``null``
=====================  ==========================================================================

Nulls follow SQL: arithmetic with a null is null, a comparison with a null is unknown, ``not`` of
unknown is unknown, ``and``/``or`` are certain where one side decides. A rule fires only where its
condition is true, so a missing value never makes a rule fire unless the rule asks with ``is null``
or ``coalesce``. A division by zero is null.
"""

from __future__ import annotations

import ast
import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from jobs.rules import _kernels as k

__all__ = [
    "Catalogue",
    "ColumnKind",
    "Compiler",
    "Input",
    "NumberInput",
    "PrefixInput",
    "Program",
    "TextInput",
    "TextPairInput",
]

ColumnKind: TypeAlias = Literal["number", "text"] | tuple[str, ...]
"""What a column holds: numbers (or booleans), texts, or codes of the symbols of an enum."""

Catalogue: TypeAlias = Mapping[str, ColumnKind]
"""The columns that a rule may name."""

MAX_TEXT: Final = 4_000  # characters; a rule longer than a page is a program, and hides mistakes
MAX_DEPTH: Final = 64  # stack slots; each costs one column of the batch

_BINARY: Final[dict[type[ast.AST], int]] = {
    ast.Add: k.ADD,
    ast.Sub: k.SUBTRACT,
    ast.Mult: k.MULTIPLY,
    ast.Div: k.DIVIDE,
    ast.Lt: k.LESS,
    ast.LtE: k.LESS_EQUAL,
    ast.Gt: k.GREATER,
    ast.GtE: k.GREATER_EQUAL,
    ast.Eq: k.EQUAL,
    ast.NotEq: k.NOT_EQUAL,
}
_FUNCTIONS: Final = {
    "abs": (1, 1),
    "min": (2, 16),
    "max": (2, 16),
    "between": (3, 3),
    "coalesce": (2, 2),
    "starts_with": (2, 2),
}
_CONDITIONS: Final = ("between", "starts_with")
_WORDS: Final[dict[str, bool | None]] = {"null": None, "true": True, "false": False}


@dataclass(frozen=True, slots=True)
class NumberInput:
    """A column of numbers, booleans or enum codes."""

    column: str


@dataclass(frozen=True, slots=True)
class TextInput:
    """The number of the known text that a column equals."""

    column: str


@dataclass(frozen=True, slots=True)
class TextPairInput:
    """Whether two text columns are equal."""

    left: str
    right: str


@dataclass(frozen=True, slots=True)
class PrefixInput:
    """Whether a text column starts with some bytes."""

    column: str
    prefix: bytes


Input: TypeAlias = NumberInput | TextInput | TextPairInput | PrefixInput
"""One column that the program loads, and how it is made from the batch."""


@dataclass(frozen=True, slots=True)
class Program:
    """A compiled rule set: `code` is int32 (steps, 3), `depth` the stack slots that it needs."""

    code: NDArray[np.int32]
    constants: NDArray[np.float64]
    inputs: tuple[Input, ...]
    texts: Mapping[str, tuple[bytes, ...]]
    depth: int


@dataclass(slots=True)
class Compiler:
    """Collects the conditions of a rule set; `problems` grows by one sentence per mistake.

    With `catalogue` None, any name is accepted and its kind is taken from its use.
    """

    catalogue: Catalogue | None = None
    problems: list[str] = field(default_factory=list)
    names: set[str] = field(default_factory=set)
    _code: list[tuple[int, int, int]] = field(default_factory=list)
    _constants: list[float] = field(default_factory=list)
    _inputs: dict[Input, int] = field(default_factory=dict)
    _texts: dict[str, dict[bytes, int]] = field(default_factory=dict)
    _where: str = ""
    _depth: int = 0
    _deepest: int = 0

    def add(self, where: str, text: str, output: int) -> str:
        """Compile one condition to fire output column `output`; return it in canonical spelling.

        `where` names the rule in messages. After a mistake the program must not be used.
        """
        self._where = where
        self._depth = 0
        tree = self._parse(text)
        if tree is None:
            return text
        try:
            self._condition(tree)
            self._emit(k.STORE, output)
            if self._deepest > MAX_DEPTH:
                self._problem(f"is nested deeper than {MAX_DEPTH} values; split the rule")
            return ast.unparse(tree)
        except RecursionError:
            self._problem("is nested too deeply; split the rule")
            return text

    def program(self) -> Program:
        """Return what was compiled so far."""
        return Program(
            np.array(self._code, np.int32).reshape(-1, 3),
            np.array(self._constants, np.float64),
            tuple(self._inputs),
            {column: tuple(known) for column, known in self._texts.items()},
            max(self._deepest, 1),
        )

    def check_name(self, where: str, name: str) -> None:
        """Record a use of a column outside a condition, or a problem if there is no such column."""
        self._where = where
        self._kind_of(name)

    # Parsing and messages

    def _parse(self, text: str) -> ast.expr | None:
        if len(text) > MAX_TEXT:
            self._problem(f"has at most {MAX_TEXT} characters, was {len(text)}")
        elif "\\" in text:
            self._problem("cannot hold a backslash; texts are written as they are")
        else:
            try:
                return ast.parse(" ".join(text.split()), mode="eval").body
            except SyntaxError as e:
                self._problem(f"is not an expression: {e.msg} near character {e.offset}")
            except (ValueError, RecursionError, MemoryError) as e:
                self._problem(f"cannot be parsed: {e or type(e).__name__}")
        return None

    def _problem(self, text: str) -> None:
        self.problems.append(f"{self._where}: {text}")

    def _refuse(self, node: ast.AST, expected: str) -> None:
        self._problem(f"{_source(node)!r} is not allowed here; expected {expected}")

    # Emitting

    def _emit(self, operation: int, a: int = 0, b: int = 0) -> None:
        self._code.append((operation, a, b))
        if operation in (k.LOAD, k.CONSTANT):
            self._depth += 1
            self._deepest = max(self._deepest, self._depth)
        elif k.ADD <= operation <= k.COALESCE or operation == k.STORE:
            self._depth -= 1

    def _load(self, source: Input) -> None:
        self._emit(k.LOAD, self._inputs.setdefault(source, len(self._inputs)))

    def _constant(self, value: float) -> None:
        self._constants.append(value)
        self._emit(k.CONSTANT, len(self._constants) - 1)

    # Conditions

    def _condition(self, node: ast.expr) -> None:
        match node:
            case ast.BoolOp(op=joined_by, values=values):
                self._condition(values[0])
                for value in values[1:]:
                    self._condition(value)
                    self._emit(k.AND if isinstance(joined_by, ast.And) else k.OR)
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                self._condition(operand)
                self._emit(k.NOT)
            case ast.Compare(left=left, ops=operators, comparators=rights):
                for count, (operator, right) in enumerate(zip(operators, rights, strict=True)):
                    self._compare(left, operator, right)
                    if count:
                        self._emit(k.AND)
                    left = right
            case ast.Call(func=ast.Name(id=name)) if name in _CONDITIONS:
                self._call(node)
            case ast.Name() | ast.Constant(value=bool()):
                self._number(node)
                self._emit(k.TRUTH)
            case _:
                self._refuse(node, "a condition such as amount > 100")
                self._constant(0.0)

    def _compare(self, left: ast.expr, operator: ast.cmpop, right: ast.expr) -> None:
        match operator:
            case ast.Is() | ast.IsNot():
                self._null_test(left, right)
                if isinstance(operator, ast.IsNot):
                    self._emit(k.NOT)
            case ast.In() | ast.NotIn():
                self._membership(left, right)
                if isinstance(operator, ast.NotIn):
                    self._emit(k.NOT)
            case _ if self._is_text(left) or self._is_text(right):
                self._compare_texts(left, operator, right)
            case _:
                self._number(left)
                self._number(right)
                self._emit(_BINARY[type(operator)])

    def _null_test(self, left: ast.expr, right: ast.expr) -> None:
        if not isinstance(right, ast.Name | ast.Constant) or _word(right) != "null":
            self._refuse(right, "null after 'is' and 'is not'; compare values with == and !=")
        if isinstance(left, ast.Name) and self._is_text(left):
            self._text_codes(left.id)
        else:
            self._number(left, symbols_too=True)
        self._emit(k.IS_NULL)

    def _membership(self, left: ast.expr, right: ast.expr) -> None:
        items = right.elts if isinstance(right, ast.List | ast.Tuple | ast.Set) else []
        if not items:
            self._refuse(right, "a list of constants such as [1, 2]")
        as_text = self._is_text(left) or any(self._is_text(item) for item in items)
        if as_text and not isinstance(left, ast.Name):
            self._refuse(left, "a text column before 'in'")
            self._constant(0.0)
            return
        values: list[float] = []
        for item in items:
            if as_text and isinstance(left, ast.Name):
                values.append(self._code_of(left.id, item))
            else:
                values.append(self._value_of(item))
        if as_text and isinstance(left, ast.Name):
            self._load_text(left.id)
        else:
            self._number(left)
        start = len(self._constants)
        self._constants += values
        self._emit(k.IN, start, len(self._constants))

    def _compare_texts(self, left: ast.expr, operator: ast.cmpop, right: ast.expr) -> None:
        if not isinstance(operator, ast.Eq | ast.NotEq):
            self._problem(f"texts are compared with == and != only, in {_source(left)!r}")
        if not isinstance(left, ast.Name):
            left, right = right, left
        if not isinstance(left, ast.Name):
            self._refuse(left, "a text column on one side")
            self._constant(0.0)
        elif isinstance(right, ast.Name) and _word(right) is None:
            kinds = (self._kind_of(left.id), self._kind_of(right.id))
            if kinds != ("text", "text"):
                self._problem(f"{left.id!r} and {right.id!r} are not both text columns")
            self._load(TextPairInput(*sorted((left.id, right.id))))
            if isinstance(operator, ast.NotEq):
                self._emit(k.NOT)
        else:
            code = self._code_of(left.id, right)
            self._load_text(left.id)
            self._constant(code)
            self._emit(_BINARY.get(type(operator), k.EQUAL))

    # Numbers

    def _number(self, node: ast.expr, *, symbols_too: bool = False) -> None:
        match node:
            case ast.Constant(value=bool() | int() | float()):
                self._constant(self._value_of(node))
            case ast.Name(id=name) if name in ("true", "false"):
                self._constant(float(name == "true"))
            case ast.Name(id=name) if name not in _WORDS:
                kind = self._kind_of(name)
                if kind == "text" or (isinstance(kind, tuple) and not symbols_too):
                    self._problem(f"{name!r} holds texts; compare it with a text in quotes")
                self._load(NumberInput(name))
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                self._number(operand)
                self._emit(k.NEGATE)
            case ast.BinOp(left=left, op=operator, right=right) if type(operator) in _BINARY:
                self._number(left)
                self._number(right)
                self._emit(_BINARY[type(operator)])
            case ast.Call(func=ast.Name(id=name)) if name in _FUNCTIONS:
                if name in _CONDITIONS:
                    self._refuse(node, "a number")
                self._call(node)
            case _:
                self._refuse(node, "a number: a column, a constant or arithmetic")
                self._constant(0.0)

    def _call(self, node: ast.Call) -> None:
        name = node.func.id if isinstance(node.func, ast.Name) else ""
        least, most = _FUNCTIONS[name]
        if node.keywords or not least <= len(node.args) <= most:
            span = str(least) if least == most else f"{least} to {most}"
            self._problem(f"{name}() takes {span} plain argument(s), was {_source(node)!r}")
            self._constant(0.0)
        elif name == "starts_with":
            self._starts_with(node.args[0], node.args[1])
        elif name == "between":
            value, low, high = node.args
            self._compare(value, ast.GtE(), low)
            self._compare(value, ast.LtE(), high)
            self._emit(k.AND)
        else:
            self._number(node.args[0])
            if name == "abs":
                self._emit(k.ABS)
            for argument in node.args[1:]:
                self._number(argument)
                self._emit({"min": k.MINIMUM, "max": k.MAXIMUM, "coalesce": k.COALESCE}[name])

    def _value_of(self, node: ast.expr) -> float:
        """Return a numeric constant, signed ones included."""
        sign = 1.0
        inner: ast.expr = node
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            sign, inner = -1.0, node.operand
        if isinstance(inner, ast.Constant) and isinstance(inner.value, bool | int | float):
            try:
                value = float(inner.value)
            except OverflowError:
                value = math.inf
            if math.isfinite(value):
                return sign * value
        self._refuse(node, "a finite number")
        return 0.0

    # Texts

    def _is_text(self, node: ast.expr) -> bool:
        if isinstance(node, ast.Name) and _word(node) is None:
            kind = (self.catalogue or {}).get(node.id)
            return kind is not None and kind != "number"
        return isinstance(node, ast.Constant) and isinstance(node.value, str)

    def _code_of(self, column: str, node: ast.expr) -> float:
        """Return the number that stands for a text constant in `column`."""
        kind = self._kind_of(column)
        if not isinstance(node, ast.Constant) or not isinstance(node.value, str):
            self._refuse(node, f"a text in quotes, as {column!r} holds texts")
            return 0.0
        if kind == "number":
            self._problem(f"{column!r} holds numbers; {node.value!r} is a text")
        if isinstance(kind, tuple):
            if node.value not in kind:
                self._problem(f"{column!r} is one of {', '.join(kind)}, was {node.value!r}")
                return 0.0
            return float(kind.index(node.value))
        known = self._texts.setdefault(column, {})
        return float(known.setdefault(node.value.encode("utf-8"), len(known)))

    def _load_text(self, column: str) -> None:
        symbols = isinstance((self.catalogue or {}).get(column), tuple)
        self._load(NumberInput(column) if symbols else TextInput(column))

    def _text_codes(self, column: str) -> None:
        self._kind_of(column)
        if not isinstance((self.catalogue or {}).get(column), tuple):
            self._texts.setdefault(column, {})
        self._load_text(column)

    def _starts_with(self, column: ast.expr, prefix: ast.expr) -> None:
        known = isinstance(prefix, ast.Constant) and isinstance(prefix.value, str)
        if not isinstance(column, ast.Name) or _word(column) is not None or not known:
            self._problem('starts_with() takes a text column and a text in quotes, as in ("41")')
            self._constant(0.0)
            return
        kind = self._kind_of(column.id)
        if kind not in (None, "text"):
            self._problem(f"starts_with() needs a text column, {column.id!r} is not one")
        value = prefix.value if isinstance(prefix, ast.Constant) else ""
        self._load(PrefixInput(column.id, str(value).encode("utf-8")))

    def _kind_of(self, name: str) -> ColumnKind | None:
        if self.catalogue is None:
            self.names.add(name)
            return None
        kind = self.catalogue.get(name)
        if kind is None:
            near = difflib.get_close_matches(name, self.catalogue, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            self._problem(f"there is no column {name!r}{hint}")
        else:
            self.names.add(name)
        return kind


def _word(node: ast.expr) -> str | None:
    """Return the reserved word that a node is, or None."""
    if isinstance(node, ast.Name) and node.id in _WORDS:
        return node.id
    if isinstance(node, ast.Constant) and node.value is None:
        return "null"
    return None


def _source(node: ast.AST) -> str:
    text = ast.unparse(node)
    return text if len(text) <= 60 else text[:57] + "..."
