"""Pages of the dashboards in a real browser, for the tests that look at them."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

__all__ = ["PATIENCE_MS", "chromium", "opened", "served", "shown"]

ROOT = Path(__file__).resolve().parents[2]
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PATIENCE_MS = 60_000
"""How long a page may take, on a machine that does other things."""


@contextlib.contextmanager
def served(*overrides: str) -> Iterator[str]:
    """Run `riskstream dashboard` under some settings and yield its address."""
    if not (ROOT / "dashboards/static/vendor/versions.json").is_file():
        # The set-up builds them: without them it is broken, and so is what a user would see.
        pytest.fail("the browser's libraries are not built: run `make setup`")
    chosen = [part for override in overrides for part in ("--set", override)]
    process = subprocess.Popen(
        [sys.executable, "-m", "jobs.cli.main", *chosen, "dashboard", "--port", "0", "--json"],
        cwd=ROOT, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        yield json.loads(process.stdout.readline())["url"]
    finally:
        process.terminate()
        process.wait(timeout=30)
        process.stdout.close()


@contextlib.contextmanager
def chromium() -> Iterator[Any]:
    """Run headless Chromium."""
    found = os.environ.get("RISKSTREAM_CHROMIUM") or shutil.which("chromium")
    if found is None:
        # A browser is no part of the set-up: nothing that runs needs one.
        pytest.skip("no chromium on the PATH; apt-get install chromium, or set RISKSTREAM_CHROMIUM")
    from playwright.sync_api import sync_playwright  # noqa: PLC0415

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=found, args=FLAGS)
        yield started
        started.close()


@contextlib.contextmanager
def opened(browser: Any, address: str) -> Iterator[Any]:
    """Open a page, wait until it is drawn, and hold it to its own server and to no errors."""
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    page = context.new_page()
    problems: list[str] = []
    foreign: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on(
        "console",
        lambda message: problems.append(message.text) if message.type == "error" else None,
    )
    home = address.split("/")[2]
    page.on(
        "request",
        lambda request: (
            None
            if request.url.startswith(("blob:", "data:")) or home in request.url
            else foreign.append(request.url)
        ),
    )
    page.goto(address)
    page.wait_for_selector("html[data-ready=yes]", timeout=PATIENCE_MS)
    try:
        yield page
    finally:
        context.close()
    assert not problems
    assert not foreign


def shown(page: Any, panel: str, column: str) -> list[str]:
    cells = f"#panel-{panel} [data-column={column}]"
    page.wait_for_function(
        "cells => [...document.querySelectorAll(cells)].some((cell) => cell.dataset.exact)",
        arg=cells,
        timeout=PATIENCE_MS,
    )
    return [cell.get_attribute("data-exact") for cell in page.query_selector_all(cells)]
