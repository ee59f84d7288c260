"""Serve the running account of `riskstream audit --watch` to Prometheus.

===========================================  =====================================================
metric                                       meaning
===========================================  =====================================================
riskstream_audit_offsets                     by topic, partition and `account`: offsets_in, scored,
                                             dead_lettered, control, missing, doubled
riskstream_audit_alerts                      by `account`: expected, found, wrong, superseded
riskstream_audit_redelivered                 sent again under one id; by `what`: alerts,
                                             dead_letters
riskstream_audit_unexpected_offsets          rows or letters of offsets that Kafka does not hold
riskstream_audit_clean                       1 when all is accounted for exactly once, else 0
riskstream_audit_last_run_timestamp_seconds  when the last account was made
===========================================  =====================================================

All are gauges: each account is made anew from Kafka and ClickHouse, never added up.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from prometheus_client import Gauge

from connectors.account_history import TOTALS
from connectors.metrics_endpoint import MetricsEndpoint

if TYPE_CHECKING:
    from jobs.audit import Audit

__all__ = ["AuditMetrics"]


class AuditMetrics(MetricsEndpoint):
    """The endpoint with the last verdict.

    Before the first `publish` no `riskstream_audit_clean` is served: no verdict is not a clean one.
    """

    def __init__(
        self, port: int, address: str = "127.0.0.1", now: Callable[[], float] = time.time
    ) -> None:
        """Start serving; port 0 takes a free one, see `port`.

        Raises:
            OSError: when the port is taken.
        """
        super().__init__(
            ("riskstream_audit_last_run_timestamp_seconds", "When the last account was made."),
            port,
            address,
            now,
        )
        registry = self.registry
        self._offsets = Gauge(
            "riskstream_audit_offsets",
            "Offsets of a partition by what became of them.",
            ["topic", "partition", "account"],
            registry=registry,
        )
        self._alerts = Gauge(
            "riskstream_audit_alerts", "Alerts by account.", ["account"], registry=registry
        )
        self._redelivered = Gauge(
            "riskstream_audit_redelivered",
            "Records that were delivered more than once under one id.",
            ["what"],
            registry=registry,
        )
        self._unexpected = Gauge(
            "riskstream_audit_unexpected_offsets",
            "Rows or dead letters of offsets that Kafka does not hold.",
            registry=registry,
        )
        # A label-less gauge would be served as 0 before the first account; this one is not.
        self._verdict = Gauge(
            "riskstream_audit_clean",
            "1 when every offset and alert is accounted for exactly once.",
            ["job"],
            registry=registry,
        )

    def publish(self, audit: Audit) -> None:
        """Replace the served account by this one."""
        self._offsets.clear()
        for partition in audit.partitions:
            for account in TOTALS:
                self._offsets.labels(partition.topic, str(partition.partition), account).set(
                    getattr(partition, account)
                )
        self._alerts.labels("expected").set(audit.alerts_expected)
        self._alerts.labels("found").set(audit.alerts_found)
        self._alerts.labels("wrong").set(audit.alerts_wrong)
        self._alerts.labels("superseded").set(audit.superseded_alerts)
        self._redelivered.labels("alerts").set(audit.redelivered_alerts)
        self._redelivered.labels("dead_letters").set(audit.redelivered_dead_letters)
        self._unexpected.set(audit.unexpected)
        self._verdict.labels("fraud").set(int(audit.clean))
        self.ran()
