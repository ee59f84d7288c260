"""Random conditions over random batches: the compiled program agrees with a naive reference."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jobs.rules.errors import RuleSetError
from jobs.rules.ruleset import Action, Rule, RuleSet
from schemas.columns import NumberColumn, StringColumn

CATALOGUE = {"x": "number", "y": "number", "flag": "number", "a": "text", "b": "text"}
TEXTS = ["", "A", "AB", "é", "B"]

# An expression is a tuple: its name and its parts. Numbers are small, so that equality happens.
constants = st.sampled_from([-2.0, -1.0, 0.0, 0.5, 1.0, 2.0, 3.0])
numbers = st.recursive(
    st.one_of(
        constants.map(lambda v: ("const", v)), st.sampled_from(["x", "y"]).map(lambda n: ("num", n))
    ),
    lambda inner: st.one_of(
        st.tuples(st.sampled_from(["+", "-", "*", "/"]), inner, inner),
        st.tuples(st.sampled_from(["min", "max", "coalesce"]), inner, inner),
        st.tuples(st.sampled_from(["abs", "neg"]), inner),
    ),
    max_leaves=5,
)
texts = st.sampled_from(TEXTS)
text_columns = st.sampled_from(["a", "b"])
leaves = st.one_of(
    st.tuples(st.sampled_from(["<", "<=", ">", ">=", "==", "!="]), numbers, numbers),
    st.tuples(st.just("chain"), numbers, numbers, numbers),
    st.tuples(st.just("between"), numbers, numbers, numbers),
    st.tuples(st.sampled_from(["null", "notnull"]), numbers),
    st.tuples(
        st.sampled_from(["in", "notin"]), numbers, st.lists(constants, min_size=1, max_size=3)
    ),
    st.tuples(st.just("flag")),
    st.tuples(st.sampled_from(["teq", "tne"]), text_columns, texts),
    st.tuples(
        st.sampled_from(["tin", "tnotin"]), text_columns, st.lists(texts, min_size=1, max_size=3)
    ),
    st.tuples(st.sampled_from(["same", "differ"])),
    st.tuples(st.just("prefix"), text_columns, texts),
    st.tuples(st.sampled_from(["tnull", "tnotnull"]), text_columns),
)
conditions = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.tuples(st.sampled_from(["and", "or"]), inner, inner), st.tuples(st.just("not"), inner)
    ),
    max_leaves=8,
)
rows = st.fixed_dictionaries(
    {
        "x": st.none() | constants,
        "y": st.none() | constants,
        "flag": st.none() | st.booleans(),
        "a": st.none() | texts,
        "b": st.none() | texts,
    }
)


def spell(e: Any) -> str:
    kind, *parts = e
    match kind:
        case "const":
            return repr(parts[0])
        case "num":
            return str(parts[0])
        case "neg":
            return f"(-{spell(parts[0])})"
        case "abs" | "min" | "max" | "coalesce" | "between":
            return f"{kind}({', '.join(map(spell, parts))})"
        case "chain":
            return f"({spell(parts[0])} < {spell(parts[1])} <= {spell(parts[2])})"
        case "null":
            return f"({spell(parts[0])} is null)"
        case "notnull":
            return f"({spell(parts[0])} is not null)"
        case "in" | "notin":
            return f"({spell(parts[0])} {'in' if kind == 'in' else 'not in'} {parts[1]})"
        case "flag":
            return "flag"
        case "teq" | "tne":
            return f"({parts[0]} {'==' if kind == 'teq' else '!='} {parts[1]!r})"
        case "tin" | "tnotin":
            return f"({parts[0]} {'in' if kind == 'tin' else 'not in'} {parts[1]!r})"
        case "same":
            return "(a == b)"
        case "differ":
            return "(b != a)"
        case "prefix":
            return f"starts_with({parts[0]}, {parts[1]!r})"
        case "tnull":
            return f"({parts[0]} is null)"
        case "tnotnull":
            return f"({parts[0]} is not null)"
        case "not":
            return f"(not {spell(parts[0])})"
        case _:
            return f"({spell(parts[0])} {kind} {spell(parts[1])})"


def number(e: Any, row: dict[str, Any]) -> float | None:
    kind, *parts = e
    if kind == "const":
        return float(parts[0])
    if kind == "num":
        return row[parts[0]]
    values = [number(part, row) for part in parts]
    if kind == "coalesce":
        return values[1] if values[0] is None else values[0]
    if any(value is None for value in values):
        return None
    if kind == "/" and values[1] == 0:
        return None
    result = {
        "+": lambda p, q=0.0: p + q,
        "-": lambda p, q=0.0: p - q,
        "*": lambda p, q=0.0: p * q,
        "/": lambda p, q=1.0: p / q,
        "min": min,
        "max": max,
        "abs": abs,
        "neg": lambda p: -p,
    }[kind](*values)
    return None if math.isnan(result) else result


def compare(sign: str, left: Any, right: Any) -> bool | None:
    if left is None or right is None:
        return None
    return {
        "<": left < right,
        "<=": left <= right,
        ">": left > right,
        ">=": left >= right,
        "==": left == right,
        "!=": left != right,
    }[sign]


def both(left: bool | None, right: bool | None) -> bool | None:
    if left is False or right is False:
        return False
    return None if left is None or right is None else True


def negate(value: bool | None) -> bool | None:
    return None if value is None else not value


def truth(e: Any, row: dict[str, Any]) -> bool | None:
    kind, *parts = e
    match kind:
        case "and":
            return both(truth(parts[0], row), truth(parts[1], row))
        case "or":
            return negate(both(negate(truth(parts[0], row)), negate(truth(parts[1], row))))
        case "not":
            return negate(truth(parts[0], row))
        case "flag":
            return row["flag"]
        case "null" | "notnull":
            return (number(parts[0], row) is None) == (kind == "null")
        case "tnull" | "tnotnull":
            return (row[parts[0]] is None) == (kind == "tnull")
        case "chain":
            p, q, r = (number(part, row) for part in parts)
            return both(compare("<", p, q), compare("<=", q, r))
        case "between":
            p, q, r = (number(part, row) for part in parts)
            return both(compare(">=", p, q), compare("<=", p, r))
        case "in" | "notin":
            value = number(parts[0], row)
            found = None if value is None else value in parts[1]
            return found if kind == "in" else negate(found)
        case "teq" | "tne":
            return compare("==" if kind == "teq" else "!=", row[parts[0]], parts[1])
        case "tin" | "tnotin":
            found = None if row[parts[0]] is None else row[parts[0]] in parts[1]
            return found if kind == "tin" else negate(found)
        case "same" | "differ":
            return compare("==" if kind == "same" else "!=", row["a"], row["b"])
        case "prefix":
            text = row[parts[0]]
            return None if text is None else text.startswith(parts[1])
        case _:
            return compare(kind, number(parts[0], row), number(parts[1], row))


def columns(batch: list[dict[str, Any]]) -> dict[str, Any]:
    def nullable(name: str, dtype: type) -> NumberColumn:
        values = [row[name] for row in batch]
        valid = np.array([value is not None for value in values], np.bool_)
        return NumberColumn(np.array([v or 0 for v in values], dtype), valid)

    return {
        "x": nullable("x", np.float64),
        "y": np.array([math.nan if row["y"] is None else row["y"] for row in batch], np.float64),
        "flag": nullable("flag", np.bool_),
        "a": StringColumn.from_texts([row["a"] for row in batch]),
        "b": StringColumn.from_texts([row["b"] for row in batch]),
    }


@settings(max_examples=150, deadline=None)
@given(st.lists(conditions, min_size=1, max_size=4), st.lists(rows, max_size=6))
def test_compiled_rules_agree_with_a_naive_reference(
    expressions: list[Any], batch: list[dict[str, Any]]
) -> None:
    rules = RuleSet(
        [Rule(f"r{i}", "t", spell(e), Action.TAG) for i, e in enumerate(expressions)],
        catalogue=CATALOGUE,
    )
    fired = rules.evaluate(columns(batch), len(batch))
    expected = [[truth(e, row) is True for e in expressions] for row in batch]
    assert fired.tolist() == expected
    for i, row in enumerate(batch):
        assert rules.evaluate(columns([row]), 1).tolist() == [expected[i]]


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=200))
@example("amount\r\n> 1")
@example("f'{x}' == a")
@example("x if y else 1")
@example("x == 1_0")
@example("x > 0x10")
@example("...")
@example("x[0] > 1")
@example("a == b'x'")
@example("(x := 1) > 0")
@example("await x")
@example("yield")
@example("*x")
@example("x > 1j")
@example("not")
@example("\ud800")
def test_any_text_is_compiled_or_refused(text: str) -> None:
    try:
        rules = RuleSet([Rule("r", "t", text, Action.TAG)], catalogue=CATALOGUE)
    except RuleSetError:
        return
    row = {"x": 1.0, "y": None, "flag": True, "a": "A", "b": None}
    rules.evaluate(columns([row]), 1)


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=300))
@example("format: 1\nname: x\nrules: [{id: a, title: '{', when: x > 1, then: tag}]")
@example("format: 1\nname: x\nrules: [{id: a, title: '{0}', when: x > 1, then: tag}]")
@example("{1: 2, [1]: 3}")
@example("? {a: b}\n: c")
@example("format: 1\nname: x\nrules: [{[1]: a}]")
@example("2026-99-99")
@example("a: !!int x")
@example("<<: 1")
@example("format: 1\nname: 2026-01-01\nrules: [{id: a, title: t, when: x, then: [tag]}]")
def test_any_yaml_is_a_rule_set_or_refused(text: str) -> None:
    try:
        RuleSet.from_text(text, CATALOGUE)
    except RuleSetError:
        return
