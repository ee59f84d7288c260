"""What `riskstream plan` says about a change, and what it refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from connectors.settings import load_settings
from jobs.cli.plan import schema_findings, state_findings
from jobs.fraud.features import FRAUD_FEATURES
from jobs.plan import EntityFacts, Facts, compare, facts_of, reader_findings
from jobs.windows.spec import FeatureSet, count, mean
from schemas.contract import contract
from schemas.registry import FileRegistry, open_registry


def facts(features: FeatureSet = FRAUD_FEATURES, **shape: object) -> Facts:
    deployed = facts_of(
        features, shards=4, max_parallelism=128, parallelism=2, delivery="at-least-once"
    )
    return replace(deployed, **shape)  # type: ignore[arg-type]


def texts(deployed: Facts, wanted: Facts, level: str) -> list[str]:
    return [finding.text for finding in compare(deployed, wanted) if finding.level == level]


def with_entities(**changes: EntityFacts | None) -> Facts:
    entities = {**facts().entities, **changes}
    kept = {name: entity for name, entity in entities.items() if entity is not None}
    return replace(facts(), entities=kept)


def test_the_same_job_resumes_as_it_is() -> None:
    assert [(one.area, one.level) for one in compare(facts(), facts())] == [("state", "same")]


@pytest.mark.parametrize("name", ["shards", "max_parallelism"])
def test_a_change_that_moves_keys_to_other_state_is_refused_with_the_way_back(name: str) -> None:
    (refusal,) = texts(facts(), facts(**{name: 8}), "refused")
    assert f"flink.{name}" in refusal
    assert "set it back to" in refusal


def test_parallelism_may_change_because_shards_move_whole() -> None:
    assert texts(facts(), facts(parallelism=4), "refused") == []
    assert texts(facts(), facts(parallelism=4), "change") != []


def test_state_of_a_newer_format_is_refused_and_of_an_older_one_is_upgraded() -> None:
    old, new = facts(state_format=1), facts(state_format=2)
    assert "cannot be read by this release" in texts(new, old, "refused")[0]
    assert texts(old, new, "refused") == []
    assert "upgraded" in texts(old, new, "change")[0]


def test_a_dropped_entity_and_a_changed_key_are_refused() -> None:
    customer = facts().entities["customer"]
    assert "dropped" in texts(facts(), with_entities(customer=None), "refused")[0]
    other_key = with_entities(customer=replace(customer, key="card_number"))
    assert "card_number" in texts(facts(), other_key, "refused")[0]


def test_a_new_entity_starts_empty_and_is_allowed() -> None:
    wanted = with_entities(merchant=EntityFacts("merchant_id", 86_400_000, ("amount_minor",)))
    assert texts(facts(), wanted, "refused") == []
    assert "starts with empty windows" in texts(facts(), wanted, "change")[0]


def test_a_longer_window_and_a_new_field_are_allowed_and_explained() -> None:
    customer = facts().entities["customer"]
    wanted = with_entities(
        customer=replace(
            customer, reach_ms=customer.reach_ms * 2, sources=(*customer.sources, "latitude")
        )
    )
    said = " ".join(texts(facts(), wanted, "change"))
    assert "fill up as events arrive" in said
    assert "earlier events have null" in said
    assert texts(facts(), wanted, "refused") == []


def test_added_and_removed_features_are_named() -> None:
    (customer, terminal) = FRAUD_FEATURES.entities
    other = replace(
        FRAUD_FEATURES,
        entities=(
            replace(customer, features=(count(("1d", "7d", "60d")), mean("amount", ("1d",)))),
            terminal,
        ),
    )
    said = [one for one in compare(facts(), facts(other)) if one.area == "tables"]
    assert "customer_count_60d" in said[0].text
    assert "customer_amount_mean_30d" in said[1].text
    assert all(one.level != "refused" for one in said)
    shown = reader_findings(
        facts(), facts(other), {"cards.json": "SELECT avg(customer_amount_mean_30d) FROM t"}
    )
    assert [one.level for one in shown] == ["change"]
    assert "cards.json" in shown[0].text


def test_facts_survive_json_and_ignore_what_newer_releases_add() -> None:
    stored = json.loads(json.dumps(facts().as_dict()))
    stored["of_a_newer_release"] = 1
    assert Facts.from_dict(stored) == facts()


def test_reach_counts_the_window_and_its_delay() -> None:
    assert facts().entities["customer"].reach_ms == 30 * 86_400_000
    assert facts().entities["terminal"].reach_ms == 37 * 86_400_000


def test_the_contracts_of_this_release_are_those_that_its_registry_holds() -> None:
    settings = load_settings(environment={})
    found = schema_findings(open_registry(settings.schemas), settings)
    assert {one.level for one in found} <= {"same", "change"}


def test_a_contract_that_breaks_what_a_topic_holds_is_refused(tmp_path: Path) -> None:
    registry = FileRegistry(tmp_path)
    settings = load_settings(environment={})
    other = json.loads(contract("card_transaction"))
    for field in other["fields"]:
        if field["name"] == "amount_minor":
            field["type"] = "string"
    registry.register("card-transactions-value", json.dumps(other))
    refused = [one for one in schema_findings(registry, settings) if one.level == "refused"]
    assert len(refused) == 1
    assert "amount_minor" in refused[0].text


def test_before_the_first_submission_nothing_can_be_lost() -> None:
    (finding,) = state_findings(None, facts())
    assert finding.level == "change"
