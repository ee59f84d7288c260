"""Run statements on chDB, ClickHouse's engine in this process, from many threads.

chDB lets one process open any number of connections to one data directory. A connection runs one
statement at a time and remembers settings, database and temporary tables; connections do not wait
for each other (measured: 9 ms for a small query beside one that took 18 s; on the same connection
it waited). So idle connections are kept by (database, settings, read-only) and each request takes
one of its kind: no request sees another's settings, and the usual request needs no SET at all.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import chdb

__all__ = ["Answer", "Engine", "EngineError", "Statement"]

MAX_RUNNING: Final = 16
"""Statements at once; more wait. Each may use every core and buffers its result in memory."""

MAX_IDLE: Final = 32
"""Idle connections kept; an open one costs about 10 us and little memory."""

SESSION_TIMEOUT_SECONDS: Final = 60.0
"""How long an unused session lives unless the request names another time, as in ClickHouse."""

_CODE: Final = re.compile(r"Code: (\d+)\. ?")
_INPUT: Final = re.compile(r"\binput\s*\(", re.IGNORECASE)
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")

_ONE_BLOCK: Final = {
    # One block is one part for each partition: a body that does not parse to its end leaves
    # nothing.
    "max_insert_block_size": "1000000000",
    "min_insert_block_size_rows": "1000000000",
    "min_insert_block_size_bytes": "100000000000",
}


class EngineError(Exception):
    """A statement was refused or failed; `code` is ClickHouse's own error number."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message

    @classmethod
    def of(cls, error: Exception) -> EngineError:
        """Translate what chDB raised; the text starts with `Code: N. DB::Exception: `."""
        text = str(error)
        found = _CODE.search(text)
        # 1002 is ClickHouse's UNKNOWN_EXCEPTION.
        return cls(int(found[1]), text[found.start() :]) if found else cls(1002, text)


@dataclass(frozen=True, slots=True)
class Statement:
    """One statement and what it runs with.

    `data` and `data_format` are set for an INSERT whose rows come apart from its text; `sql` then
    has no FORMAT. `settings` and `parameters` hold text, as ClickHouse's URL does.
    """

    sql: str
    output_format: str = "TabSeparated"
    database: str = "default"
    settings: tuple[tuple[str, str], ...] = ()
    parameters: Mapping[str, str] = field(default_factory=dict)
    data: bytes | memoryview | None = None
    data_format: str = ""
    read_only: bool = False
    session_id: str = ""
    session_timeout_seconds: float = SESSION_TIMEOUT_SECONDS


@dataclass(frozen=True, slots=True)
class Answer:
    """The result of a statement: the formatted bytes and the counts for the summary header."""

    data: bytes
    read_rows: int = 0
    read_bytes: int = 0
    written_rows: int = 0
    written_bytes: int = 0
    elapsed_ns: int = 0


@contextmanager
def _file_of(data: bytes | memoryview) -> Iterator[str]:
    """Return the path of a file in memory that lasts as long as the context.

    chDB has no table function `input` but `file`, and INSERT ... SELECT takes no rows beside it.
    """
    rows = os.memfd_create("insert")
    try:
        with open(rows, "wb", closefd=False) as file:
            file.write(data)
        yield f"/proc/self/fd/{rows}"
    finally:
        os.close(rows)


@dataclass(slots=True)
class _Session:
    connection: Any
    lock: threading.Lock
    expires: float


