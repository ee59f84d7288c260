"""`riskstream risk simulate|replay|reference|acknowledge`: feed the market risk job."""

from __future__ import annotations

import datetime as dt
import itertools
import json
from dataclasses import replace
from pathlib import Path

import click
import numpy as np

from connectors.evidence import ranges_of, read_range
from connectors.kafka import ensure_topics, librdkafka_config
from connectors.local.stack import resolved_settings
from connectors.producers.publisher import KafkaPublisher
from connectors.settings import Settings
from jobs.cli.context import settings_of
from jobs.market_risk.feed import CONTRACTS, MarketFeed, recorded_market
from jobs.market_risk.parts import REFERENCE_TOPICS, STREAM_TOPICS
from jobs.market_risk.reference_files import newest_limit, reference_records
from jobs.market_risk.simulator import DeskConfig, MarketSimulator
from schemas.avro import RecordDecoder
from schemas.columns import NumberColumn
from schemas.contract import contract
from schemas.registry import open_registry

__all__ = ["acknowledge", "reference", "replay", "simulate"]

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command()
@click.option("--seed", type=int, default=1, show_default=True)
@click.option("--instruments", type=click.IntRange(1), default=20, show_default=True)
@click.option("--accounts", type=click.IntRange(1), default=8, show_default=True)
@click.option("--seconds", type=click.IntRange(1), default=60, show_default=True,
              help="Simulated time, in events' time.")  # fmt: skip
@click.option("--start", type=click.DateTime(), metavar="TIME",
              help="First event time, UTC: 2020-01-01 by default. After another market give a time "
              "later than its end; ids are then new ones.")  # fmt: skip
@click.option("--speed", type=float, help="Multiple of real time; flat out without it.")
@click.option("--history", type=click.IntRange(0), default=250, show_default=True,
              help="Historical scenarios, for VaR.")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Count what would be published, publish nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
