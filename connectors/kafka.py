"""Kafka for every client: connection settings translated, topics created, offsets read.

One `KafkaSettings` reaches librdkafka (producers, tools), kafka-python (subscribers) and the Java
client inside Flink with the same meaning: TLS with PEM files, SASL, hostname verification.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from confluent_kafka import (
    ConsumerGroupTopicPartitions,
    IsolationLevel,
    KafkaError,
    KafkaException,
    TopicPartition,
)
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # defined, not re-exported
    AdminClient,
    NewTopic,
    OffsetSpec,
)

from connectors.settings import KafkaSettings
from schemas.errors import ConfigurationError, RetryableError

__all__ = [
    "KafkaUnavailableError",
    "committed",
    "end_offsets",
    "ensure_topics",
    "flink_properties",
    "kafka_python_config",
    "librdkafka_config",
    "partitions_of",
    "start_offsets",
]

REQUEST_SECONDS: Final = 15.0
"""Bound of one admin request: covers a broker that restarts (about 6 s) and no more."""

_SHADED: Final = "org.apache.flink.kafka.shaded.org.apache.kafka.common.security"
"""Flink's SQL connector carries the Kafka client under another name; JAAS names its classes."""

_LOGIN_MODULES: Final = {
    "PLAIN": "plain.PlainLoginModule",
    "SCRAM-SHA-256": "scram.ScramLoginModule",
    "SCRAM-SHA-512": "scram.ScramLoginModule",
}


class KafkaUnavailableError(RetryableError):
    """Kafka did not answer, or refused, a request for topics or offsets."""


def librdkafka_config(settings: KafkaSettings) -> dict[str, str | int | float | bool]:
    """Return the connection part of a confluent-kafka configuration.

    Raises:
        ConfigurationError: when `bootstrap_servers` is not set.
    """
    config: dict[str, str | int | float | bool] = {
        "bootstrap.servers": _servers(settings),
        "security.protocol": settings.security_protocol,
    }
    if settings.security_protocol.endswith("SSL"):
        for key, value in (
            ("ssl.ca.location", settings.ca_file),
            ("ssl.certificate.location", settings.certificate_file),
            ("ssl.key.location", settings.key_file),
        ):
            if value is not None:
                config[key] = str(value)
        if settings.key_password is not None:
            config["ssl.key.password"] = settings.key_password.get_secret_value()
        config["ssl.endpoint.identification.algorithm"] = (
            "https" if settings.verify_hostname else "none"
        )
    if settings.security_protocol.startswith("SASL"):
        mechanism, username, password = _sasl(settings)
        config["sasl.mechanism"] = mechanism
        config["sasl.username"] = username
        config["sasl.password"] = password
    return config


def kafka_python_config(settings: KafkaSettings) -> dict[str, str | bool | list[str]]:
    """Return the connection part of kafka-python's keyword arguments.

    Raises:
        ConfigurationError: when `bootstrap_servers` is not set.
    """
    config: dict[str, str | bool | list[str]] = {
        "bootstrap_servers": _servers(settings).split(","),
        "security_protocol": settings.security_protocol,
    }
    if settings.security_protocol.endswith("SSL"):
        for key, value in (
            ("ssl_cafile", settings.ca_file),
            ("ssl_certfile", settings.certificate_file),
            ("ssl_keyfile", settings.key_file),
        ):
            if value is not None:
                config[key] = str(value)
        if settings.key_password is not None:
            config["ssl_password"] = settings.key_password.get_secret_value()
        config["ssl_check_hostname"] = settings.verify_hostname
    if settings.security_protocol.startswith("SASL"):
        mechanism, username, password = _sasl(settings)
        config["sasl_mechanism"] = mechanism
        config["sasl_plain_username"] = username
        config["sasl_plain_password"] = password
    return config


