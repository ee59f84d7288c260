"""The rule language: what fires, what is refused, and what a null does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from jobs.rules.errors import RuleSetError
from jobs.rules.ruleset import Action, Rule, RuleSet
from schemas.columns import NumberColumn, StringColumn
from schemas.errors import ConfigurationError

NAN = float("nan")
CATALOGUE = {
    "amount": "number",
    "count": "number",
    "night": "number",
    "country": "text",
    "home": "text",
    "channel": ("unknown", "ecommerce", "atm"),
}
COLUMNS = {
    "amount": np.array([10.0, 250.0, NAN, 0.0, -5.0]),
    "count": NumberColumn(np.array([1, 20, 3, 4, 5], np.int64), np.array([1, 1, 1, 0, 1], bool)),
    "night": NumberColumn(np.array([1, 0, 1, 0, 0], bool), np.array([1, 1, 1, 1, 0], bool)),
    "country": StringColumn.from_texts(["GB", "IE", None, "US", "Größe"]),
    "home": StringColumn.from_texts(["GB", "GB", "GB", None, "Größe"]),
    "channel": NumberColumn(np.array([1, 2, 0, 1, 0], np.int32), np.array([1, 1, 1, 1, 0], bool)),
}


def fired(when: str) -> list[int]:
    rules = RuleSet([Rule("r", "A title.", when, Action.TAG)], catalogue=CATALOGUE)
    return np.flatnonzero(rules.evaluate(COLUMNS, 5)[:, 0]).tolist()


@pytest.mark.parametrize(
    ("when", "rows"),
    [
        ("amount > 5", [0, 1]),
        ("amount >= 10 and count < 5", [0]),
        ("amount > 100 or amount < 0", [1, 4]),
        ("not amount > 5", [3, 4]),
        ("not (amount > 5 and amount < 20)", [1, 3, 4]),
        ("5 < amount <= 10", [0]),
        ("between(amount, 0, 10)", [0, 3]),
        ("amount == 250", [1]),
        ("amount != 250", [0, 3, 4]),
        ("amount in [10, -5]", [0, 4]),
        ("amount not in [10, -5]", [1, 3]),
        ("amount is null", [2]),
        ("amount is not null and count is null", [3]),
        ("amount + count * 2 > 12.5", [1]),
        ("-amount > 0", [4]),
        ("count / amount > 0", [0, 1]),
        ("abs(amount) == 5", [4]),
        ("max(amount, count, 30) == 250", [1]),
        ("min(amount, 0) < 0", [4]),
        ("coalesce(amount, 1000) > 500", [2]),
        ("night", [0, 2]),
        ("not night", [1, 3]),
        ("night == true", [0, 2]),
        ("true", [0, 1, 2, 3, 4]),
        ("false", []),
        ('country == "GB"', [0]),
        ('"GB" == country', [0]),
        ('country != "GB"', [1, 3, 4]),
        ('country in ["IE", "US"]', [1, 3]),
        ('country not in ["IE", "US"]', [0, 4]),
        ("country == 'Größe'", [4]),
        ('country == ""', []),
        ("country is null", [2]),
        ("country != home", [1]),
        ("home == country", [0, 4]),
        ('starts_with(country, "I")', [1]),
        ('not starts_with(country, "I")', [0, 3, 4]),
        ('starts_with(country, "")', [0, 1, 3, 4]),
        ('starts_with(country, "GBX")', []),
        ('channel == "atm"', [1]),
        ('channel in ["atm", "ecommerce"]', [0, 1, 3]),
        ("channel is null", [4]),
        ("amount > 5\n  and count < 5", [0]),
    ],
)
def test_a_condition_fires_where_it_is_true(when: str, rows: list[int]) -> None:
    assert fired(when) == rows


def test_a_missing_value_never_makes_a_rule_fire_unless_it_is_asked_for() -> None:
    for when in ("amount > 0", "amount <= 0", "not amount > 0", "amount != 1", "amount / 0 > 1"):
        assert 2 not in fired(when)
    assert 2 in fired("amount is null or amount > 0")


def test_a_certain_side_decides_beside_an_unknown_one() -> None:
    assert 2 in fired("amount > 0 or count == 3")
    assert 2 in fired("not (amount > 0 and count == 4)")


@pytest.mark.parametrize(
    ("when", "message"),
    [
        ("amont > 5", "did you mean 'amount'?"),
        ("__import__('os').system('true')", "expected a condition"),
        ("amount.real > 1", "expected a number"),
        ("(lambda: 1)() > 0", "expected a number"),
        ("[x for x in amount]", "expected a condition"),
        ("amount", None),
        ("amount + 1", "expected a condition"),
        ("amount ** 2 > 1", "expected a number"),
        ("amount > 'x'", "holds numbers"),
        ("country > 'GB'", "== and != only"),
        ("country == 5", "a text in quotes"),
        ("country", "compare it with a text"),
        ("'GB' == 'IE'", "a text column"),
        ("country in []", "a list of constants"),
        ("country in home", "a list of constants"),
        ("amount in [1, 'x']", "holds numbers"),
        ("'GB' in ['GB']", "a text column"),
        ("amount is 5", "null after 'is'"),
        ("channel == 'fax'", "one of unknown, ecommerce, atm"),
        ("channel > 1", "== and != only"),
        ("channel == home", "not both text columns"),
        ("starts_with(amount, 'x')", "needs a text column"),
        ("starts_with(country, home)", "a text column and a text"),
        ("abs(1, 2) > 0", "takes 1 plain argument"),
        ("max(amount) > 0", "takes 2 to 16"),
        ("max(amount, key=1) > 0", "takes 2 to 16"),
        ("between(amount, 1)", "takes 3 plain"),
        ("abs(between(amount, 1, 2)) > 0", "expected a number"),
        ("amount > 1e999", "a finite number"),
        ("amount > " + "9" * 400, "a finite number"),
        ("amount > (", "is not an expression"),
        ("amount > 5; amount < 3", "is not an expression"),
        ("amount == '\\x41'", "backslash"),
        ("amount > 1\0", "null bytes"),
        ("+amount > 1", "expected a number"),
        ("amount > null", "expected a number"),
        ("-" * 900 + "amount > 1", "nested"),
        ("(" * 500 + "amount" + ")" * 500 + " > 1", "parentheses"),
        ("1+(" * 70 + "1" + ")" * 70 + " > 1", "nested deeper"),
        ("amount > 1 or " * 400 + "night", "at most 4000 characters"),
    ],
)
def test_what_is_not_the_language_is_refused_with_a_reason(when: str, message: str | None) -> None:
    if message is None:
        fired(when)
        return
    with pytest.raises(RuleSetError, match="mistake") as refusal:
        fired(when)
    assert message in str(refusal.value)


TEXT = """
format: 1
name: example
rules:
  - id: burst
    title: "{count} payments within a day, {amount} in all, from {country}."
    when: count >= 20
    then: review
    weight: 10
  - id: away
    title: Far from home.
    when: country != home
    then: block
  - id: asleep
    title: Not in force.
    when: night
    then: tag
    enabled: false
