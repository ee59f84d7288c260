"""The verb `schema`."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner, Result

from jobs.cli.schema import schema

ROOT = Path(__file__).resolve().parents[2]
ALERT = str(ROOT / "schemas" / "contracts" / "alert.avsc")


def run(*arguments: str, registry: Path | None = None) -> Result:
    overrides = (f"schemas.registry=file:{registry}",) if registry else ()
    return CliRunner().invoke(schema, list(arguments), obj=(None, overrides))


def test_the_contracts_of_the_repository_keep_all_six_promises() -> None:
    result = run("check", "--json")
    assert result.exit_code == 0, result.output
    rows = json.loads(result.output)
    assert len({row["mode"] for row in rows}) == 6
    assert all(row["compatible"] for row in rows)


def test_a_broken_promise_exits_1_and_names_the_place(tmp_path: Path) -> None:
    broken = json.loads(Path(ALERT).read_text())
    broken["fields"] = [field for field in broken["fields"] if field["name"] != "score"]
    path = tmp_path / "alert.avsc"
    path.write_text(json.dumps(broken))
    result = run("check", str(path), "--mode", "forward", "--against", "fraud-alerts")
    assert result.exit_code == 1
    assert "Alert.score" in result.output
    assert run("check", str(path), "--mode", "backward").exit_code == 0


def test_list_and_show_print_what_is_registered() -> None:
    subjects = {row["subject"] for row in json.loads(run("list", "--json").output)}
    assert "card-transactions-value" in subjects
    assert "card-transactions-value" in run("list").output
    shown = run("show", "card-transactions").output
    assert "card_number: [null, string]  [tokenise]" in shown
    assert json.loads(run("show", ALERT, "--json").output)["name"] == "Alert"


def test_register_adds_a_version_once_and_dry_run_adds_none(tmp_path: Path) -> None:
    dry = run("register", "alerts", ALERT, "--dry-run", registry=tmp_path)
    assert dry.exit_code == 0, dry.output
    assert json.loads(run("list", "--json", registry=tmp_path).output) == []
    for _ in range(2):
        assert run("register", "alerts", ALERT, registry=tmp_path).exit_code == 0
    (row,) = json.loads(run("list", "--json", registry=tmp_path).output)
    assert (row["subject"], row["version"]) == ("alerts-value", 1)


def test_an_unknown_name_lists_the_known_ones() -> None:
    result = run("show", "nothing")
    assert result.exit_code != 0
    assert "fraud-alerts-value" in str(result.exception)
