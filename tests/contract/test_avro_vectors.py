"""Golden data: Apache's own cases, and the bytes of our contracts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from schemas.avro import RecordDecoder, RecordEncoder
from schemas.compatibility import reader_problems
from schemas.model import NO_DEFAULT, Node, canonical_form, fingerprint64, parse_schema
from schemas.registry import FileRegistry, stable_schema_id

ROOT = Path(__file__).resolve().parents[2]
CONTRACTS = sorted((ROOT / "schemas" / "contracts").glob("*.avsc"))
REGISTRY = ROOT / "schemas" / "registry"
VECTORS = Path(__file__).parent / "vectors" / "avro_contracts.json"


def test_compatibility_agrees_with_apache_on_every_pair(shared_data: Callable[[str], Path]) -> None:
    path = shared_data("avro_vectors") / "reader_writer_compatibility_pairs.json"
    pairs = json.loads(path.read_text())
    assert len(pairs) == 137
    for pair in pairs:
        problems = reader_problems(parse_schema(pair["reader"]), parse_schema(pair["writer"]))
        assert (not problems) == pair["reader_can_read_writer"], (pair, problems)


def test_canonical_forms_and_fingerprints_agree_with_apache(
    shared_data: Callable[[str], Path],
) -> None:
    path = shared_data("avro_vectors") / "canonical_and_fingerprint_cases.json"
    for case in json.loads(path.read_text()):
        node = parse_schema(case["input"])
        assert canonical_form(node) == case["canonical"]
        if case["fingerprint"] is not None:
            assert (fingerprint64(node) - case["fingerprint"]) % 2**64 == 0


def walk(node: Node, seen: set[int]) -> list[tuple[str, str]]:
    """Return (place, documentation) of every record, enum and field."""
    if id(node) in seen:
        return []
    seen.add(id(node))
    found = [(node.name, node.doc)] if node.name else []
    for branch in (*node.branches, *([node.items] if node.items else [])):
        found += walk(branch, seen)
    for field in node.fields:
        found.append((f"{node.name}.{field.name}", field.doc))
        found += walk(field.type, seen)
    return found


@pytest.mark.parametrize("path", CONTRACTS, ids=lambda path: path.stem)
def test_every_record_enum_and_field_of_a_contract_is_documented(path: Path) -> None:
    node = parse_schema(path.read_text())
    assert node.name.startswith("riskstream.")
    for place, doc in walk(node, set()):
        assert len(doc) > 10, place


@pytest.mark.parametrize("path", CONTRACTS, ids=lambda path: path.stem)
def test_every_nullable_field_of_a_contract_has_a_default(path: Path) -> None:
    for field in parse_schema(path.read_text()).fields:
        if field.type.kind == "union":
            assert field.default is not NO_DEFAULT, field.name


@pytest.mark.parametrize("path", CONTRACTS, ids=lambda path: path.stem)
def test_every_contract_is_registered_under_its_committed_id(path: Path) -> None:
    text = path.read_text()
    registered = FileRegistry(REGISTRY).schema_by_id(stable_schema_id(text))
    assert json.loads(registered.text) == json.loads(text)


@pytest.mark.parametrize("vector", json.loads(VECTORS.read_text()), ids=lambda v: v["contract"])
def test_the_bytes_of_a_contract_never_change(vector: dict[str, object]) -> None:
    registry = FileRegistry(REGISTRY)
    schema_id = int(str(vector["schema_id"]))
    value = bytes.fromhex(str(vector["hex"]))
    record = RecordDecoder(registry).decode(value)
    shown = {k: v.decode("latin-1") if isinstance(v, bytes) else v for k, v in record.items()}
    assert shown == vector["record"]
    assert RecordEncoder(registry.schema_by_id(schema_id).node, schema_id).encode(record) == value


@pytest.mark.parametrize("vector", json.loads(VECTORS.read_text()), ids=lambda v: v["contract"])
def test_todays_contract_reads_the_recorded_bytes(vector: dict[str, object]) -> None:
    reader = (ROOT / "schemas" / "contracts" / f"{vector['contract']}.avsc").read_text()
    decoder = RecordDecoder(FileRegistry(REGISTRY), reader)
    assert decoder.decode(bytes.fromhex(str(vector["hex"])))
