"""`riskstream top`: throughput, latency and decisions, live."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Final

import click
from rich.console import Console
from rich.live import Live
from rich.table import Table

from connectors.activity import Activity, LagMeter, Latency, recent_rows
from connectors.clickhouse import ClickHouseClient
from connectors.kafka import end_offsets
from connectors.local.stack import resolved_settings
from connectors.readers import Record, TopicReader
from connectors.settings import Settings
from jobs.cli.context import settings_of
from schemas.avro import RecordDecoder
from schemas.reasons import AvroRecordError
from schemas.registry import open_registry

__all__ = ["top"]

_REFRESH_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True)
class _Snapshot:
    window_seconds: float
    activity: Activity
    alerts: int
    publish_to_alert: Latency
    dead_letters: int
    dead_letters_in_window: int
    lag: int

    def as_dict(self) -> dict[str, Any]:
        activity = asdict(self.activity)
        return {
            "window_seconds": self.window_seconds,
            "events_per_second": round(activity["rows_per_second"], 1),
            "decisions": activity["decisions"],
            "latency_ms": {
                "publish_to_decision": activity["publish_to_decision"],
                "publish_to_alert": asdict(self.publish_to_alert),
                "publish_to_row": activity["publish_to_row"],
            },
            "alerts": self.alerts,
            "dead_letters": self.dead_letters,
            "dead_letters_in_window": self.dead_letters_in_window,
            "lag": self.lag,
        }


class _Watch:
    def __init__(self, settings: Settings, window_seconds: float) -> None:
        topics = settings.kafka.topics
        self._settings = settings
        self._window = window_seconds
        self._client = ClickHouseClient(settings.clickhouse)
        self._lag = LagMeter(self._client, settings.kafka, topics.name("transactions"))
        self._decoder = RecordDecoder(open_registry(settings.schemas))
        self._alerts = TopicReader(settings.kafka, topics.name("alerts"))
        self._alerts.start()
        self._seen: deque[tuple[float, float | None]] = deque()
        self._dead: deque[tuple[float, int]] = deque()

    def listen(self, seconds: float) -> None:
        """Take alerts as they come; each is timed when it arrives here."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            record = self._alerts.poll(min(left, 0.1))
            if record is not None:
                self._seen.append((time.monotonic(), self._latency_ms(record, time.time() * 1000)))

    def snapshot(self) -> _Snapshot:
        now = time.monotonic()
        topic = self._settings.kafka.topics.name("dead_letters")
        self._dead.append((now, sum(end_offsets(self._settings.kafka, topic).values())))
        while self._seen and self._seen[0][0] < now - self._window:
            self._seen.popleft()
        while len(self._dead) > 1 and self._dead[1][0] < now - self._window:
            self._dead.popleft()
        latencies = [latency for _, latency in self._seen if latency is not None]
        return _Snapshot(
            window_seconds=self._window,
            activity=recent_rows(self._client, self._window),
            alerts=len(self._seen),
            publish_to_alert=Latency.of(latencies),
            dead_letters=self._dead[-1][1],
            dead_letters_in_window=self._dead[-1][1] - self._dead[0][1],
            lag=self._lag.read(self._window),
        )

    def close(self) -> None:
        self._alerts.close()
        self._client.close()

    def _latency_ms(self, record: Record, now_ms: float) -> float | None:
        try:
            return now_ms - float(self._decoder.decode(record.value)["published_at_ms"])
        except AvroRecordError:
            return None


@click.command()
@click.option("--window", type=click.FloatRange(min=1), default=10.0, show_default=True,
              help="Seconds that the figures are about.")  # fmt: skip
@click.option("--once", is_flag=True, help="Watch for one window, print the figures and end.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a refresh.")
@click.pass_context
def top(ctx: click.Context, window: float, once: bool, as_json: bool) -> None:
    """Show throughput, latency percentiles, decisions, dead letters and lag, live.

    Latencies are from an event's publishing to its decision, to its alert arriving here, and to its
    row in ClickHouse. Ctrl-C ends it.

    Example: riskstream top --once --json
    """
    watch = _Watch(resolved_settings(settings_of(ctx)), window)
    try:
        if once:
            watch.snapshot()
            watch.listen(window)
            _print(watch.snapshot(), as_json=as_json)
        elif as_json:
            _repeat(watch, lambda snapshot: _print(snapshot, as_json=True))
        else:
            with Live(console=Console(), auto_refresh=False, screen=False) as live:
                _repeat(watch, lambda snapshot: live.update(_table(snapshot), refresh=True))
    except KeyboardInterrupt:
        return
    finally:
        watch.close()


def _repeat(watch: _Watch, show: Callable[[_Snapshot], None]) -> None:
    while True:
        show(watch.snapshot())
        watch.listen(_REFRESH_SECONDS)


def _print(snapshot: _Snapshot, *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(snapshot.as_dict()))
    else:
        Console().print(_table(snapshot))


def _table(snapshot: _Snapshot) -> Table:
    activity = snapshot.activity
    table = Table(title=f"last {snapshot.window_seconds:g} s")
    for column in ("", "count", "p50 ms", "p95 ms", "p99 ms", "max ms"):
        table.add_column(column, justify="left" if not column else "right")
    for title, latency in (
        ("publish to decision", activity.publish_to_decision),
        ("publish to alert here", snapshot.publish_to_alert),
        ("publish to ClickHouse row", activity.publish_to_row),
    ):
        figures = (latency.p50, latency.p95, latency.p99, latency.max)
        shown = ["-" if figure is None else f"{figure:,.0f}" for figure in figures]
        table.add_row(title, f"{latency.count:,}", *shown)
    table.add_section()
    table.add_row("events per second", f"{activity.rows_per_second:,.0f}")
    for name, count in activity.decisions.items():
        table.add_row(name, f"{count:,}")
    table.add_row("alerts", f"{snapshot.alerts:,}")
    table.add_row("dead letters (in all)", f"{snapshot.dead_letters:,}")
    table.add_row("lag", f"{snapshot.lag:,}")
    return table
