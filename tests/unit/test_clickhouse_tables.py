"""Rows packed for ClickHouse: equal to a slow reference, and read back by the real engine."""

from __future__ import annotations

import http.server
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from connectors.account_history import remember_account
from connectors.activity import LagMeter, recent_rows
from connectors.clickhouse import ClickHouseRefused, ClickHouseUnavailable, ClickHouseWriter
from connectors.migrations import Migration, load_migrations, migrate, plan
from connectors.row_binary import LayoutError, NameSets, RowBinaryLayout
from connectors.settings import ClickHouseSettings, KafkaSettings
from connectors.tables import scored_layout
from dashboards.queries import PANELS
from jobs.audit import Ledger, reconcile
from schemas.columns import StringColumn
from schemas.errors import ConfigurationError

LAYOUT = RowBinaryLayout(
    [("name", "String"), ("count", "Int64"), ("rules", "Array(String)"), ("small", "UInt8"),
     ("version", "LowCardinality(String)")],
    group=["a", "b"],
)  # fmt: skip


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 128:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def _slow(rows: list[tuple[str | None, int, int, int, float, float]], names: list[str]) -> bytes:
    def text(value: str) -> bytes:
        raw = value.encode()
        return _varint(len(raw)) + raw

    out = b""
    for name, count, small, mask, a, b in rows:
        fired = [rule for bit, rule in enumerate(names) if mask >> bit & 1]
        out += struct.pack("<qBdd", count, small, a, b) + text(name or "") + text("v1")
        out += _varint(len(fired)) + b"".join(text(rule) for rule in fired)
    return out


def _pack(rows: list[tuple[str | None, int, int, int, float, float]], names: list[str]) -> bytes:
    return LAYOUT.pack(
        {
            "name": StringColumn.from_texts([row[0] for row in rows]),
            "count": np.array([row[1] for row in rows], np.int64),
            "small": np.array([row[2] for row in rows], np.int64),
            "rules": NameSets(np.array([row[3] for row in rows], np.uint64), names),
            "features": np.array([row[4:] for row in rows], np.float64).reshape(len(rows), 2),
            "version": "v1",
        },
        len(rows),
    )


_ROW = st.tuples(
    st.none() | st.text(max_size=200),
    st.integers(-(2**63), 2**63 - 1),
    st.integers(0, 255),
    st.integers(0, 2**64 - 1),
    st.floats(allow_nan=False),
    st.floats(allow_nan=False),
)


@settings(deadline=None, max_examples=60)
@given(st.lists(_ROW, max_size=20), st.lists(st.text(max_size=150), max_size=64))
def test_packed_rows_equal_the_slow_reference(
    rows: list[tuple[str | None, int, int, int, float, float]], names: list[str]
) -> None:
    assert _pack(rows, names) == _slow(rows, names)


def test_packs_of_parts_joined_equal_the_pack_of_the_whole() -> None:
    rows: list[tuple[str | None, int, int, int, float, float]] = [
        (f"n{index}", index, index % 250, index, index / 3, -index / 7) for index in range(50)
    ]
    assert _pack(rows[:20], ["x", "y"]) + _pack(rows[20:], ["x", "y"]) == _pack(rows, ["x", "y"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"count": np.zeros(3, np.int64)}, "expected 2 values"),
        ({"features": np.zeros((2, 3))}, "expected shape"),
        ({"name": StringColumn.from_texts(["x"])}, "2 strings"),
        ({"rules": "none"}, "NameSets"),
    ],
)
def test_columns_that_do_not_fit_the_layout_are_refused(
    change: dict[str, object], words: str
) -> None:
    columns: dict[str, object] = {
        "name": "x", "count": 1, "small": 1, "version": "v",
        "rules": NameSets(np.zeros(2, np.uint64), ()), "features": np.zeros((2, 2)),
    }  # fmt: skip
    with pytest.raises(LayoutError, match=words):
        LAYOUT.pack({**columns, **change}, 2)  # type: ignore[dict-item]


def test_a_missing_column_is_named() -> None:
    with pytest.raises(LayoutError, match="'count' is missing"):
        LAYOUT.pack({"name": "x"}, 1)


