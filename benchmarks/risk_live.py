"""How long after its publication a tick shows on the traders' page, measured in one piece.

The whole local stack with the market risk job, the dashboards, headless Chromium on the traders'
page, and a seeded market at the speed of its own clock behind it. A probe instrument is quoted at
random moments, about `PROBES_A_SECOND` times a second; each quote is a cent above the one before,
and a large position in it makes it the first row of the positions table. A clock in the page looks
at that row every 10 ms. Latency is from just before the quote was handed to the publisher until the
page showed a value that includes it, and, of the same quotes, until ClickHouse had a row of the
position that does.
"""

from __future__ import annotations

import random
import shutil
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import click
import numpy as np

from benchmarks.risk_page import CELLS, FLAGS, chromium, started, stopped
from connectors.clickhouse import ClickHouseClient
from connectors.kafka import librdkafka_config
from connectors.local.stack import LocalStack, resolved_settings
from connectors.producers.publisher import KafkaPublisher
from connectors.settings import Settings, load_settings
from jobs.market_risk.feed import MarketFeed
from jobs.market_risk.recording import market_slices
from jobs.market_risk.reference import Instrument
from jobs.market_risk.simulator import DeskConfig, MarketSimulator
from jobs.submission import submit_job
from schemas.columns import Column, NumberColumn, StringColumn

__all__ = ["measure_live"]

SECONDS: Final = 60
PROBES_A_SECOND: Final = 4
WARM_UP_SECONDS: Final = 15
# The market goes on after the last quote that counts: a change of a cent is shown with the next
# evaluation, and without a market there is none.
REST_SECONDS: Final = 3
_PROBE: Final = "PROBE"
_UNITS: Final = 1_000_000
_FIRST_CENTS: Final = 100_000

# The greatest value in the table is the probe's: units times the cents of its newest mark.
_WATCH: Final = (
    "([units, first]) => { window.seen = {};"
    + CELLS
    + """
  setInterval(() => {
    let most = 0;
    for (const text of cells(document.querySelector("#panel-trader_positions"), [])) {
      const value = Number(text.replaceAll(",", ""));
      if (value > most) most = value;
    }
    const number = Math.round(most / units * 100) - first;
    if (number >= 0 && !(number in window.seen)) window.seen[number] = Date.now();
  }, 10);
}
"""
)


