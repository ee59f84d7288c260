"""Talk to ClickHouse over HTTP: statements, small reads, and the hot insert of packed rows.

Errors, by what the caller does next::

    ClickHouseUnavailable (RetryableError)  away, overloaded, or an answer that time may heal
    ClickHouseRefused (FatalError)          the statement, the data or the user is wrong
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from typing import Any, Final
from urllib.parse import urlencode

import numpy as np
import numpy.typing as npt
import urllib3
import xxhash
from urllib3.exceptions import HTTPError

from connectors.row_binary import RowBinaryLayout
from connectors.settings import ClickHouseSettings
from connectors.tables import ONE_ROW_A_KEY
from schemas.errors import ConfigurationError, FatalError, RetryableError

__all__ = [
    "ClickHouseClient",
    "ClickHouseRefused",
    "ClickHouseUnavailable",
    "ClickHouseWriter",
    "insert_statement",
]

# Exceptions that no wait can heal, whatever their HTTP status: unreadable data, unknown columns,
# tables and databases, wrong types and syntax, wrong user or rights.
_HOPELESS: Final = frozenset(
    {6, 10, 16, 26, 27, 33, 36, 38, 41, 43, 44, 46, 47, 50, 53, 60, 62, 72, 73, 81, 115, 117, 131}
    | {164, 192, 193, 194, 349, 386, 492, 497, 516}
)
_ACCESS_DENIED: Final = 497
_FIRST_WAIT_SECONDS: Final = 0.1
# Long enough not to press a server that is coming up, short enough that the backlog stays small.
_LONGEST_WAIT_SECONDS: Final = 5.0


class ClickHouseUnavailable(RetryableError):
    """ClickHouse did not answer, or answered that it cannot now."""


class ClickHouseRefused(FatalError):
    """ClickHouse answered that the request is wrong; `code` is its exception code."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class ClickHouseClient:
    """Statements and small reads over one kept-alive connection. Not for several threads at once.

    Args:
        settings: address, user, TLS and timeout.

    Raises:
        ConfigurationError: when no address is set.
    """

    def __init__(self, settings: ClickHouseSettings) -> None:
        if settings.url is None:
            msg = "connecting to ClickHouse: set clickhouse.url, or start the local stack"
            raise ConfigurationError(msg)
        self._settings = settings
        self._url = settings.url.rstrip("/") + "/"
        headers = {"X-ClickHouse-User": settings.username}
        if settings.password is not None:
            headers["X-ClickHouse-Key"] = settings.password.get_secret_value()
        self._pool = urllib3.PoolManager(
            num_pools=1,
            maxsize=1,
            headers=headers,
            timeout=urllib3.Timeout(
                connect=min(5.0, settings.timeout_ms / 1000), read=settings.timeout_ms / 1000
            ),
            retries=False,
            ca_certs=None if settings.ca_file is None else str(settings.ca_file),
            cert_reqs="CERT_REQUIRED" if settings.verify_certificate else "CERT_NONE",
        )

    @property
    def database(self) -> str:
        """The database that unqualified names are in."""
        return self._settings.database

    def execute(self, statement: str, *, database: str | None = None) -> None:
        """Run a statement.

        Args:
            statement: SQL without parameters.
            database: where names are looked up, instead of the configured database.

        Raises:
            ClickHouseUnavailable: when it may succeed later.
            ClickHouseRefused: when it will not.
        """
        self.request({"query": ""}, statement.encode("utf-8"), database=database)

    def rows(
        self, query: str, parameters: Mapping[str, object] | None = None
    ) -> list[dict[str, Any]]:
        """Run a query and return its rows, 64-bit integers as int.

        Args:
            query: SQL; `{name:Type}` stands for a parameter.
            parameters: values of the parameters.

        Raises:
            ClickHouseUnavailable: when it may succeed later.
            ClickHouseRefused: when it will not.
        """
        arguments = {
            **_parameters(parameters),
            "output_format_json_quote_64bit_integers": "0",
            "default_format": "JSONEachRow",
        }
        answer = self.request(arguments, query.encode("utf-8"))
        return [json.loads(line) for line in answer.splitlines() if line]

    def table(
        self, query: str, dtype: npt.DTypeLike, parameters: Mapping[str, object] | None = None
    ) -> npt.NDArray[Any]:
        """Run a query and return its rows as an array, read-only; structured for several columns.

        Args:
            query: SQL without FORMAT; `{name:Type}` stands for a parameter.
            dtype: of a row as RowBinary packs it: little-endian columns of fixed width, in the
                order of the SELECT.
            parameters: values of the parameters.

        Raises:
            ClickHouseUnavailable: when it may succeed later.
            ClickHouseRefused: when it will not.
            ValueError: when the answer is not whole rows of that type.
        """
        arguments = {**_parameters(parameters), "default_format": "RowBinary"}
        answer = self.request(arguments, query.encode("utf-8"))
        rows: npt.NDArray[Any] = np.frombuffer(answer, np.dtype(dtype))
        return rows

    def request(
        self, arguments: Mapping[str, str], body: bytes, *, database: str | None = None
    ) -> bytes:
        """Send one request; `arguments` go into the address, `body` after it."""
        named = {key: value for key, value in arguments.items() if value}
        named["database"] = self._settings.database if database is None else database
        address = f"{self._url}?{urlencode(named)}"
        try:
            answer = self._pool.request("POST", address, body=body)
        except HTTPError as e:
            msg = f"asking ClickHouse at {self._url!r}: {e}"
            raise ClickHouseUnavailable(msg) from e
        if answer.status == 200 and "X-ClickHouse-Exception-Code" not in answer.headers:
            return bytes(answer.data)
        text = answer.data.decode("utf-8", "replace").strip()[:2000]
        code = _exception_code(answer.headers.get("X-ClickHouse-Exception-Code"))
        msg = f"asking ClickHouse at {self._url!r}: status {answer.status}: {text}"
        if code in _HOPELESS or (
            400 <= answer.status < 500 and answer.status not in (408, 425, 429)
        ):
            raise ClickHouseRefused(msg, code)
        raise ClickHouseUnavailable(msg)

    def close(self) -> None:
        """Close the connection."""
        self._pool.clear()


