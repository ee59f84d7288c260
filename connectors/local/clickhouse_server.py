"""Serve chDB, ClickHouse's engine in this process, through ClickHouse's HTTP interface.

Run as ``python -m connectors.local.clickhouse_server --path DIR --port 8123``. clickhouse-connect,
curl and browsers use it unchanged: GET and POST with the statement in `query`, in the body or in
both, `database`, `session_id`, `default_format`, `param_*`, settings in the URL, any FORMAT in and
out, gzip, deflate, lz4 and zstd, basic authentication, bearer token or X-ClickHouse-User/Key.

What it is not: a cluster, grants and roles (a user reads and writes, or only reads), streaming
of results (each is built in memory first), progress headers, external tables, block compression
(`compress=1`).
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import signal
import socket
import ssl
import sys
import threading
import uuid
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Final
from urllib.parse import parse_qs, urlsplit

import click

from connectors.local._clickhouse_engine import Answer, Engine, EngineError
from connectors.local._clickhouse_request import (
    compress,
    decompress,
    http_status,
    parse_statement,
)
from connectors.local.clickhouse_users import User, Users
from schemas.errors import ConfigurationError, RiskstreamError

__all__ = ["ClickHouseServer", "main"]

MAX_BODY_BYTES: Final = 512 * 1024 * 1024
"""Largest request body, before and after decompression: it is held in memory until inserted."""

IDLE_SECONDS: Final = 300.0
"""An idle kept-alive connection is closed after this long, and with it its thread."""

_LOOPBACK: Final = frozenset({"127.0.0.1", "localhost", "::1"})


class ClickHouseServer(ThreadingHTTPServer):
    """The HTTP server: one thread a connection, connections kept alive.

    Args:
        engine: runs the statements; not closed by the server.
        users: who may connect.
        host: address to bind. Anything but loopback needs users that all have passwords.
        port: 0 for any free one; see `port`.
        tls: serve HTTPS with this context.

    Raises:
        ConfigurationError: when bound off loopback while somebody could connect without a secret.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(
        self,
        engine: Engine,
        users: Users,
        host: str = "127.0.0.1",
        port: int = 0,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        if host not in _LOOPBACK and not users.all_have_passwords:
            msg = (
                f"serving ClickHouse on {host!r}: anybody could read and write it; give --token or "
                "--users, or bind to 127.0.0.1"
            )
            raise ConfigurationError(msg)
        self.engine = engine
        self.users = users
        self.loopback = host in _LOOPBACK
        self._tls = tls
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), _Handler)

    @property
    def port(self) -> int:
        """Return the port the server listens on."""
        return int(self.server_address[1])

    def get_request(self) -> tuple[socket.socket, object]:
        """Accept a connection; the TLS handshake happens in the connection's own thread."""
        connection, address = super().get_request()
        if self._tls is not None:
            connection = self._tls.wrap_socket(
                connection, server_side=True, do_handshake_on_connect=False
            )
        return connection, address

    def handle_error(self, request: object, client_address: object) -> None:
        """Stay silent about clients that went away or speak no TLS; report anything else."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError | ValueError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


class _Handler(BaseHTTPRequestHandler):
    server: ClickHouseServer
    protocol_version = "HTTP/1.1"
    timeout = IDLE_SECONDS
    disable_nagle_algorithm = True
    # Header and body leave in one packet.
    wbufsize = -1

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        if url.path == "/ping" or (url.path == "/" and "query=" not in url.query):
            self._send(HTTPStatus.OK, b"Ok.\n")
        else:
            self._answer(url.path, url.query, body=b"")

    do_HEAD = do_GET

    def do_POST(self) -> None:
        url = urlsplit(self.path)
        try:
            body = self._body()
        except EngineError as e:
            # What is left of the body is unread: the connection cannot be used again.
            self.close_connection = True
            self._send_error(e)
            return
        self._answer(url.path, url.query, body)

    def do_OPTIONS(self) -> None:
        self._send(HTTPStatus.NO_CONTENT, b"")

    def log_message(self, format: str, *args: object) -> None:
        return

    def _answer(self, path: str, query: str, body: bytes) -> None:
        try:
            if path not in ("/", ""):
                self._send(HTTPStatus.NOT_FOUND, f"There is no handle {path}\n".encode())
                return
            user = self._user(query)
            # A GET may come from any link or image on any page: like ClickHouse, it only reads.
            read_only = user.read_only or self.command in ("GET", "HEAD")
            statement = parse_statement(
                query, dict(self.headers.items()), body, read_only=read_only
            )
            answer = self.server.engine.run(statement)
        except EngineError as e:
            self._send_error(e)
            return
        self._send_answer(answer, query, statement.output_format)

    def _body(self) -> bytes:
        if "chunked" in (self.headers.get("Transfer-Encoding") or "").lower():
            raw = self._chunks()
        else:
            length = int(self.headers.get("Content-Length") or 0)
            _check_size(length)
            raw = self.rfile.read(length)
            if len(raw) != length:
                msg = "the client went away in the middle of its request"
                raise ConnectionAbortedError(msg)
        return decompress(raw, self.headers.get("Content-Encoding") or "", MAX_BODY_BYTES)

    def _chunks(self) -> bytes:
        chunks = bytearray()
        while True:
            size = int(self.rfile.readline(1024).split(b";")[0], 16)
            _check_size(len(chunks) + size)
            if size == 0:
                while self.rfile.readline(65536) not in (b"\r\n", b"\n", b""):
                    pass
                return bytes(chunks)
            data = self.rfile.read(size)
            if len(data) != size or self.rfile.readline(1024) not in (b"\r\n", b"\n"):
                # An insert whose last chunk never came must store nothing.
                msg = "the client went away in the middle of its request"
                raise ConnectionAbortedError(msg)
            chunks += data

    def _user(self, query: str) -> User:
        if self.server.loopback and not self._from_here():
            msg = "Requests from other sites are not answered"
            raise _refuse_user(msg)
        fields = parse_qs(query, keep_blank_values=True)
        name = self.headers.get("X-ClickHouse-User") or fields.get("user", [""])[0]
        password = self.headers.get("X-ClickHouse-Key") or fields.get("password", [""])[0]
        kind, _, secret = (self.headers.get("Authorization") or "").partition(" ")
        if kind.lower() == "bearer":
            password = secret.strip()
        elif kind.lower() == "basic":
            try:
                name, _, password = base64.b64decode(secret).decode().partition(":")
            except (binascii.Error, UnicodeDecodeError) as e:
                msg = "Invalid HTTP Basic Authentication"
                raise _refuse_user(msg) from e
        user = self.server.users.check(name or "default", password)
        if user is None:
            msg = (
                f"{name or 'default'}: Authentication failed: password is incorrect, or there is "
                "no user with such name"
            )
            raise _refuse_user(msg)
        return user

    def _from_here(self) -> bool:
        """Refuse a foreign page's script (Origin) and a name rebound to loopback (Host)."""
        origin = self.headers.get("Origin")
        if origin not in (None, "null") and urlsplit(origin).hostname not in _LOOPBACK:
            return False
        host = urlsplit(f"//{self.headers.get('Host') or 'localhost'}").hostname
        return host in _LOOPBACK

    def _send_answer(self, answer: Answer, query: str, output_format: str) -> None:
        fields = parse_qs(query)
        data, encoding = answer.data, ""
        if fields.get("enable_http_compression", ["0"])[0] == "1" and data:
            data, encoding = compress(data, self.headers.get("Accept-Encoding") or "")
        summary = {
            "read_rows": answer.read_rows,
            "read_bytes": answer.read_bytes,
            "written_rows": answer.written_rows,
            "written_bytes": answer.written_bytes,
            "total_rows_to_read": answer.read_rows,
            "result_rows": answer.written_rows,
            "result_bytes": len(answer.data),
            "elapsed_ns": answer.elapsed_ns,
        }
        headers = {
            "X-ClickHouse-Summary": json.dumps({key: str(value) for key, value in summary.items()}),
            "X-ClickHouse-Query-Id": fields.get("query_id", [str(uuid.uuid4())])[0],
            "X-ClickHouse-Format": output_format,
            "X-ClickHouse-Timezone": self.server.engine.timezone,
        }
        if encoding:
            headers["Content-Encoding"] = encoding
        self._send(HTTPStatus.OK, data, headers, _content_type(output_format))

    def _send_error(self, error: EngineError) -> None:
        version = self.server.engine.version
        text = error.message.removesuffix("\n")
        if "(version " not in text:
            text = f"{text} (version {version})"
        headers = {"X-ClickHouse-Exception-Code": str(error.code)}
        if error.code == 516:
            headers["WWW-Authenticate"] = 'Basic realm="ClickHouse server HTTP API"'
        self._send(HTTPStatus(http_status(error.code)), f"{text}\n".encode(), headers)

    def _send(
        self,
        status: HTTPStatus,
        body: bytes,
        headers: dict[str, str] | None = None,
        content_type: str = "text/plain; charset=UTF-8",
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-ClickHouse-Server-Display-Name", "riskstream")
        origin = self.headers.get("Origin")
        if origin is not None and self._from_here():
            self.send_header("Access-Control-Allow-Origin", origin)
            self.send_header("Access-Control-Allow-Headers", "*, Authorization")
            self.send_header("Access-Control-Allow-Methods", "GET, POST, OPTIONS")
            self.send_header("Vary", "Origin")
        for name, value in (headers or {}).items():
            # A header value from the URL (the query id) must not start a header of its own.
            self.send_header(name, value.replace("\r", " ").replace("\n", " "))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _content_type(output_format: str) -> str:
    if output_format.startswith("JSON"):
        lines = output_format.startswith("JSONEachRow") or "CompactEachRow" in output_format
        return "application/x-ndjson" if lines else "application/json; charset=UTF-8"
    if output_format.startswith("CSV"):
        return "text/csv; charset=UTF-8"
    if output_format.startswith(("TabSeparated", "TSV")):
        return "text/tab-separated-values; charset=UTF-8"
    return "application/octet-stream" if _binary(output_format) else "text/plain; charset=UTF-8"


def _binary(output_format: str) -> bool:
    return output_format.startswith(("Native", "RowBinary", "Arrow", "Parquet", "ORC", "Avro"))


def _check_size(size: int) -> None:
    if not 0 <= size <= MAX_BODY_BYTES:
        msg = f"Code: 413. DB::Exception: Request body is larger than {MAX_BODY_BYTES} bytes."
        raise EngineError(413, msg)


def _refuse_user(what: str) -> EngineError:
    return EngineError(516, f"Code: 516. DB::Exception: {what}. (AUTHENTICATION_FAILED)")


def _tls(certificate: Path | None, key: Path | None) -> ssl.SSLContext | None:
    if certificate is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(certificate, key)
    return context


@click.command()
@click.option("--path", type=click.Path(path_type=Path), required=True, help="Data directory.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to bind.")
@click.option("--port", default=8123, show_default=True, help="Port; 0 finds a free one.")
@click.option("--users", type=click.Path(path_type=Path, exists=True), help="Users file (JSON).")
@click.option(
    "--token",
    envvar="RISKSTREAM_CLICKHOUSE_TOKEN",
    help="Password of user default; needed off loopback. Better in RISKSTREAM_CLICKHOUSE_TOKEN.",
)
@click.option("--certificate", type=click.Path(path_type=Path, exists=True), help="PEM file.")
@click.option("--key", type=click.Path(path_type=Path, exists=True), help="PEM of its key.")
def main(
    path: Path,
    host: str,
    port: int,
    users: Path | None,
    token: str | None,
    certificate: Path | None,
    key: Path | None,
) -> None:
    """Serve chDB through ClickHouse's HTTP interface until SIGTERM.

    Example: python -m connectors.local.clickhouse_server --path .riskstream/clickhouse --port 8123
    """
    try:
        known = Users.from_file(users) if users else Users.only_default(token or "")
        engine = Engine(path)
        server = ClickHouseServer(engine, known, host, port, _tls(certificate, key))
    except RiskstreamError as e:
        raise click.ClickException(str(e)) from e

    def stop(*_: object) -> None:
        # `shutdown` waits for the loop, which runs in this very thread.
        threading.Thread(target=server.shutdown, daemon=True).start()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    click.echo(f"ClickHouse {engine.version} (chDB) on {host}:{server.port}, pid {os.getpid()}")
    server.serve_forever(poll_interval=0.2)
    server.server_close()
    engine.close()


if __name__ == "__main__":
    main()
