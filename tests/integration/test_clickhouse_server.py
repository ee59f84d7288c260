"""The local ClickHouse server, spoken to by clickhouse-connect and by plain HTTP."""

from __future__ import annotations

import http.client
import json
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, urlencode

import clickhouse_connect
import pyarrow as pa
import pytest
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import DatabaseError

from tests.integration._clickhouse_process import clickhouse

Reply = tuple[int, dict[str, str], bytes]


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    with clickhouse(tmp_path_factory.mktemp("clickhouse")) as found:
        yield found


@pytest.fixture
def client(port: int) -> Iterator[Client]:
    connected = clickhouse_connect.get_client(host="127.0.0.1", port=port)
    columns = "(id UInt64, s String)"
    connected.command(f"CREATE OR REPLACE TABLE t {columns} ENGINE MergeTree ORDER BY id")
    yield connected
    connected.close()


def _row(number: int, text: bytes) -> bytes:
    return struct.pack("<QB", number, len(text)) + text


def _request(
    port: int,
    body: bytes | None = None,
    method: str = "POST",
    headers: dict[str, str] | None = None,
    path: str | None = None,
    **fields: str,
) -> Reply:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        target = path or f"/?{urlencode(fields)}"
        connection.request(method, target, body, headers or {})
        response = connection.getresponse()
        return response.status, dict(response.getheaders()), response.read()
    finally:
        connection.close()


@pytest.mark.parametrize("compression", [False, "lz4", "zstd", "gzip"])
def test_rows_inserted_by_the_client_are_read_back(
    client: Client, port: int, compression: bool | str
) -> None:
    compressing = clickhouse_connect.get_client(host="127.0.0.1", port=port, compress=compression)
    compressing.insert("t", [[1, "a"], [2, "ü"]], column_names=["id", "s"])
    assert compressing.query("SELECT * FROM t ORDER BY id").result_rows == [(1, "a"), (2, "ü")]
    compressing.close()


def test_rows_arrive_in_arrow_and_leave_as_arrow_and_as_a_frame(client: Client) -> None:
    client.insert_arrow("t", pa.table({"id": pa.array([7, 8], pa.uint64()), "s": ["x", "y"]}))
    assert client.query_arrow("SELECT id FROM t ORDER BY id").column(0).to_pylist() == [7, 8]
    assert client.query_df("SELECT s FROM t ORDER BY id")["s"].tolist() == ["x", "y"]


def test_a_binary_body_is_inserted_and_counted(client: Client) -> None:
    block = b"".join(_row(number, b"abc") for number in range(1000))
    summary = client.raw_insert("t", column_names=["id", "s"], insert_block=block, fmt="RowBinary")
    assert summary.written_rows == 1000
    assert client.command("SELECT sum(id) FROM t") == 999 * 1000 // 2


def test_a_binary_body_may_follow_the_statement_in_the_body(client: Client, port: int) -> None:
    block = _row(5, b"\xff\xfe") + _row(6, b"plain")
    status, _, _ = _request(port, b"INSERT INTO t (id, s) FORMAT RowBinary\n" + block)
    assert status == 200
    assert client.command("SELECT count() FROM t") == 2


@pytest.mark.parametrize(
    ("statement", "body"),
    [
        ("INSERT INTO t FORMAT JSONEachRow", b'{"id": 1, "s": "a"}\n{"id": 2, "s": "b"}\n'),
        ("INSERT INTO t (s, id) FORMAT CSV", b"a,1\nb,2\n"),
        ("INSERT INTO t VALUES", b"(1, 'a'), (2, 'b')"),
        ("", b"INSERT INTO t VALUES (1, 'FORMAT CSV'), (2, 'b')"),
        ("", b"INSERT INTO t FORMAT TSV\n1\ta\n2\tb\n"),
        ("INSERT INTO t SELECT number, 'x' FROM numbers(2)", b""),
    ],
)
def test_text_rows_are_inserted_from_statement_and_body(
    client: Client, port: int, statement: str, body: bytes
) -> None:
    fields = {"query": statement} if statement else {}
    status, _, text = _request(port, body, **fields)
    assert (status, text) == (200, b"")
    assert client.command("SELECT count() FROM t") == 2