class _Handler(http.server.BaseHTTPRequestHandler):
    answers: list[tuple[int, int, bytes]]
    seen: list[tuple[str, bytes]]
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.seen.append((self.path, body))
        status, code, text = self.answers.pop(0) if self.answers else (200, 0, b"")
        self.send_response(status)
        if code:
            self.send_header("X-ClickHouse-Exception-Code", str(code))
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def _server(
    answers: list[tuple[int, int, bytes]],
) -> Iterator[tuple[ClickHouseSettings, list[tuple[str, bytes]]]]:
    seen: list[tuple[str, bytes]] = []
    handler = type("Handler", (_Handler,), {"answers": answers, "seen": seen})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield ClickHouseSettings(url=f"http://127.0.0.1:{server.server_address[1]}"), seen
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_an_insert_waits_out_a_server_that_is_away_and_repeats_the_same_token() -> None:
    waits: list[float] = []
    retries: list[int] = []
    busy = (500, 252, b"Code: 252. Too many parts")
    with _server([busy, (503, 0, b"starting"), busy]) as (settings, seen):
        writer = ClickHouseWriter(
            settings, sleep=waits.append, on_retry=lambda attempt, _: retries.append(attempt)
        )
        rows = _pack([("x", 1, 1, 0, 0.0, 0.0)], [])
        writer.insert("t", LAYOUT, 1, rows)
        writer.close()
    assert retries == [1, 2, 3]
    assert waits == sorted(waits)
    assert [body for _, body in seen] == [rows] * 4
    assert len({path for path, _ in seen}) == 1
    assert "insert_deduplication_token=" in seen[0][0]


@pytest.mark.parametrize("answer", [(400, 62, b"Syntax error"), (500, 53, b"Type mismatch")])
def test_an_insert_that_can_never_work_is_refused_at_once(answer: tuple[int, int, bytes]) -> None:
    with _server([answer]) as (settings, seen):
        writer = ClickHouseWriter(settings)
        with pytest.raises(ClickHouseRefused) as caught:
            writer.insert("t", LAYOUT, 1, b"x")
        writer.close()
    assert caught.value.code == answer[1]
    assert len(seen) == 1


def test_a_user_who_may_not_use_table_functions_inserts_plainly() -> None:
    denied = (403, 497, b"Not enough privileges: CREATE TEMPORARY TABLE")
    with _server([denied]) as (settings, seen):
        writer = ClickHouseWriter(settings)
        writer.insert("t", LAYOUT, 1, b"x")
        writer.insert("t", LAYOUT, 1, b"y")
        writer.close()
    assert [body for _, body in seen] == [b"x", b"x", b"y"]
    assert ["input%28" in path for path, _ in seen] == [True, False, False]
    assert len({path.split("insert_deduplication_token=")[1] for path, _ in seen[:2]}) == 1


def test_a_user_who_may_not_insert_at_all_is_refused() -> None:
    denied = (403, 497, b"Not enough privileges: INSERT")
    with _server([denied, denied]) as (settings, seen):
        writer = ClickHouseWriter(settings)
        with pytest.raises(ClickHouseRefused):
            writer.insert("t", LAYOUT, 1, b"x")
        writer.close()
    assert len(seen) == 2


def test_a_writer_that_was_told_to_gives_up() -> None:
    with _server([(503, 0, b"away")] * 3) as (settings, seen):
        writer = ClickHouseWriter(settings, sleep=lambda _: None, give_up_after=2)
        with pytest.raises(ClickHouseUnavailable):
            writer.insert("t", LAYOUT, 1, b"x")
        writer.close()
    assert len(seen) == 3


def test_a_server_that_does_not_listen_is_unavailable() -> None:
    writer = ClickHouseWriter(
        ClickHouseSettings(url="http://127.0.0.1:9"), sleep=lambda _: None, give_up_after=0
    )
    with pytest.raises(ClickHouseUnavailable):
        writer.insert("t", LAYOUT, 1, b"x")
    writer.close()