"""


def test_a_rule_set_knows_its_columns_actions_and_order() -> None:
    rules = RuleSet.from_text(TEXT, CATALOGUE)
    assert [rule.id for rule in rules.rules] == ["burst", "away"]
    assert [rule.id for rule in rules.disabled] == ["asleep"]
    assert len(rules) == 2
    assert rules.columns_needed == {"count", "amount", "country", "home"}
    assert rules.actions.tolist() == [Action.REVIEW, Action.BLOCK]
    assert rules.order.tolist() == [0, 1]
    result = rules.evaluate(COLUMNS, 5)
    assert [rule.id for rule in rules.fired_rules(result[1])] == ["burst", "away"]


def test_a_title_shows_the_values_of_the_event() -> None:
    rules = RuleSet.from_text(TEXT, CATALOGUE)
    assert rules.sentence(0, COLUMNS, 1) == "20 payments within a day, 250 in all, from IE."
    assert rules.sentence(0, COLUMNS, 2) == "3 payments within a day, unknown in all, from unknown."
    assert rules.sentence(0, COLUMNS, 3).startswith("unknown payments")
    assert rules.sentence(1, COLUMNS, 1) == "Far from home."


def test_the_version_follows_what_the_rules_say_and_not_their_layout() -> None:
    version = RuleSet.from_text(TEXT, CATALOGUE).version
    same = TEXT.replace("count >= 20", "  count>=20  # often") + "# a comment\n"
    assert RuleSet.from_text(same, CATALOGUE).version == version
    for old, new in [("20", "21"), ("review", "tag"), ("weight: 10", "weight: 9"), ("Far", "Not")]:
        assert RuleSet.from_text(TEXT.replace(old, new), CATALOGUE).version != version


def test_without_a_catalogue_the_use_of_a_name_says_what_it_holds() -> None:
    rules = RuleSet.from_text(TEXT.replace("country != home", 'country == "US"'))
    assert rules.evaluate(COLUMNS, 5)[:, 1].tolist() == [False, False, False, True, False]


def test_every_mistake_of_a_file_is_reported_at_once() -> None:
    wrong = """
    format: 2
    extra: 1
    rules:
      - id: Bad Id
        title: "{count!r}"
        when: amont > 1
        then: shoot
        weight: -1
        enabled: 1
        color: red
      - just text
      - id: twice
        title: x
        when: amount >
        then: tag
      - id: twice
        title: ""
        when: 5
        then: tag
    """
    with pytest.raises(ConfigurationError) as refusal:
        RuleSet.from_text(wrong, CATALOGUE)
    text = str(refusal.value)
    for part in (
        "format must be 1", "unknown key 'extra'", "name must be", "id must be", "as {name} only",
        "did you mean 'amount'", "then must be one of", "weight must be", "enabled must be",
        "unknown key 'color'", "expected a mapping", "is not an expression", "title must be",
        "when must be",
    ):  # fmt: skip
        assert part in text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "- 1",
        "a: [",
        "rules: &a [*a]\nname: x\nformat: 1",
        "format: 1\nformat: 1\nname: x\nrules: []",
        "format: 1\nname: x\nrules: {}",
        "!!python/object/apply:os.system ['true']",
        "[" * 2000,
        "x" * 300_000,
    ],
)
def test_a_text_that_is_no_rule_set_is_refused_without_a_crash(text: str) -> None:
    with pytest.raises(RuleSetError):
        RuleSet.from_text(text, CATALOGUE)


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RuleSetError, match="cannot be read"):
        RuleSet.load(tmp_path / "absent.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RuleSetError, match="cannot be read"):
        RuleSet.load(tmp_path / "binary.yaml")


def test_a_set_without_rules_and_a_batch_without_events_are_fine() -> None:
    empty = RuleSet.from_text("{format: 1, name: none, rules: []}")
    assert empty.evaluate({}, 5).shape == (5, 0)
    none = {name: column for name, column in COLUMNS.items() if name == "nothing"}
    assert RuleSet.from_text("{format: 1, name: none, rules: []}").evaluate(none, 0).shape == (0, 0)
    rules = RuleSet([Rule("r", "t", "true", Action.TAG)])
    assert rules.evaluate({}, 0).shape == (0, 1)


def test_a_batch_that_lacks_a_column_or_holds_another_kind_is_a_mistake_of_the_job() -> None:
    rules = RuleSet([Rule("r", "t", 'country == "GB" and amount > 1', Action.TAG)])
    with pytest.raises(RuleSetError, match="no column 'country'"):
        rules.evaluate({"amount": COLUMNS["amount"]}, 5)
    swapped = {"country": COLUMNS["amount"], "amount": COLUMNS["amount"]}
    with pytest.raises(RuleSetError, match="does not hold texts"):
        rules.evaluate(swapped, 5)
    swapped = {"country": COLUMNS["country"], "amount": COLUMNS["country"]}
    with pytest.raises(RuleSetError, match="does not hold numbers"):
        rules.evaluate(swapped, 5)


def test_read_only_and_strided_columns_are_read_as_they_are() -> None:
    matrix = np.arange(20.0).reshape(5, 4)
    matrix.setflags(write=False)
    text = COLUMNS["country"]
    assert isinstance(text, StringColumn)
    starts = np.repeat(text.starts, 2)[::2]
    lengths = np.repeat(text.lengths, 2)[::2]
    rules = RuleSet([Rule("r", "t", 'country == "IE" and amount == 5', Action.TAG)])
    rules.warm()
    columns = {"amount": matrix[:, 1], "country": StringColumn(text.data, starts, lengths)}
    assert rules.evaluate(columns, 5)[:, 0].tolist() == [False, True, False, False, False]
