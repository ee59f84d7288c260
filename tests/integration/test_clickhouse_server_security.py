"""Users and TLS of the local ClickHouse server, reached with the clients of the job."""

from __future__ import annotations

import hashlib
import http.client
import json
import ssl
import subprocess
import sys
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import clickhouse_connect
import pytest
from clickhouse_connect.driver.exceptions import DatabaseError, OperationalError
from pydantic import SecretStr

from connectors.clickhouse import ClickHouseClient, ClickHouseRefused, ClickHouseUnavailable
from connectors.settings import ClickHouseSettings
from tests.integration._certificates import Certificates, make_certificates
from tests.integration._clickhouse_process import ROOT, clickhouse


@dataclass(frozen=True, slots=True)
class Secured:
    port: int
    certificates: Certificates

    def settings(self, user: str, password: str) -> ClickHouseSettings:
        return ClickHouseSettings(
            url=f"https://localhost:{self.port}",
            username=user,
            password=SecretStr(password),
            ca_file=self.certificates.authority,
            database="default",
        )


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    folder = tmp_path_factory.mktemp("secured")
    certificates = make_certificates(folder)
    users = folder / "users.json"
    digests = {
        name: hashlib.sha256(f"{name}-secret".encode()).hexdigest() for name in ("job", "eye")
    }
    users.write_text(
        json.dumps(
            {
                "job": {"password_sha256_hex": digests["job"]},
                "eye": {"password_sha256_hex": digests["eye"], "read_only": True},
            }
        ),
        encoding="utf-8",
    )
    with clickhouse(
        folder / "data",
        *("--users", str(users)),
        *("--certificate", str(certificates.certificate), "--key", str(certificates.key)),
    ) as port:
        yield Secured(port, certificates)


def test_the_client_of_the_job_writes_over_tls_with_its_user(secured: Secured) -> None:
    client = ClickHouseClient(secured.settings("job", "job-secret"))
    client.execute("CREATE OR REPLACE TABLE seen (a Int8) ENGINE MergeTree ORDER BY a")
    client.execute("INSERT INTO seen VALUES (4)")
    reader = clickhouse_connect.get_client(
        host="localhost",
        port=secured.port,
        interface="https",
        username="eye",
        password="eye-secret",
        ca_cert=str(secured.certificates.authority),
    )
    assert reader.query("SELECT a FROM seen").result_rows == [(4,)]
    reader.close()


@pytest.mark.parametrize(("user", "password"), [("job", "wrong"), ("nobody", "job-secret")])
def test_a_wrong_user_or_password_is_refused(secured: Secured, user: str, password: str) -> None:
    with pytest.raises(ClickHouseRefused, match="AUTHENTICATION_FAILED"):
        ClickHouseClient(secured.settings(user, password)).execute("SELECT 1")


def test_a_request_without_a_user_is_refused(secured: Secured) -> None:
    with pytest.raises((DatabaseError, OperationalError)):
        clickhouse_connect.get_client(
            host="localhost",
            port=secured.port,
            interface="https",
            ca_cert=str(secured.certificates.authority),
        )


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TABLE mine (a Int8) ENGINE Memory",
        "INSERT INTO seen VALUES (5)",
        "SET readonly = 0",
        "SELECT * FROM file('/etc/passwd', 'LineAsString')",
        "SELECT * FROM url('http://127.0.0.1:1/', 'LineAsString')",
        "SELECT 1 INTO OUTFILE 'stolen'",
    ],
)
def test_a_reading_user_cannot_write_nor_leave_the_database(
    secured: Secured, statement: str
) -> None:
    with pytest.raises((ClickHouseRefused, ClickHouseUnavailable), match="Code: "):
        ClickHouseClient(secured.settings("eye", "eye-secret")).execute(statement)


def test_a_certificate_of_a_stranger_is_not_trusted(secured: Secured, tmp_path: Path) -> None:
    stranger = make_certificates(tmp_path / "stranger")
    settings = secured.settings("job", "job-secret").model_copy(
        update={"ca_file": stranger.authority}
    )
    with pytest.raises(ClickHouseUnavailable, match=r"(?i)certificate"):
        ClickHouseClient(settings).execute("SELECT 1")


def test_basic_authentication_and_a_bearer_token_are_understood(
    secured: Secured, tmp_path: Path
) -> None:
    context = ssl.create_default_context(cafile=str(secured.certificates.authority))
    connection = http.client.HTTPSConnection("localhost", secured.port, context=context)
    basic = b64encode(b"eye:eye-secret").decode()
    connection.request("POST", "/", b"SELECT 1", {"Authorization": f"Basic {basic}"})
    assert connection.getresponse().read() == b"1\n"
    connection.close()
    with clickhouse(tmp_path / "data", token="a-token") as port:
        plain = http.client.HTTPConnection("127.0.0.1", port)
        for sent, status in (("Bearer a-token", 200), ("Bearer other", 401), ("", 401)):
            plain.request("POST", "/", b"SELECT 1", {"Authorization": sent} if sent else {})
            response = plain.getresponse()
            response.read()
            assert response.status == status
        plain.close()


def test_it_refuses_to_listen_off_loopback_without_secrets(tmp_path: Path) -> None:
    refused = subprocess.run(
        [
            *(sys.executable, "-m", "connectors.local.clickhouse_server"),
            *("--path", str(tmp_path / "data"), "--port", "0", "--host", "0.0.0.0"),
        ],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert refused.returncode == 1
    assert "anybody could read and write it" in refused.stderr
