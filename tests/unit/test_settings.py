"""The configuration tree: sources, their order, mistakes, secrets."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from connectors.settings import Settings, load_settings
from schemas.errors import ConfigurationError


def test_defaults_need_no_file_and_no_environment() -> None:
    settings = load_settings(environment={})
    assert settings == Settings()
    assert settings.kafka.bootstrap_servers is None


def test_a_flag_wins_over_the_environment_and_that_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "riskstream.toml"
    file.write_text("[flink]\nparallelism = 1\nshards = 8\nbatch_ms = 9\n", encoding="utf-8")
    environment = {"RISKSTREAM_FLINK__PARALLELISM": "2", "RISKSTREAM_FLINK__SHARDS": "16"}
    flink = load_settings(file, environment, ["flink.parallelism=4"]).flink
    assert (flink.parallelism, flink.shards, flink.batch_ms) == (4, 16, 9)


def test_all_mistakes_are_reported_together(tmp_path: Path) -> None:
    file = tmp_path / "riskstream.toml"
    file.write_text('[kafka]\nbootstrap = "x:1"\n[nothing]\na = 1\n', encoding="utf-8")
    environment = {"RISKSTREAM_FLINK__PARALLELISM": "many"}
    with pytest.raises(ConfigurationError) as caught:
        load_settings(file, environment, ["local.kafka_port=99999", "no-equals-sign"])
    message = str(caught.value)
    assert "found 5 mistake(s)" in message
    for part in ("kafka.bootstrap", "nothing", "flink.parallelism", "kafka_port", "no-equals"):
        assert part in message


def test_a_file_that_cannot_be_read_is_a_mistake_not_a_traceback(tmp_path: Path) -> None:
    broken = tmp_path / "broken.toml"
    broken.write_text("[kafka\n", encoding="utf-8")
    for file in (tmp_path / "absent.toml", broken):
        with pytest.raises(ConfigurationError, match="reading configuration file"):
            load_settings(file, {})


def test_secrets_never_print() -> None:
    overrides = [
        "kafka.security_protocol=SASL_SSL",
        "kafka.sasl_mechanism=SCRAM-SHA-512",
        "kafka.username=job",
        "kafka.password=hush-hush",
        "kafka.key_password=hush-hush",
        "redis.url=redis://job:hush-hush@cache:6379/0",
        "redis.password=hush-hush",
        "clickhouse.password=hush-hush",
        "schemas.password=hush-hush",
    ]
    settings = load_settings(environment={}, overrides=overrides)
    printed = repr(settings) + str(settings) + settings.masked_json() + settings.fingerprint()
    assert "hush" not in printed
    assert settings.kafka.password is not None
    assert settings.kafka.password.get_secret_value() == "hush-hush"


def test_a_mistake_in_a_secret_does_not_print_it() -> None:
    with pytest.raises(ConfigurationError) as caught:
        load_settings(environment={"RISKSTREAM_KAFKA__PASSWORD__DEEPER": "hush-hush"})
    assert "hush" not in str(caught.value)


def test_unrelated_environment_variables_are_left_alone() -> None:
    environment = {"PATH": "/bin", "RISKSTREAM_CONFIG": "file.toml", "RISKSTREAM_HOME": "elsewhere"}
    assert load_settings(environment=environment).home == Path("elsewhere")


@pytest.mark.parametrize(
    "override",
    [
        "kafka.security_protocol=SASL_SSL",
        "flink.parallelism=3",
        "flink.shards=129",
        "local.task_managers=0",
        "redis.when_down=give_up",
        "kafka.topics.partitions=0",
    ],
)
def test_values_that_cannot_work_are_refused(override: str) -> None:
    with pytest.raises(ConfigurationError):
        load_settings(environment={}, overrides=[override])


def test_settings_do_not_change_once_read() -> None:
    settings = load_settings(environment={})
    with pytest.raises(ValidationError, match="frozen"):
        settings.flink.parallelism = 7  # type: ignore[misc]


def test_the_fingerprint_changes_with_a_setting_and_only_then() -> None:
    one = load_settings(environment={})
    other = load_settings(environment={}, overrides=["flink.shards=2"])
    assert one.fingerprint() == load_settings(environment={}).fingerprint()
    assert one.fingerprint() != other.fingerprint()


def test_the_masked_tree_is_json_and_complete() -> None:
    tree = json.loads(Settings().masked_json())
    assert set(tree) == set(Settings.model_fields)
