"""Declaring features: names, versions, explanations, and every mistake at once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from jobs.fraud.features import FRAUD_FEATURES
from jobs.windows.durations import duration_ms, duration_text
from jobs.windows.errors import FeatureDeclarationError
from jobs.windows.event_features import event_features
from jobs.windows.loading import load_feature_set
from jobs.windows.spec import (
    Entity,
    FeatureSet,
    HotKeys,
    count,
    distance,
    labelled,
    mean,
    money,
    ratio,
    std,
    text,
    total,
    where,
)
from schemas.columns import NumberColumn
from tests.reference.windows_sets import EVERYTHING, TILED


def test_names_follow_from_entity_field_operation_window_and_delay() -> None:
    assert FRAUD_FEATURES.names_of("customer")[:1] == ("customer_count_1d",)
    assert "customer_amount_mean_7d" in FRAUD_FEATURES.names
    assert "terminal_fraud_rate_30d_delay_7d" in FRAUD_FEATURES.names
    assert FRAUD_FEATURES.event_features == ("amount", "weekend", "night")


@pytest.mark.parametrize("declared", [FRAUD_FEATURES, EVERYTHING, TILED], ids=lambda d: d.name)
def test_every_feature_is_explained_once(declared: FeatureSet) -> None:
    rows = declared.explain()
    assert [row["name"] for row in rows] == list(declared.names)
    assert all(row["meaning"] and "{" not in row["meaning"] for row in rows)


def test_the_version_changes_with_any_meaning_and_with_nothing_else() -> None:
    def declared(window: str, default: float = 0.0) -> FeatureSet:
        return FeatureSet(
            name="v",
            fields=(money("amount", "amount_minor"),),
            entities=(Entity("customer", "id", (mean("amount", (window,), default=default),)),),
        )

    assert declared("1d").version == declared("1d").version
    assert len({d.version for d in (declared("1d"), declared("2d"), declared("1d", 1.0))}) == 3


def test_every_mistake_is_listed_at_once() -> None:
    with pytest.raises(FeatureDeclarationError) as caught:
        FeatureSet(
            name="Wrong",
            fields=(money("amount", "amount_minor"), text("shop"), text("shop")),
            filters=(
                labelled("fraud"),
                where("odd", "shop", ">", 3),
                where("none", "gone", "=", 1),
            ),
            entities=(
                Entity(
                    "customer",
                    "customer_id",
                    (
                        count(()),
                        count(("91d",)),
                        mean("shop", ("1w",)),
                        std("gone", ("1d",)),
                        ratio("nothing", ("1d",)),
                        total("amount", ("1d",), tiles=True),
                        distance(("1d",)),
                    ),
                    HotKeys(events=10, tile="x"),
                ),
            ),
            allowed_lateness="soon",
        )
    message = str(caught.value)
    for expected in (
        "'Wrong'",
        "field 'shop' is declared twice",
        "text compares with == or !=",
        "unknown field 'gone'",
        "at least one window",
        "windows are from 1s to 90d, was '91d'",
        "expected a field of kind integer, was text",
        "was '1w'",
        "unknown filter 'nothing'",
        "latitude and longitude",
        "64 events at least, was 10",
        "was 'soon'",
    ):
        assert expected in message


def test_a_feature_declared_twice_is_refused() -> None:
    with pytest.raises(FeatureDeclarationError, match="declared twice"):
        FeatureSet(
            name="twice",
            fields=(),
            entities=(Entity("customer", "id", (count(("1d",)), count(("1d",)))),),
        )


def test_tiles_of_labels_are_refused_because_tiles_forget_ids() -> None:
    with pytest.raises(FeatureDeclarationError, match="labels"):
        FeatureSet(
            name="tiles",
            fields=(),
            filters=(labelled("fraud"),),
            entities=(
                Entity("t", "id", (ratio("fraud", ("1d",), tiles=True),), HotKeys(1000, "1h")),
            ),
        )


@pytest.mark.parametrize(
    ("text_", "ms"), [("1s", 1_000), ("90d", 7_776_000_000), ("36h", 129_600_000)]
)
def test_durations_read_and_write(text_: str, ms: int) -> None:
    assert duration_ms(text_) == ms
    assert duration_ms(duration_text(ms)) == ms


def test_calendar_features_are_in_utc() -> None:
    saturday_night = 1_522_540_831_000 // 86_400_000 * 86_400_000  # Sunday 2018-04-01
    times = np.array(
        [saturday_night, saturday_night + 7 * 3_600_000 - 1, saturday_night + 7 * 3_600_000,
         saturday_night + 86_400_000], np.int64,
    )  # fmt: skip
    columns = {
        "amount_minor": NumberColumn(np.array([5716, 1, 0, 99]), np.array([1, 1, 0, 1], bool))
    }
    got = event_features(FRAUD_FEATURES, times, columns)
    assert got[:, 0].tolist() == [57.16, 0.01, 0.0, 0.99]
    assert got[:, 1].tolist() == [1.0, 1.0, 1.0, 0.0]
    assert got[:, 2].tolist() == [1.0, 1.0, 0.0, 1.0]


def test_a_declaration_is_loaded_from_its_file() -> None:
    path = Path(__file__).parents[2] / "jobs" / "fraud" / "features.py"
    assert load_feature_set(str(path)).version == FRAUD_FEATURES.version
    assert load_feature_set(f"{path}:FRAUD_FEATURES").names == FRAUD_FEATURES.names


@pytest.mark.parametrize(
    "body", ["", "x = = 1", "import missing_module_of_nobody", "a = undefined"]
)
def test_a_file_that_declares_nothing_is_refused(tmp_path: Path, body: str) -> None:
    file = tmp_path / "features.py"
    file.write_text(body)
    with pytest.raises(FeatureDeclarationError, match="loading features"):
        load_feature_set(str(file))
