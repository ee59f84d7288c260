"""Masks and tokens by schema annotation."""

from __future__ import annotations

import pytest

from schemas.columns import StringColumn
from schemas.errors import ConfigurationError
from schemas.model import SchemaError, parse_schema
from schemas.sensitivity import MASK, Tokeniser, mask_record, sensitive_fields

KEY = b"0123456789abcdef"
CARD = "4000000000000002"


def field(name: str, type_: object, sensitivity: str | None = None) -> dict[str, object]:
    extra = {"riskstream.sensitivity": sensitivity} if sensitivity else {}
    return {"name": name, "type": type_, **extra}


SCHEMA = parse_schema(
    {
        "type": "record",
        "name": "P",
        "fields": [
            field("id", "string"),
            field("card", ["null", "string"], "tokenise"),
            field("name", "string", "mask"),
            field(
                "home",
                {"type": "record", "name": "H", "fields": [field("street", "string", "mask")]},
            ),
            field("phones", {"type": "array", "items": "string"}, "mask"),
            field("next", ["null", "P"]),
        ],
    }
)


def test_annotations_are_found_at_every_depth() -> None:
    assert sensitive_fields(SCHEMA) == {
        "card": "tokenise",
        "name": "mask",
        "home.street": "mask",
        "phones": "mask",
    }


def test_an_unknown_annotation_is_refused() -> None:
    schema = {"type": "record", "name": "P", "fields": [field("a", "string", "hide")]}
    with pytest.raises(SchemaError, match="mask or tokenise, was 'hide'"):
        sensitive_fields(parse_schema(schema))


def test_a_listing_shows_no_sensitive_value() -> None:
    person = {
        "id": "1",
        "card": CARD,
        "name": "Ana",
        "home": {"street": "Rue X"},
        "phones": ["1", "2"],
    }
    shown = mask_record(person, sensitive_fields(SCHEMA))
    assert shown == {
        "id": "1",
        "card": MASK,
        "name": MASK,
        "home": {"street": MASK},
        "phones": MASK,
    }
    assert person["card"] == CARD


def test_a_listing_shows_tokens_and_nulls() -> None:
    token = Tokeniser(KEY).token(CARD)
    fields = sensitive_fields(SCHEMA)
    assert mask_record({"card": token, "name": None}, fields) == {"card": token, "name": None}


def test_equal_values_have_equal_tokens_under_one_key_only() -> None:
    one, other = Tokeniser(KEY), Tokeniser(KEY + b"x")
    assert one.token(CARD) == Tokeniser(KEY).token(CARD.encode())
    assert one.token(CARD) != other.token(CARD)
    assert one.token(CARD) != one.token(CARD + "0")
    assert CARD not in one.token(CARD)


def test_a_token_stays_itself() -> None:
    one = Tokeniser(KEY)
    assert one.token(one.token(CARD)) == one.token(CARD)


def test_a_column_keeps_its_nulls() -> None:
    one = Tokeniser(KEY)
    column = one.column(StringColumn.from_texts([CARD, None, ""]))
    assert column.to_list() == [one.token(CARD), None, one.token("")]


def test_a_record_is_tokenised_and_masked_values_are_dropped() -> None:
    one = Tokeniser(KEY)
    out = one.record({"card": CARD, "name": "Ana", "id": "1"}, sensitive_fields(SCHEMA))
    assert out == {"card": one.token(CARD), "name": None, "id": "1"}


def test_a_short_key_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="16 bytes or more, was 3"):
        Tokeniser(b"abc")
