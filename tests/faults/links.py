"""Put links that can be cut between the job and Kafka, Redis and ClickHouse of a running stack."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections.abc import Iterator, Mapping
from typing import Final

from connectors.local.stack import LocalStack, resolved_settings
from connectors.settings import Settings
from tests.faults.link import Link

__all__ = ["linked"]

RESTART_SECONDS: Final = 120.0


@contextlib.contextmanager
def linked(base: Settings) -> Iterator[tuple[dict[str, Link], Mapping[str, str]]]:
    """Give each part's link by name, and the addresses behind the links as settings.

    A Kafka client goes to the address that the broker names, so the broker gets a second listener
    that names the link's port; it is restarted once for it.
    """
    settings, stack = resolved_settings(base), LocalStack(base)
    redis_url = settings.redis.url.get_secret_value() if settings.redis.url else ""
    listener = _free_port()
    targets = {
        "kafka": listener,
        "redis": _port(redis_url.removesuffix("/0")),
        "clickhouse": _port(settings.clickhouse.url or ""),
    }
    links = {part: Link(port) for part, port in targets.items()}
    try:
        _listen_twice(stack, listener, links["kafka"].port)
        yield (
            links,
            {
                "kafka.bootstrap_servers": f"127.0.0.1:{links['kafka'].port}",
                "redis.url": f"redis://127.0.0.1:{links['redis'].port}/0",
                "clickhouse.url": f"http://127.0.0.1:{links['clickhouse'].port}",
            },
        )
    finally:
        for link in links.values():
            link.close()


def _listen_twice(stack: LocalStack, port: int, named: int) -> None:
    file = stack.home / "kafka" / "server.properties"
    added = {
        "listeners": f"LINK://127.0.0.1:{port}",
        "advertised.listeners": f"LINK://127.0.0.1:{named}",
        "listener.security.protocol.map": "LINK:PLAINTEXT",
    }
    lines = []
    for line in file.read_text(encoding="utf-8").splitlines():
        more = added.get(line.partition("=")[0])
        lines.append(line if more is None else f"{line},{more}")
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    before = stack.pid_of("kafka")
    os.kill(before, signal.SIGTERM)
    deadline = time.monotonic() + RESTART_SECONDS
    while True:
        (kafka,) = [part for part in stack.status() if part.name == "kafka"]
        if kafka.state == "running" and kafka.pid != before:
            return
        if time.monotonic() > deadline:
            msg = f"restarting Kafka with a second listener: it is {kafka.state} ({kafka.why})"
            raise TimeoutError(msg)
        time.sleep(0.2)


def _port(url: str) -> int:
    return int(url.rpartition(":")[2].rstrip("/"))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