def flink_properties(settings: KafkaSettings) -> dict[str, str]:
    """Return the security properties of the Java client inside Flink's Kafka connector.

    Certificates and keys are read here and travel with the job, so that they need not lie on every
    TaskManager. The key must be PKCS#8, as Java demands. Whoever may read the job's configuration
    can read them, as with any password given to a Flink job.

    Raises:
        ConfigurationError: when a PEM file cannot be read.
    """
    if settings.security_protocol == "PLAINTEXT":
        return {}
    properties: dict[str, str] = {"security.protocol": settings.security_protocol}
    if settings.security_protocol.endswith("SSL"):
        if settings.ca_file is not None:
            properties["ssl.truststore.type"] = "PEM"
            properties["ssl.truststore.certificates"] = _pem("ca_file", settings.ca_file)
        if settings.certificate_file is not None and settings.key_file is not None:
            properties["ssl.keystore.type"] = "PEM"
            properties["ssl.keystore.certificate.chain"] = _pem(
                "certificate_file", settings.certificate_file
            )
            properties["ssl.keystore.key"] = _pem("key_file", settings.key_file)
            if settings.key_password is not None:
                properties["ssl.key.password"] = settings.key_password.get_secret_value()
        properties["ssl.endpoint.identification.algorithm"] = (
            "https" if settings.verify_hostname else ""
        )
    if settings.security_protocol.startswith("SASL"):
        mechanism, username, password = _sasl(settings)
        properties["sasl.mechanism"] = mechanism
        properties["sasl.jaas.config"] = (
            f"{_SHADED}.{_LOGIN_MODULES[mechanism]} required "
            f"username={_quoted(username)} password={_quoted(password)};"
        )
    return properties


def ensure_topics(
    settings: KafkaSettings,
    topics: Iterable[str],
    *,
    partitions: int | None = None,
    configs: Mapping[str, Mapping[str, str]] | None = None,
) -> list[str]:
    """Create the topics that are missing and wait until every one can be used.

    Existing topics are left as they are, whatever their partitions.

    Args:
        settings: where Kafka is; `topics.partitions` and `topics.replication` shape new topics.
        topics: full names, repetitions allowed.
        partitions: instead of `settings.topics.partitions`.
        configs: topic name to its configuration, as in `{"t": {"cleanup.policy": "compact"}}`.

    Returns:
        The names that were created, sorted.

    Raises:
        KafkaUnavailableError: when Kafka does not answer or refuses.
    """
    wanted = sorted(set(topics))
    admin = _admin(settings)
    missing = [name for name in wanted if name not in _known(admin)]
    new = [
        NewTopic(
            name,
            num_partitions=partitions or settings.topics.partitions,
            replication_factor=settings.topics.replication,
            config=dict((configs or {}).get(name, {})),
        )
        for name in missing
    ]
    created = []
    for name, future in (admin.create_topics(new) if new else {}).items():
        try:
            future.result(timeout=REQUEST_SECONDS)
            created.append(name)
        except KafkaException as e:
            # Somebody else was faster: that is what was wanted.
            if e.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                msg = f"creating topic {name!r}: {e.args[0].str()}"
                raise KafkaUnavailableError(msg) from e
    _wait_for_leaders(admin, wanted)
    return sorted(created)


def partitions_of(settings: KafkaSettings, topic: str) -> list[int]:
    """Return the partition numbers of a topic, ascending; [] when there is no such topic.

    Raises:
        KafkaUnavailableError: when Kafka does not answer.
    """
    return sorted(_known(_admin(settings)).get(topic, ()))


def end_offsets(
    settings: KafkaSettings, topic: str, *, read_committed: bool = False
) -> dict[int, int]:
    """Return the offset after the last record, for each partition; {} when there is no such topic.

    Args:
        settings: where Kafka is.
        topic: full name.
        read_committed: stop before transactions that are still open.

    Raises:
        KafkaUnavailableError: when Kafka does not answer.
    """
    return _offsets(settings, topic, latest=True, read_committed=read_committed)


def start_offsets(settings: KafkaSettings, topic: str) -> dict[int, int]:
    """Return the offset of the first record kept, for each partition; {} without such a topic.

    Raises:
        KafkaUnavailableError: when Kafka does not answer.
    """
    return _offsets(settings, topic, latest=False, read_committed=False)


