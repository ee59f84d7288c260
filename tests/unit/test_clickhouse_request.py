"""How the local ClickHouse server reads a request: pure functions, no engine started."""

from __future__ import annotations

import gzip

import pytest

from connectors.local._clickhouse_engine import EngineError
from connectors.local._clickhouse_request import (
    compress,
    decompress,
    http_status,
    parse_statement,
    split_insert,
)
from connectors.local.flink import memory_options


@pytest.mark.parametrize(
    ("sql", "head", "name"),
    [
        ("INSERT INTO t FORMAT CSV", "INSERT INTO t", "CSV"),
        ("insert into t (a, b) format RowBinary\n", "insert into t (a, b)", "RowBinary"),
        ("INSERT INTO t (`format`) FORMAT Native", "INSERT INTO t (`format`)", "Native"),
        (
            "/* FORMAT x */ INSERT INTO t SETTINGS async_insert = 0 FORMAT TSV",
            "/* FORMAT x */ INSERT INTO t SETTINGS async_insert = 0",
            "TSV",
        ),
        (
            "INSERT INTO t (a) SELECT a FROM input('a Int8, b String') FORMAT RowBinary",
            "INSERT INTO t (a) SELECT a FROM input('a Int8, b String')",
            "RowBinary",
        ),
    ],
)
def test_rows_begin_after_the_format_of_an_insert(sql: str, head: str, name: str) -> None:
    found = split_insert(sql)
    assert found is not None
    assert found[:2] == (head, name)


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT 1 FORMAT JSON",
        "INSERT INTO t VALUES (1, 'x FORMAT CSV')",
        "INSERT INTO t SELECT * FROM u FORMAT CSV",
        "INSERT INTO t SELECT input FROM input FORMAT CSV",
        "INSERT INTO t SELECT (input) FROM u FORMAT CSV",
        "INSERT INTO t FROM INFILE 'x' FORMAT CSV",
        "INSERT INTO t",
        "INSERT INTO t FORMAT",
        "",
    ],
)
def test_other_statements_hold_all_they_need(sql: str) -> None:
    assert split_insert(sql) is None


def test_a_statement_takes_settings_parameters_and_database_from_the_url() -> None:
    url = "query=SELECT+1&database=d&max_threads=2&param_x=7&wait_end_of_query=1&user=u"
    statement = parse_statement(url, {}, b"", read_only=False)
    assert statement.sql == "SELECT 1"
    assert statement.database == "d"
    assert statement.settings == (("max_threads", "2"),)
    assert dict(statement.parameters) == {"x": "7"}


def test_a_format_in_the_statement_names_the_format_of_the_answer() -> None:
    url = "default_format=CSV"
    assert parse_statement(url, {}, b"SELECT 1", read_only=False).output_format == "CSV"
    named = parse_statement(url, {}, b"SELECT 1 FORMAT JSON;", read_only=False)
    assert named.output_format == "JSON"


@pytest.mark.parametrize("sql", [b"SELECT 1 INTO OUTFILE 'x'", b"INSERT INTO t FROM INFILE 'x'"])
def test_files_of_the_server_are_out_of_reach(sql: bytes) -> None:
    with pytest.raises(EngineError, match="ACCESS_DENIED"):
        parse_statement("", {}, sql, read_only=False)
    assert parse_statement("", {}, b"SELECT ' INTO OUTFILE '", read_only=False).sql


@pytest.mark.parametrize("encoding", ["lz4", "zstd", "gzip", "deflate"])
def test_a_body_survives_compression_and_a_bomb_is_refused(encoding: str) -> None:
    data = b"abc" * 100_000
    packed, name = compress(data, encoding)
    assert name == encoding
    assert decompress(packed, encoding, len(data)) == data
    with pytest.raises(EngineError, match="larger than"):
        decompress(packed, encoding, len(data) - 1)


def test_a_body_of_several_gzip_members_is_read_whole() -> None:
    two = gzip.compress(b"one,") + gzip.compress(b"two")
    assert decompress(two, "gzip", 100) == b"one,two"


def test_an_unknown_code_is_a_fault_of_the_server() -> None:
    assert (http_status(62), http_status(60), http_status(999)) == (400, 404, 500)


@pytest.mark.parametrize("process_mb", [768, 1024, 2048, 8192])
def test_a_task_managers_memory_adds_up(process_mb: int) -> None:
    _, options = memory_options(process_mb, slots=2)
    parts = [
        int(value.removesuffix("m"))
        for key, value in options.items()
        if key.endswith((".size", "network.max", "jvm-overhead.max"))
    ]
    assert sum(parts) == process_mb
    assert min(parts) >= 0
