"""Limits, scenarios and instruments that people write: checked before the job sees them."""

from __future__ import annotations

import json

import pytest

from jobs.market_risk.files import InputFileError
from jobs.market_risk.reference_files import newest_limit, reference_records

LIMIT = {
    "limit_id": "desk-gross", "scope": "desk", "scope_id": "rates", "measure": "gross",
    "warning": 1e6, "breach": 2e6,
}  # fmt: skip


def written(path, records):
    path.write_text(json.dumps(records), encoding="utf-8")
    return path


def test_a_list_and_a_record_a_line_are_the_same(tmp_path):
    lines = tmp_path / "lines.json"
    lines.write_text(json.dumps(LIMIT) + "\n" + json.dumps(LIMIT | {"revision": 1}) + "\n")
    listed = written(tmp_path / "list.json", [LIMIT, LIMIT | {"revision": 1}])
    assert reference_records(lines, "limits") == reference_records(listed, "limits")


@pytest.mark.parametrize(
    ("topic", "record", "problem"),
    [
        ("limits", {"scope": "desk"}, r"record 2 of 'odd\.json'.*limit_id.*limit\.avsc"),
        ("limits", LIMIT | {"warning": 3e6}, r"0 < warning <= breach, was 3000000\.0"),
        ("limits", LIMIT | {"scope": "book"}, r"record 2.*book"),
        ("limits", LIMIT | {"warn": 1.0}, r"record 2.*warn"),
        ("limits", "desk-gross", r"record 2"),
    ],
)
def test_a_record_that_the_job_could_not_use_is_refused_by_its_number(
    tmp_path, topic, record, problem
):
    with pytest.raises(InputFileError, match=problem):
        reference_records(written(tmp_path / "odd.json", [LIMIT, record]), topic)


def test_a_shock_below_all_of_the_price_is_refused(tmp_path):
    scenario = {
        "scenario_id": "what-if", "kind": "stress", "event_time_ms": 0, "shocks": {"*": -1.5},
    }  # fmt: skip
    path = written(tmp_path / "scenarios.json", [scenario])
    with pytest.raises(InputFileError, match=r"shocks of -1 or more"):
        reference_records(path, "scenarios")
    scenario["shocks"] = {"kind:bond": -0.05}
    assert reference_records(written(path, [scenario]), "scenarios") == [scenario]


def test_what_is_no_json_is_refused_by_name(tmp_path):
    path = tmp_path / "limits.json"
    path.write_text("[{", encoding="utf-8")
    with pytest.raises(InputFileError, match=r"'limits\.json': expected a JSON list of objects"):
        reference_records(path, "limits")


def test_the_limit_in_force_has_the_greatest_revision_of_its_firm():
    first = LIMIT | {"firm_id": "north", "revision": 0}
    other = first | {"firm_id": "south", "revision": 7}
    newer, late = first | {"revision": 2}, first | {"revision": 1}
    assert newest_limit([first, newer, late], "desk-gross") == newer
    assert newest_limit([first, other], "desk-gross", "south") == other
    with pytest.raises(InputFileError, match=r"firms north, south have one; say which with --firm"):
        newest_limit([first, other], "desk-gross")
    with pytest.raises(InputFileError, match=r"'gross': expected one of desk-gross"):
        newest_limit([first], "gross")
    with pytest.raises(InputFileError, match=r"none was published"):
        newest_limit([], "gross")