def committed(settings: KafkaSettings, group: str, topic: str) -> dict[int, int]:
    """Return the group's committed offset for each partition that has one.

    Raises:
        KafkaUnavailableError: when Kafka does not answer.
    """
    admin = _admin(settings)
    asked = [TopicPartition(topic, number) for number in _known(admin).get(topic, ())]
    if not asked:
        return {}
    request = [ConsumerGroupTopicPartitions(group, asked)]
    try:
        answer = admin.list_consumer_group_offsets(request)[group].result(timeout=REQUEST_SECONDS)
    except KafkaException as e:
        msg = f"reading the offsets of group {group!r}: {e.args[0].str()}"
        raise KafkaUnavailableError(msg) from e
    return {tp.partition: tp.offset for tp in answer.topic_partitions or () if tp.offset >= 0}


def _offsets(
    settings: KafkaSettings, topic: str, *, latest: bool, read_committed: bool
) -> dict[int, int]:
    admin = _admin(settings)
    spec = OffsetSpec.latest() if latest else OffsetSpec.earliest()  # type: ignore[no-untyped-call]
    asked = {TopicPartition(topic, number): spec for number in _known(admin).get(topic, ())}
    if not asked:
        return {}
    level = IsolationLevel.READ_COMMITTED if read_committed else IsolationLevel.READ_UNCOMMITTED
    futures = admin.list_offsets(asked, isolation_level=level)
    try:
        return {
            tp.partition: int(future.result(timeout=REQUEST_SECONDS).offset)
            for tp, future in sorted(futures.items(), key=lambda item: item[0].partition)
        }
    except KafkaException as e:
        msg = f"reading the offsets of topic {topic!r}: {e.args[0].str()}"
        raise KafkaUnavailableError(msg) from e


def _admin(settings: KafkaSettings) -> AdminClient:
    return AdminClient(
        {
            **librdkafka_config(settings),
            "client.id": "riskstream-admin",
            "socket.connection.setup.timeout.ms": 5000,
            # Errors reach the caller as exceptions; the library would also write them to stderr.
            "log_level": 2,
        }
    )


def _known(admin: AdminClient) -> dict[str, list[int]]:
    try:
        found = admin.list_topics(timeout=REQUEST_SECONDS).topics
    except KafkaException as e:
        msg = f"asking Kafka for its topics: {e.args[0].str()}"
        raise KafkaUnavailableError(msg) from e
    return {
        name: [
            number
            for number, partition in topic.partitions.items()
            if partition.error is None and partition.leader >= 0
        ]
        for name, topic in found.items()
        if topic.error is None
    }


def _wait_for_leaders(admin: AdminClient, wanted: list[str]) -> None:
    deadline = time.monotonic() + REQUEST_SECONDS
    while True:
        known = _known(admin)
        absent = [name for name in wanted if not known.get(name)]
        if not absent:
            return
        if time.monotonic() > deadline:
            msg = f"waiting for topics: {', '.join(absent)} did not become available"
            raise KafkaUnavailableError(msg)
        time.sleep(0.05)


def _servers(settings: KafkaSettings) -> str:
    if not settings.bootstrap_servers:
        msg = (
            "connecting to Kafka: kafka.bootstrap_servers is not set; start the local stack with "
            "`riskstream up`, or set it"
        )
        raise ConfigurationError(msg)
    return settings.bootstrap_servers


def _sasl(settings: KafkaSettings) -> tuple[str, str, str]:
    if settings.sasl_mechanism is None or settings.username is None or settings.password is None:
        msg = (
            f"connecting to Kafka with {settings.security_protocol!r}: expected "
            "kafka.sasl_mechanism, kafka.username and kafka.password"
        )
        raise ConfigurationError(msg)
    return settings.sasl_mechanism, settings.username, settings.password.get_secret_value()


def _pem(field: str, path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError) as e:
        msg = f"reading kafka.{field} {str(path)!r}: {e}; expected a PEM file"
        raise ConfigurationError(msg) from e


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
