"""Turn one HTTP request into a statement, and errors into ClickHouse's statuses. Pure functions."""

from __future__ import annotations

import gzip
import io
import re
import zlib
from collections.abc import Mapping
from typing import Final
from urllib.parse import parse_qsl

import lz4.frame  # type: ignore[import-untyped]
import zstandard

from connectors.local._clickhouse_engine import SESSION_TIMEOUT_SECONDS, EngineError, Statement

__all__ = ["compress", "decompress", "http_status", "parse_statement", "split_insert"]

_NOT_SETTINGS: Final = frozenset(
    {
        "query",
        "database",
        "default_format",
        "user",
        "password",
        "quota_key",
        "session_id",
        "session_timeout",
        "session_check",
        "query_id",
        "compress",
        "decompress",
        "role",
        "close_session",
        "stacktrace",
        "client_protocol_version",
        "buffer_size",
        # Settings of the HTTP interface itself; they change nothing about the statement.
        "wait_end_of_query",
        "enable_http_compression",
        "send_progress_in_http_headers",
        "http_headers_progress_interval_ms",
        "cancel_http_readonly_queries_on_client_close",
        "add_http_cors_header",
        "http_write_exception_in_output_format",
        "http_response_buffer_size",
    }
)

_TOKEN: Final = re.compile(
    r"""'(?:\\.|''|[^'\\])*'|"(?:\\.|""|[^"\\])*"|`(?:\\.|``|[^`\\])*`|--[^\n]*|/\*.*?\*/|\w+|\S""",
    re.DOTALL,
)
_TRAILING_FORMAT: Final = re.compile(
    r"\bFORMAT\s+([A-Za-z]\w*)(?:\s+SETTINGS\s[^;]*)?[\s;]*\Z", re.IGNORECASE
)
_FILE_CLAUSE: Final = re.compile(r"\b(?:OUTFILE|INFILE)\b", re.IGNORECASE)
_ENDS_DATA_SEARCH: Final = frozenset({"VALUES", "WATCH"})
_SELECTS: Final = frozenset({"SELECT", "WITH", "FROM"})

_STATUS: Final = {
    # As ClickHouse maps its codes: 400 for what the client wrote, 404 for what is not there.
    **dict.fromkeys((6, 26, 27, 33, 36, 38, 41, 42, 43, 44, 46, 47, 50, 53, 62), 400),
    **dict.fromkeys((69, 70, 72, 89, 117, 125, 271, 386, 456, 457), 400),
    **dict.fromkeys((60, 81, 115, 128, 130), 404),
    48: 501,
    413: 413,
    497: 403,
    516: 401,
}


def http_status(code: int) -> int:
    """Return the HTTP status that goes with a ClickHouse error code; 500 for the rest."""
    return _STATUS.get(code, 500)


def decompress(body: bytes, encoding: str, limit_bytes: int) -> bytes:
    """Undo a Content-Encoding (gzip, deflate, lz4 frame, zstd, identity).

    Raises:
        EngineError: when the encoding is unknown, the body broken, or larger than `limit_bytes`.
    """
    encoding = encoding.strip().lower()
    try:
        if encoding in ("", "identity"):
            plain = body
        elif encoding == "gzip":
            with gzip.GzipFile(fileobj=io.BytesIO(body)) as file:
                plain = file.read(limit_bytes + 1)
        elif encoding == "deflate":
            plain = zlib.decompressobj().decompress(body, limit_bytes + 1)
        elif encoding == "lz4":
            plain = lz4.frame.LZ4FrameDecompressor().decompress(body, limit_bytes + 1)
        elif encoding == "zstd":
            with zstandard.ZstdDecompressor().stream_reader(
                body, read_across_frames=True
            ) as reader:
                plain = reader.read(limit_bytes + 1)
        else:
            raise _refuse(89, f"Unknown compression method: {encoding!r}", "UNKNOWN_COMPRESSION")
    except (zlib.error, RuntimeError, zstandard.ZstdError, EOFError, OSError) as e:
        raise _refuse(271, f"Cannot decompress {encoding} body: {e}", "CANNOT_DECOMPRESS") from e
    if len(plain) > limit_bytes:
        raise _refuse(413, f"Request body is larger than {limit_bytes} bytes", "TOO_LARGE")
    return plain


def compress(data: bytes, accepted: str) -> tuple[bytes, str]:
    """Encode `data` with the first method in `accepted` that is known; return it and its name."""
    offered = [method.split(";")[0].strip().lower() for method in accepted.split(",")]
    if "lz4" in offered:
        return lz4.frame.compress(data), "lz4"
    if "zstd" in offered:
        return zstandard.ZstdCompressor(level=1).compress(data), "zstd"
    if "gzip" in offered:
        return gzip.compress(data, compresslevel=1), "gzip"
    if "deflate" in offered:
        return zlib.compress(data, 1), "deflate"
    return data, ""