def measure_live(overrides: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return latencies in milliseconds and what the machine was given to do.

    Args:
        overrides: settings, as in ``market_risk.live=false``.

    Raises:
        RuntimeError: when there is no Chromium.
    """
    browser = chromium()
    home = Path(tempfile.mkdtemp(prefix="riskstream-live-"))
    chosen = load_settings(None, {"RISKSTREAM_HOME": str(home)}, list(overrides))
    stack = LocalStack(chosen)
    try:
        _say("starting the stack")
        stack.up(lambda part: None)
        settings = resolved_settings(chosen)
        _say("submitting the job")
        submit_job("market_risk", settings)
        options = [option for one in overrides for option in ("--set", one)]
        addresses = [
            f"clickhouse.url={settings.clickhouse.url}",
            f"kafka.bootstrap_servers={settings.kafka.bootstrap_servers}",
        ]
        options += [option for one in addresses for option in ("--set", one)]
        pages, address = started("jobs.cli.main", *options, "dashboard", "--port", "0", "--json")
        try:
            return _measured(settings, browser, address)
        finally:
            stopped(pages)
    finally:
        stack.down()
        shutil.rmtree(home, ignore_errors=True)


def _measured(settings: Settings, browser: str, address: str) -> dict[str, Any]:
    from playwright.sync_api import sync_playwright  # noqa: PLC0415 - a test library

    market = _Market(settings)
    client = ClickHouseClient(settings.clickhouse)
    try:
        _say("opening the probe's position")
        market.begin()
        _until_held(client)
        _say("opening the page")
        with sync_playwright() as playwright:
            chrome = playwright.chromium.launch(executable_path=browser, args=list(FLAGS))
            page = chrome.new_page(viewport={"width": 1440, "height": 900})
            page.goto(f"{address}traders")
            page.wait_for_selector("html[data-ready=yes]", timeout=120_000)
            page.evaluate(_WATCH, [_UNITS, _FIRST_CENTS])
            page.wait_for_function("() => 0 in window.seen", timeout=120_000)
            _say("sending the market")
            sent, rows = market.run(client)
            _say("waiting for the last quote")
            page.wait_for_function(
                "last => Object.keys(window.seen).some(number => number >= last)",
                arg=max(sent),
                timeout=60_000,
            )
            seen = {int(number): at for number, at in page.evaluate("() => window.seen").items()}
            chrome.close()
    finally:
        market.close()
    counted = {number: at for number, at in sent.items() if at >= market.counts_from_ms}
    return {
        "quotes_of_the_probe": len(counted),
        "events_a_second": round(market.published / SECONDS),
        "live": settings.market_risk.live,
        "tick_to_page_ms": _quantiles(_waits(counted, seen)),
        "tick_to_row_ms": _quantiles(_waits(counted, rows)),
    }


class _Market:
    """Publishes the market and the probe, and notes when each quote of the probe left."""

    def __init__(self, settings: Settings) -> None:
        self._publisher = KafkaPublisher(librdkafka_config(settings.kafka))
        self._feed = MarketFeed(settings, self._publisher)
        self._simulator = MarketSimulator(1, DeskConfig())
        self._random = random.Random(1)
        self.published = 0
        self.counts_from_ms = 0.0

    def begin(self) -> None:
        """Publish reference records, the probe's position and its first quote."""
        records = self._simulator.reference(250)
        records["instruments"].append(Instrument(_PROBE, currency="USD").to_record())
        for topic, rows in records.items():
            self._feed.publish_records(topic, rows)
        self._feed.flush()
        fill: dict[str, Column] = {
            name: StringColumn.from_texts([text])
            for name, text in (
                ("fill_id", "probe"),
                ("account_id", "account-0"),
                ("desk_id", "desk-0"),
                ("firm_id", "firm"),
                ("instrument_id", _PROBE),
            )
        }
        fill |= {
            "event_time_ms": _number(self._simulator.now_ms),
            "quantity": _number(_UNITS),
            "quantity_scale": _number(0, np.int32),
            "price": _number(_FIRST_CENTS),
            "price_scale": _number(2, np.int32),
            "fee": _number(0),
        }
        self._feed.publish("fills", fill)
        self._quote(0)
        self._feed.flush()

    def run(self, client: ClickHouseClient) -> tuple[dict[int, float], dict[int, float]]:
        """Run the market; return when quotes were sent and when a row included them.

        The quotes of the last seconds do not count.
        """
        watch = _Rows(client)
        watch.start()
        sent: dict[int, float] = {}
        began = time.monotonic()
        total = WARM_UP_SECONDS + SECONDS
        self.counts_from_ms = time.time() * 1000 + WARM_UP_SECONDS * 1000
        due, number = 0.0, 0
        for one in market_slices(self._simulator, total):
            while due <= one.due_seconds:
                _sleep_until(began + due)
                number += 1
                if one.due_seconds <= total - REST_SECONDS:
                    sent[number] = time.time() * 1000
                self._quote(number)
                due += self._random.expovariate(PROBES_A_SECOND)
            _sleep_until(began + one.due_seconds)
            for topic, columns in one.columns.items():
                count = self._feed.publish(topic, columns)
                self.published += count if one.due_seconds >= WARM_UP_SECONDS else 0
        self._feed.flush()
        return sent, watch.stop(max(sent))

    def close(self) -> None:
        self._publisher.close()

    def _quote(self, number: int) -> None:
        cents = _FIRST_CENTS + number
        quote: dict[str, Column] = {
            "instrument_id": StringColumn.from_texts([_PROBE]),
            "event_time_ms": _number(self._simulator.now_ms),
            "bid": _number(cents - 5),
            "ask": _number(cents + 5),
            "price_scale": _number(2, np.int32),
            "bid_size": _number(1),
            "ask_size": _number(1),
            "quantity_scale": _number(0, np.int32),
        }
        self._feed.publish("quotes", quote)


class _Rows(threading.Thread):
    """Notes when ClickHouse first had a position row at each of the probe's prices."""

    def __init__(self, client: ClickHouseClient) -> None:
        super().__init__(name="probe-rows", daemon=True)
        self._client = client
        self._ended = threading.Event()
        self._found: dict[int, float] = {}

    def run(self) -> None:
        # Rows carry when they came; a merge may drop one before it is read, and the next stands in.
        while not self._ended.wait(0.5):
            self._look()

    def stop(self, last: int) -> dict[int, float]:
        """Wait for the row of the last quote, half a minute at most, and return what was seen."""
        deadline = time.monotonic() + 30
        while max(self._found, default=-1) < last and time.monotonic() < deadline:
            time.sleep(0.2)
        self._ended.set()
        self.join(timeout=30)
        return dict(self._found)

    def _look(self) -> None:
        for row in self._client.rows(
            "SELECT toInt64(round(mark * 100)) AS cents, "
            "toUnixTimestamp64Milli(min(inserted_at)) AS at FROM risk_positions_raw "
            "WHERE instrument_id = {name:String} GROUP BY cents",
            {"name": _PROBE},
        ):
            number, at = int(row["cents"]) - _FIRST_CENTS, float(row["at"])
            self._found[number] = min(at, self._found.get(number, at))


def _until_held(client: ClickHouseClient) -> None:
    deadline = time.monotonic() + 120
    while not client.rows(
        "SELECT 1 AS one FROM risk_positions_raw WHERE instrument_id = {name:String} "
        "AND priced LIMIT 1",
        {"name": _PROBE},
    ):
        if time.monotonic() > deadline:
            msg = "measuring a tick's way: the job measured no position within two minutes"
            raise RuntimeError(msg)
        time.sleep(0.25)


def _waits(sent: Mapping[int, float], seen: Mapping[int, float]) -> list[float]:
    # What a later number shows includes the earlier ones.
    return [
        min(at for later, at in seen.items() if later >= number) - sent[number] for number in sent
    ]


def _quantiles(waits: list[float]) -> dict[str, float]:
    values = np.quantile(waits, [0.5, 0.95, 0.99, 1.0]).tolist()
    return {
        name: round(value, 1)
        for name, value in zip(("p50", "p95", "p99", "max"), values, strict=True)
    }


def _say(text: str) -> None:
    click.echo(text, err=True)


def _sleep_until(at: float) -> None:
    time.sleep(max(0.0, at - time.monotonic()))


def _number(value: int, kind: type[np.generic] = np.int64) -> NumberColumn:
    return NumberColumn(np.array([value], kind), np.ones(1, np.bool_))