@click.pass_context
def simulate(
    ctx: click.Context,
    seed: int,
    instruments: int,
    accounts: int,
    seconds: int,
    start: dt.datetime | None,
    speed: float | None,
    history: int,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Publish a seeded market and a trading desk: quotes, trades, fills and reference records.

    The same seed and start give the same stream, ids included.

    Example: riskstream risk simulate --seed 7 --seconds 600 --speed 1
    """
    desk = DeskConfig(instruments=instruments, accounts=accounts)
    if start is not None:
        start_ms = round(start.replace(tzinfo=dt.UTC).timestamp() * 1000)
        # Fills of the market before must not be taken for these ones.
        desk = replace(desk, start_ms=start_ms, prefix=f"s{start_ms}-")
    simulator = MarketSimulator(seed, desk)
    counts = dict.fromkeys(CONTRACTS, 0)
    feed = None if dry_run else _feed(resolved_settings(settings_of(ctx)))
    for topic, records in simulator.reference(history).items():
        counts[topic] += len(records) if feed is None else feed.publish_records(topic, records)
    if feed is not None:
        feed.flush()
    pacer = _Pacer(speed)
    end_ms = simulator.config.start_ms + seconds * 1000
    for batch in simulator.batches():
        first = batch.quotes["event_time_ms"]
        if not isinstance(first, NumberColumn) or int(first.values[0]) > end_ms:
            break
        pacer.wait(int(first.values[0]))
        for topic, columns in (
            ("quotes", batch.quotes),
            ("ticks", batch.ticks),
            ("fills", batch.fills),
        ):
            counts[topic] += (
                len(columns["event_time_ms"]) if feed is None else feed.publish(topic, columns)
            )
    if feed is not None:
        feed.flush()
    _summary(counts, as_json, dry_run=dry_run)


@click.command()
@click.argument("files", nargs=-1, required=True, type=_FILE)
@click.option("--instrument", help="Name of the instrument of files that have no column for it.")
@click.option("--speed", type=float, help="Multiple of real time; flat out without it.")
@click.option("--time-zone", default="UTC", show_default=True, help="Of times without an offset.")
@click.option("--dry-run", is_flag=True, help="Count what would be published, publish nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
@click.pass_context
def replay(
    ctx: click.Context,
    files: tuple[Path, ...],
    instrument: str | None,
    speed: float | None,
    time_zone: str,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Publish recorded trades, quotes or fills from CSV or Parquet FILES, one file after another.

    Files with a fill_id are fills, with bid and ask quotes, others trades; trades without a price
    are left out.

    Example: riskstream risk replay trades.csv.gz --instrument XRPETH
    """
    counts = dict.fromkeys(CONTRACTS, 0)
    feed = None if dry_run else _feed(resolved_settings(settings_of(ctx)))
    for path in files:
        pacer = _Pacer(speed)
        for topic, columns in recorded_market(
            path, instrument or path.name.split(".")[0], time_zone
        ):
            times = columns["event_time_ms"]
            if isinstance(times, NumberColumn) and len(times):
                pacer.wait(int(times.values.astype(np.int64).min()))
            counts[topic] += len(times) if feed is None else feed.publish(topic, columns)
    if feed is not None:
        feed.flush()
    _summary(counts, as_json, dry_run=dry_run)


@click.command()
@click.argument("kind", type=click.Choice(sorted(REFERENCE_TOPICS)))
@click.argument("file", type=_FILE)
@click.option("--dry-run", is_flag=True, help="Count what would be published, publish nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
@click.pass_context
def reference(ctx: click.Context, kind: str, file: Path, dry_run: bool, as_json: bool) -> None:
    """Publish instruments, limits, scenarios or FX rates from a JSON FILE.

    The file is a list of objects, or one object a line, with the fields of the contract. A limit
    replaces one of the same id if its revision is greater.

    Example: riskstream risk reference limits limits.json
    """
    records = reference_records(file, kind)
    counts = {kind: len(records)}
    if not dry_run:
        feed = _feed(resolved_settings(settings_of(ctx)))
        feed.publish_records(kind, records)
        feed.flush()
    _summary(counts, as_json, dry_run=dry_run)


@click.command()
@click.argument("limit_id")
@click.option("--by", required=True, metavar="NAME", help="Who has seen the breach.")
@click.option("--firm", help="Needed where several firms have a limit of this id.")
@click.option("--json", "as_json", is_flag=True, help="Print the limit as JSON.")
@click.pass_context
def acknowledge(
    ctx: click.Context, limit_id: str, by: str, firm: str | None, as_json: bool
) -> None:
    """Say that somebody has seen the breach of a limit: it alerts no more until it is within.

    The limit in force is published again with the next revision.

    Example: riskstream risk acknowledge firm-firm-var --by ann
    """
    settings = resolved_settings(settings_of(ctx))
    decoder = RecordDecoder(open_registry(settings.schemas), contract("limit"))
    topic = settings.kafka.topics.name("limits")
    messages = read_range(settings.kafka, ranges_of(settings.kafka, topic))
    known = [decoder.decode(message.value() or b"") for message in messages]
    limit = dict(newest_limit(known, limit_id, firm))
    limit |= {"revision": limit["revision"] + 1, "acknowledged_by": by}
    feed = _feed(settings)
    feed.publish_records("limits", [limit])
    feed.flush()
    if as_json:
        click.echo(json.dumps(limit))
    else:
        click.echo(f"{limit_id} is acknowledged by {by}, revision {limit['revision']}")


class _Pacer:
    """Waits until an event is due, at a multiple of real time."""

    def __init__(self, speed: float | None) -> None:
        from connectors.producers.pace import SystemClock

        self._speed = speed
        self._clock = SystemClock()
        self._began: tuple[float, int] | None = None

    def wait(self, event_time_ms: int) -> None:
        """Return when the event is due; at once without a speed."""
        if self._speed is None:
            return
        now = self._clock.monotonic()
        if self._began is None:
            self._began = (now, event_time_ms)
        due = self._began[0] + (event_time_ms - self._began[1]) / 1000 / self._speed
        if due > now:
            self._clock.sleep(due - now)


def _feed(settings: Settings) -> MarketFeed:
    topics = settings.kafka.topics
    ensure_topics(settings.kafka, [topics.name(field) for field in STREAM_TOPICS])
    ensure_topics(settings.kafka, [topics.name(field) for field in REFERENCE_TOPICS], partitions=1)
    return MarketFeed(settings, KafkaPublisher(librdkafka_config(settings.kafka)))


def _summary(counts: dict[str, int], as_json: bool, *, dry_run: bool) -> None:
    published = {topic: count for topic, count in counts.items() if count}
    if as_json:
        click.echo(json.dumps({"published": published, "dry_run": dry_run}))
        return
    verb = "would publish" if dry_run else "published"
    text = ", ".join(f"{count} {topic}" for topic, count in itertools.islice(published.items(), 9))
    click.echo(f"{verb} {text or 'nothing'}")
