"""Registries: a folder, and a server that speaks Confluent's REST interface."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from schemas.compatibility import Mode
from schemas.errors import ConfigurationError
from schemas.http_registry import HttpRegistry, RegistryUnavailableError
from schemas.model import SchemaError
from schemas.reasons import Limits
from schemas.registry import (
    FileRegistry,
    IncompatibleSchemaError,
    SchemaRegistry,
    UnknownSchemaError,
    open_registry,
    stable_schema_id,
)


def record(*fields: dict[str, object]) -> str:
    return json.dumps({"type": "record", "name": "R", "fields": list(fields)})


V1 = record({"name": "a", "type": "long"})
V2 = record(
    {"name": "a", "type": "long"}, {"name": "b", "type": ["null", "string"], "default": None}
)
BROKEN = record({"name": "a", "type": "string"})


class Server(ThreadingHTTPServer):
    """A registry in memory, on a free loopback port: it takes no other to test the client.

    `failures` answers are 500 first, `requests` counts.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.texts: list[str] = []
        self.names: dict[str, list[int]] = {}
        self.failures = 0
        self.requests = 0
        self.token = "Basic " + base64.b64encode(b"ana:secret").decode()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def answer(self, code: int, body: object) -> None:
        raw = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def do_GET(self) -> None:
        self.server.requests += 1
        if self.server.failures:
            self.server.failures -= 1
            return self.answer(500, {"error_code": 50001, "message": "leader away"})
        if self.headers.get("Authorization") != self.server.token:
            return self.answer(401, {"error_code": 40101, "message": "no such user"})
        steps = self.path.strip("/").split("/")
        if steps[:2] == ["schemas", "ids"]:
            index = int(steps[2]) - 1
            if 0 <= index < len(self.server.texts):
                return self.answer(200, {"schema": self.server.texts[index]})
        elif steps == ["subjects"]:
            return self.answer(200, list(self.server.names))
        elif steps[0] == "subjects" and steps[1] in self.server.names:
            ids = self.server.names[steps[1]]
            if len(steps) == 3:
                return self.answer(200, list(range(1, len(ids) + 1)))
            number = len(ids) if steps[3] == "latest" else int(steps[3])
            schema_id = ids[number - 1]
            text = self.server.texts[schema_id - 1]
            return self.answer(200, {"id": schema_id, "version": number, "schema": text})
        return self.answer(404, {"error_code": 40403, "message": "not found"})

    def do_POST(self) -> None:
        self.server.requests += 1
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        subject = self.path.split("/")[2]
        text = body["schema"]
        if subject == "refused-value":
            return self.answer(409, {"error_code": 409, "message": "incompatible"})
        if text not in self.server.texts:
            self.server.texts.append(text)
        schema_id = self.server.texts.index(text) + 1
        ids = self.server.names.setdefault(subject, [])
        if schema_id not in ids:
            ids.append(schema_id)
        return self.answer(200, {"id": schema_id})


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@dataclass
class Time:
    now: float = 0.0

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def http(server: Server, time: Time | None = None, password: str = "secret") -> HttpRegistry:
    time = time or Time()
    return HttpRegistry(server.url, "ana", password, clock=time.clock, sleep=time.sleep)


@pytest.fixture(params=["file", "http"])
def registry(request: pytest.FixtureRequest, tmp_path: Path, server: Server) -> SchemaRegistry:
    return FileRegistry(tmp_path / "r") if request.param == "file" else http(server)


def test_what_is_registered_is_found_by_id_subject_and_version(registry: SchemaRegistry) -> None:
    assert registry.latest("t-value") is None
    assert registry.versions("t-value") == []
    first = registry.register("t-value", V1)
    second = registry.register("t-value", V2)
    assert registry.register("t-value", V1) == first != second
    assert registry.schema_by_id(first).text == V1
    assert [item.schema_id for item in registry.versions("t-value")] == [first, second]
    assert [item.version for item in registry.versions("t-value")] == [1, 2]
    latest = registry.latest("t-value")
    assert latest is not None
    assert (latest.schema_id, latest.version, latest.subject) == (second, 2, "t-value")
    assert registry.subjects() == ["t-value"]


def test_an_unknown_id_is_a_record_error(registry: SchemaRegistry) -> None:
    for schema_id in (12345, -1, 0):
        with pytest.raises(UnknownSchemaError):
            registry.schema_by_id(schema_id)