def test_an_insert_that_fails_leaves_nothing(client: Client) -> None:
    block = b"".join(_row(number, b"abc") for number in range(100_000)) + b"\x01\x02"
    with pytest.raises(DatabaseError, match="CANNOT_READ_ALL_DATA"):
        client.raw_insert("t", column_names=["id", "s"], insert_block=block, fmt="RowBinary")
    assert client.command("SELECT count() FROM t") == 0


def test_a_body_that_ends_early_leaves_nothing(client: Client, port: int) -> None:
    query = quote("INSERT INTO t (id, s) FORMAT RowBinary")
    row = _row(1, b"abc")
    with socket.create_connection(("127.0.0.1", port)) as connection:
        head = f"POST /?query={query} HTTP/1.1\r\nHost: localhost\r\n"
        connection.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
        connection.sendall(f"{len(row):x}\r\n".encode() + row + b"\r\n")
        connection.shutdown(socket.SHUT_WR)
        connection.recv(1)
    assert client.command("SELECT count() FROM t") == 0


def test_a_chunked_body_is_inserted(client: Client) -> None:
    chunks = (_row(number, b"abc") for number in range(10))
    client.raw_insert("t", column_names=["id", "s"], insert_block=chunks, fmt="RowBinary")
    assert client.command("SELECT count() FROM t") == 10


@pytest.mark.parametrize(
    ("statement", "code", "status"),
    [
        ("SELECT nope", "47", 400),
        ("SELEC 1", "62", 400),
        ("SELECT * FROM nowhere", "60", 404),
        ("SELECT throwIf(1)", "395", 500),
        ("", "62", 400),
    ],
)
def test_an_error_carries_its_code_and_status(
    port: int, statement: str, code: str, status: int
) -> None:
    found, headers, body = _request(port, statement.encode())
    assert (found, headers["X-ClickHouse-Exception-Code"]) == (status, code)
    assert body.startswith(f"Code: {code}. DB::Exception: ".encode())


def test_an_answer_says_its_format_and_what_was_read(port: int) -> None:
    status, headers, body = _request(port, b"SELECT 1 AS a FORMAT JSON", query_id="q-1")
    assert status == 200
    assert json.loads(body)["data"] == [{"a": 1}]
    assert headers["X-ClickHouse-Format"] == "JSON"
    assert headers["Content-Type"] == "application/json; charset=UTF-8"
    assert headers["X-ClickHouse-Query-Id"] == "q-1"
    assert {"read_rows", "written_rows", "elapsed_ns"} <= set(
        json.loads(headers["X-ClickHouse-Summary"])
    )


def test_the_default_format_is_tab_separated_and_can_be_named(port: int) -> None:
    assert _request(port, b"SELECT 1, 'a'")[2] == b"1\ta\n"
    assert _request(port, b"SELECT 1, 'a'", default_format="CSV")[2] == b'1,"a"\n'


def test_parameters_are_bound_by_the_server(client: Client) -> None:
    client.insert("t", [[1, "it's\t\\a"], [2, "b"]], column_names=["id", "s"])
    found = client.query(
        "SELECT id FROM t WHERE s = {s:String} AND id < {n:UInt64}",
        parameters={"s": "it's\t\\a", "n": 5},
    )
    assert found.result_rows == [(1,)]


def test_settings_of_one_request_do_not_reach_the_next(port: int) -> None:
    ask = b"SELECT toUInt8(getSetting('max_threads') = 7)"
    assert _request(port, ask, max_threads="7")[2] == b"1\n"
    _request(port, b"SET max_threads = 7")
    for _ in range(3):
        assert _request(port, ask)[2] == b"0\n"


def test_an_unknown_setting_is_refused(port: int) -> None:
    status, headers, _ = _request(port, b"SELECT 1", no_such_setting="1")
    assert (status, headers["X-ClickHouse-Exception-Code"]) == (404, "115")


def test_the_database_is_chosen_for_each_request(port: int) -> None:
    _request(port, b"CREATE DATABASE IF NOT EXISTS other")
    assert _request(port, b"SELECT currentDatabase()", database="other")[2] == b"other\n"
    assert _request(port, b"SELECT currentDatabase()")[2] == b"default\n"


