"""How long a change in ClickHouse takes to show on the market risk page, in a real browser.

A server of ClickHouse, the dashboards and headless Chromium on this machine; `UPDATES` inserts of
`ROWS` changed positions, one every `EVERY_SECONDS`. A probe among them carries the number of the
update as its value, largest first, so it is the first row of the positions table. A clock in the
page looks at that cell every 10 ms; latency is from just before the insert until the page showed
it. Inserts that the page never showed are counted.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import numpy as np

from connectors.clickhouse import ClickHouseClient
from connectors.migrations import migrate
from connectors.settings import ClickHouseSettings
from jobs.fraud.features import FRAUD_FEATURES

__all__ = ["CELLS", "FLAGS", "chromium", "measure_page", "started", "stopped"]

UPDATES: Final = 60
ROWS: Final = 1_000
EVERY_SECONDS: Final = 0.5
_PROBE: Final = 1_000_000_000
FLAGS: Final = ("--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync")
"""What Chromium is started with."""

_ROOT: Final = Path(__file__).resolve().parent.parent

CELLS: Final = """
  const cells = (node, found) => {
    for (const one of node.querySelectorAll("*")) {
      if (one.tagName === "TD") found.push(one.textContent);
      if (one.shadowRoot) cells(one.shadowRoot, found);
    }
    return found;
  };
"""
"""Script of a function that finds the texts of a table, wherever Perspective keeps its cells."""

# The first number at or above the probe's base.
_WATCH: Final = (
    "(base) => { window.seen = {};"
    + CELLS
    + """
  setInterval(() => {
    for (const text of cells(document.querySelector("#panel-trader_positions"), [])) {
      const value = Number(text.replaceAll(",", ""));
      if (value >= base && !(value - base in window.seen)) window.seen[value - base] = Date.now();
    }
  }, 10);
}
"""
)


def measure_page() -> dict[str, Any]:
    """Return latencies in milliseconds, the updates shown, and the rows that the page holds.

    Raises:
        RuntimeError: when there is no Chromium.
    """
    browser = chromium()
    with tempfile.TemporaryDirectory(prefix="riskstream-page-") as folder:
        server, url = started("connectors.local.clickhouse_server", "--path", folder, "--port", "0")
        try:
            client = ClickHouseClient(ClickHouseSettings(url=url))
            migrate(client, list(FRAUD_FEATURES.names))
            _insert(client, 0)
            pages, address = started(
                "jobs.cli.main", "--set", f"clickhouse.url={url}", "dashboard", "--port", "0",
                "--json",
            )  # fmt: skip
            try:
                return _watched(client, browser, address)
            finally:
                stopped(pages)
        finally:
            stopped(server)


def chromium() -> str:
    """Return the path of Chromium.

    Raises:
        RuntimeError: when there is none.
    """
    browser = os.environ.get("RISKSTREAM_CHROMIUM") or shutil.which("chromium")
    if browser is None:
        msg = "measuring the page: no chromium on the PATH; set RISKSTREAM_CHROMIUM"
        raise RuntimeError(msg)
    return browser


def _watched(client: ClickHouseClient, browser: str, address: str) -> dict[str, Any]:
    from playwright.sync_api import sync_playwright  # noqa: PLC0415 - a test library

    with sync_playwright() as playwright:
        chrome = playwright.chromium.launch(executable_path=browser, args=list(FLAGS))
        page = chrome.new_page(viewport={"width": 1440, "height": 900})
        page.goto(f"{address}traders")
        page.wait_for_selector("html[data-ready=yes]", timeout=120_000)
        page.evaluate(_WATCH, _PROBE)
        page.wait_for_function("() => 0 in window.seen", timeout=120_000)
        sent: dict[int, float] = {}
        began = time.monotonic()
        for number in range(1, UPDATES + 1):
            time.sleep(max(0.0, began + number * EVERY_SECONDS - time.monotonic()))
            sent[number] = time.time() * 1000
            _insert(client, number)
        inserted = time.monotonic() - began
        page.wait_for_function(f"() => {UPDATES} in window.seen", timeout=120_000)
        caught_up = time.time() * 1000 - sent[UPDATES]
        seen = {int(number): at for number, at in page.evaluate("() => window.seen").items()}
        table = page.evaluate(
            "async () => (await document.querySelector("
            "'#panel-trader_positions perspective-viewer').getTable()).size()"
        )
        chrome.close()
    # An update that the next poll found replaced was overtaken, not lost: what came after shows it.
    waits = [
        min(at for later, at in seen.items() if later >= number) - sent[number] for number in sent
    ]
    p50, p95, p99 = np.quantile(waits, [0.5, 0.95, 0.99]).tolist()
    return {
        "updates": UPDATES,
        "rows_an_update": ROWS,
        "inserted_seconds": round(inserted, 2),
        "updates_shown": sum(1 for number in sent if number in seen),
        "rows_in_the_page": table,
        "insert_to_page_ms": {
            "p50": round(p50, 1), "p95": round(p95, 1), "p99": round(p99, 1),
            "max": round(max(waits), 1), "last": round(caught_up, 1),
        },
    }  # fmt: skip


def _insert(client: ClickHouseClient, number: int) -> None:
    client.execute(
        "INSERT INTO risk_positions_raw (firm_id, desk_id, account_id, instrument_id, quantity, "
        "average_price, mark, mark_ms, value, realised, unrealised, fees, component_var, priced, "
        "event_time_ms, sequence, evaluated_at_ms) "
        "SELECT 'F', concat('desk-', toString(number % 5)), concat('a', toString(number % 20)), "
        f"concat('I', toString(number)), number, 100, 100 + {number} / 100, 0, "
        f"if(number = 0, {_PROBE + number}, number * (100 + {number} / 100)), 0, 0, 0, 0, true, 0, "
        f"{number}, {number + 1} FROM numbers({ROWS})"
    )


def started(module: str, *arguments: str) -> tuple[subprocess.Popen[str], str]:
    """Start a server of ours and return its process and address."""
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", module, *arguments],
        stdout=subprocess.PIPE,
        text=True,
        cwd=_ROOT,
    )
    line = process.stdout.readline() if process.stdout else ""
    if line.startswith("{"):
        return process, str(json.loads(line)["url"])
    found = re.search(r" on (\S+:\d+),", line)
    if found is None:
        stopped(process)
        msg = f"starting {module}: expected an address, was {line!r}"
        raise RuntimeError(msg)
    return process, f"http://{found[1]}"


def stopped(process: subprocess.Popen[str]) -> None:
    """End a server and wait for its end."""
    process.terminate()
    process.wait(timeout=60)
    if process.stdout:
        process.stdout.close()
