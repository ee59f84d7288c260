"""Configure a single Kafka broker in KRaft mode and say how to start it with plain `java`."""

from __future__ import annotations

import uuid
from base64 import urlsafe_b64encode
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

__all__ = ["broker_command", "broker_properties", "format_command", "write_broker_files"]

_LOG4J: Final = """\
status = warn
appender.file.type = RollingFile
appender.file.name = file
appender.file.fileName = ${sys:log.file}
appender.file.filePattern = ${sys:log.file}.%i
appender.file.layout.type = PatternLayout
appender.file.layout.pattern = %d{ISO8601} %-5p %c{1.} - %m%n
appender.file.policies.type = Policies
appender.file.policies.size.type = SizeBasedTriggeringPolicy
appender.file.policies.size.size = 20MB
appender.file.strategy.type = DefaultRolloverStrategy
appender.file.strategy.max = 2
rootLogger.level = warn
rootLogger.appenderRef.file.ref = file
logger.server.name = kafka.server
logger.server.level = info
logger.config.name = org.apache.kafka.common.config
logger.config.level = warn
"""


def broker_properties(
    data: Path, port: int, controller_port: int, extra: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Return `server.properties` of a one-node cluster on loopback.

    Retention is unlimited because replays carry old timestamps: with the usual seven days the
    broker would delete a replayed 2018 segment as soon as it is rolled.

    Args:
        data: folder of the log segments.
        port: client listener.
        controller_port: KRaft listener.
        extra: further keys; they win (security settings in tests).
    """
    return {
        "process.roles": "broker,controller",
        "node.id": "1",
        "controller.quorum.voters": f"1@127.0.0.1:{controller_port}",
        "controller.listener.names": "CONTROLLER",
        "listeners": f"PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}",
        "advertised.listeners": f"PLAINTEXT://127.0.0.1:{port}",
        "listener.security.protocol.map": (
            "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SSL:SSL,SASL_SSL:SASL_SSL,"
            "SASL_PLAINTEXT:SASL_PLAINTEXT"
        ),
        "inter.broker.listener.name": "PLAINTEXT",
        "log.dirs": str(data),
        "auto.create.topics.enable": "false",
        "offsets.topic.replication.factor": "1",
        # 50 partitions by default: each costs files and start-up time, one group needs one.
        "offsets.topic.num.partitions": "4",
        "transaction.state.log.replication.factor": "1",
        "transaction.state.log.min.isr": "1",
        "transaction.state.log.num.partitions": "4",
        "share.coordinator.state.topic.replication.factor": "1",
        "share.coordinator.state.topic.min.isr": "1",
        # Consumers of a fresh group would otherwise wait 3 s for company.
        "group.initial.rebalance.delay.ms": "0",
        # A killed broker may register again when the session of its predecessor has ended, 9 s by
        # default. Controller and broker are one process here: both stand still or neither does.
        "broker.heartbeat.interval.ms": "500",
        "broker.session.timeout.ms": "3000",
        "log.retention.ms": "-1",
        "log.retention.bytes": "-1",
        "message.max.bytes": str(8 * 1024 * 1024),
        "num.network.threads": "3",
        "num.io.threads": "4",
        "num.partitions": "4",
        # A fraud decision tolerates a clock that differs; replays must not be refused.
        "log.message.timestamp.before.max.ms": str(2**63 - 1),
        "log.message.timestamp.after.max.ms": str(2**63 - 1),
        # Transactions of a job outlive checkpoint interval + restart.
        "transaction.max.timeout.ms": str(3_600_000),
        **(extra or {}),
    }


def write_broker_files(folder: Path, properties: Mapping[str, str]) -> Path:
    """Write `server.properties` and the logging file into `folder`; return the former's path."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "log4j2.properties").write_text(_LOG4J, encoding="utf-8")
    target = folder / "server.properties"
    target.touch(mode=0o600)
    target.write_text(
        "".join(f"{key}={value}\n" for key, value in properties.items()), encoding="utf-8"
    )
    return target


def format_command(
    java: str, jars: Path, properties: Path, scram: Sequence[str] = ()
) -> tuple[str, ...]:
    """Return the command that formats the storage once; `scram` adds users (`--add-scram`)."""
    users = [word for user in scram for word in ("--add-scram", user)]
    return (
        *_java(java, jars, properties, 128),
        "kafka.tools.StorageTool",
        "format",
        "--config",
        str(properties),
        "--cluster-id",
        _cluster_id(properties),
        "--ignore-formatted",
        *users,
    )


def _cluster_id(properties: Path) -> str:
    # A pure function of the place, so that the same settings give the same plan. One that begins
    # with a dash would be taken for an option, as one in 64 does.
    place = str(properties)
    while True:
        identity = uuid.uuid5(uuid.NAMESPACE_OID, place)
        cluster = urlsafe_b64encode(identity.bytes).rstrip(b"=").decode()
        if not cluster.startswith("-"):
            return cluster
        place += "'"


def broker_command(java: str, jars: Path, properties: Path, memory_mb: int) -> tuple[str, ...]:
    """Return the command that runs the broker in the foreground."""
    return (*_java(java, jars, properties, memory_mb), "kafka.Kafka", str(properties))


def _java(java: str, jars: Path, properties: Path, memory_mb: int) -> tuple[str, ...]:
    folder = properties.parent
    return (
        java,
        f"-Xms{memory_mb}m",
        f"-Xmx{memory_mb}m",
        # Nearly all that a broker allocates is gone at once; G1 marked beside it again and again,
        # as it counts requests of a megabyte among the old.
        "-XX:+UseSerialGC",
        # Two cores are shared with Flink; without a bound each JVM starts threads for all of them.
        # On a small machine the second compiler took a core for the first half minute, and the
        # broker only moves bytes.
        "-XX:TieredStopAtLevel=1",
        "-Xshare:auto",
        "-Djava.awt.headless=true",
        f"-Dlog.file={folder.parent / 'logs' / 'kafka.log'}",
        f"-Dlog4j2.configurationFile={folder / 'log4j2.properties'}",
        "-cp",
        f"{jars}/*",
    )
