"""Models inside the decision stage: routes, shadows, refusals, and what an alert says of them."""

from __future__ import annotations

import math
import time
from pathlib import Path

import pytest

from jobs.fraud.features import FRAUD_FEATURES
from models.errors import ModelRefusedError
from models.manifest import Manifest
from models.registry import Registry
from models.scorer import ModelCache
from tests.support.fraud import Fraud, control, offline_settings, payment, read_rows
from tests.support.models import BROKEN, amount_model, break_model


@pytest.fixture(scope="module")
def fraud(tmp_path_factory: pytest.TempPathFactory) -> Fraud:
    return Fraud(offline_settings(tmp_path_factory.mktemp("models")), shards=2)


def registry_of(fraud: Fraud) -> Registry:
    return Registry(fraud.settings.models.registry)


def test_a_channel_or_a_tenant_can_have_a_model_of_its_own(fraud: Fraud) -> None:
    fraud.reset()
    registry = registry_of(fraud)
    web = registry.register(amount_model("web", 0.01))
    acme = registry.register(amount_model("acme", 0.02))
    fraud.send(
        [
            control(0, "activate_model", web, route_field="channel", route_value="ecommerce"),
            control(1, "activate_model", acme, route_field="tenant", route_value="acme"),
            payment(0, channel="ecommerce"),
            payment(1, channel="atm"),
            payment(2, channel="atm", tenant="acme"),
            payment(3, tenant="other"),
        ]
    )
    by_offset = {row["kafka_offset"]: row["model_version"] for row in fraud.rows()}
    assert by_offset[0] == web
    assert by_offset[2] == acme
    assert by_offset[1] == by_offset[3]
    assert by_offset[1] not in {web, acme}


def test_a_route_by_a_field_that_nobody_routes_by_is_refused(fraud: Fraud) -> None:
    fraud.reset()
    version = registry_of(fraud).register(amount_model("lost", 0.01))
    fraud.send([control(0, "activate_model", version, route_field="shoe", route_value="43")])
    outcomes = fraud.control_rows()
    assert {row["outcome"] for row in outcomes} == {"refused"}
    assert all("route_field" in row["detail"] for row in outcomes)


def test_a_shadow_scores_every_row_after_its_order_and_decides_none(fraud: Fraud) -> None:
    fraud.reset()
    version = registry_of(fraud).register(amount_model("quiet", 0.03))
    frames = [payment(offset, f"C{offset % 5}") for offset in range(20)]
    fraud.send([*frames[:8], control(0, "shadow_model", version), *frames[8:]], cut=[8, 9, 12])
    layout = fraud.pipeline.stages[1]._shadow_layout  # type: ignore[attr-defined]
    shadows = read_rows(fraud.pipeline.rows, 3, layout)
    assert sorted(row["kafka_offset"] for row in shadows) == list(range(8, 20))
    assert {row["model_version"] for row in shadows} == {version}
    scored = {row["event_id"]: row for row in fraud.rows()}
    assert all(row["score"] != scored[row["event_id"]]["score"] for row in shadows)
    assert version not in {row["model_version"] for row in scored.values()}


@pytest.mark.parametrize("code", BROKEN)
def test_a_broken_model_is_refused_with_a_reason_and_scoring_goes_on(
    fraud: Fraud, code: str
) -> None:
    fraud.reset()
    version = break_model(registry_of(fraud), code)
    fraud.send([payment(0), control(0, "activate_model", version), payment(1, "C2")])
    outcomes = fraud.control_rows()
    assert [row["outcome"] for row in outcomes] == ["refused"] * 2
    assert all(BROKEN[code] in row["detail"] for row in outcomes)
    rows = fraud.rows()
    assert len(rows) == 2
    assert version not in {row["model_version"] for row in rows}


def test_a_prepared_model_is_loaded_once_and_then_only_taken_over(tmp_path: Path) -> None:
    registry = Registry(f"file:{tmp_path}")
    version = registry.register(amount_model("soon", 0.01))
    loads: list[str] = []

    class Counting:
        def load(self, wanted: str):  # type: ignore[no-untyped-def]
            loads.append(wanted)
            return registry.load(wanted)

        def reference(self, manifest: Manifest) -> None:
            return None

    cache = ModelCache(Counting(), 10**9, time.perf_counter_ns)
    for _ in range(3):
        cache.prepare(version, FRAUD_FEATURES.names)
    assert cache.get(version, FRAUD_FEATURES.names).version == version
    assert loads == [version]


def test_a_model_refused_when_prepared_is_refused_again_when_asked_for(tmp_path: Path) -> None:
    registry = Registry(f"file:{tmp_path}")
    version = break_model(registry, "corrupt_file")
    cache = ModelCache(registry, 10**9, time.perf_counter_ns)
    cache.prepare(version, FRAUD_FEATURES.names)
    for _ in range(2):
        with pytest.raises(ModelRefusedError) as refused:
            cache.get(version, FRAUD_FEATURES.names)
        assert refused.value.code == "corrupt_file"


def test_what_an_alert_says_of_its_score_is_true_of_the_model(fraud: Fraud) -> None:
    fraud.reset()
    registry = registry_of(fraud)
    version = registry.register(amount_model("dear", 0.01, -4.0))
    fraud.send([control(0, "activate_model", version)])
    fraud.send([payment(1, amount_minor=90_000), payment(2, amount_minor=1_000)])
    (alert,) = [one for one in fraud.alerts() if one["model_version"] == version]
    assert alert["contribution_scale"] == "log_odds"
    raw = sum(alert["contributions"].values()) + alert["contribution_base"]
    assert 1 / (1 + math.exp(-raw)) == pytest.approx(alert["score"], abs=1e-6)
    (reason,) = [one for one in alert["reasons"] if one["kind"] == "feature"]
    assert reason["text"] == "amount is 900"
    assert reason["contribution"] == alert["contributions"]["amount"]
    change = alert["smallest_change"]
    assert [one["feature"] for one in change["features"]] == ["amount"]
    amount = change["features"][0]["after"]
    assert change["score"] == pytest.approx(1 / (1 + math.exp(4 - 0.01 * amount)), abs=1e-6)
    assert change["score"] < alert["threshold"]
    assert "amount" in change["text"]
