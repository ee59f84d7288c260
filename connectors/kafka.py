"""Kafka for every client: connection settings translated, topics created, offsets read.

One `KafkaSettings` reaches librdkafka (producers, tools), kafka-python (subscribers) and the Java
client inside Flink with the same meaning: TLS with PEM files, SASL, hostname verification.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from connectors.settings import KafkaSettings
from schemas.errors import ConfigurationError, RetryableError

if TYPE_CHECKING:
    from kafka import TopicPartition
    from kafka.admin import KafkaAdminClient

__all__ = [
    "KafkaUnavailableError",
    "broker_number",
    "committed",
    "end_offsets",
    "ensure_topics",
    "flink_properties",
    "kafka_python_config",
    "librdkafka_config",
    "partitions_of",
    "start_offsets",
]

REQUEST_MS: Final = 15_000
"""Bound of one admin request: covers a broker that restarts (about 6 s) and no more."""

_SILENT: Final = logging.NullHandler()
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
    from kafka.errors import TopicAlreadyExistsError

    wanted = sorted(set(topics))
    created = []
    with _admin(settings, f"creating topics {', '.join(wanted)}") as admin:
        known = set(admin.list_topics())
        for name in wanted:
            if name in known:
                continue
            options = {
                "num_partitions": partitions or settings.topics.partitions,
                "replication_factor": settings.topics.replication,
                "configs": dict((configs or {}).get(name, {})),
            }
            # When somebody else is faster, that is what was wanted.
            with contextlib.suppress(TopicAlreadyExistsError):
                admin.create_topics({name: options})
                created.append(name)
        if wanted:
            admin.wait_for_topics(wanted, timeout_ms=REQUEST_MS)
    return created


def partitions_of(settings: KafkaSettings, topic: str) -> list[int]:
    """Return the partition numbers of a topic, ascending; [] when there is no such topic.

    Raises:
        KafkaUnavailableError: when Kafka does not answer.
    """
    with _admin(settings, f"reading the partitions of {topic!r}") as admin:
        return [partition.partition for partition in _partitions(admin, topic)]


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


def broker_number(settings: KafkaSettings, name: str) -> int | None:
    """Return a numeric setting of the brokers; None where a broker does not tell it to this user.

    Raises:
        KafkaUnavailableError: when Kafka does not answer.
    """
    from kafka.admin import ConfigResource, ConfigResourceType
    from kafka.errors import ClusterAuthorizationFailedError

    with _admin(settings, f"reading {name!r} of the brokers") as admin:
        broker = str(admin.describe_cluster()["brokers"][0]["broker_id"])
        asked = ConfigResource(ConfigResourceType.BROKER, broker, configs={name: None})
        try:
            found = admin.describe_configs([asked], config_filter="all")
        except ClusterAuthorizationFailedError:
            return None
        known = found.get("broker", {}).get(broker, {}).get(name)
        return None if known is None else int(known["value"])


def start_offsets(settings: KafkaSettings, topic: str) -> dict[int, int]:
    """Return the offset of the first record kept, for each partition; {} without such a topic.

    Raises:
        KafkaUnavailableError: when Kafka does not answer.
    """
    return _offsets(settings, topic, latest=False, read_committed=False)


def committed(settings: KafkaSettings, group: str, topic: str) -> dict[int, int]:
    """Return the group's committed offset for each partition of the topic that has one.

    Raises:
        KafkaUnavailableError: when Kafka does not answer.
    """
    with _admin(settings, f"reading the offsets of group {group!r}") as admin:
        asked = _partitions(admin, topic)
        if not asked:
            return {}
        found = admin.list_group_offsets({group: asked})[group]
        return {
            partition.partition: int(position.offset)
            for partition, position in sorted(found.items())
            if position.offset >= 0
        }


def _offsets(
    settings: KafkaSettings, topic: str, *, latest: bool, read_committed: bool
) -> dict[int, int]:
    from kafka import IsolationLevel
    from kafka.admin import OffsetSpec

    spec = OffsetSpec.LATEST if latest else OffsetSpec.EARLIEST
    level = IsolationLevel.READ_COMMITTED if read_committed else IsolationLevel.READ_UNCOMMITTED
    with _admin(settings, f"reading the offsets of topic {topic!r}") as admin:
        asked = dict.fromkeys(_partitions(admin, topic), spec)
        found = admin.list_partition_offsets(asked, level, REQUEST_MS) if asked else {}
        return {partition.partition: int(at.offset) for partition, at in sorted(found.items())}


def _partitions(admin: KafkaAdminClient, topic: str) -> list[TopicPartition]:
    from kafka import TopicPartition

    if topic not in admin.list_topics():
        return []
    (description,) = admin.describe_topics([topic])
    numbers = sorted(int(entry["partition_index"]) for entry in description["partitions"])
    return [TopicPartition(topic, number) for number in numbers]


@contextlib.contextmanager
def _admin(settings: KafkaSettings, doing: str) -> Iterator[KafkaAdminClient]:
    # What goes wrong reaches the caller as an exception; without a handler it would print as well.
    logging.getLogger("kafka").addHandler(_SILENT)
    # kafka-python and not librdkafka: the latter's admin client crashed the process (SIGSEGV,
    # confluent-kafka 2.16.1) when a group's coordinator was still loading, just after `up`.
    # Imported here because it takes half a second, which most users of this module can save.
    from kafka.admin import KafkaAdminClient
    from kafka.errors import KafkaError

    try:
        admin = KafkaAdminClient(
            **kafka_python_config(settings),
            client_id="riskstream-admin",
            request_timeout_ms=REQUEST_MS,
            bootstrap_timeout_ms=REQUEST_MS,
        )
        try:
            yield admin
        finally:
            admin.close()
    except KafkaError as e:
        msg = (
            f"{doing} at {settings.bootstrap_servers!r}: {e or type(e).__name__}; see that the "
            "address, kafka.security_protocol, the user and the certificates are right"
        )
        raise KafkaUnavailableError(msg) from e


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