class _Engine:
    """The real engine in this process, behind the two calls that migrations make."""

    database = "riskstream"

    def __init__(self, session: object) -> None:
        self._session = session

    def execute(self, statement: str, *, database: str | None = None) -> None:
        self._run(statement, database)

    def rows(
        self, query: str, parameters: dict[str, object] | None = None
    ) -> list[dict[str, object]]:
        import json

        for name, value in (parameters or {}).items():
            query = query.replace(f"{{{name}:String}}", f"'{value}'")
            query = query.replace(f"{{{name}:UInt64}}", str(value))
        text = self._run(query, None, "JSONEachRow")
        return [json.loads(line) for line in text.splitlines() if line]

    def _run(self, statement: str, database: str | None, form: str = "CSV") -> str:
        try:
            if database is None:
                self._session.query(f"USE {self.database}")  # type: ignore[attr-defined]
            return self._session.query(statement, form).data()  # type: ignore[attr-defined,no-any-return]
        except Exception as e:
            code = next((c for c in (81, 60) if f"Code: {c}" in str(e)), 1)
            raise ClickHouseRefused(str(e), code) from e


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[object]:
    chdb_session = pytest.importorskip("chdb.session")
    opened = chdb_session.Session(str(tmp_path_factory.mktemp("chdb")))
    yield opened
    opened.close()


@pytest.fixture
def engine(session: object) -> _Engine:
    session.query("USE default")  # type: ignore[attr-defined]
    session.query("DROP DATABASE IF EXISTS riskstream")  # type: ignore[attr-defined]
    return _Engine(session)


def test_migrations_apply_once_and_add_features_as_they_appear(engine: _Engine) -> None:
    client: object = engine
    first = migrate(client, ["amount", "nights"])  # type: ignore[arg-type]
    assert {step.state for step in first} == {"applied"}
    again = migrate(client, ["amount", "nights"])  # type: ignore[arg-type]
    assert {step.state for step in again} == {"done before"}
    more = migrate(client, ["amount", "nights", "speed"])  # type: ignore[arg-type]
    assert more[-1].state == "applied"
    engine.execute("INSERT INTO scored_transactions_raw (event_id, speed) VALUES ('e', 2.5)")
    assert engine.rows("SELECT speed, isNaN(amount) AS n FROM scored_transactions") == [
        {"speed": 2.5, "n": 1}
    ]


def test_an_account_is_kept_as_the_operators_panel_shows_it(engine: _Engine) -> None:
    client: object = engine
    migrate(client, ["amount"])  # type: ignore[arg-type]
    offsets = np.arange(5, dtype=np.int64)
    audit = reconcile([Ledger("cards", 0, "scored", offsets, offsets[:4], offsets[:0])], [], [])
    # Now, because the table forgets accounts of more than ninety days ago.
    made = datetime.now(UTC).replace(microsecond=123_000)
    made_ms = round(made.timestamp() * 1000)
    remember_account(client, "fraud", made_ms, audit)  # type: ignore[arg-type]
    (panel,) = [panel for panel in PANELS["operators"] if panel.name == "operator_accounts"]
    (row,) = engine.rows(panel.sql)
    assert row["made"] == made.strftime("%Y-%m-%d %H:%M:%S.123")
    assert row["verdict"] == "NOT CLEAN"
    assert (row["offsets_in"], row["scored"], row["missing"]) == (5, 4, 1)


def test_planning_touches_nothing(engine: _Engine) -> None:
    client: object = engine
    steps = plan(client, ["amount"], load_migrations())  # type: ignore[arg-type]
    assert {step.state for step in steps} == {"pending"}
    with pytest.raises(ClickHouseRefused, match="does not exist"):
        engine.rows("SELECT 1")


def test_a_migration_that_changed_after_it_was_applied_is_refused(engine: _Engine) -> None:
    client: object = engine
    migrate(client)  # type: ignore[arg-type]
    changed = [Migration(m.version, m.name, "other", m.statements) for m in load_migrations()]
    with pytest.raises(ConfigurationError, match="changed after it was applied"):
        migrate(client, (), changed)  # type: ignore[arg-type]