class ClickHouseWriter:
    """Inserts packed rows, one request an insert, and waits for as long as ClickHouse is away.

    An insert is confirmed before `insert` returns, so nothing is held back here across a
    checkpoint. A retry carries the same deduplication token, so an insert whose answer got lost is
    not doubled.

    Args:
        settings: address, user, TLS and timeout.
        on_retry: called with (attempt from 1, error) before each wait: count it, log it rarely.
        sleep: waits.
        give_up_after: retries at most; None, the default of a job, waits for ever (back-pressure
            reaches the source meanwhile).
    """

    def __init__(
        self,
        settings: ClickHouseSettings,
        *,
        on_retry: Callable[[int, Exception], None] = lambda attempt, error: None,
        sleep: Callable[[float], None] = time.sleep,
        give_up_after: int | None = None,
    ) -> None:
        self._client = ClickHouseClient(settings)
        self._on_retry = on_retry
        self._sleep = sleep
        self._give_up_after = give_up_after
        self._plain = False

    def insert(
        self,
        table: str,
        layout: RowBinaryLayout,
        count: int,
        rows: bytes,
        *,
        token: str | None = None,
    ) -> None:
        """Insert `count` rows that `layout` packed (several `pack`s may be joined).

        Args:
            table: name of the table.
            layout: the order of the columns.
            count: number of rows; 0 does nothing.
            rows: the packed rows.
            token: names this insert for ever; the default is a hash of the rows.

        Raises:
            ClickHouseRefused: when ClickHouse will never take these rows.
            ClickHouseUnavailable: after `give_up_after` retries.
        """
        if not count:
            return
        arguments = {
            "query": insert_statement(table, layout.types, plain=self._plain),
            "insert_deduplication_token": token or xxhash.xxh3_128_hexdigest(rows),
            # A replay may span years; the limit of 100 months an insert would refuse it.
            "max_partitions_per_insert_block": "0",
        }
        attempt = 0
        wait = _FIRST_WAIT_SECONDS
        while True:
            try:
                self._client.request(arguments, rows)
                return
            except ClickHouseRefused as e:
                # A user may insert and yet not use table functions.
                if e.code != _ACCESS_DENIED or self._plain:
                    raise
                self._plain = True
                arguments["query"] = insert_statement(table, layout.types, plain=True)
                continue
            except ClickHouseUnavailable as e:
                attempt += 1
                if self._give_up_after is not None and attempt > self._give_up_after:
                    raise
                self._on_retry(attempt, e)
            self._sleep(wait)
            wait = min(wait * 2, _LONGEST_WAIT_SECONDS)

    def close(self) -> None:
        """Close the connection."""
        self._client.close()


def insert_statement(table: str, types: Mapping[str, str], *, plain: bool = False) -> str:
    """Return the INSERT whose rows, in RowBinary, hold values of `types` in their order.

    Rows are read as plain strings and made LowCardinality a block at a time: row by row, as a
    `plain` INSERT does it, that is half of what ClickHouse spends on a row. It takes the right
    CREATE TEMPORARY TABLE, as table functions do.

    An insert usually merges its own rows first, which is nearly half of its CPU. Tables where that
    finds nothing (`ONE_ROW_A_KEY`) do without; rows that do repeat wait for a merge, and FINAL
    shows one of them meanwhile.
    """
    names = ", ".join(f"`{name}`" for name in types)
    structure = ", ".join(f"`{name}` {kind}" for name, kind in types.items())
    source = "" if plain else f"SELECT {names} FROM input('{structure}') "  # noqa: S608 - our names
    settings = "SETTINGS optimize_on_insert = 0 " if table in ONE_ROW_A_KEY else ""
    return f"INSERT INTO `{table}` ({names}) {settings}{source}FORMAT RowBinary"


def _parameters(values: Mapping[str, object] | None) -> dict[str, str]:
    return {f"param_{name}": str(value) for name, value in (values or {}).items()}


def _exception_code(header: str | None) -> int:
    return int(header) if header is not None and header.isdigit() else 0
