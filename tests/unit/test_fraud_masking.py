"""Card numbers and flags: what the job writes says neither more nor less than it should."""

from __future__ import annotations

import pytest

from connectors.tables import SCORE_FLAGS
from jobs.windows.batch import RowFlag
from schemas.contract import contract
from schemas.model import parse_schema
from schemas.sensitivity import sensitive_fields
from tests.support.fraud import Fraud, offline_settings, payment

CARD = "4929123412341234"


@pytest.fixture(scope="module")
def fraud(tmp_path_factory: pytest.TempPathFactory) -> Fraud:
    return Fraud(offline_settings(tmp_path_factory.mktemp("masking")), 2)


def test_a_card_number_in_the_clear_reaches_neither_rows_nor_alerts(fraud: Fraud) -> None:
    fraud.reset().send(
        [
            payment(at, amount_minor=900_000, card_number=CARD, event_id=f"masked-{at}")
            for at in range(40)
        ]
    )
    assert len(fraud.rows()) == 40
    assert fraud.alerts(), "the test needs alerts to look into"
    assert not any(CARD.encode() in payload for payload in fraud.pipeline.rows)
    assert not any(CARD.encode() in (r.value or b"") for r in fraud.records("fraud-alerts"))


def test_the_contract_marks_the_card_number_as_sensitive() -> None:
    fields = sensitive_fields(parse_schema(contract("card_transaction")))
    assert fields["card_number"] == "tokenise"


def test_no_bit_of_the_flags_means_two_things() -> None:
    assert len(set(SCORE_FLAGS.values())) == len(SCORE_FLAGS)
    for name, bit in SCORE_FLAGS.items():
        if bit in set(RowFlag):
            assert RowFlag(bit).name == name.upper()