def test_the_engine_reads_packed_rows_and_the_view_shows_each_record_once(
    engine: _Engine, tmp_path: pytest.TempPathFactory
) -> None:
    client: object = engine
    migrate(client, ["f1", "f2"])  # type: ignore[arg-type]
    layout = scored_layout(["f1", "f2"])
    n = 300
    columns = {
        "event_time_ms": np.arange(n) * 86_400_000 + 1_522_540_831_000,
        "amount_minor": np.arange(n),
        "channel": np.full(n, 3), "score": np.linspace(0, 1, n), "decision": np.arange(n) % 3,
        "flags": np.arange(n), "kafka_partition": 1, "kafka_offset": np.arange(n),
        "published_at_ms": 1, "ingested_at_ms": 2, "decided_at_ms": 3, "seen_order": 4,
        "event_id": StringColumn.from_texts([f"e{i}" for i in range(n)]),
        "customer_id": StringColumn.from_texts([str(i % 7) for i in range(n)]),
        "terminal_id": StringColumn.from_texts(["t"] * n),
        "merchant_id": StringColumn.from_texts([None] * n),
        "currency": "EUR", "country": "", "tenant": "", "model_version": "m1",
        "rule_set_version": "r1", "feature_set_version": "f1v", "kafka_topic": "card-transactions",
        "rules_fired": NameSets((np.arange(n) % 4).astype(np.uint64), ["big", "fast"]),
        "features": np.column_stack([np.arange(n) / 3, -np.arange(n) / 7.0]),
    }  # fmt: skip
    file = f"{tmp_path}/rows.bin"
    with open(file, "wb") as out:
        out.write(layout.pack(columns, n))  # type: ignore[arg-type]
    names = ", ".join(f"`{name}`" for name in layout.columns)
    insert = (
        f"INSERT INTO scored_transactions_raw ({names}) "
        f"FROM INFILE '{file}' SETTINGS max_partitions_per_insert_block = 0 FORMAT RowBinary"
    )
    engine.execute(insert)
    engine.execute(insert.replace("SETTINGS", "SETTINGS insert_deduplicate = 0,"))
    rows = engine.rows(
        "SELECT * FROM scored_transactions ORDER BY kafka_offset"
        " SETTINGS output_format_json_quote_64bit_integers = 0"
    )
    assert [row["event_id"] for row in rows] == [f"e{i}" for i in range(n)]
    assert [row["f1"] for row in rows] == [i / 3 for i in range(n)]
    assert rows[3]["rules_fired"] == ["big", "fast"]
    assert rows[2]["decision"] == "block"
    assert rows[1]["channel"] == "ecommerce"
    assert rows[0]["event_time"] == "2018-04-01 00:00:31.000"


def test_what_happened_lately_is_counted_by_insertion_time(engine: _Engine) -> None:
    client: object = engine
    migrate(client)  # type: ignore[arg-type]
    assert recent_rows(client, 10).publish_to_row.p99 is None  # type: ignore[arg-type]
    engine.execute(
        "INSERT INTO scored_transactions_raw (event_id, decision, published_at_ms, "
        "decided_at_ms, inserted_at) SELECT toString(number), number % 10 = 0 ? 'block' : "
        "'approve', toUnixTimestamp64Milli(now64(3)) - 500, "
        "toUnixTimestamp64Milli(now64(3)) - 500 + number, "
        "now64(3) - (number >= 100 ? 3600 : 0) FROM numbers(200)"
    )
    seen = recent_rows(client, 60)  # type: ignore[arg-type]
    assert seen.rows == 100
    assert seen.decisions == {"approve": 90, "review": 0, "block": 10}
    assert seen.publish_to_decision.max == pytest.approx(99, abs=5)
    assert seen.publish_to_decision.p50 == pytest.approx(50, abs=5)


def test_lag_is_what_lies_after_the_highest_offset_stored(
    engine: _Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    client: object = engine
    migrate(client)  # type: ignore[arg-type]
    engine.execute(
        "INSERT INTO scored_transactions_raw (event_id, kafka_topic, kafka_partition, kafka_offset)"
        " SELECT toString(number), 'tx', number % 2, number FROM numbers(10)"
    )
    ends = {0: 20, 1: 10, 2: 5}
    monkeypatch.setattr("connectors.activity.end_offsets", lambda settings, topic: ends)
    meter = LagMeter(client, KafkaSettings(), "tx")  # type: ignore[arg-type]
    assert meter.read(10) == (19 - 8) + 0 + 5
    assert meter.read(10) == 16
