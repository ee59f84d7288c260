"""Kafka with TLS and SCRAM users, Redis with TLS and ACL users, reached with the job's clients."""

from __future__ import annotations

import contextlib
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis
from confluent_kafka import Consumer, Producer
from pydantic import SecretStr

from connectors.kafka import (
    KafkaUnavailableError,
    end_offsets,
    ensure_topics,
    flink_properties,
    librdkafka_config,
)
from connectors.local.broker import (
    broker_command,
    broker_properties,
    format_command,
    write_broker_files,
)
from connectors.local.flink_lib import jar_folder, pyflink_folder
from connectors.local.plan import Probe
from connectors.local.probes import answers
from connectors.local.processes import free_port, log_tail
from connectors.local.programs import redis_server
from connectors.profiles import redis_client
from connectors.settings import KafkaSettings, RedisSettings, TopicSettings
from tests.integration._certificates import Certificates, make_certificates

PASSWORD = "scram-secret"
START_SECONDS = 200


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


def _wait(probe: Probe, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while (why := answers(probe)) is not None:
        tail = "\n".join(log_tail(log, 30))
        assert process.poll() is None, f"ended: {tail}"
        assert time.monotonic() < deadline, f"{why}: {tail}"
        time.sleep(0.2)


@contextlib.contextmanager
def _running(command: list[str] | tuple[str, ...], out: Path) -> Iterator[subprocess.Popen[bytes]]:
    with out.open("wb") as sink:
        process = subprocess.Popen(command, stdout=sink, stderr=subprocess.STDOUT)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _one_line(pem: Path) -> str:
    return pem.read_text(encoding="ascii").replace("\n", "\\n")


@pytest.fixture(scope="module")
def kafka(
    certificates: Certificates, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[KafkaSettings]:
    """A broker that lets in only user `job`, with SCRAM over TLS."""
    home = tmp_path_factory.mktemp("kafka")
    java = shutil.which("java")
    assert java is not None
    taken: list[int] = []
    for _ in range(3):
        taken.append(free_port(taken))
    port, internal, controller = taken
    login = "org.apache.kafka.common.security.scram.ScramLoginModule required;"
    properties = write_broker_files(
        home / "kafka",
        broker_properties(
            home / "data",
            internal,
            controller,
            {
                "listeners": (
                    f"SASL_SSL://localhost:{port},PLAINTEXT://127.0.0.1:{internal},"
                    f"CONTROLLER://127.0.0.1:{controller}"
                ),
                "advertised.listeners": (
                    f"SASL_SSL://localhost:{port},PLAINTEXT://127.0.0.1:{internal}"
                ),
                "sasl.enabled.mechanisms": "SCRAM-SHA-512",
                "listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config": login,
                "ssl.keystore.type": "PEM",
                "ssl.keystore.certificate.chain": _one_line(certificates.certificate),
                "ssl.keystore.key": _one_line(certificates.key),
            },
        ),
    )
    jars = jar_folder("kafka")
    user = f"SCRAM-SHA-512=[name=job,password={PASSWORD}]"
    subprocess.run(format_command(java, jars, properties, [user]), check=True, capture_output=True)
    out = home / "kafka.out"
    with _running(broker_command(java, jars, properties, 320), out) as process:
        _wait(Probe("kafka", internal), process, home / "logs" / "kafka.log")
        yield KafkaSettings(
            bootstrap_servers=f"localhost:{port}",
            security_protocol="SASL_SSL",
            sasl_mechanism="SCRAM-SHA-512",
            username="job",
            password=SecretStr(PASSWORD),
            ca_file=certificates.authority,
            topics=TopicSettings(partitions=1),
        )


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_every_python_client_gets_in_with_its_user(kafka: KafkaSettings) -> None:
    ensure_topics(kafka, ["secured"])
    before = end_offsets(kafka, "secured")[0]
    producer = Producer(librdkafka_config(kafka))
    producer.produce("secured", b"hello")
    assert producer.flush(60) == 0
    assert end_offsets(kafka, "secured") == {0: before + 1}
    consumer = Consumer(
        {**librdkafka_config(kafka), "group.id": "g", "auto.offset.reset": "earliest"}
    )
    consumer.subscribe(["secured"])
    message = consumer.poll(60)
    consumer.close()
    assert message is not None
    assert message.value() == b"hello"


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_java_client_inside_flink_gets_in_with_the_same_settings(kafka: KafkaSettings) -> None:
    ensure_topics(kafka, ["secured"])
    properties = {"bootstrap.servers": kafka.bootstrap_servers, **flink_properties(kafka)}
    text = "".join(
        f"{key}={str(value).encode('unicode_escape').decode()}\n"
        for key, value in properties.items()
    )
    class_path = f"{jar_folder('flink')}/*:{pyflink_folder() / 'lib'}/*"
    listed = subprocess.run(
        [
            *("java", "-Xmx128m", "-cp", class_path),
            str(Path(__file__).with_name("ShadedAdmin.java")),
        ],
        input=text,
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert "secured" in listed.stdout, listed.stderr


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("wrong", ["the password", "the authority"])
def test_kafka_refuses_a_wrong_password_and_clients_a_wrong_authority(
    kafka: KafkaSettings, tmp_path: Path, wrong: str
) -> None:
    update = (
        {"password": SecretStr("guess")}
        if wrong == "the password"
        else {"ca_file": make_certificates(tmp_path / "stranger").authority}
    )
    with pytest.raises(KafkaUnavailableError):
        ensure_topics(kafka.model_copy(update=update), ["never"])


@dataclass(frozen=True, slots=True)
class _Relay:
    """TLS in front of a plain server, like stunnel: the bundled Redis is built without TLS."""

    context: ssl.SSLContext
    target: int
    listener: socket.socket

    def serve(self) -> None:
        while True:
            try:
                raw, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._connection, args=(raw,), daemon=True).start()

    def _connection(self, raw: socket.socket) -> None:
        try:
            with (
                self.context.wrap_socket(raw, server_side=True) as outer,
                socket.create_connection(("127.0.0.1", self.target)) as inner,
            ):
                back = threading.Thread(target=self._copy, args=(inner, outer), daemon=True)
                back.start()
                self._copy(outer, inner)
                back.join()
        except OSError:
            raw.close()

    @staticmethod
    def _copy(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_RDWR)


@pytest.fixture(scope="module")
def cache(
    certificates: Certificates, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RedisSettings]:
    """A Redis where only `reader` gets in, to read profiles and nothing else, over TLS."""
    home = tmp_path_factory.mktemp("redis")
    port = free_port()
    command = [
        *(redis_server(), "--bind", "127.0.0.1", "--port", str(port), "--dir", str(home)),
        *("--save", "", "--appendonly", "no"),
        *("--user", "default", "off"),
        *("--user", "reader", "on", ">acl-secret", "~profile:*", "+get", "+mget", "+ping"),
    ]
    with _running(command, home / "redis.out") as process, socket.socket() as listener:
        _wait(Probe("redis", port), process, home / "redis.out")
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        relay = _Relay(certificates.server_context(), port, listener)
        threading.Thread(target=relay.serve, daemon=True).start()
        yield RedisSettings(
            url=SecretStr(f"rediss://localhost:{listener.getsockname()[1]}/0"),
            username="reader",
            password=SecretStr("acl-secret"),
            ca_file=certificates.authority,
            timeout_ms=20_000,
        )
        # Wakes `accept`; closing alone does not.
        listener.shutdown(socket.SHUT_RDWR)


def test_redis_is_read_over_tls_by_an_acl_user_and_by_nobody_else(cache: RedisSettings) -> None:
    with redis_client(cache) as client:
        assert client.get("profile:customer:1") is None
        with pytest.raises(redis.exceptions.NoPermissionError):
            client.set("profile:customer:1", b"x")
        with pytest.raises(redis.exceptions.NoPermissionError):
            client.get("elsewhere")


@pytest.mark.parametrize("update", [{"password": SecretStr("guess")}, {"username": None}])
def test_redis_refuses_a_wrong_user(cache: RedisSettings, update: dict[str, object]) -> None:
    with (
        redis_client(cache.model_copy(update=update)) as client,
        pytest.raises(redis.exceptions.AuthenticationError),
    ):
        client.get("profile:customer:1")


def test_a_redis_certificate_of_a_stranger_is_not_trusted(
    cache: RedisSettings, tmp_path: Path
) -> None:
    stranger = make_certificates(tmp_path / "stranger")
    with (
        redis_client(cache.model_copy(update={"ca_file": stranger.authority})) as client,
        pytest.raises(redis.exceptions.ConnectionError, match=r"(?i)certificate"),
    ):
        client.get("profile:customer:1")