def test_a_session_keeps_its_temporary_table_and_others_do_not_see_it(port: int) -> None:
    _request(port, b"CREATE TEMPORARY TABLE mine (a Int8)", session_id="one")
    _request(port, b"INSERT INTO mine VALUES (3)", session_id="one")
    assert _request(port, b"SELECT a FROM mine", session_id="one")[2] == b"3\n"
    assert _request(port, b"SELECT a FROM mine", session_id="two")[0] == 404
    assert _request(port, b"SELECT a FROM mine")[0] == 404


def test_a_small_query_is_answered_while_a_long_one_runs(port: int) -> None:
    running = threading.Event()
    done = threading.Event()

    def long() -> None:
        running.set()
        _request(port, b"SELECT sleepEachRow(1) FROM numbers(3) SETTINGS max_block_size = 1")
        done.set()

    thread = threading.Thread(target=long)
    thread.start()
    running.wait()
    assert _request(port, b"SELECT 1")[2] == b"1\n"
    assert not done.is_set()
    thread.join()


def test_readers_see_whole_inserts_only_while_rows_arrive(client: Client, port: int) -> None:
    block = b"".join(_row(number, b"abc") for number in range(5000))
    errors: list[Reply] = []

    def insert() -> None:
        for _ in range(10):
            reply = _request(port, block, query="INSERT INTO t (id, s) FORMAT RowBinary")
            if reply[0] != 200:
                errors.append(reply)

    writers = [threading.Thread(target=insert) for _ in range(3)]
    for writer in writers:
        writer.start()
    seen = []
    while any(writer.is_alive() for writer in writers):
        seen.append(int(client.command("SELECT count() FROM t")))
    for writer in writers:
        writer.join()
    assert not errors
    assert all(count % 5000 == 0 for count in seen)
    assert client.command("SELECT count() FROM t") == 150_000


def test_a_get_reads_but_does_not_write(client: Client, port: int) -> None:
    assert _request(port, method="GET", query="SELECT 1")[2] == b"1\n"
    status, headers, _ = _request(port, method="GET", query="DROP TABLE t")
    assert (status, headers["X-ClickHouse-Exception-Code"]) == (500, "164")


def test_ping_answers_without_a_statement(port: int) -> None:
    assert _request(port, method="GET", path="/ping")[2] == b"Ok.\n"
    assert _request(port, method="GET", path="/")[2] == b"Ok.\n"
    assert _request(port, method="GET", path="/nothing")[0] == 404


@pytest.mark.parametrize(
    "headers",
    [{"Origin": "https://evil.example"}, {"Host": "rebound.example"}],
    ids=["a foreign page", "a name rebound to loopback"],
)
def test_a_foreign_site_cannot_reach_the_server(port: int, headers: dict[str, str]) -> None:
    status, found, _ = _request(port, b"SELECT 1", headers=headers)
    assert status == 401
    assert "Access-Control-Allow-Origin" not in found


def test_a_page_of_this_machine_may_ask(port: int) -> None:
    origin = "http://127.0.0.1:8080"
    status, headers, _ = _request(port, b"SELECT 1", headers={"Origin": origin})
    assert (status, headers["Access-Control-Allow-Origin"]) == (200, origin)


def test_a_broken_or_unknown_encoding_is_refused(port: int) -> None:
    for encoding in ("gzip", "zstd", "lz4", "nope"):
        status, _, body = _request(port, b"SELECT 1", headers={"Content-Encoding": encoding})
        assert status in (400, 500)
        assert body.startswith(b"Code: ")


def test_rows_survive_a_restart(tmp_path: Path) -> None:
    for expected in (1, 2):
        with clickhouse(tmp_path / "data") as port:
            _request(port, b"CREATE TABLE IF NOT EXISTS kept (a Int8) ENGINE MergeTree ORDER BY a")
            _request(port, b"INSERT INTO kept VALUES (1)")
            assert _request(port, b"SELECT count() FROM kept")[2] == f"{expected}\n".encode()