def split_insert(sql: str) -> tuple[str, str, int] | None:
    """Find the FORMAT of an INSERT that takes rows from outside its text.

    Returns:
        The statement without FORMAT, the format's name and where the name ends; None when the
        statement is no INSERT or its rows are in it (VALUES, INFILE, SELECT but from `input`).
    """
    depth = 0
    selects = reads_input = False
    words: list[str] = []
    tokens = _TOKEN.finditer(sql)
    for token in tokens:
        text = token.group()
        if text.startswith(("--", "/*")):
            continue
        depth += (text == "(") - (text == ")")
        word = text.upper()
        if not words and word != "INSERT":
            return None
        reads_input |= text == "(" and words[-1] == "INPUT"
        words.append(word)
        if depth == 0 and word in _ENDS_DATA_SEARCH:
            return None
        selects |= depth == 0 and word in _SELECTS
        if depth == 0 and word == "FORMAT" and selects and not reads_input:
            return None
        if depth == 0 and word == "FORMAT" and len(words) > 2:
            name = next(tokens, None)
            if name is None or not name.group()[0].isalpha():
                return None
            if name.group().upper() == "VALUES":
                return None
            return sql[: token.start()].rstrip(), name.group(), name.end()
    return None


def parse_statement(
    query: str,
    headers: Mapping[str, str],
    body: bytes,
    *,
    read_only: bool,
) -> Statement:
    """Build the statement from the URL's query string, the headers and the decoded body.

    The text is the `query` parameter, the body, or both, one after the other. For an INSERT with a
    FORMAT what follows the format's name is rows.

    Raises:
        EngineError: for a missing statement or a broken parameter.
    """
    fields = dict(parse_qsl(query, keep_blank_values=True))
    text = fields.get("query", "").strip()
    data: bytes | None = None
    data_format = ""
    if text and (found := split_insert(text)) is not None:
        head, data_format, end = found
        inline = text[end:].strip(" \t;")
        text, data = head, inline.encode() + body
    else:
        try:
            text = f"{text}\n{body.decode()}" if text and body else text or body.decode()
        except UnicodeDecodeError as e:
            # Rows in binary after the statement: only its head is text.
            text, data, data_format = _split_binary(body, e)
        else:
            if (found := split_insert(text)) is not None and not fields.get("query"):
                text, data_format, end = found
                data = _after_head(body, end)
    if not text.strip():
        raise _refuse(62, "Syntax error: Empty query", "SYNTAX_ERROR")
    if _names_server_file(text):
        # In one process with the engine these would read and write files of whoever runs it.
        raise _refuse(497, "INTO OUTFILE and FROM INFILE are for local clients", "ACCESS_DENIED")
    return Statement(
        sql=text,
        output_format=_output_format(text, fields, headers),
        database=fields.get("database") or headers.get("X-ClickHouse-Database") or "default",
        settings=tuple(
            sorted(
                (name, value)
                for name, value in fields.items()
                if name not in _NOT_SETTINGS and not name.startswith("param_")
            )
        ),
        parameters={
            name.removeprefix("param_"): value
            for name, value in fields.items()
            if name.startswith("param_")
        },
        data=data,
        data_format=data_format,
        read_only=read_only,
        session_id=fields.get("session_id", ""),
        session_timeout_seconds=_seconds(fields.get("session_timeout")),
    )


def _names_server_file(text: str) -> bool:
    # Only a statement that holds the word at all is worth taking apart: rows may be long.
    if _FILE_CLAUSE.search(text) is None:
        return False
    return any(token.group().upper() in ("OUTFILE", "INFILE") for token in _TOKEN.finditer(text))


def _output_format(text: str, fields: Mapping[str, str], headers: Mapping[str, str]) -> str:
    # The engine obeys a FORMAT in the statement; the header of the answer must say the same.
    named = _TRAILING_FORMAT.search(text)
    if named is not None:
        return named[1]
    return fields.get("default_format") or headers.get("X-ClickHouse-Format") or "TabSeparated"


def _seconds(text: str | None) -> float:
    try:
        return min(3600.0, float(text)) if text else SESSION_TIMEOUT_SECONDS
    except ValueError as e:
        raise _refuse(36, f"Invalid session timeout: {text!r}", "BAD_ARGUMENTS") from e


def _split_binary(body: bytes, error: UnicodeDecodeError) -> tuple[str, bytes, str]:
    head = body[: error.start].decode()
    found = split_insert(head)
    if found is None:
        raise _refuse(62, "Syntax error: the statement is not UTF-8", "SYNTAX_ERROR") from error
    text, data_format, end = found
    return text, _after_head(body, len(head[:end].encode())), data_format


def _after_head(body: bytes, end: int) -> bytes:
    """Return the rows after the format's name, without the blanks and the one line end before."""
    rest = body[end:].lstrip(b" \t")
    if rest.startswith(b"\r\n"):
        return rest[2:]
    return rest[1:] if rest.startswith(b"\n") else rest


def _refuse(code: int, what: str, name: str) -> EngineError:
    return EngineError(code, f"Code: {code}. DB::Exception: {what}. ({name})")
