"""A Prometheus endpoint of a command that watches; nothing of it outlives the process."""

from __future__ import annotations

import time
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Gauge, start_http_server

__all__ = ["MetricsEndpoint"]


class MetricsEndpoint:
    """Serves what subclasses put into `registry`, on loopback unless told otherwise."""

    def __init__(
        self,
        run_gauge: tuple[str, str],
        port: int,
        address: str,
        now: Callable[[], float] = time.time,
    ) -> None:
        """Start serving; port 0 takes a free one, see `port`.

        Args:
            run_gauge: name and meaning of the gauge that holds the time of the last run.
            port: to listen on.
            address: to listen on.
            now: seconds since the epoch.

        Raises:
            OSError: when the port is taken.
        """
        self.registry = CollectorRegistry()
        self._now = now
        self._run = Gauge(*run_gauge, registry=self.registry)
        self._server, self._thread = start_http_server(port, addr=address, registry=self.registry)
        self.port: int = self._server.server_port

    def ran(self) -> None:
        """Note that a run ended now."""
        self._run.set(self._now())

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(timeout=5)