class Engine:
    """The data directory, its connections and sessions; safe to use from any thread."""

    def __init__(self, path: Path) -> None:
        path.mkdir(parents=True, exist_ok=True)
        self._path = str(path)
        # Held open: chDB shuts the engine down when its last connection closes.
        self._first = chdb.connect(self._path)
        self._idle: OrderedDict[object, list[Any]] = OrderedDict()
        self._idle_count = 0
        self._sessions: dict[str, _Session] = {}
        self._lock = threading.Lock()
        self._running = threading.BoundedSemaphore(MAX_RUNNING)
        version, zone = self._first.query("SELECT version(), timezone()", "TSV").bytes().split()
        self.version: str = version.decode()
        self.timezone: str = zone.decode()

    def run(self, statement: Statement) -> Answer:
        """Run one statement.

        Raises:
            EngineError: with ClickHouse's code and text; an INSERT then stored none of its rows.
        """
        began = time.perf_counter_ns()
        with self._running, self._connection(statement) as connection:
            try:
                if statement.data is None:
                    return self._query(connection, statement, statement.sql, began)
                read = _INPUT.search(statement.sql)
                if read is None:
                    return self._insert(connection, statement, began)
                with _file_of(statement.data) as path:
                    source = f"file('{path}', '{statement.data_format}', "
                    sql = statement.sql[: read.start()] + source + statement.sql[read.end() :]
                    return self._query(connection, statement, sql, began)
            except (chdb.ChdbError, RuntimeError, ValueError, TypeError) as e:
                raise EngineError.of(e) from e

    def close(self) -> None:
        """Close every connection; the engine writes what it still holds."""
        with self._lock:
            connections = [c for kind in self._idle.values() for c in kind]
            connections += [session.connection for session in self._sessions.values()]
            self._idle.clear()
            self._sessions.clear()
        for connection in connections:
            connection.close()
        self._first.close()

    def _query(self, connection: Any, statement: Statement, sql: str, began: int) -> Answer:
        result = connection.query(sql, statement.output_format, params=dict(statement.parameters))
        return Answer(
            # chDB keeps the buffer only as long as the result.
            data=bytes(result.bytes() or b""),
            read_rows=result.storage_rows_read(),
            read_bytes=result.storage_bytes_read(),
            written_rows=result.rows_written(),
            written_bytes=result.bytes_written(),
            elapsed_ns=time.perf_counter_ns() - began,
        )

    def _insert(self, connection: Any, statement: Statement, began: int) -> Answer:
        inserter = connection.send_insert(statement.sql, statement.data_format)
        try:
            # An empty body is an INSERT of no rows, which ClickHouse accepts.
            if statement.data:
                inserter.append(statement.data)
            written = inserter.finish()
        except BaseException:
            inserter.cancel()
            raise
        return Answer(
            data=b"",
            read_rows=written.rows_written,
            read_bytes=written.bytes_written,
            written_rows=written.rows_written,
            written_bytes=written.bytes_written,
            elapsed_ns=time.perf_counter_ns() - began,
        )

    @contextmanager
    def _connection(self, statement: Statement) -> Iterator[Any]:
        if statement.session_id:
            with self._session(statement) as connection:
                yield connection
            return
        kind = (
            statement.database,
            statement.settings,
            statement.read_only,
            statement.data is not None,
        )
        with self._lock:
            kept = self._idle.get(kind)
            connection = kept.pop() if kept else None
            self._idle_count -= connection is not None
        if connection is None:
            connection = self._open(statement)
        try:
            yield connection
        finally:
            # SET and USE would reach the next request; a failed statement may leave anything.
            self._put_back(kind, connection, reuse=not _changes_connection(statement.sql))

    def _put_back(self, kind: object, connection: Any, *, reuse: bool) -> None:
        closing = [] if reuse else [connection]
        with self._lock:
            if reuse:
                self._idle.setdefault(kind, []).append(connection)
                self._idle.move_to_end(kind)
                self._idle_count += 1
            while self._idle_count > MAX_IDLE:
                oldest = next(iter(self._idle))
                if self._idle[oldest]:
                    closing.append(self._idle[oldest].pop())
                    self._idle_count -= 1
                if not self._idle[oldest]:
                    del self._idle[oldest]
        for surplus in closing:
            surplus.close()

    def _open(self, statement: Statement) -> Any:
        connection = chdb.connect(self._path)
        try:
            settings = dict(statement.settings)
            if statement.data is not None:
                settings = {**_ONE_BLOCK, **settings}
            _apply(connection, statement.database, settings, read_only=statement.read_only)
        except (chdb.ChdbError, RuntimeError) as e:
            connection.close()
            raise EngineError.of(e) from e
        except EngineError:
            connection.close()
            raise
        return connection

    @contextmanager
    def _session(self, statement: Statement) -> Iterator[Any]:
        now = time.monotonic()
        expired = []
        with self._lock:
            for name, session in list(self._sessions.items()):
                if session.expires < now and session.lock.acquire(blocking=False):
                    expired.append(self._sessions.pop(name))
            mine = self._sessions.get(statement.session_id)
            if mine is None:
                mine = _Session(self._open(statement), threading.Lock(), 0.0)
                self._sessions[statement.session_id] = mine
            busy = not mine.lock.acquire(blocking=False)
            mine.expires = now + statement.session_timeout_seconds
        for session in expired:
            session.connection.close()
        if busy:
            msg = (
                f"Code: 373. DB::Exception: Session {statement.session_id} is locked by a "
                "concurrent client. (SESSION_IS_LOCKED)"
            )
            raise EngineError(373, msg)
        try:
            if statement.settings:
                _apply(mine.connection, "", dict(statement.settings), read_only=False)
            yield mine.connection
        finally:
            mine.lock.release()


def _apply(connection: Any, database: str, settings: Mapping[str, str], *, read_only: bool) -> None:
    if database and database != "default":
        connection.query(f"USE `{database.replace('`', '``')}`")
    for name, value in settings.items():
        if not _NAME.match(name):
            msg = f"Code: 115. DB::Exception: Unknown setting '{name}'. (UNKNOWN_SETTING)"
            raise EngineError(115, msg)
        quoted = value.replace("\\", "\\\\").replace("'", "\\'")
        connection.query(f"SET {name} = '{quoted}'")
    if read_only:
        # The last one: the engine then refuses any change, of settings too, for good.
        connection.query("SET readonly = 1")


def _changes_connection(sql: str) -> bool:
    # Cheaper than asking the parser, and wrong only on the side of closing too many.
    head = sql.lstrip()[:400].upper()
    return head.startswith(("SET", "USE", "--", "/*")) or "TEMPORARY" in head or ";" in sql