def test_a_schema_that_breaks_the_promise_is_refused_with_every_problem(
    registry: SchemaRegistry,
) -> None:
    registry.register("t-value", V1)
    with pytest.raises(IncompatibleSchemaError, match=r"R\.a: string cannot be read as long"):
        registry.register("t-value", BROKEN, Mode.FULL)
    assert len(registry.check("t-value", BROKEN, Mode.FULL)) == 2
    assert registry.check("t-value", V2, Mode.FULL_TRANSITIVE) == []
    assert len(registry.versions("t-value")) == 1


def test_ids_of_the_file_registry_are_a_pure_function_of_the_schema(tmp_path: Path) -> None:
    spaced = json.dumps(json.loads(V1), indent=4)
    left, right = FileRegistry(tmp_path / "a"), FileRegistry(tmp_path / "b")
    right.register("other", V2)
    assert left.register("s", V1) == right.register("s", spaced) == stable_schema_id(V1)


def test_writers_at_the_same_time_lose_no_version(tmp_path: Path) -> None:
    schemas = [
        record({"name": "a", "type": "long"}, {"name": f"f{i}", "type": "long", "default": i})
        for i in range(12)
    ]

    def register(schema: str) -> int:
        return FileRegistry(tmp_path).register("s", schema)

    with ThreadPoolExecutor(6) as pool:
        ids = list(pool.map(register, schemas))
    versions = FileRegistry(tmp_path).versions("s")
    assert sorted(item.schema_id for item in versions) == sorted(ids)
    assert [item.version for item in versions] == list(range(1, 13))


def test_subjects_with_slashes_stay_inside_the_folder(tmp_path: Path) -> None:
    FileRegistry(tmp_path / "r").register("../../x/y-value", V1)
    assert FileRegistry(tmp_path / "r").subjects() == ["../../x/y-value"]
    assert [path.name for path in tmp_path.iterdir()] == ["r"]


def test_schemas_by_id_are_asked_for_once(server: Server) -> None:
    registry = http(server)
    schema_id = registry.register("t-value", V1)
    registry.schema_by_id(schema_id)
    before = server.requests
    registry.schema_by_id(schema_id)
    assert server.requests == before


def test_an_unknown_id_is_asked_for_again_after_a_while(server: Server) -> None:
    time = Time()
    registry = http(server, time)
    for _ in range(5):
        with pytest.raises(UnknownSchemaError):
            registry.schema_by_id(1)
    assert server.requests == 1
    registry.register("t-value", V1)
    time.now += 11
    assert registry.schema_by_id(1).text == V1


def test_a_server_that_comes_back_is_waited_for(server: Server) -> None:
    server.texts.append(V1)
    server.failures = 2
    assert http(server).schema_by_id(1).text == V1


def test_a_server_that_stays_away_is_a_retryable_error(server: Server) -> None:
    server.failures = 99
    with pytest.raises(RegistryUnavailableError, match="no answer in 4 attempts"):
        http(server).schema_by_id(1)


def test_a_wrong_password_says_what_to_check_and_does_not_show_it(server: Server) -> None:
    with pytest.raises(ConfigurationError, match=r"401.*schemas\.password") as caught:
        http(server, password="wrong-one").subjects()
    assert "wrong-one" not in str(caught.value)


def test_a_refusal_by_the_server_is_passed_on(server: Server) -> None:
    with pytest.raises(ConfigurationError, match="409 incompatible"):
        http(server).register("refused-value", V1)


def test_a_registered_schema_over_the_limits_is_refused_once_and_for_all(server: Server) -> None:
    server.texts.append(V1)
    registry = HttpRegistry(server.url, "ana", "secret", limits=Limits(max_schema_bytes=10))
    for _ in range(2):
        with pytest.raises(SchemaError, match="exceeds the limit"):
            registry.schema_by_id(1)
    assert server.requests == 1


@dataclass(frozen=True)
class Address:
    registry: str
    username: str | None = None
    password: None = None
    ca_file: Path | None = None


def test_the_settings_choose_the_registry(tmp_path: Path) -> None:
    assert isinstance(open_registry(Address(f"file:{tmp_path}")), FileRegistry)
    # A made-up name that nobody asks: the kind of registry follows from the address alone.
    assert isinstance(open_registry(Address("https://registry:8081")), HttpRegistry)
    with pytest.raises(ConfigurationError, match="expected file:FOLDER"):
        open_registry(Address("ftp://registry"))


def test_the_default_folder_is_found_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "card-transactions-value" in open_registry(Address("file:schemas/registry")).subjects()
