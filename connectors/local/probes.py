"""See whether a part answers, with nothing but sockets and HTTP."""

from __future__ import annotations

import http.client
import json
import socket
import struct
from typing import Final

from connectors.local.plan import Probe

__all__ = ["answers"]

_HOST: Final = "127.0.0.1"


def answers(probe: Probe, timeout_seconds: float = 2.0) -> str | None:
    """Return None when the part answers, else in a few words why not."""
    try:
        if probe.kind == "kafka":
            return _kafka(probe.port, timeout_seconds)
        if probe.kind == "redis":
            return _redis(probe.port, timeout_seconds)
        if probe.kind == "http":
            return _http(probe, timeout_seconds)
        if probe.kind == "taskmanager":
            return _task_manager(probe, timeout_seconds)
        socket.create_connection((_HOST, probe.port), timeout_seconds).close()
    except (OSError, http.client.HTTPException, ValueError) as e:
        return f"port {probe.port}: {e or type(e).__name__}"
    return None


def _kafka(port: int, timeout_seconds: float) -> str | None:
    # ApiVersions, version 0: the broker opens its listener to requests only once it is in service.
    client = b"riskstream-probe"
    body = struct.pack(">hhih", 18, 0, 1, len(client)) + client
    with socket.create_connection((_HOST, port), timeout_seconds) as connection:
        connection.sendall(struct.pack(">i", len(body)) + body)
        answer = _read(connection, 10)
    error = struct.unpack(">h", answer[8:10])[0]
    return None if error == 0 else f"ApiVersions answered error {error}"


def _redis(port: int, timeout_seconds: float) -> str | None:
    with socket.create_connection((_HOST, port), timeout_seconds) as connection:
        connection.sendall(b"PING\r\n")
        answer = _read(connection, 5)
    # A server that wants a password says so, and is up.
    return None if answer in (b"+PONG", b"-NOAU") else f"PING answered {answer!r}"


def _read(connection: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = connection.recv(count - len(data))
        if not more:
            msg = "closed the connection"
            raise OSError(msg)
        data += more
    return data


def _get(port: int, path: str, timeout_seconds: float) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(_HOST, port, timeout=timeout_seconds)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def _http(probe: Probe, timeout_seconds: float) -> str | None:
    status, _ = _get(probe.port, probe.path, timeout_seconds)
    return None if status == 200 else f"GET {probe.path} answered {status}"


def _task_manager(probe: Probe, timeout_seconds: float) -> str | None:
    status, body = _get(probe.port, "/taskmanagers", timeout_seconds)
    if status != 200:
        return f"the JobManager answered {status}"
    known = {manager["id"] for manager in json.loads(body)["taskmanagers"]}
    return None if probe.path in known else "not registered at the JobManager yet"
