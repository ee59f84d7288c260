"""The published features of the fraud detection handbook, row by row."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from jobs.fraud.features import FRAUD_FEATURES
from jobs.windows.offline import FeatureTable, build_features

TRANSACTIONS = "transactions_2018-04-01_to_2018-07-24.parquet"
SLICE = "features_2018-04-01_to_2018-05-15.parquet"
PUBLISHED = {"weekend": "TX_DURING_WEEKEND", "night": "TX_DURING_NIGHT"}
for days in (1, 7, 30):
    PUBLISHED[f"customer_count_{days}d"] = f"CUSTOMER_ID_NB_TX_{days}DAY_WINDOW"
    PUBLISHED[f"customer_amount_mean_{days}d"] = f"CUSTOMER_ID_AVG_AMOUNT_{days}DAY_WINDOW"
    PUBLISHED[f"terminal_count_{days}d_delay_7d"] = f"TERMINAL_ID_NB_TX_{days}DAY_WINDOW"
    PUBLISHED[f"terminal_fraud_rate_{days}d_delay_7d"] = f"TERMINAL_ID_RISK_{days}DAY_WINDOW"


@pytest.fixture(scope="module")
def computed(
    shared_data: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[FeatureTable, object]:
    folder = shared_data("fraud_handbook")
    published = pq.read_table(folder / SLICE)
    sliced = tmp_path_factory.mktemp("handbook") / "sliced.parquet"
    pq.write_table(pq.read_table(folder / TRANSACTIONS).slice(0, len(published)), sliced)
    return build_features(sliced, FRAUD_FEATURES, label_delay_days=7), published


@pytest.mark.parametrize("feature", sorted(PUBLISHED))
def test_every_row_equals_what_was_published(
    computed: tuple[FeatureTable, object], feature: str
) -> None:
    table, published = computed
    ours = table.matrix[:, table.names.index(feature)]
    theirs = published[PUBLISHED[feature]].to_numpy()
    differs = np.abs(ours - theirs) > 1e-9
    tied = published["tied_timestamp"].to_numpy(zero_copy_only=False)
    # Two transactions of a customer in one second: the handbook's order is that of its sort.
    allowed = tied if feature.startswith("customer") else np.zeros(len(tied), np.bool_)
    assert not (differs & ~allowed).any()
    assert np.count_nonzero(differs) <= 20


def test_no_event_of_the_handbook_is_late_or_repeated(
    computed: tuple[FeatureTable, object],
) -> None:
    table, _ = computed
    assert not table.flags.any()


def test_the_default_set_is_the_amount_and_the_handbooks_fourteen() -> None:
    assert set(FRAUD_FEATURES.names) == {"amount", *PUBLISHED}


def test_sums_over_the_slice_are_those_on_record(
    computed: tuple[FeatureTable, object], shared_data: Callable[[str], Path]
) -> None:
    table, _ = computed
    record = json.loads((shared_data("fraud_handbook") / "expected.json").read_text())
    assert len(table) == record["feature_slice"]["2018-04-01..2018-05-15"]
    sums = {
        column: float(table.matrix[:, table.names.index(feature)].sum())
        for feature, column in PUBLISHED.items()
    }
    assert sums == pytest.approx(record["feature_slice_sums"], rel=1e-6)
