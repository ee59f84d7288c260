"""Kafka's settings mean the same to librdkafka, to kafka-python and to the Java client in Flink."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import SecretStr

from connectors.kafka import flink_properties, kafka_python_config, librdkafka_config
from connectors.settings import KafkaSettings
from schemas.errors import ConfigurationError


@pytest.fixture
def secured(tmp_path: Path) -> KafkaSettings:
    for name in ("ca.pem", "client.pem", "client.key"):
        (tmp_path / name).write_text(f"-----{name}-----\n", encoding="ascii")
    return KafkaSettings(
        bootstrap_servers="one:9093,two:9093",
        security_protocol="SASL_SSL",
        sasl_mechanism="SCRAM-SHA-512",
        username="job",
        password=SecretStr('a "quoted" \\ secret'),
        ca_file=tmp_path / "ca.pem",
        certificate_file=tmp_path / "client.pem",
        key_file=tmp_path / "client.key",
        key_password=SecretStr("key-secret"),
    )


def test_plain_settings_add_no_security_key() -> None:
    plain = KafkaSettings(bootstrap_servers="one:9092")
    assert librdkafka_config(plain) == {
        "bootstrap.servers": "one:9092",
        "security.protocol": "PLAINTEXT",
    }
    assert flink_properties(plain) == {}


def test_librdkafka_gets_files_user_and_verification(secured: KafkaSettings) -> None:
    config = librdkafka_config(secured)
    assert config["sasl.mechanism"] == "SCRAM-SHA-512"
    assert config["sasl.password"] == 'a "quoted" \\ secret'
    assert config["ssl.ca.location"] == str(secured.ca_file)
    assert config["ssl.key.password"] == "key-secret"
    assert config["ssl.endpoint.identification.algorithm"] == "https"


def test_kafka_python_gets_the_same(secured: KafkaSettings) -> None:
    config = kafka_python_config(secured)
    assert config["bootstrap_servers"] == ["one:9093", "two:9093"]
    assert config["sasl_plain_username"] == "job"
    assert config["ssl_cafile"] == str(secured.ca_file)
    assert config["ssl_check_hostname"] is True


def test_flink_gets_the_pem_text_and_the_shaded_login_module(secured: KafkaSettings) -> None:
    properties = flink_properties(secured)
    assert properties["ssl.truststore.certificates"] == "-----ca.pem-----\n"
    assert properties["ssl.keystore.key"] == "-----client.key-----\n"
    assert properties["sasl.jaas.config"] == (
        "org.apache.flink.kafka.shaded.org.apache.kafka.common.security.scram.ScramLoginModule "
        'required username="job" password="a \\"quoted\\" \\\\ secret";'
    )


def test_a_name_is_not_verified_only_when_asked(secured: KafkaSettings) -> None:
    lax = secured.model_copy(update={"verify_hostname": False})
    assert librdkafka_config(lax)["ssl.endpoint.identification.algorithm"] == "none"
    assert kafka_python_config(lax)["ssl_check_hostname"] is False
    assert flink_properties(lax)["ssl.endpoint.identification.algorithm"] == ""


def test_a_missing_address_or_file_is_a_mistake_in_the_settings(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="riskstream up"):
        librdkafka_config(KafkaSettings())
    absent = KafkaSettings(
        bootstrap_servers="x:1", security_protocol="SSL", ca_file=tmp_path / "absent.pem"
    )
    with pytest.raises(ConfigurationError, match="absent"):
        flink_properties(absent)
