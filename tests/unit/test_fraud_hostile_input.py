"""Every record ends as a row or a dead letter, whatever is in it; its neighbours are scored."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable

import pytest

from connectors.frames import event_time_header
from schemas.contract import contract
from schemas.registry import stable_schema_id
from tests.support.fraud import (
    START_MS,
    Fraud,
    Row,
    control,
    encode,
    label,
    offline_settings,
    payment,
)
from tests.support.pipeline import frame

CARDS = "card-transactions"
ID = stable_schema_id(contract("card_transaction"))


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Fraud:
    limits = ("fraud.max_record_bytes=4096", "fraud.max_string_bytes=512")
    return Fraud(offline_settings(tmp_path_factory.mktemp("hostile"), *limits))


@pytest.fixture
def fraud(opened: Fraud) -> Fraud:
    return opened.reset()


def value_of(**fields: object) -> bytes:
    return encode(
        "card_transaction",
        {
            "event_id": "bad",
            "event_time_ms": START_MS,
            "customer_id": "C1",
            "terminal_id": "T1",
            "amount_minor": 100,
            "currency": "EUR",
            **fields,
        },
    )


def raw(value: bytes | None, key: bytes | str | None = "C1", **more: object) -> bytes:
    return frame(CARDS, key, value, 1, timestamp_ms=START_MS, **more)  # type: ignore[arg-type]


BAD: dict[str, tuple[Callable[[], bytes], str]] = {
    "nothing at all": (lambda: raw(None), "null_value"),
    "an empty value": (lambda: raw(b""), "not_avro"),
    "text": (lambda: raw(b'{"event_id": "e1"}'), "not_avro"),
    "a header without a body": (lambda: raw(value_of()[:5]), "truncated"),
    "half a record": (lambda: raw(value_of()[:20]), "truncated"),
    "bytes after the record": (lambda: raw(value_of() + b"\0"), "trailing_bytes"),
    "a schema nobody registered": (
        lambda: raw(b"\0" + struct.pack(">I", 0x7FFFFFFF) + value_of()[5:]),
        "unknown_schema_id",
    ),
    "an endless varint": (lambda: raw(value_of()[:5] + b"\xff" * 20), "bad_varint"),
    "a length beyond the record": (lambda: raw(value_of()[:5] + b"\xfe\x01" + b"x"), "truncated"),
    "a negative length": (lambda: raw(value_of()[:5] + b"\x01" + b"x" * 30), "bad_length"),
    "text that is not UTF-8": (
        lambda: raw(value_of(event_id="abcdef").replace(b"abcdef", b"\xff\xfe\xff\xfeef")),
        "invalid_utf8",
    ),
    "a record above the limit": (lambda: raw(value_of() + b"\0" * 8_000), "oversized"),
    "a string above the limit": (lambda: raw(value_of(event_id="x" * 600)), "string_too_long"),
    "no key": (lambda: raw(value_of(), key=None), "missing_key"),
    "another customer's key": (lambda: raw(value_of(), key="C2"), "key_mismatch"),
    "a key that is not text": (lambda: raw(value_of(), key=b"\xff\xfe"), "key_mismatch"),
    "an empty event id": (lambda: raw(value_of(event_id="")), "empty_id"),
    "an empty terminal": (lambda: raw(value_of(terminal_id="")), "empty_id"),
    "an empty customer": (lambda: raw(value_of(customer_id=""), key=""), "empty_id"),
    "a negative amount": (lambda: raw(value_of(amount_minor=-1)), "negative_amount"),
    "an absurd amount": (lambda: raw(value_of(amount_minor=2**63 - 1)), "absurd_amount"),
    "the smallest number as amount": (
        lambda: raw(value_of(amount_minor=-(2**63))),
        "negative_amount",
    ),
    "a time in seconds": (
        lambda: raw(value_of(event_time_ms=START_MS // 1000)),
        "event_time_out_of_range",
    ),
    "the smallest time": (
        lambda: raw(value_of(event_time_ms=-(2**63))),
        "event_time_out_of_range",
    ),
    "the largest time": (lambda: raw(value_of(event_time_ms=2**63 - 1)), "event_time_in_future"),
    "a time three days ahead": (
        lambda: raw(value_of(event_time_ms=START_MS + 3 * 86_400_000)),
        "event_time_in_future",
    ),
    "a latitude that is not a number": (
        lambda: raw(value_of(latitude=float("nan"))),
        "bad_location",
    ),
    "an infinite longitude": (lambda: raw(value_of(longitude=float("inf"))), "bad_location"),
    "a latitude beyond the pole": (lambda: raw(value_of(latitude=90.5)), "bad_location"),
    "a topic of somebody else": (
        lambda: frame("other", "C1", value_of(), 1, timestamp_ms=START_MS),
        "unknown_topic",
    ),
    "a schema id above the signed numbers": (
        lambda: raw(b"\0\xff\xff\xff\xfe" + value_of()[5:]),
        "unknown_schema_id",
    ),
    "an attempt that is not a number": (
        lambda: raw(None, headers=(("riskstream_attempt", b"many"),)),
        "null_value",
    ),
    "an attempt of five thousand digits": (
        lambda: raw(None, headers=(("riskstream_attempt", b"9" * 5_000),)),
        "null_value",
    ),
    "an event time header of three bytes": (
        lambda: raw(None, headers=(("event_time_ms", b"abc"),)),
        "null_value",
    ),
}


@pytest.mark.parametrize(("make", "reason"), BAD.values(), ids=BAD.keys())
def test_a_bad_record_is_dead_lettered_whole_and_its_neighbours_are_scored(
    fraud: Fraud, make: Callable[[], bytes], reason: str
) -> None:
    data = make()
    fraud.send([payment(0), data, payment(2)])
    assert [row["kafka_offset"] for row in fraud.rows()] == [0, 2]
    (letter,) = fraud.letters()
    assert letter["reason"] == reason
    assert (letter["offset"], letter["attempt"]) == (1, 0)
    value = letter["value"]
    assert value is None or value in data


def test_all_bad_records_in_one_batch_are_each_accounted_for(fraud: Fraud) -> None:
    frames = [payment(0)]
    for number, (make, _) in enumerate(BAD.values(), start=1):
        data = bytearray(make())
        struct.pack_into("<q", data, 16, number)
        frames.append(bytes(data))
    frames.append(payment(len(frames)))
    fraud.send(frames)
    assert [row["kafka_offset"] for row in fraud.rows()] == [0, len(frames) - 1]
    assert sorted(letter["offset"] for letter in fraud.letters()) == list(range(1, len(frames) - 1))


def test_an_event_sent_twice_is_scored_once_in_one_batch_or_two_and_after_a_restart(
    fraud: Fraud,
) -> None:
    again = [payment(offset, event_id="same", at_ms=START_MS) for offset in range(4)]
    fraud.send(again[:2])
    fraud.send(again[2:3])
    fraud.restart()
    fraud.send(again[3:])
    assert [row["kafka_offset"] for row in fraud.rows()] == [0]
    assert [(one["offset"], one["reason"]) for one in fraud.letters()] == [
        (offset, "duplicate_event") for offset in (1, 2, 3)
    ]


def test_a_duplicate_does_not_count_in_windows(fraud: Fraud) -> None:
    fraud.send([payment(0, event_id="a"), payment(1, event_id="a"), payment(2, event_id="b")])
    last = fraud.rows()[-1]
    assert last["customer_count_1d"] == struct.pack("<d", 2.0).hex()


def test_a_payment_far_in_the_past_is_scored_and_flagged(fraud: Fraud) -> None:
    fraud.send([payment(0, at_ms=START_MS + 400 * 86_400_000), payment(1, at_ms=START_MS)])
    old = fraud.rows()[-1]
    assert old["kafka_offset"] == 1
    assert old["flags"] & 4


def test_labels_of_unknown_payments_and_repeated_labels_are_stored(fraud: Fraud) -> None:
    fraud.send([label(at, "never-seen", "C1", "T1", START_MS) for at in range(3)])
    assert [row["kafka_offset"] for row in fraud.label_rows()] == [0, 1, 2]
    assert fraud.letters() == []


def bad_controls() -> dict[str, bytes]:
    body = encode(
        "control",
        {
            "control_id": "c",
            "kind": "ping",
            "subject": "",
            "arguments": {},
            "issued_by": "",
            "issued_at_ms": 0,
        },
    )
    topic = "fraud-control"
    return {
        "null": frame(topic, "", None, 0, control=True),
        "no key": frame(topic, None, b"garbage", 0, control=True),
        "truncated": frame(topic, "", body[:-3], 0, control=True),
        "unknown schema": frame(topic, "", b"\0\x7f\xff\xff\xff" + body[5:], 0, control=True),
        "another contract": frame(topic, "", value_of(), 0, control=True),
    }


@pytest.mark.parametrize("name", list(bad_controls()))
def test_a_control_record_of_garbage_is_one_dead_letter_and_scoring_goes_on(
    fraud: Fraud, name: str
) -> None:
    fraud.send([payment(0), bad_controls()[name], payment(2)])
    assert sorted(row["kafka_offset"] for row in fraud.rows()) == [0, 2]
    assert [(one["topic"], one["offset"], one["reason"]) for one in fraud.letters()] == [
        ("fraud-control", 0, "bad_control")
    ]


ORDERS = {
    "a model that does not exist": ("activate_model", "fraud@000000000000", {}),
    "a model path out of the registry": ("activate_model", "../../etc@passwd", {}),
    "rules that are not YAML": ("activate_rules", "rules", {"rules": "{[}"}),
    "rules that are a list": ("activate_rules", "rules", {"rules": "- 1\n- 2"}),
    "no rules": ("activate_rules", "rules", {}),
    "rules that name what is not there": (
        "activate_rules",
        "rules",
        {
            "rules": "format: 1\nname: x\nrules:\n  - id: a\n    title: t\n    when: nothing > 1\n"
            "    then: block\n    weight: 1\n"
        },
    ),
    "rules that call Python": (
        "activate_rules",
        "rules",
        {
            "rules": "format: 1\nname: x\nrules:\n  - id: a\n    title: t\n"
            "    when: __import__('os').system('true') > 1\n    then: block\n    weight: 1\n"
        },
    ),
    "rules with a Python tag": (
        "activate_rules",
        "rules",
        {"rules": "!!python/object/apply:os.getcwd []"},
    ),
    "rules nested a thousand deep": ("activate_rules", "rules", {"rules": "[" * 1_000}),
    "thresholds that are not numbers": ("set_thresholds", "", {"review": "low", "block": "high"}),
    "thresholds that are NaN": ("set_thresholds", "", {"review": "nan", "block": "nan"}),
    "thresholds the wrong way round": ("set_thresholds", "", {"review": "0.9", "block": "0.1"}),
    "no thresholds": ("set_thresholds", "", {}),
    "a challenger with a share of two": (
        "challenge_model",
        "fraud@000000000000",
        {"share": "2"},
    ),
}


@pytest.mark.parametrize(("kind", "subject", "arguments"), ORDERS.values(), ids=ORDERS.keys())
def test_an_order_that_makes_no_sense_is_refused_by_every_shard_and_changes_nothing(
    fraud: Fraud, kind: str, subject: str, arguments: dict[str, str]
) -> None:
    fraud.send([payment(0, event_id="a")])
    fraud.send([control(0, kind, subject, **arguments)])
    fraud.send([payment(1, event_id="b")])
    fraud.restart()
    fraud.send([payment(2, event_id="c")])
    outcomes = fraud.control_rows()
    assert [row["outcome"] for row in outcomes] == ["refused"] * 4
    assert sorted(row["shard"] for row in outcomes) == [0, 1, 2, 3]
    assert all(row["detail"] for row in outcomes)
    assert len({_versions(row) for row in fraud.rows()}) == 1
    assert fraud.letters() == []


def _versions(row: Row) -> tuple[str, str]:
    return row["model_version"], row["rule_set_version"]


@pytest.mark.parametrize("seed", range(4))
def test_mutated_records_of_any_kind_are_all_accounted_for(fraud: Fraud, seed: int) -> None:
    chance = random.Random(seed)
    sound = [
        value_of(event_id=f"e{number}", country="FR", latitude=45.0, merchant_id="M" * 20)
        for number in range(20)
    ]
    frames, published = [], 3_000
    for offset in range(published):
        value = _mutate(chance, chance.choice(sound))
        key: bytes | None = chance.choice([b"C1", b"C1", b"C1", b"C2", b"", None, b"\xff"])
        headers = (event_time_header(chance.getrandbits(62)),) if chance.random() < 0.5 else ()
        topic = chance.choice([CARDS, CARDS, CARDS, "card-labels"])
        frames.append(frame(topic, key, value, offset, timestamp_ms=START_MS, headers=headers))
    fraud.send(frames, sorted(chance.sample(range(1, published), 40)))
    rows = [row["kafka_offset"] for row in [*fraud.rows(), *fraud.label_rows()]]
    letters = [letter["offset"] for letter in fraud.letters()]
    assert sorted(rows + letters) == list(range(published))
    assert letters


def _mutate(chance: random.Random, value: bytes) -> bytes:
    data = bytearray(value)
    for _ in range(chance.randrange(4)):
        if not data:
            break
        at = chance.randrange(len(data))
        match chance.randrange(5):
            case 0:
                data[at] ^= 1 << chance.randrange(8)
            case 1:
                data[at] = chance.choice([0, 0x7F, 0x80, 0xFF])
            case 2:
                del data[at:]
            case 3:
                data[at:at] = chance.randbytes(chance.randrange(1, 9))
            case _:
                del data[at]
    return bytes(data)
